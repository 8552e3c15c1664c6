"""Assembly: frameworks that are taken apart come back, whatever the frames of their blocks; what cannot be assembled says why."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.mofdiff.assembly import AssemblyOptions, assemble, unlike, why_not
from matgen_nb.mofdiff.assembly_refinements import alternatives, point_exchanges, promises, settle, total_cost
from matgen_nb.mofdiff.bonds import find_bonds, Mof, TEXTBOOK, textbook_mof
from matgen_nb.mofdiff.building_blocks import BuildingBlock
from matgen_nb.mofdiff.decomposition import decompose, recompose
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.joining import (
    Solution,
    as_given,
    collate,
    joint_gaps,
    match,
    bond_quality,
    polish,
    soften,
)
from matgen_nb.mofdiff.orientations import choose_jointly, ends, has_hand, joined_to, partners, shuffled
from matgen_nb.mofdiff.rigid import kabsch, quaternion_to_matrix, rotation_from_vector, rotation_grid
from matgen_nb.utils import MatgenError

CACHE = {}


def textbook(name):
    if name not in CACHE:
        CACHE[name] = decompose(textbook_mof(name))
    return CACHE[name], CoarseMof.from_decomposition(CACHE[name], name=name)


def ditopic_net(a=7.0, half=1.05):
    "One six-connected zinc in a cube and a diatomic N2 rod along each edge: pcu."
    zinc = BuildingBlock(
        [30], np.zeros((1, 3)), [], half * np.concatenate([np.eye(3), -np.eye(3)]), [0] * 6, True
    )
    arm = a / 2 - 2 * half
    rods = [
        BuildingBlock(
            [7, 7],
            np.array([arm * e, -arm * e]),
            [[0, 1]],
            np.array([(arm + half) * e, -(arm + half) * e]),
            [0, 1],
            False,
        )
        for e in np.eye(3)
    ]
    return CoarseMof(
        a * np.eye(3), np.concatenate([np.zeros((1, 3)), np.eye(3) / 2]), [zinc, *rods], name="pcu"
    )


def rmsd(a, b):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    found = StructureMatcher(primitive_cell=False, scale=False).get_rms_dist(a.to_pymatgen(), b.to_pymatgen())
    return np.inf if found is None else found[0] * (a.volume / len(a)) ** (1 / 3)


SEEDS = {
    "MOF-177": (1, 5),
    "ZIF-8": (5, 8, 11),
    "HKUST-1": (0, 11),
}  # others three; turns of the blocks for which a local search went wrong


@pytest.mark.parametrize("name", TEXTBOOK)
def test_textbook_frameworks_come_back(name):
    d, coarse = textbook(name)
    for seed in SEEDS.get(name, (0, 3, 11)):
        built = assemble(shuffled(coarse, seed=seed))
        assert (
            built.row["assembled"]
            and built.row["bond_success"] == 1
            and built.row["clashes"] == 0
            and built.row["cp_error"] < 0.02
        ), seed
        assert rmsd(recompose(d), built.crystal) < 0.1, seed


def test_one_node_turned_over_is_found():
    "MOF-177 with one node in a nearly right orientation: a first-order estimate names the exchange, and the gaps close."
    coarse = textbook("MOF-177")[1]
    joints, table = collate([coarse]), [point_exchanges(b) for b in coarse.blocks]
    R = torch.eye(3, dtype=torch.float64).repeat(1, 1, len(coarse), 1, 1)
    R[0, 0, 0] = torch.as_tensor(table[0].turns[-1])
    stuck = as_given(joints, R)
    for _ in range(3):
        stuck = polish(joints, match(joints, stuck).solution)
    promised = promises(coarse, joints, stuck, table)
    cost = total_cost(joints, stuck)
    assert torch.isclose(promised[0], cost[0, 0], rtol=1e-3) and cost > 0.1 and promised.min() < 0.01
    settled = settle(coarse, joints, stuck)
    assert total_cost(joints, settled) < 1e-6 and settle(coarse, joints, settled) is settled


@pytest.mark.parametrize("name", ["IRMOF-1", "UiO-66"])
def test_bonds_are_those_of_the_bond_rule(name):
    "The bonds that `assemble` lists are the bonds that lesson 4.1 finds in its crystal."
    built = assemble(shuffled(textbook(name)[1], seed=3))
    found = {
        frozenset(((a, 0, 0, 0), (b, *s))) if a != b else (a, *map(abs, s))
        for (a, b), s in zip(*map(np.ndarray.tolist, find_bonds(built.crystal)))
    }
    listed = {
        frozenset(((a, 0, 0, 0), (b, *s))) if a != b else (a, *map(abs, s))
        for (a, b), s in zip(built.bonds.tolist(), built.images.tolist())
    }
    turned = {
        frozenset(((b, 0, 0, 0), (a, *(-x for x in s))))
        for (a, b), s in zip(built.bonds.tolist(), built.images.tolist())
    }
    assert len(listed) == len(found) and all(f in listed or f in turned for f in found)
    assert decompose(built.to_mof()).connections.shape == textbook(name)[0].connections.shape


def test_known_edges_say_who_is_joined_to_whom():
    "Partners and matches are those of the edges, seen from both sides; a puzzle has forgotten them."
    d, coarse = textbook("HKUST-1")
    for k in range(len(coarse)):
        index, cells = joined_to(coarse, k)
        seen = {(int(j), *map(int, s)) for j, s in zip(index, cells)}
        rows = [(a, b, s) for (a, _, b, _), s in zip(d.connections.tolist(), d.images.tolist())]
        true = {(b, *s) for a, b, s in rows if a == k} | {(a, *(-x for x in s)) for a, b, s in rows if b == k}
        shift = lambda j, s: tuple(np.array(s) + np.round(d.frac_coords - coarse.frac_coords).astype(int)[j])
        assert seen == {(j, *shift(j, s)) for j, *s in true} and len(partners(coarse, k).index) == len(seen)
    assert len(joined_to(shuffled(coarse), 0)[0]) == 0
    one, free = collate([coarse]).may_meet, collate([shuffled(coarse)]).may_meet
    points = [b.num_connections for b in coarse.blocks]
    pairs = {tuple(pair) for pair in coarse.edges.tolist()}
    assert free.all() and one.sum() == sum(points[m] * points[o] for m, o in pairs) < free.sum()


@pytest.mark.parametrize("name", ["HKUST-1", "ZIF-8", "UiO-66"])
def test_with_known_edges_the_blocks_come_back(name):
    "From few starts, beads 0.3 A off."
    coarse = textbook(name)[1]
    turned = replace(shuffled(coarse, seed=2, noise=0.3), edges=coarse.edges, shifts=coarse.shifts)
    built = assemble(turned, options=AssemblyOptions(starts=16))
    assert built.row["assembled"] and built.row["cp_error"] < 0.05
    assert rmsd(recompose(textbook(name)[0]), built.crystal) < 0.2


def test_a_block_of_the_wrong_hand_is_mirrored():
    "The nodes of MOF-177 have a hand; given as their mirror images, they come back as they are in the crystal."
    d, coarse = textbook("MOF-177")
    metal = next(b for b in coarse.blocks if b.is_metal)
    flat = next(b for b in textbook("HKUST-1")[1].blocks if not b.is_metal)
    assert has_hand(metal) and not has_hand(flat)
    flip = lambda b: replace(b, cart_coords=-b.cart_coords, connection_points=-b.connection_points)
    other = replace(coarse, blocks=[flip(b) if b.is_metal else b for b in coarse.blocks])
    built = assemble(other, options=AssemblyOptions(starts=16, generations=1))
    assert built.row["assembled"] and rmsd(recompose(d), built.crystal) < 0.1


@pytest.mark.parametrize("name", ["MIL-53", "IRMOF-1", "UiO-66"])
def test_noisy_beads(name):
    "0.3 A of noise on every bead, and a cell strained by 1 %."
    built = assemble(shuffled(textbook(name)[1], seed=5, noise=0.3, strain=0.01))
    assert built.row["assembled"] and built.row["cp_error"] < 0.05 and built.row["moved"] < 2


def test_same_seed_same_bits_and_frames_do_not_matter():
    _, coarse = textbook("MIL-53")
    one, two = (assemble(shuffled(coarse, seed=1), seed=4) for _ in range(2))
    assert np.array_equal(one.crystal.frac_coords, two.crystal.frac_coords) and np.array_equal(
        one.bonds, two.bonds
    )
    assert {k: v for k, v in one.row.items() if k != "seconds"} == {
        k: v for k, v in two.row.items() if k != "seconds"
    }
    assert rmsd(one.crystal, assemble(shuffled(coarse, seed=2), seed=5).crystal) < 0.1


def test_a_list_gives_what_single_calls_give():
    mofs = [shuffled(textbook("IRMOF-1")[1], seed=1), ditopic_net(), shuffled(textbook("MIL-53")[1], seed=1)]
    together, alone = assemble(mofs), [assemble(m) for m in mofs]
    for a, b in zip(together, alone):
        assert (
            a.row["assembled"]
            and b.row["assembled"]
            and a.row["name"] == b.row["name"]
            and a.crystal.formula == b.crystal.formula
        )
        assert abs(a.row["cp_error"] - b.row["cp_error"]) < 1e-3
    assert assemble([]) == []
    built = assemble(
        [ditopic_net(), shuffled(ditopic_net(), seed=2)],
        options=AssemblyOptions(batch_size=1, starts=8),
        n_jobs=2,
    )
    assert [b.row["assembled"] for b in built] == [True, True]


def test_small_cell_where_a_linker_joins_a_node_with_its_own_image():
    built = assemble(shuffled(ditopic_net(), seed=1))
    assert built.row["assembled"] and len(built.crystal) == 7 and len(built.bonds) == 3 + 6
    pairs = [frozenset((a, b)) for a, b in built.bonds.tolist()]
    assert len(pairs) == 9 and np.bincount(built.bonds.ravel(), minlength=7)[0] == 6


def test_the_impossible_is_reported_and_harms_nobody():
    _, coarse = textbook("MIL-53")
    linker = coarse.blocks[-1]
    one_point = replace(
        linker, connection_points=linker.connection_points[:1], connection_atoms=linker.connection_atoms[:1]
    )
    on_atom = replace(linker, connection_points=linker.cart_coords[linker.connection_atoms])
    nothing = replace(linker, connection_points=np.zeros((0, 3)), connection_atoms=[])
    swap = lambda block: replace(coarse, blocks=[*coarse.blocks[:-1], block])
    bad = {
        "metal against": CoarseMof(coarse.lattice, coarse.frac_coords[:-1], coarse.blocks[:-1]),
        "1 connection point": swap(one_point),
        "0 connection point": swap(nothing),
        "no metal": replace(coarse, blocks=[linker] * len(coarse)),
        "no organic": replace(coarse, blocks=[coarse.blocks[0]] * len(coarse)),
        "own atom": swap(on_atom),
        "flat": replace(coarse, lattice=np.ones((3, 3))),
    }
    results = assemble([*bad.values(), coarse])
    for reason, built in zip(bad, results):
        assert (
            reason in built.row["reason"]
            and built.crystal is None
            and not built.row["assembled"]
            and np.isnan(built.row["cp_error"])
        )
    assert results[-1].row["assembled"] and results[-1].row["matched"] and not results[0].row["matched"]


def test_one_that_breaks_on_the_way_harms_nobody(monkeypatch):
    from matgen_nb.mofdiff import assembly

    real = assembly.scan

    def scan(coarse, *rest):
        if coarse.name == "broken":
            raise RuntimeError("the decomposition did not converge")
        return real(coarse, *rest)

    monkeypatch.setattr(assembly, "scan", scan)
    broken, fine = assemble(
        [replace(ditopic_net(), name="broken"), ditopic_net()], options=AssemblyOptions(starts=8)
    )
    assert broken.crystal is None and "did not converge" in broken.row["reason"] and fine.row["assembled"]


def test_hopeless_beads_still_give_an_honest_row():
    "Beads far too close and far too distant: an answer with torn bonds or clashes, never `assembled`."
    _, coarse = textbook("MIL-53")
    for factor in (0.3, 3.0):
        built = assemble(
            replace(coarse, lattice=factor * coarse.lattice),
            options=AssemblyOptions(starts=8, free_cell=False),
        )
        assert (
            not built.row["assembled"]
            and (built.row["bond_success"] < 1 or built.row["clashes"] > 0)
            and np.isfinite(built.row["cp_error"])
        )


def test_free_cell_heals_a_wrong_cell():
    _, coarse = textbook("IRMOF-1")
    wrong = replace(coarse, lattice=1.03 * coarse.lattice)
    free, fixed = (assemble(wrong, options=AssemblyOptions(free_cell=f)) for f in (True, False))
    assert free.row["cp_error"] < 0.02 < fixed.row["cp_error"] and np.allclose(
        fixed.crystal.lattice, wrong.lattice
    )
    assert abs(free.crystal.volume / recompose(textbook("IRMOF-1")[0]).volume - 1) < 0.01


@given(st.integers(0, 10**6), st.integers(3, 8))
@settings(max_examples=30, deadline=None)
def test_kabsch_is_the_best_rotation(seed, n):
    from scipy.spatial.transform import Rotation

    v, t = np.random.default_rng(seed).normal(size=(2, n, 3))
    R = kabsch(torch.as_tensor(t.T @ v)).numpy()
    assert np.allclose(R @ R.T, np.eye(3)) and np.isclose(np.linalg.det(R), 1)
    assert np.isclose(np.linalg.norm(v @ R.T - t), Rotation.align_vectors(t, v)[1], atol=1e-6)


def test_grid_is_even():
    grid = rotation_grid(500)
    assert (
        torch.allclose(grid @ grid.mT, torch.eye(3, dtype=torch.float64).expand_as(grid))
        and grid.mean(0).abs().max() < 0.02
    )


def test_joint_choice_finds_the_best_pair_of_a_small_table():
    table = torch.rand(2 * 5, 3 * 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = table.reshape(2, 5, 3, 5)
    best = max(
        float(
            sum(max(sum(rows[m, a, o, b] for m, a in enumerate(metals)) for b in range(5)) for o in range(3))
        )
        for metals in itertools.product(range(5), repeat=2)
    )
    choice = choose_jointly(table, 5, starts=64)
    assert abs(float(choice.reward.max()) - best) < 1e-9
    assert choice.metals.shape == (64, 2) and choice.organics.shape == (64, 3)


def test_matching_is_optimal_and_padding_stays_out():
    from scipy.optimize import linear_sum_assignment

    mofs = [shuffled(ditopic_net(), seed=0), shuffled(textbook("MIL-53")[1], seed=0)]
    joints = collate(mofs)
    R = quaternion_to_matrix(
        torch.nn.functional.normalize(
            torch.randn(
                2, 3, joints.frac.shape[1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
            ),
            dim=-1,
        )
    )
    state = as_given(joints, R)
    found = match(joints, state)
    to, cost = found.solution.to, found.cost
    own = collate(mofs[:1])
    alone = match(own, Solution(R[:1, :, :4], state.frac[:1, :, :4], state.lattice[:1]))
    assert torch.allclose(alone.cost.sum(-1), cost[0, :, :6].sum(-1))
    assert (cost[0, :, 6:] == 0).all() and (to[0, :, :6] < 6).all()
    full = joint_gaps(joints, state).square[1, 0, :12, :12].numpy()
    assert np.isclose(full[linear_sum_assignment(full)].sum(), float(cost[1, 0].sum()))


def test_polish_keeps_what_is_right():
    d, coarse = textbook("UiO-66")
    joints = collate([coarse])
    R = torch.eye(3, dtype=torch.float64).repeat(1, 1, len(coarse), 1, 1)
    found = match(joints, as_given(joints, R))
    assert found.cost.max() < 1e-12
    after = polish(joints, found.solution)
    for now, before in ((after.lattice, found.solution.lattice), (after.frac, found.solution.frac)):
        assert torch.allclose(now, before, atol=1e-8)
    tilt = rotation_from_vector(torch.full((1, 1, len(coarse), 3), 0.1, dtype=torch.float64))
    bent = polish(joints, replace(found.solution, R=tilt @ R), steps=8)
    assert bond_quality(joints, bent).gap.max() < 1e-4


def test_small_parts():
    assert unlike(torch.tensor([5.0, 1.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]
    W = soften(torch.full((4, 4), -30.0).fill_diagonal_(0.0).double(), rounds=4)
    assert torch.allclose(W, torch.eye(4, dtype=torch.float64), atol=1e-6)
    zinc, rod, *_ = ditopic_net().blocks
    assert len(alternatives(zinc)) == 24 and len(alternatives(rod)) == 48 and why_not(ditopic_net()) == ""
    with pytest.raises(MatgenError, match="own atom"):
        ends(replace(zinc, connection_points=np.zeros((6, 3))))


def test_real_frameworks_where_present():
    folder = next(
        (
            p / "shared/data/mofs"
            for p in Path(__file__).resolve().parents
            if (p / "shared/data/mofs").is_dir()
        ),
        None,
    )
    if folder is None:
        pytest.skip("no folder of real frameworks here")
    names = ["MIL-88B-dry", "ZIF-9", "Cu-BTC", "NU-108-Zn", "Co_2_6-NDP_", "MgMOF-74"]
    mofs = [CoarseMof.from_decomposition(decompose(Mof.from_cif(folder / f"{n}.cif")), name=n) for n in names]
    assert sum(b.row["assembled"] for b in assemble([shuffled(m, seed=1, noise=0.3) for m in mofs])) >= 5


def test_the_next_arrangement_is_tried_where_the_atoms_fail_the_checks():
    "The rod of two bare nitrogen atoms closes without a clash and still is no framework; IRMOF-1 is one."
    from matgen_nb.mofdiff.assembly import assemble_first
    from matgen_nb.mofdiff.evaluation import shows_what_was_built

    bad, good = replace(ditopic_net(), name="a"), replace(textbook("IRMOF-1")[1], name="a")
    options = AssemblyOptions(starts=8, generations=1)
    seen = []

    def accept(built):
        seen.append(shows_what_was_built(built.to_mof()))
        return seen[-1]

    [any_] = assemble_first([[bad, good]], options=options)
    assert any_.row["assembled"] and any_.row["candidate"] == 0
    [checked] = assemble_first([[bad, good]], options=options, accept=accept)
    assert seen == [False, True] and checked.row["candidate"] == 1
    [none] = assemble_first([[bad, bad]], options=options, accept=accept)
    assert none.row["candidate"] == 0 and none.row["assembled"], "the best is kept where none is accepted"
    crossed = replace(good, edges=None, shifts=None)
    [built] = assemble_first([[crossed]], options=options)
    made = built.to_mof()
    oxygen = (np.sort(made.crystal.elements[made.bonds], 1) == (6, 8)).all(1)
    torn = replace(made, bonds=made.bonds[~oxygen], images=made.images[~oxygen])
    assert shows_what_was_built(made) and not shows_what_was_built(torn)
    one = np.flatnonzero((np.sort(made.crystal.elements[made.bonds], 1) == (8, 30)).all(1))[:1]
    less = replace(made, bonds=np.delete(made.bonds, one, 0), images=np.delete(made.images, one, 0))
    assert not shows_what_was_built(less), "the atoms show one bond more than was put together"


def test_a_lattice_that_is_no_numbers_is_rejected():
    with pytest.raises(MatgenError, match="finite"):
        replace(textbook("IRMOF-1")[1], lattice=np.full((3, 3), np.nan))
