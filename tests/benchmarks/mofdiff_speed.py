"""Speed of the coarse-grained MOF model beside the released MOFDiff, on one CPU thread.

    python tests/benchmarks/mofdiff_speed.py [--data prepared.safetensors] [--presets tiny small] [--repeats 3]

--data: what `matgen prepare mofs` writes; a file without embeddings gets them from the weights `blocks-small`. Without --data: the eight textbook frameworks of lesson 4.1
(K = 6 to 24, 11.5 blocks on average, more than in BW-DB) with random embeddings of size 32; times do not depend on what the embeddings say. The released figures (5.8 MOFs/s
in training, 109 CPU s a sample) were measured once on one CPU thread of another machine of this kind, unmodified. Seconds are CPU seconds of this process: medians, with the
slowest and the fastest repeat; the last column is the ratio."""

import argparse

import torch

from timing import seconds
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.model import MofDiff, MofDiffConfig, mof_statistics
from matgen_nb.mofdiff.decoding import choose_blocks
from matgen_nb.mofdiff.sampling import MofSamplingOptions

TRAINING, SAMPLE = 5.8, 109.0  # MOFs/s and CPU s of the release


def textbook_data():
    "The textbook frameworks, coarse-grained, eight copies with cells of different size."
    from matgen_nb.mofdiff.bonds import textbook_mofs
    from matgen_nb.mofdiff.decomposition import decompose

    found = [decompose(mof) for mof in textbook_mofs().values()]
    data = MofData.from_coarse(
        [
            CoarseMof(scale * d.lattice, d.frac_coords, d.blocks)
            for d in found
            for scale in torch.linspace(0.96, 1.04, 8).tolist()
        ]
    )
    return data.with_embeddings(
        torch.randn(len(data.library), 32, generator=torch.Generator().manual_seed(0))
    )


def prepared(path):
    "A file of `matgen prepare mofs`, with embeddings."
    from matgen_nb.mofdiff.embedding import BlockEncoder

    data = MofData.load(path)
    if data.embeddings is not None:
        return data
    print(
        f"{path} has no embeddings: its {len(data.library)} blocks are encoded with blocks-small", flush=True
    )
    return data.with_embeddings(BlockEncoder.from_pretrained("blocks-small").encode(data.library))


def training_step(model, data, size=64):
    optimizer, generator = torch.optim.AdamW(model.parameters(), 1e-3), torch.Generator().manual_seed(0)

    def step():
        optimizer.zero_grad()
        model.loss(data.select(torch.randint(len(data), (size,), generator=generator)), generator)[
            "loss"
        ].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="prepared MOFs, with or without embeddings")
    parser.add_argument("--presets", nargs="+", default=["tiny", "small"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = prepared(options.data) if options.data else textbook_data()
    stats = mof_statistics(data)
    print(
        f"torch {torch.__version__}, one thread, {len(data)} MOFs, {data.num_blocks.float().mean():.1f} blocks each, library of {len(data.library)}"
    )
    for name in options.presets:
        torch.manual_seed(0)
        model = MofDiff(MofDiffConfig.preset(name), stats)
        middle, low, high = seconds(training_step(model, data), options.repeats)
        print(
            f"train {name:6}            {64 / middle:8.1f} MOFs/s  ({64 / high:.1f} to {64 / low:.1f})   {64 / middle / TRAINING:6.1f} x released",
            flush=True,
        )
        for steps in (50, 200):
            how = MofSamplingOptions(steps=steps, progress=False)
            middle, low, high = seconds(lambda: model.eval().sample(32, options=how), 1)
            print(
                f"sample {name:6} {steps:3} steps {middle / 32:8.4f} CPU s a MOF                 {SAMPLE / (middle / 32):8.0f} x faster than released",
                flush=True,
            )
    b = data.select(torch.randint(len(data), (256,), generator=torch.Generator().manual_seed(0)))
    f = b.features + 0.5 * torch.randn(b.features.shape)
    middle, low, high = seconds(
        lambda: choose_blocks(f, b.num_blocks, data.embeddings, stats.library.charges), options.repeats
    )
    print(f"joint choice of blocks  {256 / middle:8.0f} MOFs/s")


if __name__ == "__main__":
    main()
