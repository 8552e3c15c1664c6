"""Counts what is over the limits of the house, by rule and file, as `tests/house_debts.json` holds it.

python tests/tools/house_debts.py             what is new or gone, against the file
python tests/tools/house_debts.py --recount   writes the file anew; the sum of no strict rule may have grown
"""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "house_debts.json"
CELL_LINES, FUNCTION_LINES, LINE_WIDTH, MODULE_LINES, PARAMETERS = 45, 40, 110, 500, 6
STRICT = ["wide_lines", "many_parameters", "lint", "arrows", "untyped", "form"]
"Rules whose sum must never grow; breaking a wide line may lengthen a function, cell or module."
OPTIONS = {"options", "config", "self", "cls"}
"Parameters that do not count: an options object, and what a method belongs to."


def notebooks():
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def modules():
    return sorted(p for p in (ROOT / "matgen_nb").rglob("*.py") if p.name != "_modidx.py")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def code_cells(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]


def directives(source):
    "The words behind #| at the top of a cell."
    return [line[2:].strip() for line in source.splitlines() if line.startswith("#|")]


def is_exported(source):
    return any(d.split()[:1] in (["export"], ["exporti"]) for d in directives(source))


def code_of(source):
    "The source without notebook magics."
    return "\n".join("pass" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())


def functions(source):
    tree = ast.parse(code_of(source))
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def wide_lines(path):
    return [line for source in code_cells(path) for line in source.splitlines() if len(line) > LINE_WIDTH]


def long_functions(path):
    found = [f for source in code_cells(path) if is_exported(source) for f in functions(source)]
    return [f.name for f in found if f.end_lineno - f.lineno + 1 > FUNCTION_LINES]


def long_cells(path):
    "Cells of a notebook above the limit, the hidden ones too."
    return [s.splitlines()[0] for s in code_cells(path) if len(s.splitlines()) > CELL_LINES]


def many_parameters(path):
    "Library functions of a notebook with more parameters than the house allows; commands have options."
    found = [f for source in code_cells(path) if is_exported(source) for f in functions(source)]
    library = [f for f in found if not any(".command(" in ast.unparse(d) for d in f.decorator_list)]
    names = {f.name: [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs] for f in library}
    return [f for f, args in names.items() if sum(a.arg not in OPTIONS for a in args) > PARAMETERS]


def long_modules():
    "Module -> lines over the limit."
    lines = {module_name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in modules()}
    return {name: n - MODULE_LINES for name, n in lines.items() if n > MODULE_LINES}


def lint():
    "File -> findings of `ruff check`."
    run = subprocess.run(
        [
            "ruff",
            "check",
            "--config",
            str(ROOT / ".ruff.toml"),
            "--output-format",
            "json",
            "nbs",
            "tests",
            "matgen_nb",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return dict(Counter(Path(found["filename"]).name for found in json.loads(run.stdout)))


def untyped(path):
    "Public functions and methods of a module that lack the type of a parameter or of what they return."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    inside = [f for c in classes for f in c.body if isinstance(f, ast.FunctionDef)]
    top = [f for f in tree.body if isinstance(f, ast.FunctionDef)]

    def bare(f):
        args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        typed = all(a.annotation for a in args if a.arg not in ("self", "cls"))
        return not (typed and (f.returns or f.name == "__init__"))

    return [f.name for f in [*top, *inside] if not f.name.startswith("_") and bare(f)]


def types():
    "Module -> errors of mypy."
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / ".mypy.ini")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode < 2, run.stdout[-1000:] + run.stderr[-1000:]
    errors = [line for line in run.stdout.splitlines() if ": error:" in line]
    return dict(Counter(module_name(ROOT / line.split(":")[0]) for line in errors))


def upward_arrows():
    "Imports against the order of the rooms, as test_order.py finds them."
    sys.path.insert(0, str(ROOT / "tests"))
    from test_order import arrows

    return arrows()


def lesson_form():
    "Lesson -> how much it lacks of the form of all lessons (tools/lesson_form.py)."
    sys.path.insert(0, str(ROOT / "tests"))
    from tools.lesson_form import lacking, lessons

    return {path.stem: len(lacking(path)) for path in lessons()}


def count():
    "Rule -> {notebook, module or file: how much is over the limit}, without zeros."
    by_cell = dict(
        wide_lines=wide_lines,
        long_functions=long_functions,
        long_cells=long_cells,
        many_parameters=many_parameters,
    )
    found = {rule: {p.stem: len(of(p)) for p in notebooks()} for rule, of in by_cell.items()}
    found |= dict(long_modules=long_modules(), lint=lint(), arrows=dict.fromkeys(upward_arrows(), 1))
    found |= dict(
        form=lesson_form(), untyped={module_name(p): len(untyped(p)) for p in modules()}, types=types()
    )
    return {rule: {name: n for name, n in sorted(by.items()) if n} for rule, by in found.items()}


def main():
    old, new = json.loads(FILE.read_text(encoding="utf-8")), count()
    sums = {rule: (sum(old.get(rule, {}).values()), sum(by.values())) for rule, by in new.items()}
    print("  ".join(f"{rule} {before} -> {now}" for rule, (before, now) in sums.items()))
    grown = [rule for rule in STRICT if rule in old and sums[rule][1] > sums[rule][0]]
    if grown:
        for rule in grown:
            more = {n: k for n, k in new[rule].items() if k > old[rule].get(n, 0)}
            print(f"{rule} has grown: {more}")
        sys.exit(1)
    if "--recount" in sys.argv:
        FILE.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
