"""New nets: barycentric placement, moves, cells of a net, and frameworks on nets that no training framework has."""

import numpy as np
import pytest
from matgen_nb.mofdiff.decoding import NetChoice
from matgen_nb.mofdiff.evaluation import add_novelty
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.mofdiff.net_catalogue import load_net, net_facts
from matgen_nb.mofdiff.net_fitting import net_table, placed_net, topology_key
from matgen_nb.mofdiff.net_search import (
    SearchOptions,
    anneal,
    closest_approach,
    measure,
    net_design,
    new_frameworks,
)
from matgen_nb.mofdiff.nets import QuotientGraph, bead_graph, contract, net_key
from matgen_nb.mofdiff.new_nets import (
    Wiring,
    barycentric_placement,
    drawn_key,
    balanced_positions,
    is_one_net,
    known_net_keys,
    lattice_index,
    propose,
    repeat_edges,
    repeated,
    sublattices,
    wired_graph,
)
from matgen_nb.mofdiff.pipeline import Results, StageResult, verdict
from matgen_nb.mofdiff.sampling import NetOptions
from matgen_nb.utils import MatgenError, numpy_stream


def graph_of(name):
    net = load_net(name)
    return QuotientGraph([""] * len(net), net.edges, net.shifts)


def design_of(name, k=0):
    "The design of the k-th embedded framework on a net, and the framework."
    data = embedded_mofs()
    rows = [i for i, found in enumerate(data.names) if found.startswith(f"{name}_")]
    coarse = data[rows[k]]
    return net_design(placed_net(coarse), coarse.blocks), coarse


def own_wiring(design):
    "The way in which a design is joined at first."
    return Wiring(design.pairs[None], design.shifts[None], np.zeros((1, len(design.linkers) + 1), int))


@pytest.mark.parametrize(
    "name, volume",
    [("dia", 8 / 27**0.5), ("pcu", 1.0), ("srs", 8**0.5), ("fcu", 0.5**0.5), ("bcu", 4 / 27**0.5)],
)
def test_barycentric_placement_of_textbook_nets(name, volume):
    "Equal edges of length 1 and the volume per vertex of the known embedding."
    graph = graph_of(name)
    lattice, x = barycentric_placement(graph)
    edges = (x[graph.edges[:, 1]] + graph.shifts - x[graph.edges[:, 0]]) @ lattice
    assert np.allclose(np.linalg.norm(edges, axis=1), 1)
    assert abs(np.linalg.det(lattice)) / len(graph) == pytest.approx(volume)


def test_every_vertex_lies_at_the_mean_of_its_neighbours():
    for name in net_facts():
        graph = graph_of(name)
        x = barycentric_placement(graph)[1]
        means = [np.mean([x[j] + cell for j, *cell in near], axis=0) for near in graph.around]
        assert np.allclose(means, x, atol=1e-6), name


def test_index_of_a_lattice_is_its_determinant():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = rng.integers(-4, 5, (3, 3))
        assert lattice_index(rows.tolist()) == round(abs(np.linalg.det(rows)))
    assert lattice_index([(2, 0, 0), (3, 0, 0), (0, 1, 0), (0, 0, 1)]) == 1
    assert lattice_index([(1, 0, 0), (0, 1, 0), (1, 1, 0)]) == 0 == lattice_index([])


def test_one_net_or_several():
    assert all(is_one_net(graph_of(name)) for name in net_facts())
    loops = lambda *shifts: QuotientGraph([""], [(0, 0)] * len(shifts), shifts)
    assert is_one_net(loops((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert not is_one_net(loops((1, 0, 0), (0, 1, 0))), "a layer"
    assert not is_one_net(loops((1, 1, 0), (0, 1, 1), (1, 0, 1))), "two interpenetrating nets"
    assert not is_one_net(QuotientGraph(["", ""], [(0, 0)] * 3, np.eye(3))), "a vertex without edges"
    with pytest.raises(MatgenError, match="one net"):
        barycentric_placement(loops((1, 0, 0), (0, 1, 0)))


def test_larger_cells_and_other_bases_hold_the_same_net():
    "Every sublattice of index 2 and 3 of several nets, then a basis sheared at random, have one key."
    rng = np.random.default_rng(1)
    shear = np.array([[1, 1, 0], [0, 1, 2], [0, 0, 1]])
    for name in ("pcu", "dia", "srs", "sxb"):
        net, key = load_net(name), net_key(graph_of(name))
        for H in [*sublattices(2), *sublattices(3)]:
            edges, shifts = repeat_edges(net.edges, net.shifts, H, len(net))
            size = round(np.linalg.det(H)) * len(net)
            moved = rng.integers(-2, 3, (size, 3))
            shifts = (shifts + moved[edges[:, 1]] - moved[edges[:, 0]]) @ shear
            order = rng.permutation(size)
            larger = QuotientGraph([""] * size, order[edges], shifts)
            assert is_one_net(larger) and net_key(larger) == key, (name, H)
    assert [len(sublattices(n)) for n in (1, 2, 3, 4)] == [1, 7, 13, 35]


@pytest.mark.parametrize("name", ["dia", "tfz", "pcu", "bcu"])
def test_moves_keep_every_degree(name):
    "After many moves every end is used once, and nets keep kinds and degrees of their vertices."
    design, _ = design_of(name)
    twice, rng = repeated(design, 2), numpy_stream(0, "new nets", 1)
    wiring = Wiring(*(np.repeat(part, 16, 0) for part in vars(own_wiring(twice)).values()))
    degrees = sorted(zip(wired_graph(twice, wiring).labels, map(len, wired_graph(twice, wiring).around)))
    nets = 0
    for _ in range(25):
        frac = balanced_positions(
            len(twice.vertices), twice.owner[wiring.pairs], wiring.shifts, 1 / twice.lengths
        )[0]
        wiring = propose(twice, wiring, frac, rng)
        assert (np.sort(wiring.pairs.reshape(16, -1), 1) == np.arange(len(twice.owner))).all()
        assert (twice.bridging[wiring.pairs[..., 0]] == twice.bridging[wiring.pairs[..., 1]]).all()
        for k in range(16):
            graph = wired_graph(twice, wiring, k)
            if is_one_net(graph):
                nets += 1
                assert sorted(zip(graph.labels, map(len, graph.around))) == degrees
                assert all(graph.labels[i][0] and not graph.labels[j][0] for i, j in graph.edges.tolist())
    assert nets > 20


def test_a_framework_fits_its_own_net_and_the_design_is_that_net():
    data, good = embedded_mofs(), 0
    for i in range(5, len(data), 163):
        net = placed_net(data[i])
        design = net_design(net, data[i].blocks)
        if design is None:
            continue
        own = own_wiring(design)
        assert drawn_key(wired_graph(design, own)) == drawn_key(net.graph), data.names[i]
        assert topology_key(wired_graph(design, own)) == topology_key(net.graph)
        good += (
            measure(design, own).cost[0] < 0.3 and closest_approach(design, own, measure(design, own))[0] > 3
        )
    assert good >= 6


def test_blocks_that_do_not_fit_end_by_end_make_no_design():
    net = placed_net(design_of("dia")[1])
    other = design_of("pcu")[1]
    metal = next(b for b in other.blocks if b.is_metal)
    blocks = [metal if s.is_metal else b for s, b in zip(net.sites, design_of("dia")[1].blocks)]
    assert net_design(net, blocks) is None


def test_new_frameworks_are_new_built_and_reproducible():
    "The net of the beads is the key; the same random numbers give the same; known keys are left out."
    design, coarse = design_of("sxb", 1)
    graph = placed_net(coarse).graph
    known, options = {topology_key(graph), drawn_key(graph)}, SearchOptions(chains=32, steps=120)
    search = lambda known: new_frameworks(design, 1, known, numpy_stream(0, "new nets", 5), options, most=2)
    found = search(known)
    assert found, "this design has new nets"
    for new in found:
        net = bead_graph(new.coarse)
        assert topology_key(net) == new.key and not {new.key, drawn_key(net)} & known
        assert is_one_net(net) and new.gap < options.gap and new.cost < options.most
        assert all(any(b is c for c in coarse.blocks) for b in new.coarse.blocks), "blocks of the design"
        assert sorted(b.formula for b in new.coarse.blocks) == sorted(b.formula for b in coarse.blocks)
    again = search(known)
    assert [n.key for n in again] == [n.key for n in found]
    assert all(np.array_equal(a.coarse.lattice, b.coarse.lattice) for a, b in zip(again, found))
    assert found[0].key not in {n.key for n in search(known | {found[0].key})}


def test_annealing_finds_nothing_where_nothing_may_be_kept():
    design, _ = design_of("dia")
    repeated_design, ways = anneal(design, 1, numpy_stream(0, "new nets", 2), SearchOptions(4, 5, most=1e-9))
    assert len(ways) == 0 and len(repeated_design.vertices) == 2


def test_hopeless_walks_end_early(monkeypatch):
    "After a quarter of the steps, where none of them has come near; else they go on to the end."
    from matgen_nb.mofdiff import net_search

    design, counted = design_of("dia")[0], []
    propose = net_search.propose
    monkeypatch.setattr(net_search, "propose", lambda *a: counted.append(1) or propose(*a))
    steps = {}
    for hopeless in ((0.0, 0.0), (1e9, 0.0), (1e9, 1e9)):
        counted.clear()
        anneal(design, 1, numpy_stream(0, "new nets", 2), SearchOptions(4, 20, most=1e-9, hopeless=hopeless))
        steps[hopeless] = len(counted) - 6  # the moves that shake the walks off their start
    assert list(steps.values()) == [5, 10, 20]


def test_the_row_names_the_net_that_assembly_kept():
    nets = [NetChoice("new", "unnamed"), NetChoice("training set", "pcu")]
    row = dict(name="a", num_blocks=8, net_choices="new:unnamed;training set:pcu", **nets[0].columns())
    for candidate, earlier in ((0, False), (1, False), (0, True), (1, True)):
        results, expected = Results(), (nets[candidate].name, nets[candidate].source)
        about = dict(candidate=candidate, bond_success=0.5, num_blocks=4 if candidate else 8)
        about |= {} if earlier else nets[candidate].columns()  # an earlier version kept the number alone
        results.save("assembled", "a", StageResult(about))
        found = verdict(row, results, relaxed=False).row
        assert (found["net"], found["net_source"]) == expected
        assert found["sampled_blocks"] == (4 if candidate else 8)


def test_share_of_new_nets_has_limits():
    assert NetOptions().new_net_share == 0 and NetOptions(new_net_share=1).new_net_share == 1
    for bad in (-0.1, 1.5):
        with pytest.raises(MatgenError, match="new net share|new_net_share"):
            NetOptions(new_net_share=bad)


def test_contracted_nets_keep_their_name():
    "A design with linkers and the net without them: the same drawing."
    design, _ = design_of("pcu")
    assert net_key(contract(wired_graph(design, own_wiring(design)))) == net_key(graph_of("pcu"))


def test_a_net_is_new_only_where_both_keys_are():
    "Strict novelty: metals and linkers with exchanged roles, or a known drawing, are no new net."
    row = dict(identity="a", valid=True, net_key="labelled", drawn_key="drawn")
    for known, new in ((set(), True), ({"labelled"}, False), ({"drawn"}, False), ({"other"}, True)):
        table = [dict(row)]
        add_novelty(table, set(), known)
        assert table[0]["net_novel"] is new and table[0]["strict_vnu"] is new
    table = net_table(embedded_mofs().subset(range(0, 1600, 200)))
    for net in table.nets:
        assert {topology_key(net.graph), drawn_key(net.graph)} <= known_net_keys(table)
