"""The pack for teachers: the syllabus names every core notebook, slides convert, commands exist, points add up, and the core path is short enough."""

import json
import re

import click
import pytest
import typer
from conftest import ROOT
from tools import reading

from matgen_nb.commands.main import app

NBS, TEACHER = ROOT / "nbs", ROOT / "nbs" / "teacher"
PAGES = sorted(TEACHER.glob("*.ipynb"))
SLIDES = [p for p in PAGES if "slides" in p.name]
CORE = reading.core_notebooks()
IDS = dict(argvalues=PAGES, ids=lambda p: p.stem)


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text_of(path):
    return "\n\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")


def sessions():
    "Rows of the table of the syllabus, as lists of columns."
    table = text_of(reading.SYLLABUS).split("## The ten sessions")[1].split("\n## ")[0]
    return [
        [part.strip() for part in row.strip("| ").split("|")]
        for row in re.findall(r"^\| \d+ .*$", table, re.M)
    ]


def test_ten_sessions_of_90_minutes():
    found = sessions()
    assert [row[0] for row in found] == [str(n) for n in range(1, 11)]
    for number, _, lessons, plan, slides in found:
        minutes = sum(int(m) for m in re.findall(r"\b(\d+)\b", plan))
        assert minutes == 90, f"session {number} has {minutes} minutes: {plan}"
        assert "](../" in lessons and "slides" in slides


def test_every_notebook_of_the_syllabus_exists_and_so_do_the_sections_it_leaves_out():
    assert len(CORE) >= 20
    for path, without in CORE.items():
        assert path.exists(), f"{path} is in the syllabus but does not exist"
        headings = {heading for heading, _ in reading.sections(path)}
        missing = [heading for heading in without if heading not in headings]
        assert not missing, f"{path.stem} has no section {missing}: correct the syllabus"


def test_titles_of_the_syllabus_carry_the_numbers_of_their_lessons():
    for number, path in re.findall(r"\[([\d.]+) [^\]]+\]\(\.\./([\w/]+\.ipynb)\)", text_of(reading.SYLLABUS)):
        title = "".join(cells(NBS / path)[0]["source"]).split("\n")[0]
        assert title.startswith(f"# {number} "), f"{path} is '{title}', not {number}"


def test_first_page_marks_core_and_further():
    "A lesson is marked core on the first page if and only if the syllabus gives it a session."
    rows = re.findall(
        r"^\|[^|\n]*\| *\[[^\]]*\]\(([\w/]+\.ipynb)\)([^|\n]*)\|", text_of(NBS / "index.ipynb"), re.M
    )
    core = {path.relative_to(NBS).as_posix() for path in CORE}
    assert len(rows) > 60
    marked = {path for path, mark in rows if "core" in mark}
    assert marked == core, f"marked and not in the syllabus, or the reverse: {sorted(marked ^ core)}"


def test_core_path_has_words_and_can_be_read_in_15_hours():
    total = sum((reading.length_of(p, without) for p, without in CORE.items()), reading.Length(0, 0))
    assert total.ratio >= 4, f"{total.ratio:.2f} words a line of code: see tests/tools/reading.py"
    assert total.minutes <= 15.5 * 60, f"{total.minutes / 60:.1f} hours"


def test_how_words_and_lines_are_counted():
    assert reading.words_of("Two words, $x^2 + y$ and `code`.") == 5
    assert (
        reading.words_of("```python\nx = 1\n```\n<details><summary>A</summary>not read</details>\n| a | b |")
        == 2
    )
    code = 'import os\n\n\ndef f(x):\n    "Docstring."\n    # comment\n    return (\n        x\n    )\n'
    assert reading.lines_of(code) == 2
    hidden = dict(cell_type="code", source=["#| hide\n", "x = 1"], metadata={})
    solution = dict(cell_type="code", source=["x = 1"], metadata={"tags": ["solution"]})
    assert not reading.is_read(hidden) and not reading.is_read(solution)
    assert reading.is_read(dict(cell_type="code", source=["x = 1"], metadata={}))


def commands(command=None, name="matgen"):
    "{name: click command} of everything below matgen."
    command = command or typer.main.get_command(app)
    inside = getattr(command, "commands", {})
    found = {} if inside else {name: command}
    for part, below in inside.items():
        found |= commands(below, f"{name} {part}")
    return found


COMMANDS = commands()


@pytest.mark.parametrize("path", **IDS)
def test_commands_and_options_that_are_named_exist(path):
    for line in re.findall(r"^(?:`{0,1})(matgen [^`\n]+)", text_of(path), re.M):
        words = line.split("#")[0].split()
        name = next((n for n in (" ".join(words[:3]), " ".join(words[:2])) if n in COMMANDS), None)
        assert name, f"there is no command '{line}'"
        made = COMMANDS[name].get_params(typer.Context(COMMANDS[name]))
        known = {o for parameter in made for o in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [w for w in words if re.match(r"--?[a-zA-Z]", w) and w not in known]
        assert not unknown, f"{name} has no option {unknown}"


@pytest.mark.parametrize("path", **IDS)
def test_files_that_are_named_exist(path):
    for name in re.findall(r"(?<![\w/])((?:nbs|tests)/[\w/]+\.(?:ipynb|py))", text_of(path)):
        assert (ROOT / name).exists(), f"{name} does not exist"
    for number in re.findall(r"lessons? (\d\.\d+)", text_of(path)):
        part, lesson = number.split(".")
        assert list(NBS.glob(f"{part}_*/{int(lesson):02d}_*.ipynb")) or number in ("2.4", "4.18"), number


def test_command_line_sheet_shows_every_command():
    outputs = [o for c in cells(TEACHER / "23_sheet_command_line.ipynb") for o in c.get("outputs", [])]
    shown = "".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    for name, command in COMMANDS.items():
        assert f"`{name}`" in shown, f"{name} is missing: run tests/tools/execute.py on the sheet"
        help_text = " ".join(click.unstyle(command.help or "").split()).split(". ")[0].rstrip(".")
        assert help_text in shown, f"the sheet says something else of {name}: run it again"


@pytest.mark.parametrize("path", SLIDES, ids=lambda p: p.stem)
def test_slides_convert(path):
    "nbconvert makes slides of them, one section for each cell that begins one, without code and notes for speakers kept apart."
    exporters = pytest.importorskip("nbconvert.exporters")
    exporter = exporters.SlidesExporter()
    exporter.exclude_input = True
    html, _ = exporter.from_filename(str(path))
    types = [c["metadata"].get("slideshow", {}).get("slide_type") for c in cells(path)]
    assert None not in types, "every cell says whether it begins a slide (slideshow metadata)"
    starts = types.count("slide")
    assert starts >= 7 and "notes" in types
    body = html.split('<div class="slides">')[1]
    assert body.count("<section>") >= 2 * starts, "outer and inner sections of reveal.js"
    assert "import matplotlib" not in body and '<aside class="notes">' in body
    assert any("image/png" in o.get("data", {}) for c in cells(path) for o in c.get("outputs", []))


def test_a_professor_needs_ninety_minutes_to_decide():
    page = (
        text_of(TEACHER / "02_for_teachers.ipynb").split("## Ninety minutes to decide")[1].split("\n## ")[0]
    )
    assert sum(int(m) for m in re.findall(r"^\| (\d+) \|", page, re.M)) == 90


def test_rubric_adds_up():
    rubric = text_of(TEACHER / "03_project.ipynb").split("## Rubric")[1].split("\n## ")[0]
    points = [int(p) for p in re.findall(r"^\| [A-Z][^|]*\| (\d+) \|", rubric, re.M)]
    assert len(points) >= 6 and sum(points) == 100, points


def test_at_least_four_sets_of_slides_and_three_sheets():
    assert len(SLIDES) >= 4
    assert len([p for p in PAGES if "sheet" in p.name]) == 3
