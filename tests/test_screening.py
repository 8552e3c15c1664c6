"""Screening: a rough capacity that saturates, an estimate from blocks, and the choice of few samples out of many."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from matgen_nb.mofdiff import property_design as pd, screening as sc
from matgen_nb.mofdiff.adsorption import BOLTZMANN, GasState, Insertions
from matgen_nb.mofdiff.bonds import Mof, textbook_crystal
from matgen_nb.mofdiff.decoding import MofSample
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.mofdiff.pipeline import Results, StageResult
from matgen_nb.symmetry.crystal import Crystal, element_table
from matgen_nb.utils import MatgenError


@pytest.fixture(scope="module")
def data():
    return embedded_mofs()


def samples_of(data, indices):
    "Samples that are the frameworks of a data set, without nets."
    out = []
    for k, i in enumerate(indices):
        name = f"mof_{k:05d}"
        out.append(MofSample(replace(data[i], name=name), dict(name=name, matched=True, net=""), []))
    return out


def insertions(n, energy, rng):
    return Insertions(rng.random((n, 3)), np.zeros((n, 3)), np.full(n, float(energy)), np.ones(n))


@pytest.mark.parametrize("pressure", [1.0, 1e5, 1e8])
@pytest.mark.parametrize("boxes", [1, 2, 3])
def test_boxes_of_the_same_energy_are_langmuir_sites(pressure, boxes):
    "A cell of boxes^3 equal boxes holds boxes^3 times what Langmuir's law gives one of them."
    rng, energy, temperature = np.random.default_rng(boxes), -1500.0, 320.0
    cell = Crystal(4.5 * boxes * np.eye(3), [18], [[0, 0, 0]])
    grid = np.stack(np.meshgrid(*[np.arange(2 * boxes)] * 3, indexing="ij"), -1).reshape(-1, 3)
    n = len(grid)
    found = replace(insertions(n, energy, rng), centres=(grid + 0.5) / (2 * boxes))
    state = GasState(temperature, pressure, dict(CO2=1.0))
    one = 4.5**3 * 1e-30 * pressure / (BOLTZMANN * temperature) * math.exp(-energy / temperature)
    wanted = 1000 * boxes**3 * one / (1 + one) / element_table().mass[18]
    assert np.isclose(sc.langmuir_uptake(cell, found, state), wanted, rtol=1e-9)


def test_the_mole_fraction_and_the_density_of_insertions_count():
    cell, rng = Crystal(5 * np.eye(3), [18], [[0, 0, 0]]), np.random.default_rng(0)
    found = insertions(500, -800, rng)
    pure = sc.langmuir_uptake(cell, found, GasState(298.0, 1.5e4, dict(CO2=1.0)))
    mixed = sc.langmuir_uptake(cell, found, GasState(298.0, 1e5, dict(CO2=0.15, N2=0.85)))
    assert np.isclose(pure, mixed, rtol=1e-12)
    twice = replace(found, density=2 * np.ones(500))
    low = GasState(298.0, 1.0, dict(CO2=1.0))
    assert np.isclose(
        2 * sc.langmuir_uptake(cell, twice, low), sc.langmuir_uptake(cell, found, low), rtol=1e-3
    )


def test_a_rough_capacity_repeats_and_names_a_wrong_swing():
    quick = sc.RoughCapacity("pure", trials=300, insertions=300)
    irmof = textbook_crystal("IRMOF-1")
    assert quick(irmof) == quick(irmof) > 0
    with pytest.raises(MatgenError, match="no swing 'tsa'; there are mixture, pure"):
        sc.RoughCapacity("tsa")
    assert sc.RoughPores("density")(irmof) == irmof.density


def test_block_features_do_not_depend_on_the_order_or_on_a_supercell(data):
    coarse = data[7]
    order = np.random.default_rng(0).permutation(len(coarse.blocks))
    turned = replace(
        coarse,
        blocks=[coarse.blocks[i] for i in order],
        frac_coords=coarse.frac_coords[order],
        edges=None,
        shifts=None,
    )
    assert np.allclose(sc.block_features(coarse), sc.block_features(turned), rtol=1e-9)
    halves = np.concatenate([coarse.frac_coords / [2, 1, 1], coarse.frac_coords / [2, 1, 1] + [0.5, 0, 0]])
    double = replace(
        coarse,
        lattice=coarse.lattice * [[2], [1], [1]],
        frac_coords=halves,
        blocks=coarse.blocks * 2,
        edges=None,
        shifts=None,
    )
    change = sc.block_features(double) - sc.block_features(coarse)
    assert np.flatnonzero(np.abs(change) > 1e-9).tolist() == [241], "only the number of blocks"


def test_an_estimate_orders_frameworks_that_it_has_not_seen(data):
    known = sc.learned_from(data, "void_fraction", 300, seed=1)
    assert known.values.shape == (300,) and known.fit.explained() > 0.8
    column = data.properties[:, data.property_names.index("void_fraction")].numpy()
    seen = {float(v) for v in known.values}
    others = [i for i in range(200) if float(column[i]) not in seen][:80]
    found = known(sc.features_of([data[i] for i in others]))
    assert np.corrcoef(found, column[others])[0, 1] > 0.9
    with pytest.raises(MatgenError, match="the data give no price: they give density"):
        sc.learned_from(data, "price")
    with pytest.raises(MatgenError, match="at least 20 finite values"):
        sc.BlockRegressor(known.features[:5], known.values[:5])
    assert sc.block_estimate("price", data) is None


def test_samples_of_the_same_blocks_on_the_same_net_count_once(data):
    samples = samples_of(data, [3, 4, 3, 3])
    samples[3].row["net"] = "pcu"
    samples[1].row["matched"] = False
    assert [s.row["name"] for s in sc.distinct_samples(samples)] == ["mof_00000", "mof_00003"]


class Assembled:
    "Pretends to put samples together: the crystal is a box whose edge says how good it is."

    def __init__(self, results, edges):
        self.results, self.edges, self.requested = results, edges, []

    def __call__(self, samples):
        self.requested.append([s.row["name"] for s in samples])
        for s in samples:
            edge = self.edges[s.row["name"]]
            crystal = Crystal((edge or 3.0) * np.eye(3), [6], [[0, 0, 0]])
            empty = np.zeros((0, 2), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
            row = dict(assembled=edge is not None, bond_success=1)
            self.results.save("assembled", s.row["name"], StageResult(row, Mof(crystal, *empty)))


def edge_of(crystal):
    return float(crystal.lattice[0, 0])


@pytest.mark.parametrize("at_least, wanted", [(True, [9.0, 8.0]), (False, [5.0, 5.5])])
def test_a_screen_keeps_the_best_rough_values_of_what_it_put_together(data, at_least, wanted):
    samples, results = samples_of(data, range(12)), Results()
    edges = dict(
        zip((s.row["name"] for s in samples), [5.0, 9.0, None, 8.0, 4.0, 5.5, 2.0, 2.5, 3.0, 1.5, 7.0, 1.0])
    )
    goal = pd.Goal("edge", 5.1, 0.5, at_least=at_least, measure=edge_of)
    estimate = sc.learned_from(data, "density", 60)
    options = sc.ScreenOptions(pool=6, assembled=6, rounds=3)
    screen, assemble = sc.Screen(goal, estimate, edge_of, options), Assembled(results, edges)
    chosen = screen(samples, 2, results, assemble)
    assert [s.row["rough"] for s in chosen] == wanted
    assert [len(part) for part in assemble.requested] == [4, 4, 4]
    assert len({name for part in assemble.requested for name in part}) == 12, "nothing is put together twice"
    again = Assembled(results, edges)
    assert [s.row["name"] for s in screen(samples, 2, results, again)] == [s.row["name"] for s in chosen]
    assert again.requested == assemble.requested, "a run that goes on asks for the same frameworks"


def test_a_screen_by_blocks_alone_and_one_with_too_few_samples(data):
    samples = samples_of(data, [0, 0, 5, 9, 13])
    estimate = sc.learned_from(data, "density", 100)
    for target in (0.3, 1.2):
        screen = sc.Screen(pd.Goal("density", target, 0.05), estimate)
        chosen = screen(samples, 1, Results(), None)
        values = estimate(sc.features_of([s.coarse for s in samples]))
        assert chosen[0].row["estimated"] == pytest.approx(values[np.abs(values - target).argmin()])
    all_of_them = screen(samples, 5, Results(), None)
    assert sorted(s.row["name"] for s in all_of_them) == [s.row["name"] for s in samples], "n are returned"
    assert "estimated" not in all_of_them[-1].row and screen(samples[:0], 3, Results(), None) == []


def test_options_and_what_has_no_rough_value(data):
    with pytest.raises(MatgenError, match="of 2 samples for each framework not 3 can be put together"):
        sc.ScreenOptions(pool=2, assembled=3)
    goal, plain = pd.Goal("price", 1.0, 0.1, measure=len), pd.DesignOptions()
    estimate = sc.learned_from(data, "density", 30)
    with pytest.raises(MatgenError, match="price has no rough value on atoms: leave out --assembled"):
        sc.with_screen(plain, goal, estimate, sc.ScreenOptions(assembled=2))
    assert sc.with_screen(plain, goal, None) is plain
    made = sc.with_screen(plain, replace(goal, property="lcd"), estimate, sc.ScreenOptions(4, 2, 2))
    assert made.pool == 4 and made.screen.rough == sc.RoughPores("lcd")
    assert "30 frameworks known" in repr(made.screen) and len(repr(made.screen)) < 300


def test_a_design_hands_its_pool_to_the_screen_and_leaves_random_ones_alone(data):
    "Without sampling: the pool of every strategy but random is as large as the options say."
    requested = []

    def screen(samples, n, results, assemble, n_jobs):
        requested.append((len(samples), n, isinstance(assemble, partial)))
        return samples[:n]

    class Model:
        property_names = ("density",)

        def sample(self, n, seed, z, options):
            return samples_of(data, range(n))

    screen.pool = 3
    options = pd.DesignOptions(strategies=("selected",), screen=screen)
    patched = pytest.MonkeyPatch()
    with patched.context() as context:
        context.setattr(pd, "choose_latents", lambda *a: None)
        context.setattr(pd, "run_stages", lambda *a: None)
        made = pd.design(Model(), pd.Goal("density", 1.0), 2, options=options)
    assert requested == [(6, 2, True)] and len(made.rows) == 4
