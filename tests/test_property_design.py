"""Property design: codes stay where the model knows something, a success is measured on what came out."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.mofdiff import pipeline, property_design as pd
from matgen_nb.mofdiff.assembly import AssemblyOptions, mismatch
from matgen_nb.mofdiff.pipeline import PipelineOptions
from matgen_nb.mofdiff.bonds import Mof, textbook_mof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.model import MofDiff, MofDiffConfig, mof_statistics
from matgen_nb.mofdiff.sampling import MofSamplingOptions
from matgen_nb.mofdiff.network import toy_embeddings, toy_mofs
from matgen_nb.utils import MatgenError, share

NAME = "volume_per_block"


@pytest.fixture(scope="module")
def model():
    data = MofData.from_coarse(toy_mofs(60, seed=1))
    data = data.with_embeddings(toy_embeddings(data.library))
    torch.manual_seed(0)
    return (
        MofDiff(MofDiffConfig.preset("tiny", layers=1, width=32), mof_statistics(data))
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


def test_region_rejects_what_it_cannot_fit():
    for codes, held in ((torch.zeros(1, 3), 0.9), (torch.randn(5, 3), 0.0), (torch.randn(5, 3), 1.1)):
        with pytest.raises(MatgenError):
            pd.trust_region(codes, held)


def test_optimised_codes_come_nearer_stay_inside_and_repeat(model):
    start = torch.randn(12, model.config.latent, generator=torch.Generator().manual_seed(0))
    region = pd.trust_region(
        torch.randn(400, model.config.latent, generator=torch.Generator().manual_seed(1))
    )
    target = float(model.decode_properties(start)[:, 0].max()) * 1.05
    out = pd.optimise_latents(model, start, pd.Goal(NAME, target), steps=40, region=region)
    assert (region.distance(out.latents) <= region.radius * 1.001).all()
    assert (out.predicted - target).abs().mean() < (out.history[0] - target).abs().mean()
    assert torch.equal(
        out.latents, pd.optimise_latents(model, start, pd.Goal(NAME, target), steps=40, region=region).latents
    )
    free = pd.optimise_latents(model, start, pd.Goal(NAME, "max"), steps=200, lr=0.2)
    assert region.distance(free.latents).median() > region.radius and (free.predicted > out.history[0]).all()
    assert not start.requires_grad and not any(p.grad is not None for p in model.parameters())


def test_objective_is_zero_exactly_at_the_target(model):
    z = torch.randn(4, model.config.latent, generator=torch.Generator().manual_seed(0))
    y = float(model.decode_properties(z)[2, 0])
    assert pd.property_objective(model, NAME, y)(z)[2] < 1e-8
    assert torch.equal(
        pd.property_objective(model, NAME, "max")(z), -pd.property_objective(model, NAME, "min")(z)
    )


@pytest.mark.parametrize("property, target", [("colour", 1.0), (NAME, math.nan), (NAME, "much")])
def test_impossible_requests(model, property, target):
    with pytest.raises(MatgenError):
        pd.property_objective(model, property, target)


def test_strategies_are_reproducible_and_unknown_ones_rejected(model):
    goal, how = pd.Goal(NAME, 300.0), pd.DesignOptions(latent_steps=5)
    for strategy in pd.STRATEGIES:
        a, b = (pd.choose_latents(model, strategy, 3, goal, 5, how) for _ in range(2))
        assert a.shape == (3, model.config.latent) and torch.equal(a, b)
        assert not torch.equal(a, pd.choose_latents(model, strategy, 3, goal, 6, how))
    with pytest.raises(MatgenError):
        pd.choose_latents(model, "lucky", 3, goal)
    with pytest.raises(MatgenError):
        pd.DesignOptions(strategies=("lucky",))


GOAL = pd.Goal(NAME, 300.0, measure=lambda c: c.volume)


def test_design_reports_both_strategies_and_counts_failures_as_misses(model):
    quick = PipelineOptions(
        MofSamplingOptions(samples_per_latent=2, steps=4, progress=False),
        assembly=AssemblyOptions(starts=4, generations=2),
        relax=False,
    )
    how = dict(strategies=("optimised",), latent_steps=3, pipeline=quick)
    out = pd.design(model, GOAL, n=2, options=pd.DesignOptions(**how))
    assert [r["strategy"] for r in out.rows] == ["random"] * 2 + ["optimised"] * 2 and len(out.crystals) == 4
    for s in out.summary.values():
        assert s["success"]["n"] == 2 and s["success"]["value"] <= min(s["hit"]["value"], s["valid"]["value"])
        assert s["success"]["low"] <= s["success"]["value"] <= s["success"]["high"]
        assert "300" in s["success"]["protocol"]
    for crystal, row in zip(out.crystals, out.rows):
        assert (crystal is None) == math.isnan(row["measured"]) and row["success"] <= row["hit"]


def test_best_fitting_keeps_the_least_mismatch_of_each_group(model):
    samples = model.sample(6, seed=0, options=MofSamplingOptions(steps=4, progress=False))
    kept = pipeline.best_fitting(samples, 3)
    assert kept == [min(samples[i : i + 3], key=lambda s: mismatch(s.coarse)) for i in (0, 3)]
    assert all("mismatch" in s.row for s in samples)
    assert pipeline.best_fitting(samples, 1) is samples


@pytest.mark.parametrize("name", ["void_fraction", "density"])
def test_a_pore_property_of_what_was_not_built_is_a_miss(name):
    "Not even where the beads have such a value."
    table = [dict(name="a", assembled=False, valid=False, density=0.7)]
    goal = pd.Goal(name, 0.7, 0.1)
    pd.add_measured(table, [None], goal)
    shares = pd.summarise_strategy(table, dict(assembled=share([False], "")), goal)
    assert math.isnan(table[0]["measured"]) and not table[0]["hit"] and not table[0]["success"]
    assert shares["assembled"]["value"] == shares["assembled_hit"]["value"] == 0
    assert shares["assembled"]["n"] == 1


def put(mof, relaxed=None, **row):
    "A sample's row and the results of a framework that is built, and perhaps relaxed."
    results = pipeline.Results()
    results.save("assembled", "a", pipeline.StageResult(dict(bond_success=1, clashes=0), mof))
    if relaxed is not None:
        results.save("relaxed", "a", pipeline.StageResult(row, relaxed))
    pipeline.evaluate_stage(["a"], results)
    return dict(name="a", matched=True), results


def test_relaxation_hands_on_the_change_of_volume():
    mof = textbook_mof("IRMOF-1")
    found = pipeline.verdict(*put(mof, mof, converged=True, volume_change=-0.7))
    assert found.row["volume_change"] == -0.7 and found.row["volume_kept"] is False
    assert found.row["connectivity_preserved"] is True and not found.valid and "volume" in found.reason


def test_lost_connectivity_is_no_success():
    mof = textbook_mof("IRMOF-1")
    torn = Mof(mof.crystal, mof.bonds[:-1], mof.images[:-1])  # built with one bond less than the atoms show
    table = [pipeline.verdict(*put(torn), relaxed=False).row]
    pd.add_measured(table, [torn], pd.Goal("density", mof.crystal.density, 0.1))
    assert table[0]["checks_passed"] and table[0]["hit"] and table[0]["connectivity_preserved"] is False
    assert not table[0]["valid"] and not table[0]["success"]


@pytest.mark.parametrize(
    "changes",
    [dict(target="max"), dict(target=math.inf), dict(n=0), dict(tolerance=0.0), dict(target=0.0)],
)
def test_design_rejects(model, changes):
    n = changes.pop("n", 2)
    with pytest.raises(MatgenError):
        pd.design(model, replace(GOAL, **changes), n=n, options=pd.DesignOptions())


def test_a_property_without_a_measure_is_rejected(model, monkeypatch):
    monkeypatch.setattr(pd, "choose_latents", lambda *a, **k: pytest.fail("sampled before it rejected"))
    with pytest.raises(MatgenError, match="measure="):
        pd.design(model, pd.Goal(NAME, 300.0), n=1)
    with pytest.raises(MatgenError, match="not trained on"):
        pd.design(model, pd.Goal("price", 300.0), n=1)
