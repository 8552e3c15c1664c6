"""The request of a run holds every option that its result depends on: a run never goes on with another."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from matgen_nb import SymmCD
from matgen_nb.commands.crystals import stored_request
from matgen_nb.scale.gas_runs import UptakeOptions, uptake_request
from matgen_nb.mofdiff.adsorption import AdsorptionOptions
from matgen_nb.mofdiff.net_first_sampling import framework_model
from matgen_nb.mofdiff.pipeline import PipelineOptions
from matgen_nb.mofdiff.preparing import MofPrepareOptions
from matgen_nb.mofdiff.property_design import DesignOptions, Goal
from matgen_nb.mofdiff.screening import RoughCapacity
from matgen_nb.scale.crystal_runs import NOT_STORED
from matgen_nb.scale.mof_runs import MofRunOptions, design_request, mof_run_request
from matgen_nb.scale.mof_runs import NOT_OF_A_DESIGN, NOT_OF_A_RUN
from matgen_nb.scale.optimization import TrainConfig
from matgen_nb.scale.runs import open_run, stored_options
from matgen_nb.scale.records import write_json
from matgen_nb.scale.shard_kinds import framework_work
from matgen_nb.scale.training import MAY_CHANGE, SAME
from matgen_nb.symmcd.reverse import SamplingOptions
from matgen_nb.utils import MatgenError

OTHERS = dict(
    prior="normal",
    target=0.7,
    num_blocks=3,
    strategies=("selected",),
    start=torch.zeros(4, 2),
    reference=("known",),
    screen=sorted,
    measure=max,
    protocol="pure",
    gas="N2=1",
    simulator="raspa",
    charges="none",
    accept=bool,
    max_lattice_error=0.15,
    retries=7,
    resample_higher=3,
    num_orbits=2,
    balance=0.3,
    property="void_fraction",
    tolerance=0.01,
)


def another(one, value):
    "Another value of a field."
    if one.name == "target" and value is None:
        return {"density": 0.7}
    if one.name in OTHERS:
        return OTHERS[one.name]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 if value else 0.5 if value == 0 else 2


def variants(options):
    "(name of a field, the options with another value of it) of all fields, also of options within."
    for one in fields(options):
        value = getattr(options, one.name)
        if is_dataclass(value):
            for name, inner in variants(value):
                yield f"{one.name}.{name}", replace(options, **{one.name: inner})
        else:
            yield one.name, replace(options, **{one.name: another(one, value)})


def without_effect(request, options):
    "Names of the fields that leave the request as it is."
    first = request(options)
    return {name for name, other in variants(options) if request(other) == first}


@pytest.fixture(scope="module")
def model():
    return framework_model("mofdiff-small")


def test_every_option_of_a_run_of_frameworks_is_part_of_its_request():
    how = MofRunOptions()
    found = without_effect(lambda o: mof_run_request(4, 0, o, how), PipelineOptions())
    assert found == set(NOT_OF_A_RUN)
    for name, other in dict(chunk=7, weights_hash="w").items():
        assert mof_run_request(4, 0, PipelineOptions(), how) != mof_run_request(
            4, 0, PipelineOptions(), replace(how, **{name: other})
        )


def test_every_option_of_a_design_is_part_of_its_request(model):
    goal, how = Goal("density", 0.6), MofRunOptions()
    found = without_effect(lambda o: design_request(model, goal, 4, 0, o, how), DesignOptions())
    assert found == set(NOT_OF_A_DESIGN)
    options = DesignOptions()
    assert not without_effect(lambda g: design_request(model, g, 4, 0, options, how), goal)
    start = DesignOptions(start=torch.zeros(4, 2))
    moved = DesignOptions(start=torch.ones(4, 2))
    assert design_request(model, goal, 4, 0, start, how) != design_request(model, goal, 4, 0, moved, how)


def test_every_option_of_a_run_of_crystals_is_part_of_its_request():
    shipped = SymmCD.from_pretrained("symmcd-mp20-small")
    options = SamplingOptions(balance=0.5)
    found = without_effect(lambda o: stored_request(shipped, dict(n=2), {}, o), options)
    assert found == set(NOT_STORED)


def test_every_option_of_gas_uptake_is_part_of_its_request(tmp_path):
    request = lambda o, how=AdsorptionOptions(), cycles=(1, 1): uptake_request(tmp_path, o, how, cycles)
    assert without_effect(request, UptakeOptions()) == {"timeout"}
    assert not without_effect(lambda how: request(UptakeOptions(), how), AdsorptionOptions())
    assert request(UptakeOptions()) != request(UptakeOptions(), cycles=(2, 1))
    assert "seed_rule" in request(UptakeOptions())


def test_every_option_of_a_training_is_the_same_or_may_change():
    assert sorted([*SAME, *MAY_CHANGE]) == sorted(one.name for one in fields(TrainConfig))
    curve = "seed batch_size lr weight_decay warmup_steps schedule clip_norm ema_decay precision"
    assert set(SAME) == set(curve.split()), "a new option: does it decide the curve, or may it change?"


def test_the_column_of_a_source_is_part_of_the_request_of_a_shard(tmp_path):
    (tmp_path / "two.csv").write_text("name,cif,other\na,data_a,data_b\n")
    work = lambda **given: framework_work(tmp_path / "two.csv", MofPrepareOptions(**given)).request
    assert work() != work(column="other") and work() == work(timeout=5.0)


def test_what_a_request_stores():
    said = stored_options(DesignOptions(screen=sorted, start=torch.zeros(4, 2)), ["pipeline.sampling"])
    assert said["screen"] == "builtins.sorted" and said["start"].startswith("[4, 2] with hash ")
    assert "sampling" not in said["pipeline"] and said["strategies"] == ["optimised", "selected"]
    measured = stored_options(Goal("working_capacity", 2.0, measure=RoughCapacity("pure")))["measure"]
    assert measured == dict(swing="pure", trials=2000, insertions=4000, seed=0)


def test_the_options_that_differ_are_named_and_earlier_runs_are_rejected(tmp_path):
    first = mof_run_request(4, 0, PipelineOptions(), MofRunOptions())
    with open_run(tmp_path / "run", first) as folder:
        write_json(folder.path("request.json"), first)
    open_run(tmp_path / "run", first, resume=True).close()
    variant = dict(variants(PipelineOptions()))["sampling.nets.misfit"]
    with pytest.raises(MatgenError, match="cannot resume in .*: nets: misfit was 0.3 and is now 0.15$"):
        open_run(tmp_path / "run", mof_run_request(4, 0, variant, MofRunOptions()), resume=True)
    earlier = {k: v for k, v in first.items() if k not in ("sampling", "assembly")} | dict(starts=64)
    with open_run(tmp_path / "old", earlier) as folder:
        write_json(folder.path("request.json"), earlier)
    with pytest.raises(MatgenError, match="sampling was not noted .a run of an earlier version.: start it"):
        open_run(tmp_path / "old", first, resume=True)
