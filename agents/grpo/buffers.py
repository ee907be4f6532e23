"""Rollout buffers that turn rewards into the advantages of one-step episodes."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from agents.grpo.losses import group_advantages


class Rollout(NamedTuple):
    """A rollout, or a batch of one, on the learner's device: N samples of U <= N observations.

    Neighbours in a group share their observation. Kept once, it also goes through the network
    once: with groups of 8, and 512 numbers an observation, an update takes a third of the time.
    """

    observations: PyTorchObs  # (U, *observation) each
    rows: th.Tensor | None  # (N,) long, the observation of each sample; None: U = N, in order
    reference_log_probs: th.Tensor  # (U, D) of the frozen reference, (U, 0) until known
    actions: th.Tensor  # (N,) long
    log_probs: th.Tensor  # (N,) of the policy that acted
    advantages: th.Tensor  # (N,)
    returns: th.Tensor  # (N,), the rewards: what a value should be

    def spread(self, values: th.Tensor) -> th.Tensor:
        """What was computed per observation (U, ...), per sample (N, ...)."""
        return values if self.rows is None else values[self.rows]

    def batches(self, batch_size: int | None) -> Iterator["Rollout"]:
        """Cut the rollout into batches, in an order drawn from torch's global generator.

        Args:
            batch_size: Samples per batch, fewer in the last; None, or at least N: the rollout
                itself, no copy.
        """
        size = len(self.actions)
        if batch_size is None or batch_size >= size:
            yield self
            return
        for samples in th.randperm(size, device=self.actions.device).split(batch_size):
            kept, rows = samples, None
            if self.rows is not None:
                kept, rows = th.unique(self.rows[samples], return_inverse=True)
            yield Rollout(
                _at(self.observations, kept),
                rows,
                self.reference_log_probs[kept],
                *(values[samples] for values in self[3:]),
            )


def _at(observations: PyTorchObs, rows: th.Tensor) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: values[rows] for key, values in observations.items()}
    return observations[rows]


def _runs(arrays: Iterable[np.ndarray]) -> NDArray[np.int64]:
    """Number of the run of equal neighbours to which each of the N entries belongs, from 0."""
    changed = [(array[1:] != array[:-1]).any(axis=tuple(range(1, array.ndim))) for array in arrays]
    return np.concatenate([[0], np.logical_or.reduce(changed).cumsum()])


class GRPORolloutBuffer(RolloutBuffer):
    """A rollout of one-step episodes; see GRPO for the kinds of advantage.

    Args:
        *args: Positional arguments of SB3's RolloutBuffer.
        advantage: "critic", "group" or "group_mean".
        group_size: Neighbouring environments that share their observation at each step; needed
            for advantages within groups.
        **kwargs: Keyword arguments of SB3's RolloutBuffer. gamma and gae_lambda do nothing here.
    """

    def __init__(
        self,
        *args: Any,
        advantage: str = "critic",
        group_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.advantage = advantage
        self.group_size = group_size
        self.zero_std_groups: float | None = None  # of the last rollout, where there are groups
        super().__init__(*args, **kwargs)

    def compute_returns_and_advantage(
        self, last_values: th.Tensor, dones: NDArray[np.bool_]
    ) -> None:
        """Fill `returns` with the rewards and `advantages` by kind.

        Args:
            last_values: Values after the last step; not used, every episode has ended.
            dones: (E,), whether the last step ended the episode.

        Raises:
            ValueError: An episode was longer than one step, or the observations inside a group
                differ: the advantages would be wrong.
            FloatingPointError: A reward is not finite.
        """
        self._require_one_step_episodes(dones)
        self._require_finite_rewards()
        self.returns = self.rewards
        if self.advantage == "critic":
            self.advantages = self.rewards - self.values
            return
        assert self.group_size is not None
        self.advantages, self.zero_std_groups = group_advantages(
            self.rewards, self.group_size, divide=self.advantage == "group"
        )
        self._require_equal_observations(self.group_size)

    def tensors(self) -> Rollout:
        """The whole rollout; on the CPU no number is copied that need not be.

        SB3's `get` shuffles and copies everything, which a single full batch does not need.
        """
        # SB3's get(), should a callback have called it, has already merged the first two axes
        dims = 1 if self.generator_ready else 2

        def flat(array: np.ndarray) -> np.ndarray:
            return array.reshape(-1, *array.shape[dims:])

        observations = self.observations
        arrays = observations if isinstance(observations, dict) else {"": observations}
        arrays = {key: flat(array) for key, array in arrays.items()}
        runs = _runs(arrays.values())
        rows = None
        if 2 * (runs[-1] + 1) <= len(runs):  # else a copy without the repeats saves too little
            rows = self.to_torch(runs)
            firsts = np.flatnonzero(np.diff(runs, prepend=-1))
            arrays = {key: array[firsts] for key, array in arrays.items()}
        tensors = {key: self.to_torch(array, copy=False) for key, array in arrays.items()}
        return Rollout(
            observations=tensors if isinstance(observations, dict) else tensors[""],
            rows=rows,
            reference_log_probs=th.empty(len(next(iter(tensors.values()))), 0, device=self.device),
            actions=self.to_torch(self.actions.reshape(-1), copy=False).long(),
            log_probs=self.to_torch(self.log_probs.reshape(-1), copy=False),
            advantages=self.to_torch(self.advantages.reshape(-1), copy=False),
            returns=self.to_torch(self.returns.reshape(-1), copy=False),
        )

    def _require_one_step_episodes(self, dones: NDArray[np.bool_]) -> None:
        # (T, E): the next step starts an episode if and only if this one ended it
        ended = np.concatenate([self.episode_starts[1:], np.asarray(dones)[None]]).astype(bool)
        if not ended.all():
            step, env = np.argwhere(~ended)[0]
            raise ValueError(
                f"GRPO needs episodes of one step, but environment {env} did not end its episode "
                f"at step {step} of the rollout: use PPO, or an environment that terminates at once"
            )

    def _require_finite_rewards(self) -> None:
        finite = np.isfinite(self.rewards)
        if not finite.all():
            step, env = np.argwhere(~finite)[0]
            raise FloatingPointError(
                f"the reward of environment {env} at step {step} of the rollout is "
                f"{self.rewards[step, env]}"
            )

    def _require_equal_observations(self, size: int) -> None:
        observations = self.observations
        arrays = observations if isinstance(observations, dict) else {"": observations}
        for key, array in arrays.items():
            steps, envs = array.shape[:2]
            grouped = array.reshape(steps, envs // size, size, -1)
            same = (grouped == grouped[:, :, :1]).all(axis=(2, 3))
            if not same.all():
                step, group = np.argwhere(~same)[0]
                first = group * size
                raise ValueError(
                    f"advantage={self.advantage!r} compares rewards for one observation, but "
                    f"environments {first} to {first + size - 1} differ at step {step} of the "
                    f"rollout{f' in {key!r}' if key else ''}: give such groups the same "
                    "observation, as to_sb3(gym.make_vec(..., group_size=8)) does, or use "
                    "advantage='critic'"
                )


class GRPODictRolloutBuffer(GRPORolloutBuffer, DictRolloutBuffer):
    """The same for dictionary observations."""
