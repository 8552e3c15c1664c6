#!/usr/bin/env python
"""How many frameworks of the data stay valid when they are relaxed? The control of the relaxed rows of lesson 4.47.

    python tests/benchmarks/relaxed_data.py prepared.safetensors -n 50 --like '.*_clean$' --model real

Frameworks of a prepared file, at random, are put together from their own blocks, beads and cell, relaxed with UFF and
evaluated, all as samples are. --like: a regular expression for their names (those of CoRE MOF end with _clean). Lines of framework_results.csv: the shares of the funnel before and after
relaxation, of all that were chosen. Novelty has no meaning here. What has been measured is kept in --work.
"""

import argparse
import re
from dataclasses import replace

import numpy as np
from framework_results import DATA, RESULTS, result_rows
from kept import rows_but, write_rows
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.decoding import MofSample
from matgen_nb.mofdiff.pipeline import (
    PipelineOptions,
    assemble_stage,
    evaluate_results,
    evaluate_stage,
    relax_stage,
)
from matgen_nb.scale.mof_runs import FolderResults

FIGURES = ("assembled", "clash_free", "valid", "converged", "volume_kept", "connectivity_preserved", "porous")


def chosen(data, n, like, seed):
    "n frameworks at random as samples, named by their numbers."
    order = np.random.default_rng(seed).permutation(len(data)).tolist()
    found = [i for i in order if re.match(like, data.names[i])][:n]
    rows = [dict(index=k, seed=seed, entry=data.names[i]) for k, i in enumerate(found)]
    beads = [replace(data[i], name=f"mof_{k:05d}") for k, i in enumerate(found)]
    return [MofSample(coarse, dict(row, name=coarse.name)) for coarse, row in zip(beads, rows)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="prepared file")
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--like", default="", help="regular expression of names")
    parser.add_argument("--model", required=True, help="name of the lines in the file")
    parser.add_argument("--relax-limit", type=float, default=600.0, help="s by the clock")
    parser.add_argument("--work", default="relaxed-data", help="folder for what has been measured")
    args = parser.parse_args()
    samples, results = chosen(MofData.load(args.data), args.n, args.like, args.seed), FolderResults(args.work)
    options, names = PipelineOptions(relax_limit=args.relax_limit), [s.coarse.name for s in samples]
    assemble_stage(samples, results, options=options)
    relax_stage(names, results, options)
    evaluate_stage(names, results, options)
    rows = [s.row for s in samples]
    found = {when: evaluate_results(rows, results, when, set(), set()) for when in (False, True)}
    lines = [r for r in result_rows(args.model, found) if r["figure"] in FIGURES and r["blocks"] == "all"]
    table = DATA / "framework_results.csv"
    write_rows(table, RESULTS, rows_but(table, "model", {args.model}) + lines, "{:.4g}")


if __name__ == "__main__":
    main()
