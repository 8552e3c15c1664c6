"""Yield and speed of our builder of hypothetical frameworks beside PORMAKE (pip install pormake), on one CPU thread.

    python tests/benchmarks/builders_speed.py [--plans 50] [--ours]

Plans are drawn at random as in lesson 16b; kept are those with carboxylates alone and one linker at most. For PORMAKE the carboxylate goes to the node (C-O 1.27 A),
as in its own library, and the net comes from its database. Both results pass the same tests: gaps up to 0.3 A (PORMAKE: the length of the new C-C bond
against 1.5 A), density, contacts of atoms more than three bonds apart. Seconds are CPU seconds of this process."""
import argparse
import itertools
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np

from matgen_nb.mofdiff.hypothetical import LIMITS, Rejected, _unit, _within_three_bonds, build, draw_plan, net_facts, settle_twist, site_of, vdw_radii
from matgen_nb.symmetry.crystal import element_table

SYMBOL = element_table().symbol


def write_block(path, symbols, xyz, bonds):
    lines = [f"{s} {x:.5f} {y:.5f} {z:.5f}" for s, (x, y, z) in zip(symbols, xyz)] + [f"{i} {j} S" for i, j in bonds]
    path.write_text(f"{len(symbols)}\n{path.stem}\n" + "\n".join(lines) + "\n")


def write_node(block, path):
    "A metal node with the carboxylates that it binds; X three quarters of an Angstrom behind their carbon."
    site, symbols, xyz, bonds = site_of(block), [str(SYMBOL[z]) for z in block.elements], block.cart_coords.tolist(), [tuple(b) for b in block.bonds.tolist()]
    for end in site.ends:
        metals, n = block.connection_atoms[end].tolist(), len(symbols)
        oxygen = 2 * block.connection_points[end] - block.cart_coords[metals]
        across, out = _unit(oxygen[0] - oxygen[1]), site.ways[end].mean(0)
        out = _unit(out - (out @ across) * across)
        carbon = oxygen.mean(0) + 0.63 * out
        symbols += ["O", "O", "C", "X"]
        xyz += [*oxygen.tolist(), carbon.tolist(), (carbon + 0.75 * out).tolist()]
        bonds += [(metals[0], n), (metals[1], n + 1), (n, n + 2), (n + 1, n + 2), (n + 2, n + 3)]
    write_block(path, symbols, xyz, bonds)


def write_linker(block, path):
    "A linker without its carboxylates; X half-way to their carbon. ValueError where nothing is left (oxalate)."
    near, symbols, xyz, gone, joins = {}, [str(SYMBOL[z]) for z in block.elements], block.cart_coords.copy(), set(), []
    for i, j in block.bonds.tolist(): near.setdefault(i, set()).add(j); near.setdefault(j, set()).add(i)
    for end in site_of(block).ends:
        oxygen = set(block.connection_atoms[end].tolist())
        carbon = set.intersection(*(near[o] for o in oxygen)).pop()
        core = (near[carbon] - oxygen).pop()
        symbols[carbon], xyz[carbon] = "X", (block.cart_coords[core] + block.cart_coords[carbon]) / 2
        gone |= oxygen
        joins.append(carbon)
    if any(near[c] & set(joins) for c in joins): raise ValueError("no core")
    keep = [i for i in range(len(symbols)) if i not in gone]
    new = {i: k for k, i in enumerate(keep)}
    write_block(path, [symbols[i] for i in keep], xyz[keep], [(new[i], new[j]) for i, j in block.bonds.tolist() if i in new and j in new])


def simple(plan):
    "Carboxylates alone, one linker at most, on all edges or none, one block for each kind of vertex."
    links, kinds = {id(b) for b in plan.edge_blocks}, {}
    for b, v in zip(plan.vertex_blocks, plan.net.vertex_kind.tolist()): kinds.setdefault(v, set()).add(id(b))
    return (plan.edge_kinds == 2).all() and len(links) == 1 and all(len(k) == 1 for k in kinds.values())


def plans(count, folder, seed=7):
    "Random plans: (plan, its generator, name of the net, files of the blocks by kind of vertex, file of the linker or None)."
    names, found, k = sorted(net_facts()), 0, 0
    while found < count:
        rng, k = np.random.default_rng([seed, k]), k + 1
        name = names[int(rng.integers(len(names)))]
        try: plan = draw_plan(name, rng)
        except Rejected: continue
        if not simple(plan): continue
        nodes = {v: folder / f"{found}_{v}.xyz" for v in set(plan.net.vertex_kind.tolist())}
        edge = folder / f"{found}_edge.xyz" if plan.edge_blocks[0] is not None else None
        try:
            for b, v in zip(plan.vertex_blocks, plan.net.vertex_kind.tolist()): (write_node if b.is_metal else write_linker)(b, nodes[v])
            if edge: write_linker(plan.edge_blocks[0], edge)
        except (ValueError, KeyError): continue
        found += 1
        yield plan, rng, name, nodes, edge


def build_ours(plan, rng):
    try: return build(settle_twist(plan, rng), rng) and "ok"
    except Rejected as error: return error.stage
    except np.linalg.LinAlgError: return "gap"


def build_theirs(pormake, builder, topology, nodes, edge):
    linker = pormake.BuildingBlock(str(edge)) if edge else None
    blocks = builder.make_bbs_by_type(topology, {v: pormake.BuildingBlock(str(p)) for v, p in nodes.items()}, {tuple(t): linker for t in topology.unique_edge_types})
    return builder.build(topology, blocks, wrap=False), [k for k, b in enumerate(blocks) if b is not None for z in b.atoms.numbers if z]


def verdict(framework, owner):
    "The tests of lesson 16b on PORMAKE's framework; owner: the block of each atom."
    from scipy.spatial import cKDTree
    atoms, bonds, owner = framework.atoms, np.array(framework.bonds), np.array(owner)
    cell, frac = np.array(atoms.cell), atoms.get_scaled_positions(wrap=False)
    delta = frac[bonds[:, 1]] - frac[bonds[:, 0]]
    shift = -np.round(delta).astype(int)
    length = np.linalg.norm((delta + shift) @ cell, axis=1)
    if np.abs(length[owner[bonds[:, 0]] != owner[bonds[:, 1]]] - 1.5).max() > LIMITS["gap"]: return "gap"
    density = atoms.get_masses().sum() / abs(np.linalg.det(cell)) * 1.66054
    if not LIMITS["density"][0] < density < LIMITS["density"][1]: return "density"
    bonded, inverse = _within_three_bonds(len(atoms), bonds, shift), np.linalg.inv(cell)
    home, grid = np.floor(frac).astype(int), np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    wrapped = (frac - home) @ cell
    images = (wrapped + (grid @ cell)[:, None]).reshape(-1, 3)
    keep = (np.abs(images @ inverse - .5) < .5 + 3 * np.linalg.norm(inverse, axis=0)).all(1).nonzero()[0]
    hits = cKDTree(wrapped).sparse_distance_matrix(cKDTree(images[keep]), 3.0, output_type="coo_matrix")
    i, at = hits.row, keep[hits.col]
    j, image = at % len(atoms), grid[at // len(atoms)] - home[at % len(atoms)] + home[i]
    radii = vdw_radii(atoms.numbers)
    close = (hits.data / (radii[i] + radii[j]) < LIMITS["contact"]).nonzero()[0]
    return "contact" if any((int(i[k]), int(j[k]), *map(int, image[k])) not in bonded for k in close) else "ok"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--ours", action="store_true", help="without PORMAKE")
    options = parser.parse_args()
    outcome, seconds = Counter(), Counter()
    if not options.ours:
        import pormake
        pormake.log.disable_print()
        database, builder = pormake.Database(), pormake.Builder()
    with tempfile.TemporaryDirectory() as folder:
        for plan, rng, name, nodes, edge in plans(options.plans, Path(folder)):
            start = time.process_time()
            ours, theirs = build_ours(plan, rng), "not run"
            seconds["ours"] += time.process_time() - start
            if not options.ours:
                try:
                    start = time.process_time()
                    topology = database.get_topo(name)
                    read = time.process_time()
                    framework = build_theirs(pormake, builder, topology, nodes, edge)
                    seconds["reading nets"] += read - start
                    seconds["PORMAKE"] += time.process_time() - read
                    theirs = verdict(*framework)
                except Exception as error: theirs = f"error: {str(error)[:40]}"
            outcome[ours, theirs] += 1
            print(f"{plan.name:44s} ours {ours:8s} PORMAKE {theirs}", flush=True)
    print("(ours, PORMAKE):", dict(outcome))
    for who, k in [("ours", 0), ("PORMAKE", 1)][:1 if options.ours else 2]:
        good = sum(n for pair, n in outcome.items() if pair[k] == "ok")
        print(f"{who:8s} {good} good of {options.plans}, {seconds[who]:.1f} CPU s, {seconds[who] / max(1, good):.2f} for each good one")
    if not options.ours: print(f"reading PORMAKE's nets (kept for the next time): {seconds['reading nets']:.1f} CPU s")


if __name__ == "__main__": main()
