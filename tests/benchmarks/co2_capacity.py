"""Write matgen_nb/data/co2_capacities.csv: CO2 working capacities of training frameworks and of designed ones, by GCMC.

    python tests/benchmarks/co2_capacity.py random -n 150      training frameworks, drawn at random
    python tests/benchmarks/co2_capacity.py designed -n 60     frameworks of chosen and of random latent vectors
    python tests/benchmarks/co2_capacity.py again              longer runs where the error exceeds a tenth of the capacity
    python tests/benchmarks/co2_capacity.py table              the file, from what was measured

One line a framework: set (random; selected, prior: of designed and of random latent vectors), name, valid, uptake, residual,
working_capacity (mol/kg) and their errors (half-widths of 95 % intervals), predicted (by the regressor on latent vectors),
seconds of CPU. Protocol for all: vacuum swing "pure" (CO2 at 298 K and 0.15 bar, then at 363 K and 0.1 bar, without the
nitrogen of Boyd et al. 2019), UFF and TraPPE, charges by extended charge equilibration, rigid, not relaxed. Atoms of training
frameworks are put together from their blocks, as those of designed ones are. About ten seconds of an idle core each, so about
three quarters of an hour for 270; each result is kept in --work at once, and a run that was stopped goes on.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from kept import Kept

from matgen_nb.mofdiff.adsorption import AdsorptionOptions, working_capacity
from matgen_nb.mofdiff.assembly import AssemblyOptions, assemble
from matgen_nb.mofdiff.charges import equilibrated_charges
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.utils import MatgenError

FILE = Path(__file__).parents[2] / "matgen_nb" / "data" / "co2_capacities.csv"
COLUMNS = ("set", "name", "valid", "predicted", "uptake", "uptake_error", "residual", "residual_error")
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


def of_training(data, i, kept):
    "The row of one training framework, put together from its blocks."
    name = data.names[i]

    def step():
        built = assemble(data[i], options=ASSEMBLY)
        if built.crystal is None or not built.row["assembled"]:
            return dict(failure="its blocks were not put together")
        return measured(built.crystal) | dict(crystal=plain_crystal(built.crystal))

    return dict(set="random", name=name, index=i) | kept(f"random-{i}", step)


def random_set(n, work):
    "n training frameworks at random, one after another; those without a number are replaced by the next."
    data, kept, done = embedded_mofs(), Kept(work / "results"), 0
    for i in np.random.default_rng(SEED).permutation(len(data)).tolist():
        row = of_training(data, i, kept)
        done += "failure" not in row
        capacity = (
            "{working_capacity:.3f} +- {working_capacity_error:.3f}".format(**row)
            if "failure" not in row
            else row["failure"]
        )
        print(done, row["name"], capacity, row.get("cpu_seconds"), flush=True)
        if done == n:
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["random", "designed", "again", "table"])
    parser.add_argument("-n", type=int, default=150)
    parser.add_argument("--work", type=Path, default=Path("co2-capacity"))
    args = parser.parse_args()
    if args.what == "random":
        random_set(args.n, args.work)
