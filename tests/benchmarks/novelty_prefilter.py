"""Does comparing crystals of one reduced formula only change a verdict on novelty?

    python tests/benchmarks/novelty_prefilter.py SAMPLES --training train.safetensors -n 2000

Each sample is compared by StructureMatcher, in both orders, with every training crystal that has the same set of
elements, whatever its formula, and with --others random ones of other elements; the verdict is held against that of
`match_all`, which compares within a formula. (Crystals of other elements can never fit: a random choice of them is
tried all the same.)"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from matgen_nb.scale.crystal_evaluation import read_crystals, training_reference
from matgen_nb.scale.crystal_runs import load_data
from matgen_nb.symmcd.matching import match_all, same_structure


def unfiltered(samples, training, others, rng):
    "(novel, comparisons) of each sample, with every training crystal of its elements and some of other elements."
    by_elements, structures = defaultdict(list), {}
    elements = lambda c: frozenset(c.elements.tolist())
    for i, crystal in enumerate(training):
        by_elements[elements(crystal)].append(i)

    def structure(i):
        if i not in structures:
            structures[i] = training[i].to_pymatgen()
        return structures[i]

    found = []
    for crystal in samples:
        mine = crystal.to_pymatgen()
        tried = [*by_elements[elements(crystal)], *rng.choice(len(training), others, replace=False).tolist()]
        novel = not any(same_structure(mine, structure(i)) for i in tried)
        found.append((novel, len(tried)))
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--others", type=int, default=10)
    args = parser.parse_args()
    crystals = [c for c in read_crystals(args.samples, 1)[0] if c is not None][: args.n]
    training = training_reference(load_data(args.training)).crystals
    start = time.process_time()
    filtered = [novel for _, novel, _ in match_all(crystals, training, n_jobs=1, progress=False)]
    middle = time.process_time()
    plain = unfiltered(crystals, training, args.others, np.random.default_rng(0))
    seconds = middle - start, time.process_time() - middle
    changed = sum(a != b for a, (b, _) in zip(filtered, plain))
    print(f"{len(crystals)} samples, {len(training)} training crystals: {changed} verdicts differ")
    print(f"novel: {sum(map(bool, filtered))}; comparisons without the filter: {sum(n for _, n in plain)}")
    print(f"CPU seconds: {seconds[0]:.0f} with the filter (and uniqueness), {seconds[1]:.0f} without")


if __name__ == "__main__":
    main()
