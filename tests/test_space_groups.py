"""The table of space groups, all 230 groups and 1731 Wyckoff positions: recomputed, counted, and compared with spglib."""

import numpy as np
import pytest

from matgen_nb.symmetry.lattice import lattice_from_parameters
from matgen_nb.symmetry.space_groups import (
    DENOMINATOR,
    SpaceGroup,
    group_vectors,
    load_table,
    site_symmetry_one_hot,
    standard_hall_number,
    wyckoff_members,
    wyckoff_tables,
)

CHUNKS = [range(start, min(start + 23, 231)) for start in range(1, 231, 23)]
chunked = pytest.mark.parametrize("numbers", CHUNKS, ids=lambda r: f"{r[0]}-{r[-1]}")


def cell_of(number, size=23.0):
    "A cell that the group allows and that has no symmetry beyond it."
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
    return lattice_from_parameters(lengths, angles).numpy()


def distinct(points):
    "How many points (m, 3) differ modulo 1."
    delta = points[:, None] - points
    near = (np.abs(delta - np.round(delta)) < 1e-7).all(-1)
    return int((near.argmax(1) == np.arange(len(points))).sum())


def integer_operations(number):
    R, w = SpaceGroup(number).operations
    return R.astype(np.int64), np.rint(w * DENOMINATOR).astype(np.int64) % DENOMINATOR


@chunked
def test_operations_form_a_group(numbers):
    for number in numbers:
        R, w = integer_operations(number)
        members = {r.tobytes() + v.tobytes() for r, v in zip(R, w)}
        assert len(members) == len(R) == SpaceGroup(number).order
        products = (
            np.einsum("aij,bjk->abik", R, R),
            (np.einsum("aij,bj->abi", R, w) + w[:, None]) % DENOMINATOR,
        )
        assert {
            r.tobytes() + v.tobytes() for r, v in zip(*(x.reshape(-1, *x.shape[2:]) for x in products))
        } == members


@chunked
def test_every_position(numbers):
    "Members and one-hots from the operations, multiplicity x |stabiliser| = order, degrees of freedom, size of a random orbit."
    rng = np.random.default_rng(0)
    for number in numbers:
        group, (R, w) = SpaceGroup(number), integer_operations(number)
        for position in group.wyckoff_positions:
            A, t = (
                position.A.astype(np.int64),
                np.rint(position.t * DENOMINATOR).astype(np.int64) % DENOMINATOR,
            )
            members_A, members_t, stabiliser = wyckoff_members(R, w, A[0], t[0])
            assert (members_A == A).all() and (members_t == t).all()
            assert position.multiplicity * len(stabiliser) == group.order
            assert (position.one_hot == site_symmetry_one_hot(R[stabiliser])).all()
            assert all(np.linalg.matrix_rank(a) == position.dof for a in A)
            x = position.A[0] @ rng.uniform(size=3) + position.t[0]
            assert (
                distinct(group.operations[0] @ x + group.operations[1])
                == position.multiplicity
                == distinct(position.points(rng.uniform(size=3)))
            )


def all_positions_crystal(number, rng):
    "One orbit of every Wyckoff position, each of its own kind, and two more general ones: no symmetry beyond the group is left."
    positions = SpaceGroup(number).wyckoff_positions
    positions = [*positions, positions[-1], positions[-1]]
    points = [p.points(rng.uniform(size=3)) for p in positions]
    kinds = np.repeat(np.arange(1, len(points) + 1), [len(p) for p in points])
    return (cell_of(number), np.concatenate(points), kinds), positions


@chunked
def test_site_symmetry_as_spglib_names_it(numbers):
    import spglib

    rng = np.random.default_rng(1)
    for number in numbers:
        cell, positions = all_positions_crystal(number, rng)
        found = spglib.get_symmetry_dataset(cell, symprec=1e-4, hall_number=standard_hall_number(number))
        assert found.number == number
        first = np.searchsorted(cell[2], np.arange(1, len(positions) + 1))
        assert [found.site_symmetry_symbols[i] for i in first] == [p.site_symmetry for p in positions], number


def test_counts():
    groups = [SpaceGroup(n) for n in range(1, 231)]
    assert sum(len(g.wyckoff_positions) for g in groups) == 1731
    assert max(len(g.wyckoff_positions) for g in groups) == 27
    assert len(load_table()["one_hots"]) == 83
    assert max(len({p.site_class for p in g.wyckoff_positions}) for g in groups) == 15
    shared = [
        sum(q.site_class == p.site_class for q in g.wyckoff_positions) > 1
        for g in groups
        for p in g.wyckoff_positions
    ]
    assert sum(shared) == 983
    assert len(group_vectors()[1:].unique(dim=0)) == 230 and not group_vectors()[0].any()


def test_positions_that_share_a_class_have_the_same_size():
    for number in range(1, 231):
        classes = {}
        for p in SpaceGroup(number).wyckoff_positions:
            assert classes.setdefault(p.site_class, (p.multiplicity, p.dof)) == (p.multiplicity, p.dof)


def test_letters_run_from_a():
    for number in range(1, 231):
        letters = "".join(p.letter for p in SpaceGroup(number).wyckoff_positions)
        assert letters == "abcdefghijklmnopqrstuvwxyzA"[: len(letters)]
        assert SpaceGroup(number)[letters[-1]].multiplicity == SpaceGroup(number).order


def test_tables_agree_with_groups():
    T = wyckoff_tables()
    for number in (1, 2, 47, 99, 183, 191, 225, 230):
        for p in SpaceGroup(number).wyckoff_positions:
            row = T.wyckoff_offset[number] + p.index
            assert (int(T.multiplicity[row]), int(T.dof[row]), int(T.site_class[row])) == (
                p.multiplicity,
                p.dof,
                p.site_class,
            )
            assert (T.one_hots[T.one_hot_id[row]].numpy() == p.one_hot).all()
            span = slice(int(T.member_offset[row]), int(T.member_offset[row + 1]))
            assert (T.A[span].numpy() == p.A).all() and (T.t[span].numpy() == p.t).all()


@pytest.mark.parametrize("number", [0, 231, -1, 2.5, True])
def test_unknown_groups_are_rejected(number):
    with pytest.raises(ValueError, match="1 to 230"):
        SpaceGroup(number)
