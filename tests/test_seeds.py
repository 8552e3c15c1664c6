"""One rule makes all streams of random numbers: no two of them are alike, and nobody makes one in another way."""

import ast
import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tools import house_debts as debts

from matgen_nb.scale.checkpoints import check_identity
from matgen_nb.scale.runs import open_run, seeded, stream
from matgen_nb.symmetry.crystal import Crystal
from matgen_nb.utils import (
    FIRST_IS_SEED,
    KEPT,
    SEED_RULE,
    STREAMS,
    MatgenError,
    numpy_stream,
    seed_torch,
    stream_seed,
    torch_stream,
)

HASHED = sorted(STREAMS.keys() - KEPT.keys() - set(FIRST_IS_SEED))
MAKERS = {"stream_seed", "numpy_stream", "torch_stream", "seed_torch"}
BEGINNINGS = {"default_rng", "RandomState", "SeedSequence", "Generator", "Random"}
BEGINNINGS |= {"manual_seed", "manual_seed_all", "seed_everything", "PCG64", "Philox", "MT19937"}


def test_rule_two():
    "What samples of rule 2 begin with: another formula needs another SEED_RULE."
    assert SEED_RULE == 2
    assert stream_seed(0, "batch", 0) == 3210772287458949290
    assert stream_seed(7, "epoch", 3) == 3339837413777692224
    assert stream_seed(-1, "requests") == stream_seed(np.int64(-1), "requests")
    assert torch_stream(5, "batch", 64).initial_seed() == stream_seed(5, "batch", 64)
    seed_torch(5, "weights")
    assert torch.initial_seed() == stream_seed(5, "weights")


def test_kept_streams_make_the_data_that_ship():
    assert numpy_stream(3, "decorations").random() == np.random.default_rng(3).random()
    for trial in ((0, 0), (0, 7), (9, 0), (20_014, 36_900)):
        assert np.array_equal(
            numpy_stream(trial[0], "trial", trial[1]).random(4), np.random.default_rng(trial).random(4)
        )
    assert [stream_seed(2, "portion", k) for k in (0, 5)] == [20_014, 20_019]
    assert 0 <= stream_seed(2**40, "trial", 1) < 2**63 and stream_seed(2**40, "trial", 1) != 2**40 + 2**32


def test_first_chunk_has_the_seed_of_the_run():
    assert [stream_seed(s, what, 0) for what in FIRST_IS_SEED for s in (0, 7, 2**62)] == 2 * [0, 7, 2**62]
    assert stream_seed(0, "chunk", 1) != stream_seed(0, "repetition", 1) != 1


@pytest.mark.parametrize(
    "arguments, error",
    [((0, "bach", 1), ValueError), ((0.5, "batch", 1), TypeError), ((0, "batch", 1.0), TypeError)],
)
def test_other_words_and_numbers_are_errors(arguments, error):
    for make in (stream_seed, numpy_stream, torch_stream, seed_torch):
        with pytest.raises(error):
            make(*arguments)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 2**40))
def test_no_two_streams_begin_alike(seed, first):
    "Neighbouring seeds, all words, neighbouring numbers, one or two of them: 20,000 seeds without a repeat."
    known = {
        stream_seed(seed + s, what, *index)
        for s in range(8)
        for what in HASHED
        for index in [(), *((first + i,) for i in range(60)), *((first, i) for i in range(35))]
    }
    assert len(known) == 8 * len(HASHED) * 96 and all(0 <= x < 2**63 for x in known)


def test_linear_formulas_collided_and_the_rule_does_not():
    "Batch 1,000,003 of seed 0 was the first batch of seed 1; generation 1 of seed 4 was generation 0 of seed 5."
    assert stream_seed(0, "batch", 1_000_003) != stream_seed(1, "batch", 0)
    assert stream_seed(4, "generation", 1) != stream_seed(5, "generation", 0)


@pytest.mark.parametrize("make", ["numpy", "torch"])
def test_streams_of_neighbouring_seeds_are_uncorrelated(make):
    "Correlation of 300 streams of 2,000 numbers: unit in the mean square, none beyond five standard deviations."
    n, index = 2000, [(s, i) for s in range(20) for i in range(15)]
    if make == "numpy":
        x = np.array([numpy_stream(s, "batch", i).normal(size=n) for s, i in index])
    else:
        x = np.array([torch.randn(n, generator=torch_stream(s, "batch", i)).numpy() for s, i in index])
    r = np.corrcoef(x)[np.triu_indices(len(x), 1)] * np.sqrt(n)
    assert abs(r.std() - 1) < 0.02 and abs(r.mean()) < 0.02 and abs(r).max() < 5.5


def called(node):
    "Name of what a call calls."
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def is_seed(node):
    "Whether an expression is a seed by its name, such as seed, options.seed or base_seed."
    return getattr(node, "attr", getattr(node, "id", "")).endswith("seed")


def own_ways(tree):
    "Lines of a syntax tree on which random numbers begin in another way than by the rule."
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in BEGINNINGS:
            yield node.lineno, f"{called(node)}(...)"
        if isinstance(node, ast.BinOp) and (is_seed(node.left) or is_seed(node.right)):
            yield node.lineno, "arithmetic with a seed"
        if isinstance(node, ast.AugAssign) and is_seed(node.target):
            yield node.lineno, "arithmetic with a seed"
        if isinstance(node, ast.Import) and any(a.name == "random" for a in node.names):
            yield node.lineno, "import random"
        if isinstance(node, ast.ImportFrom) and not node.level and node.module in ("random", "numpy.random"):
            yield node.lineno, f"from {node.module} import"
        legacy = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random")
        if legacy and node.attr not in BEGINNINGS:
            yield node.lineno, f"np.random.{node.attr}"


@pytest.mark.parametrize(
    "code",
    [
        "rng = np.random.default_rng(seed)",
        "g = torch.Generator().manual_seed(0)",
        "torch.manual_seed(config.seed)",
        "run(seed + generation)",
        "seed += 1",
        "x = 10_007 * self.seed % 2**63",
        "import random",
        "from numpy.random import default_rng",
        "x = np.random.normal()",
    ],
)
def test_the_walk_finds(code):
    assert list(own_ways(ast.parse(code)))
    assert not list(
        own_ways(ast.parse("def f(rng: np.random.Generator): return torch_stream(seed, 'batch', 1)"))
    )


@pytest.mark.parametrize("path", [p for p in debts.modules() if p.name != "utils.py"], ids=debts.module_name)
def test_streams_are_made_by_the_rule(path):
    found = [f"line {n}: {what}" for n, what in own_ways(ast.parse(path.read_text(encoding="utf-8")))]
    assert not found, f"use stream_seed, numpy_stream, torch_stream or seed_torch of matgen_nb.utils: {found}"


def test_every_word_is_used_and_counted_in_one_way():
    "The words of the table are those in the code, literally, and a word has the same number of indices everywhere."
    found = defaultdict(set)
    for path in debts.modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and called(node) in MAKERS and path.name != "utils.py":
                assert isinstance(node.args[1], ast.Constant), (
                    f"{path.name}:{node.lineno}: the word is no literal"
                )
                found[node.args[1].value].add(len(node.args) - 2)
    assert found.keys() == STREAMS.keys()
    assert {what: n for what, n in found.items() if len(n) > 1} == {}


@pytest.mark.parametrize("path", debts.notebooks(), ids=lambda p: p.stem)
def test_lessons_begin_streams_with_plain_seeds(path):
    "Cells that only show something may begin a stream with a number or a name, but not calculate its seed."
    for source in (s for s in debts.code_cells(path) if not debts.is_exported(s)):
        code = "\n".join(line for line in source.splitlines() if not re.match(r"[%!]", line))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and called(node) in ("default_rng", "manual_seed"):
                plain = isinstance(node.args[0], (ast.Constant, ast.Name, ast.Call))
                shown = "0_utilities" in path.parts  # the lesson of the rule itself
                assert plain or shown, (
                    f"{ast.unparse(node)}: calculate no seed, use numpy_stream or torch_stream"
                )


def salt(i, n):
    edges = numpy_stream(5, "chunk", i).uniform(5, 6, n)
    crystals = [Crystal(a * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]) for a in edges]
    return crystals, [{"formula": c.formula} for c in crystals]


def test_runs_of_an_earlier_rule_are_not_continued(tmp_path):
    old = dict(n=6, chunk=2, seed=5)
    with open_run(tmp_path / "run", old) as folder:
        stream(folder, old, salt)
    with pytest.raises(MatgenError, match=r"other random numbers from a seed.*rule 1, now 2.*another --out"):
        open_run(tmp_path / "run", dict(n=6, chunk=2) | seeded(5), resume=True)
    new = dict(n=6, chunk=2) | seeded(5)
    with open_run(tmp_path / "new", new) as folder:
        stream(folder, new, salt)
    with open_run(tmp_path / "new", new, resume=True) as folder:
        assert stream(folder, new, salt) == 0


def test_trainings_of_an_earlier_rule_are_not_continued():
    mine = dict(seed=0, seed_rule=SEED_RULE)
    check_identity(mine, mine, "run")
    for found in (dict(seed=0), dict(seed=0, seed_rule=1)):
        with pytest.raises(MatgenError, match=r"cannot resume in run.*rule 1, now 2.*--init-from"):
            check_identity(found, mine, "run")
