"""Shards of frameworks and of preparing: two workers, one killed; the merge is what was not cut, and nothing else gets through."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from matgen_nb.scale.runs import RunOptions
from matgen_nb.scale.records import read_json, read_table
from matgen_nb.scale.runs import RunChunk
from matgen_nb.scale.shard_kinds import (
    FRAMEWORKS,
    PREPARED,
    crystal_work,
    framework_work,
    merge_any,
    merge_frameworks,
    merge_prepared,
    prepare_shard,
)
from matgen_nb.scale.shards import SEAL, Shard, read_shard
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError

PREPARING = """
import sys, time
from dataclasses import replace
from matgen_nb.scale.runs import RunOptions
from matgen_nb.scale.shard_kinds import {kind}_work, prepare_shard
from matgen_nb.scale.shards import Shard

work = {kind}_work({source!r}, chunk={chunk})


def slowly(first, n, n_jobs):
    if first >= {quick}:
        time.sleep({pause})
    return work.prepare(first, n, n_jobs)


prepare_shard(replace(work, prepare=slowly), {out!r}, Shard.parse({shard!r}), RunOptions(resume=True))
"""
SAMPLING = """
import sys, time
from types import SimpleNamespace
import numpy as np
from matgen_nb.mofdiff.assembly import AssemblyOptions
from matgen_nb.mofdiff.bonds import textbook_mofs
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.decoding import MofSample
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.mofdiff.pipeline import PipelineOptions
from matgen_nb.scale.mof_runs import MofRunOptions
from matgen_nb.scale.shard_kinds import sample_framework_shard
from matgen_nb.scale.shards import Shard

mofs = textbook_mofs()
beads = [CoarseMof.from_decomposition(decompose(mofs[n]), n) for n in ("IRMOF-1", "HKUST-1", "MIL-53")]


class Textbook:
    "Samples frameworks of textbooks, the same ones again and again; the training set has MIL-53."
    device = SimpleNamespace(type="cpu")
    nets = None
    info = dict(identities={known!r})

    def sample(self, n, seed, **how):
        time.sleep({pause})
        chosen = np.random.default_rng(seed).integers(3, size=n)
        return [MofSample(beads[i], dict(matched=True, reason="")) for i in chosen]


options = PipelineOptions(assembly=AssemblyOptions(starts=8, generations=1), relax=False)
run = MofRunOptions(chunk=1, resume=True, weights_hash={weights!r})
sample_framework_shard(Textbook(), {n}, {out!r}, Shard.parse({shard!r}), {seed}, options, run)
"""


def start(code, **values):
    process = [sys.executable, "-c", code.format(**values)]
    return subprocess.Popen(process, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-2000:]


def kill_after(process, folder, pattern):
    "SIGKILL as soon as a file of the pattern is there."
    end = time.monotonic() + 200
    while not list(folder.glob(pattern)) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def write_cifs(folder, n=7):
    folder.mkdir(parents=True)
    for i in range(n):
        cube = Crystal((4 + i / 20) * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
        cube.to_cif(folder / f"{i:02d}.cif")
    (folder / "03a.cif").write_text("data_nothing\n")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    "Crystals prepared by two workers at once, the second killed after its first chunk and started again."
    folder = tmp_path_factory.mktemp("prepared")
    write_cifs(folder / "cifs")
    given = dict(source=str(folder / "cifs"), chunk=2, kind="crystal")
    first = start(PREPARING, **given, out=str(folder / "parts" / "1"), shard="1/2", pause=0, quick=0)
    second = start(PREPARING, **given, out=str(folder / "parts" / "2"), shard="2/2", pause=60, quick=4)
    kill_after(second, folder / "parts" / "2", "prepared/00001.json")
    finish(first)
    shutil.copytree(folder / "parts", folder / "killed")
    finish(start(PREPARING, **given, out=str(folder / "parts" / "2"), shard="2/2", pause=0, quick=0))
    return folder


def test_a_prepared_set_from_two_workers_one_of_them_killed(prepared, tmp_path):
    from matgen_nb.symmcd.preparing import prepare

    with pytest.raises(
        MatgenError, match=r"shard 2/2 is not finished \(1 of 2 chunks are missing\).*--resume"
    ):
        merge_any([prepared / "killed"], tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    assert merge_any([prepared / "parts"], tmp_path / "a.safetensors") == "7 structures"
    prepare(str(prepared / "cifs"), out=tmp_path / "b.safetensors", n_jobs=1, progress=None)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    record = read_json(tmp_path / "a.run.json")
    assert len(record["failures"]) == 1 and "03a.cif" in record["failures"][0] and record["lineage"]
    with pytest.raises(MatgenError, match="--overwrite"):
        merge_any([prepared / "parts"], tmp_path / "a.safetensors")
    with pytest.raises(MatgenError, match="choose another --out"):
        merge_any([prepared / "parts"], prepared / "cifs")


def test_a_source_that_changed_makes_another_lineage(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "work")
    source = prepared / "cifs"
    text = (source / "00.cif").read_text()
    try:
        (source / "00.cif").write_text(text.replace("4.", "5.", 1))
        prepare_shard(crystal_work(source, chunk=2), tmp_path / "stale", Shard(2, 2))
        with pytest.raises(MatgenError, match="cannot resume.*content was"):
            work = crystal_work(source, chunk=2)
            prepare_shard(work, tmp_path / "work" / "parts" / "1", Shard(1, 2), RunOptions(resume=True))
    finally:
        (source / "00.cif").write_text(text)
    with pytest.raises(MatgenError, match="is of another run.*content"):
        merge_prepared([prepared / "parts" / "1", tmp_path / "stale"], tmp_path / "a.safetensors")


HARMS = ("edited", "swapped", "lost", "half_record", "half_data", "half_request", "half_seal", "foreign_seal")
HARMS += ("no_seal", "empty_seal", "in_use")


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_shard_is_named_and_nothing_is_written(prepared, tmp_path, harm):
    parts = tmp_path / "parts"
    shutil.copytree(prepared / "parts", parts)
    first, data = parts / "1", parts / "1" / "prepared" / "00000.safetensors"
    half = lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if harm == "edited":
        data.write_bytes(data.read_bytes()[:-1] + b"x")
    elif harm == "swapped":
        data.write_bytes((first / "prepared" / "00002.safetensors").read_bytes())
    elif harm == "lost":
        data.unlink()
    elif harm == "foreign_seal":
        (first / SEAL).write_bytes((parts / "2" / SEAL).read_bytes())
    elif harm == "no_seal":
        (first / SEAL).unlink()
    elif harm == "empty_seal":
        (first / SEAL).write_text("{}")
    elif harm == "in_use":
        from matgen_nb.folders import FolderLock

        lock = FolderLock(first)
    else:
        half(
            {
                "record": data.with_suffix(".json"),
                "data": data,
                "request": first / "request.json",
                "seal": first / SEAL,
            }[harm[5:]]
        )
    with pytest.raises(MatgenError, match=str(first)):
        merge_any([parts], tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists() and not (tmp_path / "a.run.json").exists()
    if harm == "in_use":
        lock.release()
        assert merge_any([parts], tmp_path / "a.safetensors") == "7 structures"


def test_which_shards_are_given(prepared, tmp_path):
    one, two, out = prepared / "parts" / "1", prepared / "parts" / "2", tmp_path / "a.safetensors"
    (tmp_path / "link").symlink_to(one)
    write_cifs(tmp_path / "cifs", 3)
    third = prepare_shard(crystal_work(tmp_path / "cifs", chunk=2), tmp_path / "foreign", Shard(2, 2))
    prepare_shard(crystal_work(prepared / "cifs", chunk=2), tmp_path / "cut", Shard(2, 3))
    assert third == 2
    for given, why in (
        ([], "no shard"),
        ([tmp_path / "nowhere"], "holds no shard"),
        ([one], "1 of 2 shards are missing: 2"),
        ([two, two], "given twice"),
        ([one, two, tmp_path / "link"], "shard 1/2 is given twice"),
        ([one, tmp_path / "foreign"], "of another run.*source"),
        ([one, tmp_path / "cut"], "different cuts"),
        ([prepared / "cifs", one, two], "holds no shard"),
    ):
        with pytest.raises(MatgenError, match=why):
            merge_any(given, out)
    assert not out.exists()
    assert merge_any([two, one], out) == "7 structures"
    assert merge_any([one, two], tmp_path / "b.safetensors") == "7 structures"
    assert out.read_bytes() == (tmp_path / "b.safetensors").read_bytes(), "in any order"


def test_prepared_frameworks_have_one_library(tmp_path):
    "Blocks are merged once, over all shards; properties, names and failures come along."
    from matgen_nb.mofdiff.bonds import textbook_mofs
    from matgen_nb.mofdiff.preparing import MofPrepareOptions, prepare_mofs

    (tmp_path / "cifs").mkdir()
    mofs = list(textbook_mofs().items())
    for name, mof in mofs:
        mof.crystal.to_cif(tmp_path / "cifs" / f"{name}.cif")
        stretched = Crystal(mof.crystal.lattice * 1.001, mof.crystal.elements, mof.crystal.frac_coords)
        stretched.to_cif(tmp_path / "cifs" / f"{name}-2.cif")
    (tmp_path / "cifs" / "torn.cif").write_text("data_nothing\n")
    names = sorted(p.name for p in (tmp_path / "cifs").iterdir())
    table = tmp_path / "properties.csv"
    table.write_text("name,uptake,pores\n" + "".join(f"{n},{i}.5,\n" for i, n in enumerate(names) if i % 3))
    options = MofPrepareOptions(properties=table)
    whole, _ = prepare_mofs(tmp_path / "cifs", tmp_path / "whole.safetensors", 1, None, options)
    work = framework_work(tmp_path / "cifs", options, chunk=2)
    for k in (3, 1, 2):
        prepare_shard(work, tmp_path / str(k), Shard(k, 3))
    assert merge_prepared([tmp_path / k for k in "231"], tmp_path / "merged.safetensors") == len(whole)
    assert (tmp_path / "merged.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert any("torn" in line for line in read_json(tmp_path / "merged.run.json")["failures"])
    with pytest.raises(MatgenError, match="prepared already"):
        framework_work("embedded")


def test_columns_of_energies_survive_the_cut(tmp_path):
    "A CSV with energies: unknown ones stay unknown, and a name that stands twice has none."
    from matgen_nb.symmcd.preparing import prepare

    lines = ["material_id,cif,formation_energy_per_atom,e_above_hull"]
    for i in range(6):
        cube = Crystal((4 + i / 20) * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
        cif = cube.to_cif().replace('"', "'")
        lines.append(f'm{min(i, 4)},"{cif}",{"" if i < 2 else -i / 7},')
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    prepare(str(tmp_path / "a.csv"), out=tmp_path / "whole.safetensors", n_jobs=1, progress=None)
    for k in (1, 2):
        prepare_shard(crystal_work(tmp_path / "a.csv", chunk=1), tmp_path / str(k), Shard(k, 2))
    merge_prepared([tmp_path / "1", tmp_path / "2"], tmp_path / "merged.safetensors")
    assert (tmp_path / "merged.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


# ---- frameworks


@pytest.fixture(scope="module")
def frameworks(tmp_path_factory):
    "Frameworks by two workers at once, the second killed in its second chunk; and all in one shard."
    folder = tmp_path_factory.mktemp("frameworks")
    from matgen_nb.mofdiff.bonds import textbook_mofs
    from matgen_nb.mofdiff.evaluation import describe_mof

    known = [describe_mof(textbook_mofs()["MIL-53"])["identity"], "of no framework"]
    given = dict(n=5, seed=1, weights="w", known=known)
    first = start(SAMPLING, **given, out=str(folder / "new" / "1"), shard="1/2", pause=0)
    second = start(SAMPLING, **given, out=str(folder / "new" / "2"), shard="2/2", pause=2)
    kill_after(second, folder / "new" / "2", "evaluated/mof_00001.json")
    finish(first)
    shutil.copytree(folder / "new", folder / "killed")
    again = start(SAMPLING, **given, out=str(folder / "new" / "2"), shard="2/2", pause=0)
    finish(start(SAMPLING, **given, out=str(folder / "one"), shard="1/1", pause=0))
    finish(again)
    return folder


def without_seconds(path):
    return (
        json.loads(path.read_text())["row"] | {"seconds": 0} if path.suffix == ".json" else path.read_bytes()
    )


def test_frameworks_of_two_workers_one_of_them_killed(frameworks, tmp_path):
    with pytest.raises(MatgenError, match=r"shard 2/2 is not finished \(1 of 2 chunks are missing\)"):
        merge_any([frameworks / "killed"], tmp_path / "out")
    assert merge_any([frameworks / "new"], tmp_path / "out") == "5 frameworks"
    assert not (tmp_path / "never").exists()
    table = lambda folder: (folder / "table.csv").read_bytes()
    assert table(tmp_path / "out") == table(frameworks / "one"), "row for row"
    rows = read_table(tmp_path / "out" / "table.csv")
    assert 0 < sum(row["unique"] for row in rows) < 5, "a framework repeats one of the other shard"
    assert {row["novel"] for row in rows if row["identity"]} == {True, False}, "novel as in the training set"
    files = [p.relative_to(frameworks / "one") for p in (frameworks / "one").glob("*/mof_*.*")]
    assert len(files) == 15, "two files of an assembled framework, one of an evaluated"
    for name in files:
        assert without_seconds(tmp_path / "out" / name) == without_seconds(frameworks / "one" / name), name
    summary = lambda folder: read_json(folder / "summary.json")
    assert summary(tmp_path / "out") == summary(frameworks / "one")
    request = read_json(tmp_path / "out" / "request.json")
    assert not {"shard", "lineage", "version", "relax", "known"} & request.keys()


def test_shards_of_frameworks_and_their_harms(frameworks, tmp_path):
    for harm in ("stage", "sample", "empty", "known", "kind"):
        new = tmp_path / harm
        shutil.copytree(frameworks / "new", new)
        record = new / "1" / "assembled" / "mof_00000.json"
        given = [new / "1", new / "2"]
        if harm == "stage":
            record.unlink()
        elif harm == "sample":
            (new / "1" / "sampled" / "00000.csv").write_text("name\n")
        elif harm == "empty":
            record.write_text("")
        elif harm == "known":
            record.write_text(record.read_text().replace("0", "1", 1))
        else:
            write_cifs(tmp_path / "cifs", 3)
            prepare_shard(crystal_work(tmp_path / "cifs", chunk=2), tmp_path / "other", Shard(2, 2))
            given = [new / "1", tmp_path / "other"]
        with pytest.raises(MatgenError, match="not finished|sealed|of another run"):
            merge_frameworks(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kinds_know_their_files(frameworks, prepared):
    one = read_shard(frameworks / "new" / "1", FRAMEWORKS)
    assert FRAMEWORKS.files(one.path, one.request, RunChunk(0, 0, 1))[:2] == [
        "sampled/00000.csv",
        "sampled/00000.safetensors",
    ]
    assert not FRAMEWORKS.finished(frameworks / "killed" / "2", one.request, RunChunk(3, 3, 1))
    assert FRAMEWORKS.finished(frameworks / "new" / "2", one.request, RunChunk(3, 3, 1))
    assert not PREPARED.finished(prepared / "killed" / "2", {}, RunChunk(3, 6, 2))


def test_the_commands(tmp_path):
    "`matgen prepare crystals --shard` and `matgen merge`, and what --resume needs."
    from typer.testing import CliRunner

    from matgen_nb.commands.main import app

    def shell(*words):
        result = CliRunner().invoke(app, list(map(str, words)))
        return result.exit_code, result.exception

    write_cifs(tmp_path / "cifs")
    prepare = ["prepare", "crystals", tmp_path / "cifs", "--n-jobs", 1]
    for k in (1, 2):
        out = tmp_path / "parts" / str(k)
        assert shell(*prepare, "--shard", f"{k}/2", "--chunk", 3, "--out", out, "--resume") == (0, None)
    assert shell("merge", tmp_path / "parts", "--out", tmp_path / "merged.safetensors") == (0, None)
    assert shell(*prepare, "--out", tmp_path / "whole.safetensors") == (0, None)
    assert (tmp_path / "merged.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    code, error = shell(*prepare, "--out", tmp_path / "x.safetensors", "--resume")
    assert code and "--shard" in str(error)
