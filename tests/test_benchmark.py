"""`matgen benchmark`: what it measures and writes; the numbers themselves are nobody's promise."""
import json
import time

import pytest

from matgen_nb.scale import benchmark as bm
from matgen_nb.scale import command_line as cli
from matgen_nb.utils import MatgenError


def run(*arguments):
    with pytest.raises(SystemExit) as stop: cli.main([str(a) for a in arguments])
    return stop.value.code


@pytest.fixture
def quick(monkeypatch):
    "Two quick tasks, and one whose module is not installed."
    tasks = {"sleep": bm.Task("sleep", "naps", lambda device, seed: (lambda: time.sleep(.005), 10)), "sum": bm.Task("sum", "sums", lambda device, seed: (lambda: sum(range(1000)), 1)),
             "far": bm.Task("far", "things", None, needs="no_such_module")}
    monkeypatch.setattr(bm, "TASKS", tasks)


def test_it_measures_what_it_says():
    calls = []
    got = bm.measure(lambda: (calls.append(1), time.sleep(.01 if len(calls) != 3 else .05)), 5, seconds=.2)
    assert got["repeats"] == len(calls) - 1 and 200 < got["per_second"] <= 500 and got["low"] <= 100 and got["low"] <= got["per_second"] <= got["high"]


def test_command_and_comparison(tmp_path, quick, capsys):
    assert run("benchmark", "--seconds", .2, "--device", "cpu", "--out", tmp_path/"a") == 0
    assert run("benchmark", "--seconds", .2, "--device", "cpu", "--only", "sum", "--out", tmp_path/"b", "--compare", tmp_path/"a"/"table.csv") == 0
    first, second = (cli.read_table(tmp_path/name/"table.csv") for name in "ab")
    assert [r["task"] for r in first] == ["sleep", "sum"] and {"torch", "hardware", "threads", "per_cpu_second"} <= first[0].keys()
    assert second[0]["ratio"] == pytest.approx(second[0]["per_second"] / first[1]["per_second"]) and "times" in capsys.readouterr().out
    assert (tmp_path/"b"/"benchmark.png").read_bytes()[:4] == b"\x89PNG" and json.loads((tmp_path/"b"/"run.json").read_text())["environment"]["device"] == "cpu"


def test_mistakes_are_named(tmp_path, quick, capsys):
    cli.write_table(tmp_path/"x.csv", [{"cif": "data_"}])
    (tmp_path/"empty.csv").write_text("")
    for wrong in ("x.csv", "empty.csv", "none.csv"):
        assert run("benchmark", "--compare", tmp_path/wrong, "--out", tmp_path/"o") == 2
        assert wrong in capsys.readouterr().err and not (tmp_path/"o").exists()
    with pytest.raises(MatgenError, match="no task cooking"): bm.run_benchmark(only=["cooking"])


STAGES = {"preparing", "training", "sampling", "projection", "evaluation", "mof preparing", "block training", "mof training", "mof sampling", "assembly", "relaxation", "mof evaluation"}


def test_every_stage_is_measured():
    assert bm.TASKS.keys() == STAGES


@pytest.mark.parametrize("name", sorted(STAGES - {"sampling", "mof sampling", "assembly", "evaluation", "mof evaluation"}))
def test_tasks_of_the_package_run(name):
    run, count = bm.TASKS[name].make("cpu", 0)
    run()
    assert count > 0


@pytest.mark.parametrize("make, choices", [("make_sampling", dict(n=2, steps=2)), ("make_mof_sampling", dict(n=2, steps=2)), ("make_assembly", dict(n=1)), ("make_evaluation", dict(n=1))])
def test_slow_tasks_run_in_small(make, choices):
    run, count = getattr(bm, make)("cpu", 0, **choices)
    assert len(run()) == count
