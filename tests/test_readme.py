"""README: its Python snippets run as they are written, its commands in a shortened form, its links hold everywhere."""

import re
import runpy

import numpy as np
import pytest
from conftest import ROOT
from tools.new_user import commands_of, shortened, snippets
from tools.readme import make_readme

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON, SHELL = snippets(README, "python"), snippets(README, "sh")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with the files that the snippets name."
    from matgen_nb.mofdiff.bonds import textbook_mof
    from matgen_nb.symmetry.crystal import Crystal

    place = tmp_path_factory.mktemp("readme")
    Crystal(3.905 * np.eye(3), [38, 22, 8, 8, 8],
            [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]).to_cif(place / "mine.cif")  # fmt: skip
    textbook_mof("MIL-53").crystal.to_cif(place / "mof.cif")
    return place


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_snippets_run_as_written(place, number, monkeypatch, capsys):
    monkeypatch.chdir(place)
    found = {}
    exec(PYTHON[number], found)
    if number == 0:
        lines = [line for line in PYTHON[0].splitlines() if line.strip()]
        assert len(lines) == 3, "the first snippet is three lines"
        assert len(found["new"]) == 4 and capsys.readouterr().out.count("Crystal(") == 4
    for name in re.findall(r"'(\w+\.cif)'", PYTHON[number]):
        assert (place / name).exists()


def test_snippets_come_through_the_front_door():
    for snippet in PYTHON:
        imports = re.findall(r"^(?:from|import) (\S+)", snippet, re.M)
        assert set(imports) == {"matgen_nb"}, "the README uses the front door"


def test_commands_exist_and_sample_what_was_trained():
    "Each command of the README is one of matgen's with options that it has; sample takes the weights just trained."
    from typer.testing import CliRunner
    from matgen_nb.commands.main import options

    commands = [command for block in SHELL for command in commands_of(block)]
    assert {"prepare crystals", "train symmcd", "sample symmcd", "evaluate crystals", "train mofdiff"} <= {
        " ".join(c[1:3]) for c in commands
    }
    for command in commands:
        words = command[1:2] if command[1] in ("demo", "predict") else command[1:3]
        shown = CliRunner().invoke(options.app, [*words, "--help"]).output
        for flag in (word for word in command if word.startswith("--")):
            assert flag in re.sub(r"\x1b\[[0-9;]*m", "", shown), f"{' '.join(words)} has no {flag}"
    made = {}
    for command in commands:
        if command[1] == "train":
            made[command[2]] = command[command.index("--out") + 1] + "weights.safetensors"
        if command[1] == "sample":
            assert command[command.index("--weights") + 1] == made[command[2]], command


def test_shortened_commands_are_the_written_ones():
    assert shortened(["matgen", "train", "symmcd", "x"]) == [
        "matgen",
        "train",
        "symmcd",
        "x",
        "--preset",
        "tiny",
        "--max-seconds",
        "5",
    ]
    assert shortened(["matgen", "sample", "symmcd"])[-2:] == ["-n", "4"]
    assert shortened(["matgen", "predict", "symmcd"]) == ["matgen", "predict", "symmcd"]


def test_pypi_gets_absolute_links():
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="not the build")
    text = setup["long_description"]()
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text), "a link that PyPI cannot follow"
    assert not re.findall(r'src="(?!https?:)', text)
    base = setup["cfg"]["git_url"]
    assert f"]({base}/blob/main/nbs/1_symmetry/01_lattice.ipynb)" in text
    assert f"]({base}/raw/main/nbs/images/" in text and f"]({base}/blob/main/LICENSE)" in text
    one = "[![a](b.png)](c.md) [d](https://e) ![f](g.gif) [h](#i) <img alt='x' src=\"j.png\">"
    want = f"[![a]({base}/raw/main/b.png)]({base}/blob/main/c.md) [d](https://e) ![f]({base}/raw/main/g.gif) [h](#i)"
    assert setup["absolute_links"](one) == f"{want} <img alt='x' src=\"{base}/raw/main/j.png\">"


def test_first_page_says_what_a_new_user_needs():
    start = README[README.index("## Start") : README.index("## From a CIF")]
    for words in (
        "git clone",
        "download.pytorch.org/whl/cpu",
        "GB",
        "minutes",
        "matgen demo",
        "matgen-demo/",
    ):
        assert words in start, words
    order = [README.index(f"## {title}") for title in ("Start", "From a CIF", "The course", "What comes out")]
    assert order == sorted(order), "the course comes before the tables"
    tables = README[order[3] :]
    assert max(len(t.splitlines()) for t in re.findall(r"(?:^\|.*\n)+", tables, re.M)) <= 7, (
        "short; the rest is in the cards"
    )
    assert "img.shields.io" in README.split("##")[0]


def test_readme_is_that_of_the_notebook():
    assert make_readme()[0] == README
    assert not re.findall(r"(?m)^```\n\s*```$", README), "an empty block"


def test_the_clone_line_names_the_repository_of_the_settings():
    cfg = runpy.run_path(str(ROOT / "setup.py"), run_name="not the build")["cfg"]
    assert f"git clone {cfg['git_url']} && cd {cfg['repo']}" in README
