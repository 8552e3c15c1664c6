#!/usr/bin/env python
"""Write matgen_nb/data/crystal_energies.csv: the table of lesson 3.22, one line a figure (model, figure, value, low, high, n, source).

    python tests/benchmarks/crystal_energies.py --training train.csv.gz --held-out val.csv.gz [--weights symmcd-mp20-small]

The hull and the energies of the elements come from the training set, the real crystals from the held-out set; both CSV files need the
columns `cif`, `formation_energy_per_atom` and `e_above_hull` (those of MP-20 have them). The rows of the other models were measured once,
by the same protocol, on crystals that their authors published or that their released weights generate; they are kept as they are.
"""

import argparse
from pathlib import Path

import numpy as np
from kept import write_rows
from matgen_nb.symmcd import staged_sampling  # noqa: F401  (gives SymmCD all its methods)
from matgen_nb.symmcd.potential import EnergyCache, default_cache, get_potential, unmoved_primitive_cell
from matgen_nb.symmcd.energy import EnergyOptions, evaluate_energies
from matgen_nb.symmcd.hull import energy_reference, energy_scale
from matgen_nb.symmcd.model import SymmCD

OUT = Path(__file__).resolve().parents[2] / "matgen_nb" / "data" / "crystal_energies.csv"
COLUMNS = ("model", "figure", "value", "low", "high", "n", "source")
KEPT = "measured once by the same protocol"
NAMES = (
    "max_force>1",
    "max_force>5",
    "pressure",
    "e_above_hull",
    "e_above_hull<0.1",
    "e_above_hull>0.5",
    "exchange_gains",
)
PEERS = {
    "DiffCSP": (0.38, 0.07, 1.8, 0.03, 0.66, 0.00, 0.01),
    "DiffCSP++": (0.48, 0.09, 4.2, 0.15, 0.43, 0.27, 0.06),
    "WyFormer + DiffCSP++": (0.40, 0.10, 3.8, 0.21, 0.38, 0.21, 0.02),
    "CrystalFormer": (0.58, 0.36, 5.4, 0.22, 0.46, 0.43, 0.28),
}
INTERVALS = {
    ("DiffCSP", "e_above_hull<0.1"): (0.57, 0.74),
    ("DiffCSP++", "e_above_hull<0.1"): (0.33, 0.51),
    ("WyFormer + DiffCSP++", "e_above_hull<0.1"): (0.30, 0.46),
    ("CrystalFormer", "e_above_hull<0.1"): (0.37, 0.54),
}
LOSSES = {"DiffCSP": 0.04, "DiffCSP++": 0.06, "WyFormer + DiffCSP++": 0.08, "CrystalFormer": 0.20}


def peer_rows():
    "Lines of the other models."
    for model, values in PEERS.items():
        for figure, value in zip(NAMES, values):
            low, high = INTERVALS.get((model, figure), ("", ""))
            yield dict(
                model=model,
                figure=figure,
                value=value,
                low=low,
                high=high,
                n=90 if figure == "exchange_gains" else 125,
                source=KEPT,
            )
        yield dict(
            model=model,
            figure="relaxation_loss",
            value=LOSSES[model],
            low="",
            high="",
            n=42,
            source=f"{KEPT}, all coordinates free",
        )


def rows_of(model, crystals, units, scale, potential, cache, relaxations):
    "Lines of a list of crystals: the first 125 as they stand; of small ones among them, `relaxations` are relaxed."
    order = sorted(
        range(len(crystals)), key=lambda i: len(unmoved_primitive_cell(crystals[i])) > 20
    )  # small cells first, else as they are
    units = None if units is None else [units[i] for i in order]
    options = EnergyOptions(relaxations=relaxations)
    found = evaluate_energies([crystals[i] for i in order], scale, potential, units, cache, options)
    print(model, found, sep="\n", flush=True)
    for figure, entry in found.summary.items():
        numbers = {k: f"{entry[k]:.4g}" for k in ("value", "low", "high")}
        yield dict(
            model=model, figure=figure, **numbers, n=entry["n"], source=f"measured here, {potential.name}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--weights", default="symmcd-mp20-small")
    parser.add_argument("--potential", default="chgnet")
    parser.add_argument("-n", type=int, default=125)
    parser.add_argument("--relaxations", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=OUT)
    args = parser.parse_args()
    potential, held = get_potential(args.potential), energy_reference(args.held_out)
    cache = EnergyCache(default_cache(potential))
    scale = energy_scale(energy_reference(args.training), potential, cache=cache)
    real = [
        held.crystal(int(i))
        for i in np.random.default_rng(args.seed).choice(len(held), args.n, replace=False)
    ]
    samples = SymmCD.from_pretrained(args.weights).sample(args.n, seed=args.seed)
    rows = list(rows_of("real held-out crystals", real, None, scale, potential, cache, args.relaxations))
    rows += rows_of(
        args.weights,
        [s.crystal for s in samples],
        [s.unit for s in samples],
        scale,
        potential,
        cache,
        args.relaxations,
    )
    write_rows(args.out, COLUMNS, [*rows, *peer_rows()])


if __name__ == "__main__":
    main()
