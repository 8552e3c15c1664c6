"""Ablations: the changes of the data, what a run leaves, what is called a difference, and the table that ships."""

import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.scale import ablations as ab, training
from matgen_nb.symmcd.dataset import from_units, prepare_one, prototypes
from matgen_nb.symmcd.evaluation import prepare_reference
from matgen_nb.symmetry.lattice import k_to_lattice
from matgen_nb.symmetry.space_groups import wyckoff_tables
from matgen_nb.utils import MatgenError, stream_seed


@pytest.fixture(scope="module")
def units():
    return [prepare_one(c) for _, c in prototypes() if len(c) <= 12][:50]


@pytest.fixture(scope="module")
def data(units):
    return from_units(units)


def orbit(x, group):
    "All symmetry images of a point, in the unit cell."
    T = wyckoff_tables()
    op = slice(int(T.operation_offset[group]), int(T.operation_offset[group + 1]))
    images = ((T.R[op] @ x.double() + T.w[op]) + 1e-9) % 1
    return images


def test_the_nearest_image_is_taken_and_nothing_else_changes(data):
    central = ab.nearest_to_centre(data, chunk=7)
    group, lattice = (
        data.space_group.repeat_interleave(data.num_orbits),
        k_to_lattice(data.k.double()).repeat_interleave(data.num_orbits, 0),
    )
    for x, y, g, L in zip(data.frac_coords, central.frac_coords, group.tolist(), lattice):
        images = orbit(x, g)
        away = ((images - 0.5) @ L).norm(dim=-1)
        assert (images - y).abs().amax(1).min() < 1e-6 and abs(
            float(((y - 0.5) @ L).norm()) - float(away.min())
        ) < 1e-5
    for name in ("space_group", "k", "num_orbits", "elements", "wyckoff"):
        assert torch.equal(getattr(central, name), getattr(data, name))
    assert torch.equal(central.frac_coords, ab.nearest_to_centre(data).frac_coords), (
        "the size of the chunks does not matter"
    )


def test_logarithm_of_the_cell_keeps_volume_and_right_angles(data):
    other, oblique = ab.logarithm_of_cell(data), data.space_group < 16
    assert 0 < oblique.sum() < len(data) and torch.equal(other.k[~oblique], data.k[~oblique].double())
    a, b = (torch.linalg.det(k_to_lattice(d.k.double())).abs() for d in (data, other))
    assert torch.allclose(a, b) and (other.k[oblique] - data.k[oblique]).abs().max() > 1e-3


def row(value, variant="base", weights="averaged", sampler="default"):
    return dict(
        variant=variant,
        weights=weights,
        sampler=sampler,
        train_cpu_s=1.0,
        parameters=1,
        **dict.fromkeys(ab.FIGURES, value),
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=4), min_size=2, max_size=5),
    st.floats(-100, 100),
    st.randoms(),
)
def test_the_spread_is_that_of_the_groups_whatever_their_level_and_order(groups, level, random):
    names = [name for name, v in ab.VARIANTS.items() if v.votes]
    rows = [row(v + level * k, names[k]) for k, g in enumerate(groups) for v in g]
    expected = sum(((np.array(g) - np.mean(g)) ** 2).sum() for g in groups) / sum(len(g) - 1 for g in groups)
    rows += [row(v, "raw k") for v in (0.0, 1e6)]  # has no vote
    random.shuffle(rows)
    spread, freedom = ab.pooled_spread(rows, "loss_x", "default")
    assert freedom == sum(len(g) - 1 for g in groups) and abs(spread**2 - expected) < 1e-6
    assert ab.pooled_spread(rows, "loss_x", "neither")[1] == 0


def test_verdicts_have_the_right_sign_and_need_more_than_chance():
    rows = (
        [row(v) for v in (1.0, 1.1, 0.9)]
        + [row(v, "no images") for v in (3.0, 3.1)]
        + [row(v, "raw k") for v in (1.0, 1.1)]
    )
    found = {line["variant"]: line for line in ab.summarise_ablations(rows)}
    assert (
        found["no images"]["struct_valid_verdict"] == "better"
        and found["no images"]["loss_x_verdict"] == "worse"
        and found["raw k"]["struct_valid_verdict"] == ""
    )
    assert "struct_valid_change" not in found["base"]
    single = ab.summarise_ablations([row(1.0), row(9.0, "no images")])
    assert all(line.get("struct_valid_verdict", "") == "" for line in single), "one seed proves nothing"
    text = ab.ablation_text(
        list(found.values()), ("struct_valid", "loss_x"), weights="averaged", sampler="default"
    )
    assert "3.050+" in text and "3.050-" in text and len(text.splitlines()) == 4


def test_every_setting_is_compared_with_one_that_differs_in_one_thing():
    for variant in ab.VARIANTS:
        for weights, sampler in ab.evaluated_settings(variant):
            other = ab.reference_setting(ab.MeasuredWay(variant, weights, sampler))
            if other is None:
                assert (variant, weights, sampler) == ("base", "averaged", "default")
            elif sampler == "clipped":
                assert other == ("base", weights, "default"), "the base is clipped by default"
            else:
                assert sum(x != y for x, y in zip(other, (variant, weights, sampler))) == 1


@pytest.fixture(scope="module")
def reference(units):
    return prepare_reference(
        [u.to_crystal() for u in units[:6]], fingerprints=False, n_jobs=1, progress=False
    )


def test_a_run_repeats_itself_and_files_are_not_made_again(data, reference, tmp_path, monkeypatch):
    budget, sets = ab.Budget(steps=2, n=4, sample_steps=3), ab.AblationData(data, data, reference)
    runs = ab.plan_runs(["nearest to centre", "independent sites"], 2, fewer=["independent sites"], less=1)
    rows = ab.run_ablations(sets, tmp_path / "a", runs, budget)
    own = stream_seed(0, "repetition", 1)
    assert len(runs) == 3 and len(rows) == 6
    assert {r["seed"] for r in rows} == {0, own}
    again = ab.run_variant("nearest to centre", sets, tmp_path / "b", own, budget)
    timeless = lambda r: {k: v for k, v in r.items() if not k.endswith("_s")}
    assert [timeless(r) for r in json.loads(json.dumps(again))] == [
        timeless(r) for r in rows if r["variant"] == "nearest to centre" and r["seed"] == own
    ]
    monkeypatch.setattr(ab, "run_variant", lambda *a, **k: pytest.fail("ran again"))
    assert ab.run_ablations(None, tmp_path / "a", runs, budget) == rows


def test_the_budget_is_checked():
    for wrong in (dict(steps=0), dict(n=0), dict(sample_steps=0)):
        with pytest.raises(MatgenError, match="must be at least 1"):
            ab.Budget(**wrong)


def test_a_training_that_was_stopped_is_no_result_and_goes_on(data, tmp_path, monkeypatch):
    four = ab.Budget(steps=4)
    whole, _ = ab.train_variant("base", data, tmp_path / "whole", four)
    steps = itertools.count(1)
    real = training.Trainer._train_step

    def stopping(trainer):
        real(trainer)
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Trainer, "_train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        ab.train_variant("base", data, tmp_path / "part", four)
    monkeypatch.setattr(training.Trainer, "_train_step", real)
    rest, _ = ab.train_variant("base", data, tmp_path / "part", four, resume=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole["averaged"].state_dict().values(), rest["averaged"].state_dict().values())
    )


def test_an_unknown_variant_is_named(data):
    with pytest.raises(MatgenError, match="no variant 'better'.*independent sites"):
        ab.variant_model("better", data)


def test_the_table_that_ships_is_complete():
    rows = ab.published_ablations()
    assert {r["variant"] for r in rows} == set(ab.VARIANTS), "every variant was measured"
    assert {r["sampler"] for r in rows} == set(ab.SAMPLERS), "in every way to sample"
    assert len({(r["steps"], r["n"], r["sample_steps"], r["torch"]) for r in rows}) == 1, (
        "with one budget and one version"
    )
    assert len({(r["variant"], r["weights"], r["sampler"], r["seed"]) for r in rows}) == len(rows), (
        "each once"
    )
    for name, group in itertools.groupby(
        sorted(rows, key=lambda r: (r["variant"], r["seed"])), key=lambda r: (r["variant"], r["seed"])
    ):
        assert {(r["weights"], r["sampler"]) for r in group} == set(ab.evaluated_settings(name[0]))
    assert all(
        0 <= r[c] <= 1 for r in rows for c in ("struct_valid", "comp_valid", "group_kept", "moved_far")
    ) and all(r[c] == r[c] for r in rows for c in ab.FIGURES)
