"""The mathematics of GRPO as pure functions. All logarithms are natural.

Notation: T rollout steps, E environments, G environments per group, B samples, D actions,
pi the policy, q the policy in the ratio's denominator, p the frozen reference.
"""

from typing import NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from torch.nn import functional as F


class GroupAdvantages(NamedTuple):
    """Advantages within groups."""

    advantages: NDArray[np.float32]  # of the shape of the rewards
    zero_std: float  # share in [0, 1] of the groups whose members are all equal: nothing to learn


def group_advantages(
    returns: NDArray[np.floating], group_size: int, *, divide: bool
) -> GroupAdvantages:
    """Return (T, E) minus the mean of its group: environments g*G to (g+1)*G - 1 of one row.

    `divide`: over the group's (standard deviation, ddof 0) + 1e-8 (Shao et al. 2024, DeepSeekMath,
    4.1.2); without (Liu et al. 2025, Dr. GRPO) groups of nearly equal rewards do not count as much
    as those with a clear difference.
    """
    rows, envs = returns.shape
    # In float32 the mean of equal rewards may be off by one unit in the last place, which the
    # division by 1e-8 would turn into an advantage near 1.
    grouped = returns.astype(np.float64).reshape(rows, envs // group_size, group_size)
    centred = grouped - grouped.mean(axis=-1, keepdims=True)
    zero_std = float(np.mean(np.ptp(grouped, axis=-1) == 0.0))
    if divide:
        centred /= grouped.std(axis=-1, keepdims=True) + 1e-8
    return GroupAdvantages(centred.reshape(rows, envs).astype(np.float32), zero_std)


def discounted_sums(
    rewards: NDArray[np.floating], starts: NDArray[np.bool_], gamma: float
) -> NDArray[np.float64]:
    """Sum from each step on of the rewards (T, ...) of its episode, which begins at `starts`."""
    sums = rewards.astype(np.float64)
    for step in range(len(sums) - 2, -1, -1):
        sums[step] += gamma * np.where(starts[step + 1], 0.0, sums[step + 1])
    return sums


def process_advantages(
    rewards: NDArray[np.floating], lengths: NDArray[np.int64], group_size: int, gamma: float
) -> NDArray[np.float32]:
    """Sum from each step on of the rewards, each less its group's mean at that step.

    After DeepSeekMath's process supervision (4.1.3). An ended episode gets rewards of 0, so that
    1 for every step teaches to go on and -1 to come to an end. The sums of a group are divided by
    their root mean square, once, up to the end of its longest episode.

    Args:
        rewards: (L, E) of one episode of each environment, 0 behind its end.
        lengths: (E,) steps of each episode, at most L.
        group_size: G, neighbouring environments.
        gamma: Discount, in [0, 1].

    Returns:
        (L, E); what stands behind an episode's end means nothing.
    """
    steps, envs = rewards.shape
    grouped = rewards.astype(np.float64).reshape(steps, envs // group_size, group_size)
    centred = grouped - grouped.mean(axis=-1, keepdims=True)
    sums = discounted_sums(centred, np.zeros(steps, np.bool_), gamma)
    longest = lengths.reshape(-1, group_size, 1).max(axis=1).clip(min=1)  # (E / G, 1)
    scale = np.sqrt(np.square(sums).mean(axis=2, keepdims=True).sum(axis=0) / longest)
    sums /= scale + 1e-8
    advantages: NDArray[np.float32] = sums.reshape(steps, envs).astype(np.float32)
    return advantages


def similar_state_values(
    states: th.Tensor,
    following: th.Tensor,
    episodes: th.Tensor,
    neighbours: int,
    candidates: int = 4096,
) -> th.Tensor:
    """What followed the states most like each one in other episodes, on average.

    A regression by nearest neighbours: the step-level groups of GiGPO (Feng et al. 2025,
    arXiv:2505.10978), which are of equal states, for states that hardly come twice. Since a step's
    own episode is left out, its action has no part in its value.

    Args:
        states: (N, O) observations of a group's steps; each number counts over its deviation.
        following: (N,) sum of discounted rewards from each step on.
        episodes: (N,) number of the episode that a step is of.
        neighbours: Steps whose mean is taken; those that are equally near share the last places.
        candidates: Steps that are compared with, at most: every second, third, ... of an episode.

    Returns:
        (N,), 0 where there is no other episode.
    """
    deviation, mean = th.std_mean(states, dim=0, correction=0)
    varies = deviation > 0
    scaled = (states[:, varies] - mean[varies]) / deviation[varies]
    # By episodes: every second step of a rollout is of the same members of a group
    seen = episodes.argsort(stable=True)[:: -(-len(states) // candidates)]
    others, other_episodes, other_sums = scaled[seen], episodes[seen], following[seen]
    values = []
    for rows in th.arange(len(states), device=states.device).split(512):  # of 8 MiB a matrix
        distances = th.cdist(scaled[rows], others)  # (512, M)
        distances[episodes[rows, None] == other_episodes] = th.inf
        last = distances.topk(min(neighbours, len(others)), largest=False).values[:, -1:]
        nearer = distances < last
        tied = (distances == last) & last.isfinite()
        places = (neighbours - nearer.sum(dim=1)) / tied.sum(dim=1).clamp(min=1)  # for each tied
        weights = nearer + tied * places[:, None]
        values.append(weights @ other_sums / weights.sum(dim=1).clamp(min=1))
    return th.cat(values)


def policy_loss(
    ratio: th.Tensor,
    advantages: th.Tensor,
    clip_low: float | None = None,
    clip_high: float | None = None,
) -> th.Tensor:
    """-mean(ratio * A), or with clipping -mean(min(ratio * A, clamp(ratio, 1-l, 1+h) * A)).

    The ratio is (B,) pi(a|s) / q(a|s), A (B,) the advantages, constants. No l: no clipping; no h:
    h = l. A larger h is DAPO's "clip-higher" (Yu et al. 2025).
    """
    gain = ratio * advantages
    if clip_low is not None:
        high = clip_low if clip_high is None else clip_high
        gain = th.minimum(gain, ratio.clamp(1.0 - clip_low, 1.0 + high) * advantages)
    return -gain.mean()


def clip_fraction(ratio: th.Tensor, clip_low: float, clip_high: float | None = None) -> th.Tensor:
    """Share in [0, 1] of the ratios (B,) outside [1 - clip_low, 1 + clip_high], a scalar."""
    high = clip_low if clip_high is None else clip_high
    return ((ratio < 1.0 - clip_low) | (ratio > 1.0 + high)).float().mean()


def value_loss(
    values: th.Tensor, returns: th.Tensor, old: th.Tensor, clip: float | None = None
) -> th.Tensor:
    """Mean squared error of values (B,); with `clip` as if they were at most so far from the old.

    PPO2's clipping as Stable-Baselines3's PPO has it, without the maximum of both losses.
    """
    if clip is not None:
        values = old + (values - old).clamp(-clip, clip)
    return F.mse_loss(values, returns)


def exact_kl(log_probs: th.Tensor, reference_log_probs: th.Tensor) -> th.Tensor:
    """KL(pi || p) = sum over actions of pi (log pi - log p), >= 0: (B, D), (B, D) -> (B,)."""
    return (log_probs.exp() * (log_probs - reference_log_probs)).sum(dim=-1)


def sampled_kl(log_prob: th.Tensor, reference_log_prob: th.Tensor, kind: str) -> th.Tensor:
    """Estimates (B,) of KL(pi || p) from log pi(a) and log p(a), one a ~ pi each.

    With r = p(a) / pi(a): k1 = -log r (unbiased, may be negative), k2 = (log r)^2 / 2 (biased, low
    variance), k3 = r - 1 - log r (unbiased, >= 0; DeepSeekMath's); Schulman 2020, joschu.net/blog.
    As losses they differ more: the gradient of k1 is zero on average, that of k2 is the gradient of
    KL(pi || p), and that of k3 the gradient of KL(p || pi).
    """
    log_r = reference_log_prob - log_prob
    if kind == "k1":
        return -log_r
    return 0.5 * log_r.square() if kind == "k2" else log_r.expm1() - log_r


def entropy(log_probs: th.Tensor) -> th.Tensor:
    """Entropy in nats, in [0, log D], of categorical distributions: (B, D) -> (B,)."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)
