"""What a reader sees in JupyterLab: structures that turn under the mouse or stand still, sliders. In a real browser."""

import io
import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ROOT
from tools import browser

from matgen_nb.drawing import why_no_live_view

pytestmark = [
    pytest.mark.skipif(
        browser.find() is None, reason="no Chromium here: apt install chromium, or set MATGEN_BROWSER"
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="the browser is driven through a POSIX pipe"),
]
pytest.importorskip("websocket", reason="needs websocket-client, which JupyterLab brings along")
pytest.importorskip("jupyterlab", reason="needs JupyterLab")
Image = pytest.importorskip("PIL.Image")

CELLS = {
    "show": """
from conftest import rock_salt
crystal = rock_salt()
crystal.show()""",
    "mof": """
from matgen_nb.mofdiff.bonds import textbook_mof
mof = textbook_mof("MOF-74")
mof.show()""",
    "last": "crystal",
    "slider": """
%matplotlib inline
import matplotlib.pyplot as plt
from matgen_nb.figures import slider

def line(k):
    plt.figure(figsize=(2, 2))
    plt.plot([0, k])
    plt.title(f"now k is {k}")
    plt.show()
    print("drawn for", k)

slider(line, k=(0, 10, 1))""",
    "end": "print('all', 'done')",
}


def write_notebook(path):
    cell = lambda source: dict(
        cell_type="code",
        execution_count=None,
        metadata={},
        outputs=[],
        source=source.strip().splitlines(True),
    )
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    cells = [cell(source) | {"id": name} for name, source in CELLS.items()]
    path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))


@contextmanager
def jupyterlab(folder):
    "A server of JupyterLab on a folder, with a kernel of this Python: its address."
    kernel = folder / "share" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps(dict(argv=argv, display_name="Python 3", language="python"))
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    given = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--allow-root", "--IdentityProvider.token=t"]
    given += [f"--ServerApp.root_dir={folder / 'books'}", "--LabApp.expose_app_in_browser=True"]
    paths = os.pathsep.join(filter(None, [str(folder / "share"), os.environ.get("JUPYTER_PATH")]))
    home = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    python = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *given],
        env=os.environ | {"JUPYTER_PATH": paths} | home | python,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/lab/tree/book.ipynb?token=t&reset"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The notebook above, run in a browser."
    folder = tmp_path_factory.mktemp("lab")
    (folder / "books").mkdir()
    write_notebook(folder / "books" / "book.ipynb")
    with jupyterlab(folder) as address, browser.Browser(1200, 3000) as b:
        for _ in range(40):  # until the server answers
            b.open(address)
            if b.wait("!!window.jupyterapp", 3):
                break
        assert b.wait("!!document.querySelector('.jp-Notebook .jp-Cell')", 60), "the notebook did not open"
        idle = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'"
        assert b.wait(idle, 120), "the kernel did not start"
        b.wait("false", 2)
        b.value("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 1)")
        assert b.wait("document.body.innerText.includes('all done')", 120), "the cells did not run to the end"
        yield b


def part(name):
    "Selector of the output of a cell."
    return f".jp-Notebook .jp-Cell:nth-child({list(CELLS).index(name) + 1}) .jp-OutputArea"


def painted(page, selector):
    "Share of the pixels of an element that are not its background."
    picture = np.asarray(Image.open(io.BytesIO(page.picture(selector=selector))).convert("RGB")).astype(int)
    background = picture[2, 2]
    return float((np.abs(picture - background).max(-1) > 30).mean())


def settled(page, selector, tries=40):
    "The painted share once there is any, after a while at most."
    share = 0.0
    for _ in range(tries):
        share = painted(page, selector)
        if share > 0.005:
            break
        page.wait("false", 0.5)
    return share


@pytest.mark.parametrize("name", ["show", "mof"])
def test_show_draws_or_says_why_not(page, name):
    if why_no_live_view():
        assert page.value(f"document.querySelector('{part(name)}').innerText.includes('here is a still')")
        assert page.value(f"document.querySelector('{part(name)}').innerText.includes('pip install')")
        assert settled(page, f"{part(name)} img") > 0.02, "the still picture is empty"
    else:
        assert page.wait(f"!!document.querySelector('{part(name)} canvas')", 60), "no canvas"
        assert settled(page, f"{part(name)} canvas") > 0.005, "the canvas is empty"


def test_last_line_shows_the_structure(page):
    assert settled(page, f"{part('last')} img") > 0.05
    assert page.value(f"document.querySelector('{part('last')} figcaption').innerText").startswith(
        "Crystal(NaCl"
    )


def test_slider_redraws(page):
    text = f"document.querySelector('{part('slider')}').innerText"
    assert page.wait(f"{text}.includes('drawn for 5')", 60), "a slider starts in the middle"
    assert settled(page, f"{part('slider')} img") > 0.02
    page.value(f"document.querySelector('{part('slider')} .noUi-handle').focus()")
    key = dict(key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    page.call("Input.dispatchKeyEvent", type="keyDown", **key)
    page.call("Input.dispatchKeyEvent", type="keyUp", **key)
    assert page.wait(f"{text}.includes('drawn for 6')", 30), (
        "an arrow key moves the slider, and the figure follows"
    )


def test_page_reports_no_error(page):
    "Above all not 'Module nglview-js-widgets ... is not registered'."
    wrong = [e for e in page.errors() if "nglview" in e or "Widget" in e or "widget" in e]
    assert not wrong, wrong
