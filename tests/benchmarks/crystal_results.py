#!/usr/bin/env python
"""Write matgen_nb/data/crystal_results.csv and crystal_groups.csv: the measurements behind lesson 3.23.

    matgen prepare crystals train.csv.gz --out train.safetensors         # and val.csv.gz -> val.safetensors
    matgen sample symmcd -n 1000 --seed 0 --device cpu --out default
    matgen sample symmcd -n 1000 --seed 0 --balance 0 --templates 0 --candidates 1 --device cpu --out alone
    matgen sample symmcd -n 1000 --seed 0 --candidates 1 --device cpu --out one
    matgen sample symmcd -n 400 --seed 0 --candidates 8 --device cpu --out eight
    python tests/benchmarks/crystal_results.py --training train.safetensors --held-out val.safetensors \\
        --energies train.csv.gz --samples default alone one eight

crystal_results.csv has one line a figure (model, figure, value, low, high, n, protocol), with 95 % intervals; crystal_groups.csv
one line a space group, with the number of crystals of each set. --energies: the CSV with the columns formation_energy_per_atom
and e_above_hull (lesson 3.20); without it the energies are left out. Match rates are those of the weights that ship, on the
odd rows of the held-out set: options were chosen on the even ones. About fifteen minutes of one CPU thread; what has been
measured is kept in --work, so that a run that was stopped goes on.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from kept import Kept, write_rows
from matgen_nb import SymmCD
from matgen_nb.scale.crystal_evaluation import read_crystals, training_reference
from matgen_nb.scale.crystal_runs import load_data
from matgen_nb.symmcd.energy import EnergyOptions, evaluate_energies, match_rates
from matgen_nb.symmcd.evaluation import evaluate_crystals, jensen_shannon, prepare_reference, resampled
from matgen_nb.symmcd.hull import energy_reference, energy_scale
from matgen_nb.symmcd.potential import EnergyCache, default_cache, get_potential
from matgen_nb.symmcd.reverse import SamplingOptions
from matgen_nb.symmetry.normalizers import canonical_label
from matgen_nb.utils import share

DATA = Path(__file__).resolve().parents[2] / "matgen_nb" / "data"
COLUMNS = ("model", "figure", "value", "low", "high", "n", "protocol")
METRICS = ("validity", "distributions", "symmetry", "uniqueness", "novelty", "templates")
SEEN = ((0, 0), (1, 1), (2, 9), (10, 99), (100, 10**9))
"How often a template occurs in the training set: the bins of the lesson's histogram, first and last."


def canonical_counts(units):
    "How often each Wyckoff template occurs among AsymmetricUnits, up to the choice of origin and axes."
    return Counter(canonical_label(u.wyckoff_template) for u in units)


def template_rows(templates, counts):
    "Figures: shares of the crystals whose template occurs so often in the training set."
    seen = [counts[canonical_label(t)] for t in templates]
    for low, high in SEEN:
        name = f"{low}" if low == high else f"{low} to {high}" if high < 10**9 else f"{low} and more"
        what = "crystals by how often their template, up to origin and axes, occurs in the training set"
        yield f"template seen {name}", share([low <= s <= high for s in seen], what)


def summary_of(crystals, names, reference, known, counts):
    "Summary of `evaluate_crystals` with the histogram of templates, and the groups that spglib finds."
    result = evaluate_crystals(
        crystals, reference, METRICS, n_jobs=1, training=known, names=names, progress=False
    )
    groups = [row["space_group@0.1"] for row in result.table if row.get("space_group@0.1")]
    templates = [row["template"] for row in result.table if row.get("template")]
    return result.summary | dict(template_rows(templates, counts)), groups


def real_rows(held, training, counts, n, seed=0):
    "What real crystals reach: templates of the held-out set, and its distance from `samples_per_latent` training crystals."
    units = [held[i] for i in range(len(held))]
    yield from template_rows([u.wyckoff_template for u in units], counts)
    new = [counts[canonical_label(u.wyckoff_template)] == 0 for u in units]
    yield (
        "new_template_share",
        share(new, "up to the choice of origin and axes; absent from the training set"),
    )
    groups = np.array([u.space_group for u in units])
    yield "p1_share@0.1", share(groups == 1, "as prepared, symprec 0.1 A")
    rng, histogram = np.random.default_rng(seed), lambda g: np.bincount(g, minlength=231)[1:]
    q, trained = histogram(groups), np.array([training[i].space_group for i in range(len(training))])
    found = resampled(lambda x: jensen_shannon(histogram(x), q), rng.choice(trained, n, False), rng)
    text = (
        f"{n} training crystals against the held-out set, symprec 0.1 A; +-1.96 bootstrap standard deviations"
    )
    yield "space_group_jsd@0.1", dict(zip(("value", "low", "high"), found), n=n, protocol=text)


def match_units(held, training, n):
    "(held-out units, training units) for the match rates: odd rows of the held-out set, seed 1."
    rng = np.random.default_rng(1)
    return (
        [held[int(i)] for i in rng.permutation(np.arange(1, len(held), 2))[:n]],
        [training[int(i)] for i in rng.permutation(len(training))[:n]],
    )


def matches(model, units):
    "Summary of `match_rates` of predictions for units."
    found = model.predict(units, options=SamplingOptions(progress=False))
    return match_rates([s.crystal for s in found], units, progress=None).summary


def energies_of(crystals, table, n):
    "Summary of the energies of the first n crystals; units are found with symprec 0.1."
    potential = get_potential("chgnet")
    cache = EnergyCache(default_cache(potential))
    scale = energy_scale(energy_reference(table), potential, cache=cache)
    options = EnergyOptions(progress=False)
    return evaluate_energies(crystals[:n], scale, potential, None, cache, options).summary


def measured(args):
    "({model: summary}, {model: space groups})."
    kept = Kept(args.work)
    training, held = load_data(args.training), load_data(args.held_out)
    units = [training[i] for i in range(len(training))]
    counts, known = canonical_counts(units), training_reference(training)
    summaries, groups = {}, {"training": [u.space_group for u in units]}
    groups["held-out"] = [held[i].space_group for i in range(len(held))]
    reference = prepare_reference(
        [held[i].to_crystal() for i in range(len(held))],
        cache=Path(args.work) / "reference.npz",
        fingerprints=False,
        n_jobs=1,
        progress=False,
    )
    folders = {Path(f).name: read_crystals(f, 1)[:2] for f in args.samples}
    n = len(next(iter(folders.values()))[0])
    summaries["held-out"] = kept("held-out", lambda: dict(real_rows(held, training, counts, n)))
    for name, (crystals, names) in folders.items():
        found = kept(name, lambda: summary_of(crystals, names, reference, known, counts))
        summaries[name], groups[name] = found
    model = SymmCD.from_pretrained(args.weights)
    for what, requested in zip(("held-out", "training"), match_units(held, training, args.matches)):
        found = kept(f"match-{what}", lambda: matches(model, requested))
        summaries.setdefault("default", {}).update({f"{k}, {what}": v for k, v in found.items()})
    if args.energies:
        chosen = np.random.default_rng(0).choice(len(held), min(args.n, len(held)), replace=False)
        folders["held-out"] = [held[int(i)].to_crystal() for i in chosen], None
        for name, (crystals, _) in folders.items():
            summaries[name] |= kept(f"energies-{name}", lambda: energies_of(crystals, args.energies, args.n))
    return summaries, groups


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", required=True, help="prepared crystals")
    parser.add_argument("--held-out", required=True, help="prepared crystals")
    parser.add_argument("--samples", nargs="+", required=True, help="folders of matgen sample symmcd")
    parser.add_argument("--energies", help="CSV of the training crystals with their energies")
    parser.add_argument("--weights", default="symmcd-mp20-small", help="for the match rates")
    parser.add_argument("--matches", type=int, default=600, help="crystals for each match rate")
    parser.add_argument("-n", type=int, default=400, help="crystals whose energies are computed")
    parser.add_argument("--work", default="crystal-results", help="folder for what has been measured")
    parser.add_argument("--out", default=DATA)
    args = parser.parse_args()
    summaries, groups = measured(args)
    rows = [
        dict(model=model, figure=figure, n=e["n"], protocol=e["protocol"])
        | {k: f"{e[k]:.4g}" for k in ("value", "low", "high")}
        for model, summary in summaries.items()
        for figure, e in summary.items()
    ]
    write_rows(Path(args.out) / "crystal_results.csv", COLUMNS, rows)
    counted = {model: Counter(numbers) for model, numbers in groups.items()}
    table = [
        dict(space_group=g, **{m: c[g] for m, c in counted.items()})
        for g in range(1, 231)
        if any(c[g] for c in counted.values())
    ]
    write_rows(Path(args.out) / "crystal_groups.csv", ("space_group", *counted), table)


if __name__ == "__main__":
    main()
