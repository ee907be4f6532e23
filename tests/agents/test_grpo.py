from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from bandits import CONTEXTS, BanditEnv, GroupedBanditEnv
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor

from agents.grpo import GRPO, GRPOPolicyNetwork
from agents.sb3.vec_env import to_sb3

SMALL = {"features_extractor_kwargs": {"widths": (32,)}, "net_arch": [16]}
GROUPED = ["group", "group_mean"]


def grouped(num_envs: int = 16, group_size: int = 4, cycle: bool = False) -> VecMonitor:
    return to_sb3(GroupedBanditEnv(num_envs, group_size, cycle))


def small(env: Any = None, **settings: Any) -> GRPO:
    ordinary = {"policy_kwargs": SMALL, "advantage": "critic", "group_size": 4, "n_steps": 4}
    settings = ordinary | {"seed": 0} | settings
    return GRPO("MlpPolicy", grouped() if env is None else env, device="cpu", **settings)


def weights(policy: ActorCriticPolicy) -> np.ndarray:
    return th.nn.utils.parameters_to_vector(policy.parameters()).detach().numpy().copy()


@pytest.mark.parametrize("advantage", ["critic", "group", "group_mean"])
@pytest.mark.parametrize("ratio", ["reference", "old"])
def test_solves_the_bandit(advantage: str, ratio: str) -> None:
    env = grouped(64, 8)
    model = GRPO(
        "MlpPolicy", env, advantage=advantage, ratio=ratio, seed=0, device="cpu", learning_rate=3e-3
    )
    model.learn(40 * 512)
    mean, std = evaluate_policy(model, make_vec_env(BanditEnv, 1, seed=1), n_eval_episodes=40)
    assert (mean, std) == (1.0, 0.0)
    # and it is nearly sure of it
    best = model.policy.get_distribution(th.eye(CONTEXTS)).distribution.probs.diagonal()
    assert best.min().item() > 0.95


@pytest.mark.parametrize(
    "settings",
    [
        {"advantage": "group", "ratio": "old", "clip_range": 0.2, "clip_range_high": 0.28}
        | {"n_epochs": 4, "batch_size": 128, "kl": "k3"},
        {"kl": "k1", "advantage": "critic", "ent_coef": 0.01},
        {"kl": "k2", "advantage": "group_mean"},
    ],
)
def test_solves_the_bandit_with_further_options(settings: dict[str, Any]) -> None:
    model = GRPO("MlpPolicy", grouped(64, 8), learning_rate=3e-3, seed=0, device="cpu", **settings)
    model.learn(40 * 512)
    actions, _ = model.predict(np.eye(CONTEXTS, dtype=np.float32), deterministic=True)
    assert actions.tolist() == [0, 1, 2, 3]


def test_critic_learns_the_value_and_groups_leave_it_alone() -> None:
    model = small()
    before = weights(model.policy.value_net)
    model.learn(64)
    assert not np.array_equal(weights(model.policy.value_net), before)
    model = small(advantage="group")
    before = weights(model.policy.value_net)
    model.learn(64)
    assert np.array_equal(weights(model.policy.value_net), before)


def test_same_seed_same_weights() -> None:
    first, second, other = (
        weights(small(seed=seed, batch_size=24, n_epochs=2).learn(320).policy) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_reference_is_renewed_every_interval() -> None:
    model = small(reference_interval=3)
    assert np.array_equal(weights(model.reference_policy), weights(model.policy))  # a copy
    initial = weights(model.policy)
    for rollout in range(1, 7):
        model.learn(64, reset_num_timesteps=False)
        reference, policy = weights(model.reference_policy), weights(model.policy)
        assert np.array_equal(reference, policy) == (rollout in (3, 6))
        assert np.array_equal(reference, initial) == (rollout < 3)
    assert not any(p.requires_grad for p in model.reference_policy.parameters())


def test_reference_may_stay_for_ever() -> None:
    model = small(reference_interval=None)
    initial = weights(model.policy)
    model.learn(640)
    assert np.array_equal(weights(model.reference_policy), initial)


def test_reference_of_every_rollout_is_the_old_policy() -> None:
    renewed = small(ratio="reference", reference_interval=1, n_epochs=3, seed=5).learn(64)
    old = small(ratio="old", reference_interval=1, n_epochs=3, seed=5).learn(64)
    np.testing.assert_allclose(weights(renewed.policy), weights(old.policy), atol=1e-5)


def test_a_scalar_environment_needs_no_groups() -> None:
    model = GRPO(
        "MlpPolicy",
        make_vec_env(BanditEnv, 16, seed=0),
        advantage="critic",
        seed=0,
        device="cpu",
        learning_rate=3e-3,
    )
    model.learn(60 * 128)
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=40)[0] == 1.0
    alone = GRPO("MlpPolicy", BanditEnv(), advantage="critic", device="cpu")
    assert alone.learn(16).num_timesteps == 16


@pytest.mark.parametrize("advantage", GROUPED)
def test_groups_of_differing_observations_are_refused(advantage: str) -> None:
    model = small(make_vec_env(BanditEnv, 8, seed=0), advantage=advantage)
    with pytest.raises(ValueError, match=r"environments 0 to 3 differ at step 0 of the rollout"):
        model.learn(32)
    # groups of the environment that straddle those of the learner
    model = small(grouped(12, 3), advantage=advantage)
    with pytest.raises(ValueError, match="differ at step"):
        model.learn(32)
    # smaller groups inside the environment's are right
    assert small(grouped(16, 8), advantage=advantage).learn(32).num_timesteps == 64


@pytest.mark.parametrize("advantage", ["critic", *GROUPED])
def test_longer_episodes_are_refused(advantage: str) -> None:
    env = make_vec_env(BanditEnv, 4, seed=0, env_kwargs={"length": 2})
    model = small(env, advantage=advantage)
    with pytest.raises(ValueError, match="environment 0 did not end its episode at step 0"):
        model.learn(16)
    # also where only the rollout's last step says so
    model = small(env, advantage=advantage, n_steps=1)
    with pytest.raises(ValueError, match="episodes of one step"):
        model.learn(4)


def test_a_truncated_episode_counts_its_reward_only() -> None:
    def truncated() -> gym.Env:
        return gym.wrappers.TimeLimit(BanditEnv(length=9), 1)

    model = small(make_vec_env(truncated, 4), n_steps=2)
    with th.no_grad():
        model.policy.value_net.bias.fill_(100.0)  # would show in a bootstrapped reward
    model.learn(8)
    assert set(np.unique(model.rollout_buffer.returns)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"advantage": "gae"},
            "advantage='gae': Input should be 'critic', 'group' or 'group_mean'",
        ),
        ({"ratio": "new"}, "ratio='new': Input should be 'reference' or 'old'"),
        ({"kl": "k4"}, "kl='k4': Input should be 'exact', 'k1', 'k2' or 'k3'"),
        ({"kl_coef": -0.1}, "kl_coef=-0.1"),
        ({"ent_coef": float("nan")}, "ent_coef=nan"),
        ({"vf_coef": float("inf")}, "vf_coef=inf"),
        ({"clip_range": 0.0}, r"clip_range=0\.0"),
        ({"clip_range_high": 0.3}, "clip_range_high=0.3 without clip_range"),
        ({"max_grad_norm": None}, "max_grad_norm=None"),
        ({"reference_interval": 0}, "reference_interval=0"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"n_epochs": None}, "n_epochs=None"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"advantage": "group", "group_size": 1}, "group_size=1"),
        ({"advantage": "group_mean", "group_size": 5}, "16 environments .* groups of 5"),
    ],
)
def test_bad_settings_are_refused_at_set_up(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        small(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2,)), spaces.Discrete(4, start=1)])
def test_other_actions_are_refused(space: spaces.Space) -> None:
    env = GroupedBanditEnv(8, 4)
    env.single_action_space = space
    with pytest.raises(ValueError, match="GRPO needs Discrete actions that start at 0"):
        small(to_sb3(env))


def test_save_load_predict(tmp_path: Path) -> None:
    model = small(advantage="group", ratio="old", clip_range=0.2).learn(320)
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model", device="cpu")  # no environment
    assert loaded.env is None
    assert (loaded.advantage, loaded.ratio, loaded.clip_range) == ("group", "old", 0.2)
    observations = np.eye(CONTEXTS, dtype=np.float32)
    th.manual_seed(1)
    stochastic = model.predict(np.tile(observations, (9, 1)))[0]
    th.manual_seed(1)
    assert np.array_equal(loaded.predict(np.tile(observations, (9, 1)))[0], stochastic)
    for observation in observations:
        first = model.predict(observation, deterministic=True)[0]
        assert first == loaded.predict(observation, deterministic=True)[0]
        assert first == model.predict(observation, deterministic=True)[0]
    assert np.array_equal(weights(loaded.reference_policy), weights(model.reference_policy))
    loaded.set_env(grouped())
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 384
    with pytest.raises(ValueError, match="6 environments do not divide into groups of 4"):
        GRPO.load(tmp_path / "model", env=grouped(6, 2), device="cpu")
    assert GRPO.load(tmp_path / "model", env=grouped(8, 4), device="cpu").n_envs == 8
    # a group size given on loading, which no environment was there to be held against
    changed = GRPO.load(tmp_path / "model", device="cpu", group_size=5)
    changed.set_env(grouped())
    with pytest.raises(ValueError, match="16 environments do not divide into groups of 5"):
        changed.learn(64)


def test_resuming_goes_on_identically(tmp_path: Path) -> None:
    # 4 rollouts, the reference renewed after the third, in the middle of a learning-rate schedule
    settings = {
        "env": grouped(cycle=True),
        "reference_interval": 3,
        "learning_rate": lambda progress: 1e-3 * (0.1 + progress),
    }
    model = small(**settings).learn(4 * 64)
    model.save(tmp_path / "model")
    resumed = GRPO.load(tmp_path / "model", env=grouped(cycle=True), device="cpu")
    model._last_obs = None  # begin with a reset, as the loaded one has to
    results = []
    for each in (model, resumed):
        th.manual_seed(11)
        each.learn(3 * 64, reset_num_timesteps=False)
        assert (each.num_timesteps, each._n_updates) == (7 * 64, 7)
        assert each._rollouts_since_renewal == 1
        results.append((weights(each.policy), weights(each.reference_policy)))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


class StopAt(BaseCallback):
    """Stops in the middle of a rollout."""

    def _on_step(self) -> bool:
        return self.num_timesteps != 32


def test_learning_goes_on_with_fresh_observations_after_a_callback_stopped_it() -> None:
    env = GroupedBanditEnv(16, 4)
    model = small(to_sb3(env)).learn(64, callback=StopAt())
    assert model.num_timesteps == 32
    model.learn(64, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    contexts = buffer.observations.argmax(-1)
    # rewards belong to the observations beside them
    assert np.array_equal(buffer.rewards, buffer.actions[..., 0] == contexts)


def test_callbacks_tensorboard_and_evaluation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small(advantage="group", tensorboard_log=str(tmp_path), clip_range=0.2)
    evaluation = EvalCallback(grouped(4), eval_freq=8, n_eval_episodes=5, verbose=0)
    model.learn(5 * 64, callback=[evaluation, CheckpointCallback(10, str(tmp_path / "saved"))])
    assert evaluation.n_calls == 20
    assert (tmp_path / "saved" / "rl_model_160_steps.zip").is_file()
    events = EventAccumulator(str(tmp_path / "GRPO_1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "rollout/ep_rew_mean",
        "eval/mean_reward",
        "time/fps",
        "train/policy_loss",
        "train/kl_reference",
        "train/entropy_loss",
        "train/loss",
        "train/clip_fraction",
        "train/grad_norm",
        "train/zero_std_groups",
        "train/learning_rate",
        "policy/entropy",
    }
    assert "train/value_loss" not in tags


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_other_algorithms_accept_the_network(algorithm: Any, tmp_path: Path) -> None:
    model = algorithm(GRPOPolicyNetwork, grouped(), n_steps=4, seed=0, device="cpu").learn(64)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert np.array_equal(weights(loaded.policy), weights(model.policy))
    assert [layer.out_features for layer in loaded.policy.actor_layers()] == [512, 256, 128, 64, 4]


class DictBandit(gym.ObservationWrapper):
    """The context under one of two keys."""

    def __init__(self) -> None:
        super().__init__(BanditEnv())
        box = self.env.observation_space
        self.observation_space = spaces.Dict({"context": box, "noise": spaces.Box(0, 1, (1,))})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"context": observation, "noise": self.np_random.random(1, dtype=np.float32)}


def test_dictionary_observations() -> None:
    env = make_vec_env(DictBandit, 16, seed=0)
    settings = {"advantage": "critic", "learning_rate": 3e-3, "batch_size": 50}
    model = GRPO("MultiInputPolicy", env, seed=0, device="cpu", **settings)
    model.learn(60 * 128)
    assert evaluate_policy(model, env, n_eval_episodes=40)[0] == 1.0
    model = GRPO("MultiInputPolicy", env, advantage="group", group_size=4, device="cpu")
    with pytest.raises(ValueError, match=r"differ at step 0 of the rollout in '(context|noise)'"):
        model.learn(128)


class Numbered(gym.ObservationWrapper):
    """The context as a number."""

    def __init__(self) -> None:
        super().__init__(BanditEnv())
        self.observation_space = spaces.Discrete(CONTEXTS)

    def observation(self, observation: np.ndarray) -> int:
        return int(observation.argmax())


def test_discrete_observations() -> None:
    env = make_vec_env(Numbered, 16, seed=0)
    model = GRPO("MlpPolicy", env, advantage="critic", learning_rate=3e-3, seed=0, device="cpu")
    model.learn(60 * 128)
    assert evaluate_policy(model, env, n_eval_episodes=40)[0] == 1.0
    assert model.policy.actor_layers()[0].in_features == CONTEXTS


def test_a_separate_encoder_for_the_critic() -> None:
    model = small(policy_kwargs=SMALL | {"share_features_extractor": False}, learning_rate=3e-3)
    model.learn(80 * 64)
    actions, _ = model.predict(np.eye(CONTEXTS, dtype=np.float32), deterministic=True)
    assert actions.tolist() == [0, 1, 2, 3]
