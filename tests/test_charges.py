"""Charges by equilibration: the sum over the crystal, neutrality, invariance, values of another program, bad input."""

import importlib
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings, strategies as st

from matgen_nb.mofdiff import charges as ch
from matgen_nb.mofdiff.bonds import textbook_crystal
from matgen_nb import Crystal
from matgen_nb.utils import MatgenError

FACE = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def binary(first, second, edge, step=0.5):
    "Rock salt, or with step 0.25 zinc blende."
    return Crystal(edge * np.eye(3), [first] * 4 + [second] * 4, np.concatenate([FACE, FACE + step]) % 1)


def random_crystal(seed, n=6):
    "A skewed cell with n atoms that are at least 1 A apart."
    rng = np.random.default_rng(seed)
    lattice = 6 * np.eye(3) + rng.normal(scale=0.8, size=(3, 3))
    points = []
    while len(points) < n:
        new = rng.random(3)
        gap = np.array(points).reshape(-1, 3) - new
        if not len(points) or np.linalg.norm((gap - np.round(gap)) @ lattice, axis=1).min() > 1.2:
            points.append(new)
    return Crystal(lattice, rng.choice([1, 6, 7, 8, 30, 29, 40], n), np.array(points))


@pytest.mark.parametrize("cell", [np.eye(3), np.array([[1, 0, 0], [1, 1, 0], [0, 2, 1]])])
def test_madelung_constant_in_any_cell(cell):
    "Rock salt, in the cubic cell and in one that is skewed."
    lattice = 5.64 * cell
    frac = np.concatenate([FACE, FACE + 0.5]) @ np.linalg.inv(cell)
    signs = np.repeat([1.0, -1.0], 4)
    potential = ch.coulomb_matrix(lattice, frac % 1) @ signs
    assert np.allclose(-signs * potential * 2.82, 1.747564594633, rtol=1e-8)


def test_the_sum_does_not_depend_on_how_it_is_divided(monkeypatch):
    crystal = random_crystal(3)
    before = ch.coulomb_matrix(crystal.lattice, crystal.frac_coords)
    monkeypatch.setattr(ch, "_SPLIT", 0.5)
    assert np.allclose(ch.coulomb_matrix(crystal.lattice, crystal.frac_coords), before, atol=1e-7)


@pytest.mark.parametrize("first, second, edge, wanted", [(11, 17, 5.64, 0.595), (12, 8, 4.21, 1.436)])
def test_salts_have_the_charges_of_open_babel(first, second, edge, wanted):
    "Open Babel 3.1.1 (openbabel-wheel 3.1.1.23), model eqeq, printed to three digits."
    found = ch.equilibrated_charges(binary(first, second, edge))
    assert np.allclose(found, np.repeat([wanted, -wanted], 4), atol=1e-3)


def test_irmof_has_the_charges_of_open_babel():
    found = ch.equilibrated_charges(textbook_crystal("IRMOF-1"))
    counts, wanted = [32, 8, 96, 48, 48, 96, 96], [1.212, -0.958, -0.483, 0.322, -0.065, -0.023, 0.054]
    assert np.abs(found - np.repeat(wanted, counts)).max() < 1.5e-3


def test_copper_carboxylate():
    "Signs and sizes as published for HKUST-1 (Castillo, Vlugt, Calero 2008): Cu 1.25, O -0.62, C 0.49 at the carboxylate."
    crystal = textbook_crystal("HKUST-1")
    found = ch.equilibrated_charges(crystal)
    of = lambda z: found[crystal.elements == z]
    assert 0.8 < of(29).min() and of(29).max() < 1.3 and np.ptp(of(29)) < 1e-3, "all copper atoms are alike"
    assert -0.7 < of(8).min() and of(8).max() < -0.35
    assert 0.3 < np.sort(of(6))[-96] and np.abs(of(1)).max() < 0.2


@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
def test_charges_are_neutral_and_do_not_depend_on_the_description(seed):
    crystal, rng = random_crystal(seed), np.random.default_rng(seed)
    try:
        before = ch.equilibrated_charges(crystal)
    except MatgenError as error:
        assert "run away" in str(error)
        return
    assert abs(before.sum()) < 1e-10 and (ch.equilibrated_charges(crystal) == before).all()
    order = rng.permutation(len(crystal))
    moved = Crystal(crystal.lattice, crystal.elements[order], crystal.frac_coords[order] + rng.normal(size=3))
    assert np.allclose(ch.equilibrated_charges(moved), before[order], atol=1e-6)
    double = np.concatenate([crystal.frac_coords, crystal.frac_coords + [1, 0, 0]]) / [2, 1, 1]
    twice = Crystal(crystal.lattice * [[2], [1], [1]], np.tile(crystal.elements, 2), double)
    assert np.allclose(ch.equilibrated_charges(twice), np.tile(before, 2), atol=1e-6)


def test_rejections(monkeypatch):
    box, whole = 8 * np.eye(3), ch.ionization_table()
    monkeypatch.setattr(ch, "ionization_table", lambda: {z: e for z, e in whole.items() if z not in (76, 89)})
    with pytest.raises(MatgenError, match="no ionisation energies for Os, Ac"):
        ch.equilibrated_charges(Crystal(box, [6, 89, 76], [[0, 0, 0], [0.3, 0, 0], [0.6, 0, 0]]))
    with pytest.raises(MatgenError, match="0.3 A apart"):
        ch.equilibrated_charges(Crystal(box, [6, 8], [[0, 0, 0], [0.01, 0, 0]]))
    with pytest.raises(MatgenError, match="run away"):
        ch.equilibrium(np.array([[0.0, 9.0], [9.0, 0.0]]), np.zeros(2))


@pytest.mark.parametrize(
    "charges, message",
    [
        ([0.5, -0.4], r"add up to \+0.100 e"),
        ([0.5], "has 2 atoms and needs as many charges, not 1"),
        ([np.nan, 0.0], "1 of 2 charges of salt are no numbers"),
    ],
)
def test_charges_are_checked(charges, message):
    with pytest.raises(MatgenError, match=message):
        ch.check_charges(charges, 2, "salt")


def test_charges_of_a_file_follow_the_atoms(tmp_path):
    crystal = binary(11, 17, 5.64)
    text = crystal.to_cif()
    with pytest.raises(MatgenError, match="no column _atom_site_charge"):
        ch.charges_in_cif(text, crystal, "salt.cif")
    lines = [
        "data_salt", *(f"_cell_length_{a} 5.64" for a in "abc"), *(f"_cell_angle_{a} 90" for a in ("alpha", "beta", "gamma")),
        "_symmetry_space_group_name_H-M 'F m -3 m'", "loop_", "_atom_site_label", "_atom_site_type_symbol",
        *(f"_atom_site_fract_{a}" for a in "xyz"), "_atom_site_charge", "Na1 Na 0 0 0 0.7", "Cl1 Cl 0.5 0 0 -0.7",
    ]  # fmt: skip
    whole = Crystal.from_cif("\n".join(lines))
    found = ch.charges_in_cif("\n".join(lines), whole)
    assert (found == np.where(whole.elements == 11, 0.7, -0.7)).all() and len(found) == 8
    other = Crystal(whole.lattice, [11], [[0.25, 0.25, 0.25]])
    with pytest.raises(MatgenError, match="no charge is listed for atom 1"):
        ch.charges_in_cif("\n".join(lines), other)


def test_the_table_is_what_its_script_writes():
    "Every line of ionization.csv from pymatgen's energies, as far as this version has the same."
    from pymatgen.core import Element

    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    script = importlib.import_module("ionization")
    for number, entry in ch.ionization_table().items():
        row = script.line_of(Element.from_Z(number))
        assert row["ion"] == entry.ion and np.isclose(row["upper"], entry.upper, rtol=0.02), row
        assert np.isclose(row["lower"], entry.lower, rtol=0.02, atol=0.05), row
    assert len(ch.ionization_table()) > 90 and ch.ionization_table()[30].ion == 2
