#!/usr/bin/env python
"""Give weights files that were written before there were checksums one, and a fixed order of the texts in their header.

    python tests/tools/checksums.py              the weights that ship with the package
    python tests/tools/checksums.py FILE ...     these

Tensors and texts stay what they are; a file that has its checksum is checked and left alone.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from matgen_nb.utils import atomic_write, content_hash, load_tensors, tensor_bytes
from matgen_nb.diffusion.pretrained import WEIGHTS


def add_checksum(path):
    "Rewrite one file; returns what was done, as text."
    metadata, tensors = load_tensors(path)
    if "checksum" in metadata:
        return "has a checksum, and it is right"
    before = content_hash(path)
    with atomic_write(path, "wb") as file:
        file.write(tensor_bytes(tensors, metadata))
    assert content_hash(path) == before == load_tensors(path)[0]["checksum"]
    return f"content {before[:16]}"


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(WEIGHTS.glob("*.safetensors")):
        print(Path(name).name, add_checksum(name))
