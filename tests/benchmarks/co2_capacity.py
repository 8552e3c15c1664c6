"""Write matgen_nb/data/co2_capacities.csv: CO2 working capacities of training frameworks and of designed ones, by GCMC.

    python tests/benchmarks/co2_capacity.py random -n 150      training frameworks, drawn at random
    python tests/benchmarks/co2_capacity.py designed -n 60     frameworks of chosen and of random latent vectors
    python tests/benchmarks/co2_capacity.py again              longer runs where the error exceeds a tenth of the capacity
    python tests/benchmarks/co2_capacity.py table              the file, from what was measured

One line a framework: set (random; selected, prior: of designed and of random latent vectors), name, valid, novel, unique,
predicted (by the regressor on latent vectors, in mol/kg), uptake, residual and working_capacity (mol/kg) with errors (half-widths
of 95 % intervals), insertions of each simulation, seconds of CPU, and the failure where there is no number. Protocol for all:
vacuum swing "pure" (CO2 at 298 K and 0.15 bar, then at 363 K and 0.1 bar, without the nitrogen of Boyd et al. 2019), UFF and
TraPPE, charges by extended equilibration, rigid, not relaxed, 12 A. Training frameworks are put together from their blocks, as
designed ones are; of designed ones those are simulated that are valid. About six seconds of an idle core each, so half an
hour for 288. Each result is kept in --work at once, and a run that was stopped goes on.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from kept import Kept, write_rows

from matgen_nb import MofDiff
from matgen_nb.mofdiff.adsorption import AdsorptionOptions, working_capacity
from matgen_nb.mofdiff.assembly import AssemblyOptions, assemble
from matgen_nb.mofdiff.charges import equilibrated_charges
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.mofdiff.latent_regression import encoded, with_property
from matgen_nb.mofdiff.pipeline import PipelineOptions, evaluate_results, numbered, run_stages
from matgen_nb.mofdiff.property_design import choose_latents, Goal
from matgen_nb.mofdiff.sampling import MofSamplingOptions
from matgen_nb.scale.mof_runs import FolderResults
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError

FILE = Path(__file__).parents[2] / "matgen_nb" / "data" / "co2_capacities.csv"
COLUMNS = (
    "set",
    "name",
    "valid",
    "novel",
    "unique",
    "predicted",
    "uptake",
    "uptake_error",
    "residual",
    "residual_error",
)
COLUMNS += ("working_capacity", "working_capacity_error", "insertions", "cpu_seconds", "failure")
OPTIONS = AdsorptionOptions(trials=20000, insertions=3000)
LONGER = AdsorptionOptions(trials=60000, insertions=12000)
ASSEMBLY = AssemblyOptions(starts=32, generations=2)
SEED = 2019


def measured(crystal, options=OPTIONS):
    "The row of one framework: its capacity, or why there is none."
    start = time.process_time()
    try:
        row = working_capacity(crystal, equilibrated_charges(crystal), "pure", options)
    except (MatgenError, ValueError) as error:
        row = dict(failure=str(error))
    return row | dict(insertions=options.insertions, cpu_seconds=round(time.process_time() - start, 1))


def plain_crystal(crystal):
    "A crystal as JSON has it."
    return {name: getattr(crystal, name).tolist() for name in ("lattice", "elements", "frac_coords")}


def line_of(row):
    "A row in short, for the screen."
    if "failure" in row:
        return f"{row['name']}: {row['failure']}"
    return "{name}: {working_capacity:.3f} +- {working_capacity_error:.3f} mol/kg".format(**row)


def of_training(data, i, kept):
    "The row of one training framework, put together from its blocks."

    def step():
        built = assemble(data[i], options=ASSEMBLY)
        if built.crystal is None or not built.row["assembled"]:
            return dict(failure="its blocks were not put together")
        return measured(built.crystal) | dict(crystal=plain_crystal(built.crystal))

    return dict(set="random", name=data.names[i], index=i) | kept(f"random-{i}", step)


def random_rows(n, work):
    "The rows of n training frameworks at random; those without a number are replaced by the next."
    data, kept, done = embedded_mofs(), Kept(work / "results"), 0
    for i in np.random.default_rng(SEED).permutation(len(data)).tolist():
        row = of_training(data, i, kept)
        done += "failure" not in row
        yield row
        if done == n:
            return


def kept_random(work):
    "The rows of the training frameworks that are measured already."
    there = len(list((work / "results").glob("random-*.json")))
    return itertools.islice(random_rows(there, work), there)


def taught_model(rows):
    "The model that ships, with the capacity learned from the rows of random frameworks."
    good = [row for row in rows if "failure" not in row]
    model = MofDiff.from_pretrained("mofdiff-small").requires_grad_(False)
    z = encoded(model, embedded_mofs().subset([row["index"] for row in good]))
    return with_property(model, "working_capacity", z, [row["working_capacity"] for row in good])[0]


def sampled(model, strategy, n, work):
    "Results of the stages, and evaluated rows, of n frameworks of chosen latent vectors, with their prediction."
    goal = Goal("working_capacity", 1.0, at_least=True)
    options = PipelineOptions(
        MofSamplingOptions(progress=False), assembly=ASSEMBLY, relax=False, evaluate_all=True
    )
    results = FolderResults(work / strategy)
    z = choose_latents(model, "selected" if strategy == "selected" else "random", n, goal, SEED)
    if results.samples() is None:
        (work / strategy).mkdir(parents=True, exist_ok=True)
        results.save_samples(model.sample(n, seed=SEED, z=z, options=options.sampling))
    samples = numbered(results.samples())
    run_stages(samples, results, SEED, options)
    known = model.info["identities"]
    table = evaluate_results([s.row for s in samples], results, False, known).table
    predicted = model.decode_properties(z)[:, -1].tolist()
    return results, [row | dict(predicted=value) for row, value in zip(table, predicted)]


def of_design(strategy, row, results, kept):
    "The row of one designed framework, simulated where it is valid."

    def step():
        mof = results.load("assembled", row["name"]).mof
        if mof is None or not row["assembled"]:
            return dict(failure="its blocks were not put together")
        if not row["valid"]:
            return dict(failure=f"not valid, so not simulated: {row['reason'] or row['failure']}")
        return measured(mof.crystal) | dict(crystal=plain_crystal(mof.crystal))

    about = {k: row[k] for k in ("name", "valid", "novel", "unique", "predicted")}
    return dict(set=strategy) | about | kept(f"{strategy}-{row['name']}", step)


def designed_rows(n, work, strategies=("selected", "prior")):
    "The rows of n frameworks of selected and of n of random latent vectors."
    model, kept = taught_model(list(kept_random(work))), Kept(work / "results")
    for strategy in strategies:
        results, table = sampled(model, strategy, n, work)
        for row in table:
            yield of_design(strategy, row, results, kept)


def again(work, seconds):
    "Longer runs of what has a large error, the largest capacities first, for so many seconds."
    start, files = time.monotonic(), sorted((work / "results").glob("*-*.json"))
    rows = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in files]
    todo = [(p, r) for p, r in rows if "failure" not in r and r["insertions"] < LONGER.insertions]
    todo = [(p, r) for p, r in todo if r["working_capacity_error"] > 0.1 * r["working_capacity"]]
    for path, row in sorted(todo, key=lambda pair: -pair[1]["working_capacity"]):
        if time.monotonic() - start > seconds:
            return
        new = measured(Crystal(**row["crystal"]), LONGER)
        if "failure" not in new:
            path.unlink()
            print(line_of(dict(name=path.stem) | Kept(path.parent)(path.stem, lambda: row | new)), flush=True)


def write_file(n, work):
    "co2_capacities.csv from what was measured."
    rows = [*kept_random(work), *designed_rows(n, work)]
    for row in rows:
        row.pop("crystal", None)
    write_rows(FILE, COLUMNS, rows, "{:.4g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["random", "designed", "again", "table"])
    parser.add_argument("-n", type=int, default=150)
    parser.add_argument("--work", type=Path, default=Path("co2-capacity"))
    parser.add_argument("--strategies", nargs="+", default=["selected", "prior"], help="of `designed`")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of `again`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what in ("random", "designed"):
        count = args.n * (1 if args.what == "random" else len(args.strategies))
        print(f"{count} frameworks, about {count * 6 / 3600:.2f} hours of an idle core", flush=True)
        designed = args.what == "designed"
        rows = (
            designed_rows(args.n, args.work, args.strategies) if designed else random_rows(args.n, args.work)
        )
        for one in rows:
            print(line_of(one), flush=True)
    elif args.what == "again":
        again(args.work, args.seconds)
    else:
        write_file(args.n, args.work)
