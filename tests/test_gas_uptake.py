"""Gas uptake: the gas models give published numbers, and what cannot be simulated is rejected."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from matgen_nb.mofdiff import gas_uptake as gu
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError


def helium(edge):
    "One helium atom in a box: nearly nothing."
    return Crystal(edge * np.eye(3), np.array([2]), np.zeros((1, 3)))


def test_lennard_jones_of_uff():
    epsilon, sigma = gu.framework_lj([6, 8, 30, 29])
    assert np.allclose(epsilon, np.array([0.105, 0.060, 0.124, 0.005]) * 503.2195) and np.allclose(
        sigma, np.array([3.851, 3.500, 2.763, 3.495]) / 2 ** (1 / 6)
    )
    with pytest.raises(MatgenError):
        gu.framework_lj([0])


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_insertion_energy_against_a_sum_over_images(seed):
    rng = np.random.default_rng(seed)
    crystal = Crystal(6 * np.eye(3) + rng.normal(size=(3, 3)), np.array([6, 8, 30]), rng.random((3, 3)))
    points, u = rng.random((4, 3)), rng.normal(size=(4, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    epsilon, sigma = gu.framework_lj(crystal.elements)
    shifts = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    expected = np.zeros(4)
    for site, place in gu.GASES["CO2"]:
        e, s = gu.SITES[site][:2]
        x = points @ crystal.lattice + place * u
        r = np.linalg.norm(
            x[:, None, None] - (crystal.frac_coords[:, None] + shifts) @ crystal.lattice, axis=-1
        )
        y = ((s + sigma[:, None]) / 2 / np.maximum(r, 0.3)) ** 6
        expected += np.where(r < 8.0, 4 * np.sqrt(e * epsilon[:, None]) * (y * y - y), 0).sum((1, 2))
    assert np.allclose(gu.insertion_energy(crystal, points, u, "CO2", cutoff=8.0), expected, rtol=1e-8)


def test_henry_coefficient_of_nearly_nothing_is_the_ideal_gas():
    crystal = helium(40.0)
    value = gu.henry_coefficient(crystal, "N2", 300.0, n=4000)
    assert abs(value.value * 1000 * crystal.density * 8.314462618 * 300.0 - 1) < 0.01
    again = gu.henry_coefficient(crystal, "N2", 300.0, n=4000)
    assert again == value
    with pytest.raises(MatgenError):
        gu.henry_coefficient(crystal, "Xe")


def test_repeats_make_every_width_twice_the_cutoff():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lattice = 12 * np.eye(3) + 3 * rng.normal(size=(3, 3))
        n = np.array(gu.repeats(lattice))
        width = lambda n: 1 / np.linalg.norm(np.linalg.inv(lattice * n[:, None]), axis=0)
        assert (width(n) >= 24 - 1e-6).all() and (width(np.maximum(n - 1, 1))[n > 1] < 24).all()


def test_without_raspalib_the_error_says_what_to_install(monkeypatch):
    import builtins

    whole = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest: whole("no_such_module_at_all" if name == "raspalib" else name, *rest),
    )
    with pytest.raises(MatgenError, match=r"pip install 'matgen_nb\[gcmc\]'"):
        gu.gcmc(helium(30.0), 298.0, 1e5, dict(CO2=1.0))


@pytest.mark.parametrize(
    "changes",
    [dict(fractions={}), dict(fractions=dict(Xe=1.0)), dict(charges=[1.0]), dict(charges=[0.0, 0.0])],
)
def test_gcmc_rejects(changes):
    with pytest.raises(MatgenError):
        gu.gcmc(helium(30.0), **{**dict(temperature=298.0, pressure=1e5, fractions=dict(CO2=1.0)), **changes})


@pytest.mark.skipif(importlib.util.find_spec("raspalib") is None, reason="the extra `gcmc` is not installed")
def test_gcmc_of_nearly_nothing_is_the_ideal_gas_in_the_right_mixture():
    crystal = helium(30.0)
    found = gu.gcmc(crystal, 298.0, 5e5, dict(CO2=0.25, N2=0.75), options=gu.GcmcOptions(4000, 500))
    ideal = 5e5 * crystal.volume * 1e-30 / (1.380649e-23 * 298.0) * 1000 / 4.002602
    for gas, share in (("CO2", 0.25), ("N2", 0.75)):
        mean, error = found[gas].value, found[gas].error
        assert abs(mean / (share * ideal) - 1) < 0.15 + 2 * error / mean, gas
