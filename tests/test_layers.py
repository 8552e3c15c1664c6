"""The layers that both networks stand on, against dense and looped versions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matgen_nb.diffusion.layers import (
    MessageLayer,
    all_pairs,
    fourier,
    radial,
    rows_of,
    structure_mean,
    time_features,
)

counts_of = st.lists(st.integers(1, 7), min_size=1, max_size=8).map(torch.tensor)


@given(counts_of)
@settings(deadline=None, max_examples=30)
def test_pairs_are_the_blocks_of_a_block_diagonal_matrix(counts):
    i, j = all_pairs(counts)
    assert torch.equal(
        torch.stack([i, j]), torch.block_diag(*(torch.ones(m, m) for m in counts.tolist())).nonzero().T
    )


@given(counts_of, st.data())
@settings(deadline=None, max_examples=30)
def test_rows_of_chosen_structures(counts, data):
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=6)))
    start = (torch.cumsum(counts, 0) - counts).tolist()
    expected = [
        (start[c] + k, place) for place, c in enumerate(chosen.tolist()) for k in range(int(counts[c]))
    ]
    rows, owner = rows_of(counts, chosen)
    assert list(zip(rows.tolist(), owner.tolist())) == expected


def test_periods_and_shapes():
    delta = torch.rand(20, 3, dtype=torch.float64)
    torch.testing.assert_close(fourier(delta, 5), fourier(delta + torch.tensor([-1.0, 3, 0]), 5))
    assert time_features(torch.rand(4), 64).shape == (4, 128) and radial(torch.rand(3, 5), 7, 4.0).shape == (
        3,
        5,
        7,
    )


@pytest.mark.parametrize("counts", [[1], [3, 1, 4], [2] * 6])
def test_a_message_layer_against_a_loop(counts):
    torch.manual_seed(0)
    counts, layer = torch.tensor(counts), MessageLayer(8, 5)
    i, j = all_pairs(counts)
    h, edge, degree = (
        torch.randn(int(counts.sum()), 8),
        torch.randn(len(i), 5),
        counts.repeat_interleave(counts)[:, None],
    )
    new, message = layer(h, edge, i, j, degree)
    x, silu = layer.norm(h), torch.nn.functional.silu
    for k in range(len(h)):
        heard = [
            silu(layer.out(silu(layer.to_i(x[k]) + layer.to_j(x[j[e]]) + layer.edge(edge[e]))))
            for e in range(len(i))
            if i[e] == k
        ]
        torch.testing.assert_close(
            new[k], h[k] + layer.node(torch.cat([x[k], torch.stack(heard).mean(0)])), rtol=1e-5, atol=1e-5
        )
    assert message.shape == (len(i), 8)


def test_every_structure_counts_once():
    assert structure_mean(torch.tensor([1.0, 1, 1, 4]), torch.tensor([0, 0, 0, 1]), 2) == 2.5


def test_both_halves_of_the_course_use_these_layers():
    from matgen_nb.mofdiff import embedding, network as mof
    from matgen_nb.symmcd import network as symm

    for name in ("all_pairs", "fourier", "time_features", "radial", "MessageLayer"):
        assert getattr(symm, name) is getattr(mof, name)
    assert embedding.radial is radial
