"""Block encoder: invariances, losses against double loops, ragged batches, files that must not load, and that it learns what is the same."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from matgen_nb.mofdiff.building_blocks import BuildingBlock
from matgen_nb.mofdiff.embedding import (
    BlockConfig,
    BlockData,
    BlockEncoder,
    block_pairs,
    disguised,
    embedding_map,
    make_batch,
    nearest_embedding,
    release_contrastive,
    retrieval,
    sizes,
    supervised_contrastive,
    take,
    views,
)
from matgen_nb.mofdiff.rigid import random_rotation
from matgen_nb.utils import MatgenError

SEEDS = st.integers(0, 10_000)


def random_block(seed, n=None, c=None, spread=3.0):
    "A block of random atoms, a tree of bonds, and connection points near random atoms."
    rng = np.random.default_rng(seed)
    n, c = n or int(rng.integers(1, 25)), int(rng.integers(0, 7)) if c is None else c
    coords = spread * rng.normal(size=(n, 3))
    bonds = np.array([(k, rng.integers(k)) for k in range(1, n)]).reshape(-1, 2)
    docks = rng.integers(n, size=c)
    return BuildingBlock(
        rng.choice([1, 6, 7, 8, 29, 30, 40], n),
        coords,
        bonds,
        coords[docks] + rng.normal(size=(c, 3)),
        docks,
        bool(rng.integers(2)),
        f"block {seed}",
    )


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return BlockEncoder(BlockConfig.preset("small")).eval()


def spread(encoder):
    return encoder.encode([random_block(s) for s in range(30)]).std(0).mean()


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_orientation_place_and_numbering_do_not_matter(encoder, seed):
    block, rng = random_block(seed), np.random.default_rng(seed)
    moved = [
        replace(
            block,
            cart_coords=block.cart_coords @ R.T + t,
            connection_points=block.connection_points @ R.T + t,
        )
        for R, t in ((random_rotation(rng), np.zeros(3)), (np.eye(3), 50 * rng.normal(size=3)))
    ]
    z = encoder.encode([block, *moved, disguised(block, rng, sigma=0)])
    assert (z[1:] - z[0]).abs().max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_every_other_change_matters(encoder, seed):
    block = random_block(seed, n=12, c=4, spread=1.0)  # every bond within reach
    longer = replace(block, cart_coords=1.05 * block.cart_coords)
    other = replace(block, elements=np.where(np.arange(12) == 3, 17, block.elements))
    unbonded, unplugged = (
        replace(block, bonds=block.bonds[1:]),
        replace(
            block, connection_points=block.connection_points[1:], connection_atoms=block.connection_atoms[1:]
        ),
    )
    docked = replace(block, connection_atoms=(block.connection_atoms + np.array([1, 0, 0, 0])) % 12)
    z = encoder.encode([block, longer, other, unbonded, unplugged, docked])
    assert ((z[1:] - z[0]).norm(dim=1) > 1e-5 * spread(encoder)).all()  # rounding: 1e-7


def test_blocks_of_a_batch_do_not_see_each_other(encoder):
    blocks = [random_block(s) for s in range(20)]
    alone = torch.cat([encoder.encode([b]) for b in blocks])
    assert torch.allclose(encoder.encode(blocks), alone, atol=1e-6)
    assert torch.allclose(encoder.encode(blocks, pairs=300), alone, atol=1e-6), "small portions"
    assert encoder.encode([]).shape == (0, 32)


def test_nothing_jumps_at_the_cutoff(encoder):
    def pair(d):
        return BuildingBlock([30, 8], [[0, 0, 0], [d, 0, 0]], [], [], [], True)

    near, at, far = encoder.encode([pair(6.999), pair(7.0), pair(7.001)])
    assert (near - far).abs().max() < 1e-3 * max(spread(encoder), 0.01) + 1e-3 and torch.isfinite(at).all()


def test_one_atom_and_no_connection_point(encoder):
    z = encoder.encode([random_block(1, n=1, c=0), random_block(1, n=1, c=4), random_block(2, n=2, c=0)])
    assert torch.isfinite(z).all() and (z[0] - z[1]).norm() > 1e-3


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_pairs_against_a_double_loop(seed):
    blocks = [random_block(seed + k) for k in range(4)]
    batch = make_batch(blocks)
    i, j, distance, bonded, diameter = block_pairs(batch, 5.0)
    got = {(int(a), int(b)): (float(d), float(f)) for a, b, d, f in zip(i, j, distance, bonded)}
    want, first = {}, 0
    for block, width in zip(blocks, diameter):
        x, n = np.concatenate([block.cart_coords, block.connection_points]), len(block)
        joined = {tuple(sorted(b)) for b in block.bonds.tolist()} | {
            (a, n + k) for k, a in enumerate(block.connection_atoms.tolist())
        }
        assert abs(block.diameter - float(width)) < 1e-4
        want |= {
            (first + a, first + b): (np.linalg.norm(x[a] - x[b]), float((a, b) in joined))
            for a in range(len(x))
            for b in range(a + 1, len(x))
            if np.linalg.norm(x[a] - x[b]) < 5.0
        }
        first += len(x)
    assert got.keys() == want.keys()
    assert all(abs(got[p][0] - want[p][0]) < 1e-4 and got[p][1] == want[p][1] for p in want)


def test_sizes_are_those_of_the_blocks():
    blocks = [random_block(s) for s in range(8)]
    batch = make_batch(blocks)
    known = sizes(batch, block_pairs(batch, 7.0)[-1]).expm1().numpy()
    assert np.allclose(known, [(len(b), b.num_connections, b.diameter) for b in blocks], atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 7), min_size=1, max_size=12))
def test_taking_is_building_anew(seed, indices):
    blocks = [random_block(seed + k) for k in range(8)]
    data = BlockData(blocks)
    taken, built = data.select(torch.tensor(indices)), make_batch([blocks[k] for k in indices])
    for name in ("elements", "batch", "bonds", "num_nodes", "num_bonds", "coords"):
        assert torch.equal(getattr(taken, name), getattr(built, name)), name
    assert [data.names[k] for k in taken.identity.tolist()] == [blocks[k].identity for k in indices]


def loops(p, identity, tau):
    "Both losses in float64, term by term."
    p, n = np.asarray(p, dtype=np.float64), len(identity)
    ours, released = [], []
    for i in range(n):
        same = [k for k in range(n) if identity[k] == identity[i]]
        e = [math.exp(p[i] @ p[k] / tau) for k in range(n)]
        partners = [k for k in same if k != i]
        if partners:
            ours.append(
                -sum(math.log(e[k] / sum(e[a] for a in range(n) if a != i)) for k in partners) / len(partners)
            )
        above, below = sum(e[k] for k in same), sum(e[k] for k in range(n) if k not in same)
        released.append(-math.log(above / below) if below else -math.inf)
    return (np.mean(ours) if ours else 0.0), np.mean(released)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 4), min_size=2, max_size=12), st.sampled_from([0.1, 0.5]))
def test_losses_against_double_loops(seed, identity, tau):
    p = torch.nn.functional.normalize(
        torch.randn(len(identity), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
        dim=1,
    )
    ours, released = loops(p.numpy(), identity, tau)
    assert np.isclose(supervised_contrastive(p, torch.tensor(identity), tau).item(), ours) and ours >= 0
    assert np.isclose(release_contrastive(p, torch.tensor(identity), tau).item(), released)
    assert np.isclose(
        supervised_contrastive(p.float(), torch.tensor(identity), tau).item(), ours, rtol=1e-4, atol=1e-5
    )


def test_losses_at_the_edges():
    p = torch.nn.functional.normalize(
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1
    ).requires_grad_()
    assert release_contrastive(p, torch.zeros(6)) == -torch.inf
    assert torch.isclose(
        supervised_contrastive(torch.ones(6, 1), torch.zeros(6)), torch.tensor(math.log(5.0))
    )
    alone = supervised_contrastive(p, torch.arange(6))
    assert alone == 0 and torch.isfinite(torch.autograd.grad(alone, p)[0]).all(), "nobody has a partner"
    assert supervised_contrastive(p[:1], torch.zeros(1)) == 0


@pytest.mark.parametrize(
    "contrastive, space", [("supervised", "embedding"), ("release", "embedding"), ("release", "projection")]
)
def test_loss_is_finite_repeatable_and_reaches_every_weight(contrastive, space):
    torch.manual_seed(0)
    model = BlockEncoder(BlockConfig.preset("tiny", contrastive=contrastive, space=space))
    batch = BlockData([random_block(s) for s in range(8)]).select(range(8))
    first, again, other = (model.loss(batch, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first["loss"] == again["loss"] != other["loss"] and set(first) == {
        "loss",
        "contrastive",
        "atoms",
        "connections",
        "diameter",
    }
    assert torch.isclose(
        first["loss"], 5 * first["contrastive"] + first["atoms"] + first["connections"] + first["diameter"]
    )
    first["loss"].backward()
    for name, weight in model.named_parameters():
        assert (
            weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().sum() > 0
        ), name


def test_every_block_of_a_step_has_a_partner():
    batch = BlockData([random_block(s) for s in range(5)]).select([3, 1, 4])
    seen = views(batch, 3, 0.2, torch.Generator().manual_seed(0))
    assert seen.identity.tolist() == batch.identity.tolist() * 3
    moved = (seen.coords - take(batch, list(range(3)) * 3).coords).square().mean().sqrt()
    assert 0 < moved < 0.2 and torch.equal(views(batch, 2, 0.0).coords, batch.coords.repeat(2, 1))


def test_losses_under_autocast():
    torch.manual_seed(0)
    model, batch = (
        BlockEncoder(BlockConfig.preset("tiny")),
        BlockData([random_block(s) for s in range(8)]).select(range(8)),
    )
    exact = model.loss(batch, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.loss(batch, torch.Generator().manual_seed(0))
    assert rough["loss"].dtype == torch.float32 and torch.isclose(exact["loss"], rough["loss"], rtol=0.1)


def test_it_learns_which_blocks_are_the_same_and_the_trainer_drives_it(tmp_path):
    from matgen_nb.scale.optimization import TrainConfig
    from matgen_nb.scale.training import Trainer

    blocks = [random_block(s, n=10, c=3) for s in range(24)]
    blocks += [disguised(b, np.random.default_rng(0), 0.3) for b in blocks]  # conformers
    torch.manual_seed(0)
    model = BlockEncoder(BlockConfig.preset("tiny", rattle=0.3))
    config = TrainConfig(
        steps=60,
        batch_size=24,
        lr=3e-3,
        warmup_steps=5,
        ema_decay=0,
        log_every=10,
        device="cpu",
        progress=False,
    )
    queries = [disguised(b, np.random.default_rng(1), 0.3) for b in blocks[:24]]
    noise = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))

    def found(model):
        z = model.encode(blocks[:24])
        return (nearest_embedding(z + 0.7 * z.std(0) * noise, z) == torch.arange(24)).float().mean()

    before = found(model)
    history = Trainer(model, BlockData(blocks), config, tmp_path).fit()
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    result = retrieval(model, queries, blocks[:24])
    assert result["identity"] > 0.9 and result["connections"] == 1.0 and result["n"] == 24
    assert found(model) > max(before, 0.8), (
        "the embedding itself, not only a projection of it, keeps blocks apart"
    )


def test_retrieval_leaves_out_what_the_library_lacks(encoder):
    blocks = [random_block(s) for s in range(10)]
    assert math.isnan(retrieval(encoder, blocks[:3], blocks[3:])["identity"])
    assert retrieval(encoder, blocks[:4], blocks[3:])["identity"] == 1.0, "only the last is there"
    assert retrieval(encoder, blocks[:4], blocks[:1])["n"] == 4, "a library of one"


def test_map_is_drawn(encoder):
    figure = embedding_map(encoder, [random_block(s) for s in range(12)], draw=3)
    assert len(figure.axes) == 2


def test_bad_blocks_and_data():
    with pytest.raises(MatgenError, match="no building block"):
        BlockData([])
    with pytest.raises(MatgenError, match="2 identities for 1"):
        BlockData([random_block(0)], ["a", "b"])
    with pytest.raises(MatgenError, match="element numbers"):
        make_batch([replace(random_block(0), elements=0 * random_block(0).elements)])
    with pytest.raises(MatgenError, match="no preset"):
        BlockConfig.preset("huge")
    with pytest.raises(MatgenError, match="contrastive"):
        BlockEncoder(BlockConfig(contrastive="hope"))
    with pytest.raises(MatgenError, match="space"):
        BlockEncoder(BlockConfig(space="outer"))


def test_files(tmp_path, encoder):
    path = tmp_path / "model.safetensors"
    encoder.save_pretrained(path, info={"data": "random"})
    loaded = BlockEncoder.from_pretrained(tmp_path)
    blocks = [random_block(s) for s in range(5)]
    assert (
        loaded.config == encoder.config
        and loaded.info == {"data": "random"}
        and torch.equal(loaded.encode(blocks), encoder.encode(blocks))
    )
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:30_000])
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors", {"format": "pt"})
    save_file(
        {"w": torch.zeros(2)},
        tmp_path / "newer.safetensors",
        {"format": "matgen_nb blocks 1", "config": '{"heads": 3}'},
    )
    save_file(
        {"w": torch.zeros(2)},
        tmp_path / "empty.safetensors",
        {"format": "matgen_nb blocks 1", "config": "{}"},
    )
    for name, reason in dict(
        cut="cut short",
        foreign="another model",
        newer="does not fit",
        empty="does not fit",
        absent="no weights",
    ).items():
        with pytest.raises(MatgenError, match=reason):
            BlockEncoder.from_pretrained(tmp_path / f"{name}.safetensors")
    with pytest.raises(MatgenError, match="another model"):
        BlockEncoder.from_pretrained("symmcd-mp20-small")
