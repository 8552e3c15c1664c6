"""The package is what the notebooks export: no hand edits, no forgotten export, no module without a notebook."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "matgen_nb"
GENERATED = {"__init__.py", "_modidx.py"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "The package as exported afresh into an empty folder."
    folder = tmp_path_factory.mktemp("export") / "repo"
    folder.mkdir()
    shutil.copy(ROOT / "settings.ini", folder)
    skip = shutil.ignore_patterns(".ipynb_checkpoints", "_proc", "images")
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=skip)
    (folder / "matgen_nb").mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")}
    code = "from nbdev.export import nb_export\nfrom nbdev.doclinks import nbdev_export\nnbdev_export()"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "matgen_nb"


def modules(package):
    "All modules that come from a notebook, as paths relative to the package."
    return {p.relative_to(package).as_posix() for p in package.rglob("*.py") if p.name not in GENERATED}


def test_every_module_has_its_notebook(exported):
    "A module that no notebook exports is stale: delete it, or write its notebook."
    assert modules(PACKAGE) == modules(exported)


def test_every_module_is_what_its_notebook_exports(exported):
    "A difference means a hand edit or a forgotten nbdev_export."
    different = [
        m
        for m in sorted(modules(exported) & modules(PACKAGE))
        if (exported / m).read_text() != (PACKAGE / m).read_text()
    ]
    assert not different, f"run nbdev_export, or move the edits of {different} into their notebooks"


def test_version_is_said_once():
    "settings.ini and the package agree."
    import configparser

    import matgen_nb

    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    assert parser["DEFAULT"]["version"] == matgen_nb.__version__
