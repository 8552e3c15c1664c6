"""`matgen benchmark`: what it measures and writes; the numbers themselves are nobody's promise."""

import json
import time

import pytest
import torch

from matgen_nb.commands import main as entry
from matgen_nb.scale import benchmark as bm, runs
from matgen_nb.utils import MatgenError


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


@pytest.fixture
def quick(monkeypatch):
    "Two quick tasks, and one whose module is not installed."
    tasks = {
        "sleep": bm.Task("sleep", "naps", lambda device, seed: (lambda: time.sleep(0.005), 10)),
        "sum": bm.Task("sum", "sums", lambda device, seed: (lambda: sum(range(1000)), 1)),
        "far": bm.Task("far", "things", None, needs="no_such_module"),
    }
    monkeypatch.setattr(bm, "TASKS", tasks)


def test_it_measures_what_it_says():
    calls = []
    got = bm.measure(lambda: (calls.append(1), time.sleep(0.01 if len(calls) != 3 else 0.05)), 5, seconds=0.2)
    assert (
        got["repeats"] == len(calls) - 1
        and 200 < got["per_second"] <= 500
        and got["low"] <= 100
        and got["low"] <= got["per_second"] <= got["high"]
    )


def test_command_and_comparison(tmp_path, quick, capsys):
    assert run("benchmark", "--seconds", 0.2, "--device", "cpu", "--out", tmp_path / "a") == 0
    assert (
        run(
            "benchmark",
            "--seconds",
            0.2,
            "--device",
            "cpu",
            "--only",
            "sum",
            "--out",
            tmp_path / "b",
            "--compare",
            tmp_path / "a" / "table.csv",
        )
        == 0
    )
    first, second = (runs.read_table(tmp_path / name / "table.csv") for name in "ab")
    assert [r["task"] for r in first] == ["sleep", "sum"] and {
        "torch",
        "hardware",
        "threads",
        "per_cpu_second",
    } <= first[0].keys()
    assert (
        second[0]["ratio"] == pytest.approx(second[0]["per_second"] / first[1]["per_second"])
        and "times" in capsys.readouterr().out
    )
    assert (tmp_path / "b" / "benchmark.png").read_bytes()[:4] == b"\x89PNG" and json.loads(
        (tmp_path / "b" / "run.json").read_text()
    )["environment"]["device"] == "cpu"


def test_mistakes_are_named(tmp_path, quick, capsys):
    runs.write_table(tmp_path / "x.csv", [{"cif": "data_"}])
    (tmp_path / "empty.csv").write_text("")
    for wrong in ("x.csv", "empty.csv", "none.csv"):
        assert run("benchmark", "--compare", tmp_path / wrong, "--out", tmp_path / "o") == 2
        assert wrong in capsys.readouterr().err and not (tmp_path / "o").exists()
    with pytest.raises(MatgenError, match="no task cooking"):
        bm.run_benchmark(only=["cooking"])


@pytest.mark.parametrize("column", ["per_second", "low", "high", "per_cpu_second"])
@pytest.mark.parametrize("value", ["fast", 0, -3.0, float("nan"), float("inf")])
def test_a_table_to_compare_with_is_read_before_anything_is_measured(
    tmp_path, quick, monkeypatch, capsys, column, value
):
    monkeypatch.setattr(bm, "measure", lambda *a, **k: pytest.fail("measured"))
    runs.write_table(
        tmp_path / "x.csv",
        [
            dict(task="sum", unit="sums", per_second=3.0, low=2.0, high=4.0, per_cpu_second=3.0)
            | {column: value}
        ],
    )
    assert run("benchmark", "--compare", tmp_path / "x.csv", "--out", tmp_path / "o") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert column in said and "positive number" in said and not (tmp_path / "o").exists()


def test_a_row_with_too_many_fields_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("task,unit,per_second,low,high\nsum,sums,3,2,4,5,6\n")
    with pytest.raises(MatgenError):
        bm.read_benchmark(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--threads", 0], "threads"),
        (["--seconds", -1], "seconds"),
        (["--seconds", 0], "seconds"),
        (["--seconds", "nan"], "seconds"),
        (["--only", " , "], "no task"),
        (["--only", "cooking"], "no task cooking"),
        (["--batch-size", 0], "--batch-size"),
        (["--precision", "16"], "precision"),
        (["--only", "sum", "--compile"], "sum"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    tmp_path, quick, monkeypatch, capsys, options, words
):
    monkeypatch.setattr(bm, "measure", lambda *a, **k: pytest.fail("measured"))
    assert run("benchmark", *options, "--out", tmp_path / "o") == 2
    assert words in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_names_may_have_spaces_around_them(tmp_path, quick):
    assert (
        run(
            "benchmark",
            "--seconds",
            0.2,
            "--device",
            "cpu",
            "--only",
            " sum, sleep ,sum",
            "--out",
            tmp_path / "a",
        )
        == 0
    )
    assert [r["task"] for r in runs.read_table(tmp_path / "a" / "table.csv")] == ["sum", "sleep"]


def test_products_are_counted_forward_and_backward():
    a, layer = torch.randn(30, 40), torch.nn.Linear(40, 50)
    assert bm.count_flop(lambda: layer(a).sum().backward()) == 2 * 2 * 30 * 40 * 50
    layer.compile(dynamic=True, backend=lambda *_: pytest.fail("compiled"))
    assert bm.count_flop(lambda: layer(a)) == 2 * 30 * 40 * 50, (
        "compiled parts are counted as they are written"
    )


def test_peak_of_an_imagined_device(monkeypatch):
    sizes = []

    def measure(run, count, *_, **__):
        sizes.append(count)
        return dict(per_second=1e9)  # a device of 1 GFLOP/s

    monkeypatch.setattr(bm, "measure", measure)
    assert bm.peak_flop() == 1e9 and 0.03 <= sizes[-1] / 1e9 < 0.3 and sizes[-1] == sizes[-2]
    sizes.clear()
    bm.peak_flop(largest=256)
    assert max(sizes) == 2 * 256**3


def test_shares_of_the_time():
    big = torch.randn(700, 700)
    for run, more, less in (
        (lambda: big @ big, "products", "others"),
        (lambda: big.exp(), "others", "products"),
        (lambda: time.sleep(0.05), "rest", "others"),
    ):
        shares = bm.time_shares(
            run
        )  # what others take on this machine goes to the rest: only what is ours is compared
        assert (
            shares[more] > shares[less]
            and sum(shares.values()) == pytest.approx(1)
            and min(shares.values()) >= 0
        )


def test_a_setting_trains_as_the_trainer_does(monkeypatch):
    clipped, precisions = [], set()
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda parameters, norm: clipped.append(norm) or clip(parameters, norm),
    )
    monkeypatch.setattr(
        torch.nn.Linear,
        "forward",
        lambda self, x: (
            precisions.add(torch.is_autocast_enabled("cpu"))
            or torch.nn.functional.linear(x, self.weight, self.bias)
        ),
    )
    for precision in ("32-true", "bf16-mixed"):
        run, count = bm.TASKS["training"].make("cpu", 0, setting=bm.Setting("tiny", 4, precision))
        run()
        assert count == 4 and precisions == {precision == "bf16-mixed"} and clipped.pop() == 1.0
        precisions.clear()
    bm.TASKS["training"].make("cpu", 0, batch_size=4)[0]()
    assert not clipped, "the task of earlier tables is what it was"


def test_frameworks_train_at_a_setting():
    run, count = bm.TASKS["mof training"].make("cpu", 0, setting=bm.Setting("tiny", 4, "bf16-mixed"))
    assert run() is None and count == 4


def test_compiled_setting(monkeypatch):
    from matgen_nb.scale import optimization

    compiled = []
    monkeypatch.setattr(optimization, "compile_regions", compiled.append)
    bm.make_training("cpu", 0, setting=bm.Setting("tiny", 4, compile=True))
    assert len(compiled) == 1


def test_settings_have_rows_of_their_own(tmp_path, capsys):
    plain = {t.name for t in bm.planned()}
    assert plain == STAGES and {t.name for t in bm.planned(setting=bm.Setting("full", 32))} == {
        "training full 32 32-true",
        "mof training full 32 32-true",
    }
    assert [t.name for t in bm.planned(setting=bm.Setting("paper"))] == ["training paper 32-true"], (
        "no framework has that preset"
    )
    with pytest.raises(MatgenError, match="mof training has no preset paper"):
        bm.planned("mof training", bm.Setting("paper"))
    with pytest.raises(MatgenError, match="no preset|no task trains"):
        bm.planned(None, bm.Setting("huge"))
    assert (
        run(
            "benchmark",
            "--seconds",
            0.2,
            "--device",
            "cpu",
            "--preset",
            "tiny",
            "--batch-size",
            4,
            "--only",
            "training",
            "--out",
            tmp_path / "a",
        )
        == 0
    )
    (row,) = runs.read_table(tmp_path / "a" / "table.csv")
    assert row["task"] == "training tiny 4 32-true" and 0 < row["utilisation"] == pytest.approx(
        row["gflop_per_second"] / row["peak_gflop_per_second"]
    )
    assert (
        row["gflop"] > 0
        and row["products"] + row["others"] + row["rest"] == pytest.approx(1)
        and "GFLOP a step" in capsys.readouterr().out
    )


STAGES = {
    "preparing",
    "training",
    "sampling",
    "projection",
    "evaluation",
    "mof preparing",
    "block training",
    "mof training",
    "mof sampling",
    "assembly",
    "relaxation",
    "mof evaluation",
}


def test_every_stage_is_measured():
    assert bm.TASKS.keys() == STAGES


@pytest.mark.parametrize(
    "name", sorted(STAGES - {"sampling", "mof sampling", "assembly", "evaluation", "mof evaluation"})
)
def test_tasks_of_the_package_run(name):
    run, count = bm.TASKS[name].make("cpu", 0)
    run()
    assert count > 0


@pytest.mark.parametrize(
    "make, choices",
    [
        ("make_sampling", dict(n=2, steps=2)),
        ("make_mof_sampling", dict(n=2, steps=2)),
        ("make_assembly", dict(n=1)),
        ("make_evaluation", dict(n=1)),
    ],
)
def test_slow_tasks_run_in_small(make, choices):
    run, count = getattr(bm, make)("cpu", 0, **choices)
    assert len(run()) == count
