"Templates: counted, packed, estimated and sampled as they should be; what a request gives comes out."

from collections import Counter

import numpy as np
import pytest
from conftest import sample_by_name
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.symmcd.dataset import from_units, prepare_one, prototypes
from matgen_nb.symmcd import staged_sampling  # noqa: F401  (staged models sample with it)
from matgen_nb.symmcd.model import SymmCD, SymmCDConfig, crystal_statistics
from matgen_nb.symmcd.requests import Conditions, Prior, Request, find_cells, make_request, plan
from matgen_nb.symmcd.reverse import SamplingOptions, held_score, sample_requests, start_state
from matgen_nb.symmcd.counting import parse_formula
from matgen_nb.symmcd.templates import (
    count_templates,
    deal,
    sample_template,
    good_turing_rate,
    merge_settings,
    pack_templates,
    unpack_templates,
    ways_to_deal,
)
from matgen_nb.symmetry.normalizers import canonical_template, normalizer, transform_unit
from matgen_nb.symmetry.projection import nearest_on_members, project
from matgen_nb.symmetry.space_groups import SpaceGroup, wyckoff_tables
from matgen_nb.utils import MatgenError

CELLS = st.dictionaries(
    st.integers(1, 6),
    st.dictionaries(
        st.lists(st.integers(0, 26), min_size=1, max_size=5).map(lambda t: tuple(sorted(t))),
        st.integers(1, 9),
        min_size=1,
        max_size=4,
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(CELLS)
def test_packing_keeps_every_template(groups):
    table = {}
    for group, templates in groups.items():
        for template, n in templates.items():
            table.setdefault((group, len(template)), Counter())[template] = n
    packed = pack_templates(table)
    assert packed.dtype == torch.float32 and unpack_templates(packed) == table
    assert torch.equal(pack_templates(dict(reversed(list(table.items())))), packed), (
        "the order in which they were counted does not matter"
    )


@pytest.fixture(scope="module")
def data():
    return from_units([prepare_one(crystal) for _, crystal in prototypes()[:120]])


def test_every_crystal_is_counted_once_whatever_the_order_of_its_orbits(data):
    table = count_templates(data)
    assert sum(c.total() for c in table.values()) == len(data)
    for i in range(len(data)):
        unit = data[i]
        assert table[unit.space_group, len(unit)][tuple(sorted(unit.wyckoff.tolist()))] >= 1
    shuffled = []
    for i in range(len(data)):
        unit, order = data[i], np.random.default_rng(i).permutation(len(data[i]))
        shuffled.append(
            type(unit)(
                unit.space_group, unit.k, unit.elements[order], unit.frac_coords[order], unit.wyckoff[order]
            )
        )
    assert count_templates(from_units(shuffled)) == table
    assert unpack_templates(crystal_statistics(data).templates) == table


def test_what_is_due_is_right_on_average():
    "Samples from a known distribution: n_1 / N of N samples estimates the chance that one more is new, without bias (that of N - 1 samples exactly)."
    p, N, rng = 1 / np.arange(1, 41), 30, np.random.default_rng(0)
    p /= p.sum()
    truth = (p * (1 - p) ** (N - 1)).sum()
    found = [good_turing_rate(Counter(rng.choice(40, N, p=p).tolist())) for _ in range(4000)]
    assert abs(np.mean(found) - truth) < 5 * np.std(found) / 4000**0.5
    assert good_turing_rate(Counter()) == 1


def test_templates_are_sampled_as_often_as_they_occur():
    table, rng = {(230, 2): Counter({(0, 0): 6, (0, 1): 3, (1, 2): 1})}, np.random.default_rng(0)
    sampled = Counter(sample_template(table, 230, 2, rng) for _ in range(6000))
    for key, p in (
        {None: 0.1, (0, 0): 0.54}
        | dict.fromkeys(((0, 1), (1, 0)), 0.27 / 2)
        | dict.fromkeys(((1, 2), (2, 1)), 0.09 / 2)
    ).items():
        assert abs(sampled[key] / 6000 - p) < 5 * (p / 6000) ** 0.5, key
    assert sample_template(table, 230, 3, rng) is None and sample_template({}, 1, 1, rng) is None
    one = [sample_template(table, 230, 2, np.random.default_rng(4)) for _ in range(2)]
    assert one[0] == one[1], "the generator alone decides"


def test_equivalent_templates_are_one_where_they_are_counted():
    "194: c,h and d,h. Each was seen once; the arrangement was seen twice, so nothing new is expected, and the letters of the data come out."
    table, rng = {(194, 2): Counter({(2, 7): 1, (3, 7): 1})}, np.random.default_rng(0)
    assert merge_settings(table) == {(194, 2): Counter({(2, 7): 2})}
    assert good_turing_rate(table[194, 2]) == 1 and good_turing_rate(table[194, 2], 194) == 0
    sampled = Counter(tuple(sorted(sample_template(table, 194, 2, rng))) for _ in range(400))
    assert set(sampled) == {(2, 7), (3, 7)} and abs(sampled[2, 7] - 200) < 50


def test_counts_do_not_depend_on_the_settings_of_the_data(data):
    "Every crystal in another setting: other letters, the same arrangements, and the same share of new ones expected."
    rng = np.random.default_rng(0)
    units = [data[i] for i in range(len(data))]
    moved = from_units([transform_unit(u, int(rng.integers(len(normalizer(u.space_group))))) for u in units])
    before, after = count_templates(data), count_templates(moved)
    assert before != after and merge_settings(before) == merge_settings(after)
    for (group, M), counts in before.items():
        assert (
            good_turing_rate(counts, group)
            == good_turing_rate(after[group, M], group)
            == good_turing_rate(merge_settings(before)[group, M])
        )
        assert all(t == canonical_template(group, t) for t in merge_settings(before)[group, M])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_dealing_counts_and_draws_what_trying_finds(sizes, counts, seed):
    all_ways = [
        w
        for w in np.ndindex(*[len(counts)] * len(sizes))
        if np.bincount(w, sizes, len(counts)).tolist() == counts
    ]
    assert ways_to_deal(tuple(sizes), tuple(counts)) == len(all_ways)
    if all_ways:
        assert deal(tuple(sizes), tuple(counts), np.random.default_rng(seed)) in all_ways
    else:
        with pytest.raises(ValueError, match="cannot be dealt"):
            deal(tuple(sizes), tuple(counts), np.random.default_rng(seed))


def request_of(group, positions):
    return Request(
        group,
        len(positions),
        tuple(SpaceGroup(group)[w].site_class for w in positions),
        positions=tuple(positions),
    )


def untrained(data, name="common"):
    torch.manual_seed(0)
    return SymmCD(
        SymmCDConfig.preset(name, width=32, layers=1, frequencies=4), crystal_statistics(data)
    ).eval()


@pytest.mark.parametrize("t", [1000, 500, 40])
def test_held_scores_point_to_the_first_member_of_every_position(data, t):
    "All 1731 positions: x_0 lies on the first member, is the nearest point of it, stays there when asked again; general positions keep their score."
    model, T = untrained(data), wyckoff_tables()
    requests = [request_of(g, range(len(SpaceGroup(g).wyckoff_positions))) for g in range(1, 231)]
    state, known = start_state(model, requests, torch.Generator().manual_seed(t))
    assert len(state.x) == 1731
    score = torch.randn(1731, 3, generator=torch.Generator().manual_seed(1))
    held = held_score(model, state, known, score, t)
    per_score = model.coordinate_noise.sigma(t) ** 2 * model.coordinate_noise.scale(t)
    clean, before, group = (
        state.x + per_score * held,
        state.x + per_score * score,
        state.space_group[state.batch],
    )
    row = T.wyckoff_offset[group] + known.positions
    first, general = T.member_offset[row], T.dof[row] == 3
    assert torch.equal(held[general], score[general]) and general.sum() == 230
    on = clean.double() - T.t[first]
    on = (on - on.round()).abs()  # of the positions that are points
    cell = state.lattice.double()[state.batch]
    assert nearest_on_members(clean.double(), T.A[first], T.t[first], cell @ cell.mT)[2].max() < 1e-4
    same_orbit = project(clean.double(), group, known.positions, state.lattice.double()[state.batch]).distance
    assert same_orbit.max() < 1e-4 and on[T.dof[row] == 0].max() < 1e-5
    again = held_score(model, state, known, held, t)
    assert ((again - held) * per_score).abs().max() < 1e-5
    way = lambda x: torch.linalg.norm((x[:, None] @ state.lattice[state.batch])[:, 0], dim=-1)
    u = torch.rand(1731, 3, generator=torch.Generator().manual_seed(2))
    other = (T.A[first] @ u.double()[..., None])[..., 0] + T.t[
        first
    ]  # any other point of the member, at its nearest translate by rounding
    gap = other - before.double()
    assert (way(clean - before) <= way((gap - gap.round()).float()) + 1e-4).all()


@pytest.mark.parametrize("name", ["tiny", "paper_small"])
def test_a_template_that_is_given_comes_out(data, name):
    "An untrained network, which would never find them: every crystal has the positions it was requested."
    model, rng = untrained(data, name), np.random.default_rng(0)
    units = [data[i] for i in rng.permutation(len(data))[:40] if len(data[i]) <= 8]
    requests = [request_of(u.space_group, rng.permutation(u.wyckoff).tolist()) for u in units]
    for how in (dict(), dict(guidance=0.0, min_contact=0.0)):
        made = sample_requests(
            model, requests, torch.Generator().manual_seed(0), SamplingOptions(steps=4, **how)
        )
        assert [s.unit.wyckoff.tolist() for s in made] == [list(r.positions) for r in requests]
        assert all(s.row["sites_changed"] == 0 for s in made)


def test_requests_take_templates_only_where_nothing_else_decides(data):
    model, rng = untrained(data), np.random.default_rng(0)
    known = count_templates(data)
    unseen_share = lambda cell: good_turing_rate(known[cell], cell[0])
    common = max(known, key=lambda cell: known[cell].total() * (1 - unseen_share(cell)))
    assert unseen_share(common) < 1, "this set has a cell with a template seen twice"
    requested = [
        make_request(model, rng, Conditions(space_group=common[0], num_orbits=common[1])) for _ in range(200)
    ]
    given_ = [r for r in requested if r.positions]
    assert abs(len(given_) / 200 - (1 - unseen_share(common))) < 0.15
    for r in given_:
        assert tuple(sorted(r.positions)) in known[common] and r.sites == tuple(
            SpaceGroup(r.space_group)[w].site_class for w in r.positions
        )
    assert all(r.positions is None for r in requested if r not in given_)
    draw = plan(model, Conditions(space_group=common[0], num_orbits=common[1]), templates=0)
    assert all((r := draw(rng)).positions is None and r.sites is None for _ in range(50))
    half = plan(model, Conditions(space_group=common[0], num_orbits=common[1]), templates=0.5)
    assert (
        abs(np.mean([half(rng).positions is not None for _ in range(400)]) - 0.5 * (1 - unseen_share(common)))
        < 0.15
    )


def test_templates_are_an_option_of_sample_and_old_weights_have_none(data, tmp_path):
    model = untrained(data)
    how = dict(steps=3, seed=2, balance=0, progress=False)
    with_, without = sample_by_name(model, 12, **how), sample_by_name(model, 12, templates=0, **how)
    assert [s.row for s in with_] != [s.row for s in without]
    with pytest.raises(MatgenError, match="templates must be at least 0 and at most 1"):
        model.sample(1, options=SamplingOptions(templates=1.5))
    model.save_pretrained(tmp_path / "new.safetensors")
    again = SymmCD.from_pretrained(tmp_path / "new.safetensors")
    assert torch.equal(again.stat_templates, model.stat_templates) and [
        s.row for s in sample_by_name(again, 12, **how)
    ] == [s.row for s in with_]
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        metadata, tensors = (
            file.metadata(),
            {n: file.get_tensor(n) for n in file.keys() if n != "stat_templates"},  # noqa: SIM118
        )
    metadata.pop("checksum")  # the first edition wrote none
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    old = SymmCD.from_pretrained(tmp_path / "old.safetensors")
    assert len(old.stat_templates) == 0 and [s.row for s in sample_by_name(old, 12, templates=0, **how)] == [
        s.row for s in without
    ]


def test_weights_that_ship_know_their_templates():
    table = unpack_templates(SHIPPED.stat_templates)
    crystals = sum(c.total() for c in table.values())
    assert (
        crystals == SHIPPED.stat_groups.sum() == 15_471
        and abs(sum(good_turing_rate(c) * c.total() for c in table.values()) / crystals - 0.0816) < 1e-3
    )
    arrangements = merge_settings(table)
    assert sum(map(len, table.values())) == 2548 and sum(map(len, arrangements.values())) == 2062
    assert (
        abs(sum(good_turing_rate(c, g) * c.total() for (g, _), c in table.items()) / crystals - 0.0589) < 1e-3
    )
    for (group, M), counts in table.items():
        assert all(
            len(t) == M and 0 <= min(t) and max(t) < len(SpaceGroup(group).wyckoff_positions) for t in counts
        )
        fixed = {w for w, p in enumerate(SpaceGroup(group).wyckoff_positions) if p.dof == 0}
        assert all(n == 1 for t in counts for w, n in Counter(t).items() if w in fixed), (
            "a fixed site is used once"
        )


SHIPPED = SymmCD.from_pretrained("symmcd-mp20-small")


@pytest.mark.parametrize(
    "requested",
    [
        dict(formula="SrTiO3"),
        dict(formula="MgAl2O4", space_group=227),
        dict(formula="Ca(OH)2", num_orbits=3),
        dict(num_atoms=16, space_group=[225, 139]),
        dict(formula="LiFePO4", num_atoms=28),
    ],
)
def test_a_formula_on_a_template_is_met_to_the_atom(requested):
    "Whatever way its sites were found; and with templates most are found that way, without them none."
    draw, rng = plan(SHIPPED, Conditions(**requested)), np.random.default_rng(0)
    requests = [draw(rng) for _ in range(60)]
    one = (
        np.array(list(parse_formula(requested["formula"]).values()))
        if "formula" in requested
        else np.array([1])
    )
    for r in requests:
        positions = SpaceGroup(r.space_group).wyckoff_positions
        if r.positions:
            assert r.sites == tuple(positions[w].site_class for w in r.positions)
        atoms = Counter()
        for z, c in zip(r.elements or [0] * len(r.sites), r.sites):
            atoms[z] += int(wyckoff_tables().class_multiplicity[r.space_group, c])
        found = np.array(
            [atoms[z] for z in (parse_formula(requested["formula"]) if "formula" in requested else [0])]
        )
        assert (
            (found * one[0] == found[0] * one).all()
            and sum(found) == sum(atoms.values())
            and (sum(found) == requested.get("num_atoms", sum(found)))
        )
    assert np.mean([r.positions is not None for r in requests]) > 0.5
    without = plan(SHIPPED, Conditions(**requested), templates=0)
    assert all(without(rng).positions is None for _ in range(20))


def test_spinel_and_perovskite_get_their_templates():
    rng = np.random.default_rng(0)
    letters = lambda r: sorted(SpaceGroup(r.space_group)[w].label for w in r.positions or ())
    perovskite, spinel = (
        plan(SHIPPED, Conditions(**a))
        for a in (
            dict(formula="SrTiO3", space_group=221, num_atoms=5),
            dict(formula="MgAl2O4", space_group=227, num_atoms=56),
        )
    )
    assert (
        np.mean([letters(perovskite(rng)) in (["1a", "1b", "3c"], ["1a", "1b", "3d"]) for _ in range(60)])
        > 0.95
    )
    assert (
        np.mean([letters(spinel(rng)) in (["16c", "32e", "8b"], ["16d", "32e", "8a"]) for _ in range(60)])
        > 0.95
    )


@pytest.mark.parametrize("formula", ["NaCl", "SrTiO3", "Ca5(PO4)3F"])
def test_templates_take_nothing_away(formula):
    "What can be had without them can be had with them, in the same cells; only the weights differ."
    prior, counts = Prior(SHIPPED), tuple(parse_formula(formula).values())
    groups, contents = (
        dict.fromkeys((1, 2, 14, 62, 139, 166, 176, 194, 221, 225, 227), 1.0),
        [tuple(z * n for n in counts) for z in (1, 2, 4)],
    )
    with_, without = (
        {(g, c): w for g, c, w in find_cells(prior, groups, contents, templates=t)} for t in (1.0, 0.0)
    )
    assert set(with_) == set(without) and with_ != without
    for (g, c), weight in with_.items():
        orbits, free = prior.orbits(g), prior.left_free(g, 1.0)
        assert (
            weight >= sum(w for _, w in prior.fillings(g, c, orbits * (1 - free)))
            and (free > 0).all()
            and (prior.left_free(g, 0.0) == 1).all()
        )


def test_what_is_left_free_counts_equivalent_templates_as_one():
    "As `sample_template` does: the expected share is that of the classes up to the normaliser."
    prior, plain = Prior(SHIPPED), 0
    for number in (2, 62, 139, 194, 225):
        free = prior.left_free(number, 1.0)
        for M in range(1, 8):
            counts = prior.templates.get((number, M), Counter())
            assert free[M] == pytest.approx(max(good_turing_rate(counts, number), 1e-3))
            plain += good_turing_rate(counts) != good_turing_rate(counts, number)
    assert plain, "counted letter by letter it would be another share"
