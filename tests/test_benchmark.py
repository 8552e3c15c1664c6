"""`matgen benchmark`: what it measures and writes; the numbers themselves are nobody's promise."""

import json
import time

import pytest
import torch

from matgen_nb.commands import main as entry
from matgen_nb.scale import arithmetic as ar, benchmark as bm, benchmark_tasks as bt, records, runs
from matgen_nb.scale import device_benchmark as command
from matgen_nb.scale.arithmetic import TrainingSetting
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
    monkeypatch.setattr(bt, "TASKS", tasks)


def test_it_measures_what_it_says():
    calls = []
    got = bm.measure_speed(
        lambda: (calls.append(1), time.sleep(0.01 if len(calls) != 3 else 0.05)), 5, seconds=0.2
    )
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
    first, second = (records.read_table(tmp_path / name / "table.csv") for name in "ab")
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
    records.write_table(tmp_path / "x.csv", [{"cif": "data_"}])
    (tmp_path / "empty.csv").write_text("")
    for wrong in ("x.csv", "empty.csv", "none.csv"):
        assert run("benchmark", "--compare", tmp_path / wrong, "--out", tmp_path / "o") == 2
        assert wrong in capsys.readouterr().err and not (tmp_path / "o").exists()
    with pytest.raises(MatgenError, match="no task cooking"):
        bt.planned(["cooking"])


@pytest.mark.parametrize("column", ["per_second", "low", "high", "per_cpu_second"])
@pytest.mark.parametrize("value", ["fast", 0, -3.0, float("nan"), float("inf")])
def test_a_table_to_compare_with_is_read_before_anything_is_measured(
    tmp_path, quick, monkeypatch, capsys, column, value
):
    monkeypatch.setattr(bm, "measure_speed", lambda *a, **k: pytest.fail("measured"))
    records.write_table(
        tmp_path / "x.csv",
        [
            dict(task="sum", unit="sums", per_second=3.0, low=2.0, high=4.0, per_cpu_second=3.0)
            | {column: value}
        ],
    )
    assert run("benchmark", "--compare", tmp_path / "x.csv", "--out", tmp_path / "o") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert column in said and "positive number" in said and not (tmp_path / "o").exists()


def test_a_row_with_too_many_fields_is_rejected(tmp_path):
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
def test_wrong_options_are_rejected_before_anything_is_measured(
    tmp_path, quick, monkeypatch, capsys, options, words
):
    monkeypatch.setattr(bm, "measure_speed", lambda *a, **k: pytest.fail("measured"))
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
    assert [r["task"] for r in records.read_table(tmp_path / "a" / "table.csv")] == ["sum", "sleep"]


def test_products_are_counted_forward_and_backward():
    a, layer = torch.randn(30, 40), torch.nn.Linear(40, 50)
    assert ar.count_flop(lambda: layer(a).sum().backward()) == 2 * 2 * 30 * 40 * 50
    layer.compile(dynamic=True, backend=lambda *_: pytest.fail("compiled"))
    assert ar.count_flop(lambda: layer(a)) == 2 * 30 * 40 * 50, (
        "compiled parts are counted as they are written"
    )


def test_peak_of_an_imagined_device(monkeypatch):
    sizes = []

    def measure(run, count, *_, **__):
        sizes.append(count)
        return dict(per_second=1e9)  # a device of 1 GFLOP/s

    monkeypatch.setattr(ar, "measure_speed", measure)
    assert ar.peak_flop() == 1e9 and 0.03 <= sizes[-1] / 1e9 < 0.3 and sizes[-1] == sizes[-2]
    sizes.clear()
    ar.peak_flop(largest=256)
    assert max(sizes) == 2 * 256**3


def test_shares_of_the_time():
    big = torch.randn(700, 700)
    for run, more, less in (
        (lambda: big @ big, "products", "others"),
        (lambda: big.exp(), "others", "products"),
        (lambda: time.sleep(0.05), "rest", "others"),
    ):
        shares = ar.time_shares(
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
        run, count = bm.TASKS["training"].make("cpu", 0, setting=TrainingSetting("tiny", 4, precision))
        run()
        assert count == 4 and precisions == {precision == "bf16-mixed"} and clipped.pop() == 1.0
        precisions.clear()
    bm.TASKS["training"].make("cpu", 0, batch_size=4)[0]()
    assert not clipped, "the task of earlier tables is what it was"


def test_frameworks_train_at_a_setting():
    run, count = bm.TASKS["mof training"].make("cpu", 0, setting=TrainingSetting("tiny", 4, "bf16-mixed"))
    assert run() is None and count == 4


def test_compiled_setting(monkeypatch):
    from matgen_nb.scale import optimization

    compiled = []
    monkeypatch.setattr(optimization, "compile_regions", compiled.append)
    bt.make_training("cpu", 0, setting=TrainingSetting("tiny", 4, compile=True))
    assert len(compiled) == 1


def test_settings_have_rows_of_their_own(tmp_path, capsys):
    plain = {t.name for t in bt.planned()}
    assert plain == STAGES and {t.name for t in bt.planned(setting=TrainingSetting("full", 32))} == {
        "training full 32 32-true",
        "mof training full 32 32-true",
    }
    assert [t.name for t in bt.planned(setting=TrainingSetting("paper"))] == ["training paper 32-true"], (
        "no framework has that preset"
    )
    with pytest.raises(MatgenError, match="mof training has no preset paper"):
        bt.planned("mof training", TrainingSetting("paper"))
    with pytest.raises(MatgenError, match="no preset|no task trains"):
        bt.planned(None, TrainingSetting("huge"))
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
    (row,) = records.read_table(tmp_path / "a" / "table.csv")
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
    run, count = getattr(bt, make)("cpu", 0, **choices)
    assert len(run()) == count


# ---- the networks, in one call


def test_rows_that_fail_cost_nothing_else(tmp_path):
    "An error, too little memory, no time left: the row says so, the rest goes on, and what was measured stays."

    def broken(device, seed):
        raise RuntimeError("no compiler\nmore")

    def hungry(n):
        def make(device, seed):
            if n > 16:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return lambda: None, n

        smaller = (lambda: hungry(n // 2)) if n > 16 else None
        return bm.Task(f"plates {n}", "plates", make, smaller=smaller)

    def half_way(run, seconds, device):
        raise ValueError("the extra failed")

    good = bm.Task("good", "items", lambda device, seed: (lambda: None, 1), extras=(half_way,))
    reported = []
    rows = bm.run_benchmark(
        [bm.Task("broken", "items", broken), hungry(64), good],
        bm.BenchmarkOptions(seconds=0.1),
        lambda row: reported.append(dict(row)),
    )
    assert reported == rows and [row["task"] for row in rows] == [
        *("broken", "plates 64", "plates 32", "plates 16", "good")
    ]
    failures = [row.get("failure") for row in rows]
    assert failures == [
        *(
            "RuntimeError: no compiler",
            bm.OUT_OF_MEMORY,
            bm.OUT_OF_MEMORY,
            None,
            "ValueError: the extra failed",
        )
    ]
    assert rows[-1]["per_second"] > 0 and all(row["spent_s"] >= 0 and row["torch"] for row in rows)


def test_time_ends_a_row_and_all_that_follow():
    endless = bm.Task("endless", "days", lambda device, seed: (lambda: time.sleep(600), 1))
    rows = bm.run_benchmark([endless, endless], bm.BenchmarkOptions(seconds=0.1, max_seconds=0.3))
    assert ["cut off" in row["failure"] for row in rows] == [True, False]
    assert "not begun" in rows[1]["failure"] and rows[0]["spent_s"] < 60


def test_memory_of_a_row_is_its_own():
    if not (bm.Path("/proc/self/clear_refs")).exists():
        pytest.skip("the peak of resident memory is read from /proc")
    large = bm.Task("large", "MiB", lambda device, seed: (lambda: torch.ones(200 * 2**18).sum(), 200))
    small = bm.Task("small", "MiB", lambda device, seed: (lambda: torch.ones(2**18).sum(), 1))
    one, two, three = bm.run_benchmark([small, large, small], bm.BenchmarkOptions(seconds=0.1))
    assert 150 < two["memory_mib"] - one["memory_mib"] < 300, "the tensor of 200 MiB"
    assert three["memory_mib"] < two["memory_mib"] - 150, "the peak of a row is not that of the row before"


@pytest.fixture
def short_sampling(monkeypatch):
    "Sampling in two steps, and networks that cannot be compiled."
    from matgen_nb.scale import optimization
    from matgen_nb.symmcd.reverse import SamplingOptions

    def make(device, seed, n, candidates):
        options = SamplingOptions(steps=2, site_steps=2, element_steps=2, candidates=1, progress=False)
        model = command.shipped(device)
        return lambda: model.sample(n, seed=seed, options=options), n

    def no_compiler(model):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(command, "make_shipped_sampling", make)
    monkeypatch.setattr(optimization, "compile_regions", no_compiler)


def test_the_network_suite_on_a_cpu(tmp_path, short_sampling, capsys):
    "All rows of the suite in small; those that need a compiler fail here, and the others are complete."
    line = "--suite network --preset tiny --batch-size 4 --samples 2 --seconds 0.5 --device cpu".split()
    assert run("benchmark", *line, "--out", tmp_path / "a") == 0
    rows = {row["task"]: row for row in records.read_table(tmp_path / "a" / "table.csv")}
    compiled = [row for name, row in rows.items() if "compiled" in name]
    plain = [row for name, row in rows.items() if name.startswith("training") and row not in compiled]
    assert len(rows) == 8 and all(row["failure"] == "RuntimeError: no C++ compiler" for row in compiled)
    for row in plain:
        assert row["gflop"] > 0 and 0 < row["utilisation"] and "measured" in row["peak_of"]
    assert {row["peak_of"].split()[-3].strip(",") for row in plain} == {"float32", "bfloat16"}
    sampled = [row for name, row in rows.items() if name.startswith("sampling")]
    assert all(row["seconds_per_1000"] == pytest.approx(1000 / row["per_cpu_second"]) for row in sampled)
    steps = {name.split(" ")[2].strip(","): row for name, row in rows.items() if name.startswith("step of")}
    assert steps["sampling"]["waiting_calls"] == 0 < steps["sampling"]["calls"] < 5000
    operators = records.read_table(tmp_path / "a" / "profile.csv")
    assert {row["step"].split(" ")[2].strip(",") for row in operators} == {"training", "sampling"}
    said = (tmp_path / "a" / "log.txt").read_text()
    assert all(name in said for name in rows) and "no C++ compiler" in capsys.readouterr().out
    assert sum(p.stat().st_size for p in (tmp_path / "a").iterdir()) < 2**20, "16 MiB would be too much"


def test_rows_are_on_disk_as_soon_as_they_are_measured(tmp_path, capsys):
    seen = []
    there = lambda: (
        records.read_table(tmp_path / "a" / "table.csv") if (tmp_path / "a" / "table.csv").exists() else []
    )
    look = lambda device, seed: (lambda: seen.append([row["task"] for row in there()]), 1)
    plan = lambda keep: [bm.Task(name, "looks", look) for name in ("one", "two", "three")]
    folder = runs.fresh_folder(tmp_path / "a")
    command.write_benchmark(folder, plan, bm.BenchmarkOptions(seconds=0.01), command.Comparison())
    assert seen[0] == [] and seen[-1] == ["one", "two"], "the rows before this one"
    assert json.loads((tmp_path / "a" / "run.json").read_text())["seconds"] >= 0


def test_nothing_measured_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "planned", lambda *_: [bm.Task("x", "y", lambda device, seed: 1 / 0)])
    assert run("benchmark", "--device", "cpu", "--out", tmp_path / "a") == 2
    assert "table.csv" in capsys.readouterr().err
    assert "ZeroDivisionError" in records.read_table(tmp_path / "a" / "table.csv")[0]["failure"]


@pytest.mark.parametrize(
    "options, words",
    [
        ("--suite all", "--suite"),
        ("--suite network --only training", "--only"),
        ("--suite network --compile", "--compile"),
        ("--suite network --preset huge", "huge"),
        ("--suite network --samples 0", "samples"),
        ("--suite network --batch-size 0", "batch"),
        ("--samples 3", "--samples"),
        ("--max-seconds -1", "max"),
    ],
)
def test_wrong_choices_of_a_suite_are_named(tmp_path, capsys, options, words):
    assert run("benchmark", *options.split(), "--device", "cpu", "--out", tmp_path / "o") == 2
    assert words in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_gpu_is_measured_in_four_minutes():
    "What the command plans where a GPU is: the most important rows first, and never more than the limit."
    assert command.suite_of(command.BenchmarkChoices(), TrainingSetting(), "cuda") == "network"
    assert command.LIMIT == 240
    tasks = command.network_tasks(command.NetworkOptions(), "cuda", [])
    names = [t.name for t in tasks]
    assert names[0] == "training small 1024 32-true" and len(names) == 16
    kinds = [next(w for w in ("compiled", "step of", "sampling", "training") if w in name) for name in names]
    assert kinds == ["training"] * 6 + ["sampling"] * 2 + ["step of"] * 2 + ["compiled"] * 6
    assert tasks[0].smaller().name == "training small 512 32-true"
