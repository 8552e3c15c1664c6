"""Result folders: nobody's files are lost, one run at a time, damaged files are rejected; commands with --overwrite beside foreign files."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.mofdiff.bonds import textbook_mofs
from matgen_nb.commands import main as entry
from matgen_nb.scale import records, runs
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError, content_hash, load_tensors, tensor_bytes
from matgen_nb.diffusion.pretrained import WEIGHTS
from matgen_nb.folders import LOCK, RECORD, FolderLock, OwnFiles, lock_holder

SALT = Crystal(4.12 * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


def contents(folder):
    "Every file of a folder, but for the record and what runs write, as {name: bytes}."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- the record of our own files

NAMES = st.sampled_from(
    ["a.csv", "cif/0.cif", "cif/mine.cif", "b/c/d.txt", "notes.txt", "cif/.0.cif.1.2.tmp", "run.json"]
)


@settings(max_examples=40, deadline=None)
@given(ours=st.sets(NAMES), theirs=st.sets(NAMES))
def test_clearing_deletes_ours_and_nothing_else(tmp_path_factory, ours, theirs):
    folder = tmp_path_factory.mktemp("own")
    OwnFiles(folder).claim(*ours)
    for name in ours | theirs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    own = OwnFiles(folder)
    torn = {"cif/.0.cif.1.2.tmp"} if "cif/0.cif" in ours else set()
    assert set(own.foreign()) == theirs - ours - torn
    own.clear()
    assert set(contents(folder)) == theirs - ours - torn


@pytest.mark.parametrize("line", ["../secret", "/etc/hostname", "a/../../secret", "..", "link/secret", ""])
def test_a_record_cannot_lead_out_of_its_folder(tmp_path, line):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "run"
    OwnFiles(folder).claim("a.csv")
    (folder / "link").symlink_to(tmp_path)
    with open(folder / RECORD, "a") as record:
        record.write(f"{line}\ntorn")
    assert OwnFiles(folder).names == {"a.csv"}
    OwnFiles(folder).clear()
    assert (tmp_path / "secret").exists() and (folder / "link").is_symlink()


def test_nested_runs_are_cleared_by_their_own_records(tmp_path):
    outer, inner = OwnFiles(tmp_path), OwnFiles(tmp_path / "training")
    outer.claim("run.json", "training/")
    for path in inner.claim("last.safetensors"):
        path.write_text("x")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "training" / "notes.txt").write_text("mine")
    assert outer.foreign() == ["training/notes.txt"]
    outer.clear()
    assert set(contents(tmp_path)) == {"training/notes.txt"}


# ---- locks

HOLDER = """
import sys, time
from matgen_nb.folders import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder, seconds=60):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_two_processes_one_folder(tmp_path):
    other = holder(tmp_path / "run")
    try:
        with pytest.raises(MatgenError, match=f"in use since .*process {other.pid}"):
            runs.fresh_folder(tmp_path / "run")
        with pytest.raises(MatgenError, match="in use"):
            runs.open_run(tmp_path / "run", {"n": 1}, resume=True)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / "run" / LOCK).exists() and lock_holder(tmp_path / "run") is None, "its process is gone"
    with runs.fresh_folder(tmp_path / "run"):
        assert lock_holder(tmp_path / "run")["pid"] == os.getpid()
    assert lock_holder(tmp_path / "run") is None


TAKER = """
import sys, time
from matgen_nb.folders import FolderLock
from matgen_nb.utils import MatgenError
while time.time() < float(sys.argv[2]): time.sleep(.001)
try: lock = FolderLock(sys.argv[1])
except MatgenError: print("rejected")
else:
    print("held", flush=True)
    time.sleep(3)
"""


def test_of_several_that_break_a_stale_lock_one_gets_it(tmp_path):
    with FolderLock(tmp_path) as lock:
        stale = json.loads(lock.text) | {"pid": 2**22 + 5}
    (tmp_path / LOCK).write_text(json.dumps(stale))
    start = str(time.time() + 1)
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(tmp_path), start], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert sorted(t.communicate()[0].strip() for t in takers) == ["held", "rejected", "rejected"]
    assert [p.name for p in tmp_path.iterdir()] == [], "nothing is left behind"


@pytest.mark.parametrize(
    "change, free",
    [
        ({}, False),
        ({"pid": 2**22 + 5}, True),
        ({"start": "1"}, True),
        ({"boot": "b"}, True),
        ({"host": "elsewhere"}, False),
        ({"space": "another container"}, False),
    ],
)
def test_stale_locks_are_recognised(tmp_path, change, free):
    with FolderLock(tmp_path) as lock:
        record = json.loads(lock.text)
    (tmp_path / LOCK).write_text(json.dumps(record | change))
    assert (lock_holder(tmp_path) is None) == free
    os.utime(tmp_path / LOCK, (time.time() - 700,) * 2)
    old = lock_holder(tmp_path) is None
    assert old == (free or bool({"host", "space"} & change.keys())), (
        "elsewhere: nobody touched it for ten minutes"
    )


# ---- who may write where


def test_inputs_are_never_the_folder_of_results(tmp_path):
    (tmp_path / "mine" / "cif").mkdir(parents=True)
    SALT.to_cif(tmp_path / "mine" / "cif" / "a.cif")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for out in (tmp_path / "mine", tmp_path, tmp_path / "link", tmp_path / "mine" / "cif" / ".."):
        with pytest.raises(MatgenError, match="--out .* (is|contains) --reference"):
            runs.fresh_folder(out, True, {"--reference": tmp_path / "mine"})
    runs.fresh_folder(tmp_path / "mine" / "evaluated", True, {"--reference": tmp_path / "mine"}).close()
    (tmp_path / "mine" / "theirs").mkdir()
    (tmp_path / "mine" / "theirs" / "b.cif").write_text("x")
    with pytest.raises(MatgenError, match="lies inside --reference .* holds b.cif"):
        runs.fresh_folder(tmp_path / "mine" / "theirs", True, {"--reference": tmp_path / "mine"})
    assert contents(tmp_path / "mine").keys() == {"cif/a.cif", "theirs/b.cif"}


def test_results_of_an_earlier_version_are_not_overwritten(tmp_path):
    for name in ("table.csv", "cif/00000.cif", "notes.txt"):
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_text(name)
    before = contents(tmp_path / "old")
    with pytest.raises(MatgenError, match="no record .* choose another --out"):
        runs.fresh_folder(tmp_path / "old", overwrite=True)
    (tmp_path / "old" / "request.json").write_text('{"n": 1}')
    with pytest.raises(MatgenError, match="earlier version"):
        runs.open_run(tmp_path / "old", {"n": 1}, resume=True)
    (tmp_path / "old" / "request.json").unlink()
    assert contents(tmp_path / "old") == before


FOREIGN = (
    "notes.txt",
    "cif/mine.cif",
    "cif/.00000.cif.tmp",
    ".hidden.1.2.tmp",
    "chunks/mine.csv",
    "sampled/mine.safetensors",
    "training/notes.txt",
    "mof/mine.cif",
    "judged/mine.json",
    "samples/mine.txt",
    "my results/table.csv",
)


def put_foreign(folder):
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} is mine")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Inputs for every command: CIF files, prepared files, small weights."
    from matgen_nb.mofdiff.coarse_graining import CoarseMof
    from matgen_nb.mofdiff.data import MofData
    from matgen_nb.mofdiff.decomposition import decompose

    place = tmp_path_factory.mktemp("place")
    (place / "cifs").mkdir(), (place / "mofs").mkdir()
    for i in range(4):
        Crystal(SALT.lattice * (1 + i / 50), SALT.elements, SALT.frac_coords).to_cif(
            place / "cifs" / f"{i}.cif"
        )
    mofs = {name: textbook_mofs()[name] for name in ("HKUST-1", "MIL-53")}
    for name, mof in mofs.items():
        mof.crystal.to_cif(place / "mofs" / f"{name}.cif")
    found = [
        CoarseMof.from_decomposition(decompose(m), n, dict(density=m.crystal.density))
        for n, m in mofs.items()
    ]
    MofData.from_coarse(found).save(place / "mofs.safetensors")
    (place / "table.csv").write_text("task,unit,per_second,low,high\nsum,sums,3,2,4\n")
    assert (
        run("prepare", "crystals", place / "cifs", "--out", place / "crystals.safetensors", "--n-jobs", 1)
        == 0
    )
    return place


def commands(place, out):
    "A quick line for every command that writes a folder."
    fast = ["--preset", "tiny", "--steps", 2, "--device", "cpu"]
    return {
        "train symmcd": ["train", "symmcd", place / "crystals.safetensors", "--batch-size", 2, *fast],
        "train blocks": ["train", "blocks", place / "mofs.safetensors", *fast],
        "train mofdiff": ["train", "mofdiff", place / "mofs.safetensors", *fast],
        "sample symmcd": ["sample", "symmcd", "-n", 2, "--steps", 2, "--device", "cpu"],
        "sample mofdiff": [
            "sample",
            "mofdiff",
            "-n",
            1,
            "--steps",
            2,
            "--starts",
            1,
            "--generations",
            1,
            "--no-relax",
            "--n-jobs",
            1,
            "--device",
            "cpu",
        ],
        "evaluate crystals": [
            "evaluate",
            "crystals",
            place / "cifs",
            "--reference",
            place / "crystals.safetensors",
            "--n-jobs",
            1,
        ],
        "evaluate mofs": ["evaluate", "mofs", place / "mofs", "--n-jobs", 1],
        "design": [
            "design",
            "--property",
            "density",
            "--target",
            0.6,
            "-n",
            1,
            "--strategies",
            "selected",
            "--n-jobs",
            1,
            "--device",
            "cpu",
        ],
        "benchmark": ["benchmark", "--only", "projection", "--seconds", 0.1, "--device", "cpu"],
        "reproduce": [
            "reproduce",
            "blocks-small",
            "--data",
            place / "mofs.safetensors",
            "--scale",
            0.001,
            "--device",
            "cpu",
        ],
        "demo": ["demo", "-n", 2, "--seconds", 1, "--mofs", 0, "--device", "cpu"],
    }


NAMES_OF_COMMANDS = tuple(commands(__import__("pathlib").Path("p"), None))


@pytest.mark.parametrize("name", NAMES_OF_COMMANDS)
def test_overwriting_leaves_foreign_files_alone(place, tmp_path, name, capsys):
    "A run, then foreign files, then the same with --overwrite: every foreign file is what it was, and the results are new."
    line, out = [*commands(place, tmp_path)[name], "--out", tmp_path / "out"], tmp_path / "out"
    put_foreign(out)
    before = contents(out)
    code = run(*line, "--overwrite")
    assert code == 0, capsys.readouterr().err
    first = OwnFiles(out).names
    assert first and not set(FOREIGN) & first and all((out / n).read_bytes() == b for n, b in before.items())
    if name in ("demo", "benchmark", "design"):  # once is slow enough
        return
    marked = next(out / n for n in sorted(first) if n.endswith(("run.json", "figures.csv")))
    marked.write_text("of the first run")
    assert run(*line) == 2 and marked.read_text() == "of the first run", "not without --overwrite"
    assert run(*line, "--overwrite") == 0 and marked.read_text() != "of the first run"
    assert all((out / n).read_bytes() == b for n, b in before.items()), "foreign files"
    assert not [p for p in out.rglob("*.tmp") if p.name not in (".00000.cif.tmp", ".hidden.1.2.tmp")]
    assert lock_holder(out) is None and not (out / LOCK).exists()


BAD = {
    "a typo in --reference": ["evaluate", "crystals", "{p}/cifs", "--reference", "{p}/nothing"],
    "an impossible formula": [
        "sample",
        "symmcd",
        "-n",
        2,
        "--steps",
        2,
        "--formula",
        "Qq2",
        "--device",
        "cpu",
    ],
    "an impossible group": ["sample", "symmcd", "-n", 2, "--space-group", 300],
    "missing data": ["train", "symmcd", "{p}/nothing.safetensors", "--preset", "tiny"],
    "missing weights": ["sample", "mofdiff", "--weights", "{p}/nothing.safetensors", "-n", 1],
    "an unknown property": ["design", "--property", "beauty", "--target", 1],
    "missing frameworks": ["evaluate", "mofs", "{p}/nothing"],
    "a missing table": ["benchmark", "--compare", "{p}/nothing.csv"],
    "missing data of a recipe": ["reproduce", "blocks-small", "--data", "{p}/nothing"],
    "its own reference": ["evaluate", "crystals", "{p}/cifs", "--reference", "{o}"],
    "its own source": ["evaluate", "mofs", "{o}"],
    "its own weights": ["sample", "symmcd", "--weights", "{o}/weights.safetensors", "-n", 1],
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_costs_no_results(place, tmp_path, name, capsys):
    out = tmp_path / "out"
    runs.write_results(out, [SALT], [{"formula": "CsCl"}], "T", records.run_record("test", 0, 0.0))
    OwnFiles(out).claim("weights.safetensors")[0].write_bytes(
        (WEIGHTS / "symmcd-mp20-small.safetensors").read_bytes()
    )
    before = contents(out)
    line = [str(a).format(p=place, o=out) for a in BAD[name]]
    assert run(*line, "--out", out, "--overwrite") == 2
    assert capsys.readouterr().err.count("\n") == 1 and contents(out) == before


@pytest.mark.parametrize("command", ["crystals", "mofs"])
def test_prepare_overwrites_prepared_files_only(place, tmp_path, command):
    source = place / ("cifs" if command == "crystals" else "mofs")
    line = ["prepare", command, source, "--n-jobs", 1, "--out"]
    assert (
        run(*line, tmp_path / "a.safetensors") == 0
        and run(*line, tmp_path / "a.safetensors", "--overwrite") == 0
    )
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "b.run.json").write_text("mine")
    assert (
        run(*line, tmp_path / "thesis.tex", "--overwrite") == 2
        and run(*line, tmp_path / "b.safetensors", "--overwrite") == 2
    )
    assert run(*line, source, "--overwrite") == 2 and run(*line, next(source.iterdir()), "--overwrite") == 2
    assert (tmp_path / "thesis.tex").read_text() == (tmp_path / "b.run.json").read_text() == "mine"


def test_a_folder_of_results_inside_the_inputs_is_not_read(place, tmp_path):
    import shutil

    shutil.copytree(place / "cifs", tmp_path / "mine")
    line = [
        "evaluate",
        "crystals",
        tmp_path / "mine",
        "--reference",
        place / "crystals.safetensors",
        "--n-jobs",
        1,
    ]
    for more in ([], ["--overwrite"]):
        assert run(*line, "--out", tmp_path / "mine" / "evaluated", *more) == 0
        assert len(records.read_table(tmp_path / "mine" / "evaluated" / "table.csv")) == 4


# ---- tables


@given(
    st.lists(
        st.fixed_dictionaries(
            {"a": st.one_of(st.text("=+-@'ab1.,\"\n\t ", min_size=1), st.integers(-99, 99), st.booleans())}
        ),
        min_size=1,
    )
)
@settings(max_examples=60, deadline=None)
def test_cells_that_a_spreadsheet_would_run_are_escaped_and_come_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    records.write_table(path, rows)
    import csv

    for row in csv.DictReader(path.read_text().splitlines(keepends=True)):
        assert (
            not row["a"]
            or row["a"][0] not in "=@"
            and (row["a"][0] not in "+-" or math.isfinite(float(row["a"])))
        )
    back, wanted = (
        records.read_table(path),
        [records._number(r["a"]) if isinstance(r["a"], str) else r["a"] for r in rows],
    )
    assert [r.get("a") for r in back] == wanted
    assert [isinstance(r.get("a"), bool) for r in back] == [isinstance(a, bool) for a in wanted]


# ---- damaged files


def weights_file(path, **changes):
    "The weights of the crystals that ship, with a checksum, some tensors or texts changed."
    metadata, tensors = load_tensors(WEIGHTS / "symmcd-mp20-small.safetensors")
    metadata.pop("checksum", None)
    tensors |= {k: v for k, v in changes.items() if k in tensors}
    path.write_bytes(tensor_bytes(tensors, metadata | {k: v for k, v in changes.items() if k not in tensors}))
    return path


def test_equal_weights_are_equal_files_and_content_counts(tmp_path):
    from safetensors.torch import save_file
    from matgen_nb.symmcd.model import SymmCD

    model = SymmCD.from_pretrained("symmcd-mp20-small")
    for name in "ab":
        model.save_pretrained(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    metadata, tensors = load_tensors(tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "c.safetensors", dict(reversed(metadata.items())))
    assert (
        content_hash(tmp_path / "c.safetensors")
        == content_hash(tmp_path / "a.safetensors")
        != content_hash(WEIGHTS / "blocks-small.safetensors")
    )


@pytest.mark.parametrize("width", [10**9, 10**5, "huge", -1, None, 1e30])
@pytest.mark.parametrize("field", ["width", "layers", "frequencies"])
def test_absurd_sizes_are_rejected_quickly(tmp_path, field, width):
    from matgen_nb.symmcd.model import SymmCD

    config = json.loads(load_tensors(WEIGHTS / "symmcd-mp20-small.safetensors")[0]["config"])
    path = weights_file(tmp_path / "w.safetensors", config=json.dumps(config | {field: width}))
    start = time.process_time()
    with pytest.raises(MatgenError, match="does not fit this version"):
        SymmCD.from_pretrained(path)
    assert time.process_time() - start < 60


@settings(max_examples=25, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(tmp_path_factory, place, bit):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "whole.safetensors"
    data = tensor_bytes(
        {"w": torch.arange(50.0), "b": torch.ones(3, dtype=torch.bfloat16)}, {"format": "x", "config": "{}"}
    )
    k = int(place * len(data))
    path.write_bytes(data[:k] + bytes([data[k] ^ (1 << bit)]) + data[k + 1 :])
    try:
        metadata, tensors = load_tensors(path)
    except ValueError:
        return
    assert metadata == {**metadata, "format": "x", "config": "{}"} and torch.equal(
        tensors["w"], torch.arange(50.0)
    ), "only blanks changed"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_with_nan_are_rejected(tmp_path, value):
    from matgen_nb.symmcd.model import SymmCD

    _, tensors = load_tensors(WEIGHTS / "symmcd-mp20-small.safetensors")
    name = next(n for n in tensors if n.endswith("weight"))
    bad = tensors[name].clone()
    bad.view(-1)[3] = value
    with pytest.raises(MatgenError, match="NaN or infinite"):
        SymmCD.from_pretrained(weights_file(tmp_path / "w.safetensors", **{name: bad}))


def test_a_damaged_cache_of_descriptions_is_made_again(tmp_path, capsys):
    from matgen_nb.symmcd.evaluation import prepare_reference

    cache = tmp_path / "known.npz"
    want = prepare_reference([SALT], cache=cache, fingerprints=False, n_jobs=1, progress=False).rows
    whole = cache.read_bytes()
    for bad in (whole[: len(whole) // 2], b"", b"PK\x03\x04 nonsense", whole[:60] + b"xxxx" + whole[64:]):
        cache.write_bytes(bad)
        rows = prepare_reference([SALT], cache=cache, fingerprints=False, n_jobs=1, progress=False).rows
        assert json.dumps(rows) == json.dumps(want) and np.load(cache)["keys"].size == 1
    assert "damaged" in capsys.readouterr().out


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 120))
def test_a_history_that_was_cut_gives_its_whole_lines(tmp_path_factory, cut):
    from matgen_nb.scale.checkpoints import read_history, write_history

    rows = [{"step": s, "loss": 1 / s, "lr": 1e-3, "val_loss": 0.5} for s in range(1, 6)]
    path = tmp_path_factory.getbasetemp() / "history.csv"
    write_history(path, rows)
    text = path.read_text()
    path.write_text(text[: max(len(text) - cut, 0)])
    found = read_history(path)
    assert found == rows[: len(found)] and len(found) == max(
        text[: max(len(text) - cut, 0)].count("\n") - 1, 0
    )


def test_time_limits_hold_for_flat_and_skewed_cells_and_slabs():
    from matgen_nb.symmcd.evaluation import describe_crystal
    from matgen_nb.symmcd.fingerprints import site_neighbours, shortest_distance, site_fingerprint

    skew = np.array([[1, 0, 0], [40, 1, 0], [7, -90, 1]])
    skewed = Crystal(skew @ SALT.lattice, SALT.elements, SALT.frac_coords @ np.linalg.inv(skew))
    assert shortest_distance(skewed) == pytest.approx(shortest_distance(SALT))
    np.testing.assert_allclose(site_fingerprint(skewed, 0), site_fingerprint(SALT, 0), atol=1e-6)
    slab = Crystal(
        np.diag([3.5, 3.5, 68.0]), [12, 8] * 2, [[0, 0, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.53], [0, 0, 0.53]]
    )
    assert describe_crystal(slab, timeout=30)["failure"] == ""
    flat = Crystal(np.diag([30.0, 30.0, 2e-4]), np.full(400, 6), np.random.default_rng(0).random((400, 3)))
    with pytest.raises(ValueError, match="too flat or too dense"):
        site_neighbours(flat, 0, 7.0)
    many = Crystal(40 * np.eye(3), np.full(2500, 6), np.random.default_rng(0).random((2500, 3)))
    assert "more than 2000 atoms" in describe_crystal(many, timeout=0.5)["failure"]
