"""The results lessons: every figure comes from a data file with its interval, number and protocol; none is typed in."""

import ast
import csv
import importlib
import importlib.util
import json
import math
import re
import sys

import pytest
from conftest import ROOT

DATA = ROOT / "matgen_nb" / "data"
LESSONS = [ROOT / "nbs" / p for p in ("3_symmcd/23_results.ipynb", "4_mofdiff/47_results.ipynb")]
FILES = ("crystal_results.csv", "framework_results.csv")
DESIGN = ROOT / "nbs" / "4_mofdiff" / "41_property_design.ipynb"


def rows_of(name):
    with (DATA / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in found if c["cell_type"] == "markdown")


@pytest.mark.parametrize("name", FILES)
def test_every_figure_has_interval_number_and_protocol(name):
    rows = rows_of(name)
    assert len(rows) > 60
    for row in rows:
        value, low, high, n = (float(row[k] or "nan") for k in ("value", "low", "high", "n"))
        if n and not math.isnan(value) and row["low"]:
            slack = 1e-3 * max(1, abs(value))
            assert low - slack <= value <= high + slack, row
        assert row["protocol"], row


def test_shares_of_crystals_agree_with_each_other():
    found = {(r["model"], r["figure"]): float(r["value"]) for r in rows_of("crystal_results.csv")}
    for model in ("held-out", "default", "alone"):
        seen = sum(v for (m, f), v in found.items() if m == model and f.startswith("template seen"))
        assert abs(seen - 1) < 2e-3, f"{model}: the bins of the templates add up to {seen}"
        assert abs(found[model, "template seen 0"] - found[model, "new_template_share"]) < 2e-3


def test_space_groups_are_counted_once():
    rows, results = rows_of("crystal_groups.csv"), rows_of("crystal_results.csv")
    numbers = [int(r["space_group"]) for r in rows]
    assert numbers == sorted(set(numbers)) and 1 <= numbers[0] and numbers[-1] <= 230
    n = {r["model"]: int(r["n"]) for r in results if r["figure"] == "p1_share@0.1"}
    for model in ("held-out", "default", "alone"):
        assert sum(int(r[model]) for r in rows) == n[model]
        one = next(int(r[model]) for r in rows if r["space_group"] == "1")
        share = next(
            float(r["value"]) for r in results if (r["model"], r["figure"]) == (model, "p1_share@0.1")
        )
        assert abs(one / n[model] - share) < 1e-3


def test_the_funnel_only_narrows():
    rows = rows_of("framework_results.csv")
    found = {(r["model"], r["relaxed"], r["blocks"], r["figure"]): r for r in rows}
    for model in ("nets", "new_nets", "alone", "core_nets", "core_alone"):
        for relaxed in ("False", "True"):
            shares = [
                float(found[model, relaxed, "all", s]["value"])
                for s in ("assembled", "valid", "vnu", "strict_vnu")
                if (model, relaxed, "all", s) in found
            ]
            assert shares == sorted(shares, reverse=True), (model, relaxed, shares)
        sizes = [
            r
            for r in rows
            if r["model"] == model
            and r["relaxed"] == "False"
            and r["figure"] == "valid"
            and r["blocks"] != "all"
        ]
        total = found[model, "False", "all", "valid"]
        count = sum(float(r["value"]) * int(r["n"]) for r in sizes)
        assert sum(int(r["n"]) for r in sizes) == int(total["n"])
        assert abs(count - float(total["value"]) * int(total["n"])) < 0.5, "the groups by size must add up"


def test_properties_are_those_of_frameworks():
    rows = rows_of("framework_properties.csv")
    runs = {"nets", "new_nets", "alone", "core_nets", "core_alone"}
    runs |= {"first_nets", "first_new", "equal_nets", "equal_new"}
    assert {r["set"] for r in rows} == {*runs, "earlier_nets", "real"}
    for row in rows:
        assert 0 <= float(row["void_fraction"]) <= 1 and 0 < float(row["density"]) < 10
        assert float(row["pld"]) <= float(row["lcd"]) + 0.3, (
            "the largest cavity is at least the limiting pore"
        )
        if row["co2_gcmc"]:
            assert float(row["co2_gcmc_error"]) > 0 and row["valid"] == "True"


def test_published_rows_name_their_source():
    rows = rows_of("published_results.csv")
    assert {r["kind"] for r in rows} == {"crystals", "frameworks"}
    assert all(r["source"] and float(r["value"]) >= 0 for r in rows)
    keys = [(r["kind"], r["model"], r["figure"]) for r in rows]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_no_figure_is_typed_into_the_text(path):
    "Percentages of results appear in outputs only; 95 % intervals and exercises apart."
    text = markdown(path).split("## Quiz")[0]
    typed = [m for m in re.findall(r"\d+(?:\.\d+)? ?%", text) if not m.startswith(("95", "100"))]
    assert not typed, f"read it from the file: {typed}"


@pytest.mark.parametrize("script", ("crystal_results", "framework_results"))
def test_scripts_that_write_the_files_say_how(script):
    text = (ROOT / "tests" / "benchmarks" / f"{script}.py").read_text(encoding="utf-8")
    assert "matgen sample" in text.split('"""')[1] and f"{script}.csv" in text


def test_energies_at_equal_novelty_are_on_the_card():
    rows = {(r["model"], r["figure"]): r for r in rows_of("novel_and_low.csv")}
    card = (ROOT / "matgen_nb" / "data" / "weights" / "symmcd-mp20-small.md").read_text(encoding="utf-8")
    both = "novel, unique and e_above_hull<0.1"
    for model in ("common", "one", "default"):
        for figure in ("novel", "novel: e_above_hull<0.1", both):
            value, low, high = (100 * float(rows[model, figure][key]) for key in ("value", "low", "high"))
            assert f"{value:.1f} %" in card and f"({low:.1f} to {high:.1f})" in card, (model, figure)
        share = {f: float(rows[model, f]["value"]) for f in ("novel", "e_above_hull<0.1", both)}
        assert share[both] <= min(share["novel"], share["e_above_hull<0.1"])
        among = float(rows[model, "novel: e_above_hull<0.1"]["value"])
        assert int(rows[model, "novel: e_above_hull<0.1"]["n"]) == round(1000 * share["novel"])
        assert share[both] <= among * share["novel"] + 1e-3, "what is novel, low and unique is novel and low"


def test_what_was_tried_with_sizes_and_weights_is_on_the_card():
    card = (ROOT / "matgen_nb" / "data" / "weights" / "symmcd-mp20-small.md").read_text(encoding="utf-8")
    for row in rows_of("size_and_weights.csv"):
        if row["figure"] == "held out: match" and row["way"] != "96 x 3":
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            assert f"{value:.3f} ({low:.3f} to {high:.3f})" in card, row["way"]


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_what_a_script_takes_from_the_package_exists(path):
    "The long measurements run by hand, so a name that moved would be noticed too late."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "matgen_nb":
            module = importlib.import_module(node.module)
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                known = hasattr(module, alias.name) or importlib.util.find_spec(name)
                assert known, f"{path.name} imports {name}, which does not exist"


def test_card_and_lesson_say_what_the_design_file_says():
    "Every share of the relaxed design in the card's sentence and in the lesson's table is that of the file."
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    import design_results as dr

    rows, lesson = dr.read(), markdown(DESIGN)
    assert dr.sentence(rows) in (DATA / "weights" / "mofdiff-small.md").read_text(encoding="utf-8")
    table = [line for line in lesson.splitlines() if line.startswith("|")]
    for figure, words in (("assembled", "all bonds"), ("valid", "`valid`"), ("success", "`success`")):
        line = next(line for line in table if words in line)
        for strategy in ("random", "optimised", "selected"):
            text = dr.shown(rows, "relaxed", strategy, figure, "{k}: {p:.0f}% ({low:.1f} to {high:.1f})")
            assert text in line, (figure, strategy, text)
    for row in rows:
        value, low, high = (float(row[name] or "nan") for name in ("value", "low", "high"))
        assert row["protocol"] and (math.isnan(low) or low <= value * 1.001 and value <= high * 1.001), row


def test_card_and_readme_say_of_net_first_what_the_file_says():
    "Shares of the funnel on known nets and with a search, before and after relaxation."
    card = (DATA / "weights" / "netfirst-small.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figures, seen = ("assembled", "clash_free", "valid", "vnu", "strict_vnu"), 0
    for row in rows_of("framework_results.csv"):
        if row["model"].startswith("first_") and row["blocks"] == "all" and row["figure"] in figures:
            value, low, high = (100 * float(row[key]) for key in ("value", "low", "high"))
            assert f"{value:.0f} % ({low:.0f} to {high:.0f})" in card, row
            of_readme = row["model"] == "first_new" and row["relaxed"] == "False"
            if of_readme and row["figure"] in ("valid", "vnu", "strict_vnu"):
                assert f"{value:.0f} % ({low:.0f} to {high:.0f})" in readme, row
            seen += 1
    assert seen == 2 * 2 * len(figures)


def test_card_and_readme_say_of_mofdiff_small_what_the_file_says():
    "Shares of the funnel on known nets and with a search, before and after relaxation, and the outside check."
    card = (DATA / "weights" / "mofdiff-small.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figures, seen = ("assembled", "clash_free", "valid", "vnu", "strict_vnu", "mofchecker"), 0
    for row in rows_of("framework_results.csv"):
        if row["model"] in ("nets", "new_nets") and row["blocks"] == "all" and row["figure"] in figures:
            value, low, high = (100 * float(row[key]) for key in ("value", "low", "high"))
            assert f"{value:.0f} % ({low:.0f} to {high:.0f})" in card, row
            if row["relaxed"] == "False" and row["figure"] == "vnu":
                assert f"{value:.0f} % ({low:.0f} to {high:.0f})" in readme, row
            seen += 1
    assert seen == 2 * 2 * 5 + 1


def test_card_of_the_weights_with_real_frameworks_says_what_the_files_say():
    "Shares of the funnel, before and after relaxation, and of the outside check."
    card = (DATA / "weights" / "mofdiff-core-mof.md").read_text(encoding="utf-8")
    figures = ("assembled", "clash_free", "valid", "vnu", "strict_vnu")
    for row in rows_of("framework_results.csv"):
        of_card = row["figure"] in figures or row["figure"].startswith("mofchecker")
        if row["model"].startswith("core_") and row["blocks"] == "all" and of_card:
            value, low, high = (100 * float(row[key]) for key in ("value", "low", "high"))
            assert f"{value:.0f} % ({low:.0f} to {high:.0f})" in card, row
    checks = {row["name"]: float(row["value"]) for row in rows_of("core_mof.csv") if row["part"] == "checks"}
    read = next(
        float(r["value"]) for r in rows_of("core_mof.csv") if (r["part"], r["name"]) == ("files", "kept")
    )
    assert f"{checks['passed']:,.0f} ({checks['passed'] / read:.0%})".replace("%)", " %)") in card
    for name in ("has_hydrogen", "no_undercoordinated_c", "no_overcoordinated_c"):
        assert f"{checks[name]:.0f}" in card, name
