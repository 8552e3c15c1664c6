"""Judging MOFs: checks that find what was broken, pores against closed forms and invariances, identity of blocks and net."""
import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from matgen_nb.mofdiff.building_blocks import Mof, decompose, textbook_mof
from matgen_nb.mofdiff.evaluation import (CHECKS, Environment, check_mof, clearance, clearance_grid, evaluate_mofs, framework_identity,
                                          free_sphere_radius, open_angle, pore_properties, surface_area, void_fraction, void_regions)
from matgen_nb.symmetry.crystal import Crystal

DATA = ROOT.parent / "shared" / "data" / "mofs"
MOF = {name: textbook_mof(name) for name in ("IRMOF-1", "ZIF-8")}


def with_atom(crystal, z, frac): return Crystal(crystal.lattice, [*crystal.elements, z], [*crystal.frac_coords, frac])


def test_textbook_frameworks_pass_everything():
    for name, mof in MOF.items():
        row = check_mof(mof)
        assert all(row[c] for c in CHECKS) and row["porous"] and not row["failure"], (name, row)


@pytest.mark.parametrize("element, name", [(1, "no_undercoordinated_c"), (7, "no_undercoordinated_c"), (30, "has_metal")])
def test_missing_atoms_are_found(element, name):
    c = MOF["ZIF-8"].crystal
    gone = np.flatnonzero(c.elements == element)
    gone = gone if name == "has_metal" else gone[:1]
    keep = np.setdiff1d(np.arange(len(c)), gone)
    row = check_mof(Crystal(c.lattice, c.elements[keep], c.frac_coords[keep]))
    assert not row[name] or element == 7 and not row["no_exposed_metal"]


def test_extra_atoms_are_found():
    c = MOF["IRMOF-1"].crystal
    assert not check_mof(with_atom(c, 6, c.frac_coords[0] + 0.01))["no_overlap"]
    grid = clearance_grid(c, 0.6)
    cavity = np.array(np.unravel_index(grid.argmax(), grid.shape)) / grid.shape
    assert not check_mof(with_atom(c, 18, cavity))["no_lone_molecule"]
    h, host = next((i, n[0]) for i, n in enumerate(Environment(MOF["IRMOF-1"]).atoms) if c.elements[i] == 1)
    bond = (c.frac_coords[host] - c.frac_coords[h] - np.round(c.frac_coords[host] - c.frac_coords[h])) @ c.lattice
    side = np.cross(bond, [0.3, 0.5, 0.8])
    extra = c.frac_coords[h] + (0.65 * side / np.linalg.norm(side) - 0.2 * bond) @ np.linalg.inv(c.lattice)
    assert not check_mof(with_atom(c, 1, extra))["no_overcoordinated_h"]


def test_what_is_no_framework_is_reported():
    row = check_mof(Crystal(3 * np.eye(3), [26, 26], [[0, 0, 0], [0.2, 0, 0]]))
    assert not row["no_overlap"]
    result = evaluate_mofs([MOF["IRMOF-1"].crystal, None], rows=[dict(name="a", matched=True), dict(name="b", matched=False)], n_jobs=1, progress=False)
    assert result.table[0]["valid"] and not result.table[1]["valid"] and result.table[1]["failure"]
    assert result.summary["valid"]["value"] == 0.5 and result.summary["matched"]["n"] == 2


def test_one_that_hangs_is_counted(monkeypatch):
    import time
    import matgen_nb.mofdiff.evaluation as module
    monkeypatch.setattr(module, "check_mof", lambda crystal, min_pld=2.4: time.sleep(30))
    result = evaluate_mofs([MOF["IRMOF-1"].crystal], n_jobs=1, timeout=1, progress=False)
    assert not result.table[0]["valid"] and "1 s" in result.table[0]["failure"]


def moved(crystal, rng):
    "The same framework: another cell, origin, order of atoms and orientation."
    change = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(len(crystal))
    frac = (crystal.frac_coords @ np.linalg.inv(change) + rng.random(3))[order]
    return Crystal(change @ crystal.lattice @ (turn * np.sign(np.linalg.det(turn))), crystal.elements[order], frac)


@pytest.mark.parametrize("seed", range(3))
def test_pores_and_identity_do_not_depend_on_the_description(seed):
    c = MOF["IRMOF-1"].crystal
    other = moved(c, np.random.default_rng(seed))
    a, b = pore_properties(c), pore_properties(other)
    for name, tolerance in dict(lcd=0.3, pld=0.4, void_fraction=0.02, density=1e-6).items(): assert abs(a[name] - b[name]) < tolerance, name
    assert abs(a["surface_m2_g"] / b["surface_m2_g"] - 1) < 0.1
    assert framework_identity(decompose(Mof.from_crystal(other))) == framework_identity(decompose(MOF["IRMOF-1"]))


def test_identity_of_a_supercell():
    c = MOF["ZIF-8"].crystal
    double = Crystal(c.lattice * [[2], [1], [1]], np.tile(c.elements, 2), np.concatenate([(c.frac_coords + [k, 0, 0]) / [2, 1, 1] for k in (0, 1)]))
    assert framework_identity(decompose(Mof.from_crystal(double))) == framework_identity(decompose(MOF["ZIF-8"]))


def test_clearance_is_that_of_brute_force():
    c, rng = MOF["ZIF-8"].crystal, np.random.default_rng(0)
    points = rng.random((50, 3))
    from matgen_nb.mofdiff.evaluation import vdw_radii
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    delta = (points[:, None, None] - c.frac_coords[None, :, None] + shifts) @ c.lattice
    brute = (np.linalg.norm(delta, axis=-1).min(-1) - vdw_radii(c.elements)).min(-1)
    assert np.allclose(clearance(c, points), brute)


@pytest.mark.parametrize("a", [4.0, 5.0, 8.0])
def test_spheres_on_a_cubic_lattice(a):
    c = Crystal(a * np.eye(3), [18], [[0, 0, 0]])
    grid = clearance_grid(c, a / 40)
    assert abs(grid.max() - (a * 3**0.5 / 2 - 1.88)) < 1e-6 and abs(free_sphere_radius(grid) - max(a / 2**0.5 - 1.88, 0)) < 0.02
    if a == 8.0: assert abs(void_fraction(grid) - (1 - 4 / 3 * np.pi * 3.1555**3 / a**3)) < 0.01 and abs(surface_area(c, grid) / (4 * np.pi * 3.74**2) - 1) < 1e-6


def test_channels_and_pockets():
    grid = np.zeros((6, 6, 6), dtype=bool)
    assert void_regions(grid)[1] == {}
    grid[2, 2, 2] = True
    assert list(void_regions(grid)[1].values()) == [0]
    grid[:, 2, 2] = True
    assert list(void_regions(grid)[1].values()) == [1] and list(void_regions(~grid)[1].values()) == [3]


def test_open_angle_does_not_depend_on_orientation():
    rng = np.random.default_rng(1)
    for vectors in (np.eye(3), np.concatenate([np.eye(3), -np.eye(3)]), rng.normal(size=(5, 3))):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        assert abs(open_angle(vectors) - open_angle(vectors @ turn)) < 3


@pytest.mark.skipif(not (DATA / "index.csv").exists(), reason="needs the real frameworks")
def test_agreement_with_mofchecker():
    "On published frameworks: verdicts of MOFChecker 0.9.6 as listed beside the files."
    theirs = {"has_atomic_overlaps": "no_overlap", "has_lone_molecule": "no_lone_molecule", "has_geometrically_exposed_metal": "no_exposed_metal", "has_hydrogen": "has_hydrogen"}
    theirs |= {f"has_{way}coordinated_{x}": f"no_{way}coordinated_{x}" for way in ("over", "under") for x in "chn"}
    same = total = 0
    for row in list(csv.DictReader(open(DATA / "index.csv")))[::4]:
        mof = Mof.from_cif(DATA / row["file"])
        env = Environment(mof)
        failed = {name for name, check in CHECKS.items() if not check(mof, env)}
        expected = {theirs[x] for x in row["mofchecker_failures"].replace(",", ";").split(";") if x in theirs}
        same, total = same + len(CHECKS) - len(failed ^ expected), total + len(CHECKS)
    assert same / total > 0.95


def test_a_framework_whose_cell_collapsed_is_not_valid():
    crystal = MOF["IRMOF-1"].crystal
    rows = [dict(name=str(v), converged=True, **({} if v is None else dict(volume_change=v))) for v in (None, -.41, -.25, .1, .26)]
    result = evaluate_mofs([crystal] * 5, rows=rows, n_jobs=1, progress=False)
    assert [r.get("volume_kept") for r in result.table] == [None, False, True, True, False] and [r["valid"] for r in result.table] == [True, False, True, True, False]
    assert "volume_kept" in result.summary["valid"]["protocol"]
    assert "volume_kept" not in evaluate_mofs([crystal], n_jobs=1, progress=False).summary, "nothing is asked of what was not relaxed"
