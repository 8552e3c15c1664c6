#!/usr/bin/env python
"""How long the core path of the course is: words, lines of code and hours to read, notebook by notebook.

    python tests/tools/reading.py            the core path, as the syllabus for teachers names it
    python tests/tools/reading.py --all      every lesson

What counts as a word: everything between spaces in the markdown cells, a formula as one word; not code between ``` lines,
not folded solutions and answers (<details>). What counts as a line of code: a logical line of Python (a statement; one that
the formatter breaks over several lines counts once) of a code cell that a reader sees; imports and docstrings are not counted,
nor are cells marked `#| hide`, and nothing of the exercises. What stands below the heading "Details for the library", and
the sections that the syllabus leaves out ("without ..."), are for those who use the library, and count for neither. Hours: 200 words and 8 lines of code a minute, the pace at which the first
edition of the course (56,000 words, 17,300 lines) took 40 hours; exercises come on top.
"""

import argparse
import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT / "nbs"
SYLLABUS = NBS / "teacher" / "01_syllabus.ipynb"
WORDS_A_MINUTE, LINES_A_MINUTE = 200, 8
FOR_THE_LIBRARY = "details for the library"


@dataclass(frozen=True)
class Length:
    "Words and lines of code of a notebook."

    words: int
    lines: int

    @property
    def ratio(self):
        return self.words / max(self.lines, 1)

    @property
    def minutes(self):
        return self.words / WORDS_A_MINUTE + self.lines / LINES_A_MINUTE

    def __add__(self, other):
        return Length(self.words + other.words, self.lines + other.lines)


def words_of(text):
    "How many words a reader reads in a markdown cell."
    text = re.sub(r"```.*?```", " ", text, flags=re.S)
    text = re.sub(r"<details>.*?</details>", " ", text, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", " x ", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", " ", text)
    text = re.sub(r"<[^>]+>|^\|?[-:| ]+\|?$", " ", text, flags=re.M)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def lines_of(source):
    "How many logical lines of Python a reader reads in a cell: no imports, no docstrings."
    code = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M)
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return sum(bool(line.strip()) for line in code.split("\n"))
    docstrings = {
        id(node.body[0])
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None
    }
    statements = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and id(n) not in docstrings]
    return sum(not isinstance(n, (ast.Import, ast.ImportFrom)) for n in statements)


def is_read(cell):
    "Whether a reader reads a code cell: not a hidden one, no solution, no stub of an exercise with its check."
    source = "".join(cell["source"])
    hidden = re.search(r"^#\|\s*(hide|echo: false)", source, re.M)
    exercise = re.search(r"your code here|your turn|NotImplementedError|^answer = None", source, re.M)
    return not hidden and not exercise and "solution" not in cell["metadata"].get("tags", [])


def sections(path):
    "(heading, cells) of a notebook; a heading of any level begins a section."
    found = [("", [])]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "markdown":
            found[-1][1].append(cell)
            continue
        for part in re.split(r"^(?=#{1,4} )", source, flags=re.M):
            if heading := re.match(r"#{1,4} (.+)", part):
                found.append((heading[1].strip(), []))
            found[-1][1].append(dict(cell, source=part))
    return found


def length_of(path, without=()):
    "Length of a notebook, without the sections of these headings, up to its details for the library."
    total = Length(0, 0)
    for heading, cells in sections(path):
        if heading.lower() == FOR_THE_LIBRARY:
            break
        if heading in without or heading.startswith("Exercise"):
            continue
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                total += Length(words_of(source), 0)
            elif is_read(cell):
                total += Length(0, lines_of(source))
    return total


def core_notebooks():
    "{path: headings that are left out} of the core notebooks, in order, as the table of the syllabus has them."
    text = "\n".join("".join(c["source"]) for c in json.loads(SYLLABUS.read_text(encoding="utf-8"))["cells"])
    table = text.split("## The ten sessions")[1].split("\n## ")[0]
    found = {}
    for link in re.finditer(r"\]\(\.\./([\w/]+\.ipynb)\)((?: without )?[^<|]*)", table):
        found[NBS / link[1]] = re.findall(r"\*([^*]+)\*", link[2])
    return found


def report(notebooks):
    "Lines of text for notebooks ({path: headings that are left out}), and their sum."
    found = {path: length_of(path, without) for path, without in notebooks.items()}
    total = sum(found.values(), Length(0, 0))
    for path, length in [*found.items(), (None, total)]:
        name = path.relative_to(NBS).as_posix() if path else f"{len(found)} notebooks"
        words, lines = f"{length.words:6d} words", f"{length.lines:5d} lines"
        yield f"{name:42s}{words} {lines} {length.ratio:5.1f} words a line {length.minutes / 60:5.1f} h"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every lesson")
    lessons = {p: () for p in sorted(NBS.rglob("*.ipynb")) if re.match(r"[1-9]_", p.parent.name)}
    print("\n".join(report(lessons if parser.parse_args().all else core_notebooks())))


if __name__ == "__main__":
    main()
