#!/usr/bin/env python
"""Write weights of MOFDiff again, without the building blocks of their library that fail chemical checks by themselves.

    python tests/tools/sound_weights.py matgen_nb/data/weights/mofdiff-small.safetensors

Training leaves such blocks out (`sound_library`, lesson 5.17); this is for weights that were trained before it did. The network
and the nets stay as they are. Prints what is left out; a second time changes nothing."""

import argparse
from collections import Counter

import torch

from matgen_nb import MofDiff
from matgen_nb.mofdiff.checks import block_faults
from matgen_nb.scale.mof_training import sound_library


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", nargs="+", help="files that are written again")
    for path in parser.parse_args().weights:
        model = MofDiff.from_pretrained(path)
        faults = Counter(name for block in model.library.blocks for name in block_faults(block))
        before, model.library = len(model.library), sound_library(model.library)
        model.save_pretrained(path, model.info, torch.bfloat16)
        print(f"{path}: {len(model.library)} of {before} blocks kept; {dict(faults)}")


if __name__ == "__main__":
    main()
