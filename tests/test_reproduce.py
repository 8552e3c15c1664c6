"""`matgen reproduce`: every recipe at a very small scale, resumed, rejected; cards that can be
read. What they find at this scale means nothing."""

import json
import os
import re
import signal

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.commands import main as entry, options, reproduce  # noqa: F401  (recipes are registered)
from matgen_nb.scale import comparing_recipes, records, recipes as rc, training
from matgen_nb.symmcd.dataset import from_units, prepare_one, prototypes
from matgen_nb.utils import MatgenError

CRYSTALS = dict(preset="tiny", batch_size=8, sample_steps=3, n=4, reference=4)


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


def recipe(name, out, data=None, scale=1.0, resume=False, **changes):
    "A recipe with some settings changed."
    return rc.run_recipe(name, out, rc.RecipeOptions(data=data, scale=scale, resume=resume), **changes)


@pytest.fixture(scope="module")
def crystals(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "crystals.safetensors"
    from_units([prepare_one(c) for _, c in prototypes() if len(c) <= 8][:20]).save(path)
    return path


@pytest.fixture(scope="module")
def mofs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "mofs.safetensors"
    embedded_mofs().subset(range(8)).save(path)
    return path


def test_help_and_list():
    shown = CliRunner().invoke(
        options.app, ["reproduce", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    )
    assert shown.exit_code == 0
    for word in (
        "--seed",
        "--device",
        "--out",
        "--data",
        "--scale",
        "--resume",
        "Example",
        "matgen reproduce",
    ):
        assert word in shown.output, word
    listed = CliRunner().invoke(options.app, ["reproduce", "--list"]).output
    for name, r in rc.RECIPES.items():
        for text in (name, r.what, r.needs, r.cost):
            assert text and text in listed
    assert rc.RECIPES.keys() == rc.SETTINGS.keys()


def test_a_recipe_that_is_not_imported_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.delitem(rc.RECIPES, "steps")
    with pytest.raises(MatgenError, match="import scale"):
        recipe("steps", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def shown(text, *figure):
    """Whether a figure is on a card, in percent or as it is: a value with its interval, "12.3 % (11 to 13)", or
    alone; rounded to the digits of the card. A share that stands as it is has digits after its point."""
    number = r"(\d+(?:\.\d+)?)"
    pattern = rf"{number}\**(?: ?%)? \({number} to {number}\)" if len(figure) == 3 else rf"{number}(?: ?%)"
    rounded = lambda x, n: f"{x:.{len(n.partition('.')[2])}f}" == n
    found = [m if isinstance(m, tuple) else (m,) for m in re.findall(pattern, text)]
    scales = lambda m: (1, 100) if "." in m[0] else (100,)
    return any(all(rounded(k * x, n) for x, n in zip(figure, m)) for m in found for k in scales(m))


@pytest.mark.parametrize("name", ["symmcd-mp20-small", "symmcd-mp20-common", "blocks-small", "mofdiff-small"])
def test_every_published_figure_is_on_the_card(name):
    "The table that programs read and the card that people read say the same."
    text = (ROOT / f"matgen_nb/data/weights/{name}.md").read_text(encoding="utf-8")
    figures = rc.published_figures(name)
    assert len(figures) >= 5
    for measure, (value, low, high) in figures.items():
        assert 0 <= value <= 2 and (low is None or low <= value <= high), measure
        known = [x for x in (value, low, high) if x is not None]
        assert shown(text, *known), f"{measure}: {known} is not on the card"
        assert len(known) == 1 or not shown(text, value, 2 * high, 3 * high), "it would let anything pass"


@pytest.mark.parametrize(
    "line, word",
    [
        (["lunch"], "lunch"),
        (["steps", "--scale", 0], "--scale"),
        (["steps", "--scale", 2], "--scale"),
        (["ablations", "--data", "nowhere.safetensors"], "nowhere.safetensors"),
        (["blocks-small", "--data", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_mistakes_are_named(line, word, tmp_path, capsys):
    assert run("reproduce", *line, "--device", "cpu", "--out", tmp_path / "o") == 2
    assert word in capsys.readouterr().err


def test_scale_shrinks_sizes_only():
    for name, whole in rc.SETTINGS.items():
        short = rc.settings(name, 1e-6)
        for key, value in whole.items():
            assert short[key] == rc.SCALED.get(key, value)
        assert rc.settings(name) == whole


def test_crystals_stopped_and_resumed_give_what_one_run_gives(crystals, tmp_path, monkeypatch):
    how = dict(data=crystals, scale=1e-4, **CRYSTALS)
    whole = recipe("symmcd-mp20-small", tmp_path / "whole", **how)
    assert {r["measure"] for r in whole} >= rc.published_figures("symmcd-mp20-small").keys()
    real = training.Trainer._train_step

    def stopping(trainer):
        real(trainer)
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Trainer, "_train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        recipe("symmcd-mp20-small", tmp_path / "part", **how)
    assert not (tmp_path / "part" / "figures.csv").exists()
    monkeypatch.setattr(training.Trainer, "_train_step", real)
    rest = recipe("symmcd-mp20-small", tmp_path / "part", **how, resume=True)
    assert json.dumps(rest) == json.dumps(whole)
    record = json.loads((tmp_path / "part" / "run.json").read_text())
    assert (
        record["request"]["settings"]["n"] == 4
        and record["request"]["scale"] == 1e-4
        and record["agree"] + record["differ"] > 0
    )
    assert {"figures.csv", "figure.png", "summary.json", "table.csv", "weights.safetensors", "run.json"} <= {
        p.name for p in (tmp_path / "part").iterdir()
    }


def test_blocks_from_the_command_line(mofs, tmp_path, capsys):
    line = [
        "reproduce",
        "blocks-small",
        "--data",
        mofs,
        "--scale",
        0.002,
        "--device",
        "cpu",
        "--out",
        tmp_path / "b",
    ]
    assert run(*line) == 0
    said = capsys.readouterr().out
    assert (
        "published" in said
        and "0.002" in said
        and len(records.read_table(tmp_path / "b" / "figures.csv")) == 5
    )
    assert run(*line) == 2 and "--overwrite" in capsys.readouterr().err
    assert (
        run(*line, "--overwrite") == 0
        and run(*line, "--seed", 1, "--resume") == 2
        and "seed was 0 and is now 1" in capsys.readouterr().err
    )


def test_frameworks(mofs, tmp_path):
    rows = recipe(
        "mofdiff-small",
        tmp_path / "m",
        data=mofs,
        scale=0.001,
        preset="tiny",
        batch_size=4,
        sample_steps=3,
        n=2,
        starts=1,
        generations=1,
    )
    assert {r["measure"] for r in rows} >= rc.published_figures("mofdiff-small").keys() and (
        tmp_path / "m" / "samples" / "gallery.html"
    ).exists()


def test_steps_measures_every_setting_once(crystals, tmp_path, monkeypatch):
    how = dict(data=crystals, scale=0.001, grid=(2, 3), correctors=(0, 1), starts=1, generations=1, n=4)
    rows = recipe("steps", tmp_path / "s", **how)
    table = records.read_table(tmp_path / "s" / "table.csv")
    assert {(r["model"], r["steps"], r["corrector"]) for r in table} >= {
        (m, s, 0) for m in ("symmcd", "mofdiff") for s in (2, 3)
    } | {("symmcd", 2, 1), ("symmcd", 3, 1)}
    for name in ("crystal_steps", "framework_steps"):
        monkeypatch.setattr(comparing_recipes, name, lambda *a: pytest.fail("measured again"))
    assert json.dumps(recipe("steps", tmp_path / "s", **how, resume=True)) == json.dumps(rows)
    assert (
        "published"
        in comparing_recipes.step_rows(
            [
                dict(
                    model="symmcd",
                    what="comp_valid",
                    steps=100,
                    corrector=0,
                    found=0.8,
                    low=0.7,
                    high=0.9,
                    n=9,
                )
            ]
        )[0]
    ), "the card has a table of steps"


def test_ablations_beside_the_table_that_ships(crystals, tmp_path):
    rows = recipe(
        "ablations",
        tmp_path / "a",
        data=crystals,
        scale=0.001,
        variants=("base", "4 frequencies"),
        seeds=1,
        n=4,
        sample_steps=2,
    )
    assert all("published" in r for r in rows) and (tmp_path / "a" / "runs" / "4-frequencies-0.json").exists()


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "samples").mkdir()
    (tmp_path / "thesis" / "samples" / "chapter.txt").write_text("two years of work")
    with pytest.raises(MatgenError, match="not empty"):
        rc.open_recipe(tmp_path / "thesis", dict(recipe="x"))
    with pytest.raises(MatgenError, match="not empty"):
        rc.open_recipe(tmp_path / "thesis", dict(recipe="x"), resume=True)
    rc.open_recipe(tmp_path / "thesis", dict(recipe="x"), overwrite=True).close()
    assert (tmp_path / "thesis" / "samples" / "chapter.txt").read_text() == "two years of work"
    (tmp_path / "thesis" / "samples" / "table.csv").write_text("mine")
    with pytest.raises(MatgenError, match="table.csv was not made by matgen"):
        rc.open_recipe(tmp_path / "thesis", dict(recipe="x"), overwrite=True)
    assert (tmp_path / "thesis" / "samples" / "table.csv").read_text() == "mine"


def test_resume_compares_the_content_of_the_data_and_not_its_name(crystals, mofs, tmp_path):
    import shutil

    shutil.copy(mofs, tmp_path / "moved.safetensors")
    how = dict(scale=0.001, held_blocks=0.2, held_conformers=0.5, preset="tiny")
    rows = recipe("blocks-small", tmp_path / "b", data=mofs, **how)
    assert json.dumps(
        recipe("blocks-small", tmp_path / "b", data=tmp_path / "moved.safetensors", resume=True, **how)
    ) == json.dumps(rows)
    embedded_mofs().subset(range(1, 9)).save(tmp_path / "moved.safetensors")
    with pytest.raises(MatgenError, match="data was content"):
        recipe("blocks-small", tmp_path / "b", data=tmp_path / "moved.safetensors", resume=True, **how)
