import errno
import gzip
import math
import os
import time
from dataclasses import FrozenInstanceError, dataclass

import joblib
import pytest

from matgen_nb.utils import (
    MatgenError,
    atomic_write,
    check_limits,
    described,
    fetch,
    option,
    option_help,
    patch,
)
from matgen_nb.symmetry.structure_files import read_csv_table
from matgen_nb.parallel import Failure, count_reasons, describe_failures, parallel_map, time_limit


def shout(text):
    if text == "bad":
        raise ValueError("bad word")
    if text == "hang":
        time.sleep(60)
    if text == "die":
        os._exit(3)
    return text.upper()


@pytest.mark.parametrize("mode, old, new", [("w", "old", "new"), ("wb", b"old", b"new")])
def test_atomic_write(tmp_path, mode, old, new):
    path = tmp_path / "deep" / "file"
    with atomic_write(path, mode) as f:
        f.write(old)
    with pytest.raises(RuntimeError):
        with atomic_write(path, mode) as f:
            f.write(new)
            raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file"]
    with atomic_write(path, mode) as f:
        f.write(new)
    assert path.read_bytes() == b"new"


def test_atomic_write_full_disk_when_syncing(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        with atomic_write(tmp_path / "a") as f:
            f.write("x")
    assert os.listdir(tmp_path) == []


def test_atomic_write_mode():
    with pytest.raises(ValueError, match="mode"):
        with atomic_write("x", "a"):
            pass


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_parallel_map_keeps_order_and_names_failures(n_jobs):
    results, failures = parallel_map(
        shout, ["a", "bad", "b", "hang", "c"], names="vwxyz", n_jobs=n_jobs, timeout=0.5
    )
    assert results == ["A", None, "B", None, "C"]
    assert (
        failures[0] == Failure("w", "bad word") and failures[1].name == "y" and "longer" in failures[1].reason
    )


def _limited(number):
    if number > 2:
        error = MatgenError(f"{number} is above the limit")
        error.kind = "above the limit"
        raise error
    if number < 0:
        raise ValueError(f"{number} is negative (a number)")
    return [1][number]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_failures_of_one_kind_are_counted_together(n_jobs):
    _, failures = parallel_map(_limited, [7, -1, -2, 0, 1, 5, -3], n_jobs=n_jobs, progress=None)
    expected = [("-1 is negative (a number)", 3), ("above the limit", 2)]
    assert count_reasons(failures) == [*expected, ("IndexError: list index out of range", 1)]
    by_hand = [Failure("a", "no net"), Failure("b", "no net"), Failure("c", "too large (9)", "too large")]
    assert count_reasons(by_hand) == [("no net", 2), ("too large", 1)] and count_reasons([]) == []


def test_parallel_map_survives_a_dead_worker():
    results, failures = parallel_map(shout, ["a", "die", "b", "c"], n_jobs=2)
    assert (
        results == ["A", None, "B", "C"]
        and [f.name for f in failures] == ["1"]
        and "died" in failures[0].reason
    )


def test_parallel_map_takes_the_backend_in_force():
    with joblib.parallel_config(backend="threading"):
        assert parallel_map(lambda x: os.getpid(), range(3), n_jobs=2)[0] == [os.getpid()] * 3


def test_parallel_map_counts_names():
    with pytest.raises(ValueError, match="2 names for 3"):
        parallel_map(shout, "abc", names="ab")


def test_describe_failures():
    text = describe_failures([Failure(str(i), "no") for i in range(8)], 100, limit=2)
    assert text.startswith("8 of 100") and "6 more" in text


def test_time_limit_is_removed():
    with pytest.raises(TimeoutError):
        with time_limit(0.05):
            time.sleep(5)
    time.sleep(0.1)
    assert issubclass(MatgenError, Exception)


def test_limits_within_limits():
    with pytest.raises(TimeoutError, match="than 0.3 s"):
        with time_limit(0.3):
            with time_limit(5):
                pass  # done in time: the limit around it goes on
            time.sleep(5)
    with pytest.raises(TimeoutError, match="than 0.2 s"):
        with time_limit(0.2):
            with time_limit(5):
                time.sleep(10)  # the outer one ends first
    with time_limit(5):
        with pytest.raises(TimeoutError, match="than 0.1 s"):
            with time_limit(0.1):
                time.sleep(5)
    time.sleep(0.2)


def test_fetch_takes_a_file_once_and_says_what_is_wrong(tmp_path, monkeypatch):
    "With the real pooch and files in place of a server: stated checksums, a test of the content, the record, what changes later, no network."
    import pooch

    site, cache = tmp_path / "site", tmp_path / "cache"
    site.mkdir()
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache)

    def arrive(url, output_file, pooch_, **more):
        text = (site / str(url).rsplit("/", 1)[1]).read_bytes()  # OSError where there is none: no network
        (output_file.write if hasattr(output_file, "write") else open(output_file, "wb").write)(text)

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, **more: arrive)

    def whole(path):
        if b"end" not in path.read_bytes():
            raise MatgenError(f"{path.name} is cut short")

    (site / "a.txt").write_text("text end")
    get = lambda name="a.txt", **more: fetch(f"https://site/{name}", name, whole, **more)
    stated = "sha256:" + pooch.file_hash(str(site / "a.txt"))
    with pytest.raises(MatgenError, match="not the file that was published.*sha256:000"):
        get(stated=lambda: "sha256:" + "0" * 64)
    assert not list(cache.glob("a.txt*"))
    assert get(stated=lambda: stated) == cache / "a.txt" and (
        cache / "a.txt.sha256"
    ).read_text() == stated.removeprefix("sha256:")
    assert get(stated=lambda: pytest.fail("asked again")) == cache / "a.txt"
    (site / "b.txt").write_text("text e")
    with pytest.raises(MatgenError, match="cut short"):
        get("b.txt")
    assert not list(cache.glob("b.txt*"))
    with pytest.raises(MatgenError, match="Without a network, ask a friend"):
        get("c.txt", instead="ask a friend")
    (site / "a.txt").write_text("other end")
    (cache / "a.txt").write_text("changed end")
    with pytest.raises(MatgenError, match="not the file that was kept"):
        get()


@described
@dataclass(frozen=True)
class Oven:
    "Options of an oven."

    minutes: int = option(help="Time.", min=1)
    degrees: float = option(180.0, "Temperature.", unit="°C", min=50, max=300)
    fan: bool | None = option(None, "Fan on or off.", max=1)
    shelves: list = option([2], "Shelves in use.")
    secret: int = 3


def test_an_option_says_its_default_help_and_unit_once():
    assert option_help(Oven) == {
        "minutes": "Time. (required)",
        "degrees": "Temperature. (in °C; default: 180.0)",
        "fan": "Fan on or off. (default: None)",
        "shelves": "Shelves in use. (default: [2])",
    }
    assert option_help(Oven, defaults=False)["minutes"] == "Time."
    assert Oven.__doc__.startswith("Options of an oven.\n\n    minutes: Time. (required)\n    degrees: ")
    oven = Oven(minutes=1)
    assert (oven.degrees, oven.fan, oven.shelves, oven.secret) == (180.0, None, [2], 3)
    assert oven.shelves is not Oven(minutes=1).shelves
    with pytest.raises(TypeError):
        Oven()
    with pytest.raises(FrozenInstanceError):
        oven.minutes = 2


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(minutes=0), r"^minutes must be at least 1, got 0$"),
        (dict(minutes=1, degrees=49.9), r"^degrees must be at least 50 and at most 300 °C, got 49\.9$"),
        (dict(minutes=1, degrees=math.inf), "degrees must be"),
        (dict(minutes=1, degrees=math.nan), "degrees must be"),
        (dict(minutes=1, fan=2), "^fan must be at most 1, got 2$"),
    ],
)
def test_limits_of_options(values, message):
    with pytest.raises(MatgenError, match=message):
        check_limits(Oven(**values))


def test_values_on_the_limits_are_allowed():
    for degrees in (50, 300):
        check_limits(Oven(1, degrees, None, secret=-1))


def test_patch_makes_methods_properties_and_class_methods():
    class Circle:
        def __init__(self, radius):
            self.radius = radius

    @patch
    def doubled(self: Circle, times: int = 1):
        "Twice the circle."
        return type(self)(self.radius * 2**times)

    @patch(as_prop=True)
    def diameter(self: Circle):
        return 2 * self.radius

    @patch(cls_method=True)
    def unit(cls: type[Circle]):
        return cls(1)

    class Ring(Circle):
        pass

    assert Circle.unit().doubled().doubled(2).diameter == 16 and isinstance(Ring.unit().doubled(), Ring)
    assert doubled(Circle(3)).radius == 6 and Circle.doubled.__doc__ == "Twice the circle."
    with pytest.raises(AttributeError):
        Circle(1).diameter = 3


def test_patch_needs_a_class():
    def bare(self):
        pass

    def text(self: "Circle"):  # noqa: F821
        pass

    for wrong in (bare, text, lambda: None):
        with pytest.raises(TypeError, match="first argument"):
            patch(wrong)


def test_patch_sees_through_other_decorators():
    from contextlib import contextmanager

    class Door:
        opened = 0

    @patch
    @contextmanager
    def open_for(self: Door, n: int):
        self.opened = n
        yield self

    with Door().open_for(3) as door:
        assert door.opened == 3


@pytest.mark.parametrize("name, opened", [("t.csv", open), ("t.csv.gz", gzip.open)])
def test_read_csv_table(tmp_path, name, opened):
    with opened(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("\ufeffcif,name\n" + f"{'x' * 300_000},big\n" + '"two\nlines",\n')
    table = read_csv_table(tmp_path / name, "cif")
    assert table.columns == ["cif", "name"] and [len(row["cif"]) for row in table.rows] == [300_000, 9]
    assert read_csv_table(tmp_path / name) == table
    with pytest.raises(MatgenError, match="no column 'structure'; it has 'cif', 'name'. Rename"):
        read_csv_table(tmp_path / name, "structure")


def test_read_csv_table_of_no_table(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(b"not compressed")
    (tmp_path / "empty.csv").write_text("")
    for name, text in (
        ("t.csv.gz", "not a readable"),
        ("none.csv", "not a readable"),
        ("empty.csv", "no columns"),
    ):
        with pytest.raises(MatgenError, match=text):
            read_csv_table(tmp_path / name, "cif")
