"""Property design: codes stay where the model knows something, a success is measured on what came out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.mofdiff import property_design as pd
from matgen_nb.mofdiff.bonds import Mof, textbook_crystal, textbook_mof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.model import MofDiff, MofDiffConfig, statistics
from matgen_nb.mofdiff.network import toy_embeddings, toy_mofs
from matgen_nb.utils import MatgenError

NAME = "volume_per_block"


@pytest.fixture(scope="module")
def model():
    data = MofData.from_coarse(toy_mofs(60, seed=1))
    data = data.with_embeddings(toy_embeddings(data.library))
    torch.manual_seed(0)
    return (
        MofDiff(MofDiffConfig.preset("tiny", layers=1, width=32), statistics(data))
        .eval()
        .requires_grad_(False)
    )


@given(seed=st.integers(0, 1000), share=st.floats(0.1, 1.0), n=st.integers(3, 60))
@settings(max_examples=30, deadline=None)
def test_region_holds_its_share_and_clipping_stays_inside(seed, share, n):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, 5, generator=g) * torch.tensor([3, 1, 1, 0.1, 0.01]) + 1
    region = pd.trust_region(codes, share)
    inside = (region.distance(codes) <= region.radius * (1 + 1e-5)).float().mean()
    assert share - 1 / n - 1e-6 <= inside
    far = codes + 50 * torch.randn(n, 5, generator=g)
    assert (region.distance(region.clip(far)) <= region.radius * 1.001).all()
    near = region.mean + 0.5 * (region.clip(far) - region.mean)
    assert torch.allclose(region.clip(near), near)


def test_region_refuses_what_it_cannot_fit():
    for codes, share in ((torch.zeros(1, 3), 0.9), (torch.randn(5, 3), 0.0), (torch.randn(5, 3), 1.1)):
        with pytest.raises(MatgenError):
            pd.trust_region(codes, share)


def test_optimised_codes_come_nearer_stay_inside_and_repeat(model):
    start = torch.randn(12, model.config.latent, generator=torch.Generator().manual_seed(0))
    region = pd.trust_region(
        torch.randn(400, model.config.latent, generator=torch.Generator().manual_seed(1))
    )
    target = float(model.decode_properties(start)[:, 0].max()) * 1.05
    out = pd.optimise_codes(model, start, NAME, target, steps=40, region=region)
    assert (region.distance(out.codes) <= region.radius * 1.001).all()
    assert (out.predicted - target).abs().mean() < (out.history[0] - target).abs().mean()
    assert torch.equal(
        out.codes, pd.optimise_codes(model, start, NAME, target, steps=40, region=region).codes
    )
    free = pd.optimise_codes(model, start, NAME, "max", steps=200, lr=0.2)
    assert region.distance(free.codes).median() > region.radius and (free.predicted > out.history[0]).all()
    assert not start.requires_grad and not any(p.grad is not None for p in model.parameters())


def test_objective_is_zero_exactly_at_the_target(model):
    z = torch.randn(4, model.config.latent, generator=torch.Generator().manual_seed(0))
    y = float(model.decode_properties(z)[2, 0])
    assert pd.property_objective(model, NAME, y)(z)[2] < 1e-8
    assert torch.equal(
        pd.property_objective(model, NAME, "max")(z), -pd.property_objective(model, NAME, "min")(z)
    )


@pytest.mark.parametrize("property, target", [("colour", 1.0), (NAME, math.nan), (NAME, "much")])
def test_impossible_wishes(model, property, target):
    with pytest.raises(MatgenError):
        pd.property_objective(model, property, target)


def test_arms_are_reproducible_and_unknown_ones_refused(model):
    for arm in pd.ARMS:
        a, b = (pd.draw_codes(model, arm, 3, NAME, 300.0, seed=5, steps=5) for _ in range(2))
        assert a.shape == (3, model.config.latent) and torch.equal(a, b)
        assert not torch.equal(a, pd.draw_codes(model, arm, 3, NAME, 300.0, seed=6, steps=5))
    with pytest.raises(MatgenError):
        pd.draw_codes(model, "lucky", 3, NAME, 300.0)


def test_design_reports_both_arms_and_counts_failures_as_misses(model):
    out = pd.design(
        model,
        NAME,
        300.0,
        n=2,
        measure=lambda c: c.volume,
        arms=("optimised",),
        steps=3,
        sampling_steps=4,
        starts=4,
        draws=2,
        generations=2,
        progress=False,
    )
    assert [r["arm"] for r in out.rows] == ["random"] * 2 + ["optimised"] * 2 and len(out.crystals) == 4
    for arm, s in out.summary.items():
        assert s["success"]["n"] == 2 and s["success"]["value"] <= min(s["hit"]["value"], s["valid"]["value"])
        assert (
            s["success"]["low"] <= s["success"]["value"] <= s["success"]["high"]
            and "300" in s["success"]["protocol"]
        )
    for crystal, row in zip(out.crystals, out.rows):
        assert (crystal is None) == math.isnan(row["measured"]) and row["success"] <= row["hit"]


def test_best_fitting_keeps_the_least_mismatch_of_each_group(model):
    samples = model.sample(6, seed=0, steps=4, progress=False)
    kept = pd.best_fitting(samples, 3)
    assert kept == [min(samples[i : i + 3], key=lambda s: pd.mismatch(s.coarse)) for i in (0, 3)] and all(
        "mismatch" in s.row for s in samples
    )
    assert pd.best_fitting(samples, 1) is samples


def test_a_pore_property_of_what_was_not_built_is_a_miss():
    out = pd.judge([None], [dict(name="a", assembled=False)], "void_fraction", 0.7, 0.1)
    row, shares = out.table[0], pd.summarise_arm(out, "void_fraction", 0.7, 0.1)
    assert math.isnan(row["measured"]) and not row["hit"] and not row["success"]
    assert (
        shares["assembled"]["value"] == shares["assembled_hit"]["value"] == 0
        and shares["assembled"]["n"] == 1
    )


def test_relaxation_hands_on_the_change_of_volume(model, monkeypatch):
    from types import SimpleNamespace

    mof = textbook_mof("IRMOF-1")
    crystal = mof.crystal
    built = SimpleNamespace(
        crystal=crystal,
        to_mof=lambda: mof,
        row=dict(assembled=True, cp_error=0.1, bond_success=1.0, clashes=0, reason=""),
    )
    relaxed = SimpleNamespace(
        crystal=crystal,
        bonds=mof.bonds,
        images=mof.images,
        converged=True,
        row=dict(volume_change=-0.7, stopped=""),
    )
    monkeypatch.setattr(pd, "assemble_first", lambda lists, **k: [built] * len(lists))
    monkeypatch.setattr(pd, "relax_many", lambda mofs, names, **k: ([relaxed] * len(mofs), []))
    made, rows = pd.build(model.sample(1, seed=0, steps=4, progress=False), relax=True)
    assert rows[0]["volume_change"] == -0.7
    row = pd.judge(made, rows, "density", crystal.density, 0.1).table[0]
    assert row["volume_kept"] is False and row["as_drawn"] is True


def test_what_is_not_as_drawn_is_no_success():
    mof = textbook_mof("IRMOF-1")
    torn = Mof(mof.crystal, mof.bonds[:-1], mof.images[:-1])  # drawn with one bond less than the atoms show
    row = pd.judge([torn], [dict(name="a")], "density", mof.crystal.density, 0.1).table[0]
    assert (
        row["checks_passed"]
        and row["hit"]
        and row["as_drawn"] is False
        and not row["valid"]
        and not row["success"]
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(target="max"),
        dict(target=math.inf),
        dict(n=0),
        dict(draws=0),
        dict(tolerance=0.0),
        dict(target=0.0),
    ],
)
def test_design_refuses(model, changes):
    with pytest.raises(MatgenError):
        pd.design(
            model, NAME, **{**dict(target=300.0, n=2, measure=lambda c: c.volume, progress=False), **changes}
        )


def test_a_property_without_a_measure_is_refused(model, monkeypatch):
    monkeypatch.setattr(pd, "draw_codes", lambda *a, **k: pytest.fail("drew before it refused"))
    with pytest.raises(MatgenError, match="measure="):
        pd.design(model, NAME, 300.0, n=1, progress=False)
    with pytest.raises(MatgenError, match="not trained on"):
        pd.design(model, "price", 300.0, n=1, progress=False)
    with pytest.raises(MatgenError, match="measure="):
        pd.judge([textbook_crystal("IRMOF-1")], [dict(name="a")], NAME, 1.0, 0.1)
