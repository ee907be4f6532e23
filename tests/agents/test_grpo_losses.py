"""The formulas of GRPO against values worked out by hand."""

import math

import numpy as np
import pytest
import torch as th

from maw_gym.agents.grpo import losses

PI = th.tensor([[0.5, 0.5]])  # the policy, D = 2
P = th.tensor([[0.25, 0.75]])  # the reference


@pytest.mark.parametrize(
    ("rewards", "divide", "expected", "zero_std"),
    [
        # (1,0,0,1): mean 1/2, deviation 1/2; (2,2,2,2) has none
        ([1, 0, 0, 1, 2, 2, 2, 2], True, [1, -1, -1, 1, 0, 0, 0, 0], 0.5),
        # (0,1,2,3): mean 3/2, deviation sqrt(5/4); (0,0,0,4): mean 1, deviation sqrt(3)
        (
            [0, 1, 2, 3, 0, 0, 0, 4],
            True,
            [-1.3416408, -0.4472136, 0.4472136, 1.3416408, *[-0.5773503] * 3, 1.7320508],
            0.0,
        ),
        ([1, 0, 0, 1, 0, 0, 0, 4], False, [0.5, -0.5, -0.5, 0.5, -1, -1, -1, 3], 0.0),
    ],
)
def test_group_advantages(
    rewards: list[float], divide: bool, expected: list[float], zero_std: float
) -> None:
    result = losses.group_advantages(np.array([rewards], np.float32), 4, divide=divide)
    np.testing.assert_allclose(result.advantages, [expected], atol=1e-6)
    assert (result.advantages.dtype, result.zero_std) == (np.float32, zero_std)


@pytest.mark.parametrize("group_size", [3, 7, 8])
def test_equal_rewards_give_zero_in_spite_of_rounding(group_size: int) -> None:
    # In float32 the mean of some of these is not the number itself, and the difference of some
    # 1e-8 over (1e-8 + 1e-8) is an advantage of order 1.
    values = np.linspace(0.05, 0.95, 91, dtype=np.float32)
    rewards = np.repeat(values[:, None], group_size, axis=1)
    result = losses.group_advantages(rewards, group_size, divide=True)
    assert (np.abs(result.advantages).max(), result.zero_std) == (0.0, 1.0)


def test_process_advantages() -> None:
    # Alive longer, by 1 a step: 0 where both live, then 1/2 and -1/2; root mean square over
    # (.25, .5), (-.25, -.5): sqrt(.15625)
    lived, lengths = np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([2, 1])
    expected = np.array([[0.25, 0.5], [-0.25, -0.5]]) / 0.15625**0.5
    found = losses.process_advantages(lived, lengths, 2, 0.5)
    np.testing.assert_allclose(found.T, expected)
    # Beside a group that lives longer they are the same
    both = np.hstack([np.vstack([lived, np.zeros((2, 2))]), np.ones((4, 2)) * [1, 2]])
    found = losses.process_advantages(both, np.array([2, 1, 4, 4]), 2, 0.5)
    np.testing.assert_allclose(found[:2, :2].T, expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        # gains .5*1, 1*-1, 1.5*2, 2*-1, .5*-1: sum 0
        (None, None, 0.0),
        # .5, -1, min(3, 1.2*2), min(-2, 1.2*-1), min(-.5, .8*-1): .5 - 1 + 2.4 - 2 - .8 = -.9
        (0.2, None, 0.18),
        # DAPO: only the upper bound moves: min(3, 1.4*2): .5 - 1 + 2.8 - 2 - .8 = -.5
        (0.2, 0.4, 0.1),
    ],
)
def test_policy_loss(low: float | None, high: float | None, expected: float) -> None:
    ratio = th.tensor([0.5, 1.0, 1.5, 2.0, 0.5])
    advantages = th.tensor([1.0, -1.0, 2.0, -1.0, -1.0])
    assert losses.policy_loss(ratio, advantages, low, high).item() == pytest.approx(expected)


def test_clip_fraction() -> None:
    ratio = th.tensor([0.5, 1.0, 1.25, 1.5])
    assert losses.clip_fraction(ratio, 0.2).item() == 0.75  # all but 1.0
    assert losses.clip_fraction(ratio, 0.2, 0.3).item() == 0.5  # 1.25 is inside now


def test_exact_kl_and_entropy() -> None:
    # 1/2 ln(.5/.25) + 1/2 ln(.5/.75) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3)
    assert losses.exact_kl(PI.log(), P.log()).item() == pytest.approx(0.1438410)
    assert losses.exact_kl(PI.log(), PI.log()).item() == 0.0
    # 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2
    assert losses.entropy(th.tensor([[0.5, 0.25, 0.25]]).log()).item() == pytest.approx(1.0397208)
    assert losses.entropy(th.full((1, 32), 1 / 32).log()).item() == pytest.approx(math.log(32))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # r = p / pi = (1/2, 3/2)
        ("k1", [0.6931472, -0.4054651]),  # -ln r
        ("k2", [0.2402265, 0.0822010]),  # (ln r)^2 / 2
        ("k3", [0.1931472, 0.0945349]),  # -1/2 + ln 2, 1/2 - ln 3/2
    ],
)
def test_sampled_kl_and_its_gradient(kind: str, expected: list[float]) -> None:
    estimates = losses.sampled_kl(PI[0].log(), P[0].log(), kind)
    np.testing.assert_allclose(estimates, expected, atol=1e-6)
    logits = th.tensor([0.3, -1.0, 0.8], requires_grad=True)
    reference = th.tensor([1.0, 0.2, -0.5]).log_softmax(-1)
    log_pi = logits.log_softmax(-1)
    # the mean over actions drawn from pi, exactly: pi outside the gradient
    mean = (log_pi.exp().detach() * losses.sampled_kl(log_pi, reference, kind)).sum()
    (gradient,) = th.autograd.grad(mean, logits, retain_graph=True)
    if kind == "k1":
        wanted = th.zeros(3)
    else:
        pair = (log_pi, reference) if kind == "k2" else (reference, log_pi)
        (wanted,) = th.autograd.grad(losses.exact_kl(*pair), logits)
    th.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)


def test_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    logits = th.tensor([[0.3, -1.0, 0.8], [0.0, 0.5, -0.5]], requires_grad=True)
    actions, advantages = th.tensor([2, 0]), th.tensor([1.5, -0.5])
    log_prob = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
    ratio = (log_prob - log_prob.detach()).exp()
    losses.policy_loss(ratio, advantages, 0.2, 0.3).backward()
    # d/dz of -1/B sum_b A_b log pi(a_b) for a softmax is -A_b (onehot(a_b) - pi) / B
    onehot = th.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    expected = -advantages[:, None] * (onehot - logits.detach().softmax(-1)) / 2
    assert logits.grad is not None
    th.testing.assert_close(logits.grad, expected)
