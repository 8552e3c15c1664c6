"""Bad input is refused with a message that says what, where and what to do; nothing odd gets through in silence."""
import numpy as np
import pytest

from matgen_nb.symmetry.crystal import Crystal, CrystalError

CELL = {"length_a": 5, "length_b": 5, "length_c": 5, "angle_alpha": 90, "angle_beta": 90, "angle_gamma": 90}
COLUMNS = "label type_symbol fract_x fract_y fract_z occupancy"


def cif(*sites, columns=COLUMNS, **changes):
    "The text of a small CIF."
    cell = {k: v for k, v in {**CELL, **changes}.items() if v is not None}
    lines = ["data_test", *(f"_cell_{k} {v}" for k, v in cell.items()), "loop_", *(f"_atom_site_{c}" for c in columns.split()), *sites]
    return "\n".join(lines) + "\n"


def refused(text, *words):
    with pytest.raises(CrystalError) as caught:
        Crystal.from_cif(text)
    for word in words:
        assert word in str(caught.value), str(caught.value)


GOOD = "Na1 Na 0 0 0 1", "Cl1 Cl 0.5 0.5 0.5 1"


def test_the_good_one_is_read():
    assert Crystal.from_cif(cif(*GOOD)).formula == "NaCl"


@pytest.mark.parametrize("text", ["", "\n", "hello\nworld\n", "data_x\nloop_\n_atom_site_fract_x\n", "data_x\n_cell_length_a 5\n", cif("Na1 Na 0 0 0")])
def test_no_cif(text):
    refused(text)


def test_a_file_that_is_not_there():
    refused("not_there.cif", "not_there.cif", "file")


def test_a_file_is_named_in_its_error(tmp_path):
    path = tmp_path / "broken_one.cif"
    path.write_text(cif("Na1 Na 0 0 0 0.5"))
    refused(path, "broken_one.cif", "Na1")
    (tmp_path / "binary.cif").write_bytes(bytes(range(256)))
    refused(tmp_path / "binary.cif", "binary.cif")
    refused(tmp_path, "neither")


def test_partial_occupancy():
    refused(cif("Fe1 Fe 0 0 0 0.5", "Ni1 Ni 0 0 0 0.5"), "Fe1", "0.5", "disordered")


def test_deuterium_is_hydrogen():
    assert Crystal.from_cif(cif("D1 D 0 0 0 1", "O1 O2- 0.5 0.5 0.5 1")).elements.tolist() == [1, 8]


@pytest.mark.parametrize("symbol", ["Am", "Og", "X", "Qq", "."])
def test_elements_we_do_not_know(symbol):
    refused(cif(*GOOD, f"Zz1 {symbol} 0.2 0.2 0.2 1"), "Zz1", "94")


@pytest.mark.parametrize("value", ["?", ".", "nan", "abc"])
def test_missing_coordinates(value):
    refused(cif(*GOOD, f"O1 O 0.1 {value} 0.1 1"), "O1", "coordinates")


def test_cartesian_coordinates_only():
    refused(cif("Na1 Na 0 0 0", columns="label type_symbol Cartn_x Cartn_y Cartn_z"), "fract")


def test_duplicate_atoms():
    refused(cif(*GOOD, "Na2 Na 0.0001 0 1.0 1"), "same place", "Na")


@pytest.mark.parametrize("change", [{"length_a": 0}, {"length_a": -4}, {"angle_alpha": 5, "angle_beta": 170}, {"angle_gamma": 180}, {"length_b": "nan"}])
def test_a_cell_that_is_none(change):
    refused(cif(*GOOD, **change))


@pytest.mark.parametrize("key", CELL)
def test_an_incomplete_cell(key):
    refused(cif(*GOOD, **{key: None}), key, "missing")


def test_one_atom():
    assert len(Crystal.from_cif(cif("Po1 Po 0 0 0 1"))) == 1


@pytest.mark.parametrize("lattice, elements, frac, word", [
    (np.zeros((3, 3)), [1], [[0, 0, 0]], "no volume"),
    (np.ones((3, 3)), [1], [[0, 0, 0]], "no volume"),
    (np.eye(3) * np.nan, [1], [[0, 0, 0]], "not a number"),
    (np.eye(3), [1], [[0, np.inf, 0]], "atom 0"),
    (np.eye(2), [1], [[0, 0, 0]], "3 x 3"),
    (np.eye(3), [], np.zeros((0, 3)), "at least one"),
    (np.eye(3), [1, 2], [[0, 0, 0]], "(2, 3)"),
    (np.eye(3), [1, 95], [[0, 0, 0], [0, 0, .5]], "atom 1"),
    (np.eye(3), [0], [[0, 0, 0]], "94"),
    (np.eye(3), [1.5], [[0, 0, 0]], "1.5"),
    (np.eye(3), ["Na"], [[0, 0, 0]], "atomic number"),
    (np.eye(3), [1], [["x", 0, 0]], "numbers"),
])
def test_arrays_that_are_no_crystal(lattice, elements, frac, word):
    with pytest.raises(CrystalError) as caught:
        Crystal(lattice, elements, frac)
    assert word in str(caught.value)


def test_a_left_handed_cell_is_turned():
    crystal = Crystal(np.diag([4.0, 5.0, -6.0]), [11, 17], [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]])
    assert crystal.volume > 0 and np.allclose(np.linalg.norm(crystal.lattice, axis=1), [4, 5, 6])


def test_disordered_and_odd_pymatgen_structures():
    from pymatgen.core import DummySpecies, Lattice, Structure
    cubic = Lattice.cubic(4)
    for species in ({"Fe": 0.5, "Ni": 0.5}, DummySpecies("X"), "Am"):
        with pytest.raises(CrystalError):
            Crystal.from_pymatgen(Structure(cubic, [species], [[0, 0, 0]]))
    with pytest.raises(CrystalError, match="same place"):
        Crystal.from_pymatgen(Structure(cubic, ["Fe", "Fe"], [[0, 0, 0], [0, 0, 1]]))
