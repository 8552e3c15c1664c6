"""Nets: coordination sequences, keys, exact isomorphism, nets read from beads, blocks put onto nets, the table in a file."""

from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.mofdiff import net_fitting, nets
from matgen_nb.mofdiff.assembly import AssemblyOptions, assemble
from matgen_nb.mofdiff.orientations import shuffled
from matgen_nb.mofdiff.bonds import textbook_mofs
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.evaluation import framework_identity
from matgen_nb.mofdiff.net_catalogue import PARITIES, doubled, load_net, net_facts
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.utils import MatgenError

PUBLISHED = {"IRMOF-1": "pcu", "IRMOF-10": "pcu", "HKUST-1": "tbo", "UiO-66": "fcu", "ZIF-8": "sod"}
CLOSED_FORM = dict(pcu=(4, 2), bcu=(6, 2), fcu=(10, 2), sod=(2, 2))  # a k^2 + b; sources in lesson 4.14


@lru_cache(None)
def graph(name):
    net = load_net(name)
    return nets.QuotientGraph([""] * len(net), net.edges, net.shifts)


@lru_cache(None)
def parts():
    return {name: decompose(mof) for name, mof in textbook_mofs().items()}


@lru_cache(None)
def data():
    return embedded_mofs()


def rewritten(graph, seed):
    "The same periodic graph: vertices renumbered, moved to other cells, cell vectors changed."
    rng = np.random.default_rng(seed)
    order, cells, A = rng.permutation(len(graph)), rng.integers(-2, 3, (len(graph), 3)), np.eye(3, dtype=int)
    for _ in range(5):
        i, j = rng.choice(3, 2, replace=False)
        A[i] += rng.integers(-1, 2) * A[j]
    (i, j), where = graph.edges.T, np.argsort(order)
    shifts = (graph.shifts + cells[i] - cells[j]) @ A
    return nets.QuotientGraph(
        [graph.labels[v] for v in order], where[graph.edges], shifts, [graph.classes[v] for v in order]
    )


def one_object_each(coarse):
    "The framework with one object for each kind of block, as data sets have it."
    first = {}
    return replace(coarse, blocks=[first.setdefault(b.identity, b) for b in coarse.blocks])


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_coordination_sequences_follow_their_closed_form(name):
    a, b = CLOSED_FORM[name]
    wanted = tuple(a * k * k + b for k in range(1, 9))
    for v in range(len(graph(name))):
        assert nets.sequence_totals(nets.coordination_sequence(graph(name), v, 8)) == wanted


def test_coordination_sequence_of_diamond():
    assert nets.sequence_totals(nets.coordination_sequence(graph("dia"), 1)) == (
        4,
        12,
        24,
        42,
        64,
        92,
        124,
        162,
        204,
        252,
    )


@given(st.sampled_from(sorted(net_facts())), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_net_is_found_again_however_it_is_written(name, seed):
    other = rewritten(graph(name), seed)
    assert nets.net_key(other) == nets.net_key(graph(name))
    to = nets.isomorphism(graph(name), other)
    assert sorted(to) == list(range(len(other)))
    assert [len(graph(name).around[v]) for v in range(len(to))] == [len(other.around[q]) for q in to]


def test_no_two_nets_of_the_table_are_taken_for_one():
    assert len({nets.net_key(graph(name)) for name in net_facts()}) == len(net_facts())
    assert nets.isomorphism(graph("sxb"), graph("sxc")) is None
    sequences = [nets.sequence_totals(nets.coordination_sequence(graph(name), 0)) for name in ("sxb", "sxc")]
    assert sequences[0] == sequences[1], "the sequences alone cannot tell them apart"


@pytest.mark.parametrize("name", ["pcu", "dia", "acs", "nbo"])
def test_doubled_cells_have_the_same_key(name):
    for parity in PARITIES[:3]:
        net = doubled(load_net(name), parity)
        assert nets.net_key(nets.QuotientGraph([""] * len(net), net.edges, net.shifts)) == nets.net_key(
            graph(name)
        )


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_another_edge_is_another_net(seed):
    rng = np.random.default_rng(seed)
    g = graph("tbo")
    shifts = g.shifts.copy()
    shifts[rng.integers(len(shifts))] += rng.permutation([1, 0, 0]) * rng.choice([-1, 1])
    changed = nets.QuotientGraph(g.labels, g.edges, shifts)
    assert nets.isomorphism(g, rewritten(changed, seed)) is None
    assert nets.isomorphism(changed, rewritten(changed, seed)) is not None


def test_labels_and_classes_are_kept():
    edges, shifts = [(0, 1)] * 4, [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    a, b = (nets.QuotientGraph(labels, edges, shifts) for labels in ("mo", "om"))
    assert (
        nets.isomorphism(a, b) == [1, 0]
        and nets.isomorphism(a, nets.QuotientGraph("mm", edges, shifts)) is None
    )
    chain = (
        [(0, 1), (1, 2), (2, 3), (3, 0), (0, 0), (1, 1)],
        [(0, 0, 0)] * 3 + [(1, 0, 0), (0, 1, 0), (0, 1, 0)],
    )
    one, two = (nets.QuotientGraph("aaaa", *chain, classes) for classes in ((1, 2, 1, 2), (1, 1, 2, 2)))
    assert nets.isomorphism(one, one) is not None and nets.isomorphism(one, two) is None


def test_interpenetrating_nets():
    "Two copies of pcu in one cell are not pcu in a doubled cell."
    edges, shifts = [(0, 0)] * 3 + [(1, 1)] * 3, np.tile(np.eye(3, dtype=int), (2, 1))
    twice = nets.QuotientGraph(["", ""], edges, shifts)
    net = doubled(load_net("pcu"), PARITIES[-1])
    single = nets.QuotientGraph(["", ""], net.edges, net.shifts)
    assert (
        nets.isomorphism(twice, rewritten(twice, 3)) is not None and nets.isomorphism(twice, single) is None
    )


def test_a_search_that_takes_too_long_says_so():
    with pytest.raises(MatgenError, match="given up"):
        nets.isomorphism(graph("fcu"), rewritten(graph("fcu"), 0), most=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_nets_of_textbook_frameworks(name):
    d = parts()[name]
    assert nets.rcsr_name(nets.decomposition_graph(d)) == PUBLISHED[name]
    read = nets.bead_graph(replace(CoarseMof.from_decomposition(shuffled_blocks(d)), edges=None, shifts=None))
    assert nets.isomorphism(nets.decomposition_graph(d), replace(read, classes=read.labels)) is not None


def shuffled_blocks(d):
    "The same decomposition, every block turned: beads carry no orientation."
    turned = shuffled(CoarseMof.from_decomposition(d), seed=4)
    return replace(d, blocks=turned.blocks)


def test_connection_points_are_all_used_or_it_is_no_net():
    assert nets.share_points([6, 2, 2, 2], [(0, 1), (0, 2), (0, 3)]).tolist() == [2, 2, 2]
    assert nets.share_points([4, 2], [(0, 1)]) is None
    coarse = CoarseMof.from_decomposition(parts()["IRMOF-1"], "IRMOF-1")
    far = replace(coarse, lattice=3 * coarse.lattice, edges=None, shifts=None)
    with pytest.raises(MatgenError, match="IRMOF-1.*no net"):
        nets.bead_graph(far)


def test_key_of_blocks_and_net_is_the_identity_of_lesson_22():
    for d in parts().values():
        assert nets.framework_key(
            [b.identity for b in d.blocks], nets.decomposition_graph(d), d.nets
        ) == framework_identity(d)


@given(st.integers(0, 10**6), st.floats(0.5, 2))
@settings(max_examples=15, deadline=None)
def test_shape_depends_neither_on_orientation_nor_on_size(seed, size):
    rng = np.random.default_rng(seed)
    points, bonds = rng.normal(size=(2, 5, 3))
    bonds /= np.linalg.norm(bonds, axis=1, keepdims=True)
    Q, order = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.permutation(5)
    site = net_fitting.Site(True, points, bonds)
    moved = net_fitting.Site(True, size * points[order] @ Q, bonds[order] @ Q)
    cost = net_fitting.misfit(
        [site, net_fitting.Site(False, points, bonds)], [moved, net_fitting.Site(True, points[:4], bonds[:4])]
    )
    assert np.isclose(cost[0, 0], 0.1 * abs(np.log(size)), atol=1e-6)
    assert np.isinf(cost[1]).all() and np.isinf(cost[0, 1])


def test_every_framework_stays_where_it_is_on_its_own_net():
    for i in range(0, len(data()), 40):
        net, coarse = net_fitting.placed_net(data()[i]), data()[i]
        again = net_fitting.carry(net, coarse.blocks)
        assert np.abs(again.lattice - coarse.lattice).max() < 1e-8
        assert np.abs((again.frac_coords - coarse.frac_coords + 0.5) % 1 - 0.5).max() < 1e-8


@pytest.mark.parametrize("name", ["pcu", "tbo", "dia"])
def test_frameworks_close_on_their_own_net(name):
    i = min(
        (i for i in range(len(data())) if data().names[i].startswith(f"{name}_")),
        key=lambda i: int(data().num_blocks[i]),
    )
    coarse = data()[i]
    net = net_fitting.placed_net(coarse)
    sites = [net_fitting.site_of_block(b) for b in coarse.blocks]
    rows, total = net_fitting.assign(net_fitting.misfit(sites, net.sites))
    assert total < 1e-6 and net.name == name
    built = assemble(
        net_fitting.carry(net, [coarse.blocks[k] for k in rows]),
        options=AssemblyOptions(starts=16, generations=2),
    )
    assert built.row["bond_success"] == 1 and built.row["clashes"] == 0


def test_longer_arms_make_a_larger_cell():
    "The net of IRMOF-1 with the blocks of IRMOF-10 has the cell of IRMOF-10."
    small, large = (
        one_object_each(CoarseMof.from_decomposition(parts()[n])) for n in ("IRMOF-1", "IRMOF-10")
    )
    net, block = net_fitting.placed_net(small), {b.is_metal: b for b in large.blocks}
    blocks = [block[s.is_metal] for s in net.sites]
    made = net_fitting.carry(net, blocks)
    assert np.isclose(np.linalg.det(made.lattice), np.linalg.det(large.lattice), rtol=0.03), (
        "a volume within 3 %, so an edge within 1 %"
    )
    radii = [np.linalg.norm(b.connection_points, axis=1).mean() for b in blocks]
    lengths = np.linalg.norm(
        (made.frac_coords[net.edges[:, 1]] + net.shifts - made.frac_coords[net.edges[:, 0]]) @ made.lattice,
        axis=1,
    )
    assert np.abs(lengths - net_fitting.edge_goals(net, radii)).max() < 1e-3


def test_no_assignment_where_a_vertex_fits_no_block():
    assert net_fitting.assign(np.array([[0.0, np.inf], [0.0, np.inf]])) is None
    rows, total = net_fitting.assign(np.array([[1.0, 0.0], [0.0, 5.0]]))
    assert rows.tolist() == [1, 0] and total == 0


def test_table_counts_each_net_once_and_survives_a_file():
    few = data().subset(list(range(0, 200, 10)))
    few = few.with_embeddings(torch.randn(len(few.library), 4, generator=torch.Generator().manual_seed(0)))
    many = MofData.from_coarse([few[i] for i in [*range(len(few)), *range(len(few))]])
    many = many.with_embeddings(torch.zeros(len(many.library), 4))
    one, two = net_fitting.net_table(few, info=dict(source="here")), net_fitting.net_table(many)
    assert len(one) == len(two) and [2 * n.count for n in one.nets] == [n.count for n in two.nets]
    assert sum(n.count for n in one.nets) == len(few) and one.keys == two.keys
    back = net_fitting.unpack_nets(*net_fitting.pack_nets(one))
    assert back.keys == one.keys and back.info["source"] == "here" and back.info["frameworks"] == len(few)
    for a, b in zip(one.nets, back.nets):
        assert a.name == b.name and a.count == b.count
        assert np.abs((a.frac_coords - b.frac_coords) @ a.lattice).max() < 0.003, "A"
        assert (
            nets.isomorphism(a.graph, b.graph) == list(range(len(a)))
            or nets.isomorphism(a.graph, b.graph) is not None
        )
        assert all(
            np.allclose(s.embedding, t.embedding, rtol=5e-4) and s.kind == t.kind
            for s, t in zip(a.sites, b.sites)
        )
        assert Counter(map(len, a.classes)) == Counter(map(len, b.classes))


def test_frameworks_without_a_net_are_named_and_left_out():
    good = data()[0]
    broken = CoarseMof(3 * good.lattice, good.frac_coords, good.blocks, "torn")
    table = net_fitting.net_table(MofData.from_coarse([good, broken]))
    assert sum(n.count for n in table.nets) == 1 and "torn" in table.info["failures"][0]
    assert len(net_fitting.net_table(MofData.from_coarse([broken])).nets) == 0
