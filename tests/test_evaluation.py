"""Evaluation: the CDVAE rules, fingerprints, failures and time limits."""

import csv
import gzip
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import rock_salt

from matgen_nb.symmcd import evaluation as ev, fingerprints as fp, hull, matching
from matgen_nb import Crystal
from matgen_nb.utils import MatgenError

SALT = rock_salt()
VAL = (
    Path(os.environ.get("MATGEN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    / "crystals"
    / "val.csv.gz"
)


def real_crystals(n):
    if not VAL.exists():
        pytest.skip(f"{VAL.name} is not here (set MATGEN_TEST_DATA)")
    csv.field_size_limit(10**9)
    with gzip.open(VAL, "rt", newline="") as f:
        rows = list(itertools.islice(csv.DictReader(f), n))
    return [Crystal.from_cif(r["cif"]) for r in rows]


def test_one_site_per_orbit_on_real_crystals():
    for crystal in real_crystals(6):
        assert (
            np.abs(fp.structure_fingerprint(crystal) - fp.structure_fingerprint(crystal, None)).max() < 0.02
        )


def test_bad_items_are_named_not_fatal(monkeypatch):
    broken = Crystal(5 * np.eye(3), [11, 17], [[0, 0, 0], [1e-4, 0, 0]])
    result = ev.evaluate_crystals([SALT, None, broken], [SALT], n_jobs=1, progress=False)
    assert [bool(r["failure"]) for r in result.table][:2] == [False, True]
    assert (
        result.summary["struct_valid"]["value"] == pytest.approx(1 / 3)
        and result.summary["struct_valid"]["n"] == 3
    )
    assert result.summary["novel"]["value"] <= 2 / 3 and all("protocol" in e for e in result.summary.values())


def test_hanging_step_is_timed_out(monkeypatch):
    def hang(crystal):
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(ev, "contact_ratio", hang)
    row = ev.describe_crystal(SALT, timeout=1, fingerprints=False)
    assert "contact_ratio" in row["failure"] and row["struct_valid"] and row["space_group@0.1"] == 225


def test_sparse_and_flat_crystals_have_fingerprints():
    "Layers or chains far apart: the nearest points lie in a plane or on a line, where Qhull alone gives up."
    for cell in (np.diag([2.0, 2.1, 30.0]), np.diag([2.0, 25.0, 25.0]), 16 * np.eye(3)):
        row = ev.describe_crystal(Crystal(cell, [11], [[0, 0, 0]]))
        assert not row["failure"] and np.isfinite(row["fingerprint"]).all(), row["failure"]


def test_hangs_are_counted(monkeypatch):
    "One crystal hangs a description, one hangs the matcher: both end in time, are named in their rows, and count as failed, not as valid or novel."
    heavy = Crystal(5 * np.eye(3), [3, 9], [[0, 0, 0], [0.5, 0.5, 0.5]])

    def hang(*_):
        while True:
            time.sleep(0.01)

    plain, match = ev.composition_validity, matching.same_structure
    monkeypatch.setattr(ev, "composition_validity", lambda z: hang() if 3 in list(z) else plain(z))
    monkeypatch.setattr(matching, "same_structure", lambda a, b: hang() if "Na" in a.formula else match(a, b))
    start = time.monotonic()
    evaluated = ev.evaluate_crystals(
        [SALT, heavy],
        [SALT],
        metrics=("validity", "uniqueness", "novelty"),
        n_jobs=1,
        timeout=2,
        progress=False,
    )
    assert time.monotonic() - start < 60
    assert (
        "matching: took longer than 2 s" in evaluated.table[0]["failure"]
        and "comp_valid: took longer than 2 s" in evaluated.table[1]["failure"]
    )
    assert (
        evaluated.summary["failed"]["value"] == 1
        and evaluated.summary["comp_valid"]["value"] == 0.5
        and evaluated.summary["novel"]["value"] == 0.5
    )


def test_every_total_has_interval_number_and_protocol():
    evaluated = ev.evaluate_crystals([SALT, None], [SALT], n_jobs=1, progress=False, symprec=(0.1, 0.01))
    want = {
        "struct_valid",
        "comp_valid",
        "valid",
        "coverage_recall",
        "coverage_precision",
        "wasserstein_density",
        "wasserstein_n_elements",
        "space_group_jsd@0.1",
        "space_group_jsd@0.01",
        "p1_share@0.1",
        "p1_share@0.01",
        "unique",
        "novel",
        "failed",
        *(name + suffix for name in ("new_templates", "new_template_share") for suffix in ("", "_raw")),
    }
    assert want <= evaluated.summary.keys()
    for name, entry in evaluated.summary.items():
        assert (
            entry["low"] <= entry["value"] <= entry["high"]
            and entry["n"] >= 1
            and len(entry["protocol"]) > 20
        ), name
    for key in (
        "struct_valid",
        "comp_valid",
        "contact_ratio",
        "density",
        "space_group@0.1",
        "unique",
        "novel",
        "new_template",
        "new_template_raw",
        "covered",
        "failure",
    ):
        assert key in evaluated.table[0], key


def test_files(tmp_path):
    result = ev.evaluate_crystals([SALT, SALT], [SALT], n_jobs=1, progress=False, seed=1)
    result.to_csv(tmp_path / "t.csv")
    result.to_json(tmp_path / "s.json")
    assert len(list(csv.DictReader(open(tmp_path / "t.csv")))) == 2
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (
        summary["unique"]["value"] == 0.5
        and summary["novel"]["value"] == 0
        and summary["coverage_recall"]["value"] == 1
    )
    assert str(result)


def test_empty_sample_and_unknown_metric():
    assert ev.evaluate_crystals([], [SALT], n_jobs=1, progress=False).table == []
    with pytest.raises(MatgenError, match="unknown metrics"):
        ev.evaluate_crystals([SALT], [SALT], metrics=("beauty",))


@pytest.mark.parametrize(
    "words, given",
    [
        ("must be a list of Crystal, not Crystal", dict(crystals=SALT)),
        ("must be a list of Crystal, not NoneType", dict(crystals=None)),
        ("number 1 is of the type str", dict(crystals=[SALT, "NaCl"])),
        ("the reference must be a list of Crystal: number 0", dict(reference=[None])),
        ("the training set must be a list", dict(training=[None], metrics=("novelty",))),
        ("the reference must be a list", dict(training=["x"], metrics=("templates",))),
        ("give a list of some of", dict(metrics="validity")),
        ("2 names for 1 crystals", dict(names=["a", "b"])),
        ("symprec must be a positive", dict(symprec=-1.0)),
        ("symprec must be a positive", dict(symprec=())),
        ("symprec must be a positive", dict(symprec=(0.1, float("nan")))),
    ],
)
def test_what_cannot_be_evaluated_is_named(words, given):
    work = dict(crystals=[SALT], reference=[SALT], n_jobs=1, progress=False) | given
    with pytest.raises(MatgenError, match=words):
        ev.evaluate_crystals(**work)


def _pymatgen_motifs(cn):
    from pymatgen.core.local_env import CN_OPT_PARAMS, LocalStructOrderParams

    found = [CN_OPT_PARAMS.get(cn, {}).get(name, [name]) for name in fp.MOTIFS[cn]]
    return [LocalStructOrderParams([f[0]], parameters=[f[1] if len(f) > 1 else None]) for f in found]


@pytest.mark.parametrize("cn", range(1, 13))
def test_order_parameters_are_those_of_pymatgen(cn):
    "Random neighbours, and neighbours on the points of a grid, where angles are right or straight."
    from types import SimpleNamespace

    rng, motifs = np.random.default_rng(cn), _pymatgen_motifs(cn)
    grid = np.array([p for p in itertools.product((-1, 0, 1), repeat=3) if any(p)], float)
    for vectors in (
        rng.standard_normal((cn, 3)),
        grid[rng.permutation(26)[:cn]],
        grid[rng.permutation(26)[:cn]] + 0.1 * rng.standard_normal((cn, 3)),
    ):
        sites = [SimpleNamespace(coords=x) for x in np.vstack([np.zeros(3), vectors])]
        want = [m.get_order_parameters(sites, 0, list(range(1, cn + 1)))[0] or 0 for m in motifs]
        found = fp.order_parameters(fp.neighbour_angles(vectors), cn)
        np.testing.assert_allclose(found, want, atol=1e-7, rtol=1e-9, err_msg=str(list(fp.MOTIFS[cn])))


def test_angles_of_the_first_neighbours_are_those_of_fewer():
    vectors = np.random.default_rng(0).standard_normal((12, 3))
    whole = fp.neighbour_angles(vectors)
    for cn in (2, 4, 6, 8):
        few = fp.order_parameters(fp.neighbour_angles(vectors[:cn]), cn)
        np.testing.assert_allclose(fp.order_parameters(whole, cn), few, atol=1e-12)
    assert fp.order_parameters(whole, 13) == []


def test_stability():
    pytest.importorskip("chgnet")
    table, summary = hull.stability([SALT], [SALT], hull.StabilityOptions(relax_steps=3, progress=False))
    assert table[0]["stable"] and abs(table[0]["e_above_hull"]) < 1e-5 and summary["stable"]["n"] == 1
    assert all(
        word in summary["stable"]["protocol"] for word in ("CHGNet", "0.1 eV/atom", "hull", "at most 3 steps")
    )
    assert (
        hull.stability([SALT], options=hull.StabilityOptions(relax_steps=1, progress=False))[0][0]["stable"]
        is None
    )


@pytest.mark.parametrize(
    "label, known, new, raw",
    [
        ("194:d,h", ["194:c,h"], False, True),
        ("225:a,b", ["225:a,b"], False, False),
        ("216:a,c", ["216:a,b"], True, True),
        ("221:a,b,d", ["221:a,b,c", "1:a"], False, True),
        ("198:a", [], True, True),
        (None, ["225:a"], None, None),
    ],
)
def test_new_templates_are_counted_up_to_the_setting(label, known, new, raw):
    table = [dict(template=label)]
    summary = ev.summarise_templates(table, [dict(template=t) for t in [*known, None]])
    assert table[0]["new_template"] is new and table[0]["new_template_raw"] is raw
    assert summary["new_templates"]["value"] == bool(new) and summary["new_template_share_raw"][
        "value"
    ] == bool(raw)
    assert (
        "letter by letter" in summary["new_templates_raw"]["protocol"]
        and summary["new_template_share"]["n"] == 1
    )


def test_two_names_of_one_new_template_are_one():
    table = [dict(template=t) for t in ("194:c,h", "194:d,h", "194:a,c")]
    summary = ev.summarise_templates(table, [])
    assert summary["new_templates"]["value"] == 2 and summary["new_templates_raw"]["value"] == 3
    assert ev.summarise_templates([], [])["new_templates"]["value"] == 0


def test_rock_salt_from_the_other_origin_is_not_new():
    shifted = Crystal(SALT.lattice, SALT.elements[::-1], SALT.frac_coords)
    result = ev.evaluate_crystals([shifted], [SALT], metrics=("templates",), n_jobs=1, progress=False)
    assert result.summary["new_templates"]["value"] == 0 and result.table[0]["new_template"] is False


@pytest.fixture
def training_csv(tmp_path):
    "A CSV of three crystals, a function that writes it again with others, and what is described from then on."
    from matgen_nb import Crystal

    corners = [[0, 0, 0], [0.5, 0.5, 0.5]]
    crystals = [Crystal(a * np.eye(3), [z, 17], corners) for a, z in ((4.1, 55), (3.9, 81), (3.8, 37))]
    path = tmp_path / "training.csv"

    def write(some):
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerows([["material_id", "cif"], *([str(i), c.to_cif()] for i, c in enumerate(some))])

    write(crystals)
    return path, crystals, write


def test_training_crystals_are_described_once(training_csv, monkeypatch):
    "Kept beside the CSV, found by content: nothing is trusted of a source that changed, or of a damaged file."
    from matgen_nb.scale import crystal_evaluation as runs
    from matgen_nb.symmcd import evaluation
    from matgen_nb import Crystal

    path, crystals, write = training_csv
    options, described, real = runs.EvaluationOptions(n_jobs=1), [], evaluation._describe_all
    monkeypatch.setattr(
        evaluation, "_describe_all", lambda some, *rest: described.append(len(some)) or real(some, *rest)
    )
    first = runs._known(path, options)
    kept = runs.described_beside(path)
    again = runs._known(path, options)
    assert described == [3, 0] and kept.name == "training.csv.described.npz" and kept.exists()
    assert [r["template"] for r in again.rows] == [r["template"] for r in first.rows] == ["221:a,b"] * 3
    stretched = Crystal(np.diag([4.1, 4.1, 4.4]), crystals[0].elements, crystals[0].frac_coords)
    write([stretched, *crystals[1:]])  # the same names, another crystal
    assert [r["template"] for r in runs._known(path, options).rows] == ["123:a,d", "221:a,b", "221:a,b"]
    assert described[2:] == [1]
    kept.write_bytes(kept.read_bytes()[:100])
    assert len(runs._known(path, options).rows) == 3 and described[3:] == [3]
    assert runs._known(path, runs.EvaluationOptions(n_jobs=1, symprec=0.01)).symprecs == (0.01,)
    assert described[4:] == [3], "another tolerance, other descriptions"


def test_descriptions_of_a_read_only_folder_go_to_the_users_cache(training_csv, tmp_path, monkeypatch):
    import pooch

    from matgen_nb.scale import crystal_evaluation as runs

    path, options = training_csv[0], runs.EvaluationOptions(n_jobs=1)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    closed = {path.parent}
    monkeypatch.setattr(runs.os, "access", lambda folder, mode: Path(folder) not in closed)
    kept = runs.described_beside(path)
    assert kept.parent == tmp_path / "cache" / "described" and kept.name.startswith("training.csv.")
    assert kept != runs.described_beside(path.with_name("other.csv"))
    assert len(runs._known(path, options).rows) == 3 and kept.exists()
    assert not path.with_name("training.csv.described.npz").exists()
    closed.add(kept.parent)
    assert runs.described_beside(path) is None and len(runs._known(path, options).rows) == 3


def test_the_matcher_never_fits_crystals_of_other_formulas():
    "What `match_all` leaves out: the same positions and cell, another reduced formula."
    other = Crystal(SALT.lattice, [11] * 5 + [17] * 3, SALT.frac_coords)
    assert SALT.formula != other.formula and matching.same_structure(SALT.to_pymatgen(), SALT.to_pymatgen())
    assert not matching.same_structure(SALT.to_pymatgen(), other.to_pymatgen())
