"""Swaps of elements within their column: what stays, what changes, and by how much the cell grows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.symmcd.dataset import from_units, multiplicity, prepare_one, prototypes
from matgen_nb.symmcd.substitution import atomic_volumes, column, same_column, substituted
from matgen_nb.symmetry.lattice import k_to_lattice


@pytest.fixture(scope="module")
def data():
    return from_units([prepare_one(c) for name, c in prototypes()[:40] if len(c) <= 12])


def test_columns_are_those_of_pymatgen():
    from pymatgen.core import Element

    for z in range(1, 95):
        e = Element.from_Z(z)
        expected = 0 if z == 1 else 3 if e.is_lanthanoid else 20 if e.is_actinoid else e.group
        assert column(z) == expected, e.symbol
    assert torch.equal(same_column(), same_column().T)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), chance=st.sampled_from([0.0, 0.3, 1.0]), rounds=st.integers(1, 3))
def test_a_swap_keeps_all_but_elements_and_size(data, seed, chance, rounds):
    frequency, volumes = (
        torch.rand(94, generator=torch.Generator().manual_seed(seed)) + 0.01,
        5 + 30 * torch.rand(94, generator=torch.Generator().manual_seed(seed + 1)),
    )
    batch = data.select(torch.arange(len(data)))
    new, again = (
        substituted(batch, frequency, volumes, torch.Generator().manual_seed(seed), chance, rounds)
        for _ in range(2)
    )
    assert torch.equal(new.elements, again.elements) and torch.equal(new.k, again.k)
    for name in ("space_group", "num_orbits", "frac_coords", "wyckoff", "batch"):
        assert getattr(new, name) is getattr(batch, name)
    assert (
        torch.equal(new.k[:, :5], batch.k[:, :5])
        and same_column()[batch.elements - 1, new.elements - 1].all()
    )
    if chance == 0:
        assert torch.equal(new.elements, batch.elements) and torch.equal(new.k, batch.k)
    size = lambda b: torch.zeros(len(b)).index_add_(0, b.batch, multiplicity(b) * volumes[b.elements - 1])
    grown = torch.linalg.det(k_to_lattice(new.k.double())) / torch.linalg.det(k_to_lattice(batch.k.double()))
    assert torch.allclose(grown.float(), size(new) / size(batch), rtol=1e-4)
    for i in range(len(batch)):  # elements that were one stay one, those that were two stay two
        a, b = batch.elements[batch.batch == i].tolist(), new.elements[batch.batch == i].tolist()
        assert len(set(zip(a, b))) == len(set(a)) == len(set(b))


def test_an_element_without_relatives_in_the_data_stays(data):
    batch = data.select(torch.arange(len(data)))
    only = torch.zeros(94)
    only[batch.elements.unique() - 1] = 1
    alone = torch.tensor([(same_column()[z - 1] & (only > 0)).sum() == 1 for z in batch.elements])
    new = substituted(batch, only, torch.full((94,), 15.0), torch.Generator().manual_seed(0), 1.0, 5)
    assert torch.equal(new.elements[alone], batch.elements[alone]) and (only[new.elements - 1] > 0).all()


def test_volumes_of_cells_that_obey_them_are_found():
    from matgen_nb.symmetry.crystal import Crystal

    truth = dict(zip((3, 11, 17, 35, 8), (12.0, 20.0, 30.0, 35.0, 9.0)))
    units = []
    for a, b in ((3, 17), (11, 17), (3, 35), (11, 35), (3, 8), (11, 8), (17, 8)):
        side = (4 * (truth[a] + truth[b])) ** (1 / 3)
        units.append(
            prepare_one(
                Crystal(
                    side * np.eye(3),
                    [a] * 4 + [b] * 4,
                    [
                        [0, 0, 0],
                        [0, 0.5, 0.5],
                        [0.5, 0, 0.5],
                        [0.5, 0.5, 0],
                        [0.5, 0, 0],
                        [0, 0.5, 0],
                        [0, 0, 0.5],
                        [0.5, 0.5, 0.5],
                    ],
                )
            )
        )
    v = atomic_volumes(from_units(units), pull=1e-6)
    assert all(abs(v[z - 1] - x) < 0.1 for z, x in truth.items()) and v[25] == pytest.approx(15)
