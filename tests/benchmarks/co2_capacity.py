"""Write matgen_nb/data/co2_capacities.csv: CO2 working capacities of training frameworks and of designed ones, by GCMC.

    python tests/benchmarks/co2_capacity.py random -n 150      training frameworks, drawn at random
    python tests/benchmarks/co2_capacity.py designed -n 60     frameworks of chosen and of random latent vectors
    python tests/benchmarks/co2_capacity.py second -n 64       out of a screened pool, and the same screen without a model
    python tests/benchmarks/co2_capacity.py again              longer runs where the error exceeds a tenth of the capacity
    python tests/benchmarks/co2_capacity.py table              the file, from what was measured

One line a framework: set (random; selected, prior: of designed and of random latent vectors; screened, enumerated: of the
second round), name, net, metals, linkers, valid, novel, unique, predicted (by the regressor on latent vectors, in mol/kg),
rough (`RoughCapacity`, mol/kg), charge (the largest, e), nearest (the shortest distance of two atoms, A), uptake, residual
and working_capacity (mol/kg) with errors (half-widths of 95 % intervals), insertions of each simulation, seconds of CPU, and
the failure where there is no number. Protocol for all: vacuum swing "pure" (CO2 at 298 K and 0.15 bar, then at 363 K and
0.1 bar, without the nitrogen of Boyd et al. 2019), UFF and TraPPE, charges by extended equilibration, rigid, not relaxed,
12 A. Training frameworks are put together from their blocks, as designed ones are; of designed ones those are simulated that
are valid. About six seconds of an idle core each, so half an hour for 288. Each result is kept in --work at once, and a run
that was stopped goes on.

The second round ("screened") learns from everything that the first has simulated: latent vectors are chosen by the
regressor of latent vectors, 24 for each framework; of the samples, those with the best estimate from their blocks are put
together, 3 for each, in 3 rounds; the best by their rough value are evaluated and, where valid, simulated. "enumerated" has
no model: the builder of lessons 4.12 and 4.13, for as many CPU seconds a framework as the screened design took up to there,
and the same rough value. About eight minutes of an idle core for 64 frameworks of either, and as long for their evaluation
and simulation. co2_screens.csv says what the two have looked at, and how long that took.
"""

import argparse
import itertools
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kept import Kept, write_rows

from matgen_nb import MofDiff
from matgen_nb.mofdiff.adsorption import AdsorptionOptions, working_capacity
from matgen_nb.mofdiff.assembly import AssemblyOptions, assemble
from matgen_nb.mofdiff.charges import equilibrated_charges
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.mofdiff.bonds import Mof, neighbour_pairs
from matgen_nb.mofdiff.evaluation import describe_mof
from matgen_nb.mofdiff.latent_regression import encoded, with_property
from matgen_nb.mofdiff.pipeline import PipelineOptions, Results, StageResult, assemble_stage, evaluate_results
from matgen_nb.mofdiff.pipeline import evaluate_stage, numbered, run_stages
from matgen_nb.mofdiff.property_design import DesignOptions, Goal, build_trial, choose_latents
from matgen_nb.mofdiff.sampling import MofSamplingOptions
from matgen_nb.mofdiff.screening import BlockRegressor, RoughCapacity, Screen, ScreenOptions, built_coarse
from matgen_nb.mofdiff.screening import features_of
from matgen_nb.scale.mof_runs import FolderResults
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError

FILE = Path(__file__).parents[2] / "matgen_nb" / "data" / "co2_capacities.csv"
SCREENS = FILE.with_name("co2_screens.csv")
COLUMNS = ("set", "name", "net", "metals", "linkers", "valid", "novel", "unique", "predicted", "rough")
COLUMNS += ("charge", "nearest", "uptake", "uptake_error", "residual", "residual_error")
COLUMNS += ("working_capacity", "working_capacity_error", "insertions", "cpu_seconds", "failure")
OPTIONS = AdsorptionOptions(trials=20000, insertions=3000)
LONGER = AdsorptionOptions(trials=60000, insertions=12000)
ASSEMBLY = AssemblyOptions(starts=32, generations=2)
SEED = 2019
SETS = ("random", "selected", "prior", "screened", "enumerated")
ROUGH = RoughCapacity("pure")
SCREEN = ScreenOptions(pool=24, assembled=3, rounds=3)
STAGES = PipelineOptions(
    MofSamplingOptions(progress=False), assembly=AssemblyOptions(starts=8), relax=False, evaluate_all=True
)
BUILDER_SEED = 54321  # not that of the training set, which would be met again


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


def checked_atoms(row, kept):
    "A row with the rough value of its crystal, the largest charge and the shortest distance of its atoms."
    if "crystal" not in row or row["set"] in ("selected", "prior"):
        return row

    def step():
        crystal = Crystal(**row["crystal"])
        charges = equilibrated_charges(crystal)
        nearest = float(neighbour_pairs(crystal, 3.0)[3].min())
        rough = row["rough"] if "rough" in row else ROUGH(crystal)
        return dict(rough=rough, charge=float(np.abs(charges).max()), nearest=nearest)

    return row | kept(f"atoms-{row['set']}-{row.get('index', row['name'])}", step)


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


def first_latents(model, strategy, n, work):
    "Latent vectors (n, latent) of a strategy of the first round; kept, since longer runs change what is learned."
    goal, how = Goal("working_capacity", 1.0, at_least=True), dict(prior="random").get(strategy, strategy)
    step = lambda: choose_latents(model, how, n, goal, SEED).tolist()
    return torch.tensor(Kept(work / "latents")(strategy, step))


def sampled(model, strategy, n, work):
    "Results of the stages, and evaluated rows, of n frameworks of chosen latent vectors, with their prediction."
    options = PipelineOptions(
        MofSamplingOptions(progress=False), assembly=ASSEMBLY, relax=False, evaluate_all=True
    )
    results = FolderResults(work / strategy)
    z = first_latents(model, strategy, n, work)
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

    columns = ("name", "net", "metals", "linkers", "valid", "novel", "unique", "predicted", "rough")
    about = {k: row[k] for k in columns if k in row}
    return dict(set=strategy) | about | kept(f"{strategy}-{row['name']}", step)


def designed_rows(n, work, strategies=("selected", "prior")):
    "The rows of n frameworks of selected and of n of random latent vectors."
    model, kept = taught_model(list(kept_random(work))), Kept(work / "results")
    for strategy in strategies:
        results, table = sampled(model, strategy, n, work)
        for row in table:
            yield of_design(strategy, row, results, kept)


def first_round(work):
    """What the first round knows: (latent vectors (n, latent), `BlockRegressor`, capacities (n,)) of all
    frameworks that it has simulated."""
    random = [row for row in kept_random(work) if "failure" not in row]
    data = embedded_mofs()
    model = MofDiff.from_pretrained("mofdiff-small").requires_grad_(False)
    z = [encoded(model, data.subset([row["index"] for row in random]))]
    coarse, rows = [data[row["index"]] for row in random], list(random)
    learned = taught_model(random)
    for strategy in ("selected", "prior"):
        results, table = sampled(learned, strategy, 64, work)
        found = [of_design(strategy, row, results, Kept(work / "results")) for row in table]
        good = [i for i, row in enumerate(found) if "failure" not in row]
        z.append(first_latents(learned, strategy, 64, work)[good])
        samples = numbered(results.samples())
        coarse += [built_coarse(samples[i], results) for i in good]
        rows += [found[i] for i in good]
    values = np.array([row["working_capacity"] for row in rows])
    return torch.cat(z), BlockRegressor(features_of(coarse), values), values


def screened_samples(n, work, goal):
    "The n chosen samples of the second design; keeps what it took."
    z, estimate, values = first_round(work)
    start = time.process_time()
    plain = MofDiff.from_pretrained("mofdiff-small").requires_grad_(False)
    model, fit = with_property(plain, "working_capacity", z, values.tolist())
    print(
        f"explained by latent vectors {fit.explained():.2f}, by blocks {estimate.fit.explained():.2f}",
        flush=True,
    )
    results, many = FolderResults(work / "screened"), n * SCREEN.pool
    if results.samples() is None:
        (work / "screened").mkdir(parents=True, exist_ok=True)
        how = DesignOptions(screen=Screen(goal, estimate, ROUGH, SCREEN))
        z = choose_latents(model, "selected", many, goal, SEED + 1, how)
        results.save_samples(numbered(model.sample(many, seed=SEED + 1, z=z, options=STAGES.sampling)))
    samples = numbered(results.samples())
    print(f"{many} samples after {time.process_time() - start:.0f} s", flush=True)
    assemble = partial(assemble_stage, results=results, seed=SEED + 1, options=STAGES)
    chosen = Screen(goal, estimate, ROUGH, SCREEN)(samples, n, results, assemble)
    seconds = time.process_time() - start
    tried = sum(results.done("assembled", s.row["name"]) for s in samples)
    rough = sum(results.done("screened", s.row["name"]) for s in samples)
    about = dict(set="screened", chosen=n, looked_at=many, put_together=tried, rough=rough, seconds=seconds)
    Kept(work / "results")("about-screened", lambda: about)
    return chosen


def screened_rows(n, work, goal):
    "The rows of the second design."
    kept, results = Kept(work / "results"), FolderResults(work / "screened")
    pick = lambda: {s.row["name"]: s.row.get("rough") for s in screened_samples(n, work, goal)}
    chosen = kept("chosen-screened", pick)  # kept, since longer runs change what is learned
    rows = {s.row["name"]: s.row for s in numbered(results.samples())}
    evaluate_stage(list(chosen), results, STAGES)
    known = MofDiff.from_pretrained("mofdiff-small").info["identities"]
    mine = [rows[name] | dict(rough=value) for name, value in chosen.items()]
    for row in evaluate_results(mine, results, False, known).table:
        row["predicted"] = row["predicted_working_capacity"]
        yield of_design("screened", row, results, kept)


def enumeration(n, seconds):
    "What the builder makes in so many CPU seconds: its n best by rough value, and how much it looked at."
    start, found, trials = time.process_time(), {}, 0
    while time.process_time() - start < seconds:
        mof = build_trial((BUILDER_SEED, trials), f"built_{trials:06d}")
        trials += 1
        if mof is not None:
            try:
                value = ROUGH(mof.crystal)
            except MatgenError:
                continue
            key = mof.crystal.formula, round(mof.crystal.density, 3)
            found.setdefault(key, (value, mof))
    best = sorted(found.values(), key=lambda pair: -pair[0])[:n]
    about = dict(set="enumerated", chosen=n, looked_at=trials, put_together=len(found), rough=len(found))
    return best, about | dict(seconds=time.process_time() - start)


def plain_mof(mof):
    "A Mof as JSON has it."
    return dict(
        name=mof.name, **plain_crystal(mof.crystal), bonds=mof.bonds.tolist(), images=mof.images.tolist()
    )


def enumerated_rows(n, work):
    "The rows of the enumerated frameworks; for each the seconds that one of the screened design took."
    kept = Kept(work / "results")

    def step():
        designed = kept("about-screened", dict)
        mofs, about = enumeration(n, designed["seconds"] * n / designed["chosen"])
        return dict(mofs=[plain_mof(mof) | dict(rough=value) for value, mof in mofs], about=about)

    made, results, rows = kept("enumeration", step), Results(), []
    kept("about-enumerated", lambda: made["about"])
    for one in made["mofs"]:
        crystal = Crystal(one["lattice"], one["elements"], one["frac_coords"])
        mof = Mof(crystal, np.array(one["bonds"]), np.array(one["images"]), one["name"])
        row = dict(name=mof.name, bond_success=1, assembled=True, clashes=0)
        results.save("assembled", mof.name, StageResult(row, mof))
        text = kept(f"described-{mof.name}", lambda: describe_mof(mof))
        results.save("evaluated", mof.name, StageResult(dict(assembled=text)))
        about = dict(matched=True, reason="", num_atoms=len(crystal), rough=one["rough"])
        rows.append(dict(name=mof.name) | about)
    known = MofDiff.from_pretrained("mofdiff-small").info["identities"]
    for row in evaluate_results(rows, results, False, known).table:
        yield of_design("enumerated", row, results, kept)


def second_rows(n, work, sets=("screened", "enumerated")):
    "The rows of the second round."
    goal = Goal("working_capacity", 1.0, at_least=True)
    if "screened" in sets:
        yield from screened_rows(n, work, goal)
    if "enumerated" in sets:
        yield from enumerated_rows(n, work)


def again(work, seconds):
    "Longer runs of what has a large error, the largest capacities first, for so many seconds."
    start, found = time.monotonic(), (work / "results").glob("*-*.json")
    files = sorted(p for p in found if p.stem.split("-")[0] in SETS)
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
    kept = Kept(work / "results")
    rows = [*kept_random(work), *designed_rows(n, work), *second_rows(n, work)]
    rows = [checked_atoms(row, kept) for row in rows]
    for row in rows:
        row.pop("crystal", None)
    write_rows(FILE, COLUMNS, rows, "{:.4g}")
    about = [kept(f"about-{name}", dict) for name in ("screened", "enumerated")]
    write_rows(SCREENS, ("set", "chosen", "looked_at", "put_together", "rough", "seconds"), about, "{:.4g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["random", "designed", "second", "again", "table"])
    parser.add_argument("-n", type=int, default=150)
    parser.add_argument("--work", type=Path, default=Path("co2-capacity"))
    parser.add_argument("--strategies", nargs="+", help="of `designed` or `second`, some of them")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of `again`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    makers = dict(random=random_rows, designed=designed_rows, second=second_rows)
    if args.what in makers:
        some = [args.strategies] if args.strategies else []
        count = args.n * (1 if args.what == "random" else len(args.strategies or "ab"))
        print(
            f"{count} frameworks, about {count * 6 / 3600:.2f} hours of an idle core to simulate", flush=True
        )
        for one in makers[args.what](args.n, args.work, *some):
            print(line_of(one), flush=True)
    elif args.what == "again":
        again(args.work, args.seconds)
    else:
        write_file(args.n, args.work)
