"""Weights on the Hugging Face Hub: published and fetched through a server that speaks its protocol, and clear words where that fails."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from tools.fake_hub import FakeHub

from matgen_nb.diffusion.pretrained import find_weights, model_card
from matgen_nb.utils import MatgenError, load_tensors

pytest.importorskip("huggingface_hub")
MODELS = {"SymmCD": "symmcd-mp20-small", "BlockEncoder": "blocks-small", "MofDiff": "mofdiff-small"}


@pytest.fixture()
def hub(tmp_path):
    "A fake Hub, and a function that runs Python in a process that knows no other."
    with FakeHub() as made:

        def run(code, **more):
            env = os.environ | dict(HF_ENDPOINT=made.address, HF_HOME=str(tmp_path / "hf"), HF_TOKEN="right")
            env |= dict(
                HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1"
            )
            env |= dict(no_proxy="127.0.0.1", NO_PROXY="127.0.0.1", HF_HUB_ETAG_TIMEOUT="5") | more
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, timeout=600
            )
            return done.stdout.strip(), done.stderr

        made.run = run
        yield made


ROUND_TRIP = """
import torch
from matgen_nb import SymmCD, BlockEncoder, MofDiff
from matgen_nb.diffusion.pretrained import HubOptions
for kind, name in {models!r}.items():
    kind = dict(SymmCD=SymmCD, BlockEncoder=BlockEncoder, MofDiff=MofDiff)[kind]
    model = kind.from_pretrained(name)
    print(model.push_to_hub("me/" + name, options=HubOptions(private=True)))
    back = kind.from_pretrained("hub:me/" + name)
    again = kind.from_pretrained("hub:me/" + name + "@main")
    assert back.config == model.config == again.config and back.info == model.info
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
try:
    BlockEncoder.from_pretrained("hub:me/symmcd-mp20-small")
except Exception as error:
    print(error)
"""


def test_all_three_models_are_published_and_come_back(hub):
    out, errors = hub.run(ROUND_TRIP.format(models=MODELS))
    lines = out.splitlines()
    assert len(lines) == 4 and "commit/" in lines[0] and "weights of another model" in lines[3], (
        out + errors[-3000:]
    )
    for kind, name in MODELS.items():
        files = hub.repos[f"me/{name}"]
        assert files.keys() == {"config.json", "model.safetensors", "README.md"} and hub.private[f"me/{name}"]
        config = json.loads(files["config.json"])
        assert config["format"].startswith("matgen_nb ") and config["model_type"] == kind.lower()
        assert f'from_pretrained("hub:me/{name}")' in files["README.md"].decode()


def test_sampling_from_published_weights(hub, tmp_path):
    out, errors = hub.run(
        "from matgen_nb import SymmCD; SymmCD.from_pretrained('symmcd-mp20-small').push_to_hub('me/x')"
    )
    command = (
        "from matgen_nb.commands.main import main; "
        f"main('sample symmcd --weights hub:me/x -n 2 --steps 2 --candidates 1 --out {tmp_path / 'out'}'.split())"
    )
    out, errors = hub.run(command)
    assert len(list((tmp_path / "out" / "cif").glob("*.cif"))) == 2, out + errors[-3000:]


FAILING = """
from matgen_nb.diffusion.pretrained import find_weights
try:
    find_weights({name!r})
except Exception as error:
    print(type(error).__name__, error)
"""


def test_what_cannot_be_fetched_is_said(hub):
    hub.repos["me/empty"] = {"README.md": b"nothing"}
    hub.repos["me/x"] = {"model.safetensors": b"1"}
    cases = {
        "hub:me/absent": "does not exist, or is private",
        "hub:me/x@v9": "does not exist, or is private",
        "hub:me/empty": "holds no model.safetensors",
        "hub:me": "hub:owner/name",
        "hub:a/b/c": "hub:owner/name",
    }
    for name, reported in cases.items():
        out, errors = hub.run(FAILING.format(name=name))
        assert out.startswith("MatgenError") and reported in out, f"{name}: {out} {errors[-2000:]}"


def test_without_a_network_the_cache_is_used_or_the_message_says_what_to_do(hub):
    hub.repos["me/x"] = {"model.safetensors": b"1"}
    fetch = "from matgen_nb.diffusion.pretrained import find_weights; print(find_weights('hub:me/x').read_bytes())"
    assert hub.run(fetch)[0] == "b'1'"
    assert hub.run(fetch, HF_HUB_OFFLINE="1")[0] == "b'1'", "what was fetched once is there"
    unplugged = dict(HF_ENDPOINT="http://127.0.0.1:9")
    assert hub.run(fetch, **unplugged)[0] == "b'1'"
    for more in (dict(HF_HUB_OFFLINE="1"), unplugged):
        out, errors = hub.run(FAILING.format(name="hub:me/other"), **more)
        assert "cannot be reached" in out and "give their folder" in out, out + errors[-2000:]


def test_a_wrong_token_is_no_traceback(hub):
    code = """
from matgen_nb import SymmCD
try:
    SymmCD.from_pretrained("symmcd-mp20-small").push_to_hub("me/x")
except Exception as error:
    print(type(error).__name__, error)
"""
    out, errors = hub.run(code, HF_TOKEN="wrong")
    assert out.startswith("MatgenError") and "hub:me/x" in out and not hub.repos, out + errors[-2000:]


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MatgenError, match=r"matgen_nb\[hub\]"):
        find_weights("hub:me/x")


def test_folder_has_the_conventions_of_the_hub(tmp_path):
    from huggingface_hub import ModelCard

    from matgen_nb import SymmCD

    model = SymmCD.from_pretrained("symmcd-mp20-small")
    model.save_folder(tmp_path / "x", "me/x", license="cc-by-4.0")
    data = ModelCard.load(tmp_path / "x" / "README.md").data
    assert data.library_name == "matgen_nb" and data.license == "cc-by-4.0" and "symmcd" in data.tags
    texts, _ = load_tensors(tmp_path / "x" / "model.safetensors")
    stated = json.loads((tmp_path / "x" / "config.json").read_text())
    assert json.loads(texts["config"]).items() <= stated.items(), "header and config.json say the same"
    own = "---\nlicense: mit\n---\n# mine\n"
    assert model_card(model, "me/x", own) == own and "# mine" in model_card(model, "me/x", "# mine")
