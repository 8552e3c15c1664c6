"""Yield and speed of our builder of hypothetical frameworks beside PORMAKE or AuToGraFS (pip install pormake, pip install autografs), on one CPU thread.

    python tests/benchmarks/builders_speed.py [--beside pormake|autografs|none] [--plans 50]

Plans are drawn at random as in lesson 4.13; kept are those with carboxylates alone and one linker at most. For the others' builders the carboxylate goes to the
node (C-O 1.27 A), as in PORMAKE's library, and the net comes from their own collection. All results pass the same tests: gaps up to 0.3 A (there: the length of
the new C-C bond against 1.5 A), density, contacts of atoms more than three bonds apart. Seconds are CPU seconds of this process, without reading nets."""

import argparse
import contextlib
import itertools
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np

from matgen_nb.mofdiff.net_catalogue import net_facts
from matgen_nb.mofdiff.metal_nodes import unit
from matgen_nb.mofdiff.net_placement import ends_of
from matgen_nb.mofdiff.builder import LIMITS, Rejected, _within_three_bonds, build, settle_twist, vdw_radii
from matgen_nb.mofdiff.hypothetical import random_plan
from matgen_nb.symmetry.crystal import atomic_number, element_table

SYMBOL = element_table().symbol


def write_block(path, symbols, xyz, bonds):
    lines = [f"{s} {x:.5f} {y:.5f} {z:.5f}" for s, (x, y, z) in zip(symbols, xyz)] + [
        f"{i} {j} S" for i, j in bonds
    ]
    path.write_text(f"{len(symbols)}\n{path.stem}\n" + "\n".join(lines) + "\n")


def write_node(block, path):
    "A metal node with the carboxylates that it binds; X three quarters of an Angstrom behind their carbon."
    site, symbols, xyz, bonds = (
        ends_of(block),
        [str(SYMBOL[z]) for z in block.elements],
        block.cart_coords.tolist(),
        [tuple(b) for b in block.bonds.tolist()],
    )
    for end in site.ends:
        metals, n = block.connection_atoms[end].tolist(), len(symbols)
        oxygen = 2 * block.connection_points[end] - block.cart_coords[metals]
        across, out = unit(oxygen[0] - oxygen[1]), site.ways[end].mean(0)
        out = unit(out - (out @ across) * across)
        carbon = oxygen.mean(0) + 0.63 * out
        symbols += ["O", "O", "C", "X"]
        xyz += [*oxygen.tolist(), carbon.tolist(), (carbon + 0.75 * out).tolist()]
        bonds += [(metals[0], n), (metals[1], n + 1), (n, n + 2), (n + 1, n + 2), (n + 2, n + 3)]
    write_block(path, symbols, xyz, bonds)


def write_linker(block, path):
    "A linker without its carboxylates; X half-way to their carbon. ValueError where nothing is left (oxalate)."
    near, symbols, xyz, gone, joins = (
        {},
        [str(SYMBOL[z]) for z in block.elements],
        block.cart_coords.copy(),
        set(),
        [],
    )
    for i, j in block.bonds.tolist():
        near.setdefault(i, set()).add(j)
        near.setdefault(j, set()).add(i)
    for end in ends_of(block).ends:
        oxygen = set(block.connection_atoms[end].tolist())
        carbon = set.intersection(*(near[o] for o in oxygen)).pop()
        core = (near[carbon] - oxygen).pop()
        symbols[carbon], xyz[carbon] = "X", (block.cart_coords[core] + block.cart_coords[carbon]) / 2
        gone |= oxygen
        joins.append(carbon)
    if any(near[c] & set(joins) for c in joins):
        raise ValueError("no core")
    keep = [i for i in range(len(symbols)) if i not in gone]
    new = {i: k for k, i in enumerate(keep)}
    write_block(
        path,
        [symbols[i] for i in keep],
        xyz[keep],
        [(new[i], new[j]) for i, j in block.bonds.tolist() if i in new and j in new],
    )


def simple(plan):
    "Carboxylates alone, one linker at most, on all edges or none, one block for each kind of vertex."
    links, kinds = {id(b) for b in plan.edge_blocks}, {}
    for b, v in zip(plan.vertex_blocks, plan.net.vertex_kind.tolist()):
        kinds.setdefault(v, set()).add(id(b))
    return (plan.edge_kinds == 2).all() and len(links) == 1 and all(len(k) == 1 for k in kinds.values())


def plans(count, folder, seed=7):
    "Random plans: (plan, its generator, name of the net, files of the blocks by kind of vertex, file of the linker or None)."
    names, found, k = sorted(net_facts()), 0, 0
    while found < count:
        rng, k = np.random.default_rng([seed, k]), k + 1
        name = names[int(rng.integers(len(names)))]
        try:
            plan = random_plan(name, rng)
        except Rejected:
            continue
        if not simple(plan):
            continue
        nodes = {v: folder / f"{found}_{v}.xyz" for v in set(plan.net.vertex_kind.tolist())}
        edge = folder / f"{found}_edge.xyz" if plan.edge_blocks[0] is not None else None
        try:
            for b, v in zip(plan.vertex_blocks, plan.net.vertex_kind.tolist()):
                (write_node if b.is_metal else write_linker)(b, nodes[v])
            if edge:
                write_linker(plan.edge_blocks[0], edge)
        except (ValueError, KeyError):
            continue
        found += 1
        yield plan, rng, name, nodes, edge


def build_ours(plan, rng):
    try:
        return build(settle_twist(plan, rng), rng) and "ok"
    except Rejected as error:
        return error.stage
    except np.linalg.LinAlgError:
        return "gap"


class Pormake:
    def __init__(self):
        with contextlib.chdir(tempfile.gettempdir()):
            import pormake  # it leaves a runtime.log where one stands
        pormake.log.disable_print()
        self.package, self.nets, self.builder = pormake, pormake.Database(), pormake.Builder()

    def read(self, name):
        return self.nets.get_topo(name)

    def build(self, net, nodes, edge):
        "Atomic numbers, Cartesian coordinates, cell, bonds and owner (the block of each atom) of a framework."
        linker = self.package.BuildingBlock(str(edge)) if edge else None
        blocks = self.builder.make_bbs_by_type(
            net,
            {v: self.package.BuildingBlock(str(p)) for v, p in nodes.items()},
            {tuple(t): linker for t in net.unique_edge_types},
        )
        framework = self.builder.build(net, blocks, wrap=False)
        owner = [k for k, b in enumerate(blocks) if b is not None for z in b.atoms.numbers if z]
        return (
            framework.atoms.numbers,
            framework.atoms.positions,
            np.array(framework.atoms.cell),
            np.array(framework.bonds),
            np.array(owner),
        )


class Autografs:
    def __init__(self):
        import logging
        import warnings
        import autografs
        from autografs.utils import xyz_to_sbu

        logging.disable(logging.INFO)
        warnings.simplefilter("ignore")
        self.maker, self.parse = autografs.Autografs(), xyz_to_sbu

    def read(self, name):
        return self.maker.topologies[name]

    def block(self, path):
        "A block from our file, without its bonds, which this package finds by itself."
        count, _, *rows = path.read_text().splitlines()
        plain = path.with_suffix(".plain.xyz")
        plain.write_text("\n".join([count, f"name={path.stem}", *rows[: int(count)]]) + "\n")
        return next(iter(self.parse(str(plain)).values()))

    def build(self, net, nodes, edge):
        "As `Pormake.build`; which node goes to which kind of vertex is tried where several have as many ends."
        ends = lambda block: len(block.atoms.indices_from_symbol("X"))
        slots, ours, linker = (
            [s for s in net.mappings if ends(s) > 2],
            [self.block(p) for p in nodes.values()],
            self.block(edge) if edge else None,
        )
        ways = [
            m
            for m in itertools.product(ours, repeat=len(slots))
            if len(set(map(id, m))) == min(len(ours), len(slots))
            and all(ends(b) == ends(s) for b, s in zip(m, slots))
        ]
        for k, way in enumerate(ways):
            try:
                framework = self.maker.build(
                    net,
                    dict(zip(slots, way)) | {s: linker for s in net.mappings if ends(s) == 2},
                    max_rmsd=0.5,
                )
                break
            except Exception:
                if k == len(ways) - 1:
                    raise
        else:
            raise ValueError("no block for a vertex")
        place, graph = {k: n for n, k in enumerate(sorted(framework.graph))}, framework.graph
        bonds = np.array([(place[i], place[j]) for i, j in graph.edges()])
        return (
            np.array([atomic_number(x) for x in framework.symbols]),
            framework.cart_coords,
            framework.cell,
            bonds,
            np.array([graph.nodes[k]["slot"] for k in place]),
        )


def verdict(numbers, cart, cell, bonds, owner):
    "The tests of lesson 4.13 on a framework; owner: the block of each atom."
    from scipy.spatial import cKDTree

    frac, atoms = cart @ np.linalg.inv(cell), range(len(numbers))
    delta = frac[bonds[:, 1]] - frac[bonds[:, 0]]
    shift = -np.round(delta).astype(int)
    length = np.linalg.norm((delta + shift) @ cell, axis=1)
    if np.abs(length[owner[bonds[:, 0]] != owner[bonds[:, 1]]] - 1.5).max() > LIMITS.gap:
        return "gap"
    density = element_table().mass[numbers].sum() / abs(np.linalg.det(cell)) * 1.66054
    if not LIMITS.density[0] < density < LIMITS.density[1]:
        return "density"
    bonded, inverse = _within_three_bonds(len(atoms), bonds, shift), np.linalg.inv(cell)
    home, grid = np.floor(frac).astype(int), np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    wrapped = (frac - home) @ cell
    images = (wrapped + (grid @ cell)[:, None]).reshape(-1, 3)
    keep = (np.abs(images @ inverse - 0.5) < 0.5 + 3 * np.linalg.norm(inverse, axis=0)).all(1).nonzero()[0]
    hits = cKDTree(wrapped).sparse_distance_matrix(cKDTree(images[keep]), 3.0, output_type="coo_matrix")
    i, at = hits.row, keep[hits.col]
    j, image = at % len(atoms), grid[at // len(atoms)] - home[at % len(atoms)] + home[i]
    radii = vdw_radii(numbers)
    close = (hits.data / (radii[i] + radii[j]) < LIMITS.contact).nonzero()[0]
    return (
        "contact" if any((int(i[k]), int(j[k]), *map(int, image[k])) not in bonded for k in close) else "ok"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", choices=("pormake", "autografs", "none"), default="pormake")
    parser.add_argument("--plans", type=int, default=50)
    options = parser.parse_args()
    outcome, seconds = Counter(), Counter()
    other = dict(pormake=Pormake, autografs=Autografs, none=lambda: None)[options.beside]()
    with tempfile.TemporaryDirectory() as folder:
        for plan, rng, name, nodes, edge in plans(options.plans, Path(folder)):
            start = time.process_time()
            ours, theirs = build_ours(plan, rng), "not run"
            seconds["ours"] += time.process_time() - start
            if other:
                start = time.process_time()
                try:
                    net = other.read(name)
                    start = time.process_time()
                    framework = other.build(net, nodes, edge)
                    theirs = None
                except Exception as error:
                    theirs = f"error: {str(error)[:60]}"
                seconds[options.beside] += time.process_time() - start
                theirs = theirs or verdict(*framework)
            outcome[ours, theirs.split(":")[0]] += 1
            print(f"{plan.name:44s} ours {ours:8s} {options.beside} {theirs}", flush=True)
    print(f"(ours, {options.beside}):", dict(outcome))
    for who, k in [("ours", 0), (options.beside, 1)][: 2 if other else 1]:
        good = sum(n for pair, n in outcome.items() if pair[k] == "ok")
        print(
            f"{who:9s} {good} good of {options.plans}, {seconds[who]:.1f} CPU s, {seconds[who] / max(1, good):.2f} for each good one"
        )


if __name__ == "__main__":
    main()
