"""Pages in a real browser without a window: Debian's chromium, skipped with a reason where there is none."""

import subprocess

import numpy as np
import pytest
from conftest import ROOT
from matgen_nb import pages
from matgen_nb.scale import records, runs
from matgen_nb.symmetry.crystal import Crystal
from tools.browser import find

BROWSER = find()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: apt-get install chromium (or google-chrome) to test the pages"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --window-size=1200,1600"
)


def browse(page, folder, *more):
    "What chromium says of a page when it is run with further flags."
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000"]
    done = subprocess.run([*command, *more, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def seen(page, folder):
    "The page as the browser shows it, (height, width, 3)."
    from matplotlib.image import imread

    picture = folder / "seen.png"
    browse(page, folder, f"--screenshot={picture}")
    return imread(picture)[..., :3]


def requested(page, folder, script):
    "The text that a script, added to a copy of the page, leaves in the title."
    copy = page.with_name("requested.html")
    text = page.read_text(encoding="utf-8").replace("</html>", f"<script>{script}</script></html>")
    copy.write_text(text, encoding="utf-8")
    shown = browse(copy, folder, "--dump-dom")
    return shown[shown.index("<title>") + 7 : shown.index("</title>")]


PICTURES = """addEventListener("load",()=>{const all=[...document.images].filter(i=>i.src.startsWith("data:"));
document.title=all.length+" "+all.filter(i=>i.naturalWidth>20&&i.getBoundingClientRect().width>20).length})"""
SORTED = """const h=[...document.querySelectorAll(".s th")].find(h=>h.textContent.startsWith("volume"));h.click();
document.title=[...document.querySelectorAll(".s tbody tr")].map(r=>r.cells[0].textContent).join(" ")"""


def halides():
    corner = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return [Crystal(size * np.eye(3), [55, 17], corner) for size in (4.3, 4.1, 4.2)]


@pytest.fixture
def gallery(tmp_path):
    rows = [dict(name=name, formula="CsCl", volume=c.volume) for name, c in zip("abc", halides())]
    record = records.run_record(
        "test", 3, 1.0, summary=dict(valid=dict(value=1.0, low=0.4, high=1.0, n=3, protocol="all"))
    )
    runs.write_results(tmp_path / "out", halides(), rows, "Three halides", record)
    return tmp_path / "out" / "gallery.html"


def test_a_gallery_shows_its_pictures_and_sorts(gallery, tmp_path):
    assert requested(gallery, tmp_path, PICTURES) == "3 3", "all pictures are drawn"
    names = requested(gallery, tmp_path, SORTED)
    assert names == "00001.cif 00002.cif 00000.cif", names
    picture = seen(gallery, tmp_path)
    dark = (picture.min(2) < 0.5).mean()
    assert 0.002 < dark < 0.5, f"{dark:.1%} of the page is dark: it is empty, or broken"


def test_a_report_shows_its_figures(gallery, tmp_path):
    script = 'document.title=document.querySelector(".f tbody tr").innerText+"|"+document.querySelector("p").innerText'
    found = requested(gallery, tmp_path, script)
    assert "valid" in found and "0.4 to 1" in found and "made by: test" in found and "seed 3" in found
    assert "volume (Å³)" in browse(gallery, tmp_path, "--dump-dom")


def test_a_page_with_hostile_names_runs_nothing(tmp_path):
    rows = [dict(name="<img src=x onerror=\"document.title='run'\">", volume=1.0)]
    pages.write_page(tmp_path / "page.html", "Plain", [], rows)
    assert requested(tmp_path / "page.html", tmp_path, "") == "Plain"


def test_a_lesson_reads_as_a_page(tmp_path):
    "One lesson as HTML: its saved pictures are there, its text is laid out, all without a network."
    import nbformat
    from nbconvert import HTMLExporter

    nb = nbformat.read(ROOT / "nbs" / "1_symmetry" / "01_lattice.ipynb", as_version=4)
    text, _ = HTMLExporter().from_notebook_node(nb)
    page = tmp_path / "lesson.html"
    page.write_text(text, encoding="utf-8")
    wanted = sum("image/png" in o.get("data", {}) for c in nb.cells for o in c.get("outputs", []))
    found = requested(page, tmp_path, PICTURES).split()
    assert wanted and found == [str(wanted), str(wanted)], f"{wanted} saved pictures, {found} (there, drawn)"
    title = nb.cells[0].source.splitlines()[0].removeprefix("# ")
    assert title in browse(page, tmp_path, "--dump-dom")
    assert seen(page, tmp_path).std() > 0.02, "the page is blank"
