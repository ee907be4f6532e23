"""Groups of episodes from one start, and what else GRPO asks of an environment."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from maw_gym.agents.grpo.policies import SharedPolicyNetwork


def make_groups(
    env: str | Callable[..., gym.Env[Any, Any]] | VecEnv,
    num_envs: int = 64,
    group_size: int = 8,
    seed: int | None = None,
    **kwargs: Any,
) -> VecEnv:
    """A vectorised environment whose neighbours start every episode alike, as GRPO wants it.

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
    if not _has_single_rows(env):
        raise ValueError(
            f"{env} does not reset its rows one by one: give the id or the class of a single"
            " environment, a DummyVecEnv or a SubprocVecEnv"
        )
    env = _put_groups_under(env, group_size)
    if seed is not None:
        env.seed(seed)
    return env


def _has_single_rows(env: VecEnv) -> bool:
    return isinstance(env.unwrapped, DummyVecEnv | SubprocVecEnv)


def _put_groups_under(env: VecEnv, group_size: int) -> VecEnv:
    """Groups right over the environments, under wrappers such as VecNormalize or VecMonitor."""
    if not isinstance(env, VecEnvWrapper):
        return Groups(env, group_size)
    lowest = env
    while isinstance(lowest.venv, VecEnvWrapper):
        lowest = lowest.venv
    lowest.venv = Groups(lowest.venv, group_size)
    return env


class Groups(VecEnvWrapper):
    """Neighbouring environments that start their n-th episode after a reset from one seed.

    Each episode is seeded anew, so that groups stay alike whatever their members have drawn. In a
    random environment the members also meet the same draws, as long as these follow from the seed.
    `make_groups` makes them.
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
        """Start an episode everywhere, in a group alike."""
        observations = self.venv.reset()
        self._first_seed = int(self._random.integers(2**31))
        self._episodes[:] = 0
        self._start(range(self.num_envs), observations)
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """Step, and start what follows an episode that ended from its group's seed."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self._start(np.flatnonzero(dones).tolist(), observations)
        return observations, rewards, dones, infos

    def _start(self, rows: Any, observations: VecEnvObs) -> None:
        """Reset rows once more, now with their group's seed, and put what they show in place."""
        self.venv.reset_infos = list(self.venv.reset_infos)  # a tuple, of a SubprocVecEnv
        for row in rows:
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

    def has_attr(self, attr_name: str) -> bool:
        """Whether the environments have an attribute; `group_size` they do."""
        return attr_name == "group_size" or self.venv.has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attribute of each environment asked for; `group_size` is that of the groups."""
        if attr_name == "group_size":
            return [self.group_size for _ in self._get_indices(indices)]
        return list(self.venv.get_attr(attr_name, indices))


def told(env: VecEnv | None, name: str) -> Any:
    """Attribute of the first environment; None where there is none."""
    return env.get_attr(name)[0] if env is not None and env.has_attr(name) else None


def with_groups(env: VecEnv, group_size: int | None, advantage: str) -> tuple[VecEnv, int | None]:
    """The environment, put into groups where it has none and can have them; and their size."""
    given = told(env, "group_size")
    given = int(given) if isinstance(given, int | np.integer) and given > 1 else None
    size = given if group_size is None else group_size
    if size is not None:
        fits = env.num_envs % size == 0  # a loaded model may predict where it does not
        if given is None and fits and _has_single_rows(env):
            env = _put_groups_under(env, size)
        return env, size
    name = getattr(told(env, "spec"), "id", None)
    made = repr(name) if name else "Env"
    how = f"maw_gym.agents.grpo.make_groups({made}, num_envs=64, group_size=8)"
    if advantage != "auto":
        raise ValueError(
            f"advantage={advantage!r} needs groups of episodes from one start, and the"
            f" environment names none: make it by {how}, or give group_size"
        )
    warnings.warn(
        f"the environment gives no groups: advantage='critic' is taken; {how} makes groups"
        " of episodes from one start",
        UserWarning,
        stacklevel=5,
    )
    return env, None


def check_environment(env: VecEnv | None, actions: spaces.Space[Any], policy: Any) -> None:
    """Refuse what GRPO cannot learn in, and warn of what it learns badly in."""
    flat = len(actions.shape or ()) < 2
    several = flat and isinstance(actions, spaces.MultiDiscrete | spaces.MultiBinary)
    known = isinstance(actions, spaces.Discrete | spaces.Box) or several
    if not known or np.any(getattr(actions, "start", 0)):
        raise ValueError(
            "GRPO needs Discrete actions that start at 0, Box, or MultiDiscrete or MultiBinary"
            f" ones of one dimension, not {actions}"
        )
    shared = isinstance(policy, type) and issubclass(policy, SharedPolicyNetwork)
    if shared and told(env, "numbers_per_action") == 0:
        raise ValueError(
            "SharedPolicy scores each action by its own numbers, and this environment's"
            " observation has none: take MlpPolicy"
        )
    if told(env, "action_masks") is not None:
        warnings.warn(
            "GRPO does not use the environment's action_masks: it will try invalid actions;"
            " MaskablePPO of sb3-contrib does not",
            UserWarning,
            stacklevel=4,
        )


def refuse_vector_environments(env: Any) -> None:
    """Refuse what Gymnasium's make_vec gives, before SB3 takes it for a single environment."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"{env} is a vector environment of Gymnasium: give GRPO"
            " maw_gym.agents.sb3.vec_env.to_sb3(env)"
        )
