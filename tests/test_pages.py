"""Pages of results: record, units, figures and warnings in words; paths that a terminal makes clickable."""

import io

from matgen_nb import pages

RECORD = dict(command="matgen x", seed=4, seconds=12.3, versions=dict(matgen_nb="1", torch=None))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_link_is_for_terminals_alone(tmp_path, capsys):
    path = tmp_path / "a b" / "gallery.html"
    assert pages.page_link(path, io.StringIO()) == str(path) == pages.page_link(path)
    link = pages.page_link(path, Terminal())
    address, text = link.split("\x1b\\")[:2]
    assert address == f"\x1b]8;;{path.as_uri()}" and text.split("\x1b")[0] == str(path)


def test_headings_say_units_and_columns_their_limits(tmp_path):
    rows = [dict(name="a", volume=1.0, density=2.0, contact_ratio=0.8, e_above_hull=0.1, valid=True)]
    pages.write_page(tmp_path / "p.html", "T", [], rows)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    for heading in ("volume (Å³)", "density (g/cm³)", "e_above_hull (eV/atom)", ">contact_ratio<", ">valid<"):
        assert heading in page, heading
    assert page.count("capped at 0.8") == 2, "in the heading's title and below the table"
    assert pages.unit_of("e_above_hull<0.1") == "", "a share has no unit"
    assert pages.unit_of("wasserstein_density") == "g/cm³" and pages.unit_of("real e_above_hull") == "eV/atom"


def test_every_page_says_how_it_was_made():
    reported = pages.made_by(
        RECORD | dict(cut_off=["relaxation of 2 of 9"], weights=dict(text="weights: w, hash 1")), "9 things"
    )
    for words in (
        "9 things",
        "made by: matgen x",
        "seed 4",
        "12 s",
        "weights: w",
        "cut off: relaxation",
        "matgen_nb 1",
    ):
        assert words in reported, words
    assert "torch" not in reported and "cut off" not in pages.made_by(RECORD, "1")


def test_figures_of_an_evaluation_are_on_the_page():
    nan = float("nan")
    shares = dict(value=0.25, low=0.1, high=0.5, n=8, protocol="all <inputs>")
    text = pages.summary_html(dict(valid=shares, density=dict(value=nan, low=nan, high=nan), n=3))
    assert "0.1 to 0.5" in text and "all &lt;inputs&gt;" in text and ">0.25<" in text and "nan" not in text
    assert "density (g/cm³)" in text and ">3<" in text and pages.summary_html(None) == ""
