#!/usr/bin/env python
"""Run notebooks, each from a fresh kernel, and save what they show.

    python tests/tools/execute.py                           every notebook under nbs/
    python tests/tools/execute.py nbs/1_symmetry/*.ipynb    these
    python tests/tools/execute.py --check -j 2              run, save nothing (what the tests do)
    python tests/tools/execute.py --flags slow NB           also run the cells marked `#| slow`
    python tests/tools/execute.py --not-run                 only say which cells are not run, and why

The skip rules are those of nbdev_test: cells marked `#| eval: false`, `#| slow` or `#| gpu` are not run and keep the output
that is saved. A cell that fails ends its notebook: nothing of it is saved, the error is shown, and the exit status is 1.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # many small operations: more threads only get in each other's way
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb, write_nb
from nbdev.config import get_config
from nbdev.process import extract_directives
from execnb.nbio import read_nb


REASONS = {
    "eval: false": "for a reader to run: live views, an example of code, how a file that ships was made",
    "slow": "takes minutes; its saved output stays",
    "gpu": "needs a GPU; its saved output stays",
}
"Why cells with these marks are not run."


def skipped(cell, flags):
    "The mark for which nbdev_test would not run this cell, or None."
    directives = extract_directives(cell, remove=False) if cell.cell_type == "code" else {}
    if not isinstance(directives, dict):
        return None
    if (directives.get("eval:") or [""])[0].lower() == "false":
        return "eval: false"
    return next((flag for flag in sorted(flags) if flag in directives), None)


def not_run(notebooks, flags):
    "What is not run of some notebooks, in words: a line for each mark, with its number, reason and notebooks."
    found = {}
    for path in notebooks:
        for cell in nbformat.read(path, as_version=4).cells:
            if mark := skipped(cell, flags):
                found.setdefault(mark, []).append(path.stem)
    lines = [f"{sum(map(len, found.values()))} cells of {len(notebooks)} notebooks are not run"]
    for mark, names in sorted(found.items()):
        where = ", ".join(dict.fromkeys(names))
        lines.append(
            f"  {len(names)} marked `#| {mark}` ({REASONS.get(mark, 'left out by its flag')}): {where}"
        )
    return "\n".join(lines)


class Runner(NotebookClient):
    "A notebook client that leaves the skipped cells as they are."

    flags = frozenset()

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if skipped(cell, self.flags):
            return cell
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)


def run_notebook(path, flags, save, timeout):
    "Run one notebook; returns (path, seconds, error text or None)."
    start = time.time()
    nb = nbformat.read(path, as_version=4)
    client = Runner(
        nb,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.flags = flags
    try:
        client.execute()
    except CellExecutionError as error:
        return path, time.time() - start, str(error)
    except Exception as error:  # a kernel that died, a cell over its time
        return path, time.time() - start, f"{type(error).__name__}: {error}"
    if save:
        nbformat.write(nb, path)
        cleaned = read_nb(path)
        kept = get_config(path=ROOT).get("allowed_cell_metadata_keys").split()
        clean_nb(cleaned, allowed_cell_metadata_keys=kept, clean_ids=False)
        write_nb(cleaned, path)
    return path, time.time() - start, None


def find_notebooks(names):
    "The notebooks named, or all of nbs/."
    if names:
        return [Path(name).resolve() for name in names]
    return sorted(
        p
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if not any(part.startswith((".", "_")) for part in p.parts[-3:])
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--check", action="store_true", help="run, but save nothing")
    parser.add_argument(
        "--flags", default="", help="flags whose cells are run although they are skipped otherwise"
    )
    parser.add_argument("--not-run", action="store_true", help="only say which cells are not run, and why")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="notebooks at a time")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell may take")
    args = parser.parse_args()
    flags = frozenset(get_config(path=ROOT).tst_flags.split()) - set(args.flags.split())
    failed, notebooks = [], find_notebooks(args.notebooks)
    if args.not_run:
        return print(not_run(notebooks, flags))
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run_notebook, p, flags, not args.check, args.timeout) for p in notebooks]
        for job in jobs:
            path, seconds, error = job.result()
            name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            print(f"{'FAILED' if error else 'ok':6} {seconds:6.1f} s  {name}", flush=True)
            if error:
                failed.append(str(name))
                print(error, file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"{len(failed)} of {len(notebooks)} notebooks failed: {', '.join(failed)}")
    print(f"{len(notebooks)} notebooks ran without an error")


if __name__ == "__main__":
    main()
