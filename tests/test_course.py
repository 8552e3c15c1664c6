"""Checks of exercises, copies for students and teachers, and what nbdev's clean-up leaves of a collapsed cell."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from tools.house_debts import notebooks

from matgen_nb.commands import main as entry
from matgen_nb.course import (
    SOLUTION,
    Check,
    choice,
    expect,
    is_solution,
    must_fail,
    numeric,
    student_copy,
    teacher_copy,
    write_course,
)
from matgen_nb.utils import MatgenError


@Check
def check_mean(mean):
    for values in ([1.0, 2.0], [4.0, 4.0, 7.0], [-1.0]):
        expect(mean(np.array(values)), np.mean(values), "the sum over the number of values")


def average(values):
    return values.sum() / len(values)


def raises(values):
    raise KeyError("no")


@pytest.mark.parametrize(
    "answer, start",
    [
        (None, "not solved yet: mean"),
        (lambda values: None, "not solved yet: mean"),
        (lambda values: values.sum() / 2, "wrong: answer([4., 4., 7.]): 5 is expected, not 7.5: the sum"),
        (
            lambda values: None if len(values) > 2 else values.mean(),
            "wrong: answer([4., 4., 7.]): it returns",
        ),
        (raises, "wrong: raises([1., 2.]) raises: KeyError"),
        (lambda values: values, "wrong: answer([1., 2.]): an answer of shape () is expected, not (2,)"),
        (lambda values: "three", "wrong: answer([1., 2.]): 1.5 is expected, not 'three'"),
        (lambda: 1, "wrong: answer([1., 2.]) raises: TypeError"),
        (average, "right: mean (3 inputs)"),
        (3, "wrong: mean gives an answer that cannot be checked: TypeError"),
    ],
)
def test_a_check_says_what_is_wrong_and_never_raises(answer, start, capsys):
    verdict = check_mean(answer)
    assert capsys.readouterr().out.startswith(start), verdict.message
    assert bool(verdict) is start.startswith("right")


def test_a_stub_that_raises_is_not_solved(capsys):
    def stub(values):
        raise NotImplementedError

    check_mean(stub)
    assert "not solved yet" in capsys.readouterr().out


def test_parts_of_an_answer_may_be_missing():
    check = Check(lambda answer: expect(answer, (1, 2)))
    assert not check((1, None)) and "not solved" in check((1, None)).message and check((1, 2))


@pytest.mark.parametrize(
    "weak, answer, naive, why",
    [
        (lambda f: expect(f(2), 4), lambda x: 2 * x, (), "only 1 different inputs"),
        (lambda f: expect((f(1), f(2)), (1, 1)), lambda x: 1, (), "a constant"),
        (lambda f: expect((f(1), f(2)), (1, 2)), lambda x: x, (), "copy of the input"),
        (lambda f: expect(f(2) + f(3), 10), lambda x: 2 * x, (lambda x: x + 2.5,), "naive answer 1"),
        (lambda x: expect(x, 3, rtol=2), 3, (), "a constant"),
    ],
)
def test_weak_checks_are_found(weak, answer, naive, why):
    check = Check(weak, name="weak")
    with pytest.raises(AssertionError, match="run the right solution"):
        must_fail(check)
    assert check(answer)
    with pytest.raises(AssertionError, match=why):
        must_fail(check, *naive)


def test_a_good_check_rejects_naive_answers(capsys):
    assert check_mean(average)
    must_fail(check_mean, lambda values: values[0], lambda values: np.median(values))
    assert "naive answers are rejected" in capsys.readouterr().out


def test_choices_and_numbers():
    question = choice("b", a="no: one", b="yes", c="no: three")
    assert question("B ") and question("a").message == "wrong: no: one" and not question(2)
    with pytest.raises(ValueError, match="at least three"):
        choice("a", a="right", b="wrong")
    angle = numeric(120.0, rtol=0.01, unit="degrees", slips={60.0: "the other angle"})
    assert angle(120.5) and "too large" in angle(130).message and "other angle" in angle(60).message
    assert "a number" in angle("wide").message and not angle(None) and not angle(float("nan"))
    for check, right in ((question, "b"), (angle, 120)):
        assert check(right)
        must_fail(check)


def cell(source, **metadata):
    return dict(
        cell_type="code", id=source[:8], source=[source], metadata=metadata, outputs=[], execution_count=None
    )


@pytest.fixture
def small_course(tmp_path):
    for name in ("index", "1_part/01_lesson", "teacher/01_slides", "_proc/left", ".ipynb_checkpoints/old"):
        path = tmp_path / "nbs" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [cell("answer = None"), cell(f"solved = '{name}'", **SOLUTION)]
        path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    (tmp_path / "nbs" / "images").mkdir()
    (tmp_path / "nbs" / "images" / "a.png").write_bytes(b"picture")
    return tmp_path / "nbs"


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_copies_for_students_hold_no_solution(small_course, tmp_path):
    made = write_course(tmp_path / "out", notebooks=small_course)
    assert [p.relative_to(tmp_path / "out").as_posix() for p in made] == [
        "1_part/01_lesson.ipynb",
        "index.ipynb",
    ]
    text = made[0].read_text()
    assert "answer = None" in text and "solved" not in text
    assert (tmp_path / "out/images/a.png").read_bytes() == b"picture"


def test_solutions_in_the_old_form_are_removed_as_well():
    folded = "<details><summary>Hint</summary>look</details>\n<details><summary>Solution</summary>\n\n```python\nx = 1\n```\n</details>"
    text = dict(cell_type="markdown", id="a", metadata={}, source=[folded])
    only = dict(text, source=["<details><summary>Solution</summary>x = 1</details>"])
    hidden = cell("#| hide\ndef f(): return 1\n\n\ncheck_f(f)")
    shown = cell("def f():\n    return None\n\n\ncheck_f(f)")
    left = student_copy(dict(cells=[text, only, hidden, shown, cell("#| hide\nimport math")]))["cells"]
    assert [c["cell_type"] for c in left] == ["markdown", "code", "code"] and left[1] == shown
    assert "look" in left[0]["source"][0] and "x = 1" not in "".join(left[0]["source"])


def test_copies_for_teachers_show_the_solutions(small_course, tmp_path):
    made = write_course(tmp_path / "out", teacher=True, notebooks=small_course)
    assert "01_slides.ipynb" in {p.name for p in made}
    solution = json.loads(made[0].read_text())["cells"][1]
    assert solution["metadata"] == {"tags": ["solution"]}


def test_what_a_student_wrote_is_left_alone(small_course, tmp_path):
    out = tmp_path / "out"
    lesson = write_course(out, notebooks=small_course)[0]
    write_course(out, notebooks=small_course)
    lesson.write_text(lesson.read_text().replace("None", "42"))
    (out / "notes.txt").write_text("mine")
    source = small_course / "index.ipynb"
    source.write_text(source.read_text().replace("None", "None  # newer"))
    before = files_of(out)
    with pytest.raises(MatgenError, match="1_part/01_lesson.ipynb changed"):
        write_course(out, notebooks=small_course)
    assert files_of(out) == before
    lesson.write_text(lesson.read_text().replace("42", "None"))
    write_course(out, notebooks=small_course)
    assert "newer" in (out / "index.ipynb").read_text() and (out / "notes.txt").read_text() == "mine"


def test_an_interrupted_copy_is_finished(small_course, tmp_path):
    made = write_course(tmp_path / "out", notebooks=small_course)
    (tmp_path / "out" / ".matgen-course.json").unlink()
    made[0].unlink()
    assert write_course(tmp_path / "out", notebooks=small_course)[0].exists()


def test_folders_that_are_rejected(small_course, tmp_path):
    write_course(tmp_path / "students", notebooks=small_course)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    before = files_of(tmp_path)
    for out, teacher, why in (
        ("students", True, "for students, not for teachers"),
        ("other", False, "thesis.tex"),
        ("file", False, "is a file"),
        ("nbs/copies", False, "inside of the course"),
    ):
        with pytest.raises(MatgenError, match=why):
            write_course(tmp_path / out, teacher=teacher, notebooks=small_course)
    with pytest.raises(MatgenError, match="--notebooks"):
        write_course(tmp_path / "new", notebooks=tmp_path / "other")
    assert files_of(tmp_path) == before


def test_command(small_course, tmp_path, capsys):
    for arguments, code, said in (
        (["course", tmp_path / "a", "--notebooks", small_course], 0, "2 notebooks for students"),
        (["course", tmp_path / "b", "--teacher", "--notebooks", small_course], 0, "3 notebooks for teachers"),
        (["course", tmp_path / "a", "--teacher", "--notebooks", small_course], 2, "choose another folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            entry.main([str(a) for a in arguments])
        shown = capsys.readouterr()
        assert stop.value.code == code and said in shown.out + shown.err


def test_the_whole_course_can_be_copied(tmp_path):
    students = write_course(tmp_path / "students")
    teachers = write_course(tmp_path / "teachers", teacher=True)
    assert len(teachers) == len(notebooks())
    for path in students:
        text = path.read_text(encoding="utf-8")
        cells = json.loads(text)["cells"]
        assert not any(is_solution(c) for c in cells), path.name
        assert "<summary>Solution" not in text, path.name
        whole = json.loads((tmp_path / "teachers" / path.relative_to(tmp_path / "students")).read_text())[
            "cells"
        ]
        stubs = [c["id"] for c in whole if "your code here" in "".join(c["source"]) and not is_solution(c)]
        assert set(stubs) <= {c["id"] for c in cells}, "stubs stay"


def printed(cell):
    return "".join("".join(o.get("text", "")) for o in cell["outputs"])


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_saved_exercises_ran(path):
    "Stubs say 'not solved yet', solutions are right and show that naive answers fail, as the saved outputs say."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for c in cells if any(map(is_solution, cells)) else ():
        source = "".join(c["source"])
        if is_solution(c):
            assert "right: " in printed(c) and "naive answers are rejected" in printed(c), source
        elif c["cell_type"] == "code" and re.search(r"^ +# your code here$|^answer\w* = None", source, re.M):
            assert "not solved yet" in printed(c), source


def test_nbdev_clean_keeps_what_collapses_a_cell(tmp_path):
    "settings.ini allows the keys; a real run of nbdev_clean on a copy."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    nb = dict(cells=[cell("x = 1", **SOLUTION, other=1)], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / "nbs" / "a.ipynb").write_text(json.dumps(nb))
    command = [sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    kept = json.loads((tmp_path / "nbs" / "a.ipynb").read_text())["cells"][0]["metadata"]
    assert kept == SOLUTION


def test_copies_leave_the_notebook_as_it_was():
    nb = dict(cells=[cell("a = None"), cell("b = 1", **SOLUTION)])
    before = json.dumps(nb)
    student_copy(nb), teacher_copy(nb)
    assert json.dumps(nb) == before
