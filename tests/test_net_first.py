"""Blocks and net first: placement and offsets give back the frameworks, choices and denoiser keep what they must, samples follow the seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.evaluation import known_identities
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.mofdiff.model import Library
from matgen_nb.mofdiff.net_data import arm_lengths, block_barycentre, net_data, part_of_batch
from matgen_nb.mofdiff.net_first import NetFirst, NetFirstConfig, NetState, placed_blocks, share_of_nets
from matgen_nb.mofdiff.net_first_sampling import draw, framework_model, starting_placement, with_some_nets
from matgen_nb.mofdiff.net_fitting import placed_net
from matgen_nb.mofdiff.network import toy_embeddings
from matgen_nb.mofdiff.nets import framework_key
from matgen_nb.mofdiff.sampling import MofSamplingOptions, NetOptions, filled_share, net_decoder
from matgen_nb.scale.crystal_runs import FitOptions, fit_model
from matgen_nb.scale.optimization import TrainConfig
from matgen_nb.symmetry.lattice import k_to_lattice, lattice_to_k
from matgen_nb.utils import MatgenError, seed_torch

QUIET = MofSamplingOptions(progress=False, steps=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mofs():
    "Twenty-four frameworks of few blocks, with embeddings."
    everything = embedded_mofs()
    small = [i for i in range(len(everything)) if everything.num_blocks[i] <= 8]
    some = everything.subset(small[:: len(small) // 24][:24])
    return some.with_embeddings(toy_embeddings(some.library))


@pytest.fixture(scope="module")
def data(mofs):
    return net_data(mofs)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    made = NetFirst.from_data(NetFirstConfig(width=32, layers=2, latent=16), data).eval()
    made.info = dict(identities=known_identities(data.mofs))
    return made


@pytest.fixture(scope="module")
def batch(data):
    return data.select(range(12))


def same_within(gap, owner):
    "Whether the beads of each framework differ by one vector (3,) only."
    return all(torch.allclose(gap[owner == n], gap[owner == n][:1], atol=1e-4) for n in owner.unique())


def standard(lattice):
    return k_to_lattice(lattice_to_k(lattice))


# data


def test_placement_and_offsets_give_back_every_framework(data):
    b = data.select(range(len(data)))
    moved = (b.offset[:, None] @ torch.linalg.inv(standard(b.lattice))[b.batch])[:, 0]
    assert len(data) == 24 and same_within(b.x + moved - b.frac_coords, b.batch)
    for n in range(len(b)):
        assert b.offset[b.batch == n].mean(0).norm() < 1e-5


def test_no_block_is_pulled_anywhere(data):
    b = data.select(range(len(data)))
    i, j = b.edges.T
    pull = (b.x[j] + b.shifts - b.x[i]) / b.lengths[:, None]
    force = torch.zeros_like(b.x).index_add_(0, i, pull).index_add_(0, j, -pull)
    assert force.abs().max() < 1e-5
    assert torch.allclose(b.lengths, b.arms[b.edges].sum(1))


def test_turned_frameworks_are_the_same_data(mofs):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(), dtype=torch.float64))[0]
    turned = net_data(replace(mofs, lattice=mofs.lattice @ turn).subset(range(8)))
    same = net_data(mofs.subset(range(8)))
    for name in ("x", "k", "offset", "net"):
        assert torch.allclose(getattr(turned, name), getattr(same, name), atol=1e-4), name
    lengths = [data.lengths.sort().values for data in (turned, same)]  # edges come as they are found
    assert torch.allclose(*lengths)


def test_another_image_of_a_block_moves_its_placement_along(mofs):
    net = placed_net(mofs[0], named=False)
    arms, cell, bead = arm_lengths(mofs[0].blocks), np.array([1, 0, -2]), 1
    shifts = net.shifts - (net.edges[:, 1:] == bead) * cell + (net.edges[:, :1] == bead) * cell
    first, moved = block_barycentre(net, arms), block_barycentre(replace(net, shifts=shifts), arms)
    step = np.outer(np.arange(len(net)) == bead, cell)
    step -= (bead == 0) * cell  # the first block stays at the origin
    assert np.allclose(moved.frac_coords - first.frac_coords, step, atol=1e-6)
    assert np.allclose(moved.lattice, first.lattice, atol=1e-6)


def test_longer_arms_make_a_larger_cell_and_nothing_else(mofs):
    net, arms = placed_net(mofs[3], named=False), arm_lengths(mofs[3].blocks)
    one, two = block_barycentre(net, arms), block_barycentre(net, 2 * arms)
    assert np.allclose(two.frac_coords, one.frac_coords, atol=1e-6)
    assert np.allclose(two.lattice, 2 * one.lattice, atol=1e-5)


@pytest.mark.parametrize("chosen", [[0], [5, 2, 9], list(range(11, -1, -1))])
def test_part_of_a_batch_is_the_batch_of_a_part(data, batch, chosen):
    part, selected = part_of_batch(batch, torch.tensor(chosen)), data.select(chosen)
    for name, value in vars(selected).items():
        assert torch.equal(getattr(part, name), value), name


def test_the_table_counts_the_nets(data):
    counts = torch.bincount(data.net, minlength=len(data.table)).tolist()
    assert counts == [net.count for net in data.table.nets] == sorted(counts, reverse=True)
    sizes = [len(data.table.nets[k]) for k in data.net]
    assert sizes == data.mofs.num_blocks.tolist()


def test_frameworks_without_a_net_are_counted_and_left_out(mofs):
    loose = replace(mofs, lattice=mofs.lattice.clone()).subset(range(4))
    loose.lattice[1] *= 3  # its blocks no longer meet
    found = net_data(loose)
    assert len(found) == 3 and found.left_out == {"its beads show no net": 1}
    assert found.mofs.names == [name for n, name in enumerate(loose.names) if n != 1]
    with pytest.raises(MatgenError, match="no framework is left.*show no net"):
        net_data(loose.subset([1]))


def test_blocks_without_embeddings_are_rejected(mofs):
    with pytest.raises(MatgenError, match="no block embeddings"):
        net_data(replace(mofs, embeddings=None))


# model


def test_true_variables_are_the_framework(model, batch):
    change = (lattice_to_k(batch.lattice) - batch.k - model.stat_net_change_mean) / model.stat_net_change_std
    placed, times = placed_blocks(batch, model.standard_features(batch.features)), torch.ones(len(batch))
    z = torch.zeros(len(batch), model.config.latent)
    state = model.net_state(placed, batch.offset / model.stat_net_offset, change, times, z)
    assert torch.allclose(state.lattice, standard(batch.lattice), atol=1e-3)
    assert same_within(state.x - batch.frac_coords, batch.batch)


def noisy_state(model, b, offset):
    "A `NetState` in the true cells, beads moved by offsets (M, 3), A; other inputs from a seed."
    lattice, g = standard(b.lattice), seeded(1)
    x = b.frac_coords + (offset[:, None] @ torch.linalg.inv(lattice)[b.batch])[:, 0]
    k, cell = torch.randn(2, len(b), 6, generator=g)
    t, z = torch.rand(len(b), generator=g), torch.randn(len(b), model.config.latent, generator=g)
    placed = placed_blocks(b, model.standard_features(b.features))
    return NetState(placed, x, lattice, offset, k, cell, t, z)


@torch.no_grad()
def test_vectors_of_the_denoiser_turn_with_the_cell(model, batch):
    state = noisy_state(model, batch, torch.randn(len(batch.x), 3, generator=seeded(2)))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(3)))[0]
    v, _ = model.offset_denoiser(state)
    turned, _ = model.offset_denoiser(
        replace(state, lattice=state.lattice @ turn, offset=state.offset @ turn)
    )
    assert torch.allclose(turned, v @ turn, atol=1e-4) and v.norm(dim=1).mean() > 0.01
    assert all(v[batch.batch == n].mean(0).norm() < 1e-5 for n in range(len(batch)))


@torch.no_grad()
def test_images_of_beads_do_not_matter(model, batch):
    noise = torch.randn(len(batch.x), 3, generator=seeded(2))
    cell = torch.randint(-2, 3, batch.x.shape, generator=seeded(3)).float()
    i, j = batch.edges.T
    shifts = batch.shifts - cell[j] + cell[i]
    moved = replace(batch, x=batch.x + cell, frac_coords=batch.frac_coords + cell, shifts=shifts)
    one, other = (model.offset_denoiser(noisy_state(model, b, noise)) for b in (batch, moved))
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one, other))


@torch.no_grad()
def test_the_order_of_beads_and_edges_does_not_matter(model, batch):
    noise = torch.randn(len(batch.x), 3, generator=seeded(2))
    order = (batch.batch + 0.9 * torch.rand(len(batch.x), generator=seeded(4))).argsort()
    owner = batch.batch[batch.edges[:, 0]]
    rows = (owner + 0.9 * torch.rand(len(owner), generator=seeded(5))).argsort()
    per_bead = ("frac_coords", "block", "features", "x", "offset", "arms")
    other = replace(
        batch,
        edges=order.argsort()[batch.edges][rows],
        shifts=batch.shifts[rows],
        lengths=batch.lengths[rows],
        **{name: getattr(batch, name)[order] for name in per_bead},
    )
    v, k = model.offset_denoiser(noisy_state(model, batch, noise))
    w, q = model.offset_denoiser(noisy_state(model, other, noise[order]))
    assert torch.allclose(w, v[order], atol=1e-4) and torch.allclose(q, k, atol=1e-4)
    wanted = [
        model.chooser(b.charges[b.block], b.edges, b.batch, model.encode(batch), b.net)
        for b in (batch, other)
    ]
    assert torch.allclose(wanted[1], wanted[0][order], atol=1e-4)


@torch.no_grad()
def test_frameworks_of_a_batch_do_not_see_each_other(model, batch):
    noise = torch.randn(len(batch.x), 3, generator=seeded(2))
    state = noisy_state(model, batch, noise)
    chosen = torch.tensor([4, 7])
    part, mine = part_of_batch(batch, chosen), torch.isin(batch.batch, chosen)
    alone = noisy_state(model, part, noise[mine])
    alone = replace(alone, **{name: getattr(state, name)[chosen] for name in ("k", "cell", "t", "z")})
    whole = model.offset_denoiser(state)
    found = model.offset_denoiser(alone)
    assert torch.allclose(found[0], whole[0][mine], atol=1e-4)
    assert torch.allclose(found[1], whole[1][chosen], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("world", [2, 3])
def test_losses_of_shares_make_up_the_loss(model, batch, world):
    whole, again = model.loss(batch, seeded()), model.loss(batch, seeded())
    shares = [model.loss(batch, seeded(), share=(rank, world)) for rank in range(world)]
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
        assert float(sum(part[name] for part in shares) / world) == pytest.approx(float(value), rel=1e-4)


def test_a_share_keeps_its_noise(model, batch):
    noise = model.sample_noise(batch, seeded())
    part, its = share_of_nets(batch, noise, 1, 4)
    assert torch.equal(part.net, batch.net[1::4]) and torch.equal(its.prior_z, noise.prior_z[:, 1::4])
    assert torch.equal(its.offset[part.batch == 1], noise.offset[batch.batch == 5])


def test_training_lowers_the_loss(data):
    torch.manual_seed(0)
    learner, batch = (
        NetFirst.from_data(NetFirstConfig(width=32, layers=2, latent=16), data),
        data.select(range(12)),
    )
    optimizer, history = torch.optim.Adam(learner.parameters(), 1e-2), []
    for _ in range(15):
        parts = learner.loss(batch, seeded())
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in parts.items()})
    for name in ("loss", "net", "block", "x", "k"):
        assert history[-1][name] < 0.9 * history[0][name], name


def test_weights_come_back(model, batch, tmp_path):
    model.save_pretrained(tmp_path / "w.safetensors", info=model.info)
    read = framework_model(tmp_path / "w.safetensors")
    assert type(read) is NetFirst and read.config == model.config and read.info == model.info
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        one, other = (float(m.loss(batch, seeded())["loss"]) for m in (model, read))
    assert one == other
    first, again = ([s.nets for s in m.sample(4, seed=1, options=QUIET)] for m in (model, read))
    assert first == again


# sampling


def test_draws_have_the_probabilities_of_the_softmax():
    logits = torch.tensor([0.0, 1.5, -0.5, -torch.inf])
    found = torch.bincount(draw(logits.expand(40_000, 4), seeded()), minlength=4) / 40_000
    assert (found - logits.softmax(0)).abs().max() < 0.01 and found[3] == 0


def fullness_of(decoder, candidate):
    "The share of the barycentric cell that the atoms of a candidate fill."
    blocks = [decoder.library.blocks[k] for k in candidate.blocks]
    placed = block_barycentre(candidate.net, arm_lengths(blocks))
    return filled_share(CoarseMof(placed.lattice, placed.frac_coords, blocks))


def test_plans_have_one_fitting_block_for_each_class(model):
    decoder, z = net_decoder(model), torch.randn(6, 16, generator=seeded())
    for group in model.plans(z, decoder, seeded(1)):
        known = [c.known for c in group]
        full = [fullness_of(decoder, c) >= decoder.options.fullness for c in group]
        assert 1 <= len(group) <= decoder.options.net_candidates
        assert list(zip(full, known)) == sorted(zip(full, known)), "with room first, of these new ones first"
        keys = [
            framework_key([decoder.library.blocks[k].identity for k in c.blocks], c.net.graph) for c in group
        ]
        assert len(set(keys)) == len(keys) and known == [key in decoder.known for key in keys]
        for c in group:
            sites = [decoder.number[site] for site in c.net.sites]
            assert (decoder.misfit[c.blocks, sites] < decoder.options.misfit).all()
            assert all(len(set(c.blocks[members])) == 1 for members in c.net.classes)


def test_samples_start_from_the_placement_of_their_plan(model):
    decoder, z = net_decoder(model), torch.randn(4, 16, generator=seeded())
    flat = [c for group in model.plans(z, decoder, seeded(1)) for c in group]
    placed = starting_placement(flat, decoder, z.device)
    for n, c in enumerate(flat):
        found = block_barycentre(c.net, arm_lengths([decoder.library.blocks[k] for k in c.blocks]))
        assert np.allclose(placed.x[placed.batch == n], found.frac_coords, atol=1e-5)
        assert np.allclose(placed.k[n], lattice_to_k(torch.as_tensor(found.lattice)), atol=1e-5)


def test_same_seed_same_samples(model):
    torch.manual_seed(5)
    one = model.sample(4, seed=3, options=QUIET)
    torch.manual_seed(6)
    other = model.sample(4, seed=3, options=QUIET)
    for a, b in zip(one, other):
        assert a.row == b.row and len(a.others) == len(b.others)
        assert np.array_equal(a.coarse.frac_coords, b.coarse.frac_coords)
        assert np.array_equal(a.coarse.lattice, b.coarse.lattice)
    assert {s.row["net_source"] for s in one} == {"training set"} and {s.row["seed"] for s in one} == {3}
    different = model.sample(4, seed=4, options=QUIET)
    assert any(a.nets != b.nets for a, b in zip(one, different))


def test_requested_numbers_of_blocks(model, data):
    size = int(data.mofs.num_blocks.max())
    assert {len(s.coarse) for s in model.sample(3, num_blocks=size, options=QUIET)} == {size}
    with pytest.raises(MatgenError, match="has 77 blocks; there are"):
        model.sample(2, num_blocks=77, options=QUIET)
    with pytest.raises(MatgenError, match="no net of the training set has 77 vertices; there are nets with"):
        model.sample_nets(torch.zeros(1, 16), net_decoder(model), num_blocks=77)


def test_a_new_net_comes_first_and_known_ones_stand_by(model):
    options = replace(QUIET, nets=NetOptions(new_net_share=1.0))
    for new, plain in zip(model.sample(1, seed=2, options=options), model.sample(1, seed=2, options=QUIET)):
        choices, known = (s.nets for s in (new, plain))
        assert choices[-len(known) :] == known
        assert (new.row["net_source"] == "new") == (len(choices) == len(known) + 1)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_coordinates_without_a_net_are_rejected(model, share):
    with pytest.raises(MatgenError, match="net_share=1"):
        model.sample(2, options=replace(QUIET, nets=NetOptions(net_share=share)))


def test_a_library_that_fits_no_net_is_rejected(model):
    blocks = model.library.blocks
    points = [b.num_connections if b.is_metal else -b.num_connections for b in blocks]
    pair = [int(np.argmax(points)), int(np.argmin(points))]
    few = Library([blocks[k] for k in pair], model.library.embeddings[pair])
    with pytest.raises(MatgenError, match="no blocks for any net of the model"):
        model.sample(2, library=few, options=QUIET)
    size = len(model.nets.nets[0])
    with pytest.raises(MatgenError, match=f"no blocks for any net with {size} vertices"):
        model.sample(2, library=few, num_blocks=size, options=QUIET)


def test_a_model_with_some_nets_draws_only_these(model):
    numbers = [2, 0]
    few, z = with_some_nets(model, numbers), torch.randn(500, 16, generator=seeded())
    with torch.no_grad():
        assert torch.allclose(few.net_head(z), model.net_head(z)[:, numbers], atol=1e-5)
    drawn = few.sample_nets(z, net_decoder(few), seeded(1))
    expected = few.net_head(z).softmax(1).mean(0)
    assert (torch.bincount(drawn, minlength=2) / 500 - expected).abs().max() < 0.08
    assert few.nets.keys == model.nets.keys and len(model.nets) > 2, "what is new stays the same"
    with pytest.raises(MatgenError, match="no net is left"):
        with_some_nets(model, [])


def test_blocks_that_compete_are_those_of_the_batch_among_others(model, batch, monkeypatch):
    monkeypatch.setattr("matgen_nb.mofdiff.net_first.MOST_CHOICES", 3)
    noise = model.sample_noise(batch, seeded())
    assert set(batch.block.tolist()) <= set(noise.choices.tolist()) and len(noise.choices) < len(
        batch.choices
    )
    assert torch.equal(noise.choices, noise.choices.sort().values)
    with torch.no_grad():
        z, every = model.encode(batch), torch.arange(len(batch.choices))
        few, whole = (model._choice_loss(batch, z, choices)["block"] for choices in (noise.choices, every))
    assert 0 < few < whole, "fewer competitors, a smaller cross entropy"


def test_training_resumes_exactly(data, tmp_path):
    def run(out, steps, resume=False):
        seed_torch(0, "weights")
        config = TrainConfig(steps=steps, batch_size=8, schedule="constant", device="cpu", progress=False)
        model = NetFirst.from_data(NetFirstConfig(width=32, layers=2, latent=16), data)
        return fit_model(model, data, config, tmp_path / out, FitOptions(resume=resume))[0]

    whole, _ = run("whole", 6), run("parts", 3)
    again = run("parts", 6, resume=True)
    pairs = zip(whole.state_dict().values(), again.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)
