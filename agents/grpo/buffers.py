"""Rollout buffers that turn the rewards of groups of episodes into advantages.

Notation: T rollout steps, E environments, G environments per group, N samples.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import explained_variance

from maw_gym.agents.grpo.losses import (
    discounted_sums,
    group_advantages,
    process_advantages,
    similar_state_values,
)


class Rollout(NamedTuple):
    """A rollout, or a batch of one, on the learner's device: N samples of U <= N observations.

    An observation that neighbours in a group share is kept once and goes through the network once.
    """

    observations: PyTorchObs  # (U, *observation) each
    rows: th.Tensor | None  # (N,) long, the observation of each sample; None: U = N, in order
    reference_log_probs: th.Tensor  # (U, D) of Discrete actions by the reference, else (U, 0)
    actions: th.Tensor  # (N,) long of Discrete actions, else (N, *action)
    log_probs: th.Tensor  # (N,) of the policy that acted
    advantages: th.Tensor  # (N,)
    returns: th.Tensor  # (N,), what a value should be
    values: th.Tensor  # (N,) by the value head that acted

    def spread(self, values: th.Tensor) -> th.Tensor:
        """What was computed per observation (U, ...), per sample (N, ...)."""
        return values if self.rows is None else values[self.rows]

    def batches(self, batch_size: int | None) -> Iterator["Rollout"]:
        """Cut the rollout into batches, in an order drawn from torch's global generator.

        Samples of one observation stay together: of groups of 8 a batch of 512 has 64 observations.
        """
        size = len(self.actions)
        if batch_size is None or batch_size >= size:
            yield self
            return
        order = th.randperm(len(self.reference_log_probs), device=self.actions.device)
        if self.rows is not None:
            order = order[self.rows].argsort(stable=True)
        for samples in order.split(int(batch_size)):
            kept, rows = samples, None
            if self.rows is not None:
                kept, rows = self.rows[samples].unique_consecutive(return_inverse=True)
            observations = self.observations
            yield Rollout(
                {key: values[kept] for key, values in observations.items()}
                if isinstance(observations, dict)
                else observations[kept],
                rows,
                self.reference_log_probs[kept],
                *(values[samples] for values in self[3:]),
            )


class Episodes(NamedTuple):
    """Where the episodes of a rollout are that began together: the k-th of each environment.

    An episode counts when all of its group have ended. The first ones count also where the
    rollout's end cut them, which it did at one and the same step.
    """

    number: NDArray[np.int64]  # (T, E) k of each step, from 0
    step: NDArray[np.int64]  # (T, E) its step within the episode, from 0
    length: NDArray[np.int64]  # (K, E) steps, 0 where there is no such episode
    whole: NDArray[np.bool_]  # (K, E) whether it counts
    used: NDArray[np.bool_]  # (T, E) whether a step is of an episode that counts


def episodes_of(starts: NDArray[np.bool_], dones: NDArray[np.bool_], group_size: int) -> Episodes:
    """Find the episodes of a rollout that began one everywhere."""
    steps, envs = starts.shape
    number = starts.cumsum(axis=0) - 1
    time, env = np.arange(steps)[:, None], np.arange(envs)
    step = time - np.maximum.accumulate(np.where(starts, time, 0), axis=0)
    length = np.zeros((number.max() + 1, envs), np.int64)
    np.add.at(length, (number, env), 1)
    ended = np.arange(len(length))[:, None] < number[-1] + dones
    ended[0] = True
    whole = ended.reshape(len(length), -1, group_size).all(axis=-1).repeat(group_size, axis=1)
    return Episodes(number, step, length, whole, whole[number, env])


def require_memory(space: spaces.Space[Any], n_steps: int, n_envs: int) -> None:
    """Refuse rollouts that do not fit into the machine's memory, where it tells how large it is."""
    parts = space.values() if isinstance(space, spaces.Dict) else [space]
    numbers = sum(get_flattened_obs_dim(part) for part in parts)
    needed = 4 * numbers * n_steps * n_envs / 2**30
    if hasattr(os, "sysconf"):  # not on Windows
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        if needed > there:
            raise ValueError(
                f"n_steps={n_steps}: rollouts of {n_envs} environments with {numbers} numbers each"
                f" need {needed:.3g} GiB, and this machine has {there:.3g}; lower n_steps or the"
                " number of environments"
            )


class GRPORolloutBuffer(RolloutBuffer):
    """A rollout in groups of episodes; see GRPO for the kinds of advantage."""

    rollout: Rollout  # the samples to learn from

    def __init__(
        self,
        *args: Any,
        advantage: str = "critic",
        group_size: int | None = None,
        loss_average: str = "step",
        normalize_advantage: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.advantage = advantage
        self.group_size = group_size or 1
        self.loss_average = loss_average
        self.normalize_advantage = normalize_advantage
        self.zero_std_groups = 0.0  # share of the last rollout's groups
        self.in_step = True  # whether the next rollout may go on where the last one ended
        self.used: NDArray[np.bool_] | None = None  # (T, E) samples to learn from; None: all
        super().__init__(*args, **kwargs)

    def compute_returns_and_advantage(
        self, last_values: th.Tensor, dones: NDArray[np.bool_]
    ) -> None:
        """Fill `returns` and `advantages` by kind, and choose the samples to learn from."""
        finite = np.isfinite(self.rewards)
        if not finite.all():
            step, env = np.argwhere(~finite)[0]
            raise FloatingPointError(
                f"the reward of environment {env} at step {step} of the rollout is "
                f"{self.rewards[step, env]}"
            )
        dones = np.asarray(dones, np.bool_)
        starts = self.episode_starts.astype(np.bool_)
        one_step = bool(starts[1:].all() and dones.all())
        self.used = None
        if self.advantage == "critic":
            super().compute_returns_and_advantage(last_values, dones)
        else:
            self._require_equal_starts(starts)
            if one_step:  # each step is its own outcome, and its own process
                self.returns = self.rewards
                self.advantages, self.zero_std_groups = group_advantages(
                    self.rewards, self.group_size, divide=self.advantage != "group_mean"
                )
            else:
                self._compare_episodes(starts, dones)
        self.rollout = self._tensors()
        normalize = not one_step if self.normalize_advantage is None else self.normalize_advantage
        if self.advantage == "critic" and normalize and self.advantages.size > 1:
            shifted = self.advantages - self.advantages.mean()
            standard = self.to_torch((shifted / (shifted.std() + 1e-8)).reshape(-1))
            self.rollout = self.rollout._replace(advantages=standard)

    def summary(self) -> dict[str, float]:
        """What is logged of the rollout."""
        values = {}
        if self.advantage != "critic":
            values["zero_std_groups"] = self.zero_std_groups
        if self.used is not None:
            values["used_steps"] = float(np.mean(self.used))
        if self.advantage == "critic" or (self.advantage == "state" and self.used is not None):
            found, wanted = (x.cpu().numpy() for x in (self.rollout.values, self.rollout.returns))
            values["explained_variance"] = float(explained_variance(found, wanted))
        return values

    def _compare_episodes(self, starts: NDArray[np.bool_], dones: NDArray[np.bool_]) -> None:
        """Fill `advantages` and `used` from episodes of several steps."""
        size, env = self.group_size, np.arange(self.n_envs)
        found = episodes_of(starts, dones, size)
        number, _, length, whole, self.used = found
        if self.advantage == "state":
            self._compare_states(starts, found)
        else:
            self._compare_in_turn(found)
        largest = np.zeros(length.shape)
        np.maximum.at(largest, (number, env), np.abs(self.advantages))
        largest = largest.reshape(len(length), -1, size).max(axis=-1)
        self.zero_std_groups = float(np.mean(largest[whole[:, ::size]] == 0.0))
        if self.loss_average == "episode":
            # Mean over episodes of means over their steps, as a mean over all steps
            share = self.used.sum() / whole[length > 0].sum()
            self.advantages = (self.advantages * share / length[number, env]).astype(np.float32)
        counts = starts.sum(axis=0).reshape(-1, size)
        self.in_step = bool(dones.all() and (counts == counts[:, :1]).all())

    def _compare_in_turn(self, episodes: Episodes) -> None:
        """Fill `advantages` from the n-th episodes of each group's members."""
        number, step, length, _, _ = episodes
        for k in range(len(length)):
            time, which = np.nonzero(number == k)
            rewards = np.zeros((length[k].max(), self.n_envs), np.float32)
            rewards[step[time, which], which] = self.rewards[time, which]
            if self.advantage == "process":
                compared = process_advantages(rewards, length[k], self.group_size, self.gamma)
            else:
                outcomes = self.gamma ** np.arange(len(rewards))[None] @ rewards
                compared, _ = group_advantages(
                    outcomes.astype(np.float32),
                    self.group_size,
                    divide=self.advantage == "outcome",
                )
                compared = compared.repeat(len(rewards), axis=0)
            self.advantages[time, which] = compared[step[time, which], which]

    def _compare_states(self, starts: NDArray[np.bool_], episodes: Episodes) -> None:
        """Fill `values` from similar states of the group, `returns` and `advantages` from them."""
        size, env = self.group_size, np.arange(self.n_envs)
        number, used = episodes.number, episodes.used
        following = discounted_sums(self.rewards, starts, self.gamma)
        one_each = number * self.n_envs + env  # another number for each episode
        for group in range(self.n_envs // size):
            here = used & (env // size == group)
            sums = self.to_torch(following[here].astype(np.float32))
            of = self.to_torch(one_each[here])
            # As many as an episode has others in its group: of a start these are they
            values = similar_state_values(self._states(here), sums, of, size - 1)
            self.values[here] = values.cpu().numpy()
        # Whatever ends an episode, nothing follows
        super().compute_returns_and_advantage(th.zeros(self.n_envs), np.ones(self.n_envs))
        outcomes = np.zeros(episodes.length.shape)
        outcomes[number[starts], np.nonzero(starts)[1]] = following[starts]
        alike = np.ptp(outcomes.reshape(len(outcomes), -1, size), axis=2) == 0.0
        # Episodes that are as good as each other teach nothing
        self.advantages[alike.repeat(size, axis=1)[number, env] | ~used] = 0.0

        def of_groups(values: np.ndarray) -> np.ndarray:
            return values.reshape(len(starts), -1, size)  # (T, E / G, G)

        squares = of_groups(np.square(self.advantages, dtype=np.float64))
        mean = squares.sum(axis=(0, 2)) / of_groups(used).sum(axis=(0, 2))
        # Not what float32 leaves of equal values, which would be noise of the size of a signal
        least = 1e-8 + 1e-5 * of_groups(np.abs(following) * used).max(axis=(0, 2))
        self.advantages /= (np.sqrt(mean) + least).repeat(size)

    def _states(self, steps: NDArray[np.bool_]) -> th.Tensor:
        """Observations of some steps (T, E) as numbers (N, O), categories as one-hot."""
        arrays = {key: self.to_torch(x[steps], copy=False) for key, x in self._arrays().items()}
        given = arrays if isinstance(self.observations, dict) else arrays[""]
        numbers = preprocess_obs(given, self.observation_space)
        parts = numbers.values() if isinstance(numbers, dict) else [numbers]
        states = th.cat([part.flatten(1) for part in parts], dim=1)
        if not states.isfinite().all():
            strange = float(states[~states.isfinite()][0])
            raise FloatingPointError(
                f"an observation of the rollout has a number that is {strange}"
            )
        return states

    def _arrays(self) -> dict[str, np.ndarray]:
        observations = self.observations
        return observations if isinstance(observations, dict) else {"": observations}

    def _tensors(self) -> Rollout:
        """The samples to learn from; on the CPU no number is copied that need not be."""
        used: Any = slice(None) if self.used is None else self.used.reshape(-1)

        def flat(array: np.ndarray) -> np.ndarray:
            kept: np.ndarray = array.reshape(-1, *array.shape[2:])[used]
            return kept

        arrays = {key: flat(array) for key, array in self._arrays().items()}
        discrete = isinstance(self.action_space, spaces.Discrete)
        rows = None
        if discrete:
            new = np.logical_or.reduce(
                [(a[1:] != a[:-1]).any(axis=tuple(range(1, a.ndim))) for a in arrays.values()]
            )
            runs = np.concatenate([[0], new.cumsum()])  # (N,) run of equal neighbours, from 0
            if 2 * (runs[-1] + 1) <= len(runs):  # else a copy without repeats saves too little
                rows = self.to_torch(runs)
                firsts = np.flatnonzero(np.diff(runs, prepend=-1))
                arrays = {key: array[firsts] for key, array in arrays.items()}
        tensors = {key: self.to_torch(array, copy=False) for key, array in arrays.items()}
        actions = self.to_torch(flat(self.actions), copy=False)
        scalars = (self.log_probs, self.advantages, self.returns, self.values)
        return Rollout(
            tensors if isinstance(self.observations, dict) else tensors[""],
            rows,
            th.empty(len(next(iter(tensors.values()))), 0, device=self.device),
            actions.long().flatten() if discrete else actions.float(),
            *(self.to_torch(flat(array).reshape(-1), copy=False) for array in scalars),
        )

    def _require_equal_starts(self, starts: NDArray[np.bool_]) -> None:
        """Refuse groups whose members begin their n-th episode at one step, but not alike."""
        size = self.group_size
        number = starts.cumsum(axis=0).reshape(len(starts), -1, size)
        # Not where one begins its third episode and another its second
        together = starts.reshape(number.shape).all(axis=-1) & (np.ptp(number, axis=-1) == 0)
        for key, array in self._arrays().items():
            grouped = array.reshape(*together.shape, size, -1)
            same = (grouped == grouped[:, :, :1]).all(axis=(2, 3)) | ~together
            if not same.all():
                step, group = np.argwhere(~same)[0]
                first = group * size
                raise ValueError(
                    f"advantage={self.advantage!r} compares episodes from one start, but"
                    f" environments {first} to {first + size - 1} differ at step {step} of the"
                    f" rollout{f' in {key!r}' if key else ''}: let a group start alike, as"
                    " maw_gym.agents.grpo.make_groups does where reset draws by its seed alone, or"
                    " use advantage='critic'"
                )


class GRPODictRolloutBuffer(GRPORolloutBuffer, DictRolloutBuffer):
    """The same for dictionary observations."""
