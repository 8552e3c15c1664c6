"""Energies at equal novelty: which share of the samples is new *and* low in energy, for several samplers.

    matgen sample symmcd -n 1000 --seed 0 --device cpu --out default
    matgen sample symmcd -n 1000 --seed 0 --device cpu --candidates 1 --out one
    matgen sample symmcd -n 1000 --seed 0 --device cpu --weights symmcd-mp20-common --out common
    python tests/benchmarks/novel_and_low.py --training train.safetensors --energies train.csv.gz \\
        --samples common one default [--out novel_and_low.csv]

A sampler that returns more of its training set is also lower in energy, so a share below 0.1 eV/atom alone can be bought
with novelty. Counted here for each sampler: the share below 0.1 eV/atom above the hull (CHGNet, nothing relaxed, lesson
3.17) among the novel samples only, and the share of all samples that are novel, the first of their kind and below it.
Novelty is against the training set, by `StructureMatcher` as in lesson 3.18. About four minutes of one CPU thread a
thousand samples; what has been measured is kept in --work.
"""

import argparse

import numpy as np
from kept import Kept, write_rows

from matgen_nb.scale.crystal_evaluation import read_crystals, training_reference
from matgen_nb.scale.crystal_runs import load_data
from matgen_nb.symmcd.energy import EnergyOptions, evaluate_energies
from matgen_nb.symmcd.evaluation import evaluate_crystals, resampled
from matgen_nb.symmcd.hull import energy_reference, energy_scale
from matgen_nb.symmcd.potential import EnergyCache, default_cache, get_potential
from matgen_nb.utils import share

LIMIT = 0.1
"eV/atom above the hull."
COLUMNS = ("model", "figure", "value", "low", "high", "n", "protocol")


def flags_of(crystals, names, training):
    "{'novel', 'unique'}: a list of booleans each (None for a crystal that could not be compared)."
    found = evaluate_crystals(
        crystals,
        training,
        ("uniqueness", "novelty"),
        n_jobs=1,
        training=training,
        names=names,
        progress=False,
    )
    return {key: [row.get(key) for row in found.table] for key in ("novel", "unique")}


def energies_of(crystals, scale, potential, cache):
    "Energy above the hull of each crystal in eV/atom, None where the potential could not take it."
    options = EnergyOptions(progress=False)
    table = evaluate_energies(crystals, scale, potential, None, cache, options).table
    return [row.get("e_above_hull") for row in table]


def median_of(values, what):
    "Median with 1.96 bootstrap standard deviations."
    values = np.array(values)
    value, low, high = resampled(np.median, values, np.random.default_rng(0))
    return dict(value=value, low=low, high=high, n=len(values), protocol=what)


def figures_of(flags, energies):
    "figure -> dict(value, low, high, n, protocol)."
    energy = np.array([np.inf if e is None else e for e in energies], float)
    novel, unique = (np.array([bool(f) for f in flags[key]]) for key in ("novel", "unique"))
    below = energy < LIMIT
    text = "CHGNet single points, nothing relaxed; a crystal without an energy counts as above"
    return {
        "novel": share(novel, "no match in the training set"),
        f"e_above_hull<{LIMIT}": share(below, text),
        f"novel: e_above_hull<{LIMIT}": share(below[novel], f"of the novel samples; {text}"),
        "novel: e_above_hull": median_of(energy[novel], f"median of the novel samples; {text}"),
        f"novel, unique and e_above_hull<{LIMIT}": share(novel & unique & below, f"of all samples; {text}"),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", required=True, help="prepared crystals")
    parser.add_argument("--energies", required=True, help="CSV of the training crystals with their energies")
    parser.add_argument("--samples", nargs="+", required=True, help="folders of matgen sample symmcd")
    parser.add_argument("-n", type=int, default=1000, help="samples of each folder, from the first on")
    parser.add_argument("--work", default="novel-and-low", help="folder for what has been measured")
    parser.add_argument("--out", default="novel_and_low.csv")
    args = parser.parse_args()
    kept, potential = Kept(args.work), get_potential("chgnet")
    cache = EnergyCache(default_cache(potential))
    scale = energy_scale(energy_reference(args.energies), potential, cache=cache)
    training, rows = training_reference(load_data(args.training)), []
    for folder in args.samples:
        crystals, names = (part[: args.n] for part in read_crystals(folder, 1)[:2])
        name = folder.rstrip("/").rsplit("/", 1)[-1]
        flags = kept(f"{name}-flags", lambda: flags_of(crystals, names, training))
        energies = kept(f"{name}-energies", lambda: energies_of(crystals, scale, potential, cache))
        for figure, e in figures_of(flags, energies).items():
            values = {key: f"{e[key]:.5f}" for key in ("value", "low", "high")}
            rows.append(dict(model=name, figure=figure, n=e["n"], protocol=e["protocol"], **values))
        write_rows(args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
