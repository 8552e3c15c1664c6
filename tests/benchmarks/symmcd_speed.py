"""Speed of SymmCD beside the released program: training, sampling, projection, preparing, on one CPU thread.

    python tests/benchmarks/symmcd_speed.py [--data prepared.safetensors] [--large] [--csv crystals.csv.gz]

Without --data the embedded set is used. The released figures were measured once on one CPU thread of another machine of this kind,
unmodified, on Materials Project crystals; the last column is the ratio. Times are CPU seconds of this process (on an idle machine: seconds), medians;
the spread is the machine's noise."""

import argparse

import torch

from timing import seconds
from matgen_nb.scale.optimization import TrainConfig, make_optimizer
from matgen_nb.symmcd.dataset import CrystalData, prepare_one
from matgen_nb.symmcd.preparing import prepare, read_crystal_csv
from matgen_nb.symmcd import staged_sampling  # noqa: F401  (gives SymmCD all its methods)
from matgen_nb.symmcd.model import SymmCD, SymmCDConfig, crystal_statistics
from matgen_nb.symmcd.reverse import SamplingOptions, sample_requests
from matgen_nb.symmcd.requests import make_request
from matgen_nb.symmetry.projection import project

RELEASED = {
    "train 256 x 4": 180.0,
    "train 1024 x 8": 13.4,
    "sample 256 x 4": 0.205,
    "sample 1024 x 8": 0.0235,
    "projection": 1 / 0.025,
    "preparing": 1 / 0.365,
}


def training_step(model, data, batch_size, half=False):
    "One step as the trainer of lesson 5.3 makes it; half: products in bfloat16, as with --precision bf16-mixed."
    optimizer, generator = make_optimizer(model, TrainConfig()), torch.Generator().manual_seed(0)

    def step():
        batch = data.select(torch.randint(len(data), (batch_size,), generator=generator))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(batch, generator)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def report(what, count, run, repeats):
    middle, low, high = seconds(run, repeats)
    released = next((value for key, value in RELEASED.items() if what.startswith(key)), None)
    ratio = f"{count / middle / released:8.1f} x" if released else ""
    print(
        f"{what:48s} {count / middle:10.2f} /s  ({count / high:.2f} to {count / low:.2f})  {ratio}",
        flush=True,
    )


def models(data, large):
    paper = dict(frequencies=128)
    for width, layers in ((256, 4), (1024, 8)) if large else ((256, 4),):
        yield (
            f"{width} x {layers} (paper)",
            SymmCD(
                SymmCDConfig.preset("paper", width=width, layers=layers, **paper), crystal_statistics(data)
            ),
        )
        yield (
            f"{width} x {layers} (ours)",
            SymmCD(SymmCDConfig.preset("full", width=width, layers=layers), crystal_statistics(data)),
        )


def projection(data):
    batch = data.select(torch.arange(1000) % len(data))
    noisy = batch.frac_coords.double() + 0.05 * torch.randn(
        batch.frac_coords.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    lattice = SymmCD(SymmCDConfig.preset("tiny"), crystal_statistics(data)).lattice(
        torch.zeros(1000, 6, dtype=torch.float64), batch.space_group
    )[batch.batch]
    return lambda: project(noisy, batch.space_group[batch.batch], batch.wyckoff, lattice)


def main():
    import numpy as np

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument("--csv", help="a CSV with CIF texts, to time preparing")
    parser.add_argument("--large", action="store_true", help="1024 x 8 as well (minutes)")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = (
        CrystalData.load(options.data) if options.data else prepare("embedded", limit=600, progress=None)[0]
    )
    print(
        f"torch {torch.__version__}, one thread, {len(data)} crystals, mean M {data.num_orbits.float().mean():.2f}"
    )
    for name, model in models(data, options.large):
        size = 256 if "256" in name else 32
        report(f"train {name}", size, training_step(model, data, size), 5)
        if "ours" in name:
            report(f"train {name}, bf16-mixed", size, training_step(model, data, size, half=True), 5)
        rng = np.random.default_rng(0)
        requests = [make_request(model, rng) for _ in range(size)]
        for steps in (options.steps, 1000) if "256 x 4 (ours)" in name else (options.steps,):
            report(
                f"sample {name}, {steps} steps",
                size,
                lambda: sample_requests(
                    model, requests, torch.Generator().manual_seed(0), SamplingOptions(steps=steps)
                ),
                1,
            )
    report("projection, batch of 1000", 1000, projection(data), 5)
    if options.csv:
        texts = [text for _, text in read_crystal_csv(options.csv)[:200]]
        report("preparing from CIF", len(texts), lambda: [prepare_one(t) for t in texts], 1)


if __name__ == "__main__":
    main()
