"""The 5D attention and its statistics against hand-made numbers, torch's pooling and float64."""

import math

import pytest
import torch
from random_inputs import random_inputs, real_tokens, reference

from maw_gym.attention import cpu
from maw_gym.attention.cpu import distinct_rows
from maw_gym.attention.reference import (
    Inputs,
    depth_attention,
    depth_statistics,
    pooled_state,
    row_entropy,
    row_focus,
)

# Two tokens, one head, two depths. With x the identity the scores of depth 0 are
# diag(sqrt(2) ln 3) / sqrt(2) = diag(ln 3), so its rows are (3/4, 1/4) and (1/4, 3/4); depth 1 has
# no query and is uniform. Mean over depth: .625 and .375.
BY_HAND = Inputs(
    torch.eye(2)[None],
    real_tokens(2),
    torch.cat([math.sqrt(2) * math.log(3) * torch.eye(2), torch.zeros(2, 2)]),
    torch.eye(2).repeat(2, 1),
    value=torch.eye(2)[None, None],
    pooling=torch.tensor([[1.0, 0.0]]),
)


def assert_near(found, wanted, absolute=1e-6):
    """Every tensor, to `absolute`, whatever the types of numbers."""
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want.double(), atol=absolute, rtol=1e-5)


def in_float64(inputs):
    return Inputs(*(t.double() if t.is_floating_point() else t for t in inputs))


def test_two_tokens():
    weights = depth_attention(*BY_HAND[:4], heads=1)
    assert weights.shape == (1, 1, 2, 2, 2)
    torch.testing.assert_close(weights[0, 0, ..., 0], torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    torch.testing.assert_close(weights[0, 0, ..., 1], torch.full((2, 2), 0.5))
    # Each weight fills a 4 x 4 block of the 8 x 8 state; its length is sqrt(32 (.625^2 + .375^2)),
    # the square root of 17. Were the softmax over depth, all would be 1/2.
    state = torch.tensor([[0.625, 0.375], [0.375, 0.625]]) / math.sqrt(17)
    expected = (
        state.repeat_interleave(4, 0).repeat_interleave(4, 1).reshape(1, 64),
        torch.tensor([[0.8112781, 1.0]]),  # -3/4 ln 3/4 - 1/4 ln 1/4 over ln 2
        torch.tensor([[0.75, 0.5]]),
        torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]),
    )
    assert_near(depth_statistics(BY_HAND), expected)


def test_rows_sum_to_one_over_the_real_keys():
    weights = depth_attention(*random_inputs((5, 2, 0), 3, 2, 8, seed=0)[:4], heads=2)
    sums = weights.sum(3)  # (B, H, S, D)
    torch.testing.assert_close(sums[:2], torch.ones(2, 2, 5, 3))
    assert sums[2].eq(0).all()  # a text without tokens
    assert weights[1, :, :, 2:].eq(0).all()
    assert weights.ge(0).all()


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 24, 65])
def test_pooling_equals_torchs_adaptive_average_pooling(n):
    attention = torch.rand(1, 3, 70, 70, generator=torch.Generator().manual_seed(n))
    expected = torch.nn.functional.adaptive_avg_pool2d(attention[:, :, :n, :n], 8).flatten(1)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(pooled_state(attention, real_tokens(n, padded_to=70)), expected)


def test_entropy_and_focus_by_hand():
    mask = real_tokens(3, 3, 2, 1, 0)
    weights = torch.stack(
        [
            torch.full((3, 3), 1 / 3),
            torch.eye(3),
            torch.tensor([[0.5, 0.5, 0], [0.75, 0.25, 0], [9.0, 9.0, 9.0]]),  # the last is padding
            torch.eye(3),
            torch.zeros(3, 3),
        ]
    )[:, None]  # (5, 1, 3, 3)
    entropies = torch.tensor([1.0, 0.0, (1 + 0.8112781) / 2, 0.0, 0.0])
    torch.testing.assert_close(row_entropy(weights, mask), entropies)
    torch.testing.assert_close(row_focus(weights, mask), torch.tensor([1 / 3, 1.0, 0.625, 1, 0]))


@pytest.mark.parametrize(
    "shape",
    [  # lengths, depths, heads, width
        ((5, 3), 3, 2, 8),
        ((24,) * 5, 4, 8, 64),
        ((17, 1, 0, 9, 17, 33), 5, 2, 16),
        ((130, 129), 2, 2, 16),
        ((7,), 1, 1, 4),
        ((2,), 40, 1, 4),
        ((0,), 2, 2, 4),
        # the width and heads of MiniLM
        ((32, 17, 32), 3, 12, 384),
        ((128, 77), 2, 12, 384),
    ],
)
@pytest.mark.parametrize("limit", [2**20, 200], ids=["large blocks", "small blocks"])
def test_statistics_equal_the_float64_reference(shape, limit, monkeypatch):
    monkeypatch.setattr(cpu, "SCORES", limit)
    monkeypatch.setattr(cpu, "PROJECTED", limit)
    problem = random_inputs(*shape, seed=2)
    found = depth_statistics(problem)
    assert {one.dtype for one in found} == {torch.float32}
    assert_near(found, reference(problem), 1e-5)


def test_statistics_of_sharp_attention_and_in_float64():
    problem = random_inputs((12, 6), 3, 2, 16, seed=3)
    problem.query_weight.mul_(100)  # scores of several hundred
    assert_near(depth_statistics(problem), reference(problem), 1e-4)
    found = depth_statistics(in_float64(problem))
    assert {one.dtype for one in found} == {torch.float64}
    assert_near(found, reference(problem), 1e-11)


def test_repeated_tokens_are_projected_once_with_the_same_results():
    problem = random_inputs((9, 9, 4, 0, 1), 5, 2, 8, seed=11)
    generator = torch.Generator().manual_seed(12)
    tokens = torch.randn(3, 8, generator=generator)
    drawn = torch.randint(3, problem.mask.shape, generator=generator)
    problem = problem._replace(x=tokens[drawn])
    different, place = distinct_rows(problem.x[problem.mask])
    assert different.shape == (3, 8)
    assert torch.equal(different[place], problem.x[problem.mask])
    assert_near(depth_statistics(problem), reference(problem), 1e-5)
    # Where more than six in ten differ, rows are left alone.
    assert distinct_rows(tokens[[0, 1, 0]])[1] is None
    assert distinct_rows(tokens[[1, 1]].double())[1].tolist() == [0, 0]


def test_statistics_and_gradients_where_they_are_wanted():
    problem = random_inputs((9, 4, 0), 3, 2, 8, seed=7)
    without = depth_statistics(problem)
    x, mask, *rest = in_float64(problem)
    gradients = []
    for function in (depth_statistics, reference):
        leaves = [t.clone().requires_grad_() for t in (x, *rest)]
        # Weights of padding are 0 by contract, and so is their gradient.
        outputs = function(Inputs(leaves[0], mask, *leaves[1:-1], leaves[-1] * mask))
        assert_near((one.detach() for one in outputs), without, 1e-5)
        generator = torch.Generator().manual_seed(8)
        weighted = [
            (o * torch.rand(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs
        ]
        gradients.append(torch.autograd.grad(torch.stack(weighted).sum(), leaves))
    assert all(one.abs().max() > 0 for one in gradients[1])
    assert_near(*gradients, 1e-9)
    assert not any(one.requires_grad for one in without)
