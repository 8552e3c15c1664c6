"""Lessons 3.19 to 3.22: hull, relaxation within the space group, exchanges, match rate. Most of it with a potential of pairs; CHGNet where it is installed."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
import torch
from matgen_nb.symmcd.dataset import CrystalData, from_units
from matgen_nb.symmcd.preparing import prepare
from matgen_nb.symmcd.potential import (
    EnergyCache,
    PairPotential,
    Potential,
    SinglePoint,
    batches,
    energies,
    get_potential,
    unmoved_primitive_cell,
    single_points,
)
from matgen_nb.symmcd.energy import (
    EnergyOptions,
    QualityLog,
    RelaxingModel,
    contacts,
    evaluate_energies,
    exchange_gains,
    free_coordinates,
    match_rates,
    median_entry,
)
from matgen_nb.symmcd.hull import (
    EnergyReference,
    Hull,
    choose_crystals,
    energy_reference,
    energy_scale,
    fit_elements,
)
from matgen_nb.symmcd.group_relaxation import (
    RelaxOptions,
    element_exchanges,
    primitive_basis,
    relax_in_group,
    relax_samples,
    symmetric_cell,
    symmetric_gradient,
)
from matgen_nb.symmcd.reverse import Sample, SamplingOptions
from matgen_nb.symmetry.asymmetric_unit import AsymmetricUnit
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.symmetry.lattice import constrain_k, lattice_to_k
from matgen_nb.symmetry.space_groups import SpaceGroup
from matgen_nb.utils import MatgenError

HAVE_CHGNET = importlib.util.find_spec("chgnet") is not None
PAIRS = PairPotential()
SALT = Crystal(
    np.eye(3) * 5.64,
    [11] * 4 + [17] * 4,
    [
        [0, 0, 0],
        [0, 0.5, 0.5],
        [0.5, 0, 0.5],
        [0.5, 0.5, 0],
        [0.5, 0.5, 0.5],
        [0.5, 0, 0],
        [0, 0.5, 0],
        [0, 0, 0.5],
    ],
)


def cube(a, elements=(38, 22, 8)):
    "A perovskite ABO3, space group 221: A at 1a, B at 1b, O at 3c."
    k = constrain_k(lattice_to_k(np.eye(3) * a), 221).numpy()
    letters = [w.letter for w in SpaceGroup(221).wyckoff_positions]
    return AsymmetricUnit(
        221, k, elements, [[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.5]], [letters.index(x) for x in "abc"]
    )


def some_units(seed=0, groups=(2, 12, 15, 62, 139, 166, 186, 194, 198, 216, 225, 227), tries=200):
    "One crystal of each group with random elements, cells and free coordinates, atoms not too near."
    rng, out = np.random.default_rng(seed), []
    for number in groups:
        positions = SpaceGroup(number).wyckoff_positions
        for _ in range(tries):
            chosen = rng.choice(len(positions) - 1, min(3, len(positions) - 1), replace=False)
            atoms = sum(positions[w].multiplicity for w in chosen)
            k = constrain_k(np.append(rng.normal(0, 0.1, 5), math.log(18 * atoms) / 3), number).numpy()
            points = [(positions[w].A[0] @ rng.random(3) + positions[w].t[0]) % 1 for w in chosen]
            unit = AsymmetricUnit(
                number, k, rng.choice([3, 12, 13, 22, 8, 16, 17], len(chosen), replace=False), points, chosen
            )
            if atoms <= 40 and contacts(unit.to_crystal()).shortest > 0.6:
                out.append(unit)
                break
    return out


UNITS = some_units()


class Failing(Potential):
    "Raises for titanium, returns nonsense for oxygen, and hangs for nobody."

    name = "failing"
    covered = frozenset(range(1, 90))

    def calculate(self, crystals, forces):
        if any(22 in c.elements for c in crystals):
            raise RuntimeError("no graph for Ti\nsecond line")
        zero = lambda c: (np.zeros((len(c), 3)), np.zeros((3, 3))) if forces else (None, None)
        return [SinglePoint(math.nan if 8 in c.elements else -1.0, *zero(c)) for c in crystals]


def test_hull_is_the_phase_diagram_of_pymatgen():
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition, Element

    formulas = {
        "Li2O": -2.0,
        "Fe2O3": -1.6,
        "FeO": -1.3,
        "LiFeO2": -1.75,
        "Li5FeO4": -1.8,
        "LiFe": 0.2,
        "Fe3O4": -1.5,
    }
    entries = [PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in formulas.items()]
    diagram = PhaseDiagram(entries + [PDEntry(Composition(x), 0) for x in ("Li", "Fe", "O")])
    above = [diagram.get_e_above_hull(x) for x in entries]
    atoms = [{Element(k).Z: int(v) for k, v in Composition(f).as_dict().items()} for f in formulas]
    hull = Hull(EnergyReference(atoms, np.array(list(formulas.values())), np.array(above), lambda i: None))
    for text in ("Li2O", "LiFeO2", "Li3FeO3", "LiFe5O7", "LiFe", "Li4Fe2O9", "FeO"):
        composition = Composition(text)
        expected = diagram.get_hull_energy_per_atom(composition)
        numbers = np.repeat(
            [Element(k).Z for k in composition.as_dict()], [int(v) for v in composition.as_dict().values()]
        )
        assert hull.energy(numbers) == pytest.approx(expected, abs=1e-8), text
    assert hull.energy([3, 3]) == 0 and hull.energy([3, 26]) == pytest.approx(0)


def test_the_lowest_of_several_polymorphs_counts():
    hull = Hull(
        EnergyReference(
            [{11: 1, 17: 1}, {11: 4, 17: 4}], np.array([-2.0, -1.8]), np.array([0.0, 0.1]), lambda i: None
        )
    )
    assert hull.energy([11, 17]) == pytest.approx(-2.0)


def test_element_energies_survive_outliers():
    rng = np.random.default_rng(0)
    true, shares = rng.normal(-4, 2, 95), np.zeros((400, 95))
    for row in shares:
        row[rng.choice(np.arange(1, 9), 3, replace=False)] = rng.dirichlet([1, 1, 1])
    values = shares @ true + rng.normal(0, 0.01, 400)
    values[::20] += 3  # one in twenty is far off
    found = fit_elements(shares, values)
    assert np.abs(found[1:9] - true[1:9]).max() < 0.05 and np.isnan(found[50])
    plain = np.linalg.lstsq(shares[:, 1:9], values, rcond=None)[0]
    assert np.abs(plain - true[1:9]).max() > 0.1


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: str(u.space_group))
def test_primitive_cell_and_gradient(unit):
    cell = symmetric_cell(unit)
    k, u = cell.start()
    crystal, whole = cell.crystal(k, u), unit.to_crystal()
    ratio = len(whole) / len(crystal)
    assert whole.volume / crystal.volume == pytest.approx(ratio) and ratio == pytest.approx(
        1 / np.linalg.det(primitive_basis(unit.space_group))
    )
    points = single_points([crystal, whole], PAIRS, progress=None)
    assert points[0].energy == pytest.approx(points[1].energy, abs=1e-7)
    assert points[0].pressure == pytest.approx(points[1].pressure, abs=1e-6)
    for_k, for_u = symmetric_gradient(cell, k, crystal, points[0])
    energy = lambda k, u: PAIRS.calculate([cell.crystal(k, u)], False)[0].energy * len(crystal)
    h = 1e-5
    for i in np.flatnonzero(cell.free_k):
        step = np.eye(6)[i] * h
        assert for_k[i] == pytest.approx(
            (energy(k + step, u) - energy(k - step, u)) / (2 * h), rel=1e-3, abs=1e-3
        )
    for m, c in np.argwhere(cell.free_u):
        step = np.zeros_like(u)
        step[m, c] = h
        assert for_u[m, c] == pytest.approx(
            (energy(k, u + step) - energy(k, u - step)) / (2 * h), rel=1e-3, abs=1e-3
        )
    assert not for_k[~cell.free_k].any() and not for_u[~cell.free_u].any()


def test_relaxation_keeps_the_group_and_lowers_the_energy():
    found = relax_in_group(UNITS, PAIRS, RelaxOptions(exchanges=0), progress=None)
    for unit, r in zip(UNITS, found):
        assert r.energy_after <= r.energy_before + 1e-4 and r.unit.space_group == unit.space_group
        assert (r.unit.wyckoff == unit.wyckoff).all() and (r.unit.elements == unit.elements).all()
        rotations, translations = SpaceGroup(unit.space_group).operations
        crystal = r.unit.to_crystal()
        for R, w in zip(
            rotations, translations
        ):  # every operation of the group maps the relaxed crystal onto itself
            moved = crystal.frac_coords @ R.T + w
            delta = moved[:, None] - crystal.frac_coords
            distance = np.linalg.norm((delta - np.round(delta)) @ crystal.lattice, axis=-1)
            assert (distance.min(1) < 1e-6).all() and (
                crystal.elements[distance.argmin(1)] == crystal.elements
            ).all()
    done = [r for r in found if r.converged]
    assert len(done) >= 0.7 * len(found), [r.reason for r in found]
    for r in done:
        point = single_points([unmoved_primitive_cell(r.unit.to_crystal())], PAIRS, progress=None)[0]
        assert point.max_force < 0.11 and point.energy == pytest.approx(r.energy_after, abs=1e-3)


def test_relaxation_gives_the_same_alone_and_in_company():
    alone = [relax_in_group([u], PAIRS, RelaxOptions(together=1), progress=None)[0] for u in UNITS[:4]]
    for a, b in zip(alone, relax_in_group(UNITS[:4], PAIRS, progress=None)):
        assert a.energy_after == pytest.approx(b.energy_after, abs=1e-6) and a.exchanged == b.exchanged


def test_relaxation_ends_when_its_time_or_steps_are_over():
    far = cube(5.2)
    out_of_time = relax_in_group([far], PAIRS, RelaxOptions(max_seconds=0, exchanges=0), progress=None)[0]
    few = relax_in_group([far], PAIRS, RelaxOptions(steps=1, exchanges=0), progress=None)[0]
    assert not out_of_time.converged and out_of_time.reason == "out of time" and out_of_time.steps == 0
    assert not few.converged and few.reason == "no more steps" and few.steps == 1


def test_relaxation_reports_what_cannot_be_done():
    good, titanium = cube(4.0, (20, 12, 17)), cube(4.0)
    noble = cube(4.0, (90, 22, 8))
    found = relax_in_group([good, titanium, noble], Failing(), RelaxOptions(exchanges=0), progress=None)
    assert (
        found[0].converged and found[1].reason == "no graph for Ti" and "does not cover Th" in found[2].reason
    )
    assert found[1].energy_after is None and (found[1].unit.k == titanium.k).all()


def test_exchanges_have_equal_size():
    names = [name for name, _ in element_exchanges(cube(3.9))]
    assert names == ["Sr 1a <> Ti 1b"]
    swapped = element_exchanges(cube(3.9))[0][1]
    assert swapped.elements.tolist() == [22, 38, 8] and swapped.formula == "SrTiO3"
    assert not element_exchanges(cube(3.9, (8, 8, 38))) and len(element_exchanges(UNITS[3], most=1)) <= 1


def test_exchange_brings_strontium_titanate_back():
    wrong, right = cube(3.905, (22, 38, 8)), cube(3.905)
    rows = energies([u.to_crystal() for u in (wrong, right)], PAIRS, progress=None)
    (gain, text), (loss, _) = exchange_gains([wrong, right], rows, PAIRS, progress=None)
    assert gain == pytest.approx(-loss) and text == "Ti 1a <> Sr 1b"
    lower = wrong if gain < 0 else right
    found = relax_in_group([wrong, right], PAIRS, progress=None)
    assert all(r.unit.elements.tolist() == lower.elements.tolist() for r in found) and bool(
        found[0].exchanged
    ) != bool(found[1].exchanged)


@pytest.mark.skipif(not HAVE_CHGNET, reason="chgnet is not installed")
def test_chgnet_knows_strontium_titanate():
    potential, wrong = get_potential("chgnet"), cube(3.905, (22, 38, 8))
    right = cube(3.905)
    rows = energies([u.to_crystal() for u in (wrong, right)], potential, progress=None)
    assert rows[1]["max_force"] < 0.01 and abs(rows[1]["pressure"]) < 8
    (gain, _), (loss, _) = exchange_gains([wrong, right], rows, potential, progress=None)
    assert gain > 1 and loss < -1
    found = relax_in_group([wrong], potential, progress=None)[0]
    assert (
        found.exchanged
        and found.converged
        and found.group_kept
        and found.unit.elements.tolist() == [38, 22, 8]
    )
    assert np.linalg.det(found.unit.lattice) ** (1 / 3) == pytest.approx(3.93, abs=0.05)
    alone, batch = (
        single_points([SALT], potential, progress=None),
        single_points([SALT, wrong.to_crystal()], potential, progress=None),
    )
    assert alone[0].energy == pytest.approx(batch[0].energy, abs=1e-5)
    assert unmoved_primitive_cell(SALT).volume == pytest.approx(SALT.volume / 4)
    assert single_points([unmoved_primitive_cell(SALT)], potential, progress=None)[0].energy == pytest.approx(
        alone[0].energy, abs=1e-4
    )


@pytest.mark.parametrize("name, package", [("chgnet", "chgnet"), ("sevenn", "sevenn")])
def test_a_missing_potential_is_named(monkeypatch, name, package):
    for module in [m for m in sys.modules if m.split(".")[0] == package] + [
        package,
        f"{package}.model",
        f"{package}.calculator",
    ]:
        monkeypatch.setitem(sys.modules, module, None)
    get_potential.cache_clear()
    with pytest.raises(MatgenError, match="pip install"):
        get_potential(name)
    with pytest.raises(MatgenError, match="choose one of chgnet, sevenn"):
        get_potential("magic")
    get_potential.cache_clear()


def test_bad_crystals_are_named_and_the_rest_goes_on():
    potential = Failing()
    big = Crystal(np.eye(3) * 20, [11] * 250, np.random.default_rng(0).random((250, 3)))
    dense = Crystal(np.eye(3) * 1.2, [11], [[0, 0, 0]])
    crystals = [
        SALT,
        None,
        cube(3.9).to_crystal(),
        Crystal(np.eye(3) * 4, [92], [[0, 0, 0]]),
        big,
        dense,
        cube(4, (20, 12, 8)).to_crystal(),
    ]
    rows = energies(crystals, potential, progress=None)
    reasons = [row["failure"] for row in rows]
    assert rows[0]["energy"] == -1 and reasons[0] == ""
    for reason, part in zip(
        reasons[1:],
        [
            "no crystal",
            "no graph for Ti",
            "does not cover U",
            "at most 200",
            "A^3 per atom",
            "not a finite number",
        ],
    ):
        assert part in reason
    assert all(row["energy"] is None for row in rows[1:])


def test_batches():
    groups = batches([5, 300, 100, 60, 60], most=200)
    assert sorted(i for g in groups for i in g) == list(range(5)) and all(
        len(g) == 1 or sum([5, 300, 100, 60, 60][i] for i in g) <= 200 for g in groups
    )


def test_cache_counts_every_crystal_once(tmp_path):
    class Counting(PairPotential):
        requested = 0

        def calculate(self, crystals, forces):
            Counting.requested += len(crystals)
            return super().calculate(crystals, forces)

    path = tmp_path / "cache.json"
    first = energies([SALT, SALT, None], Counting(), cache=EnergyCache(path), progress=None)
    assert Counting.requested == 1 and first[0] == first[1]
    assert (
        energies([SALT], Counting(), cache=EnergyCache(path), progress=None)[0] == first[0]
        and Counting.requested == 1
    )
    path.write_text("{ torn")
    assert (
        energies([SALT], Counting(), cache=EnergyCache(path), progress=None)[0] == first[0]
        and Counting.requested == 2
    )
    assert (
        energies([SALT], Counting(), forces=False, cache=EnergyCache(path), progress=None)[0]["energy"]
        == first[0]["energy"]
    )
    assert Counting.requested == 2


def pair_reference(n=60):
    "A reference whose energies are those of the pair potential, with made-up energies of the elements."
    rng = np.random.default_rng(1)
    units = [u for u in UNITS if len(set(u.elements)) > 1 and u.num_atoms <= 12]
    units = (units * (n // len(units) + 1))[:n]
    crystals = [u.to_crystal() for u in units]
    elements = rng.normal(15, 1, 95)  # so that every crystal lies far below its elements
    formation = np.array(
        [
            r["energy"] - elements[c.elements].mean()
            for r, c in zip(energies(crystals, PAIRS, forces=False, progress=None), crystals)
        ]
    )
    compositions = [
        dict(zip(*(x.tolist() for x in np.unique(c.elements, return_counts=True)))) for c in crystals
    ]
    return (
        EnergyReference(compositions, formation, np.full(n, 0.02), lambda i: crystals[i]),
        crystals,
        elements,
    )


def test_scale_and_evaluation():
    reference, crystals, elements = pair_reference()
    scale = energy_scale(reference, PAIRS, progress=None)
    assert scale.residual < 0.01
    unknown = Crystal(np.eye(3) * 4, [92], [[0, 0, 0]])
    options = EnergyOptions(progress=False, relaxations=2)
    result = evaluate_energies([*crystals[:12], None, unknown], scale, PAIRS, options=options)
    above = [row["e_above_hull"] for row in result.table]
    assert np.allclose(above[:12], 0.02, atol=0.02) and above[12:] == [None, None]
    assert result.table[12]["failure"] == "no crystal" and result.summary["no_energy"]["value"] == 1 / 14
    assert result.summary["e_above_hull<0.1"]["value"] == 1 and result.summary["e_above_hull<0.1"]["n"] == 12
    assert result.table[0]["relaxation_loss"] >= -1e-4 and result.table[5].get("relaxation_loss") is None
    assert "not independent" not in result.summary["e_above_hull"]["protocol"]
    reported = evaluate_energies(
        crystals[:2],
        scale,
        PAIRS,
        options=EnergyOptions(progress=False, try_exchanges=False, relaxed_with="pairs"),
    )
    assert (
        "not independent" in reported.summary["e_above_hull"]["protocol"]
        and "exchange_gains" not in reported.summary
    )
    assert "e_above_hull<0.1" in str(reported)


def test_a_reference_without_energies(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("material_id,cif\na,x\n")
    data = from_units(UNITS[:3])
    data.save(tmp_path / "plain.safetensors")
    for source in (path, data, tmp_path / "plain.safetensors", tmp_path):
        with pytest.raises(MatgenError, match="formation_energy_per_atom"):
            energy_reference(source)


def test_energy_columns_are_kept(tmp_path):
    import csv

    path, out = tmp_path / "four.csv", tmp_path / "four.safetensors"
    rows = [
        ("a", cube(3.9).to_crystal().to_cif(), -3.5, 0.01),
        ("b", "broken", -1, 0),
        ("c", SALT.to_cif(), -2.1, ""),
        ("d", SALT.to_cif(), -2.1, 0.03),
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("material_id", "cif", "formation_energy_per_atom", "e_above_hull"), *rows]
        )
    data, report = prepare(path, out=out, n_jobs=1, progress=None)
    assert report.kept == 3 and data.names == ["a", "c", "d"]
    again = CrystalData.load(out)
    assert np.allclose(again.columns["e_above_hull"], [0.01, math.nan, 0.03], equal_nan=True)
    assert again.subset([2]).columns["formation_energy_per_atom"].tolist() == [-2.1]
    assert again.to("cpu").columns.keys() == again.columns.keys() and again[0].space_group == 221
    of_file, of_csv = energy_reference(out), energy_reference(path)
    assert (
        of_file.formation.tolist() == of_csv.formation.tolist() == [-3.5, -2.1]
    )  # b cannot be read, c has no energy
    assert (
        of_file.compositions == [{38: 1, 22: 1, 8: 3}, {11: 4, 17: 4}]
        and of_file.crystal(1).formula == "NaCl"
    )


def test_old_prepared_files_still_load(tmp_path):
    data = from_units(UNITS[:3], ["a", "b", "c"], dict(source="old"))
    data.save(tmp_path / "old.safetensors")
    from safetensors import safe_open

    with safe_open(str(tmp_path / "old.safetensors"), "pt") as file:
        assert set(file.keys()) == set(data.tensors())  # without columns the file is what it always was
    assert CrystalData.load(tmp_path / "old.safetensors").columns == {}


def test_choose_crystals_takes_rare_elements():
    compositions = [{3: 1, 8: 1}] * 500 + [{92: 1, 8: 2}] * 3 + [{26: 60}]
    reference = EnergyReference(compositions, np.zeros(504), np.zeros(504), lambda i: None)
    chosen = choose_crystals(reference, 50)
    assert len(chosen) == len(set(chosen)) == 50 and {500, 501, 502} <= set(chosen) and 503 not in chosen


def test_contacts_of_textbook_crystals():
    salt = contacts(SALT)
    assert salt.shortest == pytest.approx(2.82 / (1.66 + 1.02), abs=0.01) and salt.loneliest == pytest.approx(
        salt.shortest
    )
    assert not salt.anion_pair and not salt.cation_pair and salt.elements == 2
    peroxide = Crystal(np.eye(3) * 6, [11, 8, 8], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.74]])
    assert contacts(peroxide).anion_pair and not contacts(peroxide).cation_pair
    pair = Crystal(np.eye(3) * 7, [11, 11, 8], [[0, 0, 0], [0.35, 0, 0], [0.5, 0.5, 0.5]])
    assert (
        contacts(pair).cation_pair
        and contacts(Crystal(np.eye(3) * 9, [11], [[0, 0, 0]])).loneliest == math.inf
    )
    assert contacts(Crystal(np.eye(3) * 2.5, [26], [[0, 0, 0]])).elements == 1


def test_match_rates():
    true = UNITS[:6]
    bent = [u.to_crystal() for u in true]
    result = match_rates([bent[0], bent[1], None, bent[3], bent[4], SALT], true, progress=None)
    matched = [row["rms"] is not None for row in result.table]
    assert matched == [True, True, False, True, True, False]
    assert result.summary["match"]["value"] == pytest.approx(4 / 6) and result.summary["match"]["n"] == 6
    assert sum(result.summary[f"match free={x}"]["n"] for x in ("0", "1-2", "3-6", ">6")) == 6
    larger = [Crystal(c.lattice * 1.05, c.elements, c.frac_coords) for c in bent]
    assert match_rates(larger, true, progress=None).summary["ln_volume_rms"]["value"] == pytest.approx(
        3 * math.log(1.05)
    )
    with pytest.raises(ValueError):
        match_rates(bent[:2], true)
    assert free_coordinates(cube(4)) == 0 and match_rates([], [], progress=None).summary["match"]["n"] == 0


def test_median_entry():
    entry = median_entry([1, 2, 3, None, math.nan], "x")
    assert entry["value"] == 2 and entry["n"] == 3 and 1 <= entry["low"] <= 2 <= entry["high"] <= 3
    assert math.isnan(median_entry([], "x")["value"])


def _sample(unit):
    return Sample(unit.to_crystal(), unit, dict(formula=unit.formula, volume=unit.to_crystal().volume))


class Guessing(torch.nn.Module):
    "Predicts the true crystals, a little larger; takes from torch's random numbers on the way."

    fails = False

    def predict(self, units, n=1, seed=0):
        if self.fails:
            raise MatgenError("this model cannot predict")
        torch.rand(5)
        assert not self.training
        return [_sample(u) for u in units]

    def sample(self, n, options=None, **requested):
        return [_sample(u) for u in UNITS[:n]]


def test_quality_log(capsys):
    reference, *_ = pair_reference()
    scale = energy_scale(reference, PAIRS, progress=None)
    model, log = Guessing(), QualityLog(UNITS, every=10, n=4, scale=scale, potential=PAIRS)
    model.train()
    before = torch.get_rng_state()
    assert log(model, 7) == {}
    found = log(model, 20)
    assert (
        found["match"] == 1
        and found["ln_volume_rms"] == pytest.approx(0, abs=1e-9)
        and abs(found["e_above_hull"]) < 0.05
    )
    assert model.training and (torch.get_rng_state() == before).all()
    model.fails = True
    assert log(model, 30) == {} and log(model, 40) == {}
    assert capsys.readouterr().out.count("no match rate from now on") == 1
    assert set(QualityLog(UNITS, every=1, n=2)(Guessing(), 1)) == {"match", "match_free", "ln_volume_rms"}


def test_relaxed_samples_say_what_happened():
    samples = RelaxingModel(Guessing(), PAIRS).sample(3, options=SamplingOptions(progress=False))
    for s, unit in zip(samples, UNITS):
        row = s.row
        assert (
            row["relaxed_with"] == "pairs"
            and row["energy_after"] <= row["energy_before"] + 1e-4
            and row["relax_reason"]
        )
        assert row["volume"] == pytest.approx(s.crystal.volume) and s.unit.space_group == unit.space_group
        assert row["relax_volume_change"] == pytest.approx(s.crystal.volume / unit.to_crystal().volume - 1)
        json.dumps(dict(row.items()))
    rejected = relax_samples([_sample(cube(3.9))], Failing(), progress=None)[0]
    assert rejected.row["relax_reason"] == "no graph for Ti" and rejected.row["energy_after"] is None


@pytest.mark.parametrize("moved", [None, np.array([0.1, 0, 2.5])])
@pytest.mark.parametrize("potential", [PAIRS, "failing"])
def test_relaxed_samples_keep_how_far_projection_moved_the_orbits(moved, potential):
    before = Sample(cube(3.9).to_crystal(), cube(3.9), {}, moved)
    potential = Failing() if potential == "failing" else potential
    (after,) = relax_samples([before], potential, RelaxOptions(exchanges=0, steps=2), progress=None)
    assert after.moved is moved and len(after.unit.elements) == 3


@pytest.fixture
def command(monkeypatch, tmp_path):
    "The command line with the pair potential under the name `pairs`, a cache of its own, and an evaluation that costs nothing."
    from matgen_nb.commands import main as entry
    from matgen_nb.scale import crystal_evaluation
    from matgen_nb.symmcd import potential as energy
    from matgen_nb.symmcd.evaluation import Evaluation

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(energy.POTENTIALS, "pairs", lambda device: PairPotential())
    energy.get_potential.cache_clear()
    monkeypatch.setattr(
        Evaluation,
        "plot",
        lambda self: __import__("matplotlib.figure", fromlist=["Figure"]).Figure(figsize=(1, 1)),
    )
    monkeypatch.setattr(
        crystal_evaluation,
        "evaluate_against",
        lambda crystals, reference, cache, training, names, *_: Evaluation([dict(name=n) for n in names], {}),
    )

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            entry.main([str(a) for a in arguments])
        return stop.value.code

    yield run
    energy.get_potential.cache_clear()


def reference_csv(path, energies_too=True):
    "A CSV of 20 crystals, with energies or without."
    import csv

    reference, crystals, _ = pair_reference(20)
    head = ["material_id", "cif"] + ["formation_energy_per_atom", "e_above_hull"] * energies_too
    rows = [
        [f"m{i}", c.to_cif()] + [e, 0.02] * energies_too
        for i, (c, e) in enumerate(zip(crystals, reference.formation))
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_commands_sample_relaxed_crystals_and_evaluate_energies(command, tmp_path, capsys):
    known = reference_csv(tmp_path / "known.csv")
    assert (
        command(
            "sample",
            "symmcd",
            "-n",
            2,
            "--num-orbits",
            2,
            "--space-group",
            225,
            "--steps",
            4,
            "--relax",
            "pairs",
            "--out",
            tmp_path / "s",
            "--device",
            "cpu",
        )
        == 0
    )
    assert json.loads((tmp_path / "s" / "request.json").read_text())["relax"] == "pairs"
    (tmp_path / "s" / "cif" / "torn.cif").write_text("data_x")
    options = ["--reference", known, "--n-jobs", 1, "--energy", "--potential", "pairs", "--relaxations", 2]
    assert command("evaluate", "crystals", tmp_path / "s", *options, "--out", tmp_path / "e") == 0
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert (
        summary["real e_above_hull"]["n"] == 20 and abs(summary["real e_above_hull"]["value"] - 0.02) < 0.02
    )
    assert (
        "not independent" in summary["e_above_hull"]["protocol"]
        and "not independent" not in summary["real e_above_hull"]["protocol"]
    )
    table = (tmp_path / "e" / "table.csv").read_text()
    assert "no crystal" in table and "max_force" in table
    assert (tmp_path / "cache" / "matgen_nb" / "energies-pairs.json").exists()
    capsys.readouterr()


def test_commands_say_what_is_missing(command, tmp_path, capsys, monkeypatch):
    plain = reference_csv(tmp_path / "plain.csv", energies_too=False)
    (tmp_path / "one").mkdir()
    SALT.to_cif(tmp_path / "one" / "a.cif")
    options = [tmp_path / "one", "--reference", plain, "--n-jobs", 1, "--energy"]
    assert command("evaluate", "crystals", *options, "--potential", "pairs", "--out", tmp_path / "e") == 0
    said = "".join(capsys.readouterr())
    assert "no energies, the rest of the evaluation goes on" in said and "has no energies" in said
    head = (tmp_path / "e" / "table.csv").read_text().splitlines()[0]
    assert "has no energies" in (tmp_path / "e" / "run.json").read_text(), "the record says what is missing"
    assert head.startswith("file,name,failure") and "max_force" not in head
    assert command("evaluate", "crystals", *options, "--potential", "magic", "--out", tmp_path / "e0") == 2
    assert "choose one of" in capsys.readouterr().err and not (tmp_path / "e0" / "table.csv").exists()
    known = reference_csv(tmp_path / "known.csv")
    assert (
        command(
            "evaluate",
            "crystals",
            *options,
            "--training",
            known,
            "--potential",
            "pairs",
            "--out",
            tmp_path / "e2",
        )
        == 0
    )
    for module in [m for m in sys.modules if m.split(".")[0] == "chgnet"] + ["chgnet", "chgnet.model"]:
        monkeypatch.setitem(sys.modules, module, None)
    get_potential.cache_clear()
    given = [tmp_path / "one", "--reference", known, "--n-jobs", 1, "--energy"]
    capsys.readouterr()
    assert command("evaluate", "crystals", *given, "--out", tmp_path / "e3") == 0
    said = "".join(capsys.readouterr())
    assert "the rest of the evaluation goes on" in said and "pip install 'matgen_nb[stability]'" in said
    assert (tmp_path / "e3" / "summary.json").exists()
    assert command("sample", "symmcd", "-n", 1, "--relax", "chgnet", "--out", tmp_path / "s") == 2
    assert (
        "pip install 'matgen_nb[stability]'" in capsys.readouterr().err
        and not (tmp_path / "s" / "table.csv").exists()
    )
    assert command("sample", "symmcd", "-n", 1, "--relax", "magic", "--out", tmp_path / "s") == 2
    assert "choose one of" in capsys.readouterr().err


def test_the_published_table_is_complete():
    from matgen_nb.symmcd.energy import published_energies

    rows = published_energies()
    by_model = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["figure"]] = row
        assert (
            row["n"] > 0
            and row["source"]
            and (row["low"] is None or row["low"] <= row["value"] <= row["high"])
        )
    assert {"real held-out crystals", "symmcd-mp20-small", "DiffCSP"} <= set(by_model)
    for figures in by_model.values():
        assert {
            "max_force>1",
            "pressure",
            "e_above_hull",
            "e_above_hull<0.1",
            "exchange_gains",
            "relaxation_loss",
        } <= set(figures)
    assert by_model["real held-out crystals"]["e_above_hull<0.1"]["value"] > 0.9
