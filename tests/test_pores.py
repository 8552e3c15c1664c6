"""Pore diameters of lesson 4.37 against Zeo++ (pyzeo, Apache-2.0 wrapper of Zeo++; development only)."""

import subprocess
import sys

import numpy as np
import pytest

from matgen_nb.mofdiff.bonds import textbook_mofs
from matgen_nb.mofdiff.builder import vdw_radii
from matgen_nb.mofdiff.checks import pore_properties
from matgen_nb.mofdiff.hypothetical import clearance, clearance_grid, largest_sphere
from matgen_nb.symmetry.crystal import Crystal, element_table

ZEO = """
import sys
import pyzeo
cif, radii, result = sys.argv[1:]
network = pyzeo.AtomNetwork.read_from_CIF(cif, rad_flag=True, rad_file=radii)
pyzeo.high_accuracy_atomnet(network, "MED")  # large atoms become clusters of small ones: else up to 0.4 A off
network.calculate_free_sphere_parameters(result)
"""


def zeo_diameters(crystal, folder):
    "(largest included sphere, largest free sphere), A, by Zeo++ with our radii; in a process of its own."
    cif, radii, result = folder / "c.cif", folder / "radii.rad", folder / "c.res"
    crystal.to_cif(cif)
    symbol = element_table().symbol
    radii.write_text("".join(f"{symbol[z]} {vdw_radii([z])[0]}\n" for z in range(1, 95)))
    subprocess.run(
        [sys.executable, "-c", ZEO, str(cif), str(radii), str(result)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    included, free, _ = map(float, result.read_text().split()[-3:])
    return included, free


@pytest.mark.parametrize("name", ["ZIF-8", "MIL-53", "MOF-74", "UiO-66"])
def test_pore_diameters_are_those_of_zeo(name, tmp_path):
    pytest.importorskip("pyzeo", reason="pip install pyzeo compares pores with Zeo++")
    crystal = textbook_mofs()[name].crystal
    ours = pore_properties(crystal)
    included, free = zeo_diameters(crystal, tmp_path)
    assert abs(ours["lcd"] - included) < 0.05, f"cavity {ours['lcd']:.2f} A, Zeo++ {included:.2f} A"
    assert abs(ours["pld"] - free) < 0.45, f"bottleneck {ours['pld']:.2f} A, Zeo++ {free:.2f} A"


def test_the_largest_sphere_is_found_between_the_points_of_the_grid():
    "Between eight atoms of a cube the sphere sits in the middle, wherever the grid has its points."
    for edge in (7.3, 9.1, 10.0):
        cube = Crystal(edge * np.eye(3), [18], [[0.123, 0.456, 0.789]])
        exact = 2 * (edge * np.sqrt(3) / 2 - vdw_radii([18])[0])
        grid = clearance_grid(cube, 0.3)
        assert abs(largest_sphere(cube, grid, 0.3, starts=40) - exact) < 0.02
        assert 2 * grid.max() < exact + 1e-6


def test_no_sphere_larger_than_what_is_open():
    crystal = textbook_mofs()["UiO-66"].crystal
    points = np.random.default_rng(0).random((20_000, 3))
    found = largest_sphere(crystal, clearance_grid(crystal, 0.3), 0.3, starts=40)
    assert 2 * clearance(crystal, points).max() <= found + 0.01
