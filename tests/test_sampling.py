"""Sampling: the requested group holds exactly, fixed sites are used once, formulas are met, what cannot be is rejected, all on record, seeds repeat."""

import itertools
import math
import re
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import sample_by_name
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.symmcd import counting
from matgen_nb.symmcd import staged_sampling  # noqa: F401  (staged models sample with it)
from matgen_nb.symmcd.model import CrystalStatistics, SymmCD, SymmCDConfig
from matgen_nb.symmcd.network import pairs_of
from matgen_nb.symmcd.requests import Conditions, Prior, Request, make_request, plan, reject_forced
from matgen_nb.symmcd.reverse import (
    SamplingOptions,
    RESAMPLE,
    guided_score,
    sample_requests,
    settle_sites,
    start_state,
)
from matgen_nb.symmcd.counting import (
    MOST_ORBITS,
    arrangements,
    count_ways,
    sample_sites,
    evidence,
    parse_formula,
    parse_system,
    possible_atoms,
    site_classes,
    try_arrangements,
)
from matgen_nb.symmcd.sampling import lattice_denoising_error
from matgen_nb.symmcd.refinements import (
    crowding,
    force_higher,
    group_columns,
    resolve_contacts,
    unforced_request,
)
from matgen_nb.symmetry import symmetry_search
from matgen_nb.symmetry.normalizers import generic_unit
from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit
from matgen_nb.symmetry.symmetry_search import found_group, symmetry_dataset
from matgen_nb.symmetry.crystal import element_table, min_distance
from matgen_nb.symmetry.lattice import lattice_from_parameters, lattice_to_k
from matgen_nb.symmetry.projection import assign_wyckoff, project
from matgen_nb.symmetry.space_groups import SpaceGroup, wyckoff_tables
from matgen_nb.utils import MatgenError, numpy_stream, torch_stream

ONES = (1.0,) * 15
SYMBOL = element_table().symbol


def untrained(name="common"):
    "A small network that knows nothing: hard on whatever must hold by construction."
    torch.manual_seed(0)
    T, elements = wyckoff_tables(), torch.rand(94, generator=torch.Generator().manual_seed(0)) + 0.01
    classes = (T.class_one_hot >= 0).double()
    orbits = torch.zeros(231, 65)
    orbits[1:, 1:9] = 1
    groups = torch.zeros(231)
    groups[
        [
            1,
            2,
            12,
            14,
            15,
            38,
            62,
            63,
            71,
            122,
            123,
            129,
            136,
            139,
            147,
            148,
            156,
            166,
            167,
            176,
            186,
            194,
            198,
            205,
            216,
            221,
            225,
            227,
        ]
    ] = 1
    k = torch.tensor([0, 0, 0, 0, 0, 1.6])
    stats = CrystalStatistics(
        k,
        torch.full((6,), 0.15),
        elements / elements.sum(),
        (classes / classes.sum(1, keepdim=True).clamp(min=1)).float(),
        groups,
        orbits,
    )
    return SymmCD(SymmCDConfig.preset(name, width=32, layers=1, frequencies=4), stats).eval()


@pytest.fixture(scope="module", params=["common", "paper_small", "tiny"])
def model(request):
    return untrained(request.param)


@pytest.fixture(scope="module", params=["common", "paper_small"])
def one_time(request):
    "Models with one noise time for all parts, whose reverse process is that of lesson 3.14."
    return untrained(request.param)


OURS = untrained()


def holds(sample, tolerance=1e-6):
    "Every operation of the group maps the crystal onto itself, atom by atom."
    frac, elements = sample.crystal.frac_coords, sample.crystal.elements
    R, w = SpaceGroup(sample.row["space_group"]).operations
    for rotation, shift in zip(R, w):
        delta = (frac @ rotation.T + shift)[:, None] - frac
        hit = (np.abs(delta - np.round(delta)) < tolerance).all(-1) & (elements[:, None] == elements)
        if not hit.any(1).all():
            return False
    metric = sample.crystal.lattice @ sample.crystal.lattice.T
    return all(np.allclose(r.T @ metric @ r, metric, rtol=1e-5, atol=1e-5 * metric.max()) for r in R)


def check(sample, request):
    "What must hold for every sample."
    row, unit = sample.row, sample.unit
    assert row["space_group"] == request.space_group == unit.space_group and row[
        "num_orbits"
    ] == request.num_orbits == len(unit)
    fixed = Counter(int(w) for w in unit.wyckoff if unit.positions[w].dof == 0)
    assert all(n == 1 for n in fixed.values()), "a fixed site twice"
    assert (
        row["num_atoms"] == len(sample.crystal) == sum(unit.positions[w].multiplicity for w in unit.wyckoff)
    )
    moved = sample.moved
    assert moved.shape == (len(unit),) and moved.max() == row["projection_max"] and moved.min() >= 0
    assert np.allclose([float(d) for d in row["moved"].split()], moved, atol=5.1e-4)
    assert row["wyckoff"].split() == [
        f"{SYMBOL[z]}:{unit.positions[w].label}" for z, w in zip(unit.elements, unit.wyckoff)
    ]
    assert np.isfinite(sample.crystal.lattice).all() and sample.crystal.volume > 0.9
    assert {
        "formula",
        "volume",
        "density",
        "min_distance",
        "sites_changed",
        "elements_changed",
        "cell_clipped",
    } <= row.keys()
    assert holds(sample)


def test_every_group_holds_exactly(model):
    rng = np.random.default_rng(0)
    requests = [
        make_request(model, rng, Conditions(space_group=g, num_orbits=1 + g % 4)) for g in range(1, 231)
    ]
    for s, r in zip(
        sample_requests(model, requests, torch.Generator().manual_seed(0), SamplingOptions(steps=2)), requests
    ):
        check(s, r)


def test_spglib_finds_no_less():
    "spglib's group holds all that was requested: its number of operations per lattice point is a multiple of ours."
    seen = 0
    for s in OURS.sample(60, seed=1, options=SamplingOptions(steps=2, num_orbits=4, progress=False)):
        if s.row["min_distance"] < 0.3:
            continue
        found = symmetry_dataset(s.crystal, 1e-3)
        centring = lambda rotations: sum((r == np.eye(3)).all() for r in rotations)
        ours, theirs = SpaceGroup(s.row["space_group"]).operations[0], found.rotations
        assert len(theirs) % len(ours) == 0 and centring(theirs) % centring(ours) == 0
        seen += 1
    assert seen > 10


def by_hand(classes, n):
    "All multisets of classes with n atoms."
    (c, m, capacity), *rest = classes
    for j in range(min(capacity, n // m) + 1):
        if not rest:
            if j * m == n:
                yield (c,) * j
        else:
            yield from ((c,) * j + tail for tail in by_hand(rest, n - j * m))


@given(st.integers(1, 230), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_counting_agrees_with_trying(number, counts, seed):
    classes, capacity = site_classes(number), {c: most for c, _, most in site_classes(number)}
    ways = [list(by_hand(classes, n)) for n in counts]
    shares = tuple(np.random.default_rng(seed).dirichlet(np.ones(15)).clip(1e-3).tolist())
    total = 0
    if math.prod(map(len, ways)) < 20_000:
        for choice in itertools.product(*ways):
            if any(k > capacity[c] for c, k in Counter(sum(choice, ())).items()):
                continue
            total += math.prod(
                math.prod(shares[c] ** k / math.factorial(k) for c, k in Counter(one).items())
                for one in choice
            )
        last = count_ways(number, tuple(counts), shares)[-1]
        assert np.isclose(sum(w.sum() for w in last.values()), total, rtol=1e-9, atol=0)
    sites = sample_sites(number, tuple(counts), shares, np.ones(MOST_ORBITS + 1), np.random.default_rng(seed))
    mass = evidence(number, tuple(counts), shares, np.ones(MOST_ORBITS + 1))[1].sum()
    assert (sites is None) == (mass == 0)
    if sites is not None:
        m = {c: k for c, k, _ in classes}
        assert [sum(m[c] for c in one) for one in sites] == counts and all(
            k <= capacity[c] for c, k in Counter(sum(sites, ())).items()
        )


def test_a_group_whose_smallest_cell_is_large():
    "Fm-3c holds LiO2 with no fewer than 24 formula units: found, not rejected."
    request = plan(OURS, Conditions(space_group=226, formula="LiO2"))(np.random.default_rng(0))
    multiplicity = {c: m for c, m, _ in site_classes(226)}
    atoms = Counter()
    for z, c in zip(request.elements, request.sites):
        atoms[z] += multiplicity[c]
    assert atoms[8] == 2 * atoms[3] and atoms[3] >= 24


ELEMENTS = st.sampled_from(["Li", "O", "Fe", "Sr", "Ti", "N", "Cl"])
FORMULAS = st.dictionaries(ELEMENTS, st.integers(1, 5), min_size=1, max_size=4).map(
    lambda d: "".join(f"{e}{n}" for e, n in d.items())
)


@given(
    FORMULAS,
    st.none() | st.integers(1, 230),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 8),
    st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_formula_is_met_exactly_or_rejected(formula, group, units, orbits, seed):
    counts = parse_formula(formula)
    requested = dict(
        space_group=group,
        formula=formula,
        num_atoms=units and units * sum(counts.values()),
        num_orbits=orbits,
    )
    try:
        draw = plan(OURS, Conditions(**requested))
    except MatgenError as error:
        assert any(words in str(error) for words in ("ossible", "request at least", "Groups near it"))
        return
    request = draw(np.random.default_rng(seed))
    (made,) = sample_requests(OURS, [request], torch.Generator().manual_seed(seed), SamplingOptions(steps=2))
    check(made, request)
    found = Counter(made.crystal.elements.tolist())
    ratio = {found[z] / n for z, n in counts.items()}
    assert (
        found.keys() == counts.keys()
        and len(ratio) == 1
        and ratio.pop() == (units or found[next(iter(counts))] / counts[next(iter(counts))])
    )
    assert orbits is None or made.row["num_orbits"] == orbits
    assert group is None or made.row["space_group"] == group
    assert made.row["sites_changed"] == made.row["elements_changed"] == 0, (
        "what is requested is not changed afterwards"
    )


def test_formula_with_independent_axes(model):
    for s in model.sample(
        6, formula="SrTiO3", space_group=[221, 62, 167], options=SamplingOptions(steps=2, progress=False)
    ):
        assert s.row["formula"] == "SrTiO3" and s.row["space_group"] in (221, 62, 167) and holds(s)


@given(st.integers(1, 230), st.integers(1, 60), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_number_of_atoms_or_true_alternatives(group, n, seed):
    if n in possible_atoms(group, n):
        r = make_request(OURS, np.random.default_rng(seed), Conditions(space_group=group, num_atoms=n))
        (s,) = sample_requests(OURS, [r], torch.Generator().manual_seed(seed), SamplingOptions(steps=1))
        check(s, r)
        assert s.row["num_atoms"] == n
        return
    with pytest.raises(MatgenError) as error:
        plan(OURS, Conditions(space_group=group, num_atoms=n))
    near = re.search(
        r"Nearest possible numbers of atoms in its conventional cell: ([\d, ]+)", str(error.value)
    )
    assert near and all(int(m) in possible_atoms(group, 200) for m in near[1].split(","))
    groups = re.search(r"Groups near it that allow \d+ atoms of this kind: ([\d, ]+)", str(error.value))
    assert groups and all(n in possible_atoms(int(g), 200) for g in groups[1].split(","))


@given(
    st.lists(ELEMENTS, min_size=1, max_size=5, unique=True),
    st.none() | st.integers(1, 230),
    st.integers(0, 10**6),
    st.none() | st.integers(5, 7),
)
@settings(max_examples=25, deadline=None)
def test_chemical_system_is_complete_and_closed(symbols, group, seed, orbits):
    for s in OURS.sample(
        3,
        chemical_system="-".join(symbols),
        space_group=group,
        seed=seed,
        options=SamplingOptions(num_orbits=orbits, steps=1, progress=False),
    ):
        assert set(s.crystal.elements.tolist()) == set(parse_system("-".join(symbols))) and (
            orbits is None or s.row["num_orbits"] == orbits
        )


def test_chemical_system_with_atoms():
    made = OURS.sample(
        5, chemical_system="Li-Fe-O", num_atoms=24, seed=3, options=SamplingOptions(steps=1, progress=False)
    )
    assert all(s.row["num_atoms"] == 24 and len(set(s.crystal.elements)) == 3 for s in made)


def test_seed_repeats_and_matters(model):
    rows = lambda seed, **kw: [
        s.row for s in sample_by_name(model, 5, seed=seed, steps=3, progress=False, **kw)
    ]
    assert rows(4) == rows(4) and rows(4) != rows(5) and rows(4, corrector=1) != rows(4)
    same, again = (
        model.sample(3, seed=9, formula="TiO2", options=SamplingOptions(steps=3, progress=False))
        for _ in range(2)
    )
    assert all(
        (a.crystal.frac_coords == b.crystal.frac_coords).all()
        and (a.crystal.lattice == b.crystal.lattice).all()
        for a, b in zip(same, again)
    )


def test_corrector_costs_what_it_says(monkeypatch):
    calls, forward = [], OURS.network.forward
    monkeypatch.setattr(OURS.network, "forward", lambda n: calls.append(1) or forward(n))
    for corrector, expected in ((0, 4), (2, 4 + 2 * 3)):
        calls.clear()
        OURS.sample(2, options=SamplingOptions(steps=4, corrector=corrector, progress=False))
        assert len(calls) == expected


def test_guided_score_leads_onto_the_sites(one_time):
    "Where sites are known, the implied clean coordinates lie on them, fixed sites once; free positions are left as they are."
    rng = np.random.default_rng(0)
    requests = [
        make_request(one_time, rng, Conditions(space_group=g, num_atoms=possible_atoms(g, 40)[-1]))
        for g in (2, 14, 62, 123, 167, 194, 216, 225)
    ]
    state, known = start_state(one_time, requests, torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = one_time.network(state)
    for t in (10, 300, 500):
        score = guided_score(one_time, state, known, out, t, min_contact=0)
        clean = state.x + one_time.coordinate_noise.sigma(t) ** 2 * one_time.coordinate_noise.scale(t) * score
        placed = assign_wyckoff(
            clean,
            state.space_group[state.batch],
            known.classes,
            state.lattice.double()[state.batch],
            state.batch,
        )
        assert placed.distance.max() < 1e-3
        general = wyckoff_tables().class_dof[state.space_group[state.batch], known.classes] == 3
        assert torch.allclose(score[general], out.x[general], atol=1e-3)
        clean = state.x + one_time.coordinate_noise.sigma(t) ** 2 * one_time.coordinate_noise.scale(
            t
        ) * guided_score(one_time, state, known, out, t, 0.75)
        placed = assign_wyckoff(
            clean,
            state.space_group[state.batch],
            known.classes,
            state.lattice.double()[state.batch],
            state.batch,
        )
        assert placed.distance.max() < 1e-3, "kept apart, still on their sites"
    r = make_request(one_time, rng, Conditions(space_group=14, num_atoms=20))
    plain, led = (
        sample_requests(
            one_time, [r], torch.Generator().manual_seed(1), SamplingOptions(steps=20, guidance=g)
        )[0]
        for g in (0.0, 0.5)
    )
    assert plain.row != led.row and holds(led)


def test_score_scale_one_is_the_learned_distribution_and_more_changes_the_coordinates():
    plain, sharp, again = (
        OURS.sample(
            4,
            seed=2,
            space_group=14,
            num_atoms=8,
            options=SamplingOptions(steps=6, score_scale=v, progress=False),
        )
        for v in (1.0, 3.0, 3.0)
    )
    assert [s.row for s in sharp] == [s.row for s in again] and all(holds(s) for s in sharp)
    assert any(not np.array_equal(a.unit.frac_coords, b.unit.frac_coords) for a, b in zip(plain, sharp))
    assert [s.row for s in sharp] == [
        s.row
        for s in OURS.sample(
            4, seed=2, space_group=14, num_atoms=8, options=SamplingOptions(steps=6, progress=False)
        )
    ], "on by default"


def test_kept_apart_along_the_sites():
    "Points stay on their positions, fixed ones where they are; contacts become fewer; what is not crowded is not touched; 0 switches it off."
    rng, model = np.random.default_rng(1), OURS
    requests = [
        make_request(model, rng, Conditions(space_group=g, num_atoms=possible_atoms(g, 24)[-1]))
        for g in (1, 5, 25, 47, 99, 123, 166, 187, 221, 225)
    ]
    state, known = start_state(model, requests, torch.Generator().manual_seed(2))
    group, lattice = state.space_group[state.batch], state.lattice.double()[state.batch]
    lies = assign_wyckoff(state.x, group, known.classes, lattice, state.batch)
    moved, went = resolve_contacts(state, lies, state.elements, 0.75)
    again = project(moved.frac_coords, group, moved.wyckoff, lattice)
    dof, pairs = (
        wyckoff_tables().class_dof[group, known.classes],
        pairs_of(state.num_orbits, state.space_group),
    )
    assert again.distance.max() < 1e-6 and went[dof == 0].max() < 1e-9
    before, after = (crowding(state, p.frac_coords, state.elements, pairs, 0.75)[1] for p in (lies, moved))
    assert after.sum() < before.sum() and torch.equal(moved.wyckoff, lies.wyckoff)
    calm = torch.zeros(len(requests), dtype=torch.long).index_add_(0, state.batch, before.long()) == 0
    assert (went[calm[state.batch]] == 0).all() and resolve_contacts(state, lies, state.elements, 0)[
        1
    ].max() == 0


def lone_orbits(group, wyckoff, points, lattice):
    "What `crowding` and `resolve_contacts` need to know of crystals of one orbit each: a state, and the pairs."
    n = len(points)
    state = SimpleNamespace(
        batch=torch.arange(n),
        t=torch.ones(n),
        num_orbits=torch.ones(n, dtype=torch.long),
        space_group=torch.full((n,), group),
        lattice=lattice[None].expand(n, 3, 3),
        x=points,
        elements=torch.full((n,), 10),
    )  # sodium
    return state, project(points, torch.full((n,), group), wyckoff, state.lattice)


def test_no_point_is_crowded_by_itself():
    "All 1731 positions, at a place that is special to none, in a wide cell: the images that are the point itself are told from the others."
    T, free = wyckoff_tables(), torch.tensor([0.1373, 0.2891, 0.0677], dtype=torch.float64)[:, None]
    for group in range(1, 231):
        first = T.wyckoff_offset[group]
        w = (
            torch.arange(int(T.wyckoff_offset[group + 1] - first))
            if group < 230
            else torch.arange(len(SpaceGroup(230).wyckoff_positions))
        )
        at = T.member_offset[first + w]
        points = (T.A[at] @ free)[..., 0] + T.t[at]
        state, placed = lone_orbits(group, w, points, 40 * torch.eye(3, dtype=torch.float64))
        assert not crowding(
            state, placed.frac_coords, state.elements, pairs_of(state.num_orbits, state.space_group), 0.02
        )[1].any(), group


@pytest.mark.parametrize("hair", [1e-2, 1e-3, 1e-4])  # A
@pytest.mark.parametrize(
    "group, letter", [(180, "f"), (160, "b"), (194, "h"), (189, "k"), (38, "d"), (65, "q")]
)
def test_images_a_hair_apart_are_parted(group, letter, hair):
    lattice = lattice_from_parameters((7, 7, 7), (90, 90, 120 if group > 142 else 90))
    wyckoff = torch.tensor([[p.letter for p in SpaceGroup(group).wyckoff_positions].index(letter)])
    at = wyckoff_tables().member_offset[wyckoff_tables().wyckoff_offset[group] + wyckoff]
    points = (
        wyckoff_tables().A[at] @ torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)[:, None] * hair / 7
    )[..., 0] + wyckoff_tables().t[at]
    state, placed = lone_orbits(group, wyckoff, points, lattice)
    moved, went = resolve_contacts(state, placed, state.elements, 0.75)
    near = lambda p: min_distance(
        AsymmetricUnit(
            group, lattice_to_k(lattice).numpy(), [11], p.frac_coords.numpy(), wyckoff.numpy()
        ).to_crystal()
    )
    assert near(placed) < 4 * hair and near(moved) > 1.0 and went > 0.5


def test_deterministic_when_eta_is_zero():
    "With eta 0 lattice and coordinates get no new noise; the discrete parts still draw."
    r = [Request(1, 1, sites=(0,), elements=(14,))]
    a, b = (
        sample_requests(OURS, r, torch.Generator().manual_seed(0), SamplingOptions(steps=6, eta=0.0))
        for _ in range(2)
    )
    assert a[0].row == b[0].row


def test_retries_are_counted():
    never = OURS.sample(4, options=SamplingOptions(steps=1, retries=3, closest=1e9, progress=False))
    assert [s.row["attempts"] for s in never] == [4] * 4
    assert all(
        s.row["attempts"] == 1 for s in OURS.sample(4, options=SamplingOptions(steps=1, progress=False))
    )


def test_crystals_that_fail_the_check_are_sampled_again_and_the_least_error_is_kept(monkeypatch):
    "Scripted errors: the first sample below the threshold stops, else the least of MOST_SAMPLES is kept; what passed is what one sample gives."
    import matgen_nb.symmcd.sampling as module

    script = iter(
        [[0.1, 0.5, 0.9, 0.9], [0.4, 0.3, 0.8], [0.6, 0.05, 0.2], [0.35, 0.5]]
    )  # crystal 0 passes; 1 never; 2 and 3 see below
    requested = []
    monkeypatch.setattr(
        module,
        "lattice_denoising_error",
        lambda model, units, generator: (requested.append(len(units)), next(script))[1],
    )
    requests = [Request(2, 3)] * 4
    draw = lambda threshold: module._consistent(
        OURS,
        requests,
        torch.Generator().manual_seed(3),
        SamplingOptions(steps=2, max_lattice_error=threshold),
        lambda n=1: None,
    )
    samples, once = draw(0.15), draw(1.0)
    assert requested == [4, 3, 3, 2] and module.MOST_SAMPLES == 4
    assert [s.row["lattice_error"] for s in samples] == [0.1, 0.35, 0.05, 0.2] and [
        s.row["samples"] for s in samples
    ] == [1, 4, 3, 4]
    assert np.array_equal(samples[0].unit.frac_coords, once[0].unit.frac_coords) and not np.array_equal(
        samples[1].unit.frac_coords, once[1].unit.frac_coords
    )


def test_self_consistency_is_off_unless_requested_or_written_into_the_weights():
    how = dict(seed=1, steps=2, num_orbits=2, progress=False)
    plain, off = sample_by_name(OURS, 3, **how), sample_by_name(OURS, 3, max_lattice_error=1, **how)
    assert [s.row for s in plain] == [s.row for s in off] and "lattice_error" not in plain[0].row
    model = untrained()
    model.info = dict(doubt=1e-6)  # the key in files of weights
    assert all(s.row["samples"] == 4 and s.row["attempts"] == 1 for s in sample_by_name(model, 3, **how))
    assert [s.row for s in sample_by_name(model, 3, max_lattice_error=1, **how)] == [
        s.row for s in sample_by_name(model, 3, max_lattice_error=2.0, **how)
    ]
    requested, again = (sample_by_name(model, 3, max_lattice_error=0.5, **how) for _ in range(2))
    assert [s.row for s in requested] == [s.row for s in again] and all(holds(s) for s in requested)


def test_lattice_error_knows_a_cell_that_does_not_fit():
    "Weights that ship: the same crystals with all lengths a fifth longer or shorter have larger errors; each crystal's error stands at its own index."
    model = SymmCD.from_pretrained("symmcd-mp20-small")
    units = [
        s.unit
        for s in model.sample(
            24,
            seed=4,
            space_group=[225, 194, 62],
            options=SamplingOptions(num_orbits=3, steps=10, progress=False),
        )
    ]
    errors_of = lambda units: np.array(
        lattice_denoising_error(model, units, torch.Generator().manual_seed(0))
    )
    scaled = lambda f: [
        AsymmetricUnit(
            u.space_group, u.k + np.array([0, 0, 0, 0, 0, np.log(f)]), u.elements, u.frac_coords, u.wyckoff
        )
        for u in units
    ]
    right = errors_of(units)
    assert (
        right.shape == (24,)
        and (right >= 0).all()
        and all(np.mean(errors_of(scaled(f)) > right) > 0.7 for f in (0.8, 1.2))
    )


def test_full_fixed_sites_are_left_and_counted(one_time):
    state, known = start_state(one_time, [Request(2, 12)], torch.Generator().manual_seed(0))
    c = SpaceGroup(2)["a"].site_class
    if one_time.network.independent:
        T = wyckoff_tables()
        state.site = T.one_hots[T.class_one_hot[2, c]].argmax(-1).expand(12, 15)
        logits = torch.zeros(12, 15, 13)
    else:
        state.site, logits = torch.full((12,), c), torch.zeros(12, 15)
    settled, changed = settle_sites(one_time, state, logits, known)
    assert (settled == c).sum() == 8 and changed.tolist() == [4]


def test_damaged_weights_are_named():
    broken = untrained()
    for p in broken.parameters():
        p.data.fill_(float("nan"))
    with pytest.raises(MatgenError, match="not finite"):
        broken.sample(1, options=SamplingOptions(steps=2, progress=False))


@pytest.mark.parametrize(
    "requested, says",
    [
        (dict(space_group=0), "1 to 230"),
        (dict(space_group=[]), "empty"),
        (dict(space_group=[225, 999]), "1 to 230"),
        (dict(num_atoms=0), "num_atoms"),
        (dict(num_orbits=65), "num_orbits"),
        (dict(num_atoms=2.5), "num_atoms"),
        (dict(formula="sio2"), "not a chemical formula"),
        (dict(formula="Qq2"), "elements 1"),
        (dict(formula="SiO2", num_atoms=4), "nearest: 3, 6"),
        (dict(formula="SiO2", chemical_system="Si-N"), "different elements"),
        (dict(formula="SiO2", num_orbits=1), "at least 2 orbits"),
        (dict(chemical_system="Li-Fe-O", num_atoms=2), "at least 3 atoms"),
        (dict(chemical_system=" - "), "no element"),
        (dict(chemical_system="Li-Xx"), "Xx"),
        (dict(space_group=225, num_atoms=7), "Nearest possible"),
        (dict(space_group=[1, 225], num_atoms=7), "225"),
        (dict(space_group=221, formula="SrTiO3", num_atoms=5, num_orbits=4), "numbers of orbits: 3"),
        (dict(n=0), "samples"),
        (dict(steps=0), "steps"),
        (dict(steps=1001), "steps"),
        (dict(seed=-1), "seed"),
        (dict(seed=0.5), "seed"),
        (dict(eta=1.5), "eta"),
        (dict(guidance=2), "guidance"),
        (dict(score_scale=0.5), "score scale"),
        (dict(max_lattice_error=0), "max lattice error"),
        (dict(templates=-0.1), "templates"),
        (dict(snr=0), "snr"),
        (dict(closest=-1), "closest"),
        (dict(formula=""), "not a chemical formula"),
        (dict(corrector=-1), "corrector"),
        (dict(retries=-1), "retries"),
    ],
)
def test_rejections_say_why(requested, says):
    with pytest.raises(MatgenError, match=says):
        sample_by_name(OURS, **{"n": 2, "steps": 1, "progress": False, **requested})


def test_crowded_requests_are_rejected_at_once():
    "Ten single atoms compete for the eight fixed sites of Pmmm; trying all combinations would take hours."
    start = time.process_time()
    with pytest.raises(MatgenError, match="47"):
        plan(OURS, Conditions(space_group=47, formula="LiNaKRbCsBeMgCaSrBa", num_atoms=10))
    draw = plan(OURS, Conditions(space_group=47, formula="LiNaKRbCsBeMgCa", num_atoms=8))
    assert draw(np.random.default_rng(0)).num_orbits == 8
    assert time.process_time() - start < 20


def test_request_draws_follow_the_training_set():
    shipped = SymmCD.from_pretrained("symmcd-mp20-small")
    prior, rng = Prior(shipped), np.random.default_rng(0)
    draw = plan(shipped)
    sampled = np.bincount([draw(rng).space_group for _ in range(3000)], minlength=231)
    top = np.argsort(-prior.groups)[:5]
    expected = 3000 * prior.groups[top] / prior.groups.sum()
    assert (np.abs(sampled[top] - expected) < 5 * expected**0.5).all()
    likely = Counter(plan(shipped, Conditions(formula="SrTiO3"))(rng).space_group for _ in range(5))
    assert sum(likely.values()) == 5


def same_crystals(a, b):
    "Whether two lists of samples hold the same crystals, bit for bit."
    parts = lambda s: (s.crystal.lattice, s.crystal.frac_coords, s.crystal.elements)
    return [all(map(np.array_equal, parts(s), parts(t))) for s, t in zip(a, b, strict=True)]


def sampled_plainly(model, n, seed, steps, batch_size=256, **requested):
    "What sampling is without any look at the groups: requests, batches by number of orbits, the reverse process."
    draw, rng = plan(model, Conditions(**requested)), numpy_stream(seed, "requests")
    requests, samples = [draw(rng) for _ in range(n)], [None] * n
    order = sorted(range(n), key=lambda i: (requests[i].num_orbits, i))
    for first in range(0, n, batch_size):
        rows = order[first : first + batch_size]
        generator = torch_stream(seed, "batch", first)
        for i, s in zip(
            rows, sample_requests(model, [requests[i] for i in rows], generator, SamplingOptions(steps=steps))
        ):
            samples[i] = s
    return samples


@pytest.mark.parametrize(
    "requested",
    [
        dict(space_group=16, num_orbits=3),
        dict(space_group=[2, 221, 62], num_orbits=2),
        dict(num_atoms=8, num_orbits=3),
        dict(formula="NaCl", space_group=216, num_atoms=8),
    ],
)
def test_without_resampling_nothing_changes_and_with_it_only_what_must(requested):
    how = dict(n=12, seed=5, steps=2, batch_size=5)
    plain = sampled_plainly(OURS, **how, **requested)
    off, on, again = (
        sample_by_name(OURS, **how, **requested, balance=0, resample_higher=most, progress=False)
        for most in (0, 4, 4)
    )
    assert all(same_crystals(plain, off)) and all(s.row["resampled"] == 0 for s in off)
    assert all(same_crystals(on, again)) and [s.row for s in on] == [s.row for s in again]
    for kept, before, s in zip(same_crystals(off, on), off, on):
        assert kept == (not before.row["higher_symmetry"]) == (s.row["resampled"] == 0)
        assert (requested.get("num_orbits") or s.row["num_orbits"]) == s.row["num_orbits"] and holds(s)
        assert s.row["formula"] == requested.get("formula", s.row["formula"])
        if s.row["higher_symmetry"]:
            assert s.row["resampled"] == 4, "given up only after all tries"


def test_resampling_is_on_where_a_group_is_requested():
    how = dict(n=10, seed=1, steps=2, num_orbits=2, progress=False)
    off, default, most = (
        sample_by_name(OURS, space_group=16, **how, **more)
        for more in (dict(resample_higher=0), {}, dict(resample_higher=RESAMPLE))
    )
    assert (
        RESAMPLE == 10
        and [s.row for s in default] == [s.row for s in most]
        and any(s.row["higher_symmetry"] for s in off)
    )
    higher = lambda samples: sum(bool(s.row["higher_symmetry"]) for s in samples)
    assert higher(default) < higher(off) and any(s.row["resampled"] for s in default)
    assert all(s.row["resampled"] == 0 for s in sample_by_name(OURS, **how)), "off without a group"
    assert any(
        s.row["resampled"] for s in sample_by_name(OURS, **how | dict(num_orbits=1), resample_higher=1)
    ), "but it can be had"


def test_what_stays_higher_is_returned_and_flagged(monkeypatch):
    import matgen_nb.symmcd.sampling as module

    requested = []
    monkeypatch.setattr(
        module, "group_columns", lambda unit: requested.append(1) or dict(higher_symmetry=True)
    )
    made = OURS.sample(
        3, space_group=2, options=SamplingOptions(num_orbits=4, steps=2, resample_higher=3, progress=False)
    )
    assert (
        [s.row["resampled"] for s in made] == [3] * 3
        and all(s.row["higher_symmetry"] for s in made)
        and len(requested) == 3 * 4
    )


def test_columns_say_what_spglib_finds():
    "At both tolerances, whatever shortcut was taken; a distortion between them is higher at one only."
    seen = set()
    for s in OURS.sample(40, seed=8, options=SamplingOptions(steps=2, num_orbits=2, progress=False)):
        found = {symprec: found_group(s.crystal, symprec) for symprec in (0.1, 0.01)}
        for symprec, f in found.items():
            assert s.row[f"space_group@{symprec:g}"] == (f and f.number), s.row
        higher = [f.operations > SpaceGroup(s.row["space_group"]).order for f in found.values() if f]
        assert s.row["higher_symmetry"] == (any(higher) if higher else None)
        seen.add(s.row["higher_symmetry"])
    assert {True, False} <= seen
    k = lattice_to_k(lattice_from_parameters([4.0, 4.0, 6.03], [90.0] * 3)).numpy()
    nearly = group_columns(AsymmetricUnit(99, k, [22, 8], [[0, 0, 0.005], [0.5, 0.5, 0.5]], [0, 1]))
    assert nearly == {"space_group@0.1": 123, "space_group@0.01": 99, "higher_symmetry": True}


@given(
    st.integers(1, 230), st.lists(st.integers(1, 8), min_size=1, max_size=2), st.none() | st.integers(1, 4)
)
@settings(max_examples=60, deadline=None)
def test_arrangements_are_all_and_each_once(number, counts, orbits):
    positions = SpaceGroup(number).wyckoff_positions
    by_hand = []
    for choice in itertools.product(
        *(list(multisets([w.multiplicity for w in positions], n)) for n in counts)
    ):
        used = Counter(w for of_one in choice for w in of_one)
        if any(n > 1 and positions[w].dof == 0 for w, n in used.items()):
            continue
        if orbits in (None, used.total()):
            by_hand.append(tuple(map(tuple, choice)))
    ways = [
        tuple(tuple(sorted(of_one)) for of_one in way) for way in arrangements(number, counts, orbits) if way
    ]
    assert len(set(ways)) == len(ways) and set(ways) == set(by_hand)


def multisets(sizes, n, start=0):
    "All sorted lists of indices whose sizes sum to n."
    if n == 0:
        yield []
    for i in range(start, len(sizes)):
        if sizes[i] <= n:
            yield from ([i, *rest] for rest in multisets(sizes, n - sizes[i], i))


IMPOSSIBLE = [
    (dict(space_group=225, formula="Cu", num_atoms=8), "221 (Pm-3m)"),
    (dict(space_group=16, formula="NaCl", num_atoms=2), "47 (Pmmm)"),
    (dict(space_group=[62, 1], formula="Cu", num_orbits=2), "2 (P-1)"),
    (dict(space_group=1, num_orbits=1), "2 (P-1)"),
    (dict(space_group=25, num_atoms=1), "47 (Pmmm)"),
    (dict(space_group=216, formula="C", num_atoms=8), "227 (Fd-3m)"),
]


@pytest.mark.parametrize("requested, names", IMPOSSIBLE)
def test_what_only_a_higher_group_can_meet_is_rejected(requested, names):
    with pytest.raises(MatgenError) as error:
        sample_by_name(OURS, 2, steps=1, progress=False, **requested)
    text = str(error.value)
    assert (
        names in text and "force a higher group" in text and "resample_higher=0 (--resample-higher 0)" in text
    )
    if near := re.search(r"or for ([\d, ]+) atoms", text):
        group = max(np.atleast_1d(requested["space_group"])) if requested["space_group"] != [62, 1] else 1
        for n in map(int, near[1].split(",")):
            reject_forced(Conditions(int(group), requested.get("formula"), num_atoms=n))
    made = sample_by_name(OURS, 2, steps=1, progress=False, resample_higher=0, **requested)
    assert all(s.row["higher_symmetry"] is not False for s in made if s.row["space_group"] != 62), (
        "kept and flagged"
    )


@pytest.mark.parametrize(
    "requested",
    [
        dict(space_group=225, formula="Cu"),
        dict(space_group=225, formula="NaCl", num_atoms=8),
        dict(space_group=1, num_orbits=2),
        dict(space_group=16, formula="NaCl"),
        dict(space_group=227, formula="MgAl2O4", num_atoms=56),
        dict(space_group=14),
        dict(space_group=226, formula="LiO2"),
        dict(space_group=1, num_atoms=60),
        dict(space_group=225, num_atoms=2000),
    ],
)
def test_what_can_be_met_is_not_rejected(requested):
    reject_forced(Conditions(**requested))


@given(st.integers(1, 230), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_rejected_means_that_no_crystal_has_just_the_group(number, n, distinct, seed):
    "Random crystals of all ways to place the atoms, where that is called impossible."
    found = try_arrangements(number, (n,), distinct=distinct)
    if found.possible:
        return
    for way in itertools.islice((way for way in arrangements(number, (n,)) if way), 10):
        elements = np.arange(1, 1 + len(way[0])) if distinct else [29] * len(way[0])
        group = generic_unit(number, way[0], elements, seed=seed).found_group(1e-4)
        assert group is None or group.operations > SpaceGroup(number).order


def test_requests_that_force_a_higher_group_are_sampled_again():
    rng = np.random.default_rng(0)
    sites = lambda letters: dict(
        sites=tuple(SpaceGroup(16)[w].site_class for w in letters), num_orbits=len(letters)
    )
    forced, fine = (
        Request(16, elements=(11, 17), **sites("ah")),
        Request(16, elements=(11, 17), **sites("au")),
    )
    assert force_higher(forced) and not force_higher(fine) and not force_higher(Request(16, 3))
    answers = iter([forced, forced, fine])
    assert (
        unforced_request(lambda rng: next(answers), rng) is fine
        and unforced_request(lambda rng: forced, rng, most=5) is forced
    )


def test_without_spglib_the_columns_are_empty_and_the_crystals_the_same(monkeypatch):
    how = dict(n=6, seed=2, steps=2, space_group=16, num_orbits=2, progress=False)
    off = sample_by_name(OURS, **how, resample_higher=0)
    monkeypatch.setattr(symmetry_search.importlib.util, "find_spec", lambda name: None)
    for cached in (symmetry_search.has_spglib, counting._forced):
        cached.cache_clear()
    try:
        with pytest.warns(UserWarning, match="spglib is not installed") as seen:
            made = sample_by_name(OURS, **how) + sample_by_name(OURS, **how)
        assert len(seen) == 1 and all(same_crystals(off + off, made))
        assert {
            (
                s.row["space_group@0.1"],
                s.row["space_group@0.01"],
                s.row["higher_symmetry"],
                s.row["resampled"],
            )
            for s in made
        } == {(None, None, None, 0)}
        OURS.sample(
            1, space_group=16, formula="NaCl", num_atoms=2, options=SamplingOptions(steps=1, progress=False)
        )
    finally:
        monkeypatch.undo()
        for cached in (symmetry_search.has_spglib, counting._forced):
            cached.cache_clear()


@pytest.mark.parametrize("wrong", [-1, 1001, 0.5, "ten"])
def test_resample_higher_is_a_number_of_times(wrong):
    with pytest.raises(MatgenError, match="resample_higher must be a whole number from 0"):
        OURS.sample(1, space_group=2, options=SamplingOptions(steps=1, resample_higher=wrong))
