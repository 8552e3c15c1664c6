"""Projection on Wyckoff positions: idempotent, symmetric, nearest against brute force, fixed sites used once."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.symmetry.lattice import lattice_from_parameters
from matgen_nb.symmetry.projection import assign_fixed_sites, assign_wyckoff, project
from matgen_nb.symmetry.space_groups import SpaceGroup, wyckoff_tables


def lattice_of(number, size=6.0):
    lengths, angles = np.array([1, 1.13, 1.31]) * size, [83.0, 97.0, 104.0]
    if number > 2:
        angles = [90.0, 101.0, 90.0]
    if number > 15:
        angles = [90.0, 90.0, 90.0]
    if number > 74:
        lengths[1] = lengths[0]
    if 143 <= number <= 194:
        angles = [90.0, 90.0, 120.0]
    if number > 194:
        lengths[:] = size
    return lattice_from_parameters(lengths, angles)


def everything(seed=0):
    "A random point for each of the 1731 positions: x, group, index, lattice."
    numbers = torch.tensor([n for n in range(1, 231) for _ in SpaceGroup(n).wyckoff_positions])
    index = torch.tensor([p.index for n in range(1, 231) for p in SpaceGroup(n).wyckoff_positions])
    x = torch.rand(len(numbers), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, numbers, index, torch.stack([lattice_of(int(n)) for n in numbers])


def test_every_position_idempotent_and_symmetric():
    x, numbers, index, lattice = everything()
    first = project(x, numbers, index, lattice)
    second = project(first.frac_coords, numbers, index, lattice)
    assert (second.distance < 1e-6).all()
    for n, i, point, u in zip(
        numbers.tolist(), index.tolist(), first.frac_coords.numpy(), first.free.numpy()
    ):
        group = SpaceGroup(n)
        moved = group.operations[0] @ point + group.operations[1] - point
        stays = (np.abs(moved - np.round(moved)) < 1e-6).all(1).sum()
        assert stays % (group.order // group[i].multiplicity) == 0 and stays > 0, (n, i)
        delta = group[i].points(u) - point
        assert (np.abs(delta - np.round(delta)) < 1e-6).all(1).any(), (n, i)


def brute_force(x, position, lattice, window=4):
    "Shortest distance to any member under any shift, from an orthonormal basis across each member."
    shifts = np.array(list(itertools.product(range(-window, window + 1), repeat=3)), dtype=float)
    best = np.inf
    for A, t in zip(position.A, position.t):
        U, S, _ = np.linalg.svd(lattice.T @ A)
        across = U[:, (S > 1e-9).sum() :]
        best = (
            min(best, np.linalg.norm((x - t - shifts) @ lattice @ across, axis=-1).min())
            if across.size
            else 0.0
        )
    return best


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 3, 5, 12, 15]),
    st.integers(0, 26),
    st.integers(0, 10**6),
    st.floats(50, 75),
    st.floats(95, 130),
)
def test_nearest_in_skewed_cells(number, index, seed, alpha, beta):
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(3, 9, 3)
    angles = [alpha, 180 - alpha if number < 3 and alpha > 70 else 75, 80] if number < 3 else [90, beta, 90]
    lattice, x = lattice_from_parameters(lengths, angles).numpy(), rng.uniform(size=3)
    positions = SpaceGroup(number).wyckoff_positions
    position = positions[index % len(positions)]
    result = project(x, number, position.index, lattice)
    assert float(result.distance[0]) == pytest.approx(brute_force(x, position, lattice), abs=1e-7)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(16, 230), st.integers(0, 26), st.integers(0, 10**6))
def test_nearest_in_all_groups(number, index, seed):
    positions = SpaceGroup(number).wyckoff_positions
    position = positions[index % len(positions)]
    lattice, x = lattice_of(number).numpy(), np.random.default_rng(seed).uniform(size=3)
    expected = 0.0 if position.dof == 3 else brute_force(x, position, lattice, 2)
    assert float(project(x, number, position.index, lattice).distance[0]) == pytest.approx(expected, abs=1e-7)


def test_chunks_change_nothing():
    x, numbers, index, lattice = (part[::7] for part in everything(1))
    a, b = project(x, numbers, index, lattice), project(x, numbers, index, lattice, chunk=500)
    assert torch.equal(a.frac_coords, b.frac_coords) and torch.equal(a.member, b.member)


def test_assignment_is_the_cheapest():
    rng = np.random.default_rng(0)
    for r, s in [(1, 1), (2, 2), (3, 5), (4, 8), (8, 8)]:
        cost = rng.uniform(size=(r, s))
        best = min(sum(cost[i, c] for i, c in enumerate(p)) for p in itertools.permutations(range(s), r))
        assert sum(
            cost[i, c] for i, c in enumerate(assign_fixed_sites(torch.as_tensor(cost)))
        ) == pytest.approx(best)


def test_fixed_sites_are_used_once():
    tables, generator = wyckoff_tables(), torch.Generator().manual_seed(0)
    for number in (2, 10, 47, 123, 221, 225):
        for c in range(15):
            capacity = int(tables.class_capacity[number, c])
            if not 2 <= capacity <= 8:
                continue
            x = 0.1 * torch.rand(2 * capacity, 3, dtype=torch.float64, generator=generator)
            group, site_class = torch.full((len(x),), number), torch.full((len(x),), c)
            batch = torch.arange(2).repeat_interleave(capacity)
            placed = assign_wyckoff(x, group, site_class, lattice_of(number).expand(len(x), 3, 3), batch)
            for b in range(2):
                assert len(placed.wyckoff[batch == b].unique()) == capacity
            assert (tables.site_class[tables.wyckoff_offset[group] + placed.wyckoff] == c).all()


def test_given_positions_are_taken_however_far():
    "Each position of every group, given by name: the projection is that of `project`, also where several fixed sites of a class are requested; crystals without names are placed as before."
    generator = torch.Generator().manual_seed(0)
    tables = wyckoff_tables()
    for number in (2, 47, 139, 194, 221, 227):
        n = int(tables.wyckoff_offset[number + 1] - tables.wyckoff_offset[number])
        wyckoff, group = torch.arange(n), torch.full((n,), number)
        site_class, x, cell = (
            tables.site_class[tables.wyckoff_offset[number] + wyckoff],
            torch.rand(n, 3, dtype=torch.float64, generator=generator),
            lattice_of(number).expand(n, 3, 3),
        )
        given, alone = (
            assign_wyckoff(x, group, site_class, cell, torch.zeros(n, dtype=torch.long), wyckoff),
            project(x, group, wyckoff, cell),
        )
        assert (
            torch.equal(given.wyckoff, wyckoff)
            and torch.allclose(given.distance, alone.distance)
            and torch.allclose(given.frac_coords, alone.frac_coords)
        )
        free, batch = torch.full((n,), -1), torch.arange(n)
        plain, none = (assign_wyckoff(x, group, site_class, cell, batch, w) for w in (None, free))
        assert torch.equal(plain.wyckoff, none.wyckoff) and torch.equal(plain.frac_coords, none.frac_coords)


def test_too_many_orbits_are_rejected():
    with pytest.raises(ValueError, match="share"):
        assign_wyckoff(
            torch.rand(3, 3),
            torch.full((3,), 225),
            torch.zeros(3, dtype=torch.long),
            5 * torch.eye(3).expand(3, 3, 3),
            torch.zeros(3, dtype=torch.long),
        )


def test_unknown_positions_are_rejected():
    with pytest.raises(ValueError, match="Wyckoff"):
        project([[0, 0, 0]], 1, 5, torch.eye(3))
    with pytest.raises(ValueError, match="1..230"):
        project([[0, 0, 0]], 231, 0, torch.eye(3))
