"""Success and speed of the assembly of frameworks beside the released program (MOFDiff), on one CPU thread.

    python tests/benchmarks/assembly_speed.py [FOLDER_OF_CIFS ...] [--noise 0.3] [--blocks 20] [--every 1] [--names]

Without folders: the textbook frameworks. Every framework is taken apart, its blocks are turned at random, its beads displaced by --noise (A), and it is
put together again. Success: every bond between blocks is 0.75 to 1.35 sums of covalent radii long, and no two strange atoms clash. The released
figures were measured once on one CPU thread of a machine of this kind, unmodified, on 49 real frameworks (median 8 blocks, 110 atoms, 48 connection
points). Times are CPU seconds of this process."""
import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from matgen_nb.mofdiff.assembly import assemble, shuffled
from matgen_nb.mofdiff.building_blocks import Mof, decompose, textbook_mofs
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.utils import describe_failures, parallel_map

RELEASED = "released program: exact beads 9 of 49 (18 %), 0.3 A noise 0 of 49, 5 to 6.5 CPU s a framework"


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CoarseMof.from_decomposition(decompose(Mof.from_cif(path)), name=path.stem)


def frameworks(folders, blocks, every):
    if not folders: return [CoarseMof.from_decomposition(decompose(m), name=n) for n, m in textbook_mofs().items()]
    paths = sorted(p for folder in folders for p in Path(folder).glob("*.cif"))[::every]
    mofs, failures = parallel_map(read, paths, names=[p.name for p in paths], n_jobs=1, timeout=30, progress="reading")
    print(describe_failures(failures, len(paths)))
    return [m for m in mofs if m is not None and len(m) <= blocks]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--noise", type=float, action="append", help="A; may be given several times (default 0 and 0.3)")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--every", type=int, default=1, help="only every n-th file")
    parser.add_argument("--names", action="store_true", help="print those that fail")
    args = parser.parse_args()
    torch.set_num_threads(1)
    mofs = frameworks(args.folders, args.blocks, args.every)
    points = [sum(b.num_connections for b in m.blocks) for m in mofs]
    atoms = [sum(map(len, m.blocks)) for m in mofs]
    print(f"{len(mofs)} frameworks, median {np.median([len(m) for m in mofs]):.0f} blocks, {np.median(atoms):.0f} atoms, {np.median(points):.0f} connection points")
    for noise in args.noise or [0.0, 0.3]:
        rows, times = [], []
        for i, mof in enumerate(mofs):
            puzzle, start = shuffled(mof, seed=i, noise=noise), time.process_time()
            rows.append(assemble(puzzle).row)
            times.append(time.process_time() - start)
            if args.names and not rows[-1]["assembled"]: print({k: rows[-1][k] for k in ("name", "cp_error", "bond_success", "clashes", "reason")})
        ok, per_point = sum(r["assembled"] for r in rows), np.array(times) / np.array(points)
        print(f"noise {noise:.1f} A: {ok} of {len(mofs)} ({100 * ok / len(mofs):.0f} %), median gap {np.median([r['cp_error'] for r in rows]):.4f} A; CPU seconds "
              f"a framework: median {np.median(times):.2f}, 90 % below {np.quantile(times, 0.9):.2f}; for 50 connection points {50 * np.median(per_point):.2f}", flush=True)
    print(RELEASED)


if __name__ == "__main__": main()
