"""moyopy as symmetry engine: spglib is the judge. Groups and orbits agree on real crystals; where they do not is counted."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, rock_salt

from matgen_nb.symmcd.dataset import prepare_noted, prototypes
from matgen_nb.symmcd.preparing import CrystalPrepareOptions, prepare
from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit, standard_orbits
from matgen_nb.symmetry.symmetry_search import symmetry_dataset
from matgen_nb import Crystal
from matgen_nb.symmetry.crystal import CrystalError
from matgen_nb.symmetry.formats import moyo_dataset, symmetry_engine
from matgen_nb.utils import MatgenError

pytest.importorskip("moyopy")
DATA = Path(os.environ.get("MATGEN_TEST_DATA", ROOT.parent / "shared" / "data" / "crystals"))
REAL = DATA / "train.csv.gz"


def orbits(found):
    "What a data set says in numbers: group, and the element and the atoms of each orbit in the conventional cell."
    return int(found.number), sorted((z, len(points)) for z, points in standard_orbits(found))


def disagreements(crystals, symprec):
    "Crystals of which the two engines find different groups, and different orbits in the same group: two lists."
    groups, inside = [], []
    for i, crystal in enumerate(crystals):
        try:
            ours = orbits(symmetry_dataset(crystal, symprec))
        except CrystalError:
            continue
        theirs = orbits(moyo_dataset(crystal, symprec))
        if ours[0] != theirs[0]:
            groups.append((i, ours[0], theirs[0]))
        elif ours != theirs:
            inside.append((i, ours, theirs))
    return groups, inside


def test_prototypes_have_the_same_groups_and_orbits():
    "All AFLOW prototypes with at most 40 atoms, at both tolerances that preparing uses."
    crystals = [c for _, c in prototypes() if len(c) <= 40]
    for symprec in (0.1, 0.01):
        groups, inside = disagreements(crystals, symprec)
        assert len(crystals) > 200 and len(groups) <= 0.01 * len(crystals) and not inside, (groups, inside)


@pytest.mark.skipif(not REAL.is_file(), reason="the shared crystals are not beside this checkout")
def test_real_crystals_have_the_same_groups_and_orbits():
    "250 crystals of the Materials Project: at most 1 % of the groups differ, no orbit within a group."
    with gzip.open(REAL, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    crystals = [Crystal.from_cif(row["cif"] + "\n") for row in rows[:: len(rows) // 250][:250]]
    groups, inside = disagreements(crystals, 0.1)
    assert len(groups) <= 2 and not inside, (groups, inside)


def test_units_are_the_same_up_to_equivalent_settings():
    "The same group, formula and multiplicities, in the same volume; letters may be those of an equivalent setting."
    for name, crystal in prototypes()[:60:2]:
        ours = AsymmetricUnit.from_crystal(crystal)
        with symmetry_engine("moyopy"):
            theirs = AsymmetricUnit.from_crystal(crystal)
        assert ours.space_group == theirs.space_group and ours.formula == theirs.formula, name
        assert sorted(ours.multiplicities) == sorted(theirs.multiplicities), name
        assert np.isclose(np.linalg.det(ours.lattice), np.linalg.det(theirs.lattice), rtol=1e-3), name


def test_what_comes_out_has_the_group_that_it_claims_by_spglib():
    for name, crystal in prototypes()[1:60:3]:
        unit = prepare_noted(crystal, engine="moyopy").unit
        assert symmetry_dataset(unit.to_crystal(), 0.01).number == unit.space_group, name


def test_choosing_the_engine(tmp_path, monkeypatch):
    salt = rock_salt()
    salt.to_cif(tmp_path / "salt.cif")
    data, _ = prepare(tmp_path, n_jobs=1, progress=None, options=CrystalPrepareOptions(engine="moyopy"))
    assert data.space_group.tolist() == [225] and data.info["engine"] == "moyopy"
    assert "engine" not in prepare(tmp_path, n_jobs=1, progress=None)[0].info, (
        "what was written before is the same"
    )
    with pytest.raises(MatgenError, match="spglib, moyopy"):
        prepare(tmp_path, n_jobs=1, progress=None, options=CrystalPrepareOptions(engine="magic"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MatgenError, match=r"matgen_nb\[fast\]"):
        prepare(tmp_path, n_jobs=1, progress=None, options=CrystalPrepareOptions(engine="moyopy"))


def test_the_engine_is_asked_only_inside():
    salt = rock_salt()
    with symmetry_engine("moyopy"):
        assert not hasattr(symmetry_dataset(salt, 0.1), "hall"), "moyopy's"
    assert hasattr(symmetry_dataset(salt, 0.1), "hall"), "spglib's, though it has seen the same crystal"


def test_touching_atoms_are_rejected_with_words():
    crowded = Crystal(4 * np.eye(3), [11, 11], [[0, 0, 0], [0.001, 0, 0]])
    with pytest.raises(CrystalError, match="moyopy"):
        moyo_dataset(crowded, 0.1)
