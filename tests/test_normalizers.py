"Normalizers: for all 230 groups another setting is the same crystal; letters as in pyxtal's table; batches as single units."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.symmcd.dataset import from_units
from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit, place_orbit
from matgen_nb.symmetry.lattice import (
    constrain_k,
    crystal_family,
    k_to_lattice,
    lattice_from_parameters,
    lattice_to_k,
)
from matgen_nb.symmetry.normalizers import (
    NORMALIZER_PATH,
    augment,
    build_normalizers,
    canonical_label,
    canonical_setting,
    canonical_template,
    coset_maps,
    equivalent_templates,
    k_maps,
    load_normalizers,
    normalizer,
    normalizer_maps,
    random_settings,
    rename,
    self_maps,
    transform_unit,
    transformed,
)
from matgen_nb.symmetry.space_groups import SpaceGroup

GROUPS = range(1, 231)


def random_cell(number, rng):
    "k (6,) of a cell that the group allows, with lengths from 4 to 9 A, all different where they may be."
    a, b, c = rng.permutation([4.1, 5.6, 7.3]) * rng.uniform(0.9, 1.2, 3)
    free = dict(
        triclinic=([a, b, c], rng.uniform(75, 105, 3)),
        monoclinic=([a, b, c], [90, rng.uniform(92, 110), 90]),
        orthorhombic=([a, b, c], [90] * 3),
        tetragonal=([a, a, c], [90] * 3),
        hexagonal=([a, a, c], [90, 90, 120]),
        cubic=([a] * 3, [90] * 3),
    )
    lengths, angles = free[crystal_family(number)]
    return constrain_k(lattice_to_k(lattice_from_parameters(list(lengths), list(angles))), number).numpy()


def random_unit(number, rng, positions=None):
    "An asymmetric unit with random free coordinates on these Wyckoff positions; by default up to three of the smallest."
    group = SpaceGroup(number).wyckoff_positions
    if positions is None:
        small = sorted(range(len(group)), key=lambda w: (group[w].multiplicity, rng.random()))
        positions = sorted(small[:3])
    points = [group[w].A[0] @ rng.random(3) + group[w].t[0] for w in positions]
    placed = []
    k = random_cell(number, rng)
    lattice = AsymmetricUnit(number, k, [1], [points[0] % 1], [positions[0]]).lattice
    for w, x in zip(positions, points):
        orbit = AsymmetricUnit(number, k, [1], [x % 1], [w]).to_crystal().frac_coords
        index, representative, _ = place_orbit(orbit, number, lattice)
        placed.append(representative if index == w else x % 1)
    return AsymmetricUnit(
        number, k, [(8, 14, 22, 3, 17)[i % 5] for i in range(len(positions))], placed, positions
    )


def same_point_set(a, b, elements_a, elements_b, tolerance):
    delta = a[:, None] - b
    near = (np.abs(delta - np.round(delta)) < tolerance).all(-1) & (elements_a[:, None] == elements_b)
    return len(a) == len(b) and near.any(1).all() and near.any(0).all()


@pytest.mark.parametrize("number", GROUPS)
def test_another_setting_is_the_same_crystal(number):
    "All settings, all Wyckoff positions: the atoms moved by the map are the atoms of the new unit, in the transformed cell."
    rng, this = np.random.default_rng(number), normalizer(number)
    unit = random_unit(number, rng, range(len(SpaceGroup(number).wyckoff_positions)))
    old = unit.to_crystal()
    gram = old.lattice @ old.lattice.T
    for i in rng.permutation(len(this))[:4] if len(this) > 4 else range(len(this)):
        other = transform_unit(unit, int(i))
        new, P = other.to_crystal(), this.P[i]
        assert other.space_group == number and (other.elements == unit.elements).all()
        assert other.wyckoff.tolist() == this.letters[i][unit.wyckoff].tolist()
        inverse = np.linalg.inv(P)
        assert np.allclose(new.lattice @ new.lattice.T, inverse.T @ gram @ inverse, rtol=1e-9), "the cell"
        assert np.allclose(constrain_k(torch.as_tensor(other.k), number), other.k, atol=1e-9), (
            "still a cell of the group"
        )
        moved = old.frac_coords @ P.T + this.p[i]
        for w, m in enumerate(unit.multiplicities):
            rows = slice(unit.multiplicities[:w].sum(), unit.multiplicities[:w].sum() + m)
            same = old.elements[rows], new.elements[rows]
            assert same_point_set(moved[rows], new.frac_coords[rows], *same, 1e-7), (
                i,
                unit.positions[unit.wyckoff[w]].label,
            )


@pytest.mark.parametrize("start", range(1, 231, 23))
def test_structure_matcher_agrees(start):
    "One random setting of a small random crystal of each group."
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(primitive_cell=False, scale=False)
    for number in range(start, start + 23):
        rng = np.random.default_rng(number)
        unit = random_unit(number, rng)
        other = transform_unit(unit, int(rng.integers(len(normalizer(number)))))
        a, b = (u.to_crystal().to_pymatgen() for u in (unit, other))
        assert a.volume == pytest.approx(b.volume) and matcher.fit(a, b), (number, unit, other)


@pytest.mark.parametrize("start", range(1, 231, 23))
def test_representatives_obey_the_rule_of_the_data(start):
    "On the first member, and of the images there the one nearest to the origin, as `place_orbit` chooses it."
    for number in range(start, start + 23):
        rng = np.random.default_rng(1000 + number)
        last = len(SpaceGroup(number).wyckoff_positions) - 1
        unit = random_unit(number, rng, [last, max(last - 1, 0)])
        for i in {0, int(rng.integers(len(normalizer(number))))}:
            other = transform_unit(unit, i)
            for w, x in zip(other.wyckoff, other.frac_coords):
                orbit = AsymmetricUnit(number, other.k, [1], [x], [w]).to_crystal().frac_coords
                index, representative, moved = place_orbit(orbit, number, other.lattice)
                distances = [(y.round(4) ** 2).sum() for y in (representative, x)]
                assert index == w and moved < 1e-6 and abs(distances[0] - distances[1]) < 1e-12, (
                    number,
                    i,
                    w,
                )
                tie = np.allclose(
                    np.sort(representative), np.sort(x), atol=1e-6
                )  # x, y, z in another order: equally near
                assert tie, (number, i, w)
        assert transform_unit(unit, 0).wyckoff.tolist() == unit.wyckoff.tolist()
        assert np.allclose(np.sort(transform_unit(unit, 0).frac_coords), np.sort(unit.frac_coords))


def test_settings_form_a_group():
    "Doing one after the other is again one of them, and each can be undone: in letters and in number."
    for number in GROUPS:
        letters = {tuple(row) for row in normalizer(number).letters.tolist()}
        assert tuple(range(len(normalizer(number).letters[0]))) == tuple(normalizer(number).letters[0])
        assert all(sorted(row) == list(range(len(row))) for row in letters), (
            "each position goes to another one"
        )
        for a in letters:
            assert {tuple(a[b] for b in row) for row in letters} == letters
        maps = len(normalizer_maps(number))
        rotations, translations = SpaceGroup(number).operations
        assert maps % len(normalizer(number)) == 0 and len(rotations) % (maps // len(normalizer(number))) == 0


def pyxtal_letterings(number):
    from pyxtal.symmetry import Group

    index = lambda letter: 26 if letter == "A" else ord(letter) - ord("a")
    return {tuple(map(index, row.split())) for row in Group(number).get_alternatives()["Transformed WP"]}


def test_letters_are_those_of_pyxtal():
    "In all groups but those where we also exchange the axes of a monoclinic or triclinic cell; there theirs are a part of ours."
    more = set()
    for number in GROUPS:
        ours, theirs = (
            {tuple(r) for r in rows}
            for rows in (normalizer(number).letters.tolist(), pyxtal_letterings(number))
        )
        assert theirs <= ours, number
        if theirs != ours:
            more.add(number)
        kept = normalizer(number).letters[~normalizer(number).permutes_axes]
        if number in more:
            assert {tuple(r) for r in kept.tolist()} == theirs, number
    assert all(number <= 15 for number in more), more


def test_the_stored_table_is_what_the_operations_give():
    "Recomputed for one group of each kind (all 230: build_normalizers, compared with the file when it is built)."
    stored = load_normalizers()
    assert NORMALIZER_PATH.stat().st_size < 100_000 and build_normalizers.__doc__
    for number in (1, 2, 5, 10, 19, 47, 62, 92, 122, 148, 154, 166, 194, 198, 216, 227):
        this, maps = normalizer(number), coset_maps(number)
        assert np.array_equal(this.P, [P for P, _ in maps]) and np.allclose(this.p * 24, [p for _, p in maps])
        for i, map_ in enumerate(maps):
            letters, operations = rename(number, *map_)
            assert this.letters[i].tolist() == letters and this.operations[i].tolist() == operations
        before = sum(len(SpaceGroup(n).wyckoff_positions) for n in range(1, number))
        for i, stay in enumerate(self_maps(number), before):
            assert stored["stay"][slice(*stored["stay_offset"][i : i + 2])].tolist() == stay


def test_mirrors_and_enantiomorphs():
    "Improper settings exist only where the group has no improper operation, and never in an enantiomorphic pair."
    pairs = {
        76,
        78,
        91,
        95,
        92,
        96,
        144,
        145,
        151,
        153,
        152,
        154,
        169,
        170,
        171,
        172,
        178,
        179,
        180,
        181,
        212,
        213,
    }
    for number in GROUPS:
        chiral = (np.linalg.det(SpaceGroup(number).operations[0]) > 0).all()
        assert normalizer(number).mirrors.any() == (chiral and number not in pairs), number


TEMPLATES = st.integers(1, 230).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.integers(0, len(SpaceGroup(n).wyckoff_positions) - 1), min_size=1, max_size=6),
        st.integers(0, 999),
    )
)


@settings(max_examples=150, deadline=None)
@given(TEMPLATES)
def test_the_canonical_template_is_one_for_all_labellings(example):
    number, template, i = example
    this = normalizer(number)
    renamed = this.letters[i % len(this)][template].tolist()
    assert (
        canonical_template(number, renamed) == canonical_template(number, template) <= tuple(sorted(template))
    )
    assert equivalent_templates(number, renamed) == equivalent_templates(number, reversed(template))
    chosen = this.letters[canonical_setting(number, renamed)][renamed]
    assert tuple(sorted(chosen.tolist())) == canonical_template(number, template)
    letters = lambda t: [SpaceGroup(number).wyckoff_positions[w].letter for w in t]
    label = lambda t: f"{number}:" + ",".join(sorted(letters(t)))
    assert (
        canonical_label(label(template))
        == canonical_label(label(renamed))
        == label(canonical_template(number, letters(template)))
    )


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("194:c,h", "194:d,h", True),
        ("225:a", "225:b", True),
        ("216:a,b", "216:c,d", True),
        ("216:a,b", "216:a,c", False),
        ("221:a,b,c", "221:a,b,d", True),
        ("221:a,c", "221:b,d", True),
        ("227:a,d,e", "227:b,c,e", True),
        ("227:a,c", "227:a,d", False),
        ("47:b", "47:c", True),
        ("62:a,c", "62:b,c", True),
        ("194:a,c", "194:b,c", False),
        ("10:b", "10:d", True),
    ],
)
def test_textbook_templates(a, b, same):
    assert (canonical_label(a) == canonical_label(b)) is same


def test_what_does_not_exist_is_rejected():
    with pytest.raises(KeyError, match="no Wyckoff position 'z'"):
        canonical_template(225, "az")
    with pytest.raises(ValueError, match="space group"):
        normalizer(231)
    unit = random_unit(194, np.random.default_rng(0))
    with pytest.raises(IndexError, match="settings 0 to 1"):
        transform_unit(unit, 2)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(7)
    return from_units([random_unit(number, rng) for number in GROUPS])


def test_a_batch_is_transformed_like_single_units(data):
    batch = data.select(range(230))
    chosen = random_settings(batch.space_group, torch.Generator().manual_seed(3))
    seen = transformed(batch, chosen)
    assert (
        torch.equal(seen.elements, batch.elements)
        and torch.equal(seen.batch, batch.batch)
        and seen.k.dtype == torch.float32
    )
    for i in range(230):
        rows, unit = batch.batch == i, transform_unit(data[i], int(chosen[i]))
        assert seen.wyckoff[rows].tolist() == unit.wyckoff.tolist()
        assert np.allclose(seen.k[i], unit.k, atol=1e-5)
        delta = seen.frac_coords[rows].numpy() - unit.frac_coords
        assert np.abs(delta - np.round(delta)).max() < 1e-5, unit
    assert (seen.frac_coords >= 0).all() and (seen.frac_coords < 1).all()


def test_augmentation_is_uniform_and_reproducible(data):
    numbers = torch.full((4800,), 47)
    sampled = torch.bincount(random_settings(numbers, torch.Generator().manual_seed(0)), minlength=48)
    assert len(sampled) == 48 and (sampled - 100).abs().max() < 60
    same_cell = random_settings(numbers, torch.Generator().manual_seed(0), permute_axes=False)
    assert set(same_cell.tolist()) == set(range(8))
    batch = data.select(range(230))
    a, b, c = (augment(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.frac_coords, b.frac_coords) and not torch.equal(a.frac_coords, c.frac_coords)
    still = augment(batch, torch.Generator().manual_seed(1), permute_axes=False)
    assert torch.equal(still.k, batch.k)
    lengths = lambda k: k_to_lattice(k.double()).norm(dim=-1).sort(-1).values
    assert torch.allclose(lengths(a.k), lengths(batch.k), atol=1e-3), "lengths are exchanged, not changed"


def test_k_maps_keep_the_volume():
    rng = np.random.default_rng(0)
    for number in GROUPS:
        k, this = random_cell(number, rng), normalizer(number)
        for P, M in zip(this.P, k_maps(this.P, number)):
            old, new = (k_to_lattice(torch.as_tensor(x)).numpy() for x in (k, M @ k))
            assert np.allclose(P.T @ new @ new.T @ P, old @ old.T, atol=1e-8), number
