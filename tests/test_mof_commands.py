"""The commands of the MOF half: help, errors, files, restarts; stages on textbook frameworks, tiny networks."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from matgen_nb.mofdiff.bonds import Mof, textbook_mofs
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.embedding import BlockEncoder, BlockConfig
from matgen_nb.mofdiff import evaluation
from matgen_nb.mofdiff.evaluation import framework_identity
from matgen_nb.mofdiff.model import MofDiff, MofDiffConfig, mof_statistics
from matgen_nb.mofdiff.net_first_sampling import framework_model
from matgen_nb.diffusion.pretrained import find_weights
from matgen_nb.commands import main as entry, mofs as mc, options
from matgen_nb.mofdiff import pictures, pipeline
from matgen_nb.mofdiff.assembly import AssemblyOptions
from matgen_nb.mofdiff.pipeline import PipelineOptions, StageResult
from matgen_nb.mofdiff.decoding import MofSample, NetChoice
from matgen_nb.mofdiff.sampling import MofSamplingOptions
from matgen_nb.scale import mof_runs, mof_training, runs
from matgen_nb.scale.mof_runs import FolderResults
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError

COMMANDS = (
    ["prepare", "mofs"],
    ["train", "blocks"],
    ["train", "mofdiff"],
    ["sample", "mofdiff"],
    ["evaluate", "mofs"],
    ["design"],
)
NAMES = ("IRMOF-1", "HKUST-1", "MIL-53")


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


@pytest.fixture(scope="module")
def data():
    return MofData.from_coarse(
        [
            CoarseMof.from_decomposition(
                decompose(textbook_mofs()[n]), n, dict(density=textbook_mofs()[n].crystal.density)
            )
            for n in NAMES
        ]
    )


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    encoder = BlockEncoder(BlockConfig.preset("tiny"))
    made = MofDiff(
        MofDiffConfig.preset("tiny"), mof_statistics(data.with_embeddings(encoder.encode(data.library)))
    ).eval()
    made.info = dict(identities=evaluation.known_identities(data))
    return made


@pytest.fixture
def weights(model, tmp_path):
    model.save_pretrained(tmp_path / "weights.safetensors", info=model.info)
    return tmp_path / "weights.safetensors"


@pytest.fixture
def cifs(tmp_path):
    (tmp_path / "cifs").mkdir()
    for n in NAMES:
        textbook_mofs()[n].crystal.to_cif(tmp_path / "cifs" / f"{n}.cif")
    return tmp_path / "cifs"


QUICK = PipelineOptions(assembly=AssemblyOptions(starts=16, generations=1), relax_limit=20.0)


def put_sampled(out, data):
    "A run whose stage one is the textbook itself: its beads."
    samples = pipeline.numbered([MofSample(data[i], dict(matched=True, reason="")) for i in range(len(data))])
    FolderResults(out).save_samples(samples)
    return [s.coarse for s in samples]


def put_stage(out, stage, name, row, mof=None):
    "A framework that a stage has finished."
    results = FolderResults(out)
    results.begin(stage, [name])
    results.save(stage, name, StageResult(row, mof))


def collect(out, relaxed=True, known=None):
    "The table and the summary of a run."
    results = FolderResults(out)
    rows = [s.row for s in results.all_samples()]
    return pipeline.evaluate_results(rows, results, relaxed, known)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command):
    shown = CliRunner().invoke(
        options.app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    )
    assert shown.exit_code == 0
    for word in ("--out", "Example", "matgen " + " ".join(command)):
        assert word in shown.output, word
    for word in ("--seed", "--device") if command[0] in ("train", "sample", "design") else ():
        assert word in shown.output, word


def test_errors_are_one_line_and_leave_nothing(tmp_path, weights, capsys):
    torch.manual_seed(0)
    nothing = tmp_path / "no.safetensors"
    for arguments in (
        ["prepare", "mofs", tmp_path / "no", "--out", tmp_path / "f"],
        ["train", "blocks", nothing, "--out", tmp_path / "o"],
        ["train", "blocks", nothing, "--preset", "huge", "--out", tmp_path / "o"],
        ["train", "mofdiff", nothing, "--blocks", weights, "--out", tmp_path / "o"],
        ["sample", "mofdiff", "--weights", nothing, "--out", tmp_path / "o"],
        ["sample", "mofdiff", "--weights", weights, "-n", 0, "--out", tmp_path / "o"],
        ["sample", "mofdiff", "--weights", weights, "--target", "big", "--out", tmp_path / "o"],
        ["evaluate", "mofs", tmp_path / "no", "--out", tmp_path / "o"],
        ["design", "--weights", weights, "--property", "beauty", "--target", 1, "--out", tmp_path / "o"],
    ):
        assert run(*arguments) == 2, arguments
        shown = capsys.readouterr().err
        assert shown.startswith("matgen: ") and shown.count("\n") == 1, shown
    assert not (tmp_path / "o").exists() and not (tmp_path / "f").exists()


def test_prepare_names_what_fails(tmp_path, cifs, capsys):
    (cifs / "broken.cif").write_text("data_nothing\n")
    assert run("prepare", "mofs", cifs, "--out", tmp_path / "m.safetensors", "--n-jobs", 1) == 0
    assert "3 of 4 frameworks" in capsys.readouterr().out
    assert "broken" in json.loads((tmp_path / "m.run.json").read_text())["failures"][0]
    assert run("prepare", "mofs", cifs, "--out", tmp_path / "m.safetensors") == 2


def test_several_sources_make_one_file(tmp_path, cifs, data, capsys):
    data.save(tmp_path / "first.safetensors")
    assert (
        run(
            "prepare",
            "mofs",
            tmp_path / "first.safetensors",
            "embedded",
            cifs,
            "--limit",
            2,
            "--n-jobs",
            1,
            "--out",
            tmp_path / "all.safetensors",
        )
        == 0
    )
    made = MofData.load(tmp_path / "all.safetensors")
    assert len(made) == 3 + 2 + 2 and made.names[:3] == list(NAMES) and made.names[5:] == sorted(NAMES)[:2]
    for i in (0, 1, 2):
        assert np.array_equal(made[i].frac_coords, data[i].frac_coords) and [
            b.identity for b in made[i].blocks
        ] == [b.identity for b in data[i].blocks]
    assert (
        set(made.property_names) == {"density", "void_fraction", "lcd"}
        and made.properties[5:].isnan().all()
        and "prepared before" in capsys.readouterr().out
    )
    assert (
        run(
            "prepare",
            "mofs",
            tmp_path / "first.safetensors",
            tmp_path / "none",
            "--out",
            tmp_path / "x.safetensors",
        )
        == 2
        and not (tmp_path / "x.safetensors").exists()
    )


def test_train_both_networks(tmp_path, data):
    data.save(tmp_path / "m.safetensors")
    assert (
        run(
            "train",
            "blocks",
            tmp_path / "m.safetensors",
            "--preset",
            "tiny",
            "--steps",
            3,
            "--device",
            "cpu",
            "--out",
            tmp_path / "b",
        )
        == 0
    )
    assert (
        run(
            "train",
            "mofdiff",
            tmp_path / "m.safetensors",
            "--blocks",
            tmp_path / "b" / "weights.safetensors",
            "--preset",
            "tiny",
            "--steps",
            3,
            "--device",
            "cpu",
            "--out",
            tmp_path / "d",
        )
        == 0
    )
    made = MofDiff.from_pretrained(tmp_path / "d" / "weights.safetensors")
    assert made.info["identities"] == evaluation.known_identities(data) and made.property_names == (
        "density",
    )
    assert (
        run(
            "train",
            "mofdiff",
            tmp_path / "m.safetensors",
            "--blocks",
            tmp_path / "d" / "weights.safetensors",
            "--device",
            "cpu",
            "--out",
            tmp_path / "e",
        )
        == 2
    )


def test_identities_from_beads_are_those_from_atoms(data):
    for i, name in enumerate(NAMES):
        assert framework_identity(decompose(textbook_mofs()[name])) in (
            evaluation.net_identity(data[i], s) for s in (1.05, 1.1)
        )


def test_stages_on_known_beads(tmp_path, data):
    named = put_sampled(tmp_path, data)
    names = [c.name for c in named]
    results = FolderResults(tmp_path)
    pipeline.assemble_stage(results.all_samples(), results, options=QUICK)
    pipeline.evaluate_stage(names, results)
    before = collect(tmp_path, False).table
    assert [r["stage"] for r in before] == ["assembled"] * 3 and all(r["valid"] for r in before)
    pipeline.relax_stage(names[1:2], results, QUICK)
    pipeline.evaluate_stage(names, results)  # what was relaxed is evaluated again, the others are not
    found = collect(tmp_path, known=evaluation.known_identities(data))
    after, summary = found.table, found.summary
    assert (
        [r["stage"] for r in after] == ["assembled", "relaxed", "assembled"]
        and after[1]["valid"]
        and not after[0]["valid"]
    )
    assert (
        not any(r["novel"] for r in after)
        and summary["vnu"]["value"] == 0
        and all(bool(r["reason"]) != r["valid"] for r in after if r["stage"] == "relaxed")
    )


def test_a_collapsed_framework_is_not_valid(tmp_path, data):
    named = put_sampled(tmp_path, data)
    for c, name, change in zip(named, NAMES, (-0.41, 0.02, -0.1)):
        mof = textbook_mofs()[name]
        put_stage(tmp_path, "assembled", c.name, dict(bond_success=1, clashes=0), mof)
        put_stage(
            tmp_path,
            "relaxed",
            c.name,
            dict(converged=True, volume_change=change, energy_per_atom=0.0, stopped="converged"),
            mof,
        )
    pipeline.evaluate_stage([c.name for c in named], FolderResults(tmp_path))
    found = collect(tmp_path)
    table, summary = found.table, found.summary
    assert (
        [r["valid"] for r in table] == [False, True, True]
        and table[0]["reason"] == "relaxation: the volume changed by -41%"
        and table[0]["checks_passed"]
    )
    assert summary["volume_kept"]["value"] == 2 / 3


def test_a_framework_that_hangs_or_fails_takes_no_neighbour_with_it(tmp_path, data, monkeypatch):
    import matgen_nb.mofdiff.assembly as assembly

    real = assembly.assemble

    def slow(part, *settings):
        if any(c.name == "mof_00001" for c in part):
            try:
                time.sleep(100)
            except TimeoutError as error:
                return [assembly.failed(c, str(error), True) for c in part]
        return real(part, *settings)

    monkeypatch.setattr(assembly, "assemble", slow)
    named = put_sampled(tmp_path, data)
    results = FolderResults(tmp_path)
    options = PipelineOptions(assembly=AssemblyOptions(starts=4, generations=1), assemble_limit=6.0)
    pipeline.assemble_stage(results.all_samples(), results, options=options)
    found = [results.load("assembled", c.name) for c in named]
    assert found[1].mof is None and "took longer" in found[1].row["reason"] and found[0].mof is not None
    pipeline.evaluate_stage([c.name for c in named], FolderResults(tmp_path))
    table = collect(tmp_path, False).table
    assert "took longer" in table[1]["reason"] and not table[1]["valid"] and len(table) == 3


def test_sampling_resumes_and_repeats(tmp_path, weights, capsys):
    ask = [
        "sample",
        "mofdiff",
        "--weights",
        weights,
        "-n",
        3,
        "--steps",
        3,
        "--no-relax",
        "--n-jobs",
        1,
        "--device",
        "cpu",
        "--out",
    ]
    assert run(*ask, tmp_path / "a") == 0 and run(*ask, tmp_path / "b") == 0
    table = [runs.read_table(tmp_path / x / "table.csv") for x in "ab"]
    assert len(table[0]) == 3 and all(r["valid"] is True or r["reason"] for r in table[0])
    assert [r["cp_error"] for r in table[0]] == [r["cp_error"] for r in table[1]]
    for name in ("request.json", "run.json", "summary.json", "gallery.html", "gallery.png"):
        assert (tmp_path / "a" / name).stat().st_size
    assert run(*ask, tmp_path / "a") == 2 and run(*ask, tmp_path / "a", "--resume", "--seed", 1) == 2
    assert "seed was 0 and is now 1" in capsys.readouterr().err
    (tmp_path / "a" / "assembled" / "mof_00002.json").unlink()  # as if it had been stopped there
    kept = sorted((tmp_path / "a" / "sampled").iterdir())
    kept += sorted((tmp_path / "a" / "evaluated").glob("mof_0000[01].json"))
    assert len(kept) >= 2
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert run(*ask, tmp_path / "a", "--resume") == 0
    again = runs.read_table(tmp_path / "a" / "table.csv")
    assert [r["cp_error"] for r in again] == [r["cp_error"] for r in table[0]]
    assert stamps == [path.stat().st_mtime_ns for path in kept]


def test_options_of_the_sampler_reach_it_and_belong_to_the_request(tmp_path, weights, monkeypatch, capsys):
    requested, sample = [], MofDiff.sample
    monkeypatch.setattr(MofDiff, "sample", lambda self, *a, **k: requested.append(k) or sample(self, *a, **k))
    choices = dict(eta=0.0, prior="normal")
    line = [
        "sample",
        "mofdiff",
        "--weights",
        weights,
        "-n",
        2,
        "--steps",
        3,
        "--starts",
        4,
        "--generations",
        1,
        "--chunk",
        1,
        "--no-relax",
        "--n-jobs",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "s",
        *(x for k, v in choices.items() for x in (f"--{k}", v)),
    ]
    assert run(*line) == 0 and len(requested) == 2
    assert all(getattr(requested[0]["options"], name) == value for name, value in choices.items())
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    assert request["chunk"] == 1 and request["sampling"] | choices == request["sampling"]
    assert request["assembly"] | dict(starts=4, generations=1) == request["assembly"]
    for option, value in (("--eta", 1), ("--prior", "learned"), ("--starts", 8), ("--chunk", 2)):
        changed = list(map(str, line))
        changed[changed.index(option) + 1] = str(value)
        capsys.readouterr()
        assert run(*changed, "--resume") == 2 and f"{option[2:]} was" in capsys.readouterr().err
    assert (
        run(
            "sample",
            "mofdiff",
            "--weights",
            weights,
            "--prior",
            "odd",
            "--device",
            "cpu",
            "--out",
            tmp_path / "t",
        )
        == 2
        and not (tmp_path / "t" / "request.json").exists()
    ), "the corrected call must find the folder empty"


def test_what_came_together_while_relaxing_is_not_valid(tmp_path, data):
    named = put_sampled(tmp_path, data)
    for c, name in zip(named, NAMES):
        mof, cart = textbook_mofs()[name], textbook_mofs()[name].crystal.cart_coords.copy()
        put_stage(tmp_path, "assembled", c.name, dict(bond_success=1, clashes=0), mof)
        if name == "IRMOF-1":  # a linker slips: all checks pass, the net is another
            d = decompose(mof)
            cart[next(a for b, a in zip(d.blocks, d.atoms) if not b.is_metal), 0] += 1.5
        after = Crystal(mof.crystal.lattice, mof.crystal.elements, cart @ np.linalg.inv(mof.crystal.lattice))
        put_stage(
            tmp_path,
            "relaxed",
            c.name,
            dict(converged=True, volume_change=0.0, energy_per_atom=0.0, stopped="converged"),
            Mof(after, mof.bonds, mof.images),
        )
    pipeline.evaluate_stage([c.name for c in named], FolderResults(tmp_path))
    found = collect(tmp_path, known=[])
    table, summary = found.table, found.summary
    assert (
        [r["valid"] for r in table] == [False, True, True]
        and all(r["valid_before"] for r in table)
        and [r["vnu"] for r in table] == [False, True, True]
    )
    assert (
        table[0]["checks_passed"]
        and table[0]["connectivity_preserved"] is False
        and table[0]["reason"].startswith("connectivity not preserved")
    )
    assert (
        summary["connectivity_preserved"]["value"] == summary["valid"]["value"] == 2 / 3
        and summary["valid_before"]["value"] == summary["vnu_before"]["value"] == 1
    )
    assert all(r["novel"] is None and r["vnu"] is None for r in collect(tmp_path).table), (
        "nothing to compare with"
    )
    found = collect(tmp_path, False)
    unrelaxed, before = found.table, found.summary
    assert (
        [r["stage"] for r in unrelaxed] == ["assembled"] * 3
        and before["valid"]["value"] == 1
        and "converged" not in before
        and "valid_before" not in before
    )
    # requested without relaxation after it was relaxed
    results = FolderResults(tmp_path)
    mof_runs.finish_run(results, results.all_samples(), found, dict(command="test"))
    assert [r["stage"] for r in runs.read_table(tmp_path / "table.csv")] == ["assembled"] * 3


def test_evaluating_a_run_knows_what_did_not_come_out(tmp_path, data):
    run_, named = tmp_path / "run", put_sampled(tmp_path / "run", data)
    for c, name, bonds, fine in zip(named, NAMES, (1, 0.9, 1), (True, True, False)):
        mof = textbook_mofs()[name]
        put_stage(run_, "assembled", c.name, dict(bond_success=bonds, clashes=0), mof)
        if bonds == 1:
            put_stage(run_, "relaxed", c.name, dict(converged=fine, volume_change=0.0), mof)
    assert run("evaluate", "mofs", run_, "--n-jobs", 1, "--out", tmp_path / "j") == 0
    rows, summary = (
        runs.read_table(tmp_path / "j" / "table.csv"),
        json.loads((tmp_path / "j" / "summary.json").read_text()),
    )
    assert [(r["assembled"], r["converged"], r["valid"]) for r in rows] == [
        (True, True, True),
        (False, False, False),
        (True, False, False),
    ]
    assert summary["valid"]["n"] == 3 and "novel" not in summary and not any(r.get("novel") for r in rows), (
        "no reference, no verdict on novelty"
    )


@pytest.mark.parametrize(("relaxed", "cell"), [(True, 1.1), (False, 1.0), (None, 1.1)])
def test_what_reads_a_run_takes_the_stage_of_its_record(tmp_path, data, capsys, relaxed, cell):
    "A run that was relaxed, and then finished without: its relaxed structures are there, and stale."
    run_, mof = tmp_path / "run", textbook_mofs()["IRMOF-1"]
    wide = replace(mof, crystal=replace(mof.crystal, lattice=1.1 * mof.crystal.lattice))
    first, second, _ = put_sampled(run_, data)
    put_stage(run_, "assembled", first.name, dict(bond_success=1, clashes=0), mof)
    put_stage(run_, "relaxed", first.name, dict(converged=True, volume_change=0.3), wide)
    put_stage(run_, "assembled", second.name, dict(bond_success=0.5, clashes=0), mof)
    if relaxed is not None:
        (run_ / "run.json").write_text(json.dumps(dict(command="test", relax=relaxed)))
    found = mof_runs.run_frameworks(run_)
    assert np.allclose(found.mofs[0].crystal.lattice, cell * mof.crystal.lattice)
    assert found.mofs[1:] == [None, None] and ("converged" in found.rows[0]) == (cell > 1)
    assert run("export", run_, "--format", "lemat", "--n-jobs", 1, "--out", tmp_path / "all.csv") == 0
    said = capsys.readouterr().out
    assert said.count("is a run: its relaxed") == 2 * (cell > 1) and said.count(
        "is a run: its assembled"
    ) == 2 * (cell == 1)
    (row,) = runs.read_table(tmp_path / "all.csv")
    written = Crystal.from_cif(row["cif_string"])
    assert row["material_id"] == first.name and np.isclose(written.volume, cell**3 * mof.crystal.volume)


def test_references(tmp_path, cifs, capsys):
    assert (
        mof_training.reference_identities("mofdiff-small")
        == MofDiff.from_pretrained("mofdiff-small").info["identities"]
    )
    with pytest.raises(MatgenError, match="no prepared file"):
        mof_training.reference_identities("mofdiff-tiny")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "salt.cif").write_text(
        Crystal(5.64 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]).to_cif()
    )
    with pytest.raises(MatgenError, match="none of the 1 structures"):
        mof_training.reference_identities(tmp_path / "bad", n_jobs=1)
    (cifs / "salt.cif").write_text((tmp_path / "bad" / "salt.cif").read_text())
    assert len(mof_training.reference_identities(cifs, n_jobs=1)) == 3 and "1 of 4" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_says_why_in_its_row(tmp_path, cifs):
    (cifs / "broken.cif").write_text("data_x\n_cell_length_a 10\n")
    assert run("evaluate", "mofs", cifs, "--n-jobs", 1, "--out", tmp_path / "j") == 0
    row = next(r for r in runs.read_table(tmp_path / "j" / "table.csv") if r["name"] == "broken")
    assert row["failure"] not in ("", "no crystal") and row["valid"] is False
    for name in NAMES:
        (cifs / f"{name}.cif").unlink()
    assert (
        run("evaluate", "mofs", cifs, "--n-jobs", 1, "--out", tmp_path / "k") == 2
        and not (tmp_path / "k").exists()
    )


def test_the_nets_of_beads_are_counted():
    double = textbook_mofs()["IRMOF-10"].crystal
    twice = Mof.from_crystal(
        Crystal(
            double.lattice,
            np.tile(double.elements, 2),
            np.concatenate([double.frac_coords, double.frac_coords + 0.25]),
        )
    )
    d = decompose(twice)
    assert d.nets == 2 and framework_identity(d) == evaluation.net_identity(
        CoarseMof.from_decomposition(d, "two")
    ) != framework_identity(decompose(textbook_mofs()["IRMOF-10"]))


@pytest.mark.parametrize(
    "options",
    [
        ("--starts", 0),
        ("--generations", 0),
        ("--samples-per-latent", 0),
        ("--assemble-limit", -1),
        ("--relax-limit", 0),
        ("--eta", 7),
        ("--seed", -1),
        ("--target", "density=nan"),
        ("--target", "density=inf"),
    ],
    ids=str,
)
def test_amounts_that_no_run_can_have(tmp_path, weights, options):
    assert (
        run(
            "sample",
            "mofdiff",
            "--weights",
            weights,
            "-n",
            1,
            "--steps",
            2,
            "--device",
            "cpu",
            "--out",
            tmp_path / "s",
            *options,
        )
        == 2
    )
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").rglob("*.json"))


def test_the_same_from_python(tmp_path, model):
    for make in (
        lambda: PipelineOptions(assembly=AssemblyOptions(starts=0)),
        lambda: PipelineOptions(assembly=AssemblyOptions(generations=0)),
        lambda: PipelineOptions(relax_limit=0.0),
        lambda: PipelineOptions(assemble_limit=-1.0),
        lambda: PipelineOptions(MofSamplingOptions(samples_per_latent=0)),
        lambda: PipelineOptions(num_blocks=0),
        lambda: mof_runs.MofRunOptions(chunk=0),
    ):
        with pytest.raises(MatgenError):
            make()
    for n, sampling in ((1, dict(eta=7.0)), (0, {})):
        with pytest.raises(MatgenError):
            how = MofSamplingOptions(**dict(steps=2, progress=False) | sampling)
            options = PipelineOptions(how)
            mof_runs.make_mofs(model, n, tmp_path / "s", options=options)
    assert not (tmp_path / "s" / "request.json").exists()


def test_in_memory_as_in_a_folder(tmp_path, model):
    how = MofSamplingOptions(steps=2, progress=False)
    options = PipelineOptions(assembly=AssemblyOptions(starts=4, generations=1), relax=False, sampling=how)
    here = pipeline.generate(model, 3, options=options)
    there = mof_runs.make_mofs(model, 3, tmp_path / "s", options=options)
    pairs = list(zip(here.table, there.table))
    assert len(pairs) == 3 and all(a["reason"] == b["reason"] for a, b in pairs)
    assert all(a["valid"] == b["valid"] and a["formula"] == b["formula"] for a, b in pairs)


def test_a_design_goes_on(tmp_path, weights):
    line = ["design", "--weights", weights, "--property", "density", "--target", 0.6, "-n", 2, "--n-jobs", 1]
    line += ["--strategies", "selected", "--device", "cpu", "--out", tmp_path / "d"]
    assert run(*line) == 0 and run(*line) == 2
    sampled = tmp_path / "d" / "selected" / "sampled" / "00000.csv"
    table, before = (tmp_path / "d" / "table.csv").read_text(), sampled.stat().st_mtime_ns
    (tmp_path / "d" / "table.csv").unlink()
    for record in list((tmp_path / "d" / "random" / "assembled").glob("*.json"))[:1]:
        record.unlink()
    assert run(*line, "--resume") == 0 and sampled.stat().st_mtime_ns == before
    plain = lambda text: [line.split(",")[:4] for line in text.splitlines()]
    assert plain((tmp_path / "d" / "table.csv").read_text()) == plain(table)
    assert run(*line, "--seed", 3, "--resume") == 2


def test_a_verdict_that_never_came_is_a_failure_and_no_crash(tmp_path, data):
    for n in (c.name for c in put_sampled(tmp_path, data)):
        put_stage(tmp_path, "assembled", n, dict(bond_success=1.0, clashes=0))
        put_stage(tmp_path, "evaluated", n, dict(reason="took longer than 120 s"))
    found = collect(tmp_path, False)
    table, summary = found.table, found.summary
    assert (
        len(table) == len(NAMES)
        and summary["valid"]["value"] == 0
        and all(r["assembled"] and r["reason"] == "evaluation: took longer than 120 s" for r in table)
    )


def test_evaluate_folder_against_weights(tmp_path, cifs, weights, capsys):
    assert run("evaluate", "mofs", cifs, "--reference", weights, "--n-jobs", 1, "--out", tmp_path / "j") == 0
    summary = json.loads((tmp_path / "j" / "summary.json").read_text())
    assert (
        summary["valid"]["value"] == 1
        and summary["novel"]["value"] == 0
        and (tmp_path / "j" / "summary.png").stat().st_size
    )
    rows = runs.read_table(tmp_path / "j" / "table.csv")
    assert {r["name"] for r in rows} == set(NAMES)


class Sampled:
    "A model that gives the textbook in the rounds named, and beads at coordinates that cannot meet in the others."

    def __init__(self, data, good):
        self.data, self.good, self.rounds = data, good, 0

    def sample(self, n, seed, **how):
        self.rounds += 1
        beads = [self.data[i % len(self.data)] for i in range(n)]
        if self.rounds not in self.good:
            beads = [
                replace(c, frac_coords=np.random.default_rng(i).random((len(c), 3)))
                for i, c in enumerate(beads)
            ]
        return [MofSample(c, {}) for c in beads]


def test_the_demo_samples_until_one_is_formed(tmp_path, data):
    quick = PipelineOptions(assembly=AssemblyOptions(starts=16, generations=1), relax_limit=2.0)
    for good, rounds in (({1}, 1), ({2}, 2)):
        model, results = Sampled(data, good), pipeline.Results()
        samples = pictures.sample_until_formed(model, 2, [0, 1, 2], results, quick)
        assert model.rounds == rounds and len(samples) == 2 * rounds
        assert [s.coarse.name for s in samples] == [f"mof_{i:05d}" for i in range(2 * rounds)]
        shown = pictures.best_framework(samples, results, options=quick)
        assert shown.verdict.name >= f"mof_{2 * (rounds - 1):05d}"
        assert shown.verdict.row["bond_success"] == 1 and shown.verdict.valid
    model = Sampled(data, ())
    poor = PipelineOptions(assembly=AssemblyOptions(starts=4, generations=1))
    demo = mof_runs.demo_mof(model, tmp_path / "mof", 1, options=poor, rounds=2)
    assert demo.text.startswith("none of 2") and not demo.row["valid"] and demo.row["formed"] == 0, (
        "no pretence"
    )
    assert model.rounds == 2
    files = {p.name for p in (tmp_path / "mof").iterdir() if p.name[0] != "."}
    assert files == {"mof.cif", "table.csv", "framework.png", "beads_and_atoms.png"}
    assert len(runs.read_table(tmp_path / "mof" / "table.csv")) == 2


def test_a_run_in_which_nothing_closes_says_what_to_try(tmp_path):
    row = dict(assembled=False, reason="connection points do not match")
    from matgen_nb.mofdiff.sampling import NetOptions

    reported = mof_runs.advice(
        [row, row, dict(row, reason="x")], "run/weights.safetensors", NetOptions(net_share=0.0), 2
    )
    for words in (
        "none of the 3",
        "2 x connection points",
        "--net-share 1",
        "--samples-per-latent 16",
        "--weights mofdiff-small",
    ):
        assert words in reported, words
    assert "--weights" not in mof_runs.advice(
        [row], "mofdiff-small"
    ) and "--net-share" not in mof_runs.advice([row])
    assert mof_runs.advice([row, dict(assembled=True)]) == ""


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_shows_every_atom_once_with_all_its_bonds(name):
    mof = textbook_mofs()[name]
    calm = pictures.calm_cell(mof)
    frac = calm.crystal.frac_coords
    assert ((frac >= 0) & (frac < 1)).all()
    assert (calm.images != 0).any(1).sum() <= (mof.images != 0).any(1).sum()
    cell = pictures.unit_cell(calm)
    length = np.linalg.norm(cell.positions[cell.bonds[:, 0]] - cell.positions[cell.bonds[:, 1]], axis=1)
    np.testing.assert_allclose(cell.positions[: len(mof)], calm.crystal.cart_coords, atol=1e-9)
    assert length.max() < 3.0 and (cell.bonds[:, 0] < len(mof)).all()
    inside = cell.bonds[cell.bonds < len(mof)]
    assert (
        np.bincount(inside, minlength=len(mof)) == np.bincount(mof.bonds.ravel(), minlength=len(mof))
    ).all()


def test_a_stage_that_was_cut_off_is_in_the_record():
    results = pipeline.Results()
    results.save("relaxed", "a", pipeline.StageResult(dict(stopped="time limit")))
    results.save(
        "evaluated", "b", pipeline.StageResult(dict(assembled=dict(failure="pores: took longer than 1 s")))
    )
    reported = mof_runs.cut_off_stages(results, ["a", "b", "c"])
    assert reported == [
        "1 of 3 were not relaxed to the end (--relax-limit)",
        "1 of 3 were not evaluated to the end (its time limit)",
    ]


def test_blocks_are_drawn_whole():
    for name in NAMES:
        mof, d = textbook_mofs()[name], decompose(textbook_mofs()[name])
        owner = np.zeros(len(mof), dtype=int)
        for k, atoms in enumerate(d.atoms):
            owner[atoms] = k
        drawing = pictures.whole_blocks(mof, owner, d.frac_coords)
        cart, elements, bonds = drawing.positions, drawing.elements, drawing.bonds
        lengths = np.linalg.norm(cart[bonds[:, 0]] - cart[bonds[:, 1]], axis=1)
        assert len(cart) == len(elements) > len(mof) and lengths.max() < 3.0
        for k, atoms in enumerate(d.atoms):  # every block of the home cell, beside its bead
            home = d.frac_coords[k] @ d.lattice + d.blocks[k].cart_coords
            far = np.linalg.norm(home[:, None] - cart, axis=-1).min(1)
            assert far.max() < 1e-6 or not d.blocks[k].is_metal


def test_target_is_parsed():
    assert mc.parse_target("density=0.5") == {"density": 0.5} and mc.parse_target(None) is None
    with pytest.raises(MatgenError, match="name=value"):
        mc.parse_target("0.5")


@pytest.mark.parametrize("name", ["mofdiff-small", "mofdiff-core-mof", "netfirst-small", "blocks-small"])
def test_shipped_weights(name, data):
    path = find_weights(name)
    assert path.stat().st_size < 5e6 and path.with_suffix(".md").read_text().startswith(f"# {name}")
    if name == "blocks-small":
        assert BlockEncoder.from_pretrained(name).encode(data.library).isfinite().all()
    else:
        model = framework_model(name)
        found = model.sample(3, seed=0, options=MofSamplingOptions(steps=10, progress=False))
        assert len(model.info["identities"]) > 500 and all(
            isinstance(s.coarse, CoarseMof) and s.row["matched"] for s in found
        )


def test_what_was_typed_reaches_the_dataclass_it_belongs_to():
    "Each option of `sample mofdiff` and `design` ends in the dataclass that has it, and nowhere else."
    given = (
        dict(eta=0.5, samples_per_latent=2),
        dict(net_share=0.5),
        dict(starts=4),
        dict(relax=False, num_blocks=3),
    )
    made = mc.pipeline_options(*given)
    assert made == PipelineOptions(
        replace(
            PipelineOptions().sampling,
            eta=0.5,
            samples_per_latent=2,
            progress=True,
            nets=mc.mof_nets()(net_share=0.5),
        ),
        num_blocks=3,
        assembly=AssemblyOptions(starts=4),
        relax=False,
    )
    assert mc.pipeline_options({}, {}, {}, {}).assembly == AssemblyOptions()
    plain = mc.options_of_design(
        None, dict(strategies=" selected ,,optimised"), dict(samples_per_latent=3), dict(relax=True)
    )
    assert plain.strategies == ("selected", "optimised") and plain.pipeline.relax
    assert (
        plain.pipeline.sampling.samples_per_latent == 3
        and mc.options_of_design(None, {}, {}, {}).pipeline.relax is False
    )
    with pytest.raises(MatgenError):
        mc.options_of_design(None, dict(strategies="lucky"), {}, {})


def test_the_second_arrangement_is_built_where_the_first_does_not_close(tmp_path, data):
    rng = np.random.default_rng(0)
    row = lambda c: dict(matched=True, reason="", net="pcu", num_blocks=len(c))
    named = pipeline.numbered([MofSample(data[i], row(data[i])) for i in range(len(data))])
    first = named[0]
    broken = replace(first.coarse, frac_coords=rng.random((len(first.coarse), 3)))
    nets = [NetChoice("new", "unnamed"), NetChoice("training set", "pcu")]
    named[0] = MofSample(broken, first.row | nets[0].columns(), [first.coarse], nets)
    results = FolderResults(tmp_path)
    results.save_samples(named)
    samples = results.all_samples()
    assert [len(s.others) for s in samples] == [1, 0, 0] and [s.nets for s in samples] == [nets, [], []]
    assert all(isinstance(one, NetChoice) for one in samples[0].nets)
    options = PipelineOptions(assembly=AssemblyOptions(starts=8, generations=1), relax=False)
    pipeline.assemble_stage(samples[:2], results, options=options)
    rows = [results.load("assembled", s.coarse.name).row for s in samples[:2]]
    assert [r["candidate"] for r in rows] == [1, 0] and all(r["assembled"] for r in rows)
    found = collect(tmp_path, False)
    table = found.table
    assert (table[0]["net"], table[0]["net_source"]) == ("pcu", "training set")
    mof_runs.finish_run(results, samples, found, dict(command="test"))
    assert (
        table[0]["candidate"] == 1
        and table[0]["sampled_blocks"] == len(named[0].coarse)
        and table[0]["volume"] > 0
    )
    funnel = runs.read_table(tmp_path / "funnel.csv")
    assert (
        {r["stage"] for r in funnel} >= {"assembled", "clash_free", "valid"}
        and funnel[0]["blocks"] == "all"
        and float(funnel[0]["value"]) > 0.6
    )


def test_a_run_on_nets(tmp_path, data, model):
    "Weights that carry nets: samples on them, columns and funnel; without a share of them, as before."
    from matgen_nb.mofdiff.net_fitting import net_table
    from matgen_nb.mofdiff.sampling import NetOptions

    torch.manual_seed(0)
    encoder = BlockEncoder(BlockConfig.preset("tiny"))

    def made(out, resume=False, **nets):
        options = PipelineOptions(
            assembly=AssemblyOptions(starts=4, generations=1),
            relax=False,
            sampling=MofSamplingOptions(steps=2, progress=False, **nets),
        )
        return mof_runs.make_mofs(model, 3, out, options=options, run=mof_runs.MofRunOptions(resume=resume))

    try:
        model.nets = net_table(data.with_embeddings(encoder.encode(data.library).cpu()))
        found = made(tmp_path / "on")
        table, summary = found.table, found.summary
        off = made(tmp_path / "off", nets=NetOptions(net_share=0)).table
    finally:
        model.nets = None
    plain = made(tmp_path / "plain").table
    assert all(r["net_source"] in ("training set", "model") for r in table) and "strict_vnu" in summary
    assert not any(r["strict_vnu"] for r in table if r["net_source"] == "training set"), (
        "a net of the training set is not new"
    )
    assert json.loads((tmp_path / "on" / "request.json").read_text())["sampling"]["nets"]["net_share"] == 1
    without = json.loads((tmp_path / "off" / "request.json").read_text())
    assert without["sampling"]["nets"]["net_share"] == 0
    for a, b in zip(off, plain):
        assert {k: v for k, v in a.items() if k not in ("net_novel", "strict_vnu")} == b and "net" not in a
    with pytest.raises(MatgenError):
        made(tmp_path / "on", resume=True, nets=NetOptions(net_share=0))


def test_training_further_begins_where_the_weights_were(tmp_path, monkeypatch):
    "--init-from for blocks and mofdiff: the first loss is that of the old weights, on the same batch and noise."
    from matgen_nb.mofdiff.data import MofData
    from matgen_nb.mofdiff.embedding import BlockEncoder
    from matgen_nb.mofdiff.model import MofDiff
    from matgen_nb.mofdiff.network import toy_mofs
    from matgen_nb.scale.crystal_runs import FitOptions
    from matgen_nb.scale.optimization import TrainConfig
    from matgen_nb.scale.training import Trainer

    firsts, step = [], Trainer._train_step

    def first_loss(trainer):
        state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        loss = trainer.model.loss(*trainer._loss_arguments())["loss"]
        firsts.extend([float(loss.detach()), state])
        step(trainer)

    monkeypatch.setattr(Trainer, "_train_step", first_loss)
    config = TrainConfig(steps=1, batch_size=8, device="cpu", progress=False)
    data = MofData.from_coarse(toy_mofs(24))
    old = BlockEncoder.from_pretrained("blocks-small")
    mof_training.fit_blocks(data, "tiny", config, tmp_path / "blocks", "blocks-small")
    started = firsts[1]
    assert all(torch.equal(value, started[name]) for name, value in old.state_dict().items())
    mof_training.fit_blocks(data, "tiny", config, tmp_path / "fresh")
    assert firsts[2] > firsts[0], "trained weights are better from the first step"

    weights = tmp_path / "first" / "weights.safetensors"
    mof_training.fit_mofdiff(data, old, "tiny", config, tmp_path / "first")
    before = MofDiff.from_pretrained(weights)
    firsts.clear()
    mof_training.fit_mofdiff(data, old, "full", config, tmp_path / "second", str(weights), FitOptions())
    assert all(torch.equal(value, firsts[1][name]) for name, value in before.state_dict().items())
    torch.manual_seed(0)
    embedded = data.with_embeddings(old.encode(data.library).cpu())
    again = Trainer(before, embedded, config, tmp_path / "third")
    again.fit()
    assert firsts[0] == firsts[2], "the loss begins where it was"
