"""Properties of lattices that hold for any cell."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.symmetry.lattice import (
    constrain_k,
    crystal_family,
    k_mask,
    k_offset,
    k_to_lattice,
    lattice_from_parameters,
    lattice_parameters,
    lattice_to_k,
    metric_tensor,
    volume,
)

length, angle, small = st.floats(2, 40), st.floats(50, 130), st.floats(-1, 1)
quick = settings(max_examples=60, deadline=None)


def cell(lengths, angles):
    "A cell, or None where the angles close none or hardly one."
    ca, cb, cg = np.cos(np.deg2rad(angles))
    if 1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg < 1e-2:
        return None
    return lattice_from_parameters(lengths, angles)


@quick
@given(st.tuples(length, length, length), st.tuples(angle, angle, angle))
def test_parameters_there_and_back(lengths, angles):
    L = cell(lengths, angles)
    if L is not None:
        assert L.dtype == torch.float64 and torch.det(L) > 0
        np.testing.assert_allclose(lattice_parameters(L)[0], lengths, rtol=1e-10)
        np.testing.assert_allclose(lattice_parameters(L)[1], angles, rtol=1e-9)


@quick
@given(st.tuples(length, length, length), st.tuples(angle, angle, angle))
def test_k_there_and_back(lengths, angles):
    L = cell(lengths, angles)
    if L is not None:
        decoded = k_to_lattice(lattice_to_k(L))
        scale = metric_tensor(L).abs().max()
        assert (metric_tensor(decoded) - metric_tensor(L)).abs().max() / scale < 1e-10
        np.testing.assert_allclose(volume(L), (3 * lattice_to_k(L)[5]).exp(), rtol=1e-9)


@pytest.mark.parametrize("number", [0, *range(1, 231)])
def test_constraint_of_every_group(number):
    "Constrained k decodes to a cell with the shape of the family, and encodes to itself."
    generator = torch.Generator().manual_seed(number)
    k = constrain_k(0.3 * torch.randn(5, 6, dtype=torch.float64, generator=generator), number)
    L = k_to_lattice(k)
    assert torch.allclose(lattice_to_k(L), k, atol=1e-12)
    assert torch.equal(k[:, ~k_mask(number)], k_offset(number)[~k_mask(number)].expand(5, -1))
    (a, b, c), (alpha, beta, gamma) = (x.T for x in lattice_parameters(L))
    family = crystal_family(number) if number else "triclinic"
    near = lambda x, y: bool((x - y).abs().max() < 1e-6)
    if family != "triclinic":
        assert near(alpha, torch.tensor(90.0))
        assert near(gamma, torch.tensor(120.0 if family == "hexagonal" else 90.0))
        assert family == "monoclinic" or near(beta, torch.tensor(90.0))
    if family in ("tetragonal", "hexagonal", "cubic"):
        assert near(a, b)
    if family == "cubic":
        assert near(a, c)


def test_shapes_and_dtypes():
    for dtype in (torch.float32, torch.float64):
        L = torch.eye(3, dtype=dtype).expand(4, 2, 3, 3) * 5
        assert lattice_to_k(L).shape == (4, 2, 6) and lattice_to_k(L).dtype == dtype
        assert k_to_lattice(lattice_to_k(L)).dtype == dtype
    assert lattice_to_k(np.eye(3)).dtype == torch.float64
    assert lattice_to_k([[4, 0, 0], [0, 4, 0], [0, 0, 4]]).dtype == torch.float64
    numbers = torch.tensor([[1, 14], [166, 225]])
    assert (
        k_mask(numbers).shape
        == k_offset(numbers).shape
        == constrain_k(torch.zeros(2, 2, 6), numbers).shape
        == (2, 2, 6)
    )


def test_decoding_is_differentiable():
    k = torch.zeros(6, dtype=torch.float64, requires_grad=True)  # a cube: all eigenvalues equal
    k_to_lattice(k).sum().backward()
    assert torch.isfinite(k.grad).all()


@pytest.mark.parametrize("bad", [torch.zeros(3, 3), torch.full((3, 3), float("nan")), torch.ones(3, 3)])
def test_a_flat_lattice_is_rejected(bad):
    with pytest.raises(ValueError, match="flat or not finite"):
        lattice_to_k(bad)


@pytest.mark.parametrize(
    "lengths, angles", [([0, 1, 1], [90] * 3), ([1, 1, 1], [10, 20, 100]), ([1, 1, float("nan")], [90] * 3)]
)
def test_impossible_parameters_are_rejected(lengths, angles):
    with pytest.raises(ValueError, match="no cell has"):
        lattice_from_parameters(lengths, angles)


@pytest.mark.parametrize("number", [-1, 231])
def test_unknown_groups_are_rejected(number):
    for function in (crystal_family, k_mask, k_offset):
        with pytest.raises(ValueError, match="1 to 230"):
            function(number)
