"""The experiment behind two rows of the card of symmcd-mp20-small: the size of the network, and loss weights by noise level.

    python tests/benchmarks/size_and_weights.py TRAIN.safetensors HELD_OUT.safetensors \\
        [--steps 5000] [--requests 600] [--folder size-and-weights] [--out size_and_weights.csv]

TRAIN and HELD_OUT are what `matgen prepare crystals` writes. Every way has the same data, batches, learning rate and seed,
and one structure for each request. The three sizes get equal CPU time: the steps of the middle one are --steps, those of
the others follow from the CPU seconds of a step, measured alternately before the trainings. The ways of weighting get equal
steps; a weight w(t) multiplies the geometry losses of a crystal at noise time t, and has the mean 1 over the times.
The even rows of HELD_OUT watch the training, the odd ones are predicted: match rates with sites and elements given.
Trainings take about seven minutes of one CPU thread each and go on where they stopped; a way that is done is not repeated.
"""

import argparse
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from kept import Kept, write_rows
from noise_times import predictions

from matgen_nb import SymmCD
from matgen_nb.scale.training import TrainConfig, Trainer
from matgen_nb.symmcd.dataset import CrystalData
from matgen_nb.symmcd.model import crystal_statistics

SIZES = {"128 x 3": (128, 3), "192 x 4": (192, 4), "96 x 3": (96, 3)}
"Width and number of layers of the three sizes."
BASE = "128 x 3"
WEIGHTS = {
    "low noise counts more": lambda t: 2 * (1 - t),
    "high noise counts more": lambda t: 2 * t,
}
"w(t) for t in [0, 1], by way of weighting."
ORDER = ("128 x 3", "192 x 4", *WEIGHTS, "96 x 3")
COLUMNS = ("way", "parameters", "steps", "figure", "value", "low", "high", "n")
BATCH = 128


@contextmanager
def weighed_by_noise(weight):
    "Within it the errors of lattice and coordinates of each crystal are multiplied by weight(t), in every SymmCD."
    plain = SymmCD.stage_losses

    def weighted(self, state, targets):
        errors = plain(self, state, targets)
        w = weight(state.t)
        return errors | dict(k=errors["k"] * w, x=errors["x"] * w)

    SymmCD.stage_losses = weighted
    try:
        yield
    finally:
        SymmCD.stage_losses = plain


def new_model(size, train_data):
    "An untrained model of a size, with the statistics of the training data."
    torch.manual_seed(0)
    width, layers = SIZES[size]
    config = replace(
        SymmCD.from_pretrained("symmcd-mp20-small").config, width=width, layers=layers, dropout=0.0
    )
    return SymmCD(config, crystal_statistics(train_data))


def settings_for(steps):
    return TrainConfig(
        steps=steps,
        batch_size=BATCH,
        lr=1e-3,
        warmup_steps=200,
        val_every=2000,
        ema_decay=0.999,
        device="cpu",
    )


def seconds_of_a_step(models, train_data, rounds=12):
    "CPU seconds of one training step of each model: the median over rounds in which the models take turns."
    found = {name: [] for name in models}
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        rows = torch.randint(len(train_data), (BATCH,), generator=generator)
        batch = train_data.select(rows)
        for name, model in models.items():
            start = time.process_time()
            model.loss(batch, generator)["loss"].backward()
            found[name].append(time.process_time() - start)
            model.zero_grad()
    return {name: float(np.median(values)) for name, values in found.items()}


def trained(model, train_data, watched, folder, steps):
    "The averaged model after so many steps; an unfinished training goes on where it stopped."
    weights = Path(folder) / "weights.safetensors"
    if not weights.exists():
        trainer = Trainer(model, train_data, settings_for(steps), folder, val=watched)
        trainer.fit(resume=(Path(folder) / "last.safetensors").exists())
        if trainer.step < steps:
            raise SystemExit(
                f"stopped after {trainer.step} of {steps} steps; run the same command again to go on"
            )
        trainer.ema_model.save_pretrained(str(weights))
    return SymmCD.from_pretrained(str(weights)).eval()


def ways(train_data, steps, kept):
    "(name, size, w(t), steps) of each way."
    cost = kept(
        "seconds", lambda: seconds_of_a_step({s: new_model(s, train_data) for s in SIZES}, train_data)
    )
    print("CPU seconds a step:", {name: round(value, 3) for name, value in cost.items()}, flush=True)
    for name in ORDER:
        size = name if name in SIZES else BASE
        yield (
            name,
            size,
            WEIGHTS.get(name, torch.ones_like),
            round(steps * cost[BASE] / cost[size] / 100) * 100,
        )


def figures_of(model, train_data, held_out, n):
    "Match rates and errors of ln V as plain rows (figure, value, low, high, n)."
    found = predictions(model, train_data, held_out, n)
    return [
        (figure, *(f"{entry[k]:.4f}" for k in ("value", "low", "high")), entry["n"])
        for figure, entry in found
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train")
    parser.add_argument("held_out")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--folder", default="size-and-weights")
    parser.add_argument("--out", default="size_and_weights.csv")
    args = parser.parse_args()
    train_data, held_out = CrystalData.load(args.train), CrystalData.load(args.held_out)
    watched = held_out.subset(list(range(0, len(held_out), 2)))
    kept, rows = Kept(args.folder), []
    for name, size, weight, steps in ways(train_data, args.steps, kept):
        stem = name.replace(" ", "-")
        with weighed_by_noise(weight):
            start = new_model(size, train_data)
            model = trained(start, train_data, watched, Path(args.folder) / stem, steps)
        parameters = sum(p.numel() for p in model.parameters())
        figures = kept(f"{stem}-figures", lambda: figures_of(model, train_data, held_out, args.requests))
        rows += [dict(zip(COLUMNS, (name, parameters, steps, *figure))) for figure in figures]
        write_rows(args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
