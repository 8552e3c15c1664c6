#!/usr/bin/env python
"""Which checks of MOFChecker the frameworks of a run do not pass: an outside opinion, for framework_results.py.

    pip install mofchecker==0.9.6                  # MIT licence; in an environment of its own, it needs an old pymatgen
    python mofchecker_check.py RUN/assembled mofchecker.json --first 60

Reads CIF files only and uses nothing of this package. Writes {name: list of failed checks}; what is in the file already is not
computed again. Left out: charges, and exposed metals, which need libraries that pip cannot build everywhere.
"""

import argparse
import json
import signal
from pathlib import Path

WRONG = (
    "has_atomic_overlaps",
    "has_lone_molecule",
    "has_overcoordinated_c",
    "has_overcoordinated_h",
    "has_overcoordinated_n",
    "has_undercoordinated_c",
    "has_undercoordinated_n",
)
NEEDED = ("has_carbon", "has_hydrogen", "has_metal")
LIMIT = 240  # s, for one framework


def too_slow(*_):
    raise TimeoutError(f"took longer than {LIMIT} s")


def failed(path):
    "Names of the checks that a CIF file does not pass; an error counts as one."
    from mofchecker import MOFChecker

    signal.alarm(LIMIT)
    try:
        checker = MOFChecker.from_cif(str(path))
        wrong = [name for name in WRONG if getattr(checker, name)]
        return wrong + [f"no {name}" for name in NEEDED if not getattr(checker, name)]
    except Exception as error:  # whatever it stumbles over
        return [f"error: {error}"]
    finally:
        signal.alarm(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=60, help="how many frameworks, by name")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, too_slow)
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    for path in sorted(given.folder.glob("*.cif"))[: given.first]:
        if path.stem not in found:
            found[path.stem] = failed(path)
            print(path.stem, found[path.stem], flush=True)
            given.out.write_text(json.dumps(found, indent=0))


if __name__ == "__main__":
    main()
