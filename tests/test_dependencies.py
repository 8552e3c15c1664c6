"""What is imported is declared, what is declared is imported, and our own calls give no deprecation warning."""

import ast
import configparser
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from tools.house_debts import modules, notebooks

PARSER = configparser.ConfigParser(delimiters=["="])
PARSER.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = PARSER["DEFAULT"]
DISTRIBUTIONS = {"PIL": "pillow", "jupyter_core": "jupyterlab"}
"What is imported under another name, or comes with a package that is required."
BROUGHT_ALONG = {"sevenn"}
"A second potential that a user may bring; the extra `stability` has the first."
TOOLS = {"jupyterlab"}
"Where the lessons are read; nothing imports it."
BOUNDED = {"bibtexparser", "setuptools"}
"What a package that is required needs in an older version than it says itself."


def names(key):
    return {re.split(r"[<>=!~;\[ ]", word)[0].lower().replace("-", "_") for word in SETTINGS[key].split()}


REQUIRED = names("requirements")
EXTRAS = {key: names(key) for key in SETTINGS if key.endswith("_requirements")}


def imported(path):
    "First parts of the modules that a Python file imports, inside functions too."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"matgen_nb", ""}


IMPORTED = {DISTRIBUTIONS.get(name, name).lower() for path in modules() for name in imported(path)}


def test_what_is_imported_is_declared():
    declared = (
        REQUIRED | set().union(*(v for k, v in EXTRAS.items() if k != "dev_requirements")) | BROUGHT_ALONG
    )
    assert not IMPORTED - declared, "not in settings.ini"


def test_what_is_required_is_imported():
    text = "\n".join(path.read_text(encoding="utf-8") for path in notebooks())
    lessons = {name for name in REQUIRED if re.search(rf"\b(?:import|from) {name}\b", text)}
    assert not REQUIRED - IMPORTED - lessons - TOOLS - BOUNDED, "required, and never imported"


def test_every_requirement_has_a_tested_lower_bound():
    loose = [word for word in SETTINGS["requirements"].split() if ">=" not in word]
    assert not loose, f"without a lower bound: {loose}"


def test_developers_have_the_extras_that_tests_need():
    needed = set().union(
        *(EXTRAS[f"{name}_requirements"] for name in ("ase", "hub", "fast", "cluster", "stability"))
    )
    assert not needed - EXTRAS["dev_requirements"]


OWN_CALLS = """
import warnings
warnings.simplefilter("error", DeprecationWarning)
warnings.simplefilter("error", PendingDeprecationWarning)
for module in {foreign!r}:  # what a library does to itself at its import is not ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        __import__(module)
import matgen_nb
from matgen_nb import AsymmetricUnit, Crystal, SpaceGroup, evaluate_crystals
from matgen_nb.mofdiff.bonds import textbook_mof
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.symmcd.dataset import prototypes

crystals = [c for _, c in prototypes()[:40]]
for c in crystals:
    unit = AsymmetricUnit.from_crystal(c)
    Crystal.from_cif(unit.to_cif())
    Crystal.from_pymatgen(c.to_pymatgen())
for number in (1, 14, 166, 227):
    SpaceGroup(number)
few = [c for c in crystals if len(c) < 6][:4]
evaluate_crystals(few, few, n_jobs=1, progress=False)
decompose(textbook_mof("IRMOF-1"))
few[0].plot()
print("clean")
"""


def test_our_own_calls_give_no_deprecation_warning():
    "spglib, pyparsing (through matplotlib and pymatgen), pymatgen, rdkit: as errors."
    foreign = [
        "torch",
        "pymatgen.core",
        "pymatgen.io.cif",
        "matplotlib.pyplot",
        "rdkit.Chem",
        "smact.screening",
    ]
    run = subprocess.run(
        [sys.executable, "-c", OWN_CALLS.format(foreign=foreign)], capture_output=True, text=True, timeout=300
    )
    assert run.stdout.strip().endswith("clean"), run.stderr[-3000:]


def test_placeholders_stand_in_one_place():
    "The home of the repository is said in settings.ini, and the build and the workflows take it from there."
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    block = text.split("# --- placeholders")[1].split("\n\n")[0]
    assert {"user", "git_url", "author_email"} <= {line.split(" =")[0] for line in block.split("\n")[1:]}
    for path in [ROOT / "setup.py", *sorted((ROOT / ".github").rglob("*.yml"))]:
        assert SETTINGS["user"] not in path.read_text(encoding="utf-8"), path
    assert "settings.ini" in (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_citation_agrees_with_the_settings():
    cff = (ROOT / ".github" / "CITATION.cff").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^([\w-]+): (.+)$", cff, re.M))
    assert stated["version"] == SETTINGS["version"] and stated["repository-code"] == SETTINGS["git_url"]
    assert SETTINGS["author"] in cff
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "## Citation" in readme and f"version = {{{SETTINGS['version']}}}" in readme
    for identifier in ("2502.03638", "2310.10732"):
        assert identifier in readme and identifier in cff, "both papers in both places"


@pytest.mark.parametrize("extra", ["ase", "hub", "fast", "cluster", "stability", "gcmc", "core-mof"])
def test_setup_knows_every_extra(extra):
    assert f"{extra}_requirements" in EXTRAS
    assert "_requirements" in (ROOT / "setup.py").read_text(encoding="utf-8")
