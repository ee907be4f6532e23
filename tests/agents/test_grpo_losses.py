"""The formulas of GRPO against values worked out by hand."""

import numpy as np
import pytest
import torch as th

from maw_gym.agents.grpo import losses


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
    lived = np.array([[1.0, 1.0], [1.0, 0.0]])
    expected = np.array([[0.25, 0.5], [-0.25, -0.5]]) / 0.15625**0.5
    # Beside a group that lives longer
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


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_gradient_of_a_sampled_kl(kind: str) -> None:
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
