"""Where the lessons are read: Colab (badge, install cell), the site (nbdev, quarto), and the pictures in a browser."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from tools import outlets
from tools.house_debts import notebooks

yaml = pytest.importorskip("yaml")
LESSONS = [p for p in outlets.pages() if outlets.is_lesson(p)]


def cells_of(page, folder=outlets.NBS):
    return json.loads((folder / page).read_text(encoding="utf-8"))["cells"]


def test_first_cells_and_sidebar_are_up_to_date():
    stale = [
        p.relative_to(ROOT).as_posix()
        for p, text in outlets.wanted().items()
        if not p.exists() or p.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run python tests/tools/outlets.py: {stale}"


def test_badge_opens_the_lesson_itself():
    cfg = outlets.settings()
    assert len(LESSONS) > 80
    for page in LESSONS:
        badge = "".join(cells_of(page)[1]["source"])
        address = re.search(r"\]\((https://colab\.research\.google\.com/github/\S+)\)$", badge)[1]
        assert address.endswith(f"/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/nbs/{page}")


def run_install_cell(monkeypatch, missing):
    "What the install cell runs, where the package is missing or not."
    source = "".join(cells_of(LESSONS[0])[2]["source"])
    commands, real = [], importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if missing and name == "matgen_nb" else real(name)
    )
    monkeypatch.setattr(subprocess, "run", lambda command, **given: commands.append((command, given)))
    exec(compile(source, "install cell", "exec"), {})
    return commands


def test_install_cell_does_nothing_where_the_package_is(monkeypatch):
    import matplotlib.pyplot as plt

    with plt.rc_context():
        assert run_install_cell(monkeypatch, missing=False) == []
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0].lstrip("#") == "0072B2", (
            "the style is set"
        )


def test_install_cell_installs_where_it_is_missing(monkeypatch):
    import matplotlib.pyplot as plt

    with plt.rc_context():
        [(command, given)] = run_install_cell(monkeypatch, missing=True)
    assert command[:4] == [sys.executable, "-m", "pip", "install"] and given["check"]
    assert command[-1] == "git+" + outlets.settings()["git_url"]


def test_all_lessons_have_the_same_install_cell():
    texts = {"".join(cells_of(page)[2]["source"]) for page in LESSONS}
    assert len(texts) == 1


def test_links_of_the_lessons_stay_inside_the_site():
    "A relative link must lead to a file under nbs/: the site holds nothing else. What lies elsewhere has its address."
    cfg, wrong = outlets.settings(), []
    host = f"{cfg['git_url']}/blob/{cfg['branch']}/"
    for path in notebooks():
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            for target in re.findall(r"\]\(([^)\s#]+)", text):
                on_host = target.startswith(host)
                if on_host and not (ROOT / target.removeprefix(host)).exists():
                    wrong.append(f"{path.name}: {target}")
                elif "/blob/" in target and "colab" not in target and not on_host:
                    wrong.append(f"{path.name}: {target} is not {host}...")
                elif not re.match(r"[a-z]+:", target):
                    there = (path.parent / target).resolve()
                    if not (there.is_relative_to(outlets.NBS) and there.exists()):
                        wrong.append(f"{path.name}: {target}")
    assert not wrong, wrong


def test_sidebar_lists_each_page_once_and_sections_in_the_order_of_the_course():
    sidebar = yaml.safe_load((outlets.NBS / "sidebar.yml").read_text(encoding="utf-8"))
    contents = sidebar["website"]["sidebar"]["contents"]
    flat = [p for c in contents for p in (c["contents"] if isinstance(c, dict) else [c])]
    assert sorted(flat) == outlets.pages() and flat[0] == "index.ipynb"
    titles = [c["section"] for c in contents if isinstance(c, dict)]
    assert titles[:5] == [outlets.PARTS[f"{k}"] for k in list(outlets.PARTS)[:5]]


def test_quarto_reads_the_sidebar_and_runs_no_cell():
    site = yaml.safe_load((outlets.NBS / "_quarto.yml").read_text(encoding="utf-8"))
    about = yaml.safe_load((outlets.NBS / "nbdev.yml").read_text(encoding="utf-8"))
    cfg = outlets.settings()
    assert site["metadata-files"] == ["nbdev.yml", "sidebar.yml"] and site["execute"] == {"enabled": False}
    assert about["website"]["site-url"] == cfg["doc_host"] + cfg["doc_baseurl"]
    assert about["website"]["repo-url"] == cfg["git_url"]


def test_workflow_publishes_what_it_builds():
    path = ROOT / ".github" / "workflows" / "site.yml"
    flow = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = flow["jobs"]["build"]["steps"]
    built = next(s["run"] for s in steps if "quarto render" in s.get("run", ""))
    assert "nbdev_proc_nbs" in built and flow["jobs"]["publish"]["needs"] == "build"
    uploaded = next(s for s in steps if "upload-pages-artifact" in s.get("uses", ""))
    assert uploaded["with"]["path"] == "_proc/" + outlets.settings()["doc_path"]


@pytest.fixture(scope="module")
def processed(tmp_path_factory):
    "The pages as nbdev hands them to quarto, made in a copy; a quarto that does nothing stands in for the real one."
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "nbs", folder / "nbs")
    shutil.copytree(ROOT / "matgen_nb", folder / "matgen_nb", ignore=shutil.ignore_patterns("data"))
    for name in ("settings.ini", "README.md", "setup.py"):
        shutil.copy(ROOT / name, folder)
    quarto = folder / "bin" / "quarto"
    quarto.parent.mkdir()
    quarto.write_text("#!/bin/sh\nexit 0\n")
    quarto.chmod(0o755)
    environment = os.environ | {"PATH": f"{quarto.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", "from nbdev.quarto import nbdev_proc_nbs as run; run(n_workers=0)"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "_proc"


def test_nbdev_hands_every_page_to_quarto(processed):
    pytest.importorskip("nbdev")
    made = {p.relative_to(processed).as_posix() for p in processed.rglob("*.ipynb")}
    assert made == set(outlets.pages())
    for name in ("_quarto.yml", "nbdev.yml", "sidebar.yml", "styles.css"):
        assert (processed / name).exists(), name
    pictures = {p.name for p in (ROOT / "nbs" / "images").iterdir()}
    assert pictures <= {p.name for p in (processed / "images").iterdir()}


def test_the_site_shows_the_code_of_a_lesson_but_not_its_machinery(processed):
    for page in LESSONS:
        for cell in cells_of(page, processed):
            text = "".join(cell["source"])
            assert "default_exp" not in text[:30] and 'find_spec("matgen_nb")' not in text, page
            if cell["cell_type"] == "code":
                left = [line for line in text.splitlines() if line.startswith("#|") and ":" not in line]
                assert not left, f"{page}: quarto knows no {left}"
    lattice = "\n".join("".join(c["source"]) for c in cells_of("1_symmetry/01_lattice.ipynb", processed))
    assert "def lattice_to_k" in lattice, "exported definitions are the content of a lesson"
