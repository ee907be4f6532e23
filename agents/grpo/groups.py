"""Groups of episodes from one start, out of any environment of Gymnasium or Stable-Baselines3."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


def make_groups(
    env: str | Callable[..., gym.Env[Any, Any]] | VecEnv,
    num_envs: int = 64,
    group_size: int = 8,
    seed: int | None = None,
    **kwargs: Any,
) -> VecEnv:
    """A vectorised environment whose neighbours start every episode alike, as GRPO wants it.

    Example:
        model = GRPO("MlpPolicy", make_groups("CartPole-v1", num_envs=32, group_size=8))

    Args:
        env: Id, class or function of a single environment; or a DummyVecEnv or SubprocVecEnv, such
            as make_vec_env makes them, with or without wrappers.
        num_envs: Environments, of which a VecEnv has its own number.
        group_size: Environments per group.
        seed: Seed of the starts; None: fresh ones.
        **kwargs: Further arguments of Stable-Baselines3's make_vec_env.

    Raises:
        ValueError: Groups that do not divide the environments, or rows that cannot be reset alone.
    """
    if not isinstance(env, VecEnv):
        env = make_vec_env(env, num_envs, **kwargs)
    if not has_single_rows(env):
        raise ValueError(
            f"{env} does not reset its rows one by one: give the id or the class of a single"
            " environment, a DummyVecEnv or a SubprocVecEnv"
        )
    env = put_groups_under(env, group_size)
    if seed is not None:
        env.seed(seed)
    return env


def put_groups_under(env: VecEnv, group_size: int) -> VecEnv:
    """Groups right over the environments, under wrappers such as VecNormalize or VecMonitor."""
    lowest = None
    inner = env
    while isinstance(inner, VecEnvWrapper):
        lowest, inner = inner, inner.venv
    groups = Groups(inner, group_size)
    if lowest is None:
        return groups
    lowest.venv = groups
    return env


def has_single_rows(env: VecEnv) -> bool:
    """Whether every row is an environment of its own, which can be reset by itself."""
    return isinstance(env.unwrapped, DummyVecEnv | SubprocVecEnv)


class Groups(VecEnvWrapper):
    """Neighbouring environments that start their n-th episode after a reset from one seed.

    Each episode is seeded anew, so that groups stay alike whatever their members have drawn. In a
    random environment the members also meet the same draws, as long as these follow from the seed.

    Args:
        venv: An environment whose rows can be reset one by one, by `env_method("reset")`.
        group_size: Environments per group, at least 2.

    Raises:
        ValueError: A group size that is no whole number from 2, or does not divide the
            environments.
    """

    def __init__(self, venv: VecEnv, group_size: int) -> None:
        whole = isinstance(group_size, int | np.integer) and not isinstance(group_size, bool)
        if not whole or group_size < 2:
            raise ValueError(f"group_size={group_size!r}: must be a whole number from 2")
        if venv.num_envs % group_size:
            raise ValueError(
                f"group_size={group_size}: {venv.num_envs} environments do not divide into such"
                " groups"
            )
        super().__init__(venv)
        self.group_size = int(group_size)
        self._random = np.random.default_rng()
        self._first_seed = 0
        self._episodes = np.zeros(venv.num_envs, np.int64)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Decide all starts from the next reset on."""
        self._random = np.random.default_rng(seed)
        return list(self.venv.seed(seed))

    def reset(self) -> VecEnvObs:
        """Start an episode everywhere, neighbours in a group alike."""
        observations = self.venv.reset()
        self.venv.reset_infos = list(self.venv.reset_infos)  # a tuple, of a SubprocVecEnv
        self._first_seed = int(self._random.integers(2**31))
        self._episodes[:] = 0
        for row in range(self.num_envs):
            self._start(row, observations)
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """Step, and start the episodes that follow those which ended from their group's seed."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self.venv.reset_infos = list(self.venv.reset_infos)
        for row in np.flatnonzero(dones).tolist():
            self._start(row, observations)
        return observations, rewards, dones, infos

    def has_attr(self, attr_name: str) -> bool:
        """Whether the environments have an attribute; `group_size` they do."""
        return attr_name == "group_size" or self.venv.has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attribute of each environment asked for; `group_size` is that of the groups."""
        if attr_name == "group_size":
            return [self.group_size for _ in self._get_indices(indices)]
        return list(self.venv.get_attr(attr_name, indices))

    def _start(self, row: int, observations: VecEnvObs) -> None:
        """Reset a row once more, now with its group's seed, and put what it shows in its place."""
        words = (self._first_seed, row // self.group_size, int(self._episodes[row]))
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        ((shown, info),) = self.venv.env_method("reset", seed=seed, indices=[row])
        self._episodes[row] += 1
        self.venv.reset_infos[row] = info
        if isinstance(observations, dict):
            for key, values in observations.items():
                values[row] = shown[key]
        else:
            observations[row] = shown  # type: ignore[index]
