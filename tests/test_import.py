"""Importing is cheap, and training and sampling need no chemistry library."""

import subprocess
import sys
import time

from conftest import ROOT


def test_import_is_fast():
    "Less than a second for `import matgen_nb`, the start of Python included; best of three."
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import matgen_nb"], check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_import_is_light():
    "`import matgen_nb` brings in no torch and nothing heavy."
    code = "import sys, matgen_nb; print([m for m in ('torch', 'numpy', 'pymatgen', 'pandas', 'matplotlib') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_training_and_sampling_without_heavy_libraries():
    script = ROOT / "tests" / "tools" / "without_heavy_libraries.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("works without"), done.stderr[-2000:]
