"""The field's words: names, options, columns, docstrings and prose say what a reader of the literature would say."""

import ast
import json
import re

import pytest
from conftest import ROOT
from tools import house_debts as debts

WORDS = {
    "sharpen": "score_scale",
    "doubt": "lattice_error (column), max_lattice_error (option)",
    "doubted": "rejected by the check of self-consistency",
    "draws": "samples, samples_per_latent, noises",
    "guide": "guidance",
    "apart": "min_contact, gap, distance",
    "keep_apart": "resolve_contacts",
    "due": "good_turing_rate, expected",
    "redraw": "sample again, unforced_request",
    "told": "reported, conditioned on",
    "asked": "requested",
    "wish": "request, constraint",
    "wishes": "requests, constraints",
    "judge": "evaluate",
    "judged": "evaluated",
    "judging": "evaluating",
    "forgotten": "uniform",
    "refuse": "reject",
    "refused": "rejected",
    "refuse_forced": "reject_forced",
    "refuse_disorder": "reject_disorder",
    "draw_nets": "sample_nets",
    "draw_blocks": "sample_blocks",
}
"Words of our own, and those of the field in their stead."

PHRASES = [
    (r"\bjudg(e|es|ed|ing)\b", "evaluate"),
    (r"\bas drawn\b", "as generated"),
    (r"\b(is|are|was|were|be|where|when|those) \*?due\*?\b", "expected"),
    (r"\bdoubt(s|ed)? (the|a|its) (cell|crystal)", "the lattice-denoising error"),
    (r"\bcell is doubted\b|\bnetwork doubts\b", "the lattice-denoising error"),
    (r"\bredraw(s|n|ing)?\b(?! the| a picture|, so each slider)", "sample again"),
    (r"\bis told\b|\basked of the model\b", "conditioned on, requested"),
    (r"--(sharpen|doubt|draws|guide|apart)\b", "the option's name"),
    (r"`(" + "|".join(WORDS) + r")`", "the name in the table above"),
    (r"\bplaces of (the )?atoms\b", "coordinates"),
    (r"(?<![A-Za-z])[Rr]efus(e|es|ed|ing|al|als)(?![A-Za-z])", "reject"),
    (r"\bled to (the|their) sites\b", "site-projection guidance"),
    (r"\ball bonds close\b|\bbonds between blocks do not close\b", "all bonds are formed"),
    (r"\bgroups?( \d+)? (\([^)]*\) )?(cannot|can) hold\b", "the Wyckoff positions allow"),
    (r"\bwhat a user asks\b|\boptions ask for\b", "requests"),
    (r"\blearn(s|t|ed)? (it |them )?by heart\b", "memorise, overfit"),
    (r"\bmonsters?\b|\bbeside the field's tool\b|\bislands of real codes\b", "the field's word"),
    (r"\blooks? into the open\b|\broom for every image\b|\bon floor \d\b", "the field's word"),
]
"Phrases of our own in prose, and what to write."

PROSE = [ROOT / "README.md", *sorted((ROOT / "matgen_nb" / "data" / "weights").glob("*.md"))]
KEPT = {("symmcd/sampling.py", "doubt"), ("test_sampling.py", "doubt")}
"A key in files of weights that exist: read where the file is read, and nowhere else."


def own_names(tree):
    "(line, word) for every name, argument, attribute, keyword or whole string of a syntax tree that is a word of our own."
    for node in ast.walk(tree):
        found = [getattr(node, key, None) for key in ("id", "attr", "arg", "name")]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        yield from (
            (getattr(node, "lineno", 0), word) for word in found if isinstance(word, str) and word in WORDS
        )


def docstrings(tree):
    "All strings of a syntax tree that are sentences: docstrings, help, messages."
    strings = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return [text for text in strings if " " in text]


def phrases(text):
    "Phrases of our own in a text, with what to write instead."
    return [f"{m[0]!r}: {instead}" for pattern, instead in PHRASES for m in re.finditer(pattern, text)]


def test_the_search_finds():
    code = "def f(x, sharpen=1.0):\n    return dict(doubt=x.draws)"
    assert sorted(word for _, word in own_names(ast.parse(code))) == ["doubt", "draws", "sharpen"]
    assert phrases("Where a new one is due, `--draws 8`; Judging it.".replace("Judging", "judging"))
    assert not phrases("The picture is drawn; due to noise; taken apart.")


@pytest.mark.parametrize("path", debts.modules(), ids=debts.module_name)
def test_modules(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept = {word for name, word in KEPT if path.as_posix().endswith(name)}
    found = [f"line {n}: {word}, write {WORDS[word]}" for n, word in own_names(tree) if word not in kept]
    assert not found + [p for text in docstrings(tree) for p in phrases(text)]


@pytest.mark.parametrize("path", debts.notebooks(), ids=lambda p: p.stem)
def test_lessons(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            found += phrases(source)
            continue
        tree = ast.parse("\n".join(line for line in source.splitlines() if not re.match(r"[%!]", line)))
        kept = {"doubt"} if path.stem == "14_sampling" else set()
        found += [f"{word}, write {WORDS[word]}" for _, word in own_names(tree) if word not in kept]
        found += [p for text in docstrings(tree) for p in phrases(text)]
    assert not found


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.stem)
def test_tests(path):
    kept = {word for name, word in KEPT if path.name == name} | (
        {*WORDS} if path.name == "test_vocabulary.py" else set()
    )
    found = own_names(ast.parse(path.read_text(encoding="utf-8")))
    assert not [f"line {n}: {word}, write {WORDS[word]}" for n, word in found if word not in kept]


@pytest.mark.parametrize("path", PROSE, ids=lambda p: p.name)
def test_readme_and_cards(path):
    assert not phrases(path.read_text(encoding="utf-8"))
