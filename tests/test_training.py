"""The trainer: exact resume, equality of one and two processes, and what happens when things go wrong."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import rock_salt
import torch
from torch import nn

from matgen_nb.scale import checkpoints, optimization, training
from matgen_nb.scale.checkpoints import load_checkpoint, load_weights, plot_history, read_history
from matgen_nb.scale.optimization import TrainConfig
from matgen_nb.scale.training import Trainer
from matgen_nb.utils import MatgenError


class Data:
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def select(self, indices):
        return Data(self.x[indices])

    def to(self, device):
        return Data(self.x.to(device))


class Model(nn.Module):
    "Regression with dropout and noise, so that resume must restore every random number."

    def __init__(self, width=8, noisy=True):
        super().__init__()
        self.network, self.noisy, self.fail_at, self.calls = (
            nn.Sequential(
                nn.Linear(3, width), nn.SiLU(), nn.Dropout(0.1 if noisy else 0), nn.Linear(width, 1)
            ),
            noisy,
            None,
            0,
        )

    def loss(self, batch, generator):
        self.calls += self.training
        if self.calls == self.fail_at:
            raise RuntimeError("killed")
        x = batch.x + (0.1 * torch.randn(batch.x.shape, generator=generator) if self.noisy else 0)
        return {"loss": (self.network(x)[:, 0] - batch.x.square().sum(1)).square().mean()}


def make(out, data=None, model=None, **choices):
    torch.manual_seed(0)
    data = Data(torch.randn(64, 3)) if data is None else data
    torch.manual_seed(1)
    config = TrainConfig(
        **dict(
            steps=24,
            batch_size=16,
            log_every=5,
            warmup_steps=5,
            device="cpu",
            checkpoint_every=7,
            val_fraction=0.25,
            val_every=6,
            progress=False,
        )
        | choices
    )
    return Trainer(model or Model(), data, config, out)


def losses(history):
    return [(r["step"], r["loss"], r.get("val_loss")) for r in history]


def test_resume_is_exact_to_the_bit(tmp_path):
    whole = make(tmp_path / "whole")
    want = whole.fit()
    broken = make(tmp_path / "broken")
    broken.model.fail_at = 18
    with pytest.raises(RuntimeError, match="killed"):
        broken.fit()
    assert load_checkpoint(tmp_path / "broken" / "last.safetensors")[1]["step"] == 14
    torch.manual_seed(99)
    resumed = Trainer(Model(), broken.data, broken.config, tmp_path / "broken")
    got = resumed.fit(resume=True)
    assert losses(got) == losses(want) == losses(read_history(tmp_path / "broken" / "history.csv"))
    for part in ("model", "ema_model"):
        for a, b in zip(getattr(whole, part).parameters(), getattr(resumed, part).parameters()):
            assert torch.equal(a, b)
    a, b = (load_checkpoint(tmp_path / name / "best.safetensors")[0] for name in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from test_training import Model, make
torch.set_num_threads(1)
class Doomed(Model):
    def loss(self, batch, generator):
        if self.training and self.calls == 17: os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch, generator)
Doomed.__name__ = "Model"
torch.manual_seed(0)
trainer = make({out!r})
torch.manual_seed(1)
trainer.model = Doomed()
trainer.fit()
"""


def run_script(path, text):
    path.write_text(text)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=300)


def test_killed_process_resumes_on_the_same_curve(tmp_path):
    "SIGKILL, which no program can catch, in step 17: what lies on the disk is the checkpoint of step 14."
    done = run_script(
        tmp_path / "killed.py", KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    )
    assert done.returncode == -9, done.stderr[-2000:]
    assert load_checkpoint(tmp_path / "killed" / "last.safetensors")[1]["step"] == 14
    assert not list((tmp_path / "killed").glob(".*tmp"))
    resumed, whole = make(tmp_path / "killed"), make(tmp_path / "whole")
    assert losses(resumed.fit(resume=True)) == losses(whole.fit())
    for a, b in zip(whole.ema_model.parameters(), resumed.ema_model.parameters()):
        assert torch.equal(a, b)


def test_stop_signal_saves_and_resumes(tmp_path):
    import signal

    trainer = make(tmp_path / "a")
    step = trainer._train_step
    trainer._train_step = lambda: (
        step(),
        signal.raise_signal(signal.SIGTERM) if trainer.step == 11 else None,
    )
    history = trainer.fit()
    assert load_checkpoint(tmp_path / "a" / "last.safetensors")[1]["step"] == 11 and history[-1]["step"] == 10
    assert losses(make(tmp_path / "a").fit(resume=True)) == losses(make(tmp_path / "b").fit())


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_training import make, Model
torch.set_num_threads(1)
torch.manual_seed(1)
make({out!r}, model=Model(noisy=False), devices={n}, lr=1e-2).fit()
"""


def test_two_processes_give_the_curve_of_one(tmp_path):
    curves = []
    for n in (1, 2):
        out = tmp_path / str(n)
        done = run_script(
            tmp_path / f"run{n}.py", SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), n=n)
        )
        assert done.returncode == 0, done.stderr[-2000:]
        curves.append([x for row in losses(read_history(out / "history.csv")) for x in row if x is not None])
    assert len(curves[0]) > 10 and curves[0] == pytest.approx(curves[1], rel=1e-5, abs=1e-5)


def test_a_run_is_not_overwritten_by_accident(tmp_path):
    make(tmp_path, steps=2).fit()
    with pytest.raises(MatgenError, match="already holds"):
        make(tmp_path, steps=2).fit()
    (tmp_path / "notes.txt").write_text("mine")
    make(tmp_path, steps=2).fit(overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_killed_before_its_first_checkpoint_leaves_nothing_of_the_overwritten_one(tmp_path, capsys):
    "Neither last nor best, weights or history: --resume must not continue the run that was to be overwritten."
    make(tmp_path, steps=7).fit(after=lambda t: t.files.claim("weights.safetensors")[0].write_text("old"))
    doomed = make(tmp_path, steps=7, seed=1)
    doomed.model.fail_at = 2
    with pytest.raises(RuntimeError, match="killed"):
        doomed.fit(overwrite=True)
    assert not [name for name in checkpoints.TRAINING_FILES if (tmp_path / name).exists()]
    history = make(tmp_path, steps=7, seed=1).fit(resume=True)
    assert "no checkpoint" in capsys.readouterr().out and losses(history) == losses(
        make(tmp_path / "other", steps=7, seed=1).fit()
    )


def test_resume_without_a_checkpoint_does_not_overwrite_weights(tmp_path):
    make(tmp_path, steps=2).fit(
        after=lambda t: t.files.claim("weights.safetensors")[0].write_text("two days of work")
    )
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(MatgenError, match="--resume: .* no checkpoint"):
        make(tmp_path, steps=2).fit(resume=True)
    assert (tmp_path / "weights.safetensors").read_text() == "two days of work"


@pytest.mark.parametrize("name", ["last.safetensors", "weights.safetensors", "history.csv"])
def test_a_training_that_is_not_on_the_record_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("of an earlier version")
    for choices in (dict(), dict(overwrite=True)):
        with pytest.raises(MatgenError, match="choose another --out"):
            make(tmp_path, steps=2).fit(**choices)
    assert (tmp_path / name).read_text() == "of an earlier version"


def test_a_checkpoint_of_the_first_edition_is_continued(tmp_path):
    make(tmp_path, steps=7).fit()
    (tmp_path / ".matgen-files").unlink()
    assert make(tmp_path, steps=14).fit(resume=True)[-1]["step"] == 14
    make(tmp_path, steps=2).fit(overwrite=True)


def test_two_trainings_one_folder(tmp_path):
    from matgen_nb.folders import FolderLock

    make(tmp_path / "run", steps=2).fit()
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with FolderLock(tmp_path / "run"):
        for choices in (dict(resume=True), dict(overwrite=True)):
            with pytest.raises(MatgenError, match="is in use"):
                make(tmp_path / "run", steps=9).fit(**choices)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_equal_trainings_leave_equal_files(tmp_path):
    for name in "ab":
        make(tmp_path / name, steps=6).fit()
    assert (tmp_path / "a" / "best.safetensors").read_bytes() == (
        tmp_path / "b" / "best.safetensors"
    ).read_bytes()
    tensors, info = load_checkpoint(tmp_path / "a" / "last.safetensors")
    for name, t in (("c", tensors), ("d", dict(reversed(tensors.items())))):
        checkpoints.save_checkpoint(tmp_path / name, t, info)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


def test_structures_with_nan_are_named(tmp_path, capsys):
    data = Data(torch.randn(64, 3))
    data.x[[3, 40]] = float("nan")
    data.names = [f"mp-{i}" for i in range(64)]
    make(tmp_path / "few", data=data, val_fraction=0.0).fit()
    assert "2 of 64 structures: 'mp-3', 'mp-40'" in capsys.readouterr().out
    data.x[:] = float("nan")
    with pytest.raises(MatgenError, match="'mp-0', 'mp-1', .* and 59 more"):
        make(tmp_path / "all", data=data, val_fraction=0.0, max_skipped=5).fit()


def test_another_model_or_seed_cannot_resume(tmp_path):
    make(tmp_path, steps=2).fit()
    with pytest.raises(MatgenError, match="another model.*network"):
        make(tmp_path, model=Model(width=9)).fit(resume=True)
    with pytest.raises(MatgenError, match="seed was 0 and is now 5"):
        make(tmp_path, seed=5).fit(resume=True)
    with pytest.raises(MatgenError, match="another model"):
        load_weights(Model(width=9), tmp_path / "best.safetensors")
    load_weights(Model(), tmp_path / "best.safetensors")


def test_broken_checkpoints(tmp_path):
    make(tmp_path, steps=2).fit()
    good = (tmp_path / "last.safetensors").read_bytes()
    nan = checkpoints.load_checkpoint(tmp_path / "last.safetensors")
    next(iter(nan[0].values())).view(-1)[0] = float("nan")
    checkpoints.save_checkpoint(tmp_path / "nan.safetensors", *nan)
    flipped = good[:-9] + bytes([good[-9] ^ 4]) + good[-8:]
    for bad in (
        good[:-7],
        good[:50],
        b"",
        b"PK\x03\x04 a zip archive",
        flipped,
        (tmp_path / "nan.safetensors").read_bytes(),
    ):
        (tmp_path / "last.safetensors").write_bytes(bad)
        with pytest.raises(MatgenError, match="not a complete checkpoint"):
            make(tmp_path).fit(resume=True)
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "last.safetensors")
    with pytest.raises(MatgenError, match="not a training checkpoint of this version"):
        make(tmp_path).fit(resume=True)
    with pytest.raises(MatgenError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none")


def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    make(tmp_path, steps=7).fit()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MatgenError, match="No space left"):
        make(tmp_path, steps=14).fit(resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_bad_numbers_are_skipped_or_reported(tmp_path):
    x = torch.randn(64, 3)
    x[3] = float("nan")
    trainer = make(tmp_path / "few", data=Data(x), val_fraction=0.0)
    history = trainer.fit()
    assert 0 < history[-1]["skipped"] < 24 and all(p.isfinite().all() for p in trainer.model.parameters())
    with pytest.raises(MatgenError, match="diverged"):
        make(tmp_path / "all", data=Data(x * float("nan")), val_fraction=0.0, max_skipped=5).fit()


def test_time_budget_ends_with_a_small_rate(tmp_path):
    trainer = make(
        tmp_path, steps=10**7, max_seconds=1.0, checkpoint_every=None, warmup_steps=1, val_every=10**6
    )
    history = trainer.fit()
    assert trainer.step < 10**6 and history[-1]["lr"] < 0.05 * trainer.config.lr
    assert (
        history[-1]["step"] == trainer.step
        and "val_loss" in history[-1]
        and (tmp_path / "best.safetensors").exists()
    )


@pytest.fixture
def slow_machine(monkeypatch):
    "A clock that a step of training moves on by so many seconds: slow_machine(seconds) -> Model."
    from types import SimpleNamespace

    now = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def model(seconds):
        class Slow(Model):
            def loss(self, batch, generator):
                now[0] += seconds if self.training else 0.0
                return super().loss(batch, generator)

        return Slow()

    return model


def test_a_slow_machine_makes_fewer_steps_and_leaves_its_warm_up(tmp_path, slow_machine, capsys):
    "Forty steps fit into the budget, the warm-up is 500: it takes a tenth of the time."
    budget = dict(steps=optimization.UNLIMITED, max_seconds=40.0, warmup_steps=500, log_every=1)
    trainer = make(tmp_path, model=slow_machine(1.0), checkpoint_every=None, **budget)
    history = trainer.fit()
    rates = [row["lr"] / trainer.config.lr for row in history]
    assert len(rates) == 40 and rates[0] < 0.01 and max(rates) > 0.95 and rates.index(max(rates)) == 4
    assert trainer.ending() == dict(steps=40, ended_by="time budget", warm_up_over=True)
    said = capsys.readouterr().out
    assert "the time budget of 40 s ended the training after 40 steps" in said and "warm-up" not in said


def test_a_budget_too_small_for_a_warm_up_is_called_that(tmp_path, slow_machine, capsys):
    budget = dict(steps=100, max_seconds=40.0, warmup_steps=500)
    trainer = make(tmp_path / "one", model=slow_machine(60.0), checkpoint_every=None, **budget)
    trainer.fit()
    assert trainer.ending() == dict(steps=1, ended_by="time budget", warm_up_over=False)
    said = capsys.readouterr().out
    assert "after 1 of 100 steps" in said and "within its warm-up" in said and "--max-seconds" in said
    again = make(tmp_path / "one", model=slow_machine(60.0), checkpoint_every=None, **budget)
    again.fit(resume=True)
    assert again.ending()["ended_by"] == "time budget" and again.step == 1
    by_steps = make(tmp_path / "steps", steps=4, warmup_steps=5)
    by_steps.fit()
    assert by_steps.ending() == dict(steps=4, ended_by="steps", warm_up_over=False)


def test_the_warm_up_of_a_run_without_a_budget_is_as_before():
    config = TrainConfig(steps=100, warmup_steps=50)
    rates = [optimization.warmed_up(config, step, step / 100) for step in range(100)]
    assert rates == [min(1.0, (step + 1) / 50) for step in range(100)]


def test_validates_twenty_times_in_a_run_by_steps_or_by_time(tmp_path):
    "Also where the steps would never end and the time does it; and every step of a run of fewer than twenty."
    looks = lambda history: [row["step"] for row in history if "val_loss" in row]
    assert looks(make(tmp_path / "steps", steps=60, val_every=None).fit()) == list(range(3, 61, 3))
    assert looks(make(tmp_path / "few", steps=7, val_every=None).fit()) == list(range(1, 8))
    assert (
        10
        <= len(
            looks(
                make(
                    tmp_path / "time", steps=10**7, max_seconds=2.0, checkpoint_every=None, val_every=None
                ).fit()
            )
        )
        <= 20
    )


@pytest.mark.parametrize(
    "choice, text",
    [
        (dict(steps=None), "--steps or --epochs"),
        (dict(lr=-1.0), "positive"),
        (dict(schedule="x"), "schedule"),
        (dict(precision="16-mixed"), "bf16-mixed"),
        (dict(steps=-4), "steps must be positive"),
        (dict(steps=None, epochs=-1), "epochs must be positive"),
        (dict(max_seconds=0.0), "max_seconds must be positive"),
        (dict(val_fraction=1.5), "val_fraction"),
        (dict(clip_norm=-1.0), "clip_norm"),
        (dict(device="tpu"), "device"),
        (dict(batch_size=5, devices=2), "divide"),
    ],
)
def test_configuration_is_checked(tmp_path, choice, text):
    with pytest.raises(MatgenError, match=text):
        make(tmp_path, **choice)


def test_a_run_is_not_resumed_with_other_data_or_another_rate(tmp_path):
    make(tmp_path, steps=4).fit()
    other = Data(make(tmp_path, steps=4).data.x + 0.1)
    with pytest.raises(MatgenError, match="the data are not those of the run"):
        make(tmp_path, steps=8, data=other).fit(resume=True)
    with pytest.raises(MatgenError, match="lr was .* and is now"):
        make(tmp_path, steps=8, lr=1e-5).fit(resume=True)
    assert make(tmp_path, steps=8).fit(resume=True)[-1]["step"] == 8


def test_what_cannot_start_says_so(tmp_path, monkeypatch):
    for name in (
        "MASTER_ADDR",
        "NODE_RANK",
        "SLURM_NTASKS",
        "TORCHELASTIC_RUN_ID",
        "KUBERNETES_PORT",
        "LSB_JOBID",
        "OMPI_COMM_WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MatgenError, match="srun .* or torchrun"):
        make(tmp_path, num_nodes=2).fit()
    with pytest.raises(MatgenError, match="training cannot start .*nonsense"):
        make(tmp_path, strategy="nonsense").fit()


def test_time_left_after_resume_counts_this_run_only(tmp_path, capsys, monkeypatch):
    from matgen_nb import utils

    lines = utils._Lines("training", 20_000, every=0.0, before=10_000)
    lines.start -= 30
    lines(100)
    left = int(capsys.readouterr().out.split("about ")[1].split()[0])
    assert 2900 < left < 3100
    monkeypatch.setattr(utils._Lines.__init__, "__defaults__", (0.0, 0))
    make(
        tmp_path,
        steps=10**7,
        max_seconds=0.5,
        checkpoint_every=None,
        val_every=10**6,
        log_every=5,
        progress=True,
    ).fit()
    *_, last, said = capsys.readouterr().out.splitlines()
    assert "time budget" in said and "/1000" in last, (
        "with a budget of time the bar counts thousandths of the run"
    )


def test_bf16_on_cpu_and_epochs(tmp_path):
    trainer = make(tmp_path, steps=None, epochs=2, precision="bf16-mixed")
    trainer.fit()
    assert trainer.step == 2 * 3 and (tmp_path / "loss.png").stat().st_size > 1000
    assert next(trainer.model.parameters()).dtype == torch.float32
    assert plot_history(tmp_path).axes and json.dumps(training.asdict(trainer.config))


def test_too_little_data(tmp_path):
    with pytest.raises(MatgenError, match="too few"):
        make(tmp_path, data=Data(torch.zeros(0, 3)), val_fraction=0.0).fit()


def test_half_precision_keeps_the_geometry():
    from matgen_nb.symmcd.dataset import from_units, prepare_one
    from matgen_nb.symmcd import stages  # noqa: F401  (the loss of staged models)
    from matgen_nb.symmcd.model import SymmCD, SymmCDConfig, crystal_statistics

    salt = rock_salt()
    data = from_units([prepare_one(salt)] * 20)
    torch.manual_seed(0)
    model, batch = (
        SymmCD(SymmCDConfig.preset("tiny"), crystal_statistics(data)),
        data.select(torch.arange(20)),
    )
    full = model.loss(batch, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(batch, torch.Generator().manual_seed(0))
    for part in full:
        assert float(half[part]) == pytest.approx(float(full[part]), rel=0.02), part


def crystals(n=24):
    "n crystals of two kinds, with 2 and 3 orbits."
    import numpy as np
    from matgen_nb.symmcd.dataset import from_units, prepare_one
    from matgen_nb.symmetry.crystal import Crystal

    salt = Crystal(
        5.64 * np.eye(3),
        [11] * 4 + [17] * 4,
        [
            [0, 0, 0],
            [0, 0.5, 0.5],
            [0.5, 0, 0.5],
            [0.5, 0.5, 0],
            [0.5, 0, 0],
            [0, 0.5, 0],
            [0, 0, 0.5],
            [0.5, 0.5, 0.5],
        ],
    )
    perovskite = Crystal(
        3.9 * np.eye(3),
        [22, 38, 8, 8, 8],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]],
    )
    return from_units([prepare_one(salt), prepare_one(perovskite), prepare_one(perovskite)] * (n // 3))


def symmcd(data, **changes):
    from matgen_nb.symmcd import stages  # noqa: F401  (the loss of staged models)
    from matgen_nb.symmcd.model import SymmCD, SymmCDConfig, crystal_statistics

    torch.manual_seed(0)
    return SymmCD(SymmCDConfig.preset("tiny", **changes), crystal_statistics(data))


def mofdiff():
    "A small model on toy frameworks, and its data."
    from matgen_nb.mofdiff.data import MofData
    from matgen_nb.mofdiff.loss import MofDiff
    from matgen_nb.mofdiff.model import MofDiffConfig, mof_statistics
    from matgen_nb.mofdiff.network import toy_embeddings, toy_mofs

    data = MofData.from_coarse(toy_mofs(40))
    data = data.with_embeddings(toy_embeddings(data.library))
    torch.manual_seed(0)
    return MofDiff(MofDiffConfig.preset("tiny"), mof_statistics(data)), data


def block_encoder(**changes):
    "A small model on random blocks, some of them of one identity, and its data."
    from test_embedding import random_block
    from matgen_nb.mofdiff.embedding import BlockData, BlockEncoder, BlockConfig

    blocks = [random_block(k) for k in range(30)]
    torch.manual_seed(0)
    return BlockEncoder(BlockConfig.preset("tiny", **changes)), BlockData(
        blocks, identity=[f"block {k // 3}" for k in range(30)]
    )


SHARED = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_training import both, make
torch.set_num_threads(1)
model, data = both({kind!r})
make({out!r}, data=data, model=model, devices={n}, batch_size=8, steps=12, lr=1e-3, log_every=2, val_every=4).fit()
"""


BROKEN = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_training import Model, make
torch.set_num_threads(1)
torch.manual_seed(1)
model = Model()
model.fail_at = {fail_at}
make({out!r}, model=model, devices=2, steps=12, checkpoint_every=7, log_every=5).fit(resume=True)
"""


def test_two_processes_resume_in_the_middle_of_a_logging_window(tmp_path):
    "The checkpoint of step 7 holds the sums of steps 6 and 7 of both processes: the row of step 10 is that of a run without a break."
    script = lambda out, fail_at: run_script(
        tmp_path / "run.py",
        BROKEN.format(tests=str(Path(__file__).parent), out=str(tmp_path / out), fail_at=fail_at),
    )
    assert (
        script("broken", 9).returncode != 0
        and load_checkpoint(tmp_path / "broken" / "last.safetensors")[1]["step"] == 7
    )
    for out in ("broken", "whole"):
        done = script(out, None)
        assert done.returncode == 0, done.stderr[-2000:]
    broken, whole = (losses(read_history(tmp_path / out / "history.csv")) for out in ("broken", "whole"))
    assert [row[:1] for row in broken] == [row[:1] for row in whole] and [
        x for r in broken for x in r if x is not None
    ] == pytest.approx([x for r in whole for x in r if x is not None], rel=1e-6)


def both(kind):
    "A small model of a kind, and its data."
    if kind == "mofdiff":
        return mofdiff()
    if kind == "blocks":
        return block_encoder()
    data = crystals()
    return symmcd(data), data


@pytest.mark.parametrize("kind", ["symmcd", "blocks", "mofdiff"])
def test_noise_does_not_depend_on_the_number_of_processes(tmp_path, kind):
    "Every model with its own noisy loss: the curve of two processes is that of one."
    curves, weights = [], []
    for n in (1, 2):
        out = tmp_path / str(n)
        done = run_script(
            tmp_path / f"run{n}.py",
            SHARED.format(tests=str(Path(__file__).parent), out=str(out), n=n, kind=kind),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        curves.append([x for row in losses(read_history(out / "history.csv")) for x in row if x is not None])
        weights.append(load_checkpoint(out / "best.safetensors")[0])
    assert len(curves[0]) > 12 and curves[0] == pytest.approx(curves[1], rel=1e-5, abs=1e-5)
    for k in set(weights[0]) - {
        "ema/denoiser.to_axes.bias"
    }:  # that bias is taken out again with the mean: its gradient is rounding, which Adam blows up
        assert torch.allclose(weights[0][k].float(), weights[1][k].float(), atol=1e-4), k


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(site_symmetry="independent", images=0, staged=False),
        dict(substitute=1.0),
        dict(staged=False),
        None,
    ],
)
def test_shares_of_a_batch_make_up_its_loss(changes):
    data, seeded = crystals(), lambda: torch.Generator().manual_seed(1)
    model, data = mofdiff() if changes is None else (symmcd(data, **changes), data)
    batch = data.select(torch.arange(24))
    whole = model.loss(batch, seeded())
    for world in (2, 3, 8):
        parts = [model.loss(batch, seeded(), share=(rank, world)) for rank in range(world)]
        for name in whole:
            torch.testing.assert_close(sum(p[name] for p in parts) / world, whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, dict(space="projection"), dict(contrastive="release", views=3)])
def test_shares_of_blocks_give_the_gradient_of_the_whole(changes):
    "A loss that compares all with all: each process's part, averaged, must be the gradient of one process, for every weight."
    model, data = block_encoder(**changes)
    batch, grads = data.select(torch.arange(16)), []
    for world in (1, 2, 4):
        model.zero_grad()
        for rank in range(world):
            parts = model.loss(
                batch, torch.Generator().manual_seed(1), **(dict(share=(rank, world)) if world > 1 else {})
            )
            (parts["loss"] / world).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for other in grads[1:]:
        assert other.keys() == grads[0].keys()
        for name, value in grads[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["symmcd", "mofdiff"])
def test_compiled_once_for_all_shapes(kind):
    from torch._dynamo.utils import counters

    model, data = both(kind)
    generator = torch.Generator().manual_seed(3)
    batches = [
        torch.randint(len(data), (int(torch.randint(3, 20, (), generator=generator)),), generator=generator)
        for _ in range(50)
    ]
    run = lambda: torch.stack(
        [
            model.loss(data.select(b), torch.Generator().manual_seed(k))["loss"].detach()
            for k, b in enumerate(batches)
        ]
    )
    eager, keys = run(), list(model.state_dict())
    torch._dynamo.reset()
    counters.clear()
    assert optimization.compile_regions(model, backend="aot_eager") >= 3 and list(model.state_dict()) == keys
    torch.testing.assert_close(run(), eager, rtol=1e-5, atol=1e-5)
    assert 1 <= counters["stats"]["unique_graphs"] <= 3 and not counters["graph_break"]


def test_a_compiled_run_gives_the_same_curve(tmp_path, monkeypatch):
    whole, compiled = optimization.compile_regions, []
    monkeypatch.setattr(
        training, "compile_regions", lambda model: compiled.append(whole(model, backend="aot_eager"))
    )
    data = crystals()
    choices = dict(data=data, steps=8, batch_size=6, log_every=2)
    plain, quick = (
        losses(make(tmp_path / str(on), model=symmcd(data), compile=on, **choices).fit())
        for on in (False, True)
    )
    assert compiled == [3] and [x for row in plain for x in row if x is not None] == pytest.approx(
        [x for row in quick for x in row if x is not None], rel=1e-5
    )


def no_doubles():
    "A mode in which every operation that meets a float64 tensor fails, unless it only casts it to something narrower (which happens on the CPU)."
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class NoDoubles(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            seen = out if function is torch.ops.aten._to_copy.default else (args, kwargs, out)
            for t in tree_leaves(seen):
                assert not (isinstance(t, torch.Tensor) and t.dtype == torch.float64), (
                    f"{function} met float64, shape {tuple(t.shape)}"
                )
            return out

    return NoDoubles()


def test_no_float64_where_there_is_none(monkeypatch):
    "Apple's GPU has no float64. Not run on a Mac: on a CPU, with the tables that a Mac would get, a whole step of SymmCD must make no double and move none."
    from matgen_nb.symmetry import lattice, space_groups

    data = crystals()
    model = symmcd(data)
    batch, optimizer = data.select(torch.arange(12)), optimization.make_optimizer(model, TrainConfig())
    seeded = lambda: torch.Generator().manual_seed(0)
    want = model.loss(batch, seeded())["loss"].detach()  # also makes the float32 copies of the schedules
    with pytest.raises(AssertionError, match="float64"), no_doubles():
        model.loss(batch, seeded())
    for module in (lattice, space_groups):
        monkeypatch.setattr(module, "device_float", lambda device: torch.float32)
    space_groups.wyckoff_tables.cache_clear()
    lattice._on.cache_clear()
    try:
        moved = [
            *vars(space_groups.wyckoff_tables("cpu")).values(),
            *model.parameters(),
            *model.buffers(),
            *vars(batch).values(),
        ]
        assert {t.dtype for t in moved} <= {torch.float32, torch.int64, torch.bool}
        with no_doubles():
            loss = model.loss(batch, seeded())["loss"]
            loss.backward()
            optimization.guarded_step(optimizer, torch.tensor(False))
        torch.testing.assert_close(loss.detach(), want, rtol=1e-5, atol=1e-5)
    finally:
        space_groups.wyckoff_tables.cache_clear()
        lattice._on.cache_clear()


def test_data_with_doubles_stay_off_a_device_without_them(tmp_path):
    class Doubles(Data):
        def to(self, device):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
            )

    trainer = make(tmp_path, data=Doubles(torch.zeros(8, 3)))
    trainer.device = torch.device("mps")
    assert trainer._resident(trainer.data) is trainer.data
    trainer.device = torch.device("cpu")
    with pytest.raises(TypeError):
        trainer._resident(trainer.data)


def test_callbacks_add_figures_and_change_no_weight(tmp_path):
    "Whatever a callback does with random numbers, the training is the same; the figures are in the history file."

    def figure(trainer, row):
        torch.randn(3)
        row["noise"] = float(torch.rand(1))

    plain = make(tmp_path / "plain", val_fraction=0.0)
    logged = make(tmp_path / "logged", val_fraction=0.0)
    logged.callbacks = [figure]
    assert losses(plain.fit()) == losses(logged.fit())
    for a, b in zip(plain.model.parameters(), logged.model.parameters()):
        assert torch.equal(a, b)
    assert all("noise" in row for row in read_history(tmp_path / "logged" / "history.csv"))


def test_match_rate_of_symmcd_in_the_history(tmp_path, monkeypatch, capsys):
    "QualityLog writes its figures at its own steps; without pymatgen one message, and the training goes on."
    from matgen_nb.symmcd import staged_sampling  # noqa: F401  (SymmCD.predict)
    from matgen_nb.symmcd.energy import QualityLog

    data = crystals()
    choices = dict(data=data, steps=4, batch_size=6, log_every=1, val_fraction=0.0)

    def fit(name, callbacks):
        trainer = make(tmp_path / name, model=symmcd(data), **choices)
        trainer.callbacks = callbacks
        return trainer.fit()

    units = [data[i] for i in range(2)]
    plain, logged = (
        fit(name, calls)
        for name, calls in (("a", []), ("b", [training.figures_of(QualityLog(units, every=2, n=2))]))
    )
    assert losses(plain) == losses(logged)
    assert [row["step"] for row in logged if "match" in row] == [2, 4]

    def missing(*arguments, **options):
        raise ModuleNotFoundError("No module named 'pymatgen'")

    monkeypatch.setattr("matgen_nb.symmcd.energy.match_rates", missing)
    capsys.readouterr()
    without = fit("c", [training.figures_of(QualityLog(units, every=1, n=2))])
    assert losses(without) == losses(plain) and not any("match" in row for row in without)
    assert capsys.readouterr().out.count("no match rate from now on") == 1
