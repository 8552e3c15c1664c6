"""A module imports only from earlier rooms of its own part and from lower parts (the order of the notebooks)."""

import ast
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from tools.house_debts import FILE, module_name, modules, notebooks

PARTS = {
    "utils": 0,
    "written": 0,
    "figures": 0,
    "drawing": 0,
    "folders": 0,
    "parallel": 0,
    "pages": 0,
    "course": 0,
    "symmetry": 1,
    "diffusion": 2,
    "symmcd": 3,
    "mofdiff": 4,
    "scale": 5,
    "commands": 6,
}
APART = {("symmcd", "mofdiff"), ("mofdiff", "symmcd")}
"Parts that never import each other."
MODULES = [p for p in modules() if module_name(p) != "matgen_nb"]
NAMES = {module_name(p) for p in MODULES}
PACKAGES = {module_name(p) for p in MODULES if p.name == "__init__.py"}
part_of = lambda name: name.split(".")[1]


def rooms():
    "Module -> (part, place of its notebook in the part); a package runs before all modules in it."
    found = {name: (PARTS[part_of(name)], -1, "", name) for name in PACKAGES}
    for path in notebooks():
        text = path.read_text(encoding="utf-8")
        if written := re.search(r'"#\| *default_exp ([\w.]+)', text):
            number, letters = re.match(r"(\d*)([a-z]*)", path.stem).groups()
            place = (PARTS[written[1].split(".")[0]], int(number or 0), letters, path.stem)
            found[f"matgen_nb.{written[1]}"] = place
    return found


ROOMS = rooms()


def absolute(node, module, package):
    "Full name of the module that a `from ... import` names."
    if not node.level:
        return node.module or ""
    base = module.split(".") if package else module.split(".")[:-1]
    base = base[: len(base) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports_of(path):
    "Modules of this package that a file imports, anywhere: at the top, inside functions, or by string."
    module, found = module_name(path), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, path.name == "__init__.py")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__", "run_module"):
                found.add("by string: " + ast.unparse(node))
    found |= {".".join(name.split(".")[:2]) for name in [module, *found]}  # the package runs first
    known = {name for name in found if name in NAMES and ROOMS.get(name)}
    front = {f for f in found if re.fullmatch(r"matgen_nb\.[A-Z]\w*", f)}
    return (known | front | {name for name in found if name.startswith("by string")}) - {module}


def wrong(module, imported):
    "Why a module may not import another, or nothing."
    if imported.startswith("by string"):
        return imported
    if imported not in ROOMS:
        return f"{imported}: through the front door"
    if part_of(imported) == "commands" and part_of(module) != "commands":
        return f"{imported}: nothing imports a command"
    if (part_of(module), part_of(imported)) in APART:
        return f"{imported}: another model"
    return f"{imported}: a later room" if ROOMS[imported] >= ROOMS[module] else ""


def arrows():
    "'module -> what is wrong' for every import that the order forbids."
    found = []
    for path in MODULES:
        module = module_name(path)
        if module in ROOMS:
            reasons = {wrong(module, imported) for imported in imports_of(path)}
            found += [f"{module} -> {reason}" for reason in sorted(reasons - {""})]
    return found


def test_every_module_has_its_room():
    assert NAMES <= ROOMS.keys(), "modules without a notebook"
    assert len(PACKAGES) == 6, "every folder of the package is walked"
    assert {part_of(name) for name in NAMES} <= PARTS.keys()


def test_no_arrow_points_upward():
    allowed = json.loads(FILE.read_text(encoding="utf-8")).get("arrows", {})
    new = sorted(set(arrows()) - set(allowed))
    assert not new, "imports that the order of the rooms forbids:\n" + "\n".join(new)


def test_no_circle():
    "Not implied while some arrows are still allowed."
    graph = {module_name(p): {i for i in imports_of(p) if i in ROOMS} for p in MODULES}
    allowed = {
        tuple(arrow.split(" -> ")[:2])
        for arrow in json.loads(FILE.read_text(encoding="utf-8")).get("arrows", {})
    }
    graph = {
        m: {i for i in found if not any(a == m and b.startswith(f"{i}:") for a, b in allowed)}
        for m, found in graph.items()
    }
    done, path = set(), []

    def walk(module):
        if module in path:
            pytest.fail("a circle: " + " -> ".join([*path[path.index(module) :], module]))
        if module not in done:
            path.append(module)
            for imported in sorted(graph.get(module, ())):
                walk(imported)
            done.add(path.pop())

    for module in sorted(graph):
        walk(module)


def test_notebooks_say_what_they_write_and_who_imports_it():
    run = subprocess.run(
        [sys.executable, "tests/tools/written_by.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, f"run python tests/tools/written_by.py: {run.stdout}{run.stderr}"


@pytest.mark.parametrize(
    "source, reason",
    [
        ("def f():\n    from matgen_nb.symmcd import energy\n", "a later room"),
        ("from ..mofdiff.nets import load_net\n", "another model"),
        ("import importlib\nimportlib.import_module('matgen_nb.' + name)\n", "by string"),
        ("from matgen_nb import SymmCD\n", "through the front door"),
        ("from matgen_nb.symmetry.lattice import volume\nfrom .dataset import Batch\n", ""),
    ],
)
def test_the_walk_sees_what_it_must(tmp_path, monkeypatch, source, reason):
    "Imports inside functions, relative ones, by string, through the front door, of the other model."
    path = tmp_path / "matgen_nb" / "symmcd" / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    monkeypatch.setattr("tools.house_debts.ROOT", tmp_path)
    reasons = " ".join(wrong("matgen_nb.symmcd.model", imported) for imported in imports_of(path))
    assert (reason in reasons) if reason else not reasons.strip(), reasons


def test_a_package_that_loads_its_rooms_is_seen(tmp_path, monkeypatch):
    "Whatever `__init__` imports, every module of the package imports too."
    path = tmp_path / "matgen_nb" / "symmetry" / "__init__.py"
    path.parent.mkdir(parents=True)
    path.write_text("from matgen_nb.symmetry import structure_files\n")
    monkeypatch.setattr("tools.house_debts.ROOT", tmp_path)
    assert imports_of(path) == {"matgen_nb.symmetry.structure_files"}
    assert "a later room" in wrong("matgen_nb.symmetry", "matgen_nb.symmetry.structure_files")
    (path.parent / "lattice.py").write_text("import math\n")
    assert imports_of(path.parent / "lattice.py") == {"matgen_nb.symmetry"}, "the package runs first"


@pytest.mark.parametrize("module, loaded", [("lattice", []), ("crystal", ["crystal", "lattice"])])
def test_a_room_loads_no_later_one(module, loaded):
    "In a fresh process, as Python really does it."
    code = f"import sys, matgen_nb.symmetry.{module}; print(*(m for m in sys.modules if 'b.symmetry.' in m))"
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert {name.split(".")[-1] for name in found} == {module, *loaded}
