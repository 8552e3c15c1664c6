"""Lessons are numbered within their part: titles, links and references in words name lessons that exist."""

import json
import os
import re

import pytest
from conftest import ROOT
from tools.house_debts import notebooks

IDS = dict(argvalues=notebooks(), ids=lambda p: p.relative_to(ROOT).as_posix())
NUMBER = re.compile(r"(\d)_\w+/(\d\d)_\w+\.ipynb$")


def number_of(path):
    "'3.4' for nbs/3_symmcd/06_network.ipynb, '00' for the opening lesson, '' for any other page outside of the parts."
    found = NUMBER.search(path.as_posix())
    return f"{found[1]}.{int(found[2])}" if found else "00" * (path.stem == "00_overview")


NUMBERS = {number_of(p) for p in notebooks()} - {""}


def sources(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def test_every_notebook_of_a_part_has_a_whole_number():
    inside = [p for p in notebooks() if re.match(r"\d_", p.parent.name)]
    assert inside and not [p.name for p in inside if not number_of(p)], (
        "a name such as 04b_x.ipynb has no number"
    )


def test_numbers_of_a_part_have_no_gap_and_no_twin():
    seen = [number_of(p) for p in notebooks() if "." in number_of(p)]
    assert len(seen) == len(set(seen)), "two notebooks of one part have the same number"
    for part in sorted({n[0] for n in seen}):
        inside = sorted(int(n.split(".")[1]) for n in seen if n[0] == part)
        assert inside == list(range(1, len(inside) + 1)), f"numbers of part {part}: {inside}"


@pytest.mark.parametrize("path", **IDS)
def test_title_carries_the_number_of_the_file(path):
    number = number_of(path)
    if number:
        first = sources(path)[0].split("\n")[0]
        assert first.startswith(f"# {number} · "), first


@pytest.mark.parametrize("path", **IDS)
def test_links_lead_to_notebooks_that_exist(path):
    for text in sources(path):
        for target in re.findall(r"\]\(([^)\s#]+\.ipynb)", text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{target} is linked but does not exist"


@pytest.mark.parametrize("path", **IDS)
def test_lessons_that_are_named_exist(path):
    chain = re.compile(
        r"\b[Ll]essons?[  ]\(?((?:\[?\d+(?:\.\d+)?\]?(?:\([^()\s]*\))?(?:,? and |, | or | to |-|–)?)+)"
    )
    for text in sources(path):
        for found in chain.finditer(text):
            bare = re.sub(r"\([^()]*\)", "", found[1])
            for number in re.findall(r"\d+(?:\.\d+)?", bare):
                assert number in NUMBERS, f"'{found[0]}' names no lesson"


def test_first_page_links_every_lesson():
    text = "\n".join(sources(ROOT / "nbs" / "index.ipynb"))
    linked = {os.path.normpath(t) for t in re.findall(r"\]\(([^)\s#]+\.ipynb)", text)}
    missing = {p.relative_to(ROOT / "nbs").as_posix() for p in notebooks() if number_of(p)} - linked
    assert not {m for m in missing if not m.startswith("0_")}, f"not on the first page: {sorted(missing)}"
