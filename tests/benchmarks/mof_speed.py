"""Speed of the MOF half beside the released MOFDiff, on one CPU thread.

    python tests/benchmarks/mof_speed.py [PART ...] [--data FOLDER_OF_CIFS] [--repeats 5]

Parts: blocks (training the block encoder). Without --data the blocks of the textbook frameworks are used, with it those of the MOFs of a folder.
The released figures were measured once on one CPU thread of another machine of this kind, unmodified. Seconds are CPU seconds of this process (other
work on the machine does not count): medians, with the slowest and the fastest repeat; the last column is the ratio to the released figure.
A "block" is a block of the batch; ours is embedded twice in a step, as two displaced copies, the released one once."""

import argparse
from pathlib import Path

import numpy as np
import torch

from timing import seconds

RELEASED = {"blocks": 28.6}


def report(what, part, count, run, repeats):
    middle, low, high = seconds(run, repeats)
    ratio = (
        f"{count / middle / RELEASED[part]:7.1f} x released ({RELEASED[part]:g} /s)"
        if part in RELEASED
        else ""
    )
    print(
        f"{what:46s} {count / middle:9.1f} /s  ({count / high:.1f} to {count / low:.1f})  {ratio}", flush=True
    )


def blocks_of(folder=None):
    "The distinct building blocks of a folder of CIFs, or of the textbook frameworks."
    from matgen_nb.mofdiff import bonds
    from matgen_nb.mofdiff.bonds import Mof
    from matgen_nb.mofdiff.decomposition import decompose

    mofs = bonds.textbook_mofs() if folder is None else [str(p) for p in sorted(Path(folder).glob("*.cif"))]
    found, failed = {}, 0
    for mof in mofs.values() if isinstance(mofs, dict) else mofs:
        try:
            found |= {
                b.identity: b for b in decompose(Mof.from_cif(mof) if isinstance(mof, str) else mof).blocks
            }
        except Exception:
            failed += 1
    return list(found.values()), failed


def blocks(options):
    "Training steps of the block encoder: loss, gradient, optimizer."
    from matgen_nb.mofdiff.embedding import BlockData, BlockEncoder, BlockConfig

    library, failed = blocks_of(options.data)
    data, size = BlockData(library), 64
    print(
        f"{len(library)} different blocks ({failed} MOFs left out), {np.mean(data.all.num_nodes.numpy()):.0f} nodes on average, largest {int(data.all.num_nodes.max())}"
    )
    for name in ("tiny", "small"):
        model, generator = BlockEncoder(BlockConfig.preset(name)), torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

        def step():
            optimizer.zero_grad()
            model.loss(data.select(torch.randint(len(data), (size,), generator=generator)), generator)[
                "loss"
            ].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        report(
            f"train block encoder, {name}, batch {size}",
            "blocks",
            5 * size,
            lambda: [step() for _ in range(5)],
            options.repeats,
        )
    report("embed blocks, small", "", len(library), lambda: model.encode(library), options.repeats)


PARTS = {"blocks": blocks}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--data", help="a folder of CIF files")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()
