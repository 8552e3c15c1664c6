"""The workflows of the code host: valid YAML that names versions, platforms and files that exist."""

import re
import shlex
import subprocess
import sys
from configparser import ConfigParser

import pytest
import yaml
from conftest import ROOT
from tools.house_debts import code_cells, notebooks

FLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = {
    "actions/checkout": 4,
    "actions/setup-python": 5,
    "actions/upload-pages-artifact": 3,
    "actions/deploy-pages": 4,
    "quarto-dev/quarto-actions/setup": 2,
}
"The oldest major version of each action that code hosts still run."
RUNNERS = {"ubuntu-latest", "macos-latest", "windows-latest"}


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def flow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def jobs(path):
    "(name, job, step) of every step of a workflow."
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [(name, job, step) for name, job in found["jobs"].items() for step in job["steps"]]


def matrix(job):
    return job.get("strategy", {}).get("matrix", {})


def test_there_are_workflows_for_tests_and_site():
    assert [p.name for p in FLOWS] == ["site.yml", "tests.yml"]
    assert flow("tests.yml")[True].keys() >= {"push", "pull_request"}, "YAML reads the key `on` as true"


@pytest.mark.parametrize("path", FLOWS, ids=lambda p: p.name)
def test_jobs_end_and_ask_for_no_more_than_they_need(path):
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found["permissions"]["contents"] == "read"
    for name, job in found["jobs"].items():
        runners = matrix(job).get("os", [job["runs-on"]])
        assert set(runners) <= RUNNERS, f"{name}: {runners}"
        assert job.get("timeout-minutes", 0) > 0 or name == "publish", f"{name} may run for hours"
        assert set(job.get("needs", "").split()) <= found["jobs"].keys()


@pytest.mark.parametrize("path", FLOWS, ids=lambda p: p.name)
def test_actions_are_known_and_not_too_old(path):
    for name, _, step in jobs(path):
        assert ("uses" in step) != ("run" in step), f"{name}: a step either uses or runs something"
        if "uses" in step:
            action, version = step["uses"].split("@v")
            assert int(version) >= ACTIONS[action], step["uses"]


@pytest.mark.parametrize("path", FLOWS, ids=lambda p: p.name)
def test_expressions_name_what_exists(path):
    for name, job, step in jobs(path):
        for expression in re.findall(r"\$\{\{ *([\w.]+) *\}\}", str(step)):
            root, *rest = expression.split(".")
            assert root in {"matrix", "github", "runner", "steps"}, f"{name}: {expression}"
            assert root != "matrix" or rest[0] in matrix(job), f"{name}: {expression}"


@pytest.mark.parametrize("path", FLOWS, ids=lambda p: p.name)
def test_files_of_commands_exist(path):
    for name, _, step in jobs(path):
        for word in shlex.split(step.get("run", ""), comments=True):
            if re.fullmatch(r"tests/[\w/.]+", word) or re.fullmatch(r"settings\.ini", word):
                assert (ROOT / word).exists(), f"{name}: {word}"
        cached = step.get("with", {}).get("cache-dependency-path")
        assert not cached or (ROOT / cached).exists()


def test_every_python_of_the_package_is_tested():
    python = matrix(flow("tests.yml")["jobs"]["full"])["python"]
    classifiers = re.search(r"minor_versions = range\(.*?, (\d+)\)", (ROOT / "setup.py").read_text())
    first = int(settings()["min_python"].split(".")[1])
    assert python == [f"3.{minor}" for minor in range(first, int(classifiers[1]))]


def test_every_platform_is_tested_and_the_wheel_on_all_of_them():
    found = flow("tests.yml")["jobs"]
    assert {*matrix(found["platforms"])["os"], found["full"]["runs-on"]} == RUNNERS
    assert set(matrix(found["wheel"])["os"]) == RUNNERS


def test_linux_gets_the_small_torch():
    "From PyPI, torch for Linux brings 2.7 GB of CUDA."
    for path in FLOWS:
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            commands = "\n".join(step.get("run", "") for step in job["steps"])
            linux = "ubuntu-latest" in matrix(job).get("os", [job["runs-on"]])
            if linux and "pip install" in commands:
                assert "download.pytorch.org/whl/cpu" in commands, f"{path.name}: {name}"


def test_the_way_of_a_new_user_is_run():
    assert "bash tests/run.sh" in str(flow("tests.yml")["jobs"]["full"]["steps"])
    assert "tests/tools/new_user.py --short" in (ROOT / "tests" / "run.sh").read_text(encoding="utf-8")


def test_developers_on_windows_need_nothing_that_has_no_wheel():
    "pyzeo has wheels for Linux and macOS alone."
    assert "pyzeo==0.2.0;sys_platform!='win32'" in settings()["dev_requirements"].split()


def test_a_run_says_what_it_left_out():
    "At its end, however it ends: cells that were not run, and what the short way of a new user leaves out."
    script = (ROOT / "tests" / "run.sh").read_text(encoding="utf-8")
    assert "trap" in script and "-rs" in script
    tools = [line.split() for line in ("execute.py --not-run", "new_user.py --left-out")]
    for name, option in tools:
        assert f"tests/tools/{name} {option}" in script
    said = [
        subprocess.check_output([sys.executable, f"tests/tools/{name}", option], cwd=ROOT, text=True)
        for name, option in tools
    ]
    marked = lambda text: re.search(r"^#\| *(eval: *false|slow|gpu)\b", text, re.M)
    cells = [cell for path in notebooks() for cell in code_cells(path) if marked(cell)]
    assert said[0].startswith(f"{len(cells)} cells of") and len(cells) > 10
    assert "eval: false" in said[0] and "(takes minutes" in said[0] and "left out by its flag" not in said[0]
    assert "--preset tiny" in said[1] and said[1].startswith(f"{len(said[1].splitlines()) - 1} things")
