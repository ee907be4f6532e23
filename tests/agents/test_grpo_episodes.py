"""Episodes of several steps, and other actions than Discrete ones, by hand and learned."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numpy.testing import assert_allclose
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from maw_gym.agents.grpo import GRPO, Groups, make_groups
from maw_gym.agents.grpo.buffers import GRPODictRolloutBuffer, GRPORolloutBuffer, episodes_of
from maw_gym.agents.sb3.vec_env import to_sb3

BOX = spaces.Box(0.0, 1.0, (1,), np.float32)
# Two environments in a group: episodes of 2, 1 and 1 steps, and of 1, 2 and, unfinished, 1
STARTS = np.array([[1, 1], [0, 1], [1, 0], [1, 1]], bool)
DONES = np.array([True, False])
REWARDS = np.array([[1.0, 4.0], [2.0, 0.0], [3.0, 2.0], [9.0, 9.0]])


def advantages(kind: str, rewards: np.ndarray = REWARDS, **settings: Any) -> GRPORolloutBuffer:
    settings = {"gamma": 0.5, "starts": STARTS, "dones": DONES} | settings
    starts, dones = settings.pop("starts"), settings.pop("dones")
    steps, envs = rewards.shape
    shown = settings.pop("shown", np.zeros((steps, envs, 1)))
    space = settings.pop("space", BOX)
    kind_of = GRPODictRolloutBuffer if isinstance(space, spaces.Dict) else GRPORolloutBuffer
    buffer = kind_of(
        steps, space, spaces.Discrete(2), "cpu", n_envs=envs, advantage=kind, **settings
    )
    for step in range(steps):
        zeros = th.zeros(envs)
        seen = {k: x[step] for k, x in shown.items()} if isinstance(shown, dict) else shown[step]
        buffer.add(seen, np.zeros(envs), rewards[step], starts[step], zeros, zeros)
    buffer.compute_returns_and_advantage(th.zeros(envs), dones)
    return buffer


def test_episodes_that_count() -> None:
    # the third of the second environment has not ended, so that of the first does not count either
    used = episodes_of(STARTS, DONES, 2).used
    assert used.T.tolist() == [[True, True, True, False]] * 2
    # first episodes that the rollout cuts count; the fourth environment's second has no partner
    starts = np.array([[1, 1, 1, 1], [0, 0, 0, 1]], bool)
    used = episodes_of(starts, np.array([False, False, True, True]), 2).used
    assert used.T.tolist() == [[True, True], [True, True], [True, True], [True, False]]


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        # Returns 1 + 2/2 = 2 and 4, then 3 and 0 + 2/2 = 1: means 3 and 2, deviations 1
        ("outcome", {}, [[-1, -1, 1], [1, -1, -1]]),
        ("group_mean", {"rewards": 3 * REWARDS}, [[-3, -3, 3], [3, -3, -3]]),
        # Four episodes that count, of 6 steps: a step of an episode of n counts 6 / 4 / n
        ("outcome", {"loss_average": "episode"}, [[-0.75, -0.75, 1.5], [1.5, -0.75, -0.75]]),
        # First episodes: rewards (1, 2) and (4, 0), less their means (2.5, 1): -1.5 and 1.5, 1 and
        # -1. From each step on, the later at half: -1.5 + .5 = -1, and 1. Root mean square 1.
        # Second: (3, 0) and (0, 2): 1.5 and -1.5, -1 and 1: 1.5 - .5 = 1, and -1; 1.
        ("process", {}, [[-1, 1, 1], [1, -1, 1]]),
        # All states are equal. What follows the steps: 2, 2 and 3; 4, 1 and 2. Less the mean of
        # other episodes' steps, 5/2, 5/2 and 11/5; 2, 11/4 and 11/4; root mean square 1.20865.
        (
            "state",
            {"gae_lambda": 1.0},
            [
                [-0.5 / 1.20865, -0.5 / 1.20865, 0.8 / 1.20865],
                [2 / 1.20865, -1.75 / 1.20865, -0.75 / 1.20865],
            ],
        ),
    ],
)
def test_advantages_by_hand(kind: str, settings: Any, expected: list[list[float]]) -> None:
    buffer = advantages(kind, **settings, group_size=2)
    assert_allclose(buffer.advantages[:3].T, expected, atol=1e-4 if kind == "state" else 1e-6)
    assert_allclose(buffer.rollout.advantages, np.ravel(buffer.advantages[:3]))
    assert (buffer.zero_std_groups, buffer.in_step) == (0.0, False)


def test_the_critics_advantages_are_generalised_and_normalised() -> None:
    one = np.array([[1.0], [2.0]])
    starts, dones = np.array([[1], [0]], bool), np.array([True])
    settings = {"starts": starts, "dones": dones, "gae_lambda": 0.5}
    buffer = advantages("critic", one, **settings, normalize_advantage=False)
    # Values 0: 1 + .5 * .5 * 2, and 2
    assert buffer.rollout.advantages.tolist() == [1.5, 2.0]
    buffer = advantages("critic", one, **settings)
    assert buffer.advantages[:, 0].tolist() == [1.5, 2.0]  # what PPO's callbacks find there
    assert_allclose(buffer.rollout.advantages, [-1, 1], atol=1e-6)


def test_starts_of_the_third_and_the_second_episode_may_differ() -> None:
    starts, shown = np.array([[1, 1], [1, 0], [1, 1]], bool), np.zeros((3, 2, 1))
    shown[2, 1] = 1.0
    buffer = advantages("process", REWARDS[:3], starts=starts, shown=shown, group_size=2)
    assert buffer.used is not None
    shown[0, 1] = 1.0
    with pytest.raises(ValueError, match="environments 0 to 1 differ at step 0 of the rollout"):
        advantages("process", REWARDS[:3], starts=starts, shown=shown, group_size=2)


def test_advantages_of_states_are_generalised() -> None:
    starts, dones = np.array([[1, 1], [0, 0]], bool), np.ones(2, bool)
    shown = np.array([[[0.0], [0.0]], [[1.0], [0.2]]])
    rewards = np.array([[0.0, 0.0], [4.0, 2.0]])
    # A second group, which is not compared with the first: the same times .07
    twice = {"shown": np.hstack([shown, shown]), "starts": np.hstack([starts, starts])}
    settings = {"dones": np.ones(4, bool), "group_size": 2, "gae_lambda": 0.5}
    buffer = advantages("state", np.hstack([rewards, 0.07 * rewards]), **settings, **twice)
    # What follows: 2 and 4, 1 and 2. Values: of 0 the other's 0, of 1 that of .2, of .2 that of 0.
    values = np.array([[1.0, 2.0], [2.0, 2.0]])
    # The later: 4 - 2 and 2 - 2. Before: (1 - 1) + 2 / 4 and (1 - 2) + 0 / 4.
    expected = np.array([[0.5, -1.0], [2.0, 0.0]])
    assert_allclose(buffer.values, np.hstack([values, 0.07 * values]), rtol=1e-5)
    assert_allclose(buffer.returns[:, :2], values + expected)
    scaled = expected / np.sqrt(np.mean(expected**2))
    assert_allclose(buffer.advantages, np.hstack([scaled, scaled]), atol=1e-4)
    assert (buffer.summary()["zero_std_groups"], buffer.summary()["used_steps"]) == (0, 1)
    # 1 - variance of the advantages over that of the returns
    one = advantages("state", rewards, **settings | {"dones": dones}, shown=shown, starts=starts)
    explained = 1 - np.var(expected) / np.var(expected + values)
    assert one.summary()["explained_variance"] == pytest.approx(explained)
    single = advantages("state", rewards[:1], **settings | {"dones": dones}, starts=starts[:1])
    assert set(single.summary()) == {"zero_std_groups"}


def test_the_value_of_a_start_is_the_mean_of_the_others_that_start_there() -> None:
    starts = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1]], bool)  # the second of the first is longer
    shown = np.array([[0.0] * 3, [0.3] * 3, [0.9, 0.6, 0.6]])[..., None]
    rewards = np.array([[1.0, 2, 6], [4, 4, 10], [8, 0, 0]])
    buffer = advantages("state", rewards, starts=starts, shown=shown, dones=np.ones(3, bool),
                        group_size=3)  # fmt: skip
    # The second of the first is worth 4 + 8 / 2. The last steps of the others have no third partner
    assert buffer.values[:2].tolist() == [[4, 3.5, 1.5], [7, 9, 6]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.Dict({"a": spaces.Box(0, 1, (1,)), "b": spaces.Discrete(3)}),
        spaces.Box(0, 255, (1, 3), np.uint8),
    ],
    ids=["category", "both", "one-hot"],
)
def test_states_of_categories_are_one_hot(space: spaces.Space[Any]) -> None:
    """0 1 in one episode, 0 2 in the other: 2 is as far from 0 as from 1."""
    starts, category = np.array([[1, 1], [0, 0]], bool), np.array([[0, 0], [1, 2]])
    shown: Any = category
    if isinstance(space, spaces.Dict):
        shown = {"a": np.zeros((2, 2, 1)), "b": category}
    elif isinstance(space, spaces.Box):
        shown = 255 * np.eye(3, dtype=np.uint8)[category][:, :, None]
    rewards = np.array([[0.0, 0], [4, 2]])
    buffer = advantages("state", rewards, starts=starts, shown=shown, dones=np.ones(2, bool),
                        group_size=2, space=space)  # fmt: skip
    # By deviations 0 is nearer to both than they are to each other
    assert_allclose(buffer.values, [[1, 2], [1, 2]])


@pytest.mark.parametrize("strange", [np.inf, np.nan])
def test_observations_that_are_not_finite_are_refused(strange: float) -> None:
    starts, shown = np.array([[1, 1], [0, 0]], bool), np.zeros((2, 2, 1))
    shown[1, 1] = strange
    with pytest.raises(FloatingPointError, match=f"has a number that is {strange}"):
        advantages("state", REWARDS[:2], starts=starts, shown=shown, group_size=2)


def test_episodes_as_good_as_each_other_teach_nothing_whatever_they_saw() -> None:
    starts = np.arange(5)[:, None].repeat(4, axis=1) == 0
    shown = np.random.default_rng(0).random((5, 4, 1))
    shown[0] = 0.5
    rewards = np.full((5, 4), 0.1)
    rewards[3, 3] = 0.7
    buffer = advantages("state", rewards, starts=starts, shown=shown, dones=np.ones(4, bool),
                        group_size=2, gamma=0.99)  # fmt: skip
    assert (buffer.advantages[:, :2] == 0).all()
    assert (buffer.advantages[:, 2:] != 0).any()
    assert buffer.zero_std_groups == 0.5


def test_states_of_rewards_that_float32_does_not_have_are_not_noise() -> None:
    starts, shown = np.array([[1, 1], [0, 0], [1, 1], [0, 0]], bool), np.zeros((4, 2, 1))
    shown[1::2] = 1
    rewards = np.array([[0.1, 0.1], [0.7, 0.7], [0.1, 0.1], [0.7, 0.7 + 6e-8]])
    buffer = advantages("state", rewards, starts=starts, shown=shown, dones=np.ones(2, bool),
                        group_size=2, gamma=0.99)  # fmt: skip
    assert np.abs(buffer.advantages).max() < 0.1


@pytest.mark.parametrize("kind", ["outcome", "process", "state"])
def test_equal_groups_are_counted(kind: str) -> None:
    starts, rewards = np.array([[1] * 4, [0] * 4], bool), np.array([[1.0, 1, 0, 1], [2, 2, 1, 1]])
    buffer = advantages(kind, rewards, starts=starts, dones=np.ones(4, bool), group_size=2)
    assert (buffer.zero_std_groups, buffer.in_step) == (0.5, True)


class Walk(gym.Env[np.ndarray, Any]):
    """Steps of random size up to a random goal: the reward is the action asked for."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, action_space: Any = None, length: int = 3, render_mode: Any = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space, self.length = action_space or spaces.Discrete(2), length

    def _look(self) -> np.ndarray:
        self.side = 1.0 if self.np_random.random() < 0.5 else -1.0
        return np.array([self.side, self.np_random.uniform(-1, 1)], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if isinstance(self.action_space, spaces.Box):
            reward = 1 - float(np.mean((action - 0.5 * self.side) ** 2))
        else:
            reward = float(np.mean(np.asarray(action) == (self.side > 0)))
        # ends by chance, too
        ended = self.steps >= self.length or self.np_random.random() < 0.2
        return self._look(), reward, ended, False, {}


def test_members_of_a_group_start_alike_in_every_episode() -> None:
    env = make_groups(Walk, 4, 2, seed=3)
    shown = [env.reset()] + [env.step(np.arange(4) % 2)[0] for _ in range(12)]
    seen = np.array(shown)
    # the environments draw as often as each other here: all alike inside, different outside
    assert (seen[:, 0] == seen[:, 1]).all()
    assert (seen[:, 2] == seen[:, 3]).all()
    assert (seen[:, 0] != seen[:, 2]).any()
    assert len(np.unique(seen[:, 0, 1])) > 4
    # the same seed, the same starts; another reset, others
    again = make_groups(make_vec_env(Walk, 4), group_size=2, seed=3)
    assert np.array_equal(again.reset(), shown[0])
    assert not np.array_equal(again.reset(), shown[0])
    assert again.get_attr("group_size") == [2] * 4


def test_groups_of_any_environment() -> None:
    processes = make_groups(
        Walk, 2, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}
    )
    assert np.array_equal(*processes.reset())
    processes.close()
    wrapped = make_groups(VecNormalize(make_vec_env(Walk, 4)), group_size=2)
    assert isinstance(wrapped, VecNormalize)
    assert isinstance(wrapped.venv, Groups)
    GRPO("MlpPolicy", wrapped, n_steps=16, device="cpu").learn(64)
    # any VecEnv of single environments is put in groups where only their size is said
    model = GRPO("MlpPolicy", make_vec_env(Walk, 4), group_size=2, n_steps=16, device="cpu")
    assert model.learn(128).rollout_buffer.used is not None
    mode = gym.vector.AutoresetMode.SAME_STEP
    adapted = to_sb3(gym.vector.SyncVectorEnv([Walk] * 2, autoreset_mode=mode))
    with pytest.raises(ValueError, match="does not reset its rows one by one"):
        make_groups(adapted)


@pytest.mark.parametrize("group_size", [1, 3, 2.0, True])
def test_groups_that_cannot_be(group_size: Any) -> None:
    with pytest.raises(ValueError, match=f"group_size={group_size}: "):
        make_groups(Walk, 4, group_size)


def test_a_vector_environment_goes_through_to_sb3() -> None:
    env = gym.vector.SyncVectorEnv([Walk] * 2)
    with pytest.raises(ValueError, match=r"give GRPO maw_gym\.agents\.sb3\.vec_env\.to_sb3"):
        GRPO("MlpPolicy", env)  # type: ignore[arg-type]
    for other in (Walk(), make_vec_env(Walk, 2)):
        with pytest.raises(ValueError, match="to_sb3 takes a vector environment of Gymnasium"):
            to_sb3(other)  # type: ignore[arg-type]


ACTIONS = [
    spaces.Discrete(2),
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.MultiDiscrete([2, 2]),
    spaces.MultiBinary(2),
]


@pytest.mark.parametrize(
    ("space", "advantage"),
    [
        *((space, "process") for space in ACTIONS),
        (ACTIONS[0], "state"),
        (ACTIONS[1], "state"),
        *((space, "critic") for space in ACTIONS[1:]),
    ],
)
def test_learns_with_any_action(space: spaces.Space[Any], advantage: str) -> None:
    env = make_groups(lambda: Walk(space), 16, 8)
    settings = {"n_steps": 32, "learning_rate": 3e-3, "batch_size": 128, "seed": 0}
    model = GRPO("MlpPolicy", env, advantage=advantage, device="cpu", **settings)
    alone = make_vec_env(lambda: Walk(space, 1), 1, seed=0)
    before = evaluate_policy(model, alone, 100)[0]
    after = evaluate_policy(model.learn(8 * 512), alone, 100)[0]
    assert after > before + 0.15 or after > 0.95
    assert after > 0.75


@pytest.mark.parametrize("space", ACTIONS[1:], ids=lambda space: type(space).__name__)
def test_kl_and_entropy_of_other_actions(space: spaces.Space[Any]) -> None:
    """A reference that differs in one number, against torch's distributions written out."""
    model = GRPO("MlpPolicy", Walk(space), advantage="critic", n_steps=8, batch_size=None,
                 n_epochs=1, learning_rate=1e-9, seed=0, device="cpu")  # fmt: skip
    with th.no_grad():
        for policy, shift in ((model.policy, 0.0), (model.reference_policy, 0.5)):
            policy.action_net.weight.zero_()
            policy.action_net.bias.zero_()
            policy.action_net.bias[0] = shift
    model.learn(8)
    logged = model.logger.name_to_value
    # Normals of deviation 1, half apart: 1/8. Two categories, one at logit 1/2: ln cosh(1/4);
    # so is one of two bits, which is a category with logits 1/2 and 0.
    expected = 0.125 if isinstance(space, spaces.Box) else np.log(np.cosh(0.25))
    assert logged["train/kl_reference"] == pytest.approx(expected, abs=1e-5)
    entropy = np.log(2 * np.pi * np.e) if isinstance(space, spaces.Box) else 2 * np.log(2)
    assert logged["policy/entropy"] == pytest.approx(entropy, abs=1e-5)
    assert logged.get("train/std", 1) == pytest.approx(1)
    assert ("train/std" in logged) == isinstance(space, spaces.Box)


@pytest.mark.parametrize("squash", [False, True])
def test_state_dependent_exploration_learns_and_goes_on(squash: bool, tmp_path: Path) -> None:
    env = make_groups(lambda: Walk(ACTIONS[1]), 16, 8)
    settings = {"n_steps": 32, "learning_rate": 3e-3, "batch_size": 128, "seed": 0}
    model = GRPO("MlpPolicy", env, use_sde=True, sde_sample_freq=4, device="cpu", **settings,
                 policy_kwargs={"squash_output": squash, "log_std_init": -2.0})  # fmt: skip
    alone = make_vec_env(lambda: Walk(ACTIONS[1], 1), 1, seed=0)
    assert evaluate_policy(model.learn(16 * 512), alone, 100)[0] > 0.95
    assert 0 < model.logger.name_to_value["train/kl_reference"] < 10
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model", env=env, device="cpu")
    for name in ("policy", "reference_policy"):
        pairs = (getattr(each, name).state_dict().values() for each in (model, loaded))
        assert all(th.equal(*pair) for pair in zip(*pairs, strict=True))
    assert loaded.learn(512)


def test_a_time_limit_ends_an_episode_without_a_value_of_what_follows(tmp_path: Path) -> None:
    def limited() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(Walk(length=99), 1)

    model = GRPO("MlpPolicy", make_vec_env(limited, 4), group_size=2, n_steps=2, device="cpu")
    with th.no_grad():
        model.policy.value_net.bias.fill_(100.0)  # would show in a bootstrapped reward
    model.learn(8, CheckpointCallback(1, str(tmp_path)))
    assert set(np.unique(model.rollout_buffer.returns)) <= {0.0, 1.0}
    assert model.policy.predict_values(th.zeros(4, 2)).shape == (4, 1)
    # What a callback saves within a rollout has the settings that were given
    assert GRPO.load(tmp_path / "rl_model_4_steps", device="cpu").gamma == 0.99


def test_rollouts_begin_in_step_and_are_as_long_as_an_episode() -> None:
    gym.register("Walk-v0", entry_point=Walk, max_episode_steps=300)
    try:
        model = GRPO("MlpPolicy", make_groups("Walk-v0", 4, 2), batch_size=None, device="cpu")
        assert (model.n_steps, model.advantage) == (300, "state")
        model.learn(3 * 1200)
        assert model.rollout_buffer.episode_starts[0].all()
        assert 0.9 < model.logger.name_to_value["train/used_steps"] <= 1
    finally:
        del gym.registry["Walk-v0"]
