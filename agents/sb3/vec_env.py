"""From a Gymnasium VectorEnv to the VecEnv that Stable-Baselines3 learns from."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from maw_gym.agents.grpo.groups import Groups

SAME_STEP: Final = (AutoresetMode.SAME_STEP, AutoresetMode.SAME_STEP.value)


def to_sb3(
    vector_env: VectorEnv, filename: str | None = None, group_size: int | None = None
) -> VecMonitor:
    """Adapt a vector environment and monitor its episodes, ready for an SB3 algorithm.

    Args:
        vector_env: A Gymnasium vector environment in SAME_STEP autoreset mode.
        filename: Where VecMonitor writes its log; None for no log.
        group_size: So many neighbouring environments of a SyncVectorEnv start every episode alike,
            as GRPO wants it (maw_gym.agents.grpo.Groups); None: each has starts of its own, or the
            environment has groups already.

    Raises:
        ValueError: No vector environment, another autoreset mode, or groups that cannot be.
    """
    adapted: VecEnv = SB3VecEnv(vector_env)
    if group_size is not None:
        if not isinstance(vector_env.unwrapped, SyncVectorEnv):
            raise ValueError(
                f"{vector_env} does not reset its rows one by one: give group_size where it is"
                " made, if it takes one, or make it with maw_gym.agents.grpo.make_groups"
            )
        adapted = Groups(adapted, group_size)
    return VecMonitor(adapted, filename)


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as seen by SB3: one list of infos, `terminal_observation`.

    The info of an environment whose episode ended is that of the finished episode (`final_info`)
    plus `terminal_observation` and `TimeLimit.truncated`; what the reset of the next episode said
    is in `reset_infos`. Observations and rewards are copies: the environment may reuse its arrays.
    A SyncVectorEnv holds one environment per row, which attributes and methods address one by one;
    other vector environments answer for all rows at once.

    Raises:
        ValueError: No vector environment, or `metadata["autoreset_mode"]` is not SAME_STEP.
    """

    def __init__(self, vector_env: VectorEnv) -> None:
        if not isinstance(vector_env, VectorEnv):
            raise ValueError(
                "to_sb3 takes a vector environment of Gymnasium, as gym.make_vec makes it, not"
                f" {vector_env}: Stable-Baselines3 takes that as it is"
            )
        mode = vector_env.metadata.get("autoreset_mode")
        if mode not in SAME_STEP:
            raise ValueError(
                f"{vector_env} has autoreset mode {mode}: SB3 needs one made with "
                "autoreset_mode=AutoresetMode.SAME_STEP, as in gym.make_vec(..., vector_kwargs="
                "{'autoreset_mode': AutoresetMode.SAME_STEP}); in NEXT_STEP mode every second step"
                " of a one-step episode is a dummy that ignores its action and is rewarded 0"
            )
        # before super().__init__, which asks for the attribute render_mode
        self.vector_env = vector_env
        self.spec = vector_env.spec
        self._envs: Any = getattr(vector_env.unwrapped, "envs", None)  # of a SyncVectorEnv
        super().__init__(
            vector_env.num_envs,
            vector_env.single_observation_space,
            vector_env.single_action_space,
        )

    def reset(self) -> VecEnvObs:
        """Start new episodes everywhere, with the seed and options set before, once.

        Raises:
            ValueError: set_options() was given different options per environment.
        """
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError(f"a vector environment takes one set of options, not {self._options}")
        # seed() counts up from the first seed, as Gymnasium does with a single number
        observations, infos = self.vector_env.reset(seed=self._seeds[0], options=options or None)
        self.reset_infos = _rows(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        copied: VecEnvObs = deepcopy(observations)
        return copied

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions (num_envs, *action) for step_wait."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step; see VecEnv.

        Raises:
            ValueError: An episode ended without `final_obs` or `final_info`.
        """
        step = self.vector_env.step(self._actions)
        observations, rewards, terminations, truncations, infos = step
        dones = np.logical_or(terminations, truncations)
        final = ("final_obs", "_final_obs", "final_info", "_final_info")
        rows = _rows({key: infos[key] for key in infos if key not in final}, self.num_envs)
        if dones.any():
            if infos.get("final_obs") is None or infos.get("final_info") is None:
                raise ValueError(
                    f"{self.vector_env} ended an episode without final_obs and final_info"
                )
            finished = _rows(infos["final_info"], self.num_envs)
            last = deepcopy(infos["final_obs"])
            for i in np.flatnonzero(dones).tolist():
                self.reset_infos[i], rows[i] = rows[i], finished[i]
                is_dict = isinstance(last, dict)
                seen = {key: values[i] for key, values in last.items()} if is_dict else last[i]
                truncated = bool(truncations[i] and not terminations[i])
                rows[i] |= {"terminal_observation": seen, "TimeLimit.truncated": truncated}
        return deepcopy(observations), np.array(rewards, dtype=np.float32), dones, rows

    def close(self) -> None:
        """Close the vector environment."""
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame per environment, where the vector environment renders one."""
        frames = self.vector_env.render()
        return [None] * self.num_envs if frames is None else [np.asarray(f) for f in frames]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attribute of each environment asked for."""
        rows = self._get_indices(indices)
        if self._envs is None:
            return [getattr(self._holder(attr_name), attr_name)] * len(list(rows))
        return [self._envs[i].get_wrapper_attr(attr_name) for i in rows]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment asked for; of one that is a single object, all."""
        if self._envs is None:
            setattr(self._holder(attr_name, indices), attr_name, value)
        else:
            for i in self._get_indices(indices):
                self._envs[i].set_wrapper_attr(attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of each environment; of one that is a single object once, for all."""
        if self._envs is None:
            method = getattr(self._holder(method_name, indices), method_name)
            return [method(*method_args, **method_kwargs)] * self.num_envs
        envs = [self._envs[i] for i in self._get_indices(indices)]
        methods = [env.get_wrapper_attr(method_name) for env in envs]
        return [method(*method_args, **method_kwargs) for method in methods]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment has a wrapper; never so where the rows are one object."""
        rows, envs = self._get_indices(indices), self._envs
        return [envs is not None and is_wrapped(envs[i], wrapper_class) for i in rows]

    def _holder(self, name: str, indices: VecEnvIndices = None) -> Any:
        """The single object that has an attribute, which is asked for all rows."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"indices={indices}: {self.vector_env} answers for all its rows at once, leave "
                "indices out"
            )
        # Gymnasium's vector wrappers do not pass attributes on to what they wrap
        return self.vector_env if hasattr(self.vector_env, name) else self.vector_env.unwrapped


def _rows(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Vector infos, one array per key, as one dictionary per environment."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        column: Sequence[Any] = values
        if isinstance(values, dict):
            column = _rows(values, num_envs)
        elif isinstance(values, np.ndarray):
            column = values.tolist() if values.ndim == 1 else list(values.copy())
        mask = infos.get(f"_{key}")
        if mask is None or mask.all():
            for row, value in zip(rows, column, strict=True):
                row[key] = value
        else:
            for i in np.flatnonzero(mask).tolist():
                rows[i][key] = column[i]
    return rows
