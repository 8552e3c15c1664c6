"""A step of the reverse process never makes the host wait for the device: counted on the CPU, where the same operators run."""

import itertools

import numpy as np
import pytest
import torch

from matgen_nb.diffusion.sampler import time_grid
from matgen_nb.scale.arithmetic import TrainingSetting, waiting_calls as waits
from matgen_nb.scale.benchmark_tasks import make_training
from matgen_nb.symmcd import staged_sampling as ss
from matgen_nb.symmcd.model import SymmCD
from matgen_nb.symmcd.network import PARTS, image_features, pairs_of
from matgen_nb.symmcd.refinements import resolve_contacts
from matgen_nb.symmcd.requests import make_request
from matgen_nb.symmcd.reverse import SamplingOptions
from matgen_nb.symmetry.projection import Projection
from matgen_nb.symmetry.space_groups import SpaceGroup


@pytest.fixture(scope="module")
def model():
    return SymmCD.from_pretrained("symmcd-mp20-small")


@pytest.fixture(scope="module")
def geometry(model):
    "Cell and coordinates of 24 crystals, some of them crowded, before the first step."
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    requests = [make_request(model, rng) for _ in range(24)]
    with torch.no_grad():
        sited = ss.choose_sites(model, requests, generator, 2)
        return ss.GeometrySampler(model, ss.choose_elements(model, sited, generator, 2), generator)


def test_what_waits_is_counted():
    "The count cannot be empty by mistake: each way to wait is seen."
    x = torch.tensor([1, 2, 0])
    for run in (
        x.max().item,
        x.tolist,
        lambda: x[x > 0],
        lambda: torch.repeat_interleave(x, x),
        lambda: x.unique(),
    ):
        if run != x.tolist:  # of a CPU tensor: no operator is called, and none is needed
            assert waits(run).total() >= 1, run


@torch.no_grad()
def test_no_step_of_the_geometry_waits(model, geometry):
    options, steps = SamplingOptions(corrector=1), list(itertools.pairwise(time_grid(model.config.T, 6)))
    geometry.reverse(*steps[-2], options)  # fills tables that stay
    geometry.at(model.config.T)
    for t, s in steps:
        found = waits(lambda: (geometry.reverse(t, s, options), s and geometry.correct(s, options)))
        assert not found, (t, s, found)


@torch.no_grad()
def test_no_call_of_the_network_waits(model, geometry):
    whole = model.network(geometry.state)
    for parts in (PARTS, *((name,) for name in PARTS)):
        assert not waits(lambda: model.network(geometry.state, parts)), parts
        for name, value, one in zip(PARTS, whole, model.network(geometry.state, parts)):
            assert torch.equal(value, one) if name in parts else one is None


@torch.no_grad()
def test_pairs_that_are_kept_give_the_same(model, geometry):
    "Kept with the batch or made anew, in one part or in many: the same numbers, to the last bit."
    n = geometry.state
    fresh = ss.replace(n, pairs=None)
    for a, b in zip(model.network(n), model.network(fresh)):
        assert torch.equal(a, b)
    few = pairs_of(n.num_orbits, n.space_group, chunk=500)
    assert len(few.parts) > 3 and few.parts[-1][1] == len(few) and few.parts[-1][3] == len(few.pair)
    for a, b in zip(image_features(n.x, n.lattice, n.pairs, 8), image_features(n.x, n.lattice, few, 8)):
        assert torch.equal(a, b)
    counts, none = image_features(n.x, n.lattice, n.pairs, 8, vectors=False)
    assert none is None and torch.equal(counts, image_features(n.x, n.lattice, n.pairs, 8)[0])


def test_pairs_of_a_few_crystals_are_theirs():
    orbits, groups = torch.tensor([2, 1, 3]), torch.tensor([2, 225, 14])
    whole = pairs_of(orbits, groups)
    some = pairs_of(orbits, groups, torch.tensor([True, False, True]))
    there = whole.crystal != 1
    assert torch.equal(some.i, whole.i[there]) and torch.equal(some.j, whole.j[there])
    orders = torch.tensor([SpaceGroup(int(g)).order for g in groups])
    assert len(whole.pair) == int((orbits**2 * orders).sum()) and len(whole.itself) == int(orbits.sum())
    assert torch.equal(torch.bincount(some.pair), orders[some.crystal])


@torch.no_grad()
def test_contacts_are_parted_alike_with_and_without_waiting(geometry):
    n, first = geometry.state, torch.zeros_like(geometry.state.batch)
    x = (geometry.axes @ geometry.u[..., None])[..., 0] + geometry.origin
    placed = Projection(x.double(), first.double(), geometry.u.double(), first, geometry.known.positions)
    for rounds in (1, 3, 7):
        looking, went = resolve_contacts(n, placed, n.elements, 0.75, rounds)
        blind, also = resolve_contacts(n, placed, n.elements, 0.75, rounds, n.pairs)
        assert torch.equal(looking.frac_coords, blind.frac_coords) and torch.equal(went, also)
    assert went.max() > 0 and (went == 0).any()


@torch.no_grad()
@pytest.mark.parametrize("stage", ["sites", "elements"])
def test_more_steps_of_sites_and_elements_do_not_wait_more(model, stage):
    "What waits is done once for a batch; only charges that should balance are looked at in each step (on the CPU)."
    rng = np.random.default_rng(1)
    requests = [ss.replace(make_request(model, rng), balance=False) for _ in range(12)]
    if stage == "sites":
        requests = [ss.replace(r, sites=None, positions=None) for r in requests]
    choose = ss.choose_sites if stage == "sites" else ss.choose_elements
    seeded = lambda: torch.Generator().manual_seed(0)
    if stage == "elements":
        requests = ss.choose_sites(model, requests, seeded(), 1)
    few, many = (waits(lambda: choose(model, requests, seeded(), steps)) for steps in (2, 5))
    assert few.keys() == many.keys() and sum(many.values()) <= sum(few.values()) + 1, (few, many)


def test_a_training_step_waits_for_its_pairs_alone():
    "How many pairs and images a batch has is known only when it is there; nothing else may wait."
    step, _ = make_training("cpu", 0, setting=TrainingSetting("tiny", 8))
    step()
    found = waits(step)
    assert found.keys() <= {"aten::repeat_interleave", "aten::nonzero"} and found.total() <= 10, found
