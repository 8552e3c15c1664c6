"""The experiment behind lesson 3.8: one noise time for all parts against a time for each part, at equal budget.

    python tests/benchmarks/noise_times.py TRAIN.safetensors HELD_OUT.safetensors ENERGIES.csv.gz \\
        [--steps 10000] [--folder noise-times] [--out noise_times.csv]

TRAIN and HELD_OUT are what `matgen prepare crystals` writes; ENERGIES are crystals with the columns
formation_energy_per_atom and e_above_hull (lesson 3.20). Both models have the same width, depth, data, batches,
learning rate, seed and number of steps, and one structure for each request (no choice among candidates).
The even rows of HELD_OUT watch the training, the odd ones are predicted. Trainings take about a quarter of an
hour of one CPU thread each and go on where they stopped; the figures about as long again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from kept import write_rows

from matgen_nb import SymmCD, evaluate_crystals
from matgen_nb.scale.crystal_evaluation import training_reference
from matgen_nb.scale.training import TrainConfig, Trainer
from matgen_nb.symmcd.dataset import CrystalData
from matgen_nb.symmcd.energy import EnergyOptions, evaluate_energies, match_rates
from matgen_nb.symmcd.evaluation import METRICS, prepare_reference
from matgen_nb.symmcd.hull import energy_reference, energy_scale
from matgen_nb.symmcd.model import crystal_statistics
from matgen_nb.symmcd.potential import EnergyCache, default_cache, get_potential
from matgen_nb.symmcd.reverse import SamplingOptions, sample_requests
from matgen_nb.symmcd.staged_sampling import request_like
from matgen_nb.utils import torch_stream

NAMES = {"one time": "symmcd-mp20-common", "a time for each part": "symmcd-mp20-small"}
"The weights whose configuration each way takes (size apart); nothing else of them is used."
OPTIONS = SamplingOptions(candidates=1, progress=False)
COLUMNS = ("model", "figure", "value", "low", "high", "n")


def train(name, train_data, held_out, folder, steps):
    "The averaged model of one way; an unfinished training goes on where it stopped."
    weights = Path(folder) / "weights.safetensors"
    if weights.exists():
        return SymmCD.from_pretrained(str(weights)).eval()
    torch.manual_seed(0)
    config = replace(SymmCD.from_pretrained(NAMES[name]).config, width=128, layers=3, dropout=0.0)
    model = SymmCD(config, crystal_statistics(train_data))
    settings = TrainConfig(
        steps=steps, batch_size=128, lr=1e-3, warmup_steps=200, val_every=2000, ema_decay=0.999, device="cpu"
    )
    trainer = Trainer(model, train_data, settings, folder, val=held_out)
    trainer.fit(resume=(Path(folder) / "last.safetensors").exists())
    if trainer.step < steps:
        raise SystemExit(
            f"stopped after {trainer.step} of {steps} steps; run the same command again to go on"
        )
    trainer.ema_model.save_pretrained(str(weights))
    return trainer.ema_model.eval()


def picked(data, rows, n):
    "n units of `data` among `rows`, in a fixed random order."
    return [data[int(i)] for i in np.random.default_rng(1).permutation(rows)[:n]]


@torch.no_grad()
def put_back(model, units):
    """A `Sample` for the group, Wyckoff positions and elements of each unit; unlike `SymmCD.predict` also for
    models with one noise time."""
    requests, found = [request_like(u) for u in units], [None] * len(units)
    order = sorted(range(len(units)), key=lambda i: (requests[i].num_orbits, i))
    for first in range(0, len(order), OPTIONS.batch_size):
        rows = order[first : first + OPTIONS.batch_size]
        generator = torch_stream(0, "batch", first)
        for i, sample in zip(rows, sample_requests(model, [requests[i] for i in rows], generator, OPTIONS)):
            found[i] = sample
    return found


def predictions(model, train_data, held_out, n):
    "Match rates and errors of ln V with sites and elements given: rows of the table."
    odd = np.arange(1, len(held_out), 2)
    sets = {
        "held out": picked(held_out, odd, n),
        "training": picked(train_data, np.arange(len(train_data)), n),
    }
    for which, units in sets.items():
        found = [s.crystal for s in put_back(model, units)]
        for figure, entry in match_rates(found, units, progress=None).summary.items():
            yield f"{which}: {figure}", entry


def samples(model, reference, training, scale, potential, n):
    "The measures of lesson 3.18 of n samples, and the energies of the first half of them: rows of the table."
    made = model.sample(n, seed=0, options=OPTIONS)
    metrics = tuple(m for m in METRICS if m != "coverage")
    crystals = [s.crystal for s in made]
    found = evaluate_crystals(crystals, reference, metrics, n_jobs=1, progress=False, training=training)
    yield from found.summary.items()
    half = made[: n // 2]
    energies = evaluate_energies(
        [s.crystal for s in half],
        scale,
        potential,
        [s.unit for s in half],
        options=EnergyOptions(progress=False),
    )
    yield from energies.summary.items()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("train", "held_out", "energies"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--folder", default="noise-times")
    parser.add_argument("--out", default="noise_times.csv")
    args = parser.parse_args()
    train_data, held_out = CrystalData.load(args.train), CrystalData.load(args.held_out)
    watched = held_out.subset(list(range(0, len(held_out), 2)))
    potential = get_potential("chgnet")
    cache = EnergyCache(default_cache(potential))
    scale = energy_scale(energy_reference(args.energies), potential, cache=cache)
    real = [held_out[i].to_crystal() for i in range(len(held_out))]
    reference = prepare_reference(real, fingerprints=False, n_jobs=1, progress=False)
    training = training_reference(train_data)
    rows = []
    for name in NAMES:
        folder = f"{args.folder}/{name.replace(' ', '-')}"
        model = train(name, train_data, watched, folder, args.steps)
        figures = [*predictions(model, train_data, held_out, args.requests)]
        figures += samples(model, reference, training, scale, potential, args.samples)
        for figure, entry in figures:
            if isinstance(entry, dict) and entry.get("value") is not None:
                values = (f"{entry[k]:.4f}" for k in ("value", "low", "high"))
                rows.append(dict(zip(COLUMNS, (name, figure, *values, entry["n"]))))
        write_rows(args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
