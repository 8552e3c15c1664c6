"""What a lesson lacks of the form of all lessons: aims, times, exercises that check themselves, quiz, references.

python tests/tools/lesson_form.py            every lesson with what it lacks
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLLAPSED = {"jupyter": {"source_hidden": True}, "cellView": "form"}


def cells_of(path):
    "The cells of a notebook, each as (kind, source, metadata)."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(c["cell_type"], "".join(c["source"]), c.get("metadata", {})) for c in cells]


def code_of(source):
    return "\n".join("pass" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())


def defined(source):
    "Names that a cell binds at its top level."
    names = set()
    for node in ast.parse(code_of(source)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


def check_functions(source):
    "Functions of a cell that `Check` decorates."
    found = [n for n in ast.parse(code_of(source)).body if isinstance(n, ast.FunctionDef)]
    return [f for f in found if any("Check" in ast.unparse(d) for d in f.decorator_list)]


def lacks_of_frame(text):
    "What the text of a lesson lacks besides its exercises."
    wanted = {
        "three aims behind **You will be able to**": r"\*\*You will be able to\*\*.*\(1\).*\(2\).*\(3\)",
        "minutes behind **Time.**": r"\*\*Time\.\*\*.*\bminutes?\b",
        "what to know before, behind **Needs**": r"\*\*Needs\*\*",
        "a box of common mistakes": r"> \*\*Common mistakes\.\*\*",
        "a quiz of three questions with folded answers": r"## Quiz\n(?:.*\n)*?1\. (?:.*\n)*?2\. (?:.*\n)*?3\. (?:.*\n)*?</details>",
        "references with a DOI": r"doi\.org/10\.",
        "a link to the next lesson": r"\b[Nn]ext\b[^\n]*\]\([^)]+\.ipynb",
        "what the reader has now": r"## What you have now",
    }
    return [name for name, pattern in wanted.items() if not re.search(pattern, text)]


def lacks_of_exercises(cells):
    "What the exercises of a lesson lack."
    text = "\n".join(source for kind, source, _ in cells if kind == "markdown")
    code = [(source, meta) for kind, source, meta in cells if kind == "code"]
    solutions = [(s, m) for s, m in code if "solution" in m.get("tags", [])]
    lacks = []
    heads = re.findall(r"^### Exercise [A-Z] \((★{1,3})(, without code)?\)", text, re.M)
    if len(heads) < 2:
        lacks.append("two exercises headed ### Exercise A (★)")
    if not any(head[1] for head in heads):
        lacks.append("an exercise without code")
    if len(solutions) != len(heads):
        lacks.append(f"{len(heads)} exercises have {len(solutions)} cells tagged solution")
    lacks += [
        f"a collapsed cell for {s.splitlines()[0]!r}"
        for s, m in solutions
        if any(m.get(k) != v for k, v in COLLAPSED.items()) or "hide-input" not in m["tags"]
    ]
    lacks += [
        f"`assert check_...` and must_fail in {s.splitlines()[0]!r}"
        for s, _ in solutions
        if not re.search(r"^assert check_\w+\(", s, re.M) or not re.search(r"^must_fail\(", s, re.M)
    ]
    stubs = [s for s, _ in code if re.search(r"# your code here|^answer\w* = None", s, re.M)]
    tasks = {name for stub in stubs for name in defined(stub)}
    lacks += [
        f"another name for {n} in the solution" for s, _ in solutions for n in sorted(defined(s) & tasks)
    ]
    for source in (s for s, _ in code if "@Check" in s):
        for function in check_functions(source):
            bare = [n for n in ast.walk(function) if isinstance(n, ast.Assert) and n.msg is None]
            lacks += [f"a message for an assert of {function.name}"] * len(bare)
    return lacks


def lacks_of_flow(cells):
    "Third code cells in a row, cells that a reader does not see aside."
    lacks, run = [], 0
    for kind, source, meta in cells:
        if kind == "markdown":
            run = 0
        elif not re.match(r"#\| *(hide|default_exp)\b", source) and not meta.get("tags"):
            run += 1
            if run == 3:
                lacks.append(f"a sentence before {source.splitlines()[0][:60]!r}")
    return lacks


def lacking(path):
    "All that a lesson lacks, in words."
    cells = cells_of(path)
    text = "\n".join(source for kind, source, _ in cells if kind == "markdown")
    return lacks_of_frame(text) + lacks_of_exercises(cells) + lacks_of_flow(cells)


def lessons():
    "Notebooks of the numbered parts, without the utilities."
    return sorted(p for p in (ROOT / "nbs").glob("[1-9]_*/*.ipynb"))


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else lessons():
        found = lacking(path)
        print(f"{len(found):3d}  {path.parent.name}/{path.stem}: {'; '.join(found)}")
