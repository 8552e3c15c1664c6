"""Evaluation of crystals by this package and by the metrics of the released programs, on the same structures in one run.

    python tests/benchmarks/evaluation_speed.py SAMPLES --reference val.safetensors -n 250 --python VENV/bin/python

SAMPLES: a folder of samples; -n of them, and as many crystals of the reference, evenly chosen, are described by both
programs from nothing. VENV has the other program's packages: pip install matminer "smact<3". One process and one thread
each, CPU seconds; which of the two runs first makes no difference, for they do not run at the same time. Ours
computes more in its time (contacts, Wyckoff templates); matching for uniqueness and novelty, which the released
programs do not count, is left out."""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from matgen_nb import evaluate_crystals
from matgen_nb.scale.crystal_evaluation import read_crystals, reference_crystals
from matgen_nb.symmcd.composition import element_data
from matgen_nb.symmcd.evaluation import describe_crystal

METRICS = ("validity", "coverage", "distributions", "symmetry")


def plain(crystal):
    "A crystal as JSON."
    arrays = dict(lattice=crystal.lattice, elements=crystal.elements, frac_coords=crystal.frac_coords)
    return {name: array.tolist() for name, array in arrays.items()}


def ours(samples, reference):
    "(metrics, CPU seconds, rows) of this package."
    describe_crystal(reference[0])
    start = time.process_time()
    found = evaluate_crystals(samples, reference, METRICS, n_jobs=1, progress=False, symprec=0.01)
    seconds = time.process_time() - start
    return {name: entry["value"] for name, entry in found.summary.items()}, seconds, found.table


def theirs(samples, reference, python):
    "The same of the released metrics, in another interpreter."
    data = element_data()
    given = dict(
        samples=list(map(plain, samples)),
        reference=list(map(plain, reference)),
        scaler=[data.scaler_mean.tolist(), data.scaler_std.tolist()],
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("crystals.json", "result.json")]
        paths[0].write_text(json.dumps(given), encoding="utf-8")
        script = Path(__file__).with_name("released_metrics.py")
        subprocess.run([python, script, *paths], check=True)
        found = json.loads(paths[1].read_text(encoding="utf-8"))
    return found["metrics"], found["cpu_seconds"], found["rows"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("-n", type=int, default=250)
    parser.add_argument("--python", required=True, help="interpreter that has matminer and smact below 3")
    args = parser.parse_args()
    every = lambda found: [found[i] for i in np.linspace(0, len(found) - 1, args.n).astype(int)]
    samples = every([c for c in read_crystals(args.samples, 1)[0] if c is not None])
    reference = every(reference_crystals(args.reference))
    mine, my_seconds, rows = ours(samples, reference)
    others, other_seconds, other_rows = theirs(samples, reference, args.python)
    for name, value in others.items():
        print(f"{name:24s} released {value:.4f}   ours {mine[name]:.4f}")
    for name, own in (("comp_valid",) * 2, ("struct_valid",) * 2, ("space_group", "space_group@0.01")):
        same = sum(a[name] == b[own] for a, b in zip(other_rows, rows))
        print(f"{name:24s} the same of {same} of {len(rows)} samples")
    count = 2 * args.n
    print(
        f"released {other_seconds / count:.3f} s a crystal, ours {my_seconds / count:.3f} s (CPU, one process)"
    )
    print(f"ratio {other_seconds / my_seconds:.1f}")


if __name__ == "__main__":
    main()
