"""How a lesson is written: short cells, short definitions, a check beside each, pictures saved, exercises, no traces of a machine."""

import ast
import base64
import json
import re
import subprocess

import pytest
from conftest import ROOT
from tools import house_debts as debts, lesson_form
from tools.house_debts import code_of, directives, is_exported

from matgen_nb.course import is_solution

NOTEBOOKS = debts.notebooks()
LESSONS = [p for p in NOTEBOOKS if re.match(r"[1-9]_", p.parent.name) or p.stem == "00_overview"]
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:work|root|tmp|home|opt|Users|var/folders)/[\w.]")
name_of = lambda path: path.stem


def cells_of(path, kind="code"):
    "The cells of a notebook, each as (source, outputs)."
    nb = json.loads(path.read_text(encoding="utf-8"))
    return [("".join(c["source"]), c.get("outputs", [])) for c in nb["cells"] if c["cell_type"] == kind]


def pictures(path):
    return [
        base64.b64decode("".join(o["data"]["image/png"]))
        for _, outputs in cells_of(path)
        for o in outputs
        if "image/png" in o.get("data", {})
    ]


def output_text(outputs):
    "Everything an output says in words."
    for output in outputs:
        yield "".join(output.get("text", "")) + "".join(output.get("traceback", []))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/") or "svg" in kind:
                yield data if isinstance(data, str) else json.dumps(data)


DEBTS = json.loads(debts.FILE.read_text(encoding="utf-8"))
"What the first edition left over the limits, counted by rule and file: may only shrink."


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
@pytest.mark.parametrize("rule", ["wide_lines", "long_functions", "long_cells", "many_parameters"])
def test_limits_of_the_house(rule, path):
    """Lines of at most 110 characters, functions of 40 lines, cells of 45, six parameters plus options."""
    over = getattr(debts, rule)(path)
    assert len(over) <= DEBTS[rule].get(path.stem, 0), f"{rule}: {over}"


def test_modules_are_short():
    over = {name: n for name, n in debts.long_modules().items() if n > DEBTS["long_modules"].get(name, 0)}
    assert not over, f"lines above {debts.MODULE_LINES}: {over}"


def test_public_surface_is_typed():
    found = {debts.module_name(p): debts.untyped(p) for p in debts.modules()}
    over = {name: f for name, f in found.items() if len(f) > DEBTS["untyped"].get(name, 0)}
    assert not over, f"public functions without types: {over}"


def public_names(path):
    "What a module defines at its top for others: functions (methods by `patch` apart), classes, constants."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            method = any(re.match(r"patch\b", ast.unparse(d)) for d in node.decorator_list)
            names = [] if method else [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            stored = [n for target in targets for n in ast.walk(target)]
            names = [n.id for n in stored if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_means_one_thing():
    "No two modules define the same public name."
    homes = {}
    for path in debts.modules():
        for name in public_names(path):
            homes.setdefault(name, set()).add(debts.module_name(path))
    twice = {name: sorted(found) for name, found in homes.items() if len(found) > 1}
    assert len(homes) > 1000, "the walk found the names"
    assert not twice, f"give each its own telling name, or one definition on a lower floor: {twice}"


def trees(path):
    "Syntax trees of a module, or of the cells of a notebook that define or import something."
    if path.suffix == ".py":
        return [ast.parse(path.read_text(encoding="utf-8"))]
    sources = [s for s in debts.code_cells(path) if is_exported(s) or "from matgen_nb" in s]
    return [ast.parse(code_of(source)) for source in sources]


@pytest.mark.parametrize("path", [*debts.modules(), *NOTEBOOKS], ids=name_of)
def test_private_names_stay_in_their_module(path):
    "No module and no lesson imports a name with an underscore from another."
    imports = [n for tree in trees(path) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    ours = [n for n in imports if n.level or (n.module or "").split(".")[0] == "matgen_nb"]
    private = [alias.name for n in ours for alias in n.names if re.match(r"_[^_]", alias.name)]
    assert not private, f"make it public, or move it to a lower floor: {private}"


@pytest.mark.parametrize("path", debts.modules(), ids=name_of)
def test_methods_are_given_by_patch(path):
    "A class gets its methods where it is defined, or by the decorator `patch`: not by `Class.name = function`."
    by_hand = [
        ast.unparse(node)
        for node in trees(path)[0].body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
        if re.match(r"(static|class)method\(|property\(|lambda\b|[\w.]+$", ast.unparse(node.value))
        if not isinstance(node.value, ast.Constant)
    ]
    assert not by_hand, by_hand


VECTOR = "tuple[int, int, int]"
"Three whole numbers that are one value, such as a direction [uvw]."


def public_functions(tree):
    "Functions and methods for others; the forward of a network returns its outputs side by side."
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "forward":
            yield node


def own_nodes(function):
    "What stands in a function, without the functions inside it."
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            yield node
            yield from own_nodes(node)


def bare_tuples(function):
    "Tuples of three or more values that a function returns: by its annotation, in what it returns, or in a list."
    kind = ast.unparse(function.returns).strip("'\"") if function.returns else ""
    if kind == VECTOR:
        return
    for node in ast.walk(ast.parse(kind)):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "tuple":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
            if len(parts) > 2:
                yield ast.unparse(node)
    for node in own_nodes(function):
        value = node.value if isinstance(node, (ast.Return, ast.Yield)) else None
        value = value.elt if isinstance(value, (ast.ListComp, ast.GeneratorExp)) else value
        if isinstance(value, ast.Tuple) and len(value.elts) > 2:
            yield ast.unparse(value)


@pytest.mark.parametrize("path", debts.modules(), ids=name_of)
def test_results_have_types(path):
    "A public function returns at most two values side by side; three and more have names, in a class."
    found = {f.name: list(bare_tuples(f)) for f in public_functions(trees(path)[0])}
    bare = {name: tuples for name, tuples in found.items() if tuples}
    assert not bare, f"give them a NamedTuple or a dataclass: {bare}"


def test_types_agree():
    "mypy, in the lenient setting of .mypy.ini."
    pytest.importorskip("mypy")
    over = {name: n for name, n in debts.types().items() if n > DEBTS["types"].get(name, 0)}
    assert not over, f"run `mypy --config-file .mypy.ini`: {over}"


def test_ruff_finds_nothing():
    over = {name: n for name, n in debts.lint().items() if n > DEBTS["lint"].get(name, 0)}
    assert not over, f"run `ruff check nbs tests`: {over}"


def test_formatting_is_by_ruff():
    run = subprocess.run(
        ["ruff", "format", "--check", "--config", str(ROOT / ".ruff.toml"), "nbs", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"run `ruff format nbs tests`, then nbdev_export:\n{run.stdout}{run.stderr}"


def names_to_check(source):
    "Public definitions of a cell, each with the names under which a check may use it (f, or attr of `Class.attr = f`)."
    tree = ast.parse(code_of(source))
    found = {
        n.name: {n.name}
        for n in tree.body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
            for name in used & found.keys():
                found[name].add(node.targets[0].attr)
    return found


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_exported_definitions_are_checked_beside(path):
    "One of the next two cells that are not exported must use the definition."
    cells = [source for source, _ in cells_of(path)]
    missing = []
    for i, source in enumerate(cells):
        beside = "\n".join([s for s in cells[i + 1 :] if not is_exported(s)][:2])
        for name, aliases in (names_to_check(source) if is_exported(source) else {}).items():
            if not any(re.search(rf"\b{alias}\b", beside) for alias in aliases):
                missing.append(name)
    assert not missing, f"no check within two cells: {missing}"


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson_shows_pictures(path):
    assert pictures(path), "no saved picture: run tests/tools/execute.py"


@pytest.mark.parametrize("path", lesson_form.lessons(), ids=name_of)
def test_lesson_has_the_form(path):
    "Aims, minutes, exercises that check themselves, quiz, references (tools/lesson_form.py)."
    found = lesson_form.lacking(path)
    assert len(found) <= DEBTS["form"].get(path.stem, 0), f"the lesson lacks {found}"


@pytest.mark.parametrize("path", LESSONS, ids=name_of)
def test_lesson_has_exercises_and_an_end(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    hidden = [s for s, _ in cells_of(path) if "hide" in directives(s) and "check_" in s]
    solutions = [c for c in cells if is_solution(c)]
    assert "## Exercise" in text, "a lesson has exercises"
    assert len(hidden) + len(solutions) >= 1, "a cell must run the solutions through their checks"
    assert not solutions or "<summary>Solution" not in text, "a solution stands in plain sight"
    assert re.search(r"## What you have now", text, re.I), "the lesson must end with what the reader has now"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_no_machine_paths(path):
    found = [
        m.group()
        for source, outputs in cells_of(path)
        for t in [source, *output_text(outputs)]
        for m in MACHINE_PATH.finditer(t)
    ]
    found += [m.group() for source, _ in cells_of(path, "markdown") for m in MACHINE_PATH.finditer(source)]
    assert not found, f"paths of somebody's machine: {found[:5]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_no_error_is_saved(path):
    assert not [o for _, outputs in cells_of(path) for o in outputs if o["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_sizes(path):
    assert path.stat().st_size < 600_000, "notebook over 600 KB"
    assert all(len(png) < 150_000 for png in pictures(path)), "picture over 150 KB"


def test_modules_stand_alone():
    "Exported code needs neither nbdev nor fastcore, and imports by full name."
    for path in (ROOT / "matgen_nb").rglob("*.py"):
        if path.name != "_modidx.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(from|import) (nbdev|fastcore)", text, re.M), path.name
            assert not re.search(r"^\s*from \S+ import \*", text, re.M), path.name


def test_links_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)]
    assert not [link for link in links if not (ROOT / link).exists()]
