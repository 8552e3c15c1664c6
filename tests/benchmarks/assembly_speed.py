"""Success and speed of the assembly of frameworks beside the released program (MOFDiff), on one CPU thread.

    python tests/benchmarks/assembly_speed.py --seeds 10 --noise 0                 # the textbook frameworks, each turned in ten ways
    python tests/benchmarks/assembly_speed.py --hypothetical 100                   # of the frameworks that ship with the package, 100 at even distances
    python tests/benchmarks/assembly_speed.py FOLDER_OF_CIFS ... [--every 2]       # your own

Every framework is taken apart, its blocks are turned at random, its beads displaced by --noise (A), and it is put together again. Assembled: every bond
between blocks is 0.75 to 1.35 sums of covalent radii long, and no two strange atoms clash. Recovered: assembled, and pymatgen's StructureMatcher finds the
original again, from exact beads with an RMSD below 0.1 A (displaced beads: whatever RMSD the matcher admits;
the median is printed). The shipped frameworks are stored as beads and blocks without orientations: for them there is no original to find again. The released
figures were measured once on one CPU thread of a machine of this kind, unmodified, on 49 real frameworks (median 8 blocks, 110 atoms, 48 connection
points). Times are CPU seconds of this process."""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from matgen_nb.mofdiff.assembly import assemble
from matgen_nb.mofdiff.orientations import shuffled
from matgen_nb.mofdiff.bonds import Mof, textbook_mofs
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.parallel import describe_failures, parallel_map

RELEASED = "released program: exact beads 9 of 49 (18 %), 0.3 A noise 0 of 49, 5 to 6.5 CPU s a framework"


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CoarseMof.from_decomposition(decompose(Mof.from_cif(path)), name=path.stem)


def frameworks(args):
    if args.hypothetical:
        data = embedded_mofs()
        small = [i for i in range(len(data)) if data.num_blocks[i] <= args.blocks]
        return [data[small[j]] for j in np.linspace(0, len(small) - 1, args.hypothetical).astype(int)]
    if not args.folders:
        return [CoarseMof.from_decomposition(decompose(m), name=n) for n, m in textbook_mofs().items()]
    paths = sorted(p for folder in args.folders for p in Path(folder).glob("*.cif"))[:: args.every]
    mofs, failures = parallel_map(
        read, paths, names=[p.name for p in paths], n_jobs=1, timeout=30, progress="reading"
    )
    print(describe_failures(failures, len(paths)))
    return [m for m in mofs if m is not None and len(m) <= args.blocks]


def deviation(mof, built):
    "Root mean square distance (A) of the atoms from those of the original, inf where StructureMatcher finds no match."
    from pymatgen.analysis.structure_matcher import StructureMatcher

    if built.crystal is None:
        return np.inf
    cart = np.concatenate([x @ mof.lattice + b.cart_coords for x, b in zip(mof.frac_coords, mof.blocks)])
    original = Crystal(
        mof.lattice, np.concatenate([b.elements for b in mof.blocks]), cart @ np.linalg.inv(mof.lattice)
    )
    found = StructureMatcher(primitive_cell=False, scale=False).get_rms_dist(
        original.to_pymatgen(), built.crystal.to_pymatgen()
    )
    return np.inf if found is None else found[0] * (original.volume / len(original)) ** (1 / 3)


def trial(mof, seed, noise, known=True):
    "CPU seconds, row and RMSD of one puzzle; the row says also whether it is recovered. known: the blocks of `mof` stand as in the original."
    puzzle, start = shuffled(mof, seed=seed, noise=noise), time.process_time()
    built = assemble(puzzle)
    seconds, rmsd = time.process_time() - start, deviation(mof, built) if known else np.nan
    return (
        seconds,
        dict(
            built.row,
            rmsd=rmsd,
            recovered=built.row["assembled"] and (not known or rmsd < (np.inf if noise else 0.1)),
        ),
        rmsd,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*")
    parser.add_argument(
        "--hypothetical", type=int, default=0, help="how many of the frameworks that ship with the package"
    )
    parser.add_argument(
        "--noise", type=float, action="append", help="A; may be given several times (default 0 and 0.3)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="puzzles made of each framework")
    parser.add_argument(
        "--blocks",
        type=int,
        default=20,
        help="of folders and hypothetical frameworks: at most so many blocks",
    )
    parser.add_argument("--every", type=int, default=1, help="only every n-th file")
    parser.add_argument("--names", action="store_true", help="print those that fail")
    args = parser.parse_args()
    torch.set_num_threads(1)
    mofs = frameworks(args)
    points = [sum(b.num_connections for b in m.blocks) for m in mofs]
    atoms = [sum(map(len, m.blocks)) for m in mofs]
    print(
        f"{len(mofs)} frameworks, median {np.median([len(m) for m in mofs]):.0f} blocks, {np.median(atoms):.0f} atoms, {np.median(points):.0f} connection points"
    )
    for noise in args.noise or [0.0, 0.3]:
        rows, times = [], []
        for i, mof in enumerate(mofs):
            results = [
                trial(mof, seed if args.seeds > 1 else i, noise, not args.hypothetical)
                for seed in range(args.seeds)
            ]
            times += [r[0] for r in results]
            rows += [r[1] for r in results]
            if args.seeds > 1:
                print(
                    f"{mof.name:10s} recovered {sum(r[1]['recovered'] for r in results):2d} of {args.seeds}, RMSD median {np.median([r[2] for r in results]):.3f}, largest "
                    f"{max(r[2] for r in results):.3f} A; {points[i]} points, {np.mean([r[0] for r in results]):.2f} CPU s",
                    flush=True,
                )
            if args.names:
                for r in rows[-args.seeds :]:
                    if not r["recovered"]:
                        print(
                            {
                                k: r[k]
                                for k in ("name", "cp_error", "bond_success", "clashes", "rmsd", "reason")
                            },
                            flush=True,
                        )
        per_point, finite = (
            np.array(times) / np.repeat(points, args.seeds),
            [r["rmsd"] for r in rows if np.isfinite(r["rmsd"])],
        )
        again = (
            ""
            if args.hypothetical
            else f", recovered {sum(r['recovered'] for r in rows)} (median RMSD {np.median(finite):.3f} A)"
        )
        print(
            f"noise {noise:.1f} A: assembled {sum(r['assembled'] for r in rows)} of {len(rows)}{again}; median gap {np.nanmedian([r['cp_error'] for r in rows]):.4f} A; CPU seconds a framework: median {np.median(times):.2f}, "
            f"90 % below {np.quantile(times, 0.9):.2f}; for 50 connection points {50 * np.median(per_point):.2f}",
            flush=True,
        )
    print(RELEASED)


if __name__ == "__main__":
    main()
