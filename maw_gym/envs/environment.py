"""GRPOEnvironment: choosing an attention depth for one query at a time."""

from typing import Any, ClassVar, Final

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from maw_gym.attention.reference import POOLED
from maw_gym.envs.queries import checked_options, load_bandit
from maw_gym.envs.rendering import attention_frame, attention_text
from maw_gym.errors import InputError, one_of
from maw_gym.tables.depth_table import numbers_per_depth

RENDER_MODES: Final = ("rgb_array", "ansi")


class GRPOEnvironment(gym.Env[NDArray[Any], Any]):
    """
    ## Description

    A multi-attention-weight (MAW) encoder has not one attention matrix per head but D alternatives,
    called depths: a tensor of shape `(batch, heads, query tokens, key tokens, depth)`. For every
    query one depth has to be chosen. The environment shows the query's attention, takes a depth,
    and pays for how that depth attends and for how well the query, encoded through it, finds its
    relevant documents.

    It is a contextual bandit on real text: an episode is one query and one choice. The reward of
    every depth of every query is known in advance (a step is a table look-up), so that regret is
    exact and not estimated.

    ## Action Space

    `Discrete(D)`, D = 32 with the encoders of this package: the depth. Depths are ordered from
    focused (0) to broad (D - 1).

    ## Observation Space

    A `Box` of float32, made of one or more blocks set side by side in the order asked for:

    | Block       | Numbers | Min | Max | What it is                                             |
    |-------------|---------|-----|-----|--------------------------------------------------------|
    | `attention` | 64 * H | 0 | 1 | mean attention over depths, pooled, of unit length |
    | `profile` | 2 * D | 0 | 1 | entropy of every depth, then focus of every depth |
    | `retrieval` | 11 * D | -1 | 2 | what a search through every depth finds, see below |
    | `content` | h | -1 | 1 | mean of the tokens' hidden states, of unit length |

    Of `attention` the n x n real tokens of each of the H heads are pooled to 8 x 8.
    With the default, `attention` and H = 8, that is 512 numbers.

    `retrieval` looks at the rankings through the depths, and at no judgement of relevance: it is
    what a router can know that the query does not say. Of every kind there are D numbers, one for
    each depth: the highest cosine (in [-1, 1]); how far it is above the second and above the tenth
    (each in [0, 2]); mean (in [-1, 1]), standard deviation (in [0, 1]) and softmax entropy divided
    by its largest value (in [0, 1]) of the ten highest, and the same three of the fifty highest;
    the share of the first ten documents that are among the first ten of the depths' mean embedding
    (in [0, 1]); and the share of the depths whose first document is the same (in [0, 1]). Outside
    the environment it costs a search through every depth.

    ## Rewards

    `0.3 * entropy + 0.3 * focus + 0.4 * alignment`; the weights are an argument. Each is in [0, 1]:

    - entropy: Shannon entropy of each attention row over the real tokens divided by log n, mean
      over heads and rows; 0 for a text of one token.
    - focus: largest weight of each attention row, mean over heads and rows.
    - alignment: does this depth put the relevant documents first? `ndcg` is nDCG@10 of the ranking
      by cosine; `listwise` is the share of softmax(cosine / 0.05) that falls on relevant documents.

    ## Starting State

    A query of the split: drawn uniformly and independently (`query_order="random"`), or the next
    in the split's order, starting over after the last (`"sequential"`; a reset with a seed starts
    from the first). `reset(options={"query_id": "..."})` picks one and leaves the order alone.

    ## Episode End

    Every episode terminates with its first step and is never truncated. The observation returned
    by the step is the one the choice was made on. To step again without a reset is an error.

    ## Information

    `reset` returns `query`, the row of the query in `env.unwrapped.query_ids`. `step` returns
    `query`, `entropy`, `focus`, `alignment`, `regret` (the reward of the query's best depth minus
    the reward received) and `random` (the mean reward over depths, what chance gets).

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import maw_gym
    >>> env = gym.make("MAWDepth-v0", observation=("attention", "content"))  # doctest: +SKIP

    ```

    In processes that have not imported maw_gym, such as those of SubprocVecEnv, the id is
    `"maw_gym:MAWDepth-v0"`, which imports it.

    - `dataset`: an ir_datasets id, `pydocs:NAME` for installed packages, or the path of a folder in
      BEIR's layout (`"pydocs"`).
    - `encoder`: `"untrained"`, `"trained"`, or the path of an encoder's file (`"untrained"`).
    - `split`: `"encoder"`, `"train"`, `"validation"` or `"test"` (`"train"`).
    - `observation`: a block or several, see above (`"attention"`).
    - `alignment`: `"ndcg"` or `"listwise"` (`"ndcg"`).
    - `reward_weights`: of entropy, focus and alignment (`(0.3, 0.3, 0.4)`).
    - `query_order`: `"random"` or `"sequential"` (`"random"`).
    - `balance`: of the random order, exponent on the sizes of the groups that queries belong to,
      such as packages; 0 shows all groups equally often (`1.0`).
    - `device`: where the encoder runs, once (`"auto"`).
    - `render_mode`: `"rgb_array"`, `"ansi"` or None (`None`).
    - `text_encoder`: what the encoder stands on: `"wordllama"`, `"minilm"`, or the folder or hub
      name of a transformer (`"wordllama"`).
    - `table`: a `DepthTable`, which takes the place of all of these but `observation`,
      `alignment`, `reward_weights` and `query_order` (`None`).

    A setting that is unknown raises `maw_gym.errors.InputError`, a ValueError.

    ## Vectorized environment

    `gym.make_vec("MAWDepth-v0", num_envs=64, group_size=8)` gives a `GRPOVectorEnvironment`, which
    steps all sub-environments in one look-up.

    ## References

    - Shao et al., "DeepSeekMath", 2024: group relative policy optimisation, the learner it is for.
    - Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019: focus, there "confidence".
    - Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002: nDCG.

    ## Version History

    * v0: Initial version.
    """  # noqa: D212, D415 - the headings are Gymnasium's

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": list(RENDER_MODES),
        "render_fps": 1,
    }

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        if render_mode is not None:
            one_of("render_mode", render_mode, RENDER_MODES)
        self.bandit, self._order, self._task = load_bandit(**settings)
        self.render_mode = render_mode
        self.observation_space = self.bandit.observation_space
        self.action_space = self.bandit.action_space
        self.numbers_per_action = numbers_per_depth(self.bandit.blocks)  # observed ones
        self.query_ids = self.bandit.query_ids  # of all queries, (N,) strings
        self._query: int | None = None  # the row that is shown
        self._depth: int | None = None  # the depth that was chosen for it

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Show a query.

        Args:
            seed: seeds the random order and restarts the sequential one.
            options: ``{"query_id": id}`` shows that query.

        Returns:
            The observation (O,) float32, and ``{"query": row}``.

        Raises:
            InputError: an unknown option or query.
        """
        asked = checked_options(options, ("query_id",)).get("query_id")
        query = None if asked is None else self.bandit.query_index(asked)
        super().reset(seed=seed)
        if seed is not None:
            self._order.position = 0
        if query is None:
            query = int(self._order.take(1, self.np_random)[0])
        self._query, self._depth = query, None
        return self.bandit.observations[query].copy(), {"query": query}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Choose the depth `action` for the query shown, which ends the episode.

        Returns:
            The observation the choice was made on, the reward, True, False, and the information
            that the class documents.

        Raises:
            InputError: `action` is not an integer in [0, D).
            gymnasium.error.ResetNeeded: no query is shown.
        """
        if self._query is None or self._depth is not None:
            raise ResetNeeded("an episode is one step long: call reset() before each step()")
        query = self._query
        # Of its three terms the reward is w0 * entropy + w1 * focus + w2 * alignment: see
        # `maw_gym.envs.bandit.RewardSpec.blend`, which was applied to every depth in advance.
        outcome = self.bandit.outcome(query, action)
        self._depth = int(action)
        info = {"query": query, **outcome._asdict()}
        return self.bandit.observations[query].copy(), info.pop("reward"), True, False, info

    def render(self) -> Any:
        """The chosen depth's attention and reward terms; before the step, what is observed.

        Returns:
            (600, 1100, 3) uint8 for ``"rgb_array"``, a str for ``"ansi"``, None without a render
            mode.

        Raises:
            gymnasium.error.ResetNeeded: no query is shown.
            InputError: the environment was made from a table alone, which has no texts.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "render() draws nothing without a render mode: give one when making the"
                ' environment, such as gym.make("MAWDepth-v0", render_mode="rgb_array")'
            )
            return None
        if self._query is None:
            raise ResetNeeded("there is no query to draw yet: call reset() before render()")
        draw = attention_text if self.render_mode == "ansi" else attention_frame
        bandit, query_id = self.bandit, self.bandit.query_ids[self._query]
        if self._depth is None:
            pooled = bandit.table.block("attention")[self._query].reshape(-1, POOLED, POOLED)
            return draw(query_id, pooled)
        if self._task is None:
            raise InputError(
                "an environment made from a table has no texts to draw; make it from a dataset"
            )
        weights, tokens = self._task().attention(query_id, self._depth)
        outcome = bandit.outcome(self._query, self._depth)
        return draw(query_id, weights, tokens, self._depth, bandit.num_depths, outcome)
