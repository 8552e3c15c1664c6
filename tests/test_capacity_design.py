"""Design for a learned property: the regressor, the table it learns from, goals of at least a value, measurements that are kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from matgen_nb.commands import main as entry
from matgen_nb.mofdiff import latent_regression as lr, property_design as pd
from matgen_nb.mofdiff.assembly import AssemblyOptions
from matgen_nb.mofdiff.bonds import Mof, textbook_mof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.model import MofDiff, MofDiffConfig, mof_statistics
from matgen_nb.mofdiff.network import toy_embeddings, toy_mofs
from matgen_nb.mofdiff.pipeline import PipelineOptions, Results, StageResult
from matgen_nb.mofdiff.sampling import MofSamplingOptions
from matgen_nb.scale.mof_runs import FolderResults
from matgen_nb.utils import MatgenError


@pytest.fixture(scope="module")
def toy():
    data = MofData.from_coarse(toy_mofs(40, seed=1))
    data = data.with_embeddings(toy_embeddings(data.library))
    torch.manual_seed(0)
    config = MofDiffConfig.preset("tiny", layers=1, width=32)
    return data, MofDiff(config, mof_statistics(data)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def learned(toy):
    data, model = toy
    z = lr.encoded(model, data)
    return lr.with_property(model, "sweetness", z, (2 + z[:, 0] - z[:, 0].min()).tolist())[0], z


def test_left_out_is_what_a_fit_without_it_says():
    "The short formula against fits of all others, for the width and ridge that were chosen."
    z = torch.randn(25, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.sin(z[:, 0]) + 0.1 * z[:, 1]
    fit = lr.fit_kernel(z, y)
    mean, width = y.mean(), fit.regressor.width
    bump = lambda a, b: torch.exp(-(torch.cdist(a, b) ** 2) / (2 * width**2))
    agree = []
    for ridge in (0.03, 0.1, 0.3, 1.0, 3.0):
        said = []
        for i in range(len(z)):
            rest = [k for k in range(len(z)) if k != i]
            weights = torch.linalg.solve(
                bump(z[rest], z[rest]) + ridge * torch.eye(24).double(), y[rest] - mean
            )
            said.append(float(mean + bump(z[i : i + 1], z[rest]) @ weights))
        agree.append(np.abs(np.array(said) - fit.left_out.numpy()).max())
    assert min(agree) < 1e-6 and 0.5 < fit.explained() < 1


def test_a_taught_model_keeps_what_it_knew_and_predicts_more(toy, learned):
    data, model = toy
    taught, z = learned
    assert (
        taught.property_names == (*model.property_names, "sweetness")
        and model.property_names != taught.property_names
    )
    assert torch.equal(taught.decode_properties(z)[:, :-1], model.decode_properties(z))
    found = taught.decode_properties(z)[:, -1]
    assert float(torch.corrcoef(torch.stack([found, z[:, 0]]))[0, 1]) > 0.8
    with pytest.raises(MatgenError, match="knows sweetness already"):
        lr.with_property(taught, "sweetness", z, [1.0] * len(z))


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,price\na,1\n", "has no column sweetness; it has name, price"),
        ("a,b\n1,2\n", "no column name and no column sweetness"),
        ("name,sweetness\nx,1\n", "gives 0 of the 40 frameworks a sweetness"),
        (None, "cannot be read as a table"),
    ],
)
def test_a_table_without_the_property_is_rejected(tmp_path, toy, text, message):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MatgenError, match=message):
        lr.labelled_frameworks(path, "sweetness", toy[0])


def test_a_table_gives_numbers_to_the_frameworks_it_names(tmp_path, toy):
    data = replace(toy[0], names=[f"toy_{i}" for i in range(40)])
    lines = [f"{name},{i / 7}" for i, name in enumerate(data.names)]
    lines[3] = f"{data.names[3]},"
    lines[5] = f"{data.names[5]},nan"
    (tmp_path / "t.csv").write_text("name,sweetness\nnobody,3\n" + "\n".join(lines))
    found = lr.labelled_frameworks(tmp_path / "t.csv", "sweetness", data)
    assert len(found.indices) == 38 and not {3, 5} & set(found.indices)
    assert found.values[0] == 0 and found.values[-1] == 39 / 7


def test_at_least_chooses_the_highest_and_counts_what_is_above(learned):
    taught, _ = learned
    goal = pd.Goal("sweetness", 3.0, at_least=True, measure=len).checked(taught)
    assert goal.interval() == (3.0, math.inf) and goal.text() == "at least 3"
    chosen = pd.choose_latents(taught, "selected", 4, goal, 1)
    prior = pd.choose_latents(taught, "random", 400, goal, 2)
    predicted = lambda z: taught.decode_properties(z)[:, -1]
    assert predicted(chosen).min() > predicted(prior).quantile(0.9)
    up = pd.choose_latents(taught, "optimised", 6, goal, 1, pd.DesignOptions(latent_steps=30))
    assert predicted(up).median() > predicted(prior).median()
    mofs = [Mof.from_crystal(textbook_mof("IRMOF-1").crystal), None]
    for target, hit in ((3.0, True), (1000.0, False)):
        table = [dict(name="a", valid=True), dict(name="b", valid=True)]
        assert not pd.add_measured(table, mofs, replace(goal, target=target))
        assert [row["hit"] for row in table] == [hit, False] and table[0]["measured"] == 106


class Counting:
    "A measure that counts how often it was requested, and fails for small crystals."

    requested = 0

    def __call__(self, crystal):
        Counting.requested += 1
        return 1 / 0 if len(crystal) > 120 else float(len(crystal))


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_what_was_measured_is_not_measured_again(tmp_path, where):
    results = Results() if where == "memory" else FolderResults(tmp_path)
    crystals = [textbook_mof("IRMOF-1").crystal, textbook_mof("ZIF-8").crystal, None]
    names, Counting.requested = ["mof_00000", "mof_00001", "mof_00002"], 0
    if where == "folder":
        (tmp_path / "measured").mkdir()
    for turn in range(2):
        values, failures = pd.measure_all(crystals, Counting(), names, 1, results)
        assert values[0] == 106 and np.isnan(values[1:]).all() and [f.name for f in failures] == ["mof_00001"]
        assert Counting.requested == 2 + turn, "the one that failed is tried again"
    results.save("measured", "mof_00000", StageResult(dict(measured=7.0)))
    assert pd.measure_all(crystals, Counting(), names, 1, results)[0][0] == 7


def test_a_design_measures_by_the_goal(learned):
    taught, _ = learned
    how = PipelineOptions(
        sampling=MofSamplingOptions(steps=2, progress=False),
        assembly=AssemblyOptions(starts=4, generations=1),
        relax=False,
    )
    goal = pd.Goal("sweetness", 1.0, at_least=True, measure=lambda crystal: float(len(crystal)))
    made = pd.design(taught, goal, 2, options=pd.DesignOptions(strategies=("selected",), pipeline=how))
    assert [row["strategy"] for row in made.rows] == ["random", "random", "selected", "selected"]
    for row, crystal in zip(made.rows, made.crystals):
        assert row["hit"] == (crystal is not None) and (crystal is None or row["measured"] == len(crystal))
    assert "at least 1" in made.summary["selected"]["success"]["protocol"]
    pd.plot_design(made)


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--values", "{p}/table.csv"], "has no column working_capacity; it has name, price"),
        ([], "was not trained on 'working_capacity'"),
        (["--swing", "tsa"], "--swing must be mixture or pure, not 'tsa'"),
    ],
)
def test_a_design_for_a_capacity_says_what_is_missing(tmp_path, capsys, flags, message):
    (tmp_path / "table.csv").write_text("name,price\na,1\n")
    flags = [flag.format(p=tmp_path) for flag in flags]
    line = [
        "design",
        "--property",
        "working_capacity",
        "--target",
        1.4,
        "--at-least",
        *flags,
        "--out",
        tmp_path / "o",
    ]
    assert run(*line, "--device", "cpu") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o" / "table.csv").exists()
