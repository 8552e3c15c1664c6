"""Bad input of the MOF half, through the commands: a clear reason each, the rest of the batch goes on, nothing half-written."""

import json
import re
import time

import numpy as np
import pytest
import torch

from matgen_nb.mofdiff.bonds import Mof, textbook_crystal, textbook_mof
from matgen_nb.mofdiff.building_blocks import BuildingBlock
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.preparing import MofPrepareOptions, prepare_mofs
from matgen_nb.mofdiff.embedding import BlockConfig, BlockEncoder
from matgen_nb.mofdiff.model import Library, MofDiff, MofDiffConfig, mof_statistics
from matgen_nb.commands import main as entry
from matgen_nb.mofdiff import pipeline
from matgen_nb.mofdiff.assembly import AssemblyOptions
from matgen_nb.mofdiff.pipeline import PipelineOptions, StageResult
from matgen_nb.mofdiff.decoding import MofSample
from matgen_nb.scale.mof_runs import FolderResults
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


def no_leftovers(folder):
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]


def with_atoms(crystal, elements, cart):
    return Crystal(
        crystal.lattice,
        [*crystal.elements, *elements],
        np.concatenate([crystal.frac_coords, np.asarray(cart) @ np.linalg.inv(crystal.lattice)]),
    )


def three_thousand():
    "HKUST-1 in a cell of 3,120 atoms, shaken so that no smaller cell is left."
    crystal, rng = textbook_mof("HKUST-1").crystal, np.random.default_rng(0)
    shifts = np.stack(np.meshgrid(range(4), range(5), [0], indexing="ij"), -1).reshape(-1, 1, 3)
    size = np.array([4, 5, 1])
    frac = ((crystal.frac_coords + shifts) / size).reshape(-1, 3)
    lattice = crystal.lattice * size[:, None]
    return Crystal(
        lattice,
        np.tile(crystal.elements, 20),
        frac + rng.normal(0, 0.05, frac.shape) @ np.linalg.inv(lattice),
    )


def bad_cifs():
    "name -> (CIF text, a word of the reason); the reason None: it is taken, with a note."
    mof, double = textbook_mof("HKUST-1").crystal, textbook_mof("IRMOF-10").crystal
    water = [[0.5, 0.5, 0.5] @ mof.lattice + x for x in np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])]
    metal = textbook_mof("MIL-53").crystal
    return {
        "no-metal": (
            Crystal(np.eye(3) * 3.57, [6] * 2, [[0, 0, 0], [0.25, 0.25, 0.25]]).to_cif(),
            "no metal",
        ),
        "no-carbon": (
            Crystal(5.64 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]).to_cif(),
            "no carbon",
        ),
        "disorder": (re.sub(r"(?m)^(C C.*) 1$", r"\1 0.5", metal.to_cif()), "disordered"),
        "overlap": (with_atoms(mof, [6], [mof.cart_coords[0] + 0.3]).to_cif(), "overlap"),
        "torn": (mof.to_cif()[:400], "no atoms"),
        "molecule": (
            Crystal(
                12 * np.eye(3),
                [30, 6, 8, 8, 1],
                np.array([[0, 0, 0], [2.9, 0, 0], [2.25, 1.08, 0], [2.25, -1.08, 0], [4, 0, 0]]) / 12,
            ).to_cif(),
            "not a framework",
        ),
        "three-thousand": (three_thousand().to_cif(), "280 blocks in the primitive cell, the limit is 20"),
        "solvent": (with_atoms(mof, [8, 1, 1], water).to_cif(), None),
        "two-nets": (
            Crystal(
                double.lattice,
                np.tile(double.elements, 2),
                np.concatenate([double.frac_coords, double.frac_coords + 0.25]),
            ).to_cif(),
            None,
        ),
        "rod": (textbook_crystal("MIL-53").to_cif(), None),
        "good": (textbook_crystal("IRMOF-1").to_cif(), None),
    }


def test_preparing_names_every_bad_file_and_takes_the_rest(tmp_path, capsys):
    (tmp_path / "cifs").mkdir()
    bad = bad_cifs()
    for name, (text, _) in bad.items():
        (tmp_path / "cifs" / f"{name}.cif").write_text(text)
    start = time.process_time()
    assert run("prepare", "mofs", tmp_path / "cifs", "--n-jobs", 1, "--out", tmp_path / "m.safetensors") == 0
    assert time.process_time() - start < 60
    data, record = MofData.load(tmp_path / "m.safetensors"), json.loads((tmp_path / "m.run.json").read_text())
    assert sorted(data.names) == sorted(n for n, (_, reason) in bad.items() if reason is None)
    reasons = dict(text.split(": ", 1) for text in record["failures"])
    assert reasons.keys() == {n for n, (_, reason) in bad.items() if reason is not None}
    for name, reason in reasons.items():
        assert reason and bad[name][1] in reason, (name, reason)
    for name, word in (("solvent", "H2O"), ("two-nets", "2 interpenetrating nets"), ("rod", "rod")):
        assert any(word in line for line in record["notes"][name]), name
    assert "4 of 11 frameworks" in capsys.readouterr().out
    no_leftovers(tmp_path)


def test_nothing_but_bad_files_leaves_nothing(tmp_path):
    (tmp_path / "cifs").mkdir()
    for name in ("no-metal", "torn"):
        (tmp_path / "cifs" / f"{name}.cif").write_text(bad_cifs()[name][0])
    assert run("prepare", "mofs", tmp_path / "cifs", "--n-jobs", 1, "--out", tmp_path / "m.safetensors") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["cifs"]


@pytest.fixture(scope="module")
def data():
    return MofData.from_coarse(
        [
            CoarseMof.from_decomposition(decompose(textbook_mof(n)), n)
            for n in ("IRMOF-1", "HKUST-1", "MIL-53")
        ]
    )


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    encoder = BlockEncoder(BlockConfig.preset("tiny"))
    return MofDiff(
        MofDiffConfig.preset("tiny"), mof_statistics(data.with_embeddings(encoder.encode(data.library)))
    ).eval(), encoder


@pytest.mark.parametrize("points", [0, 1])
def test_a_block_that_can_hold_nothing(tmp_path, data, points):
    "In assembly: a row with the reason; its neighbours are assembled."
    from matgen_nb.mofdiff.assembly import assemble

    good = data[2]
    b = good.blocks[-1]
    stump = BuildingBlock(
        b.elements,
        b.cart_coords,
        b.bonds,
        b.connection_points[:points],
        b.connection_atoms[:points],
        b.is_metal,
    )
    lame = CoarseMof(good.lattice, good.frac_coords, [*good.blocks[:-1], stump], "lame")
    first, second = assemble([lame, good], options=AssemblyOptions(starts=16, generations=1))
    assert (
        first.crystal is None
        and f"has {points} connection point" in first.row["reason"]
        and second.row["bond_success"] == 1
    )
    options = PipelineOptions(assembly=AssemblyOptions(starts=16, generations=1))
    results = FolderResults(tmp_path)
    samples = pipeline.numbered([MofSample(c, dict(matched=True)) for c in (lame, good)])
    pipeline.assemble_stage(samples, results, options=options)
    row, none = results.load("assembled", "mof_00000").row, results.load("assembled", "mof_00000").mof
    built = results.load("assembled", "mof_00001").mof
    assert none is None and "connection point" in row["reason"] and built is not None
    no_leftovers(tmp_path)


def test_weights_whose_library_has_no_metal_block(tmp_path, model, data, capsys):
    mofdiff, _ = model
    rows = [i for i, b in enumerate(mofdiff.library.blocks) if not b.is_metal]
    lame = MofDiff(
        mofdiff.config,
        mof_statistics(
            data.with_embeddings(torch.zeros(len(data.library), mofdiff.library.embeddings.shape[1]))
        ),
    )
    lame.library = Library([mofdiff.library.blocks[i] for i in rows], mofdiff.library.embeddings[rows])
    lame.save_pretrained(tmp_path / "w.safetensors")
    assert (
        run(
            "sample",
            "mofdiff",
            "--weights",
            tmp_path / "w.safetensors",
            "-n",
            2,
            "--steps",
            2,
            "--device",
            "cpu",
            "--out",
            tmp_path / "o",
        )
        == 2
    )
    assert (
        "no metal block" in capsys.readouterr().err
        and not list((tmp_path / "o").rglob("*.csv"))
        and not list((tmp_path / "o").rglob("*.cif"))
    )


def test_weights_of_another_model_everywhere(tmp_path, model, data, capsys):
    mofdiff, encoder = model
    mofdiff.save_pretrained(tmp_path / "mofdiff.safetensors")
    encoder.save_pretrained(tmp_path / "blocks.safetensors")
    data.save(tmp_path / "data.safetensors")
    for line in (
        ["sample", "mofdiff", "--weights", tmp_path / "blocks.safetensors"],
        ["sample", "mofdiff", "--weights", tmp_path / "data.safetensors"],
        ["sample", "mofdiff", "--weights", "symmcd-mp20-small"],
        ["sample", "symmcd", "--weights", "mofdiff-small"],
        ["train", "mofdiff", tmp_path / "data.safetensors", "--blocks", tmp_path / "mofdiff.safetensors"],
        ["train", "blocks", tmp_path / "mofdiff.safetensors"],
        ["design", "--weights", tmp_path / "blocks.safetensors", "--property", "density", "--target", 1],
    ):
        assert run(*line, "--device", "cpu", "--out", tmp_path / "o") == 2, line
        shown = capsys.readouterr().err
        assert shown.startswith("matgen: ") and shown.count("\n") == 1 and len(shown) > 40, shown
    assert not (tmp_path / "o").exists()


def test_relaxations_that_blow_up_or_hang_take_no_neighbour_with_them(tmp_path, monkeypatch):
    mof = textbook_mof("MIL-53")
    crushed = Mof(
        Crystal(mof.crystal.lattice * 0.5, mof.crystal.elements, mof.crystal.frac_coords),
        mof.bonds,
        mof.images,
    )
    real = pipeline.relax
    monkeypatch.setattr(
        pipeline, "relax", lambda m, how, name: time.sleep(600) if name == "hangs" else real(m, how, name)
    )
    results = FolderResults(tmp_path)
    for name, m in (("crushed", crushed), ("hangs", mof), ("good", mof)):
        results.begin("assembled", [name])
        results.save("assembled", name, StageResult(dict(bond_success=1), m))
    # seconds for one, instead of 2 x limit + 60
    monkeypatch.setattr(pipeline, "run_stage", lambda *a, _run=pipeline.run_stage: _run(*a[:-1], 40))
    pipeline.relax_stage(["crushed", "hangs", "good"], results, PipelineOptions(relax_limit=35.0))
    rows = {n: results.load("relaxed", n).row for n in ("crushed", "hangs", "good")}
    assert (
        "took longer than 40 s" in rows["hangs"]["reason"]
        and not rows["crushed"]["converged"]
        and rows["crushed"]["reason"]
    )
    assert rows["good"]["stopped"] == "converged" and not rows["good"]["reason"]
    no_leftovers(tmp_path)


def test_a_hanging_decomposition_is_named(tmp_path, monkeypatch):
    import matgen_nb.mofdiff.coarse_graining as coarse

    real = coarse.decompose

    def slow(mof):
        if mof.name == "slow":
            time.sleep(30)
        return real(mof)

    monkeypatch.setattr(coarse, "decompose", slow)
    items = [(n, textbook_crystal("MIL-53")) for n in ("slow", "quick")]
    data, report = prepare_mofs(
        items, tmp_path / "m.safetensors", n_jobs=1, progress=None, options=MofPrepareOptions(timeout=3)
    )
    assert data.names == ["quick"] and "took longer than 3 s" in report.failures[0].reason
    with pytest.raises(MatgenError, match="none of the 1"):
        prepare_mofs(
            items[:1],
            tmp_path / "n.safetensors",
            n_jobs=1,
            progress=None,
            options=MofPrepareOptions(timeout=1),
        )
    assert not (tmp_path / "n.safetensors").exists()


def test_labels_from_our_own_evaluation_go_to_the_right_frameworks(tmp_path, capsys):
    "evaluate mofs -> a file goes -> prepare mofs --properties: by name; what does not fit is said and in the record."
    (tmp_path / "d" / "new").mkdir(parents=True)
    where = {"IRMOF-1": "IRMOF-1.cif", "MIL-53": "new/MIL-53.cif", "MOF-74": "MOF-74.cif"}
    for name, file in where.items():
        textbook_crystal(name).to_cif(tmp_path / "d" / file)
    assert run("evaluate", "mofs", tmp_path / "d", "--n-jobs", 1, "--out", tmp_path / "evaluated") == 0
    (tmp_path / "d" / where.pop("IRMOF-1")).unlink()
    table = tmp_path / "evaluated" / "table.csv"
    table.write_text(table.read_text().replace(",MOF-74,", ",mof-74,"))
    capsys.readouterr()
    assert (
        run(
            "prepare",
            "mofs",
            tmp_path / "d",
            "--properties",
            table,
            "--n-jobs",
            1,
            "--out",
            tmp_path / "m.safetensors",
        )
        == 0
    )
    data, reported = MofData.load(tmp_path / "m.safetensors"), capsys.readouterr().out
    assert sorted(data.names) == sorted(where)
    for i, name in enumerate(data.names):
        assert data[i].properties["density"] == pytest.approx(textbook_mof(name).crystal.density, rel=1e-4), (
            name
        )
    notes = json.loads((tmp_path / "m.run.json").read_text())["notes"]["table.csv"]
    for line in (
        "1 row(s) name no file: IRMOF-1",
        "1 row(s) name a file in other case and were taken: mof-74 for MOF-74",
    ):
        assert line in notes and line in reported
