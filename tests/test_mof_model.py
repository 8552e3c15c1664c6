"""The coarse-grained MOF model: symmetries of its networks, codes that see geometry, cells that exist, losses, weights, the joint choice of blocks."""

import itertools
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.diffusion.layers import fourier, radial
from matgen_nb.mofdiff.data import MofBatch, MofData
from matgen_nb.mofdiff.loss import MIDDLE
from matgen_nb.mofdiff.model import (
    Library,
    MofDiff,
    MofDiffConfig,
    squash,
    mof_statistics,
    thin_library,
    unsquash,
)
from matgen_nb.mofdiff.network import (
    BeadDenoiser,
    BeadEncoder,
    Beads,
    BeadNetworkConfig,
    all_pairs,
    edge_features,
    half_of,
    joined,
    pair_geometry,
    radial_table,
    toy_embeddings,
    toy_mofs,
    windowed_images,
    without_mean,
)
from matgen_nb.diffusion.sampler import DenoisingOptions
from matgen_nb.mofdiff.decoding import balance, choose_blocks, decode, denoise
from matgen_nb.mofdiff.sampling import MofSamplingOptions, NetDecoder, NetOptions, filled_share
from matgen_nb.diffusion.sampler import time_grid
from matgen_nb.symmetry.lattice import lattice_to_k, volume
from matgen_nb.utils import MatgenError

CONFIG = BeadNetworkConfig(width=32, layers=2, encoder_layers=2, latent=8, features=5)


@lru_cache
def toy_data(n=80):
    data = MofData.from_coarse(toy_mofs(n, seed=2))
    return data.with_embeddings(toy_embeddings(data.library))


@lru_cache
@torch.enable_grad()
def tiny(steps=0, **changes):
    "A tiny model, after some steps of training."
    torch.manual_seed(0)
    model = MofDiff(
        MofDiffConfig.preset("tiny", width=32, layers=2, latent=8, **changes), mof_statistics(toy_data())
    )
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        loss = model.loss(toy_data().select(torch.randint(80, (32,), generator=generator)), generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def random_lattice(g):
    "A cell of 8 to 20 A with moderate shear."
    return torch.diag(8 + 12 * torch.rand(3, generator=g)) + 2 * torch.randn(3, 3, generator=g)


def random_beads(seed, sizes=(1, 2, 7, 20), d=5):
    g = torch.Generator().manual_seed(seed)
    sizes, B = torch.tensor(sizes), len(sizes)
    lattice = torch.stack([random_lattice(g) for _ in range(B)])
    batch = torch.repeat_interleave(torch.arange(B), sizes)
    r = lambda *shape: torch.randn(*shape, generator=g)
    return Beads(
        lattice_to_k(lattice),
        lattice,
        sizes,
        torch.rand(len(batch), 3, generator=g),
        r(len(batch), d),
        batch,
        torch.rand(B, generator=g),
        0.01 + 0.4 * torch.rand(B, generator=g),
        r(B, 8),
    )


def random_batch(seed, sizes):
    "A `MofBatch` of any sizes, features of the toy library, properties partly unknown."
    b, data = random_beads(seed, sizes), toy_data()
    block = torch.randint(len(data.library), (len(b.batch),), generator=torch.Generator().manual_seed(seed))
    y = torch.where(torch.arange(len(sizes)) % 2 == 0, torch.nan, 300.0)[:, None]
    return MofBatch(b.lattice, b.num_blocks, b.x, block, data.embeddings[block], b.batch, y)


def rotation(seed):
    Q = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )[0]
    return (Q * torch.linalg.det(Q).sign()).float()


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(1)
    return BeadEncoder(CONFIG).eval(), BeadDenoiser(CONFIG).eval()


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_networks_do_not_see_rotation_translation_and_order(networks, seed):
    encoder, denoiser = networks
    b, Q, g = random_beads(seed), rotation(seed), torch.Generator().manual_seed(seed)
    order = torch.cat(
        [
            rows[torch.randperm(len(rows), generator=g)]
            for rows in ((b.batch == m).nonzero()[:, 0] for m in range(4))
        ]
    )
    shift = torch.rand(4, 3, generator=g)[b.batch] + torch.randint(-2, 3, b.x.shape, generator=g)
    other = replace(
        b,
        lattice=b.lattice @ Q,
        k=lattice_to_k(b.lattice @ Q),
        x=(b.x + shift)[order],
        features=b.features[order],
    )
    with torch.no_grad():
        mu, mu2, (f, s), (f2, s2) = encoder(b)[0], encoder(other)[0], denoiser(b), denoiser(other)
    assert torch.allclose(mu, mu2, atol=2e-4)
    assert torch.allclose(f[order], f2, atol=2e-4) and torch.allclose(
        s[order], s2, atol=5e-4 * float(s.abs().max().clamp(min=1))
    )
    cart, cart2 = (s[:, None] @ b.lattice[b.batch])[order], s2[:, None] @ other.lattice[b.batch]
    assert torch.allclose(cart @ Q, cart2, atol=1e-4 * float(cart.abs().max())), (
        "the Cartesian score turns with the lattice"
    )


def test_mofs_of_a_batch_do_not_see_each_other(networks):
    b = random_beads(3)
    with torch.no_grad():
        f, s = networks[1](b)
    for m in range(4):
        rows = b.batch == m
        one = Beads(
            b.k[m : m + 1],
            b.lattice[m : m + 1],
            b.num_blocks[m : m + 1],
            b.x[rows],
            b.features[rows],
            b.batch[rows] * 0,
            b.t[m : m + 1],
            b.sigma[m : m + 1],
            b.z[m : m + 1],
        )
        with torch.no_grad():
            f1, s1 = networks[1](one)
        assert torch.allclose(f1, f[rows], atol=1e-4) and torch.allclose(s1, s[rows], atol=1e-4)


def test_score_has_no_common_motion(networks):
    b = random_beads(4)
    with torch.no_grad():
        s = networks[1](b)[1]
    assert torch.allclose(without_mean(s, b.batch, b.num_blocks), s, atol=1e-5)
    assert s[:1].abs().max() < 1e-6, "a single bead has nowhere to go"


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_geometry_is_smooth_and_periodic(seed):
    g = torch.Generator().manual_seed(seed)
    x, lattice, zero = (
        torch.rand(2, 3, generator=g, dtype=torch.float64),
        random_lattice(g).double()[None],
        torch.zeros(4, dtype=torch.long),
    )
    i, j = all_pairs(torch.tensor([2]))
    x[1, 0] = x[0, 0] + 0.5  # on the seam, where the minimum image jumps
    across = [
        pair_geometry(x + torch.tensor([[0.0, 0, 0], [e, 0, 0]]), lattice, i, j, zero) for e in (-1e-6, 1e-6)
    ]
    moved = pair_geometry(x + torch.tensor([[0.0, 0, 0], [1, -2, 3]]), lattice, i, j, zero)
    here = pair_geometry(x, lattice, i, j, zero)
    for n in (0, 1):
        assert (across[0][n] - across[1][n]).abs().max() < 1e-4
        assert torch.allclose(moved[n], here[n], atol=1e-9)
    weights = windowed_images(torch.rand(5, 3, generator=g, dtype=torch.float64) * 4 - 2)[1]
    assert torch.allclose(weights.sum(1), torch.ones(5, dtype=torch.float64)) and (weights >= 0).all()


@pytest.mark.parametrize("cutoff", [None, 4.0])
def test_the_code_sees_geometry(cutoff):
    "Beads 6.3 A apart (the median of real MOFs): with the release's cutoff of 4 A the code does not change when the geometry does; ours does."
    torch.manual_seed(0)
    encoder = BeadEncoder(replace(CONFIG, cutoff=cutoff))
    lattice = 12.6 * torch.eye(3)[None]
    x = torch.tensor([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])
    b = Beads(
        lattice_to_k(lattice),
        lattice,
        torch.tensor([4]),
        x,
        torch.randn(4, 5),
        torch.zeros(4, dtype=torch.long),
    )
    stretched = lattice * torch.tensor([1.0, 1.1, 1.3])[:, None]
    moved = x + torch.tensor([[0, 0, 0], [0, 0, 0.1], [0, 0, 0], [0, 0, 0]])
    with torch.no_grad():
        z, *others = (
            encoder(v)[0]
            for v in (b, replace(b, lattice=stretched, k=lattice_to_k(stretched)), replace(b, x=moved))
        )
    for other in others:
        assert torch.equal(z, other) if cutoff else (z - other).norm() > 1e-3 * z.norm()


@given(st.integers(0, 10**6), st.sampled_from([1.0, 30.0, 1e6, 1e30]))
@settings(max_examples=20, deadline=None)
def test_cells_always_exist(seed, scale):
    "Of any six numbers and any K; and so of any code."
    model, g = tiny(), torch.Generator().manual_seed(seed)
    K = torch.randint(1, 21, (200,), generator=g)
    cells = [model.cells(scale * torch.randn(200, 6, generator=g), K)]
    with torch.no_grad():
        cells.append(model.cells(model.decode_k(scale * torch.randn(200, 8, generator=g), K), K))
    for cell in cells:
        assert (
            cell.isfinite().all()
            and (volume(cell.double()) > 10).all()
            and (volume(cell.double()) < 1e7).all()
        )
        lengths = cell.double().norm(dim=-1)
        assert (volume(cell.double()) / lengths.prod(-1) > 1e-3).all(), "not flat"


def test_loss_is_finite_for_every_number_of_beads():
    "Also for numbers that the training set does not have (a validation set may)."
    for seed, sizes in ((1, range(1, 21)), (2, [1]), (3, [1, 1, 30])):
        model = tiny()
        model.zero_grad()
        parts = model.loss(random_batch(seed, list(sizes)), torch.Generator().manual_seed(seed))
        assert all(v.isfinite() for v in parts.values()), (sizes, parts)
        parts["loss"].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_same_seed_same_loss_and_all_unknown_properties():
    batch = toy_data().select(range(20))
    blank = replace(batch, properties=torch.full_like(batch.properties, torch.nan))
    losses = [tiny().loss(b, torch.Generator().manual_seed(5)) for b in (batch, batch, blank)]
    assert (
        losses[0]["loss"] == losses[1]["loss"]
        and losses[2]["properties"] == 0
        and losses[2]["loss"].isfinite()
    )


def test_training_helps():
    batch = toy_data().select(range(80))
    with torch.no_grad():
        before, after = (
            np.mean([tiny(n).loss(batch, torch.Generator().manual_seed(s))["loss"].item() for s in range(3)])
            for n in (0, 60)
        )
    assert after < 0.7 * before, (before, after)


def test_half_precision_keeps_the_geometry():
    batch = toy_data().select(range(40))
    with torch.no_grad():
        whole = tiny().loss(batch, torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            half, b = tiny().loss(batch, torch.Generator().manual_seed(0)), tiny().beads(batch)
            cells = tiny().cells(b.k, b.num_blocks)
    assert abs(whole["loss"] - half["loss"]) < 0.05 * whole["loss"] and cells.dtype == torch.float32
    assert torch.allclose(volume(cells), volume(batch.lattice), rtol=1e-3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_squash_comes_back(values):
    y = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(unsquash(squash(y)), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MofDiffConfig.PRESETS)
def test_presets_give_a_loss(name):
    torch.manual_seed(0)
    model = MofDiff(
        MofDiffConfig.preset(name, width=32, layers=1, encoder_layers=1, latent=8), mof_statistics(toy_data())
    )
    assert model.loss(toy_data().select(range(10)), torch.Generator().manual_seed(0))["loss"].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_with_their_library(tmp_path, dtype):
    model = tiny(60)
    model.save_pretrained(tmp_path / "m.safetensors", dict(data="toy"), dtype=dtype)
    loaded = MofDiff.from_pretrained(tmp_path / "m.safetensors")
    assert (
        loaded.config == model.config
        and loaded.info == dict(data="toy")
        and loaded.property_names == model.property_names
    )
    for a, b in zip(loaded.library.blocks, model.library.blocks):
        assert (
            np.allclose(a.connection_points, b.connection_points, atol=5.1e-4)
            and a.is_metal == b.is_metal
            and a.identity == b.identity
        )
    if dtype == torch.float32:
        a, b = (
            m.sample(4, seed=1, options=MofSamplingOptions(steps=5, progress=False)) for m in (loaded, model)
        )
        for one, other in zip(a, b):  # the library is stored to 0.001 A, its embeddings to three digits
            assert one.row.keys() == other.row.keys()
            for name, value in one.row.items():
                same = (
                    pytest.approx(other.row[name], rel=5e-3) if isinstance(value, float) else other.row[name]
                )
                assert value == same, name
    else:
        assert (tmp_path / "m.safetensors").stat().st_size < 3e6


def test_bad_weights_are_rejected(tmp_path):
    from safetensors.torch import save_file

    tiny().save_pretrained(tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:20000])
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors", {"format": "matgen_nb symmcd 1"})
    save_file(
        {"x": torch.zeros(2)},
        tmp_path / "odd.safetensors",
        {"format": "matgen_nb mofdiff 1", "config": "{}", "identities": "[]", "property_names": "[]"},
    )
    for name, words in [
        ("cut", "cut short"),
        ("foreign", "another model"),
        ("odd", "does not fit"),
        ("absent", "no weights"),
    ]:
        with pytest.raises(MatgenError, match=words):
            MofDiff.from_pretrained(tmp_path / f"{name}.safetensors")


def test_data_without_or_with_other_embeddings_are_rejected():
    with pytest.raises(MatgenError, match="no block embeddings"):
        mof_statistics(MofData.from_coarse(toy_mofs(3)))
    batch = toy_data().select(range(3))
    with pytest.raises(MatgenError, match="embeddings of size 7"):
        tiny().loss(replace(batch, features=torch.zeros(len(batch.block), 7)))


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_balance_is_the_best_of_all_combinations(seed):
    rng = np.random.default_rng(seed)
    kinds = torch.tensor(sorted(rng.choice([-6, -4, -3, -2, 3, 4, 6, 12], 4, replace=False)))
    sizes = rng.integers(1, 6, 3)
    cost = torch.as_tensor(rng.random((3, 5, 4)))
    choice, total = balance(cost, kinds, torch.as_tensor(sizes))
    for b, n in enumerate(sizes):
        ways = {
            c: sum(float(cost[b, i, k]) for i, k in enumerate(c))
            for c in itertools.product(range(4), repeat=int(n))
            if int(kinds[list(c)].sum()) == 0
        }
        assert total[b].isinf() if not ways else np.isclose(float(total[b]), min(ways.values()))
        if ways:
            assert tuple(choice[b, :n].tolist()) == min(ways, key=ways.get) and (choice[b, n:] == -1).all()


def test_joint_choice_is_matched_whenever_it_can_be():
    "Random features far from any block: the worst a model can do."
    data = toy_data()
    charges = Library(data.library, data.embeddings).charges
    sizes = torch.tensor([2, 3, 5, 8, 13, 20] * 10)
    f = 3 * torch.randn(int(sizes.sum()), 16, generator=torch.Generator().manual_seed(0))
    index, distance, matched = choose_blocks(f, sizes, data.embeddings, charges)
    nearest = choose_blocks(f, sizes, data.embeddings, charges, joint=False)
    assert matched.all() and nearest[2].float().mean() < 0.5 and (distance >= nearest[1]).all()
    alone = choose_blocks(f[:3], torch.tensor([1, 2]), data.embeddings, charges)[2]
    assert alone.tolist() == [False, True], "one bead cannot be matched; the others are not harmed"


@pytest.mark.parametrize("cutoff", [None, 9.0])
@pytest.mark.parametrize("bumps,reach", [(32, 20.0), (64, 12.0)])
def test_geometry_from_the_table_is_the_formula(bumps, reach, cutoff):
    "Against a sum over all images in float64, bumps by their formula; distances behind the table's end included."
    b = random_beads(3, (1, 3, 9, 14))
    b = replace(b, lattice=b.lattice.double() * torch.tensor([1, 1, 1, 3.0])[:, None, None], x=b.x.double())
    i, j = all_pairs(b.num_blocks)
    counts, vectors = pair_geometry(
        b.x, b.lattice, i, j, b.batch[i], cutoff, BeadNetworkConfig(bumps=bumps, reach=reach)
    )
    u, weight = windowed_images(b.x[j] - b.x[i])
    distance = (u @ b.lattice[b.batch[i]]).norm(dim=-1)
    weight = weight * ((distance > 1e-6) & (distance < (cutoff or torch.inf)))
    seen = (
        torch.cat([radial(distance, bumps, reach), torch.ones_like(distance)[..., None]], -1)
        * weight[..., None]
    )
    assert torch.allclose(counts, seen.sum(1), atol=1e-5) and torch.allclose(
        vectors, torch.einsum("efb,efd->ebd", seen, u), atol=2e-5
    )
    assert (
        distance.max()
        > len(radial_table(bumps, reach, torch.float64, b.x.device)[0])
        * radial_table(bumps, reach, torch.float64, b.x.device)[1]
    )


def test_half_of_the_pairs_is_enough():
    "Edge features from half of the pairs are those of every pair by itself."
    b, config = random_beads(8, (1, 2, 7, 20)), BeadNetworkConfig(features=5)
    i, j = all_pairs(b.num_blocks)
    half, source, sign = half_of(i, j)
    assert len(half) == sum(n * (n + 1) // 2 for n in (1, 2, 7, 20)) and (sign[i == j] == 1).all()
    edge, vectors = edge_features(b, i, j, config)
    counts, straight = pair_geometry(b.x, b.lattice, i, j, b.batch[i])
    assert torch.allclose(vectors, straight, atol=1e-5)
    assert torch.allclose(
        edge, torch.cat([fourier(b.x[j] - b.x[i], 4), 4 * counts[:, :-1], counts[:, -1:]], 1), atol=1e-4
    )


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_training_times(share):
    model = MofDiff(
        MofDiffConfig.preset("tiny", width=32, layers=1, latent=8, middle=share), mof_statistics(toy_data())
    )
    t = model.sample_times(40_000, torch.Generator().manual_seed(0))
    inside = ((t > MIDDLE[0] * 1000) & (t <= MIDDLE[1] * 1000)).float().mean()
    assert (
        t.dtype == torch.int64
        and t.min() >= 1
        and t.max() <= 1000
        and abs(inside - (share + (1 - share) * (MIDDLE[1] - MIDDLE[0]))) < 0.01
    )
    assert len(t.unique()) == (1000 if share < 1 else 600)


def test_samples_of_one_latent_vector_share_what_it_says():
    model = tiny(60)
    made = model.sample(
        4, seed=1, options=MofSamplingOptions(steps=6, samples_per_latent=3, batch_size=5, progress=False)
    )
    assert len(made) == 12 and [s.row["index"] for s in made] == list(range(12))
    for group in (made[i : i + 3] for i in range(0, 12, 3)):
        says = np.array(
            [[s.row[name] for name in ("num_blocks", "volume", "predicted_volume_per_block")] for s in group]
        )
        assert np.allclose(says, says[0], rtol=1e-5)
        assert len({s.coarse.frac_coords.tobytes() for s in group}) == 3
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert (
        len(model.sample(2, z=z, options=MofSamplingOptions(samples_per_latent=5, steps=3, progress=False)))
        == 10
    )


def test_score_scale_one_is_the_learned_distribution_and_more_changes_the_coordinates():
    model = tiny(60)
    plain, sharp, again = (
        model.sample(3, seed=2, options=MofSamplingOptions(steps=6, score_scale=v, progress=False))
        for v in (1.0, 3.0, 3.0)
    )
    assert all(np.array_equal(a.coarse.frac_coords, b.coarse.frac_coords) for a, b in zip(sharp, again))
    assert all(
        not np.array_equal(a.coarse.frac_coords, b.coarse.frac_coords)
        and np.array_equal(a.coarse.lattice, b.coarse.lattice)
        for a, b in zip(plain, sharp)
    )


def test_samples_are_matched_reproducible_and_described():
    model = tiny(60)
    a, b, c = (
        model.sample(12, seed=s, options=MofSamplingOptions(steps=8, batch_size=5, progress=False))
        for s in (3, 3, 4)
    )
    assert all(
        np.array_equal(x.coarse.frac_coords, y.coarse.frac_coords) and x.row == y.row for x, y in zip(a, b)
    )
    assert any(x.row["volume"] != y.row["volume"] for x, y in zip(a, c))
    for s in a:
        metal, organic = (
            sum(block.num_connections for block in s.coarse.blocks if block.is_metal == kind)
            for kind in (True, False)
        )
        assert (
            s.row["matched"]
            and metal == organic
            and s.row["reason"] == ""
            and len(s.coarse) == s.row["num_blocks"]
        )
        assert (
            s.row["seed"] == 3
            and s.row["density"] > 0
            and np.isfinite(s.row["block_distance"])
            and "predicted_volume_per_block" in s.row
        )


@pytest.mark.parametrize(
    "target, words",
    [
        ("density=1", "a dict such as"),
        ({"density": "1"}, "a dict such as"),
        ({"density": float("nan")}, "density must be a finite number"),
        ({"density": float("inf")}, "density must be a finite number"),
        ({"colour": 1.0}, "was not trained on colour"),
    ],
)
def test_target_that_cannot_be_met_is_named(target, words):
    with pytest.raises(MatgenError, match=words):
        MofDiff.from_pretrained("mofdiff-small").sample(1, target=target)


def test_sampling_with_given_codes_targets_and_sizes():
    model = tiny(60)
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert len(model.sample(3, z=z, options=MofSamplingOptions(steps=4, progress=False))) == 3
    assert {
        s.row["num_blocks"]
        for s in model.sample(3, num_blocks=8, options=MofSamplingOptions(steps=4, progress=False))
    } == {8}
    low, high = (
        np.mean(
            [
                s.row["predicted_volume_per_block"]
                for s in model.sample(
                    6, target=dict(volume_per_block=v), options=MofSamplingOptions(steps=4, progress=False)
                )
            ]
        )
        for v in (100, 900)
    )
    assert low < high


@pytest.mark.parametrize(
    "bad,words",
    [
        (dict(n=0), "at least 1"),
        (dict(steps=0), "steps"),
        (dict(samples_per_latent=0), "samples per latent"),
        (dict(score_scale=0.5), "score scale"),
        (dict(num_blocks=3), "3 blocks"),
        (dict(z=torch.zeros(2, 9)), "shape"),
        (dict(target=dict(colour=1)), "not trained on colour"),
        (dict(prior="flat"), "prior"),
    ],
)
def test_requests_that_cannot_be_met(bad, words):
    bad = dict(bad)
    with pytest.raises(MatgenError, match=words):
        how = {k: bad.pop(k) for k in ("steps", "samples_per_latent", "score_scale", "prior") if k in bad}
        options = MofSamplingOptions(**dict(steps=3, progress=False) | how)
        tiny().sample(**dict(n=1) | bad, options=options)


def test_libraries_that_make_no_mof():
    data, model = toy_data(), tiny()
    rows = [i for i, b in enumerate(data.library) if not b.is_metal]
    no_metal = Library([data.library[i] for i in rows], data.embeddings[rows])
    with pytest.raises(MatgenError, match="no metal block"):
        model.sample(2, library=no_metal, options=MofSamplingOptions(steps=3, progress=False))
    with pytest.raises(MatgenError, match="no library"):
        model.sample(
            2, library=Library([], torch.zeros(0, 16)), options=MofSamplingOptions(steps=3, progress=False)
        )
    with pytest.raises(MatgenError, match="size 4"):
        model.sample(
            2,
            library=Library(data.library, torch.zeros(len(data.library), 4)),
            options=MofSamplingOptions(steps=3, progress=False),
        )
    rows = [
        i for i, b in enumerate(data.library) if b.num_connections == (12 if b.is_metal else 2)
    ]  # 12 a node, 2 a linker: K = 2 and 4 cannot be
    z = torch.zeros(2, 8)
    how = DenoisingOptions(steps=4, score_scale=1.0)
    clean = denoise(model, z, torch.tensor([4, 7]), None, torch.Generator().manual_seed(0), how)
    samples = decode(model, clean, Library([data.library[i] for i in rows], data.embeddings[rows]))
    assert [s.row["matched"] for s in samples] == [False, True] and "too many" in samples[0].row["reason"]


def test_toy_world_is_what_it_says():
    assert all(joined(m) == 1 for m in toy_mofs(30, seed=5)) and time_grid(1000, 5) == [
        1000,
        800,
        600,
        400,
        200,
        0,
    ]
    for m in toy_mofs(30, seed=6):
        assert sum(b.num_connections * (1 if b.is_metal else -1) for b in m.blocks) == 0


def test_library_keeps_typical_conformers_and_only_used_blocks():
    data = toy_data()
    g = torch.Generator().manual_seed(0)
    many = Library(
        data.library * 10,
        data.embeddings.repeat(10, 1) + 0.01 * torch.randn(10 * len(data.library), 16, generator=g),
    )
    few = thin_library(many, 2)
    assert len(few) == 2 * len(data.library) and {b.identity for b in few.blocks} == {
        b.identity for b in data.library
    }
    assert all(any(torch.equal(e, other) for other in many.embeddings) for e in few.embeddings)
    part = data.subset(range(5))
    assert {b.identity for b in mof_statistics(part).library.blocks} == {
        b.identity for m in (part[i] for i in range(5)) for b in m.blocks
    }


def test_the_trainer_drives_it(tmp_path):
    from matgen_nb.scale.checkpoints import load_weights
    from matgen_nb.scale.optimization import TrainConfig
    from matgen_nb.scale.training import Trainer

    make = lambda: MofDiff(
        MofDiffConfig.preset("tiny", width=32, layers=1, encoder_layers=1, latent=8),
        mof_statistics(toy_data()),
    )
    config = TrainConfig(
        steps=12, batch_size=16, log_every=4, val_fraction=0.2, val_every=6, device="cpu", progress=False
    )
    torch.manual_seed(0)
    history = Trainer(make(), toy_data(), config, tmp_path).fit()
    assert (
        np.isfinite([row["loss"] for row in history]).all()
        and {"x", "features", "prior", "kl"} <= history[-1].keys()
    )
    model = make()
    load_weights(model, tmp_path / "best.safetensors")
    assert all(
        s.row["matched"] for s in model.eval().sample(4, options=MofSamplingOptions(steps=4, progress=False))
    )


def with_nets():
    "The tiny model with the nets of its training set."
    from matgen_nb.mofdiff.net_fitting import net_table

    model = tiny()
    model.nets = net_table(toy_data())
    return model


def test_no_share_of_nets_leaves_samples_as_they_were():
    "share=0, and weights without nets: bit for bit the coordinates and rows of the model."
    model = tiny()
    model.nets = None
    plain = model.sample(6, seed=2, options=MofSamplingOptions(steps=5, progress=False))
    try:
        off = with_nets().sample(
            6, seed=2, options=MofSamplingOptions(steps=5, progress=False, nets=NetOptions(net_share=0))
        )
        part = model.sample(
            6, seed=2, options=MofSamplingOptions(steps=5, progress=False, nets=NetOptions(net_share=0.5))
        )
    finally:
        model.nets = None
    assert all(
        a.row == b.row and np.array_equal(a.coarse.frac_coords, b.coarse.frac_coords) and not b.others
        for a, b in zip(plain, off)
    )
    own = [k for k, s in enumerate(part) if s.row["net_source"] == "model"]
    assert 0 < len(own) < 6
    for k in own:
        assert (
            np.array_equal(part[k].coarse.frac_coords, plain[k].coarse.frac_coords)
            and part[k].row.items() >= plain[k].row.items()
        )


def test_samples_on_nets_are_matched_coherent_and_reproducible():
    from matgen_nb.mofdiff.nets import bead_graph

    model = with_nets()
    try:
        a, b = (
            model.sample(
                8,
                seed=1,
                options=MofSamplingOptions(steps=5, progress=False, nets=NetOptions(net_candidates=2)),
            )
            for _ in range(2)
        )
    finally:
        model.nets = None
    assert all(s.row == t.row and np.array_equal(s.coarse.lattice, t.coarse.lattice) for s, t in zip(a, b))
    for s in a:
        if s.row["net_source"] == "model":
            assert s.row["net_reason"]
            continue
        assert s.row["matched"] and len(s.others) <= 1
        charge = sum(x.num_connections * (1 if x.is_metal else -1) for x in s.coarse.blocks)
        assert charge == 0 and len(s.coarse) == s.row["num_blocks"]
    assert any(bead_graph(s.coarse) for s in a if s.row["net_source"] == "training set")


def test_candidates_with_room_come_first():
    "Nets whose cell the atoms would fill are tried after the others, the fullest last."
    model, data, seen = with_nets(), toy_data(), 0
    batch = data.select(torch.arange(8))
    ends = [0, *batch.num_blocks.cumsum(0).tolist()]

    def ask(i, limit):
        some = NetOptions(net_candidates=8, new_first=False, fullness=limit)
        rows = slice(ends[i], ends[i + 1])
        features = model.standard_features(batch.features[rows]).numpy()
        found = NetDecoder(model, model.library, some).candidates(features, batch.block[rows].numpy())
        return [filled_share(c.coarse) for c in found]

    try:
        for i in range(8):
            by_cost = ask(i, 1e9)
            limit = float(np.median(by_cost)) + 1e-9 if by_cost else 1.0
            found, first = ask(i, limit), [s for s in by_cost if s < limit]
            full = [s for s in found if s >= limit]
            assert found[: len(first)] == first and found[len(found) - len(full) :] == sorted(full)
            seen += len(full) > 0
    finally:
        model.nets = None
    assert seen > 2
    wide = replace(data[0], lattice=2 * data[0].lattice)
    assert filled_share(wide) == pytest.approx(filled_share(data[0]) / 8)


def test_a_library_that_fits_no_net_leaves_the_coordinates_and_says_so():
    "Blocks of other shapes than any vertex asks for: the sample stays, with the reason in its row."
    model = with_nets()
    wide = [replace(b, connection_points=b.connection_points * [1, 0.3, 2.0]) for b in model.library.blocks]
    odd = Library(wide, model.library.embeddings)
    try:
        found = model.sample(
            4,
            seed=1,
            library=odd,
            options=MofSamplingOptions(steps=3, progress=False, nets=NetOptions(misfit=1e-6)),
        )
    finally:
        model.nets = None
    for s in found:
        assert s.row["net_source"] == "model" and "no net with" in s.row["net_reason"]


def test_net_options_reject_what_cannot_be():
    for bad in (dict(net_share=-1), dict(net_share=1.1), dict(net_candidates=0), dict(misfit=0)):
        with pytest.raises(MatgenError):
            NetOptions(**bad)


def test_nets_travel_with_the_weights(tmp_path):
    model = with_nets()
    try:
        model.save_pretrained(tmp_path / "w.safetensors")
        back = MofDiff.from_pretrained(tmp_path / "w.safetensors")
    finally:
        nets, model.nets = model.nets, None
    assert (
        len(back.nets) == len(nets)
        and back.nets.keys == nets.keys
        and [n.kinds for n in back.nets.nets] == [n.kinds for n in nets.nets]
    )
    shipped = MofDiff.from_pretrained("mofdiff-small")
    assert (
        len(shipped.nets) > 200
        and "source" in shipped.nets.info
        and all(len(s.embedding) == 32 for s in shipped.nets.sites)
    )


def test_weights_can_be_trained_on_larger_frameworks_than_they_have_seen():
    from matgen_nb.mofdiff.bonds import textbook_mof
    from matgen_nb.mofdiff.coarse_graining import CoarseMof
    from matgen_nb.mofdiff.decomposition import decompose
    from matgen_nb.mofdiff.model import fine_tuned_mofdiff

    model, batch = tiny(), toy_data().select(torch.arange(4))
    big = CoarseMof.from_decomposition(decompose(textbook_mof("MOF-177")))  # 24 blocks, the weights end at 20
    big = replace(big, properties=dict.fromkeys(model.property_names, 1.0))
    large = MofData.from_coarse([toy_data()[0], big])
    large = large.with_embeddings(torch.zeros(len(large.library), len(model.stat_feature_mean)))
    tuned = fine_tuned_mofdiff(model, large)
    assert len(tuned.stat_num_blocks) == 25 and tuned.stat_num_blocks[24] == 1
    z = model.encode(batch)
    assert torch.equal(tuned.encode(batch), z), "what was learned is kept"
    assert torch.allclose(tuned.to_num_blocks(z)[:, :21], model.to_num_blocks(z))
    assert torch.allclose(tuned.to_num_blocks(z)[:, 24], model.to_num_blocks(z)[:, 20])
    loss = tuned.loss(large.select([0, 1]), torch.Generator().manual_seed(0))["loss"]
    assert loss.isfinite()
    small = fine_tuned_mofdiff(tuned, toy_data())  # and back: no number of blocks is forgotten
    assert len(small.stat_num_blocks) == 25 and small.stat_num_blocks[24] == 0
