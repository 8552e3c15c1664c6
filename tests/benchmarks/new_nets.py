#!/usr/bin/env python
"""Write matgen_nb/data/new_nets.csv: the measurements behind lesson 4.17.

    matgen sample mofdiff -n 500 --seed 0 --new-net-share 1 --no-relax --starts 32 --generations 2 --device cpu --out new_nets
    python tests/benchmarks/new_nets.py --run new_nets --relax 60 --timing 20 --work framework-results/relaxed-new_nets

One line a figure (run, relaxed, blocks, figure, value, low, high, n, protocol): shares of all samples of the run with 95 % Wilson
intervals, before relaxation and, of the first --relax samples, after it; what becomes of the samples for which a new net was
found; CPU seconds a sample, with and without the search. The run "known nets" is taken from framework_results.csv (run "nets"), which
framework_results.py writes from samples with the same options on nets of the training set; --work is its folder.
"""

import argparse
import csv
import time
from pathlib import Path

from framework_results import DATA, result_rows, tables_of
from kept import write_rows
from matgen_nb import MofDiff
from matgen_nb.mofdiff.sampling import MofSamplingOptions, NetOptions
from matgen_nb.utils import share

COLUMNS = ("run", "relaxed", "blocks", "figure", "value", "low", "high", "n", "protocol")
OF_NEW = {
    "assembled": "all bonds formed",
    "valid": "valid",
    "vnu": "valid, novel, unique",
    "strict_vnu": "valid, novel, unique, new net",
}


def known_rows():
    "The lines of the default, nets of the training set, before and after relaxation."
    with (DATA / "framework_results.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "nets"]
    return [dict(row, run="known nets") for row in rows if row["figure"] not in ("cpu_seconds", "mofchecker")]


def outcome_rows(table, relaxed):
    "How many samples have a new net, and what becomes of these."
    new = [row["net_source"] == "new" for row in table]
    about = dict(run="new nets", relaxed=relaxed, blocks="all")
    yield about | dict(figure="on a new net") | share(new, "assembly kept a new net; all inputs")
    chosen = [row for row, is_new in zip(table, new) if is_new]
    for name, what in OF_NEW.items():
        figure = share([bool(row[name]) for row in chosen], f"{what}; of the samples on new nets")
        yield about | dict(blocks="on new nets", figure=name) | figure


def timing_rows(n):
    "CPU seconds a sample until assembly, with and without the search for new nets."
    model = MofDiff.from_pretrained("mofdiff-small")
    for run, part in (("known nets", 0.0), ("new nets", 1.0)):
        options = MofSamplingOptions(nets=NetOptions(new_net_share=part), progress=False)
        model.sample(2, seed=1, options=options)
        begin = time.process_time()
        model.sample(n, seed=0, options=options)
        value = (time.process_time() - begin) / n
        about = dict(run=run, relaxed=False, blocks="all", figure="cpu_seconds", value=value, n=n)
        yield about | dict(protocol=f"sampling without assembly, one thread, {n} samples")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder of matgen sample mofdiff --new-net-share 1")
    parser.add_argument("--relax", type=int, default=0, help="how many samples are relaxed")
    parser.add_argument("--timing", type=int, default=10, help="how many samples are timed")
    parser.add_argument("--work", default="new-nets", help="folder for what has been relaxed")
    args = parser.parse_args()
    _, evaluations = tables_of(args.run, "mofdiff-small", Path(args.work), args.relax)
    rows = [row | dict(run="new nets") for row in result_rows("", evaluations)]
    for relaxed, evaluation in evaluations.items():
        rows += outcome_rows(evaluation.table, relaxed)
    rows += timing_rows(args.timing) if args.timing else []
    write_rows(DATA / "new_nets.csv", COLUMNS, [*known_rows(), *rows], "{:.4g}")


if __name__ == "__main__":
    main()
