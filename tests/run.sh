#!/usr/bin/env bash
# All tests: every notebook from a fresh kernel, the way of a new user, then tests/ (which also compares the notebooks with
# the package). The last lines name what was skipped by pytest, not run of the notebooks and left out of the way of a
# new user, each counted and with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
said() { python tests/tools/execute.py --not-run; python tests/tools/new_user.py --left-out; }
trap 'status=$?; said; exit $status' EXIT
python tests/tools/execute.py --check -j 2
python tests/tools/readme.py --check
python tests/tools/new_user.py --short
python -m pytest -q -rs -n 2 tests
