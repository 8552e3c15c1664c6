"""A run cut into shards: two workers at once, one of them killed; the union is the whole run, and stale shards are rejected."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from matgen_nb.scale.shards import SEAL, Shard, lineage, merge_shards, read_shard, shard_folders
from matgen_nb.utils import MatgenError

CODE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from matgen_nb.scale.crystal_runs import sample_stream
from matgen_nb.scale.runs import RunOptions
from matgen_nb.scale.shards import Shard, sample_shard
from matgen_nb.symmcd.reverse import SamplingOptions
from matgen_nb.symmetry.crystal import Crystal


class Toy:
    def sample(self, n, seed, options):
        time.sleep({pause})
        edges = np.random.default_rng(seed).uniform(3, 5, n)
        cubes = [Crystal(a * np.eye(3), [84], [[0, 0, 0]]) for a in edges]
        return [SimpleNamespace(crystal=c, row=dict(formula=c.formula, a=float(c.lattice[0, 0]))) for c in cubes]


request = dict(model="toy", weights={weights!r}, n={n}, chunk=2, seed={seed})
requested = dict(options=SamplingOptions())
if {shard!r}:
    sample_shard(Toy(), request, requested, {out!r}, Shard.parse({shard!r}), RunOptions(resume=True))
else:
    sample_stream(Toy(), request, requested, {out!r}, "whole")
"""


def start(out, shard="", pause=0.0, weights="w", n=17, seed=3):
    "A worker process that makes a shard of a run of toys, or the whole run."
    code = CODE.format(out=str(out), shard=shard, pause=pause, weights=weights, n=n, seed=seed)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process):
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()[-2000:]


def files(folder):
    "Tables and CIF files of a run, by name."
    found = [folder / "table.csv", *folder.glob("chunks/*.csv"), *folder.glob("cif/*.cif")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    "Two workers at once, the second killed (SIGKILL) after its first chunk; and the whole run."
    folder = tmp_path_factory.mktemp("cluster")
    first, second = start(folder / "shards" / "1", "1/2"), start(folder / "shards" / "2", "2/2", pause=1.5)
    end = time.monotonic() + 100
    while not list((folder / "shards" / "2" / "chunks").glob("*.csv")) and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    finish(first)
    shutil.copytree(folder / "shards", folder / "killed")
    again, whole = start(folder / "shards" / "2", "2/2"), start(folder / "whole")
    finish(again)
    finish(whole)
    return folder


def test_a_killed_shard_is_named_with_what_mends_it(cluster, tmp_path):
    assert 1 <= len(list((cluster / "killed" / "2" / "chunks").glob("*.csv"))) < 4
    with pytest.raises(MatgenError, match=r"shard 2/2 is not finished.*--resume"):
        merge_shards(shard_folders([cluster / "killed"]), tmp_path / "out")
    with pytest.raises(MatgenError, match="1 of 2 shards are missing: 2"):
        merge_shards([cluster / "shards" / "1"], tmp_path / "out")
    assert not (tmp_path / "out" / "table.csv").exists()


def test_the_union_of_the_shards_is_the_run_that_was_not_cut(cluster, tmp_path):
    assert merge_shards(shard_folders([cluster / "shards"]), tmp_path / "out") == 17
    assert files(tmp_path / "out") == files(cluster / "whole"), "sample for sample"
    request = json.loads((tmp_path / "out" / "request.json").read_text())
    assert request == json.loads((cluster / "whole" / "request.json").read_text())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["lineage"] == read_shard(cluster / "shards" / "1").request["lineage"]
    with pytest.raises(MatgenError, match="not empty"):
        merge_shards(shard_folders([cluster / "shards"]), tmp_path / "out")
    with pytest.raises(MatgenError, match="choose another --out"):
        merge_shards(shard_folders([cluster / "shards"]), cluster / "shards" / "1")


def test_which_folders_are_given(cluster, tmp_path, capsys):
    "In any order; an earlier merge beside the shards is passed over; the same shard by another name is not."
    one, two = cluster / "shards" / "1", cluster / "shards" / "2"
    assert merge_shards([two, one], tmp_path / "out") == 17
    assert files(tmp_path / "out") == files(cluster / "whole")
    shutil.copytree(cluster / "shards", tmp_path / "shards")
    shutil.copytree(tmp_path / "out", tmp_path / "shards" / "merged")
    assert merge_shards(shard_folders([tmp_path / "shards"]), tmp_path / "again") == 17
    assert "passed over" in capsys.readouterr().out
    (tmp_path / "link").symlink_to(one)
    for given, why in (
        ([], "no shard"),
        ([one, two, tmp_path / "link"], "shard 1/2 is given twice"),
        ([one, cluster / "whole"], "is no shard of a run"),
        ([one, tmp_path / "nowhere"], "holds no shard"),
    ):
        with pytest.raises(MatgenError, match=why):
            merge_shards(given, tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("change", [dict(weights="other"), dict(seed=4), dict(n=18)], ids=str)
def test_shards_of_another_run_are_rejected(cluster, change, tmp_path):
    finish(start(tmp_path / "stale", "2/2", **change))
    with pytest.raises(MatgenError, match=f"of another run.*{next(iter(change))}"):
        merge_shards([cluster / "shards" / "1", tmp_path / "stale"], tmp_path / "out")


def test_changed_and_lost_files_are_found(cluster, tmp_path):
    shards = tmp_path / "shards"
    for harm in ("edit", "swap", "lose", "request", "restart", "half_table", "half_seal", "foreign_seal"):
        shutil.copytree(cluster / "shards", shards)
        first = shards / "1"
        if harm in ("edit", "restart"):
            (first / "cif" / "00000.cif").write_text("data_mine\n")
        elif harm == "swap":
            (first / "cif" / "00000.cif").write_bytes((first / "cif" / "00001.cif").read_bytes())
        elif harm == "lose":
            (first / "cif" / "00000.cif").unlink()
        elif harm == "half_table":
            table = first / "chunks" / "00000.csv"
            table.write_bytes(table.read_bytes()[:20])
        elif harm == "half_seal":
            (first / SEAL).write_text((first / SEAL).read_text()[:30])
        elif harm == "foreign_seal":
            (first / SEAL).write_text((shards / "2" / SEAL).read_text())
        else:
            text = (first / "request.json").read_text()
            (first / "request.json").write_text(text.replace('"seed": 3', '"seed": 5'))
        if harm == "restart":  # a new start does not seal what was changed in between
            finish(start(first, "1/2"))
        with pytest.raises(MatgenError, match="sealed|not finished|was changed|damaged|not the seal"):
            merge_shards(shard_folders([shards]), tmp_path / "out")
        shutil.rmtree(shards)


def test_every_chunk_belongs_to_one_shard():
    for n, chunk, of in ((1, 1, 1), (17, 2, 5), (1000, 250, 3), (10, 3, 4)):
        request = dict(n=n, chunk=chunk)
        parts = sorted(p for k in range(1, of + 1) for p in Shard(k, of).chunks(request))
        assert sum(p[2] for p in parts) == n and [p[0] for p in parts] == list(range(-(-n // chunk)))
    for wrong in ("0/2", "3/2", "a/b", "1/0", "1", "-1/3"):
        with pytest.raises(MatgenError):
            Shard.parse(wrong)


def test_lineage_is_of_what_decides():
    request = dict(model="symmcd", weights="a", n=10, chunk=5, seed=0)
    assert (
        lineage(request) == lineage(request | dict(shard="1/3")) == lineage(dict(reversed(request.items())))
    )
    for key in request:
        assert lineage(request | {key: "another"}) != lineage(request)


def test_the_commands(tmp_path):
    "`matgen sample symmcd --shard` with the weights that ship, and `matgen merge`."
    from typer.testing import CliRunner

    from matgen_nb.commands.main import app

    def shell(*words):
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == 0, result.output or repr(result.exception)

    options = "sample symmcd -n 3 --chunk 1 --steps 2 --candidates 1 --device cpu".split()
    shell(*options, "--out", tmp_path / "whole")
    for k in (1, 2):
        shell(*options, "--shard", f"{k}/2", "--out", tmp_path / "shards" / str(k), "--resume")
    shell("merge", tmp_path / "shards", "--out", tmp_path / "merged")
    assert files(tmp_path / "merged") == files(tmp_path / "whole")
