import errno
import os
import time

import joblib
import pytest

from matgen_nb.utils import Failure, MatgenError, atomic_write, describe_failures, parallel_map, time_limit


def shout(text):
    if text == "bad": raise ValueError("bad word")
    if text == "hang": time.sleep(60)
    if text == "die": os._exit(3)
    return text.upper()


@pytest.mark.parametrize("mode, old, new", [("w", "old", "new"), ("wb", b"old", b"new")])
def test_atomic_write(tmp_path, mode, old, new):
    path = tmp_path/"deep"/"file"
    with atomic_write(path, mode) as f: f.write(old)
    with pytest.raises(RuntimeError):
        with atomic_write(path, mode) as f:
            f.write(new)
            raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file"]
    with atomic_write(path, mode) as f: f.write(new)
    assert path.read_bytes() == b"new"


def test_atomic_write_full_disk_when_syncing(tmp_path, monkeypatch):
    def full(fd): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        with atomic_write(tmp_path/"a") as f: f.write("x")
    assert os.listdir(tmp_path) == []


def test_atomic_write_mode():
    with pytest.raises(ValueError, match="mode"):
        with atomic_write("x", "a"): pass


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_parallel_map_keeps_order_and_names_failures(n_jobs):
    results, failures = parallel_map(shout, ["a", "bad", "b", "hang", "c"], names="vwxyz", n_jobs=n_jobs, timeout=.5)
    assert results == ["A", None, "B", None, "C"]
    assert failures[0] == Failure("w", "bad word") and failures[1].name == "y" and "longer" in failures[1].reason


def test_parallel_map_survives_a_dead_worker():
    results, failures = parallel_map(shout, ["a", "die", "b", "c"], n_jobs=2)
    assert results == ["A", None, "B", "C"] and [f.name for f in failures] == ["1"] and "died" in failures[0].reason


def test_parallel_map_takes_the_backend_in_force():
    with joblib.parallel_config(backend="threading"):
        assert parallel_map(lambda x: os.getpid(), range(3), n_jobs=2)[0] == [os.getpid()] * 3


def test_parallel_map_counts_names():
    with pytest.raises(ValueError, match="2 names for 3"): parallel_map(shout, "abc", names="ab")


def test_describe_failures():
    text = describe_failures([Failure(str(i), "no") for i in range(8)], 100, limit=2)
    assert text.startswith("8 of 100") and "6 more" in text


def test_time_limit_is_removed():
    with pytest.raises(TimeoutError):
        with time_limit(.05): time.sleep(5)
    time.sleep(.1)
    assert issubclass(MatgenError, Exception)


def test_every_model_reads_its_weights_the_same_way(tmp_path):
    import torch
    from safetensors.torch import save_file
    from matgen_nb.mofdiff import embedding, model as mofdiff
    from matgen_nb.symmcd import model as symmcd
    from matgen_nb.utils import find_weights, read_weights
    assert symmcd.find_weights is mofdiff.find_weights is find_weights and symmcd.read_weights is mofdiff.read_weights is embedding.read_weights is read_weights
    save_file({"w": torch.arange(3.)}, tmp_path/"good.safetensors", {"format": "x 1", "unit": "m"})
    assert read_weights(tmp_path/"good.safetensors", "x 1", lambda metadata, tensors: (metadata["unit"], tensors["w"].tolist())) == ("m", [0, 1, 2])
    (tmp_path/"cut.safetensors").write_bytes((tmp_path/"good.safetensors").read_bytes()[:-5])
    torch.save({"w": torch.ones(1)}, tmp_path/"pickle.safetensors")
    for name, form, text in (("cut", "x 1", "cut short"), ("pickle", "x 1", "cut short"), ("good", "x 2", "another model or version"), ("none", "x 1", "ship with the package: .*symmcd-mp20-small")):
        with pytest.raises(MatgenError, match=text): read_weights(tmp_path/f"{name}.safetensors", form, lambda *parts: parts)
    with pytest.raises(MatgenError, match="does not fit.*no_such"): read_weights(tmp_path/"good.safetensors", "x 1", lambda metadata, tensors: metadata["no_such"])
