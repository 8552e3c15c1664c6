"""Biased grand-canonical Monte Carlo against ideal gas, Henry's law and Langmuir; the command on good and bad frameworks."""

import json

import numpy as np
import pytest

from matgen_nb.commands import main as entry
from matgen_nb.mofdiff import adsorption as ad, gas_uptake as gu
from matgen_nb.mofdiff.bonds import textbook_crystal
from matgen_nb.scale import gas_runs as gc
from matgen_nb.scale.records import read_json, read_table
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import MatgenError

QUICK = ad.AdsorptionOptions(trials=2000, insertions=400, groups=6, chains=2, moves=200)
FLAGS = ["--trials", 500, "--insertions", 200, "--groups", 3, "--moves", 20, "--protocol", "pure"]
HELIUM = Crystal(26 * np.eye(3), [2], [[0, 0, 0]])


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        entry.main([str(a) for a in arguments])
    return stop.value.code


def test_host_energy_is_that_of_lesson_37():
    crystal, rng = textbook_crystal("HKUST-1"), np.random.default_rng(1)
    centres, axes = rng.random((60, 3)), rng.normal(size=(60, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    found = ad.host_energy(ad.Host(crystal), "N2", centres, axes)
    there = np.isfinite(found)
    assert there.sum() > 5
    wanted = gu.insertion_energy(crystal, centres, axes, "N2")
    assert np.allclose(found[there], wanted[there], rtol=1e-9)
    assert (wanted[~there] > 500).all(), "only what is repelled is left out"


def test_potential_of_charges_is_that_of_ewald():
    "Three charges in a cell: the energy of a molecule from the matrix of all pairs."
    from matgen_nb.mofdiff.charges import coulomb_matrix

    crystal = Crystal(14 * np.eye(3), [2, 2, 2], [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]])
    charges, centre, axis = (
        np.array([0.8, -0.3, -0.5]),
        np.array([[0.3, 0.3, 0.4]]),
        np.array([[0.6, 0.0, 0.8]]),
    )
    host, bare = ad.Host(crystal, charges), ad.Host(crystal)
    found = ad.host_energy(host, "CO2", centre, axis) - ad.host_energy(bare, "CO2", centre, axis)
    sites = [centre[0] + h * axis[0] / 14 for _, h in ad.GASES["CO2"]]
    matrix = coulomb_matrix(crystal.lattice, np.concatenate([crystal.frac_coords, sites]))
    wanted = (
        ad.COULOMB_KELVIN * np.array([gu.SITES[s][2] for s, _ in ad.GASES["CO2"]]) @ matrix[3:, :3] @ charges
    )
    assert abs(found[0] - wanted) < 1


def test_ideal_gas_in_the_right_mixture_and_the_same_again():
    state = ad.GasState(298.0, 5e5, dict(CO2=0.25, N2=0.75))
    found = ad.uptakes(HELIUM, [state], None, QUICK)[0]
    ideal = 5e5 * HELIUM.volume * 1e-30 / (ad.BOLTZMANN * 298.0) * 1000 / 4.0026
    for gas, y in state.fractions.items():
        assert abs(found[gas].value - y * ideal) < 0.05 * y * ideal + 2 * found[gas].error, gas
    assert ad.uptakes(HELIUM, [state], None, QUICK)[0] == found


def test_weights_undo_the_density():
    "Both samples give the same mean Boltzmann factor; the drawn one is denser where molecules are held."
    host, rng = ad.Host(textbook_crystal("HKUST-1")), np.random.default_rng(0)
    first = ad.random_insertions(host, "CO2", 6000, rng)
    second = ad.drawn_insertions(host, "CO2", first, 6000, rng)
    a, b = (s.weights(298.0) for s in (first, second))
    assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / 6000**0.5
    assert (second.density >= 0.2).all() and abs((1 / second.density).mean() - 1) < 0.25
    held = np.isfinite(second.energy)
    assert held.mean() > 1.5 * np.isfinite(first.energy).mean()


def test_molecules_do_not_sit_in_each_other():
    "At a high pressure the gas in an empty box is denser than nothing and thinner than ideal; chains keep their books."
    options = ad.AdsorptionOptions(trials=200, insertions=400, groups=3, chains=2, moves=300)
    host, rng = ad.Host(HELIUM), np.random.default_rng(0)
    pools = {"CO2": ad.random_insertions(host, "CO2", 1200, rng)}
    state = ad.GasState(250.0, 3e6, dict(CO2=1.0))
    chains = ad.Chains(host, pools, state, options)
    for _ in range(600):
        ad._move(chains)
    assert chains.count.min() > 3 and chains.sites.shape[2] >= chains.count.max()
    for b in range(len(chains.group)):
        n = int(chains.count[b, 0])
        centres = chains.sites[b, 0, :n, 1]
        gap = centres[:, None] - centres
        gap -= np.round(gap @ chains.inverse) @ chains.lattice
        distance = np.linalg.norm(gap, axis=-1)[~np.eye(n, dtype=bool)]
        assert distance.min() > 2.4, "two molecules in one place"


def test_states_and_swings_reject_what_they_cannot_do():
    for change in (
        dict(fractions={}),
        dict(fractions=dict(Xe=1.0)),
        dict(fractions=dict(CO2=0.5)),
        dict(pressure=0.0),
    ):
        with pytest.raises(MatgenError):
            ad.GasState(**{**dict(temperature=298.0, pressure=1e5, fractions=dict(CO2=1.0)), **change})
    with pytest.raises(MatgenError, match="no swing 'tsa'; there are mixture, pure"):
        ad.working_capacity(HELIUM, None, "tsa")
    with pytest.raises(MatgenError, match="add up to"):
        ad.uptakes(HELIUM, [ad.SWINGS["pure"].adsorption], np.array([0.5]), QUICK)


@pytest.fixture
def cifs(tmp_path):
    (tmp_path / "cifs").mkdir()
    crystal = textbook_crystal("MIL-53")
    crystal.to_cif(tmp_path / "cifs" / "MIL-53.cif")
    Crystal(9 * np.eye(3), [6, 8, 8], [[0, 0, 0], [0.129, 0, 0], [-0.129, 0, 0]]).to_cif(
        tmp_path / "cifs" / "gas.cif"
    )
    (tmp_path / "cifs" / "broken.cif").write_text("data_x\n")
    return tmp_path / "cifs"


def test_a_run_reports_skips_resumes_and_keeps_its_protocol(tmp_path, cifs, capsys):
    line = ["gcmc", cifs, *FLAGS, "--out", tmp_path / "o"]
    assert run(*line) == 0 and run(*line) == 2
    rows = {row["name"]: row for row in read_table(tmp_path / "o" / "table.csv")}
    good = rows["MIL-53"]
    assert good["working_capacity"] == pytest.approx(good["uptake"] - good["residual"])
    assert good["charges"] == "model" and good["working_capacity_error"] > 0
    assert "no framework" in rows["gas"]["failure"] and rows["broken"]["failure"]
    record = read_json(tmp_path / "o" / "run.json")
    assert record["summary"]["simulated"]["value"] == 1 and "0.15 bar" in record["protocol"]
    kept = next((tmp_path / "o" / "uptake").glob("*.json"))
    kept.write_text(json.dumps(read_json(kept) | dict(uptake=-1.0)))
    assert run(*line, "--resume") == 0
    assert {r["name"]: r for r in read_table(tmp_path / "o" / "table.csv")}["MIL-53"]["uptake"] == -1
    capsys.readouterr()
    assert run(*line, "--resume", "--charges", "none") == 2
    assert "--charges was model and is now none" in capsys.readouterr().err


def test_charges_of_files_are_taken_or_rejected(tmp_path, cifs, capsys):
    "Neutral charges are used; a sum that is not zero fails that framework and is named."
    crystal = textbook_crystal("MIL-53")
    lines = [*crystal.to_cif().split("\n")]
    header = next(i for i, text in enumerate(lines) if text.strip().startswith("_atom_site_fract_z"))
    first = next(
        i for i in range(header, len(lines)) if lines[i].strip() and not lines[i].strip().startswith("_")
    )
    base = [text for text in lines[first:] if text.strip()]
    for name, shift in (("neutral", 0.0), ("charged", 0.01)):
        rng = np.random.default_rng(0)
        q = rng.normal(scale=0.1, size=len(base))
        q -= q.mean()
        body = [f"{text} {value + shift:.6f}" for text, value in zip(base, q)]
        text = "\n".join([*lines[:first], "_atom_site_charge", *body])
        (cifs / f"{name}.cif").write_text(text)
    assert run("gcmc", cifs, *FLAGS, "--charges", "file", "--out", tmp_path / "o") == 0
    rows = {row["name"]: row for row in read_table(tmp_path / "o" / "table.csv")}
    assert rows["neutral"]["charges"] == "file" and rows["neutral"]["uptake"] > 0
    assert "add up to +" in rows["charged"]["failure"] and "_atom_site_charge" in rows["MIL-53"]["failure"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--protocol", "psa"], "--protocol must be mixture, pure or state"),
        (["--protocol", "state", "--gas", "Xe=1"], "no model of Xe"),
        (["--protocol", "state", "--gas", "CO2"], "--gas must be gas=fraction"),
        (["--protocol", "state", "--gas", "CO2=0.7"], "add up to 0.7"),
        (
            ["--protocol", "state", "--gas", "CO2=-1,N2=2"],
            "mole fractions must not be negative, got {'CO2': -1.0}",
        ),
        (["--charges", "ddec"], "--charges must be model, file or none"),
    ],
)
def test_wrong_options_are_rejected_before_anything_is_read(tmp_path, capsys, flags, message):
    assert run("gcmc", tmp_path / "nowhere", *flags, "--out", tmp_path / "o") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_an_element_without_parameters_is_named():
    guest = gc.Guest("odd", Crystal(4 * np.eye(3), [87], [[0, 0, 0]]))
    with pytest.raises(MatgenError, match="Fr|no framework"):
        gc.uptake_row(guest, gc.UptakeOptions(), QUICK)
    with pytest.raises(MatgenError, match="nothing to see"):
        gc.uptake_row(gc.Guest("none", None, "nothing to see"), gc.UptakeOptions(), QUICK)


def test_without_raspalib_the_engine_says_what_to_install(tmp_path, cifs, monkeypatch, capsys):
    import builtins

    whole = builtins.__import__
    fake = lambda name, *rest: whole("no_such_module_at_all" if name == "raspalib" else name, *rest)
    monkeypatch.setattr(builtins, "__import__", fake)
    assert run("gcmc", cifs, "--simulator", "raspa", "--out", tmp_path / "o") == 2
    assert "pip install 'matgen_nb[gcmc]'" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_where_no_molecule_fits_the_uptake_is_none_and_nothing_is_warned_of():
    "Rock salt has no pores: no place for a molecule is found."
    import warnings

    from conftest import rock_salt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = ad.uptakes(rock_salt(), [ad.GasState(298.0, 1e5, {"CO2": 1.0})])
    assert found["CO2"].value == found["CO2"].error == 0
