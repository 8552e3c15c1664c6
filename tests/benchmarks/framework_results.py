#!/usr/bin/env python
"""Write matgen_nb/data/framework_results.csv and framework_properties.csv: the measurements behind lesson 4.47.

    matgen sample mofdiff -n 500 --seed 0 --new-net-share 0 --no-relax --starts 32 --generations 2 --device cpu --out nets
    matgen sample mofdiff -n 500 --seed 0 --net-share 0 --no-relax --starts 32 --generations 2 --device cpu --out alone
    matgen sample mofdiff -n 300 --seed 0 --new-net-share 1 --no-relax --starts 32 --generations 2 --device cpu --out new_nets
    python tests/benchmarks/framework_results.py --runs nets new_nets --relax 60 --uptake 0 --timing 40
    python tests/benchmarks/framework_results.py --runs alone --relax 0 --uptake 0
    matgen sample mofdiff --weights mofdiff-core-mof -n 200 --seed 0 --new-net-share 0 --no-relax ... --out core_nets
    python tests/benchmarks/mofchecker_check.py core_nets/assembled mofchecker.json --first 50
    python tests/benchmarks/framework_results.py --weights mofdiff-core-mof --runs core_nets --mofchecker mofchecker.json \
        --data prepared.safetensors --relax 50 --uptake 0 --timing 40

framework_results.csv has one line a figure (model, relaxed, blocks, figure, value, low, high, n, protocol): shares of all samples
with 95 % Wilson intervals, before relaxation and, of the first --relax samples, after it; how many of the valid ones have more
than eight blocks, and of all samples more than two kinds of linker or more than one of metal, beside the same shares of the
training data (model "data of WEIGHTS"; --data: the prepared file, else the set that ships); CPU seconds a framework for sampling
and assembly (--timing). framework_properties.csv has one line a framework: density, pores, and CO2 working capacities in mol/kg,
without charges of the framework. co2_henry: Henry's law with Widom insertion, of the first --uptake valid frameworks of a run and
of every real one (--real FOLDER_OF_CIF_FILES) that passes the checks. co2_gcmc: grand-canonical Monte Carlo (the extra gcmc) of
the --gcmc with the highest co2_henry of each set. Lines of runs that are not named stay as they are, and so do uptakes of
frameworks of the same run that are not computed again (--uptake 0). What has been measured is kept in --work, so that a run that
was stopped goes on.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from kept import Kept, rows_but, write_rows
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.mofdiff.bonds import TEXTBOOK, Mof, textbook_crystal
from matgen_nb.mofdiff.evaluation import describe_mof, funnel
from matgen_nb.mofdiff.gas_uptake import GcmcOptions, co2_working_capacity, henry_coefficient
from matgen_nb.mofdiff.net_first_sampling import framework_model
from matgen_nb.mofdiff.pipeline import (
    PipelineOptions,
    Results,
    assemble_stage,
    evaluate_results,
    evaluate_stage,
    known_frameworks,
    numbered,
    relax_stage,
)
from matgen_nb.mofdiff.sampling import MofSamplingOptions, NetOptions
from matgen_nb.scale.mof_runs import FolderResults
from matgen_nb.utils import MatgenError, share, wilson

DATA = Path(__file__).resolve().parents[2] / "matgen_nb" / "data"
RESULTS = ("model", "relaxed", "blocks", "figure", "value", "low", "high", "n", "protocol")
CO2 = ("co2_henry", "co2_henry_error", "co2_gcmc", "co2_gcmc_error")
PROPERTIES = ("set", "name", "num_blocks", "valid", "novel", "density", "void_fraction", "lcd", "pld", *CO2)
FROM_EVALUATION = ("name", "valid", "novel", "density", "void_fraction", "lcd", "pld")
IN_REAL = ("checks_passed", "num_blocks", "density", "void_fraction", "lcd", "pld")
BAR = 1e5  # Pa


def relaxed_results(run, work, names, limit):
    "FolderResults in `work` with the assembled frameworks of a run, relaxed and evaluated."
    results = FolderResults(work)
    for name in names:
        if not results.done("assembled", name):
            results.begin("assembled", [name])
            results.save("assembled", name, run.load("assembled", name))
    options = PipelineOptions(relax_limit=limit)
    relax_stage(names, results, options)
    evaluate_stage(names, results, options)
    return results


def tables_of(folder, weights, work, relax, limit=120.0):
    "{False: table before relaxation, True: table of the first `relax` after it} and summaries, of a run."
    run, (known, nets) = FolderResults(folder), known_frameworks(framework_model(weights))
    rows = [s.row for s in run.all_samples()]
    found = {False: evaluate_results(rows, run, False, known, nets)}
    if relax:
        after = relaxed_results(run, work, [row["name"] for row in rows[:relax]], limit)
        found[True] = evaluate_results(rows[:relax], after, True, known, nets)
    return run, found


def result_rows(model, evaluations):
    "Lines of framework_results.csv: the funnel by number of blocks, and every share of the summary."
    for relaxed, evaluation in evaluations.items():
        lines = [row | dict(figure=row["stage"]) for row in funnel(evaluation.table)]
        done = {line["figure"] for line in lines}
        lines += [
            entry | dict(figure=name, blocks="all")
            for name, entry in evaluation.summary.items()
            if name not in done
        ]
        for line in lines:
            numbers = {k: f"{line[k]:.4g}" for k in ("value", "low", "high")}
            about = {k: line[k] for k in ("blocks", "figure", "n", "protocol")}
            yield dict(model=model, relaxed=relaxed) | about | numbers


MANY = {
    "more_than_8_blocks": "more than 8 blocks in the cell; of the valid ones",
    "more_than_2_linkers": "more than two kinds of linker, by formula; all samples",
    "more_than_1_metal": "more than one kind of metal block, by formula; all samples",
}


def variety(sizes, linkers, metals):
    "Shares of frameworks with many blocks (of `sizes`) and many kinds of blocks, as lines."
    values = [k > 8 for k in sizes], [k > 2 for k in linkers], [k > 1 for k in metals]
    for (figure, words), found in zip(MANY.items(), values):
        yield dict(blocks="all", figure=figure, relaxed=False) | share(found, words)


def variety_rows(model, table):
    "Lines of a run: how many blocks the valid ones have, and how many kinds of block the samples."
    kinds = lambda name: [len(row[name].split()) for row in table]
    sizes = [row["sampled_blocks"] for row in table if row["valid"]]
    for row in variety(sizes, kinds("linkers"), kinds("metals")):
        yield dict(model=model) | row


def data_rows(weights, path=None):
    "The same lines of training data: a prepared file, else the set that ships."
    data = MofData.load(path) if path else embedded_mofs()
    formulas = [(b.is_metal, b.formula) for b in data.library]
    used = [{formulas[b] for b in part.tolist()} for part in data.block.split(data.num_blocks.tolist())]
    count = lambda kind: [sum(is_metal == kind for is_metal, _ in found) for found in used]
    for row in variety(data.num_blocks.tolist(), count(False), count(True)):
        yield dict(model=f"data of {weights}") | row


def timing_row(model, weights, n, options):
    "CPU seconds a framework of sampling and assembly, one thread."
    run = framework_model(weights)
    sampling = MofSamplingOptions(nets=NetOptions(**options), progress=False)
    run.sample(2, seed=1, options=sampling)
    begin = time.process_time()
    samples = numbered(run.sample(n, seed=0, options=sampling))
    each = [(time.process_time() - begin) / n]
    for k in range(n):
        begin = time.process_time()
        assemble_stage(samples[k : k + 1], Results(), options=PipelineOptions(sampling=sampling))
        each.append(time.process_time() - begin)
    value, error = each[0] + np.mean(each[1:]), 1.96 * np.std(each[1:], ddof=1) / math.sqrt(n)
    protocol = (
        "CPU s a framework, sampling and assembly without relaxation, one thread, default options; mean"
    )
    about = dict(model=model, relaxed=False, blocks="all", figure="cpu_seconds", protocol=protocol, n=n)
    numbers = dict(value=value, low=value - error, high=value + error)
    return about | {k: f"{v:.3g}" for k, v in numbers.items()}


def outside_row(model, path, first):
    "The line of the shares that pass MOFChecker, of the first samples: what has no file counts as failed."
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    passed = sum(found.get(name) == [] for name in first)
    low, high = wilson(passed, len(first))
    protocol = "MOFChecker 0.9.6 without charges and exposed metals, before relaxation; 95 % Wilson interval"
    numbers = dict(value=passed / len(first), low=low, high=high, n=len(first))
    return dict(model=model, relaxed=False, blocks="all", figure="mofchecker", protocol=protocol) | numbers


def capacity_by_henry(crystal, n=2000):
    "(mol/kg, standard error): 0.15 bar at 298 K minus 0.1 bar at 363 K, both by Henry's law."
    up, left = henry_coefficient(crystal, n=n), henry_coefficient(crystal, temperature=363.0, n=n)
    value = 0.15 * BAR * up.value - 0.1 * BAR * left.value
    return value, math.hypot(0.15 * BAR * up.error, 0.1 * BAR * left.error)


def henry_row(crystal):
    "The working capacity of a framework by Henry's law, as columns."
    return dict(zip(("co2_henry", "co2_henry_error"), capacity_by_henry(crystal)))


def generated_rows(model, run, evaluation, kept, most):
    "(row, crystal) of the frameworks of a run whose bonds are all formed; uptake of the first `most` valid ones."
    valid = [row["name"] for row in evaluation.table if row["valid"]][:most]
    for row in evaluation.table:
        if row["assembled"]:
            crystal = run.load("assembled", row["name"]).mof.crystal
            about = dict(set=model, num_blocks=row["sampled_blocks"]) | {k: row[k] for k in FROM_EVALUATION}
            if row["name"] in valid:
                about |= kept(f"henry-{model}-{row['name']}", lambda: henry_row(crystal))
            yield about, crystal


def real_crystals(folder):
    "(name, Crystal) of the textbook frameworks and of the CIF files of a folder that can be read."
    yield from ((name, textbook_crystal(name)) for name in TEXTBOOK)
    for path in sorted(Path(folder).glob("*.cif")) if folder else ():
        try:
            yield path.stem, Mof.from_cif(path).crystal
        except (MatgenError, ValueError) as error:
            print(f"{path.name}: {error}")


def real_rows(folder, kept):
    "(row, crystal) of real frameworks that pass all checks."
    for name, crystal in real_crystals(folder):
        found = kept(f"real-{name}", lambda: {k: v for k, v in describe_mof(crystal).items() if k in IN_REAL})
        if found["checks_passed"]:
            row = dict(set="real", name=name, valid=True, **found)
            yield row | kept(f"henry-real-{name}", lambda: henry_row(crystal)), crystal


def add_gcmc(pairs, most, kept):
    "GCMC capacities of the `most` valid frameworks with the highest capacity by Henry's law."
    pairs = [pair for pair in pairs if pair[0].get("co2_henry") is not None]
    for row, crystal in sorted(pairs, key=lambda pair: -pair[0]["co2_henry"])[:most]:
        options = GcmcOptions(cycles=1000, start_cycles=300)
        try:
            found = kept(
                f"gcmc-{row['set']}-{row['name']}", lambda: co2_working_capacity(crystal, None, options)
            )
        except MatgenError as error:
            print(f"{row['name']}: {error}")
            continue
        row |= dict(co2_gcmc=found["working_capacity"], co2_gcmc_error=found["working_capacity_error"])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", nargs="+", required=True, help="folders of matgen sample mofdiff --no-relax"
    )
    parser.add_argument("--weights", default="mofdiff-small", help="weights that made the runs")
    parser.add_argument(
        "--mofchecker", help="what mofchecker_check.py wrote of the first frameworks of a run"
    )
    parser.add_argument("--real", help="folder of CIF files of real frameworks")
    parser.add_argument("--relax", type=int, default=20, help="how many of each run are relaxed")
    parser.add_argument(
        "--relax-limit", type=float, default=120.0, help="s by the clock, more on a busy machine"
    )
    parser.add_argument(
        "--uptake", type=int, default=80, help="of how many valid ones of each run CO2 is computed"
    )
    parser.add_argument(
        "--data", help="prepared file that --weights were trained on; else the set that ships"
    )
    parser.add_argument("--timing", type=int, default=0, help="how many samples of each run are timed")
    parser.add_argument("--gcmc", type=int, default=0, help="how many of each set are simulated")
    parser.add_argument("--work", default="framework-results", help="folder for what has been measured")
    parser.add_argument("--out", default=DATA)
    args = parser.parse_args()
    kept, results, sets = Kept(Path(args.work) / "kept"), [], []
    for folder in args.runs:
        model = Path(folder).name
        work = Path(args.work) / f"relaxed-{model}"
        run, evaluations = tables_of(folder, args.weights, work, args.relax, args.relax_limit)
        results += [*result_rows(model, evaluations), *variety_rows(model, evaluations[False].table)]
        if args.timing:
            request = json.loads((Path(folder) / "request.json").read_text(encoding="utf-8"))
            nets = request.get("sampling", request)["nets"]
            results.append(timing_row(model, args.weights, args.timing, nets))
        if args.mofchecker:
            seen = json.loads(Path(args.mofchecker).read_text(encoding="utf-8"))
            first = [row["name"] for row in evaluations[False].table[: len(seen)]]
            results.append(outside_row(model, args.mofchecker, first))
        sets.append(list(generated_rows(model, run, evaluations[False], kept, args.uptake)))
    if args.real:
        sets.append(list(real_rows(args.real, kept)))
    for pairs in sets if args.gcmc else ():
        add_gcmc(pairs, args.gcmc, kept)
    table, properties = (Path(args.out) / f"framework_{name}.csv" for name in ("results", "properties"))
    results += data_rows(args.weights, args.data)
    measured = (
        {f"data of {args.weights}"}
        | {row["set"] for rows in sets for row, _ in rows}
        | {Path(folder).name for folder in args.runs}
    )
    results = rows_but(table, "model", measured) + results
    made = rows_but(properties, "set", measured) + [row for rows in sets for row, _ in rows]
    write_rows(table, RESULTS, results, "{:.4g}")
    write_rows(properties, PROPERTIES, made, "{:.4g}")


if __name__ == "__main__":
    main()
