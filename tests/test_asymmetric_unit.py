"""Crystal -> asymmetric unit -> crystal: prototypes, real structures where they are at hand, random crystals of every group."""

import csv
import gzip
import os
import re
import warnings
from pathlib import Path

import gemmi
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.symmcd import counting
from matgen_nb.symmcd.counting import forced_group
from matgen_nb.symmetry import symmetry_search as module
from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit, free_parameters
from matgen_nb.symmetry.cif import read_cif
from matgen_nb import Crystal
from matgen_nb.symmetry.crystal import CrystalError, min_distance
from matgen_nb.symmetry.lattice import constrain_k, lattice_from_parameters, lattice_to_k
from matgen_nb.symmetry.normalizers import generic_unit
from matgen_nb.symmetry.space_groups import SpaceGroup
from matgen_nb.symmetry.symmetry_search import (
    FoundGroup,
    found_group,
    more_operations,
    only_group,
    symmetry_dataset,
)

DATA = Path(os.environ.get("MATGEN_TEST_DATA", ROOT.parent / "shared" / "data" / "crystals"))
# pymatgen's matcher reduces both cells to primitive ones, and for these two its reduction differs between equal cells;
# spglib's own standard cell fails in the same way
KNOWN = {"mp-1205422", "mp-1280436"}


def comes_back(crystal, unit=None):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    unit = unit or AsymmetricUnit.from_crystal(crystal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return StructureMatcher().fit(crystal.to_pymatgen(), unit.to_crystal().to_pymatgen())


def on_first_members(unit):
    "Whether label and coordinates agree: the representative is A_0 u + t_0 (mod 1)."
    u = free_parameters(unit.frac_coords, unit.space_group, unit.wyckoff)
    again = np.stack([unit.positions[w].A[0] @ x + unit.positions[w].t[0] for w, x in zip(unit.wyckoff, u)])
    delta = again - unit.frac_coords
    return np.allclose(delta, np.round(delta), atol=1e-6)


def test_prototypes_come_back():
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    crystals = [
        Crystal.from_pymatgen(entry["snl"].structure)
        for entry in AFLOW_PROTOTYPE_LIBRARY
        if max(site.specie.Z for site in entry["snl"].structure) <= 94
    ]
    for crystal in [c for c in crystals if len(c) <= 24][::2]:
        unit = AsymmetricUnit.from_crystal(crystal)
        assert on_first_members(unit) and comes_back(crystal, unit), crystal


def rows_of(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name}, see MATGEN_TEST_DATA")
    csv.field_size_limit(10**9)
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["val.csv.gz", "perov_5_val.csv.gz", "carbon_24_val.csv.gz"])
def test_real_structures_come_back(name):
    for row in rows_of(name)[:150]:
        if row["material_id"] in KNOWN:
            continue
        assert comes_back(Crystal.from_cif(row["cif"])), row["material_id"]


def test_distorted_supercell_is_not_merged():
    "At symprec 0.1 it would become a smaller, denser cell; the volume per atom gives it away."
    row = next(r for r in rows_of("val.csv.gz") if r["material_id"] == "mp-1292002")
    assert comes_back(Crystal.from_cif(row["cif"]))


def lattice_of(number):
    lengths, angles = np.array([17.0, 19.3, 22.1]), [83.0, 97.0, 104.0]
    if number > 2:
        angles = [90.0, 101.0, 90.0]
    if number > 15:
        angles = [90.0, 90.0, 90.0]
    if number > 74:
        lengths[1] = lengths[0]
    if 143 <= number <= 194:
        angles = [90.0, 90.0, 120.0]
    if number > 194:
        lengths[:] = lengths[0]
    return lattice_from_parameters(lengths, angles).numpy()


def random_crystal(number, positions, rng):
    "One orbit on each position, free parameters at random, sampled again where atoms come close."
    while True:
        points = [p.points(rng.uniform(size=3)) for p in positions]
        crystal = Crystal(
            lattice_of(number), np.repeat([3, 8, 26], [len(p) for p in points]), np.concatenate(points)
        )
        if min_distance(crystal) > 0.1:
            return crystal


@pytest.mark.parametrize("start", range(1, 231, 46))
def test_random_crystals_keep_their_group(start):
    rng = np.random.default_rng(start)
    for number in range(start, min(start + 46, 231)):
        positions = SpaceGroup(number).wyckoff_positions
        chosen = [positions[-1], positions[-1], positions[rng.integers(len(positions))]]
        crystal = random_crystal(number, chosen, rng)
        unit = AsymmetricUnit.from_crystal(crystal, symprec=0.01)
        assert unit.space_group == number and len(unit) == 3 and unit.num_atoms == len(crystal)
        assert on_first_members(unit)
        again = AsymmetricUnit.from_crystal(unit.to_crystal(), symprec=0.01)
        assert again.wyckoff_template.split(":")[0] == str(number) and np.isclose(
            np.linalg.det(again.lattice), crystal.volume
        )


def test_parts_that_do_not_fit_are_rejected():
    with pytest.raises(ValueError, match="Wyckoff"):
        AsymmetricUnit(225, np.zeros(6), [11], [[0, 0, 0]], [99])
    with pytest.raises(ValueError, match="frac_coords"):
        AsymmetricUnit(225, np.zeros(6), [11], [[0, 0]], [0])


def read_by_pymatgen(text):
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = CifParser.from_str(text).parse_structures(primitive=False)[0]
    return found.lattice.parameters, [site.specie.Z for site in found], found.frac_coords


def read_by_gemmi(text):
    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
    sites = small.get_all_unit_cell_sites()
    return (
        small.cell.parameters,
        [s.element.atomic_number for s in sites],
        np.array([s.fract.tolist() for s in sites]),
    )


def read_by_us(text):
    crystal = Crystal.from_cif(text)
    cell = gemmi.UnitCell(*small_parameters(crystal.lattice))
    return cell.parameters, crystal.elements, crystal.frac_coords


def small_parameters(lattice):
    lengths = np.linalg.norm(lattice, axis=1)
    cosines = [lattice[i] @ lattice[j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    return *lengths, *np.degrees(np.arccos(cosines))


READERS = {"us": read_by_us, "pymatgen": read_by_pymatgen, "gemmi": read_by_gemmi}


def same_atoms(crystal, read, tolerance=1e-6):
    "The same cell, and the same atoms in it, one for one, to `tolerance` A."
    parameters, elements, frac = read
    if len(elements) != len(crystal) or not np.allclose(
        parameters, small_parameters(crystal.lattice), atol=1e-6
    ):
        return False
    delta = np.asarray(frac)[:, None] - crystal.frac_coords
    distance = np.linalg.norm((delta - np.round(delta)) @ crystal.lattice, axis=-1)
    near = (distance < tolerance) & (np.asarray(elements)[:, None] == crystal.elements)
    return bool((near.sum(0) == 1).all() and (near.sum(1) == 1).all())


def some_positions(number, rng, most):
    "Up to `most` Wyckoff positions at random, fixed ones once, few atoms in all."
    positions = SpaceGroup(number).wyckoff_positions
    chosen = []
    for w in rng.permutation(len(positions)):
        if len(chosen) < most and sum(positions[v].multiplicity for v in [*chosen, w]) <= max(
            120, positions[w].multiplicity
        ):
            chosen.append(int(w))
    return chosen


def uncrowded_unit(number, wyckoff, elements, seed):
    "A generic unit whose atoms keep 0.6 A from each other."
    units = (generic_unit(number, wyckoff, elements, seed=1000 * seed + i) for i in range(200))
    return next(u for u in units if min_distance(u.to_crystal()) > 0.6)


@pytest.mark.parametrize("start", range(1, 231, 46))
def test_cif_of_every_group_is_read_back_by_all(start):
    rng = np.random.default_rng(start)
    for number in range(start, min(start + 46, 231)):
        wyckoff = some_positions(number, rng, 3)
        unit = uncrowded_unit(number, wyckoff, rng.integers(1, 95, len(wyckoff)), number)
        text, whole = unit.to_cif(), unit.to_crystal()
        for name, read in READERS.items():
            assert same_atoms(whole, read(text)), f"{number} {unit}, read by {name}"
        assert same_atoms(whole, read_by_us(unit.to_cif(p1=True)), 1e-5)


@given(st.integers(1, 230), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_cif_comes_back(number, most, seed):
    rng = np.random.default_rng(seed)
    wyckoff = some_positions(number, rng, most)
    unit = uncrowded_unit(number, wyckoff, rng.integers(1, 95, len(wyckoff)), seed)
    for name in ("us", "gemmi"):
        assert same_atoms(unit.to_crystal(), READERS[name](unit.to_cif())), name


@pytest.mark.parametrize(
    "number, letters, u",
    [
        (194, "ac", [0, 0, 0]),
        (186, "bb", [0, 0, 0.3751]),
        (194, "fh", [0.17, 0, 0.06]),
        (166, "ach", [0.1234567, 0, 0.7654321]),
        (227, "ade", [0.2613, 0, 0]),
    ],
)
def test_thirds_and_eighths_survive_the_digits(number, letters, u):
    "Zinc blende, NiAs, wurtzite: points at 1/3, 2/3, 1/8 and on lines such as (x, 2x, 1/4) meet their own images."
    positions = [SpaceGroup(number)[letter] for letter in letters]
    points = [p.A[0] @ (np.array(u) + 0.05 * i) + p.t[0] for i, p in enumerate(positions)]
    k = lattice_to_k(lattice_of(number)).numpy()
    unit = AsymmetricUnit(
        number, k, range(20, 20 + len(points)), np.stack(points) % 1, [p.index for p in positions]
    )
    for name, read in READERS.items():
        assert same_atoms(unit.to_crystal(), read(unit.to_cif())), name


def test_cif_says_what_it_holds(tmp_path):
    k = lattice_to_k(5.64 * np.eye(3)).numpy()
    salt = AsymmetricUnit(225, k, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [0, 1])
    text = salt.to_cif(tmp_path / "salt.cif")
    assert (tmp_path / "salt.cif").read_text() == text and [p.name for p in tmp_path.iterdir()] == [
        "salt.cif"
    ]
    block = gemmi.cif.read_string(text).sole_block()
    value = lambda key: gemmi.cif.as_string(block.find_value(key))
    assert value("_space_group_IT_number") == "225" and value("_space_group_name_H-M_alt") == "F m -3 m"
    assert value("_chemical_formula_sum") == "Na1 Cl1" and value("_cell_formula_units_Z") == "4"
    assert len(block.find_loop("_space_group_symop_operation_xyz")) == 192
    columns = ["_atom_site_type_symbol", "_atom_site_Wyckoff_symbol", "_atom_site_symmetry_multiplicity"]
    assert [list(row) for row in block.find(columns)] == [["Na", "a", "4"], ["Cl", "b", "4"]]
    assert "'P 1'" in salt.to_cif(p1=True) and salt.to_cif(p1=True) == salt.to_crystal().to_cif()


@pytest.mark.parametrize("number", range(1, 231))
def test_symbols_in_a_cif_name_the_same_operations(number):
    block = gemmi.cif.read_string(generic_unit(number, [0], [14]).to_cif(p1=False)).sole_block()
    if not block.find_value("_space_group_IT_number"):
        pytest.skip("an orbit that meets itself: written in P 1")
    listed = gemmi.GroupOps(
        [gemmi.Op(gemmi.cif.as_string(op)) for op in block.find_loop("_space_group_symop_operation_xyz")]
    )
    name, hall = (
        gemmi.cif.as_string(block.find_value(key))
        for key in ("_space_group_name_H-M_alt", "_space_group_name_Hall")
    )
    group = gemmi.find_spacegroup_by_name(name)
    assert group.number == number == int(block.find_value("_space_group_IT_number"))
    assert group.operations() == listed and gemmi.symops_from_hall(hall) == listed


def test_atoms_that_nearly_meet_are_written_in_p1():
    "Readers would take images 0.05 A apart for one atom on a special position, and lose the other."
    close = AsymmetricUnit(221, lattice_to_k(4 * np.eye(3)).numpy(), [8], [[0.01, 0, 0]], [4])
    assert SpaceGroup(221).wyckoff_positions[4].label == "6e" and "'P 1'" in close.to_cif()
    assert len(read_cif(close.to_cif(), min_contact=0.01).crystal) == 6, "as the evaluation reads it"
    with pytest.raises(CrystalError):
        Crystal.from_cif(close.to_cif())


def test_spglib_is_asked_without_a_warning_and_left_as_it_was():
    import spglib

    salt = Crystal(
        5.64 * np.eye(3),
        [11] * 4 + [17] * 4,
        np.concatenate([SpaceGroup(225)[w].points([0] * 3) for w in "ab"]),
    )
    overlap = Crystal(4 * np.eye(3), [11, 11], [[0, 0, 0], [0, 0, 1e-4]])
    for before in (True, False):
        spglib.error.OLD_ERROR_HANDLING = before
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert found_group(salt, 0.01) == FoundGroup(225, 192) and found_group(overlap, 0.01) is None
                with pytest.raises(CrystalError, match="no symmetry at symprec 0.01"):
                    symmetry_dataset(overlap, 0.01)
            assert spglib.error.OLD_ERROR_HANDLING == before
        finally:
            spglib.error.OLD_ERROR_HANDLING = True


def near_special(unit, rng, symprec):
    "The unit with a cell that nearly has more symmetry than its group asks for (equal lengths, right angles)."
    shape = np.array([0, 0, 0, 0, 0, unit.k[5]]) + rng.normal(
        0, rng.choice([0, 0.1, 1, 10]) * symprec / 50, 6
    )
    k = constrain_k(shape, unit.space_group).numpy()
    return AsymmetricUnit(unit.space_group, k, unit.elements, unit.frac_coords, unit.wyckoff)


@pytest.mark.parametrize("symprec", [0.1, 0.01])
@pytest.mark.parametrize("start", range(1, 231, 46))
def test_group_of_a_unit_is_what_spglib_finds(start, symprec):
    "All groups; elements alike and cells near special shapes, so that many have more operations, or nearly."
    rng, higher, certain, units = np.random.default_rng(start), 0, 0, 0
    for number in range(start, min(start + 46, 231)):
        positions, order = SpaceGroup(number).wyckoff_positions, SpaceGroup(number).order
        fixed = [w.index for w in positions if w.dof == 0]
        ways = some_positions(number, rng, 2), some_positions(number, rng, 3), fixed[:1], fixed[:2]
        for wyckoff in filter(None, ways):
            elements = rng.choice([[29] * 3, [29, 8, 8]])[: len(wyckoff)]
            unit = generic_unit(number, wyckoff, elements, seed=int(rng.integers(10**6)))
            unit = near_special(unit, rng, symprec) if rng.random() < 0.7 else unit
            whole, requested = unit.to_crystal(), found_group(unit.to_crystal(), symprec)
            assert unit.found_group(symprec) == requested, unit
            if only_group(whole, number, symprec):
                assert requested == FoundGroup(number, order), unit
                certain += 1
            higher += bool(requested) and requested.operations > order
            units += 1
    assert higher > units / 20 and certain > units / 4


def test_an_operation_is_found_that_was_left_out():
    "A crystal of each of many groups, described in a subgroup that has the same standard cell, has more operations."
    for number, subgroup in ((225, 216), (221, 200), (123, 83), (191, 162), (47, 25), (136, 94), (2, 1)):
        crystal = generic_unit(number, [len(SpaceGroup(number).wyckoff_positions) - 1], [14]).to_crystal()
        assert more_operations(crystal, subgroup, 0.01) and not more_operations(crystal, number, 0.01)
        assert not only_group(crystal, subgroup, 0.01)


FORCED = [
    (225, "ab", [29, 29], 221),
    (225, "ab", [11, 17], None),
    (225, "c", [29], 221),
    (16, "ah", [11, 17], 47),
    (16, "ui", [11, 17], None),
    (1, "a", [29], 2),
    (1, "aa", [29, 29], 2),
    (1, "aa", [11, 17], None),
    (1, "aaa", [29] * 3, None),
    (216, "ac", [6, 6], 227),
    (216, "ac", [30, 16], None),
    (221, "ab", [55, 17], None),
    (221, "ab", [84, 84], 229),
    (146, "a", [34], 166),
    (99, "a", [29], 123),
]


@pytest.mark.parametrize("number, letters, elements, higher", FORCED)
def test_positions_that_force_a_higher_group(number, letters, elements, higher):
    wyckoff = [SpaceGroup(number)[letter].index for letter in letters]
    forced = forced_group(number, wyckoff, elements)
    assert (forced and forced.number) == higher
    other = [z + 3 for z in elements]
    assert forced_group(number, wyckoff[::-1], other[::-1]) == forced, (
        "only which orbits share an element matters"
    )


@given(st.integers(1, 230), st.lists(st.integers(0, 1), min_size=1, max_size=3), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_forced_means_every_crystal(number, kinds, seed):
    "Another random crystal has the forced group or a higher one; where none is forced, it has exactly the one it was built for."
    wyckoff = some_positions(number, np.random.default_rng(seed), len(kinds))
    elements = [(11, 17)[kind] for kind in kinds[: len(wyckoff)]]
    forced = forced_group(number, wyckoff, elements)
    found = generic_unit(number, wyckoff, elements, seed=seed).found_group(1e-4)
    if found:
        assert found.operations == (forced.operations if forced else SpaceGroup(number).order)
        assert found.number == (forced.number if forced else number)


def test_without_spglib_it_is_said_once(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module.has_spglib.cache_clear()
    counting._forced.cache_clear()
    unit = generic_unit(225, [0, 1], [29, 29])
    try:
        with pytest.warns(UserWarning, match="pip install spglib") as seen:
            assert unit.found_group(0.1) is None and found_group(unit.to_crystal(), 0.1) is None
            assert forced_group(225, [0, 1], [29, 29]) is None
        assert len(seen) == 1
    finally:
        monkeypatch.undo()
        module.has_spglib.cache_clear()
        counting._forced.cache_clear()


def test_a_unit_shows_its_crystal_and_a_table_of_its_orbits(monkeypatch):
    "The last line of a cell: a picture, and a row for each orbit; never an error."
    k = lattice_to_k(np.diag([4.594, 4.594, 2.959])).numpy()
    rutile = AsymmetricUnit(136, k, [22, 8], [[0, 0, 0], [0.305, 0.305, 0]], [0, 5])
    html = rutile._repr_html_()
    assert rutile._repr_png_()[1:4] == b"PNG" and "data:image/png" in html
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", html)
    assert [row.split("</td><td>") for row in rows] == [
        ["Ti", "2a", "m.mm", "0.0000", "0.0000", "0.0000"],
        ["O", "4f", "m.2m", "0.3050", "0.3050", "0.0000"],
    ]
    assert "AsymmetricUnit(TiO2, space group 136, orbits 2a 4f)" in html
    monkeypatch.setattr("matgen_nb.drawing.LARGEST_PICTURE", 5)
    assert rutile._repr_png_() is None, "six atoms are too many for a picture now"
    assert rutile._repr_html_().startswith("<table>"), "the table is shown without it"
    broken = AsymmetricUnit(136, np.full(6, np.nan), [22], [[0, 0, 0]], [0])
    assert broken._repr_png_() is None and broken._repr_html_() is None
