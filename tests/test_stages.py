"""A noise time for each part (lessons 3.8 and 3.15), structure prediction, fine-tuning, the front door."""

import csv
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

from matgen_nb.commands.main import app, main
from matgen_nb.symmcd import staged_sampling as ss
from matgen_nb.symmcd.dataset import embedded, from_units, prepare_one
from matgen_nb.symmcd.model import SymmCD, fine_tuned_symmcd, SymmCDConfig, crystal_statistics
from matgen_nb.symmcd.requests import Conditions, plan
from matgen_nb.symmcd.reverse import Sample, SamplingOptions
from matgen_nb.symmcd.stages import STAGE_SHARES, STAGES, Times, sample_times, position_axes
from matgen_nb.symmetry.normalizers import generic_unit
from matgen_nb.symmcd.templates import good_turing_rate, unpack_templates
from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit
from matgen_nb.symmetry.normalizers import augment
from matgen_nb.symmetry.space_groups import SpaceGroup, wyckoff_tables
from matgen_nb.utils import MatgenError


@pytest.fixture(scope="module")
def data():
    units = [prepare_one(crystal) for _, crystal in embedded(copies=1, max_atoms=10)[:60]]
    return from_units(units)


@pytest.fixture(scope="module")
def shipped():
    return SymmCD.from_pretrained("symmcd-mp20-small").eval()


def untrained(data, **changes):
    torch.manual_seed(0)
    return SymmCD(
        SymmCDConfig.preset("tiny", width=32, layers=2, frequencies=4, images=4, **changes),
        crystal_statistics(data),
    ).eval()


def all_positions():
    "Group and index of all 1731 Wyckoff positions."
    group = torch.cat([torch.full((len(SpaceGroup(g).wyckoff_positions),), g) for g in range(1, 231)])
    index = torch.cat([torch.arange(len(SpaceGroup(g).wyckoff_positions)) for g in range(1, 231)])
    return group, index


def test_axes_of_every_position_are_those_of_its_first_member():
    group, index = all_positions()
    A, t, free = position_axes(group, index)
    assert len(A) == 1731
    T = wyckoff_tables()
    assert torch.equal(free.sum(1).long(), T.dof[T.wyckoff_offset[group] + index])
    u = torch.rand(1731, 3, generator=torch.Generator().manual_seed(0)) * free
    for i in range(0, 1731, 7):
        point = SpaceGroup(int(group[i])).wyckoff_positions[int(index[i])].points(u[i].tolist())[0]
        delta = (A[i] @ u[i] + t[i]).numpy() - point
        assert np.abs(delta - np.round(delta)).max() < 1e-5


def test_noise_keeps_to_the_position_and_is_periodic(data):
    "A whole turn of a free parameter is a whole number of cells, for all positions."
    group, index = all_positions()
    A, _, free = position_axes(group, index)
    assert torch.equal(A, A.round()), "integer axes: u has period one"
    model, batch = untrained(data), data.select(range(len(data)))
    rows = torch.full((len(batch.elements),), 800)
    x, score, axes, free = model.noisy_coordinates(batch, rows, torch.Generator().manual_seed(0))
    pinned = free.sum(1) == 0
    delta = x - batch.frac_coords
    assert (delta - delta.round())[pinned].abs().max() < 1e-6 and score[pinned].abs().max() == 0
    assert torch.isfinite(score).all() and x.min() >= 0 and x.max() < 1


@pytest.mark.parametrize("seed", range(3))
def test_times_of_the_stages(seed):
    times = sample_times(4000, 1000, torch.Generator().manual_seed(seed))
    for i, name in enumerate(STAGES):
        rows = times.stage == i
        assert abs(rows.float().mean() - STAGE_SHARES[i]) < 0.04
        assert times.sites[rows].eq(0).all() or name == "sites"
    assert times.elements[times.stage == STAGES.index("sites")].eq(1000).all()
    assert times.geometry[times.stage == STAGES.index("decoration")].max() < 300


def test_targets_do_not_depend_on_what_is_hidden(data):
    "In the stage of the elements the network sees the same, whatever the cell and the free coordinates are."
    model, batch = untrained(data), data.select(range(20))
    n = len(batch)
    zero, full = torch.zeros(n, dtype=torch.long), torch.full((n,), 1000)
    times = Times(full, torch.full((n,), 400), zero, torch.ones(n, dtype=torch.long))
    other = type(batch)(**{**vars(batch), "k": batch.k + 0.1})
    a, b = (model.noisy_in_stages(x, times, torch.Generator().manual_seed(1))[0] for x in (batch, other))
    assert torch.equal(a.k, b.k) and torch.equal(a.lattice, b.lattice) and torch.equal(a.elements, b.elements)


def test_predicted_structures_hold_every_group(data):
    "All 230 groups: positions and elements are those that were given, coordinates lie on them exactly."
    model = untrained(data)
    rng = np.random.default_rng(0)
    units = []
    for number in range(1, 231):
        positions = SpaceGroup(number).wyckoff_positions
        chosen = sorted({0, len(positions) // 2, len(positions) - 1})
        elements = [int(z) for z in rng.choice([3, 8, 14, 26], len(chosen))]
        units.append(generic_unit(number, chosen, elements, seed=number))
    found = model.predict(units, options=SamplingOptions(steps=2, min_contact=0.0, progress=False))
    for unit, sample in zip(units, found):
        assert sample.unit.space_group == unit.space_group
        assert sample.unit.wyckoff.tolist() == list(unit.wyckoff) and sample.unit.elements.tolist() == list(
            unit.elements
        )
        assert sample.row["projection_max"] < 1e-3


def test_prediction_uses_no_cell_and_no_coordinate(data):
    model, unit = untrained(data), data[3]
    moved = AsymmetricUnit(unit.space_group, unit.k + 0.05, unit.elements, unit.frac_coords, unit.wyckoff)
    options = SamplingOptions(steps=3, progress=False)
    a, b = (model.predict([u], seed=2, options=options)[0].crystal for u in (unit, moved))
    assert np.array_equal(a.lattice, b.lattice) and np.array_equal(a.frac_coords, b.frac_coords)
    twice = model.predict([unit], n=2, seed=2, options=options)
    assert not np.array_equal(twice[0].crystal.lattice, twice[1].crystal.lattice)
    assert [s.row["unit"] for s in twice] == [0, 0]


def test_prediction_rejects_what_it_cannot_do(data):
    common = SymmCD(
        SymmCDConfig.preset("common", width=16, layers=1, frequencies=4), crystal_statistics(data)
    ).eval()
    with pytest.raises(MatgenError, match="staged"):
        common.predict([data[0]])
    for wrong in (dict(units=[]), dict(units=[data[0]], n=0)):
        with pytest.raises(MatgenError, match="at least one"):
            untrained(data).predict(**wrong)


def test_letters_never_share_a_point(data):
    model = untrained(data)
    for number in (2, 47, 194, 221, 225):
        positions = SpaceGroup(number).wyckoff_positions
        for seed in range(20):
            rng = np.random.default_rng(seed)
            classes = [positions[i].site_class for i in rng.permutation(len(positions))[:4]]
            letters = ss.choose_letters({}, number, classes, rng)
            assert [positions[w].site_class for w in letters] == classes
            fixed = [w for w in letters if positions[w].dof == 0]
            assert len(fixed) == len(set(fixed))
    assert model.config.staged


def test_fine_tuning_starts_from_the_old_network(data):
    model = untrained(data)
    half = data.subset(range(0, len(data), 2))
    tuned = fine_tuned_symmcd(model, half)
    for a, b in zip(model.network.state_dict().values(), tuned.network.state_dict().values()):
        assert torch.equal(a, b)
    assert torch.equal(tuned.stat_k_mean, model.stat_k_mean) and torch.equal(
        tuned.stat_volumes, model.stat_volumes
    )
    assert tuned.stat_groups.sum() == len(half) and model.stat_groups.sum() == len(data)
    batch = data.select(range(len(data)))
    with torch.no_grad():
        a, b = (m.loss(batch, torch.Generator().manual_seed(0)) for m in (model, tuned))
    assert abs(a["k"] - b["k"]) < 1e-3 * a["k"] + 0.02, "the geometry does not hang on the counts"


def test_training_from_given_weights(data, tmp_path):
    "matgen train --init-from: the first loss is that of the old weights, not that of an untrained network."
    data.save(tmp_path / "data.safetensors")
    command = [
        "train",
        "symmcd",
        str(tmp_path / "data.safetensors"),
        "--out",
        str(tmp_path / "run"),
        "--init-from",
        "symmcd-mp20-small",
        "--steps",
        "2",
        "--batch-size",
        "32",
        "--device",
        "cpu",
        "--lr",
        "1e-6",
    ]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    tuned, shipped = (
        SymmCD.from_pretrained(tmp_path / "run" / "weights.safetensors"),
        SymmCD.from_pretrained("symmcd-mp20-small"),
    )
    fresh = SymmCD(shipped.config, crystal_statistics(data)).eval()
    batch = data.select(range(len(data)))
    with torch.no_grad():
        old, new, none = (
            m.loss(batch, torch.Generator().manual_seed(0))["k"].item() for m in (shipped, tuned, fresh)
        )
    assert abs(new - old) < 0.1 * abs(none - old) + 0.02, (old, new, none)


def test_predict_command(data, tmp_path, capsys):
    folder = tmp_path / "cifs"
    folder.mkdir()
    for i in range(3):
        data[i].to_crystal().to_cif(folder / f"{i}.cif")
    (folder / "broken.cif").write_text("data_x\n_cell_length_a 3\n")
    answer = CliRunner().invoke(
        app,
        [
            "predict",
            "symmcd",
            str(folder),
            "--out",
            str(tmp_path / "out"),
            "-n",
            "2",
            "--steps",
            "3",
            "--device",
            "cpu",
        ],
    )
    assert answer.exit_code == 0, answer.output
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 6
        and {row["given"] for row in rows} == {"0.cif", "1.cif", "2.cif"}
        and "broken.cif" in answer.output
    )
    assert len(list((tmp_path / "out" / "cif").glob("*.cif"))) == 6 and len(list(folder.iterdir())) == 4
    for wrong, text in (
        (["predict", "mofdiff", str(folder)], "no model"),
        (["predict", "symmcd", str(tmp_path / "none")], "no folder"),
        (["predict", "symmcd", str(folder), "--out", str(folder)], "--out"),
        (
            [
                "predict",
                "symmcd",
                str(folder),
                "--weights",
                "symmcd-mp20-common",
                "--out",
                str(tmp_path / "x"),
            ],
            "staged",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*wrong, "--device", "cpu"])
        assert stop.value.code == 2 and text in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 4 and not (tmp_path / "x").exists()


def test_front_door():
    "Every name is there, complete, and the package itself stays light."
    code = (
        "import sys, matgen_nb; assert not {'torch', 'numpy', 'pymatgen'} & set(sys.modules)\n"
        "for name in matgen_nb._FRONT_DOOR: getattr(matgen_nb, name)\n"
        "for name in ('sample', 'predict', 'loss'): assert callable(getattr(matgen_nb.SymmCD, name)), name\n"
        "assert callable(matgen_nb.MofDiff.sample) and all(map(callable, (matgen_nb.Crystal.from_cif, matgen_nb.Crystal.from_file)))\n"
        "assert set(matgen_nb._FRONT_DOOR) <= set(dir(matgen_nb))\n"
        "try: matgen_nb.Unknown\nexcept AttributeError as error: assert 'Unknown' in str(error)\nelse: raise SystemExit('accepted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-1500:]


def test_methods_of_later_lessons_name_their_import():
    code = (
        "from matgen_nb.symmcd.model import SymmCD\nmodel = SymmCD.from_pretrained('symmcd-mp20-small')\n"
        "for name in ('sample', 'predict'):\n"
        "    try: getattr(model, name)\n"
        "    except AttributeError as error: assert 'import matgen_nb.symmcd.' in str(error), error\n"
        "    else: raise SystemExit(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.mark.parametrize("staged", [True, False])
def test_augmentation_is_part_of_the_configuration(data, staged):
    "Off unless requested; on, the loss is that of the batch in other settings, in training alone."
    size = dict(width=16, layers=1, staged=staged)
    torch.manual_seed(0)
    off = SymmCD(SymmCDConfig(**size), crystal_statistics(data)).train()
    on = SymmCD(SymmCDConfig(**size, augment=True), crystal_statistics(data)).train()
    on.load_state_dict(off.state_dict())
    batch = data.select(torch.arange(len(data)).repeat(4))
    seeded = lambda: torch.Generator().manual_seed(5)
    generator = seeded()
    other = augment(batch, generator, permute_axes=False)
    assert not SymmCDConfig().augment and not torch.equal(other.frac_coords, batch.frac_coords)
    assert torch.equal(on.loss(batch, seeded())["loss"], off.loss(other, generator)["loss"])
    same = [m.eval().loss(batch, seeded())["loss"] for m in (on, off)]
    assert torch.equal(*same)


def test_templates_that_are_new_come_at_the_rate_at_which_they_are_due(shipped):
    "Counted up to the normaliser; without the second tries of `choose_sites` about half as many come."
    templates = unpack_templates(shipped.stat_templates)
    expected = np.average(
        [good_turing_rate(counts, group) for (group, _), counts in templates.items()],
        weights=[sum(counts.values()) for counts in templates.values()],
    )
    rng, generator = np.random.default_rng(3), torch.Generator().manual_seed(3)
    draw = plan(shipped, Conditions())
    requests = [draw(rng) for _ in range(1500)]
    assert 0.04 < np.mean([r.unseen for r in requests]) < 0.12
    open_ = [r for r in requests if r.unseen]
    with torch.no_grad():
        sited = ss.choose_sites(shipped, open_, generator, 6)
    new = [not ss.is_known_template(templates, r.space_group, r.positions) for r in sited]
    rate = sum(new) / len(requests)
    assert 0.5 * expected < rate < 1.5 * expected, f"{rate:.3f} new templates, {expected:.3f} are expected"


def test_a_candidate_at_the_minimum_distance_is_the_last_choice(shipped):
    "`likeliest` takes a crowded candidate only where all are crowded, however likely the model finds it."
    units = [s.unit for s in shipped.sample(4, seed=1, options=SamplingOptions(candidates=1, progress=False))]
    made = [
        [Sample(u.to_crystal(), u, dict(crowded=c), np.zeros(1)) for u, c in zip(units, crowded)]
        for crowded in ((True, False, True, False), (False, False, True, True))
    ]
    rounds = iter(made)
    losses = iter([np.zeros(4), np.ones(4)])
    model = SimpleNamespace(denoising_loss=lambda units, generator: next(losses))
    found = ss.likeliest(model, lambda: next(rounds), 2, torch.Generator())
    assert [s is made[k][i] for i, (s, k) in enumerate(zip(found, (1, 0, 0, 0)))] == [True] * 4
