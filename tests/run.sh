#!/usr/bin/env bash
# All tests: every notebook from a fresh kernel, then tests/ (which also compares the notebooks with the package).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
python tests/tools/execute.py --check -j 2
python tests/tools/readme.py --check
python -m pytest -q -n 2 tests
python tests/tools/new_user.py --short
