"""GRPOVectorEnvironment: choosing attention depths for a batch of queries in one look-up."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from maw_gym.envs.queries import checked_options, load_bandit
from maw_gym.errors import InputError, checked_int
from maw_gym.tables.depth_table import numbers_per_depth

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

MODES: Final = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
MASKS: Final = ("_query", "_entropy", "_focus", "_alignment", "_regret", "_random")
MOST_ENVS: Final = 2**20


class GRPOVectorEnvironment(VectorEnv[Floats, NDArray[np.int64], NDArray[Any]]):
    """`GRPOEnvironment` many times over: same observations, actions, rewards and information.

    Autoreset is SAME_STEP: as each step ends every episode, each step also shows the next queries.
    `step` returns the observations of the next episodes, and the infos hold

    - `query`: (num_envs,) int64, the rows of the next episodes' queries in `query_ids`;
    - `final_obs`: (num_envs, O), the finished episodes' observations, the very array that was
      returned before;
    - `final_info`: `query`, `entropy`, `focus`, `alignment`, `regret` and `random` of the finished
      episodes;

    each with the mask `_<name>` beside it that Gymnasium's vector environments have, all True. All
    are arrays of numbers and are never written to again. With autoreset DISABLED, which Gymnasium's
    wrappers of vector observations want, a step returns the observations that were chosen on, the
    infos are what `final_info` holds, and a reset, whole or by mask, has to come before the next
    step.

    One generator serves the batch. In sequential order neighbouring sub-environments (with groups,
    neighbouring groups) take neighbouring queries, and each step goes on where the last one ended.

    Args:
        num_envs: number of sub-environments.
        group_size: so many neighbouring sub-environments share each query, as group-relative
            advantages need it; a divisor of `num_envs`.
        render_mode: None; frames are drawn by `GRPOEnvironment`.
        autoreset_mode: SAME_STEP or DISABLED, also by its value.
        **settings: all others of `GRPOEnvironment`.

    Raises:
        InputError: a setting is unknown or out of its range, or `group_size` does not divide
            `num_envs`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - each environment has one, with its mode
        "render_modes": [],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        group_size: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **settings: Any,
    ) -> None:
        self.num_envs = checked_int(num_envs, "num_envs", 1, MOST_ENVS)
        self.group_size = checked_int(group_size, "group_size", 1, MOST_ENVS)
        if num_envs % group_size:
            raise InputError(
                f"group_size must divide num_envs; {group_size} does not divide {num_envs}"
            )
        if render_mode is not None:
            raise InputError(
                f"the batched form draws no frames, got render_mode {render_mode!r}; add"
                ' vectorization_mode="sync", or use gym.make("MAWDepth-v0", render_mode=...)'
            )
        self.render_mode = None
        mode = next((one for one in MODES if autoreset_mode in (one, one.value)), None)
        if mode is None:
            raise InputError(
                f"autoreset_mode must be {' or '.join(map(str, MODES))}, got {autoreset_mode!r}:"
                " every second step of these one-step episodes would be a mere reset"
            )
        self.autoreset_mode = mode  # where Gymnasium's other vector environments have it
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self.bandit, self._order, _ = load_bandit(**settings)
        self.single_observation_space = self.bandit.observation_space
        self.single_action_space = self.bandit.action_space
        self.numbers_per_action = numbers_per_depth(self.bandit.blocks)  # observed ones
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._queries: Rows | None = None  # (num_envs,) rows shown
        self._observations: Floats | None = None  # theirs, as returned
        self._finished = np.zeros(num_envs, np.bool_)  # episodes that a reset has to follow
        self.query_ids = self.bandit.query_ids  # (N,) strings: of infos["query"] is query_ids[...]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Show new queries.

        Args:
            seed: one integer; seeds the random order and restarts the sequential one.
            options: ``"query_id"``, one id or one for each sub-environment, shows these queries;
                ``"reset_mask"``, (num_envs,) bool, resets only where it is True.

        Returns:
            The observations (num_envs, O) float32, and ``query`` with its mask ``_query``.

        Raises:
            InputError: an unknown option or query, a list of seeds, or a mask or list of queries
                that does not fit the groups.
        """
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise InputError(f"seed must be one integer for the whole batch; got {seed!r}")
        given = checked_options(options, ("query_id", "reset_mask"))
        mask = self._checked_mask(given.get("reset_mask"))
        chosen = self._checked_queries(given.get("query_id"))
        if self._queries is None and not mask.all():
            raise ResetNeeded("the first reset must be of all sub-environments")
        # From here on nothing is refused, so that a mistake leaves everything as it was.
        super().reset(seed=None if seed is None else int(seed))
        if seed is not None:
            self._order.position = 0
        queries = np.zeros_like(mask, np.int64) if self._queries is None else self._queries.copy()
        if chosen is None:
            queries[mask] = self._order.take(int(mask.sum()), self.np_random, self.group_size)
        else:
            queries[mask] = chosen[mask]
        self._finished = self._finished & ~mask
        self._queries, self._observations = queries, self._observed(queries)
        # Rows that were not reset are -1, as nothing is said of them.
        return self._observations, {"query": np.where(mask, queries, -1), "_query": mask}

    def step(
        self, actions: Rows
    ) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Choose a depth for each query shown, which ends all episodes.

        Args:
            actions: (num_envs,) integers in [0, D).

        Returns:
            The next observations (num_envs, O) float32 (with autoreset DISABLED those chosen on),
            the rewards (num_envs,) float64, all True, all False, and infos as the class says.

        Raises:
            InputError: `actions` has another shape or type, or a number out of range.
            gymnasium.error.ResetNeeded: before the first reset, or with autoreset DISABLED before
                finished episodes were reset.
        """
        queries, observations = self._queries, self._observations
        if queries is None:
            raise ResetNeeded("no query is shown yet: call reset() before step()")
        if self.autoreset_mode is AutoresetMode.DISABLED and (ended := int(self._finished.sum())):
            raise ResetNeeded(
                f"{ended} of {self.num_envs} episodes have ended, and autoreset is disabled: call"
                " reset() before each step()"
            )
        # Of its three terms the reward is w0 * entropy + w1 * focus + w2 * alignment: see
        # `maw_gym.envs.bandit.RewardSpec.blend`, which was applied to every depth in advance.
        outcome = self.bandit.outcome_of(queries, actions)
        if observations is None:  # the state was set
            observations = self._observed(queries)
        terminated, truncated, mask = np.ones((3, self.num_envs), np.bool_)
        truncated[:] = False
        info = {"query": queries, **outcome._asdict(), **dict.fromkeys(MASKS, mask)}
        reward = info.pop("reward")
        if self.autoreset_mode is AutoresetMode.DISABLED:
            self._finished = np.ones(self.num_envs, np.bool_)
            self._queries = queries.copy()
            return observations.copy(), reward, terminated, truncated, info
        following = self._order.take(self.num_envs, self.np_random, self.group_size)
        self._queries, self._observations = following, self._observed(following)
        infos = {"query": following.copy(), "final_obs": observations, "final_info": info}
        infos |= dict.fromkeys(("_query", "_final_obs", "_final_info"), mask)
        return self._observations, reward, terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Where the environment stands, as JSON values: what is shown, and what will be drawn."""
        return {
            "queries": None if self._queries is None else self._queries.tolist(),
            "finished": self._finished.tolist(),
            "position": self._order.position,
            "generator": self.np_random.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where an environment of equal settings stood.

        Raises:
            InputError: the state is not one of `get_state`, before or after it was written as JSON.
        """
        generator = type(self.np_random.bit_generator)()
        try:
            generator.state, position = state["generator"], operator.index(state["position"])
            finished = np.array(state["finished"], np.bool_)
            shown = state["queries"] is not None
            queries = np.array(state["queries"] if shown else 0 * finished, np.int64)
            if not finished.shape == queries.shape == (self.num_envs,):
                raise ValueError(f"it is of {finished.size} rows, not of {self.num_envs}")
            self.bandit.query_ids[queries]
            if min(position, *queries) < 0:
                raise ValueError("a row or the position is below 0")
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"the state is not one that get_state() has given: {error}") from None
        self._queries, self._observations = queries if shown else None, None
        self._finished, self._order.position = finished, position
        self.np_random.bit_generator.state = generator.state

    def _observed(self, queries: Rows) -> Floats:
        """Observations (B, O) of queries (B,) that all exist: "clip" spares their check."""
        return self.bandit.observations.take(queries, axis=0, mode="clip")

    def _checked_queries(self, asked: Any) -> Rows | None:
        if asked is None:
            return None
        names = [asked] * self.num_envs if isinstance(asked, str) else asked
        names = list(names) if isinstance(names, Iterable) else [names]
        if len(names) != self.num_envs:
            raise InputError(
                f"options['query_id'] must be one id or {self.num_envs}, one for each"
                f" sub-environment; got {len(names)}"
            )
        rows = np.array([self.bandit.query_index(name) for name in names], np.int64)
        return self._alike_in_groups("query_id", rows)

    def _checked_mask(self, asked: Any) -> NDArray[np.bool_]:
        mask = np.ones(self.num_envs, np.bool_) if asked is None else np.array(asked)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise InputError(
                f"options['reset_mask'] must be {self.num_envs} bools, at least one of them True;"
                f" got shape {mask.shape} and type {mask.dtype}"
            )
        return self._alike_in_groups("reset_mask", mask)

    def _alike_in_groups(self, option: str, values: NDArray[Any]) -> NDArray[Any]:
        groups = values.reshape(-1, self.group_size)
        if (groups != groups[:, :1]).any():
            raise InputError(
                f"options[{option!r}] must be the same within each group of {self.group_size}"
                " neighbouring sub-environments"
            )
        return values
