"""What weights keep beside the network: small tensors, read back within a stated error, old files as well."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb import MofDiff, assemble
from matgen_nb.diffusion.pretrained import (
    find_weights,
    in_steps,
    pack_tensors,
    pull_names,
    put_names,
    smallest_integers,
    unpack_tensors,
)
from matgen_nb.mofdiff.model import COORDINATE_STEP
from matgen_nb.mofdiff.net_fitting import carry, misfit, site_of_block
from matgen_nb.utils import content_hash, load_tensors, tensor_bytes


@given(st.lists(st.integers(-(2**40), 2**40), max_size=8), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_integers_are_kept_whatever_their_size(numbers, shift):
    values = torch.tensor(numbers, dtype=torch.int64) // 2**shift
    small = smallest_integers(values)
    assert torch.equal(small.long(), values) and small.element_size() <= values.element_size()
    assert torch.equal(unpack_tensors(pack_tensors(dict(n=values)))["n"].long(), values)


@pytest.mark.parametrize("largest, kind", [(255, torch.uint8), (256, torch.int16), (70_000, torch.int32)])
def test_integers_take_the_smallest_type(largest, kind):
    assert smallest_integers(torch.tensor([0, largest])).dtype == kind
    assert smallest_integers(torch.tensor([True])).dtype == torch.bool


@given(st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=9), st.sampled_from([1e-3, 5e-5, 0.1]))
@settings(max_examples=60, deadline=None)
def test_steps_lose_at_most_half_a_step_or_nothing(numbers, step):
    "Numbers beyond 16 bits stay in single precision: nothing is cut off."
    x = torch.tensor(numbers)
    packed = pack_tensors(dict(x=x), dict(x=step))
    back = unpack_tensors(packed)["x"]
    if in_steps(x, step) is None:
        assert packed.keys() == {"x"} and torch.equal(back, x)
    else:
        assert (back - x).abs().max() <= step / 2 + 1e-5 * float(x.abs().max())
        again = pack_tensors(dict(x=back), dict(x=step))
        assert all(torch.equal(t, packed[name]) for name, t in again.items()), "a second time changes nothing"


def test_embeddings_too_large_for_half_precision_are_not_infinite():
    small, large = torch.tensor([1.5, -3.0]), torch.tensor([1.5, 1e6])
    packed = pack_tensors(dict(a=small, b=large), half=("a", "b"))
    assert packed["a"].dtype == torch.float16 and packed["b"].dtype == torch.float32
    assert torch.equal(unpack_tensors(packed)["b"], large) and in_steps(torch.tensor([torch.nan]), 1) is None


@pytest.mark.parametrize(
    "value, moved",
    [
        ([f"{k:016x}" for k in range(100)], True),
        ([f"{k:016x}" for k in range(10)], False),  # few: better read in the header
        ([f"{k:016X}" for k in range(255, 355)], False),  # capitals would not come back
        ([f"{k:x}" for k in range(100)], False),  # different lengths
        ([f"{k:03x}" for k in range(100)], False),  # half bytes
        (list(range(100)), False),
        ([""] * 100, False),
        ("ab" * 100, False),
    ],
)
def test_lists_of_names_become_bytes_and_come_back(value, moved):
    values = dict(source="x", names=value)
    rest, tensors = pull_names(values, "info")
    assert bool(tensors) == moved and ("names" in rest) != moved
    assert put_names(rest, tensors, "info") == values == put_names(rest, tensors, "info", "names", "other")


def in_single_precision(path, out):
    "The same weights as files were before numbers were stored in steps: library and nets as plain numbers."
    texts, tensors = load_tensors(path)
    of_blocks = {n: t for n, t in tensors.items() if n.startswith(("library.", "nets."))}
    plain = {
        n: t.float() if t.is_floating_point() else t.long() for n, t in unpack_tensors(of_blocks).items()
    }
    names = {n: t for n, t in of_blocks.items() if n.endswith(("identities", "keys"))}
    out.write_bytes(tensor_bytes(tensors_without(tensors, of_blocks) | plain | names, texts))


def tensors_without(tensors, some):
    return {name: t for name, t in tensors.items() if name not in some}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    "The framework model that ships, from an old file and from one written again; both paths."
    folder = tmp_path_factory.mktemp("small")
    in_single_precision(find_weights("mofdiff-small"), folder / "old.safetensors")
    old = MofDiff.from_pretrained(folder / "old.safetensors")
    path = folder / "model.safetensors"
    old.save_pretrained(path, old.info, torch.bfloat16)
    return old, MofDiff.from_pretrained(path), path


def test_library_and_nets_come_back_from_a_smaller_file(both, tmp_path):
    old, new, path = both
    before, after = (p.stat().st_size for p in (path.with_name("old.safetensors"), path))
    assert after < 0.85 * before and new.info == old.info
    shipped = MofDiff.from_pretrained("mofdiff-small").library
    assert [b.identity for b in shipped.blocks] == [b.identity for b in old.library.blocks]
    assert len(new.library) == len(old.library) and torch.equal(new.library.charges, old.library.charges)
    for a, b in zip(old.library.blocks, new.library.blocks):
        assert a.identity == b.identity and a.is_metal == b.is_metal
        assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("elements", "bonds"))
        assert np.array_equal(a.connection_atoms, b.connection_atoms)
        for field in ("cart_coords", "connection_points"):
            assert np.abs(getattr(a, field) - getattr(b, field)).max() < 0.51 * COORDINATE_STEP
    torch.testing.assert_close(new.library.embeddings, old.library.embeddings, rtol=5e-4, atol=1e-4)
    new.save_pretrained(tmp_path / "again.safetensors", new.info, torch.bfloat16)
    assert content_hash(tmp_path / "again.safetensors") == content_hash(path), "a second time changes nothing"


def test_nets_come_back(both):
    old, new, _ = (*both[:2], None)
    assert old.nets.keys == new.nets.keys and old.nets.info == new.nets.info
    for a, b in zip(old.nets.nets, new.nets.nets, strict=True):
        assert (a.name, a.count, a.kinds) == (b.name, b.count, b.kinds)
        assert np.array_equal(a.edges, b.edges) and np.array_equal(a.shifts, b.shifts)
        assert np.abs((a.frac_coords - b.frac_coords) @ a.lattice).max() < 0.005
        assert [list(c) for c in a.classes] == [list(c) for c in b.classes]
        assert max(np.abs(s.shape - t.shape).max() for s, t in zip(a.sites, b.sites)) < 0.002


def test_frameworks_close_as_before(both):
    "Nets of both files with the blocks of both libraries: the same ones close, without a clash."
    sizes = sorted(range(len(both[0].nets)), key=lambda k: (len(both[0].nets.nets[k]), k))[:4]
    outcomes = []
    for model in both[:2]:
        blocks, rows = model.library.blocks, []
        for net in (model.nets.nets[k] for k in sizes):
            best = misfit([site_of_block(b) for b in blocks], net.sites).argmin(0)
            rows.append(assemble(carry(net, [blocks[k] for k in best])).row)
        outcomes.append([(row["matched"], row["assembled"]) for row in rows])
    assert outcomes[0] == outcomes[1] and any(closed for *_, closed in outcomes[0])
