"""Frameworks taken apart: the right blocks for textbook MOFs, the same blocks in any cell, exact re-composition, and a reason for what is rejected."""

import itertools
import os
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.mofdiff.bonds import (
    Mof,
    TEXTBOOK,
    connected,
    find_bonds,
    integer_basis,
    neighbour_pairs,
    averaged_primitive_cell,
    textbook_crystal,
    textbook_mof,
    textbook_mofs,
)
from matgen_nb.mofdiff.building_blocks import BuildingBlock
from matgen_nb.mofdiff.decomposition import decompose, recompose
from matgen_nb import Crystal
from matgen_nb.symmetry.crystal import CrystalError
from matgen_nb.utils import MatgenError

REAL = (
    Path(os.environ.get("MATGEN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mofs"
)  # real structures, where they are at hand
LITERATURE = {
    "IRMOF-1": (8, {("OZn4", 12): 2, ("C8H4O4", 4): 6}),
    "IRMOF-10": (8, {("OZn4", 12): 2, ("C14H8O4", 4): 6}),
    "HKUST-1": (14, {("Cu2", 8): 6, ("C9H3O6", 6): 8}),
    "UiO-66": (7, {("H4O8Zr6", 24): 1, ("C8H4O4", 4): 6}),
    "ZIF-8": (18, {("Zn", 4): 6, ("C4H5N2", 2): 12}),
    "MOF-177": (24, {("OZn4", 12): 8, ("C27H15O6", 6): 16}),
    "MOF-74": (9, {("Zn", 5): 6, ("C8H2O6", 10): 3}),
    "MIL-53": (6, {("Cr", 6): 2, ("HO", 2): 2, ("C8H4O4", 4): 2}),
}


def kinds(d):
    return Counter((b.formula, b.num_connections) for b in d.blocks)


def meaning(d):
    "What must not depend on the description of the crystal: blocks with their names and shapes, who is joined to whom, nets."
    name = [
        (
            b.identity,
            b.is_metal,
            round(float(np.linalg.norm(b.connection_points, axis=1).sum()), 3),
            round(b.diameter, 3),
        )
        for b in d.blocks
    ]
    joints = Counter((name[m], name[o]) for m, _, o, _ in d.connections.tolist())
    return Counter(name), joints, d.nets, d.dimension, round(abs(np.linalg.det(d.lattice)), 3)


def supercell(crystal, rows):
    "The same crystal in a cell with integer rows (3, 3) of its lattice vectors."
    reach = int(np.abs(rows).sum(0).max()) + 1
    shifts = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    frac = ((crystal.frac_coords + shifts) @ np.linalg.inv(rows)).reshape(-1, 3)
    frac = np.where(np.abs(frac - np.round(frac)) < 1e-9, np.round(frac), frac)
    keep = ((frac >= 0) & (frac < 1)).all(1)
    return Crystal(
        np.asarray(rows) @ crystal.lattice, np.tile(crystal.elements, len(shifts))[keep], frac[keep]
    )


def with_atoms(crystal, elements, cart):
    return Crystal(
        crystal.lattice,
        [*crystal.elements, *elements],
        np.concatenate([crystal.frac_coords, np.asarray(cart) @ np.linalg.inv(crystal.lattice)]),
    )


@pytest.mark.parametrize("name", TEXTBOOK)
def test_textbook_blocks(name):
    d = decompose(textbook_mof(name))
    assert (len(d), kinds(d)) == LITERATURE[name] and (d.nets, d.dimension) == (1, 3)
    points = [sum(b.num_connections for b in d.blocks if b.is_metal == metal) for metal in (True, False)]
    assert points == [len(d.connections)] * 2, "metal and organic connection points are equally many"
    assert name == "MIL-53" or not d.report


def test_non_metals_that_crowd_each_other_are_not_bound():
    pair = lambda a, b, d: len(find_bonds(Crystal(15 * np.eye(3), [a, b], [[0, 0, 0], [d / 15, 0, 0]]))[0])
    for a, b, longest, crowded in (
        (6, 6, 1.80, 1.90),
        (6, 8, 1.60, 1.80),
        (6, 7, 1.65, 1.85),
        (16, 6, 2.05, 2.15),
        (5, 5, 1.90, 2.05),
        (53, 6, 2.3, 2.5),
    ):
        assert pair(a, b, longest) == 1 and pair(a, b, crowded) == 0
    assert pair(6, 1, 1.4) == 1 and pair(30, 8, 2.3) == 1, "hydrogen and metals keep their slack"


@pytest.mark.skipif(
    not (REAL.parent / "mofs_hypothetical").exists(), reason="no collection of frameworks at hand"
)
@pytest.mark.parametrize("name", ["nbo_N387_E178", "hxg_N638_E13", "eta_N611_E151", "acs_N433_E223"])
def test_crowded_hypothetical_frameworks_have_the_same_blocks_and_fewer_identities(name, monkeypatch):
    import matgen_nb.mofdiff.bonds as module

    crystal = Mof.from_cif(next((REAL.parent / "mofs_hypothetical").rglob(f"{name}.cif"))).crystal
    now = decompose(Mof(crystal, *find_bonds(crystal)))
    monkeypatch.setattr(module, "COVALENT_TOLERANCE", module.BOND_TOLERANCE)
    before = decompose(Mof(crystal, *find_bonds(crystal)))
    assert kinds(now) == kinds(before) and {b.identity for b in now.blocks} < {
        b.identity for b in before.blocks
    }


def test_a_changed_copy_of_a_block_has_its_own_identity():
    block = next(b for b in decompose(textbook_mof("IRMOF-1")).blocks if not b.is_metal)
    fluoro = replace(block, elements=np.where(block.elements == 1, 9, block.elements))
    fresh = BuildingBlock(
        fluoro.elements,
        fluoro.cart_coords,
        fluoro.bonds,
        fluoro.connection_points,
        fluoro.connection_atoms,
        False,
    )
    assert block.identity != fluoro.identity == fresh.identity
    kept, stated = (
        replace(block, cart_coords=block.cart_coords + 1),
        replace(fresh, stored_identity="from a file"),
    )
    assert (
        kept.stored_identity == block.identity
        and stated.identity == stated.rotated(np.eye(3)).identity == "from a file"
    )
    assert (
        replace(stated, bonds=stated.bonds[1:]).stored_identity
        == ""
        == replace(stated, is_metal=True).stored_identity
    )


@pytest.mark.parametrize("name", TEXTBOOK)
def test_recompose_is_exact(name):
    mof = textbook_mof(name)
    d = decompose(mof)
    again, order = recompose(d), np.concatenate(d.atoms)
    assert (
        sorted(order.tolist()) == list(range(len(mof)))
        and (again.elements == mof.crystal.elements[order]).all()
    )
    moved = again.frac_coords - mof.crystal.frac_coords[order]
    assert np.abs((moved - moved.round()) @ mof.crystal.lattice).max() < 1e-6


@pytest.mark.parametrize("name", TEXTBOOK)
def test_connection_points_meet(name):
    d = decompose(textbook_mof(name))
    for (a, p, b, q), image in zip(d.connections, d.images):
        metal, organic = d.blocks[a], d.blocks[b]
        shift = (d.frac_coords[b] + image - d.frac_coords[a]) @ d.lattice
        assert metal.is_metal and not organic.is_metal
        assert np.abs(shift + organic.connection_points[q] - metal.connection_points[p]).max() < 1e-6
        ends = (
            metal.cart_coords[metal.connection_atoms[p]],
            shift + organic.cart_coords[organic.connection_atoms[q]],
        )
        assert (
            np.allclose(metal.connection_points[p], np.mean(ends, 0))
            and 1.5 < np.linalg.norm(ends[0] - ends[1]) < 3.0
        )
    for block in d.blocks:
        assert np.abs(block.connection_points.mean(0)).max() < 1e-9, (
            "the origin is the centroid of the connection points"
        )


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["IRMOF-1", "HKUST-1", "MOF-74", "MIL-53", "UiO-66"]), seed=st.integers(0, 10_000)
)
def test_any_cell_gives_the_same_blocks(name, seed):
    rng, crystal = np.random.default_rng(seed), textbook_mof(name).crystal
    rows = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.choice(3, 2, replace=False)
        rows[i] += rng.choice([-1, 1]) * rows[j]
    rows = np.diag([[1, 1, 1], [2, 1, 1], [1, 2, 1]][rng.integers(3)]) @ rows
    other = supercell(crystal, rows)
    assert len(other) == round(abs(np.linalg.det(rows))) * len(crystal)
    order = rng.permutation(len(other))
    other = Crystal(other.lattice, other.elements[order], other.frac_coords[order] + rng.random(3))
    assert meaning(decompose(Mof.from_crystal(other))) == meaning(decompose(textbook_mof(name)))


def test_turned_crystal():
    crystal = textbook_mof("HKUST-1").crystal
    R = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    R *= np.sign(np.linalg.det(R))
    assert meaning(
        decompose(Mof.from_crystal(Crystal(crystal.lattice @ R.T, crystal.elements, crystal.frac_coords)))
    ) == meaning(decompose(textbook_mof("HKUST-1")))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-4, 4)] * 3), min_size=3, max_size=6).filter(
        lambda v: np.linalg.matrix_rank(np.array(v)) == 3
    )
)
def test_integer_basis_spans_the_same_lattice(vectors):
    basis = integer_basis(np.array(vectors))
    steps = np.array(vectors) @ np.linalg.inv(basis)
    assert np.allclose(steps, steps.round(), atol=1e-6)
    minors = [
        round(abs(np.linalg.det(np.array(vectors)[list(c)])))
        for c in itertools.combinations(range(len(vectors)), 3)
    ]
    assert abs(round(np.linalg.det(basis))) == np.gcd.reduce(minors)


def test_neighbours_against_a_double_loop():
    rng = np.random.default_rng(1)
    crystal = Crystal([[4, 0, 0], [3, 3, 0], [-1, 2, 5]], [6] * 5, rng.random((5, 3)))
    i, j, image, distance = neighbour_pairs(crystal, 5.0)
    found = Counter(distance.round(6).tolist())
    shifts = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3, indexing="ij"), -1).reshape(-1, 3)
    all_pairs = [
        np.linalg.norm((crystal.frac_coords[b] + s - crystal.frac_coords[a]) @ crystal.lattice)
        for a in range(5)
        for b in range(5)
        for s in shifts
    ]
    assert Counter(round(float(x), 6) for x in all_pairs if 1e-9 < x < 5.0) == Counter(
        {k: 2 * v for k, v in found.items()}
    )


def test_primitive_cell_keeps_what_is_primitive():
    crystal = textbook_mof("MIL-53").crystal
    again = averaged_primitive_cell(crystal)
    assert len(again) == len(crystal) and np.isclose(again.volume, crystal.volume)


def test_endless_pieces_are_found():
    label, _, loops = connected(4, [[0, 1], [1, 0], [2, 3]], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert label[0] == label[1] != label[2] == label[3] and list(loops) == [0]


@pytest.mark.parametrize(
    "text, crystal",
    [
        (
            "no metal",
            lambda: Crystal(
                3.57 * np.eye(3),
                [6] * 8,
                np.array(
                    [[0, 0, 0], [2, 2, 0], [2, 0, 2], [0, 2, 2], [1, 1, 1], [3, 3, 1], [3, 1, 3], [1, 3, 3]]
                )
                / 4,
            ),
        ),
        ("no carbon", lambda: Crystal(5.64 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])),
        (
            "molecules or ions",
            lambda: Crystal(12 * np.eye(3), [28, 6, 8], [[0, 0, 0], [0.15, 0, 0], [0.246, 0, 0]]),
        ),
        (
            "metal-metal bonds",
            lambda: Crystal(np.diag([10, 10, 2.5]), [28, 6, 8], [[0, 0, 0], [0.19, 0, 0], [0.31, 0, 0]]),
        ),
        (
            "has no end",
            lambda: Crystal(np.diag([10, 10, 2.6]), [6, 6, 30], [[0, 0, 0], [0.05, 0, 0.5], [0.3, 0, 0.25]]),
        ),
        (
            "overlap",
            lambda: with_atoms(
                textbook_mof("MIL-53").crystal,
                [6],
                textbook_mof("MIL-53").crystal.cart_coords[:1] + [0.4, 0, 0],
            ),
        ),
    ],
)
def test_rejected_with_a_reason(text, crystal):
    with pytest.raises(MatgenError, match=text):
        decompose(Mof.from_crystal(crystal(), "sample"))


def test_disordered_cif_is_rejected():
    cif = re.sub(r"(?m)^(C C.*) 1$", r"\1 0.5", textbook_mof("MIL-53").crystal.to_cif())
    with pytest.raises(CrystalError, match="disordered"):
        Mof.from_cif(cif)


def test_solvent_is_removed_and_named():
    mof = textbook_mof("HKUST-1")
    d = decompose(mof)
    block, x = next((b, x) for b, x in zip(d.blocks, d.frac_coords) if b.is_metal)
    copper = x @ mof.crystal.lattice + block.cart_coords
    out = (copper[0] - copper[1]) / np.linalg.norm(copper[0] - copper[1])
    pore = np.array([0.5, 0.5, 0.5]) @ mof.crystal.lattice
    wet = decompose(
        Mof.from_crystal(
            with_atoms(
                mof.crystal,
                [6, 8, 8, 1, 1],
                [
                    copper[0] + 2 * out,
                    copper[0] + 3.13 * out,
                    pore,
                    pore + [0.96, 0, 0],
                    pore + [-0.24, 0.93, 0],
                ],
            )
        )
    )
    assert any("bound to nothing" in line and "H2O" in line for line in wet.report) and any(
        "single bond" in line and "1 CO" in line for line in wet.report
    )
    assert kinds(wet) == kinds(d) and sum(map(len, wet.atoms)) == len(mof)


def test_interpenetrated_nets_are_counted():
    crystal = textbook_mof("IRMOF-10").crystal
    both = Crystal(
        crystal.lattice,
        np.tile(crystal.elements, 2),
        np.concatenate([crystal.frac_coords, crystal.frac_coords + 0.25]),
    )
    d = decompose(Mof.from_crystal(both))
    assert d.nets == 2 and len(d) == 16 and "2 interpenetrating nets" in d.report


def test_rod_becomes_nodes_and_bridges():
    d = decompose(textbook_mof("MIL-53"))
    assert any("rod" in line for line in d.report) and kinds(d)[("HO", 2)] == 2


def test_magnesium_rod_is_not_a_wire():
    crystal = textbook_mof("MOF-74").crystal
    magnesium = Crystal(
        crystal.lattice, np.where(crystal.elements == 30, 12, crystal.elements), crystal.frac_coords
    )
    assert kinds(decompose(Mof.from_crystal(magnesium)))[("Mg", 5)] == 6


def test_hydrogen_has_one_bond():
    for mof in textbook_mofs().values():
        ends, counts = np.unique(mof.bonds[mof.crystal.elements[mof.bonds] == 1], return_counts=True)
        assert (counts == 1).all() and len(ends) == (mof.crystal.elements == 1).sum()


def test_identity_belongs_to_the_graph():
    biphenyl, bdc = (
        next(b for b in decompose(textbook_mof(n)).blocks if not b.is_metal) for n in ("IRMOF-10", "IRMOF-1")
    )
    rng = np.random.default_rng(2)
    conformer = replace(
        biphenyl, cart_coords=biphenyl.cart_coords + rng.normal(size=(len(biphenyl), 3)), stored_identity=""
    )
    order = rng.permutation(len(biphenyl))
    place = np.argsort(order)
    shuffled = BuildingBlock(
        biphenyl.elements[order],
        biphenyl.cart_coords[order],
        place[biphenyl.bonds],
        biphenyl.connection_points[::-1],
        place[biphenyl.connection_atoms[::-1]],
        False,
    )
    assert biphenyl.identity == conformer.identity == shuffled.identity != bdc.identity
    assert len({b.identity for m in textbook_mofs().values() for b in decompose(m).blocks}) == 13, (
        "13 different blocks in the eight textbooks"
    )


def test_stored_identity_needs_no_rdkit(monkeypatch):
    block = BuildingBlock([6, 8], [[0, 0, 0], [1.2, 0, 0]], [[0, 1]], [[2, 0, 0]], [1], False)
    monkeypatch.setitem(sys.modules, "rdkit", None)
    assert replace(block, stored_identity="abc").identity == "abc"
    with pytest.raises(MatgenError, match="rdkit"):
        _ = block.identity


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(connection_atoms=[7]), "connection_atoms"),
        (dict(bonds=[[0, 9]]), "bonds"),
        (dict(connection_points=np.zeros((3, 3))), "as many"),
        (dict(cart_coords=[[0, 0, np.nan], [1, 0, 0]]), "no numbers"),
        (dict(elements=[]), "positions"),
    ],
)
def test_broken_blocks_are_rejected(change, text):
    good = dict(
        elements=[6, 8],
        cart_coords=[[0, 0, 0], [1.2, 0, 0]],
        bonds=[[0, 1]],
        connection_points=[[2, 0, 0]],
        connection_atoms=[1],
        is_metal=False,
    )
    with pytest.raises(MatgenError, match=text):
        BuildingBlock(**{**good, **change})


def test_speed():
    start = time.process_time()
    decompose(Mof.from_crystal(textbook_crystal("HKUST-1")))
    assert time.process_time() - start < 1.0, "624 atoms"
    big = supercell(textbook_mof("HKUST-1").crystal, np.diag([4, 5, 1]))
    start = time.process_time()
    assert len(decompose(Mof.from_crystal(big))) == 14
    assert len(big) == 3120 and time.process_time() - start < 10.0
    noisy = Crystal(
        big.lattice,
        big.elements,
        big.frac_coords
        + np.random.default_rng(0).normal(0, 0.08, big.frac_coords.shape) @ np.linalg.inv(big.lattice),
    )
    start = time.process_time()
    assert len(decompose(Mof.from_crystal(noisy))) == 280, "no translation left: every block counts"
    assert time.process_time() - start < 20.0


@pytest.mark.skipif(not REAL.exists(), reason="no collection of real frameworks in this checkout")
@pytest.mark.parametrize(
    "name, file",
    [
        ("IRMOF-1", "IRMOF-1"),
        ("HKUST-1", "Cu-BTC"),
        ("MOF-74", "Zn-DOBDC"),
        ("MIL-53", "MIL-53_Cr_ht"),
        ("IRMOF-10", "IRMOF-10"),
    ],
)
def test_textbook_against_deposited_structures(name, file):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    other = Mof.from_cif(REAL / f"{file}.cif").crystal
    matcher = StructureMatcher(scale=False, primitive_cell=len(other) != len(textbook_mof(name)))
    rms = matcher.get_rms_dist(textbook_mof(name).crystal.to_pymatgen(), other.to_pymatgen())
    assert rms is not None and rms[0] < 0.01


def carboxylate_chain(metals, gap, bond):
    """Chains of metals `gap` (A) along z, neighbours bridged by four terephthalates that bind with `bond` (A), as a crystal:
    every metal has eight oxygens, the linkers join the chains to a framework."""
    height = gap / 2 - 1.1
    out = np.sqrt(bond**2 - height**2)  # of the oxygens, from the axis of the chain
    ring = [
        (6, 2.08, 0, 0),
        (6, 2.775, 1.204, 0),
        (1, 2.23, 2.14, 0),
        (6, 2.775, -1.204, 0),
        (1, 2.23, -2.14, 0),
    ]
    arm = [(8, 0, 0, 1.1), (8, 0, 0, -1.1), (6, 0.6, 0, 0), *ring]
    side = 2 * (out + 3.47)  # the far half of each linker is its image by the half turn
    axes = [np.array([x, y]) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    elements, cart = list(metals), [[0, 0, k * gap] for k in range(len(metals))]
    for k in range(len(metals)):
        for axis in axes:
            across = np.array([-axis[1], axis[0]])
            for z, along, sideways, up in arm:
                elements.append(z)
                cart.append([*((out + along) * axis + sideways * across), (k + 0.5) * gap + up])
    lattice = np.diag([side, side, len(metals) * gap])
    return Crystal(lattice, elements, np.array(cart) @ np.linalg.inv(lattice))


CHAINS = [
    ((57,), 4.40, 2.50),
    ((64,), 4.36, 2.45),
    ((39,), 4.20, 2.40),
    ((21,), 3.84, 2.20),
    ((58, 60), 4.45, 2.52),
    ((20,), 3.95, 2.40),
    ((56,), 4.60, 2.75),
    ((19, 42), 3.89, 2.50),
    ((55, 57), 4.60, 2.90),
    ((37,), 4.50, 2.85),
    ((90,), 4.20, 2.45),
    ((92,), 4.25, 2.42),
    ((82,), 4.05, 2.70),
    ((83,), 4.00, 2.70),
    ((81,), 4.00, 2.68),
    ((50,), 3.90, 2.60),
    ((51,), 3.85, 2.58),
    ((82, 38), 4.10, 2.66),
]


@pytest.mark.parametrize("metals, gap, bond", CHAINS, ids=lambda x: str(x))
def test_large_metals_are_nodes_not_wires(metals, gap, bond):
    "Contacts of large metals are no bonds, and long bonds of metals with a lone pair are."
    from matgen_nb.symmetry.crystal import element_table

    d = decompose(Mof.from_crystal(carboxylate_chain(metals, gap, bond)))
    symbols = element_table().symbol[list(metals)].tolist()
    assert kinds(d) == Counter(
        {("C8H4O4", 4): 2 * len(metals), **{(s, 8): symbols.count(s) for s in symbols}}
    )
    assert (d.nets, d.dimension, d.report) == (1, 3, [])


def test_the_chain_of_lanthanum_that_was_handed_in():
    for metal in (None, 57, 64):
        crystal = Crystal.from_cif(Path(__file__).parent / "cases" / "mofs" / "La_carboxylate_chain.cif")
        if metal is not None:
            crystal = Crystal(
                crystal.lattice,
                np.where(crystal.elements == 57, metal, crystal.elements),
                crystal.frac_coords,
            )
        d = decompose(Mof.from_crystal(crystal))
        assert sorted(b.num_connections for b in d.blocks) == [4, 4, 8] and d.dimension == 3


def bonded(a, b, distance):
    return len(find_bonds(Crystal(20 * np.eye(3), [a, b], [[0, 0, 0], [distance / 20, 0, 0]]))[0]) == 1


def test_metal_metal_bonds_have_the_length_of_bonds():
    "Published lengths (A) of metal-metal bonds that nothing bridges; the same elements where they only come near each other."
    known = [
        (42, 2.09),
        (75, 2.24),
        (44, 2.27),
        (45, 2.39),
        (28, 2.48),
        (30, 2.30),
        (80, 2.50),
        (26, 2.68),
        (27, 2.52),
        (78, 2.70),
        (79, 2.60),
        (25, 2.90),
        (43, 3.04),
        (75, 3.04),
        (42, 3.235),
        (74, 3.222),
        (76, 2.88),
        (83, 3.00),
        (51, 2.84),
        (50, 2.78),
        (82, 2.84),
        (49, 2.82),
    ]
    assert [x for x in known if not bonded(x[0], x[0], x[1])] == []
    near = [
        (29, 3.01),
        (30, 2.95),
        (47, 3.25),
        (79, 3.10),
        (48, 3.30),
        (40, 3.50),
        (82, 3.70),
        (83, 3.80),
        (72, 3.45),
        (57, 3.2),
        (19, 3.3),
        (12, 2.9),
    ]
    assert [x for x in near if bonded(x[0], x[0], x[1])] == []


IONS = [3, 11, 19, 37, 55, 4, 12, 20, 38, 56, 21, 39, *range(57, 72), *range(89, 95)]
METALS = [
    z
    for z in range(3, 95)
    if z not in (5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 33, 34, 35, 36, 52, 53, 54, 84, 85, 86)
]


@settings(max_examples=60, deadline=None)
@given(
    a=st.sampled_from(METALS),
    b=st.sampled_from(METALS),
    ion=st.sampled_from(IONS),
    far=st.floats(3.31, 4.9),
    near=st.floats(2.5, 4.9),
)
def test_no_metals_are_bound_over_a_gap(a, b, ion, far, near):
    assert not bonded(a, b, far)
    assert not (near > 0.56 * 4.9 and bonded(ion, b, near))


@pytest.mark.parametrize("metal", [50, 51, 81, 82, 83])
def test_lone_pair_metals_bind_donors_far_away_and_nothing_else(metal):
    from matgen_nb.symmetry.crystal import element_table

    radius = element_table().radius
    for donor in (7, 8, 9, 16, 17, 34, 35, 53):
        usual = radius[metal] + radius[donor] + 0.45
        assert (
            bonded(metal, donor, usual + 0.19)
            and not bonded(metal, donor, usual + 0.21)
            and not bonded(30, donor, radius[30] + usual - radius[metal] + 0.05)
        )
    assert not bonded(metal, 6, radius[metal] + radius[6] + 0.46), "carbon is no donor"
    assert bonded(82, 8, 2.70) and not bonded(82, 8, 2.95)


@pytest.mark.parametrize("metal, bond", [(24, 1), (30, 1), (42, 1), (45, 1), (12, 0), (38, 0)])
def test_paddlewheels_stay_one_node_where_metals_can_be_joined(metal, bond):
    crystal = textbook_crystal("HKUST-1")
    d = decompose(
        Mof.from_crystal(
            Crystal(
                crystal.lattice,
                np.where(crystal.elements == 29, metal, crystal.elements),
                crystal.frac_coords,
            )
        )
    )
    nodes = [b for b in d.blocks if b.is_metal]
    assert len(nodes) == (6 if bond else 12) and {len(b.bonds) for b in nodes} == {bond}


def test_an_anhydrous_lead_framework_is_three_dimensional():
    "Pb-O of MOF-70 run from 2.49 to 2.68 A: at the common limit of 2.57 A it falls into chains."
    d = decompose(Mof.from_crystal(carboxylate_chain((82,), 4.0, 2.68)))
    assert (d.nets, d.dimension) == (1, 3)
    if (REAL / "MOF-70.cif").exists():
        d = decompose(Mof.from_cif(REAL / "MOF-70.cif"))
        assert (d.nets, d.dimension) == (1, 3) and kinds(d) == {("C8H4O4", 6): 4, ("Pb", 6): 4}
