"""Properties of crystals that hold for any structure."""

import itertools
import pickle

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matgen_nb.symmetry.cif import read_cif
from matgen_nb import Crystal
from matgen_nb.symmetry.crystal import CrystalError, element_table, formula_of, min_distance

quick = settings(max_examples=40, deadline=None)
lattices = arrays(float, (3, 3), elements=st.floats(-2, 2, width=32)).map(lambda noise: noise + 5 * np.eye(3))


@st.composite
def crystals(draw, most=6):
    lattice = draw(lattices)
    assume(abs(np.linalg.det(lattice)) > 10)
    n = draw(st.integers(1, most))
    frac = draw(arrays(float, (n, 3), elements=st.floats(-2, 2, width=32)))
    return Crystal(lattice, draw(st.lists(st.integers(1, 94), min_size=n, max_size=n)), frac)


def brute_force(crystal, reach=4):
    "Shortest distance by looking at all cells within reach."
    delta = (crystal.frac_coords[:, None] - crystal.frac_coords).reshape(-1, 1, 3)
    shifts = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    d = np.linalg.norm((delta + shifts) @ crystal.lattice, axis=-1).reshape(len(crystal), len(crystal), -1)
    d[np.arange(len(crystal)), np.arange(len(crystal)), (shifts == 0).all(1).argmax()] = np.inf
    return d.min()


@quick
@given(crystals())
def test_min_distance_is_that_of_brute_force(crystal):
    assert np.isclose(min_distance(crystal), brute_force(crystal), atol=1e-9)


def test_min_distance_in_a_skewed_cell():
    crystal = Crystal([[2, 0, 0], [7.3, 2, 0], [3.3, 4.7, 2.1]], [6, 8], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert np.isclose(min_distance(crystal), brute_force(crystal, 10), atol=1e-9)


@quick
@given(crystals())
def test_cif_there_and_back(crystal):
    assume(min_distance(crystal) > 0.02)
    again = read_cif(crystal.to_cif(), min_contact=0.01).crystal
    assert np.array_equal(again.elements, crystal.elements)
    delta = again.frac_coords - crystal.frac_coords
    assert np.abs(delta - np.round(delta)).max() < 1e-7
    assert np.allclose(
        again.lattice @ again.lattice.T, crystal.lattice @ crystal.lattice.T, rtol=1e-6, atol=1e-5
    )
    assert again.formula == crystal.formula and np.isclose(again.density, crystal.density)


@quick
@given(crystals())
def test_a_mirrored_cell_moves_no_atom(crystal):
    "Given left-handed, the crystal is the same set of points."
    left = crystal.lattice[[1, 0, 2]]
    other = Crystal(left, crystal.elements, crystal.frac_coords[:, [1, 0, 2]])
    assert np.linalg.det(other.lattice) > 0
    points = crystal.cart_coords @ np.linalg.inv(other.lattice) - other.frac_coords
    assert np.abs(points - np.round(points)).max() < 1e-6


def test_pymatgen_there_and_back():
    crystal = Crystal(
        np.diag([3.9, 3.9, 3.9]),
        [38, 22, 8, 8, 8],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )
    structure = crystal.to_pymatgen()
    again = Crystal.from_pymatgen(structure)
    assert crystal.formula == structure.composition.reduced_formula == "SrTiO3"
    assert np.isclose(crystal.density, structure.density, rtol=1e-4)
    assert np.allclose(again.frac_coords, crystal.frac_coords) and np.array_equal(
        again.elements, crystal.elements
    )


def test_coordinates_are_wrapped():
    crystal = Crystal(np.eye(3), [1, 1], [[-1e-18, 1.0, 2.5], [-0.25, 7.0, 0.5]])
    assert (crystal.frac_coords >= 0).all() and (crystal.frac_coords < 1).all()


def test_formulas_and_elements():
    assert (
        formula_of([8, 8, 22, 22, 8, 8]) == "TiO2"
        and formula_of([6]) == "C"
        and formula_of([17, 11]) == "NaCl"
    )
    table = element_table()
    assert len(table.symbol) == len(table.mass) == len(table.radius) == len(table.color) == 95
    assert (table.mass[1:] > 1).all() and (table.radius[1:] > 0.2).all() and table.symbol[94] == "Pu"


def test_a_crystal_can_travel_between_processes():
    crystal = Crystal(np.eye(3) * 4, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert np.array_equal(pickle.loads(pickle.dumps(crystal)).frac_coords, crystal.frac_coords)


def test_five_hundred_atoms():
    rng = np.random.default_rng(0)
    grid = np.array(list(itertools.product(range(8), repeat=3)))[:500] / 8
    crystal = Crystal(np.eye(3) * 24, rng.integers(1, 95, 500), grid)
    again = Crystal.from_cif(crystal.to_cif())
    assert len(again) == 500 and np.isclose(min_distance(again), 3)


@given(st.integers(20, 1500))
@settings(max_examples=60, deadline=None)
def test_a_cif_that_is_cut_off_is_named_or_read(length):
    text = Crystal(5.64 * np.eye(3), [11, 17] * 4, np.random.default_rng(0).random((8, 3))).to_cif()
    try:
        assert len(Crystal.from_cif(text[:length])) <= 8
    except CrystalError as error:
        assert "CIF" in str(error)


def test_symmetry_of_a_cif_is_expanded():
    head = "data_x\n" + "\n".join(
        f"_cell_{k} {v}"
        for k, v in zip(
            ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
            [5.64] * 3 + [90] * 3,
        )
    )
    sites = "\nloop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nNa1 0 0 0\nCl1 0.5 0.5 0.5\n"
    for symmetry in ("_symmetry_space_group_name_H-M 'F m -3 m'", "_symmetry_Int_Tables_number 225"):
        crystal = Crystal.from_cif(f"{head}\n{symmetry}{sites}")
        assert len(crystal) == 8 and crystal.formula == "NaCl" and np.isclose(min_distance(crystal), 2.82)


def test_pictures_are_drawn(tmp_path):
    import matplotlib

    matplotlib.use("agg")
    from matgen_nb.symmetry.crystal import plot_gallery

    crystal = Crystal(np.eye(3) * 4, [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    plot_gallery([crystal, crystal, crystal], ["a", "b", "c"], columns=2).savefig(tmp_path / "gallery.png")
    assert crystal.plot() is not None and (tmp_path / "gallery.png").stat().st_size > 5000
