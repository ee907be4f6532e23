"""GRPO as its users meet it: what it learns, what it decides, refuses, saves and logs."""

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from bandits import CONTEXTS, EYE, BanditEnv, grouped_bandit
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor

from maw_gym.agents.grpo import GRPO, GRPOPolicyNetwork
from maw_gym.agents.sb3.vec_env import to_sb3

SMALL = {"features_extractor_kwargs": {"widths": (32,)}, "net_arch": [16]}
# One step of plain gradient descent on the critic's advantages
PLAIN = {"advantage": "critic", "n_epochs": 1, "batch_size": None, "clip_range": None}
BEST = [0, 1, 2, 3]  # the best action of each context
PAGE = (Path(__file__).parents[2] / "docs" / "grpo.md").read_text("utf-8")


def grouped(num_envs: int = 16, group_size: int = 4, order: str = "random") -> VecMonitor:
    return to_sb3(grouped_bandit(num_envs, group_size, query_order=order))


def small(env: Any = None, **settings: Any) -> GRPO:
    settings = PLAIN | {"policy_kwargs": SMALL, "group_size": 4, "n_steps": 4, "seed": 0} | settings
    return GRPO(GRPOPolicyNetwork, grouped() if env is None else env, device="cpu", **settings)


def weights(policy: th.nn.Module) -> np.ndarray:
    return th.nn.utils.parameters_to_vector(policy.parameters()).detach().numpy().copy()


@pytest.mark.parametrize(
    "settings",
    [
        {"advantage": "outcome"},
        {"advantage": "outcome", "ratio": "reference"},
        {"advantage": "group_mean", "kl": "k2"},
        {"advantage": "critic", "ratio": "reference"},
        {"clip_range": 0.2, "clip_range_high": 0.28, "kl": "k3"},
        {"clip_range": LinearSchedule(0.3, 0.0, 1.0), "learning_rate": lambda left: 2e-2 * left}
        | {"clip_range_high": lambda left: 0.4},
    ],
)
def test_solves_the_bandit(settings: dict[str, Any]) -> None:
    settings = {"learning_rate": 1e-2, "n_epochs": 4, "batch_size": 128, "seed": 0} | settings
    model = GRPO("MlpPolicy", grouped(64, 8), device="cpu", **settings).learn(8 * 1024)
    assert model.predict(EYE, deterministic=True)[0].tolist() == BEST
    if len(settings) == 5 and settings.get("advantage") == "outcome":  # and it is nearly sure of it
        best = model.policy.get_distribution(th.eye(CONTEXTS)).distribution.probs.diagonal()
        assert best.min().item() > 0.95


def numbered() -> gym.Env:
    space = spaces.Discrete(CONTEXTS)
    return gym.wrappers.TransformObservation(BanditEnv(), lambda seen: int(seen.argmax()), space)


def keyed() -> gym.Env:
    box = spaces.Box(0, 1, (CONTEXTS,))
    space = spaces.Dict({"context": box, "other": box})
    shown = lambda seen: {"context": seen, "other": 1 - seen}
    return gym.wrappers.TransformObservation(BanditEnv(), shown, space)


@pytest.mark.parametrize(
    ("policy", "env"), [("MultiInputPolicy", keyed), (GRPOPolicyNetwork, numbered)]
)
def test_a_scalar_environment_needs_no_groups(policy: Any, env: Any) -> None:
    venv = make_vec_env(env, 16, seed=0)
    settings = {"advantage": "critic", "learning_rate": 5e-3, "batch_size": 200, "seed": 0}
    model = GRPO(policy, venv, device="cpu", **settings).learn(10 * 1024)
    assert evaluate_policy(model, venv, n_eval_episodes=40) == (1.0, 0.0)


def test_a_separate_encoder_for_the_critic_whose_value_groups_leave_alone() -> None:
    kind = {"policy_kwargs": SMALL | {"share_features_extractor": False}, "learning_rate": 1e-2}
    for advantage in ("critic", "outcome"):
        model = small(advantage=advantage, **kind)
        before = weights(model.policy.value_net)
        assert model.learn(40 * 64).predict(EYE, deterministic=True)[0].tolist() == BEST
        assert np.array_equal(weights(model.policy.value_net), before) == (advantage == "outcome")


@pytest.mark.parametrize(("interval", "renewed"), [(3, [3, 6]), (None, [])])
def test_reference_is_renewed_every_interval(interval: int | None, renewed: list[int]) -> None:
    model = small(reference_interval=interval)
    initial = weights(model.policy)
    assert np.array_equal(weights(model.reference_policy), initial)  # a copy
    for rollout in range(1, 7):
        model.learn(64, reset_num_timesteps=False)
        reference, policy = weights(model.reference_policy), weights(model.policy)
        assert np.array_equal(reference, policy) == (rollout in renewed)
        assert np.array_equal(reference, initial) == (not renewed or rollout < 3)
    assert not any(p.requires_grad for p in model.reference_policy.parameters())


def test_advantages_are_those_of_groups_where_the_environment_gives_groups() -> None:
    model = GRPO("MlpPolicy", grouped(16, 4), n_steps=4, device="cpu")
    assert (model.advantage, model.group_size) == ("state", 4)
    assert "train/value_loss" not in model.learn(1).logger.name_to_value
    # groups that only the user knows of
    env = make_vec_env(BanditEnv, 8, seed=0)
    assert GRPO("MlpPolicy", env, group_size=4, device="cpu").advantage == "state"
    # the kind is the user's, the size the environment's
    model = GRPO("MlpPolicy", grouped(16, 8), advantage="group_mean", device="cpu")
    assert (model.advantage, model.group_size) == ("group_mean", 8)


@pytest.mark.parametrize("env", [BanditEnv(), make_vec_env(BanditEnv, 16), grouped(16, 1)])
def test_an_environment_without_groups_gets_a_critic_and_the_user_a_hint(env: Any) -> None:
    hint = r"no groups: advantage='critic' is taken; maw_gym\.agents\.grpo\.make_groups\(Env, num"
    with pytest.warns(UserWarning, match=hint) as warned:
        model = GRPO("MlpPolicy", env, n_steps=4, batch_size=2, device="cpu")
    assert "\n" not in str(warned[0].message)
    assert "train/value_loss" in model.learn(1).logger.name_to_value
    with pytest.raises(ValueError, match=r"'outcome' needs groups .* names none: make it by"):
        GRPO("MlpPolicy", env, advantage="outcome", device="cpu")


@pytest.mark.parametrize("advantage", ["outcome", "process", "state", "group_mean"])
def test_groups_of_differing_observations_are_refused(advantage: str) -> None:
    mode = gym.vector.AutoresetMode.SAME_STEP
    alone = to_sb3(gym.vector.SyncVectorEnv([BanditEnv] * 8, autoreset_mode=mode))
    with pytest.raises(ValueError, match=r"environments 0 to 3 differ at step 0 of the rollout"):
        small(alone, advantage=advantage).learn(32)
    # groups of the environment that straddle those of the learner
    with pytest.raises(ValueError, match="differ at step"):
        small(grouped(12, 3), advantage=advantage).learn(32)
    # smaller groups inside the environment's are right
    assert small(grouped(16, 8), advantage=advantage).learn(32).num_timesteps == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantage": "gae"}, "advantage='gae': Input should be 'auto', 'critic', 'outcome', "),
        ({"ratio": "new"}, "ratio='new': Input should be 'reference' or 'old'"),
        ({"loss_average": "token"}, "loss_average='token': Input should be 'step' or 'episode'"),
        ({"kl_coef": -0.1}, "kl_coef=-0.1"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"ent_coef": float("nan")}, "ent_coef=nan"),
        ({"vf_coef": True}, "vf_coef=True: Input should be a valid number"),
        ({"n_steps": 10**9}, "n_steps=1000000000: Input should be less"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3': Input should be a valid number"),
        ({"learning_rate": lambda left: -left}, r"learning_rate is -1\.0 where 1 of the training"),
        ({"learning_rate": LinearSchedule(0.1, 99, 1.0)}, r"learning_rate is 99\.0 where 0 of the"),
        ({"clip_range": 0.0}, r"clip_range=0\.0"),
        ({"clip_range": lambda left: "wide"}, "clip_range is 'wide' where 1 of the training"),
        ({"clip_range_high": 0.3}, "clip_range_high=0.3 without clip_range"),
        ({"group_size": 2.0}, r"group_size=2\.0: Input should be a valid integer"),
        ({"advantage": "group_mean", "group_size": 5}, "16 environments .* groups of 5"),
        ({"clip_range_vf": 0.0}, r"clip_range_vf=0\.0: Input should be greater than 0"),
        (
            {"normalize_advantage": True, "advantage": "outcome"},
            "normalize_advantage=True: advantage='outcome' is relative to its group already",
        ),
        ({"gamma": 1.1}, r"gamma=1\.1: Input should be less than or equal to 1"),
        ({"target_kl": 0.0}, r"target_kl=0\.0: Input should be greater than 0"),
        ({"loss_average": "episode"}, "'episode' needs groups of episodes, and advantage='critic'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        small(**settings)
    assert "\n" not in str(error.value)


def test_settings_of_ppo_are_taken() -> None:
    taken = {"gamma": 0.98, "gae_lambda": 0.8, "normalize_advantage": True, "target_kl": 0.1}
    assert small(**taken, batch_size=np.int64(16), clip_range=0.2, sde_sample_freq=4).learn(64)
    with pytest.raises(ValueError, match="can only be used with continuous actions"):
        small(use_sde=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": spaces.Text(3)}, "GRPO needs Discrete actions that start at 0"),
        ({"action": spaces.Discrete(4, start=1)}, "GRPO needs Discrete actions that start at 0"),
        ({"action": spaces.MultiDiscrete([[2, 2], [2, 2]])}, "MultiBinary ones of one dimension"),
        ({"action": spaces.MultiBinary((2, 3))}, "MultiBinary ones of one dimension"),
        (
            {"observation": spaces.Box(0, 1, (100_000,))},
            r"n_steps=16777216: rollouts of 8 environments with 100000 numbers each need 5e\+04",
        ),
    ],
)
def test_environments_that_cannot_be_learned_in_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    env = grouped_bandit(8, 4)
    for name, space in changes.items():
        setattr(env, f"single_{name}_space", space)
    with pytest.raises(ValueError, match=message):
        small(to_sb3(env), n_steps=2**24)


@pytest.mark.parametrize("settings", [{"n_epochs": 2}, {"batch_size": 32}])
def test_several_gradient_steps_without_clipping_are_warned_of(settings: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="2 gradient steps on each rollout of 64 samples without"):
        small(**settings)
    small(**settings, clip_range=0.2)  # and this is not


def test_the_clip_range_follows_its_schedule_also_when_loaded(tmp_path: Path) -> None:
    # 4 rollouts of 64 samples: 1, 3/4, 1/2 and 1/4 of the training remain when each begins, and
    # SB3 counts the rollout as done before its update: 3/4, 1/2, 1/4, 0
    rate, clip = LinearSchedule(0.01, 0.0, 1.0), LinearSchedule(0.4, 0.0, 1.0)
    small(clip_range=clip, clip_range_high=lambda left: left, learning_rate=rate).save(
        tmp_path / "model"
    )
    model = GRPO.load(tmp_path / "model", env=grouped(), device="cpu")
    logged: list[dict[str, Any]] = []
    model.set_logger(configure(None, []))
    model.logger.dump = lambda step=0: logged.append(dict(model.logger.name_to_value))
    model.learn(4 * 64)
    records = [*logged[1:], model.logger.name_to_value]
    for name, start in (("clip_range", 0.4), ("learning_rate", 0.01)):
        found = [record[f"train/{name}"] for record in records]
        assert found == pytest.approx([start * left for left in (0.75, 0.5, 0.25, 0.0)])


def test_passes_end_where_the_policy_is_too_far_from_the_one_that_acted() -> None:
    settings = {"learning_rate": 0.1, "n_epochs": 50, "clip_range": 0.2, "advantage": "outcome"}
    free, held = small(**settings), small(**settings, target_kl=0.01)
    assert (free.learn(64)._n_updates, held.learn(64)._n_updates < 50) == (50, True)


def test_masks_that_are_not_used_are_warned_of() -> None:
    env = BanditEnv()
    env.action_masks = lambda: np.ones(CONTEXTS, bool)  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="does not use the environment's action_masks"):
        GRPO("MlpPolicy", env, advantage="critic", device="cpu")


def test_batch_normalisation_is_refused() -> None:
    def kind(norm: type[th.nn.Module]) -> dict[str, Any]:
        return {"net_arch": [8], "activation_fn": partial(norm, 8)}

    with pytest.raises(ValueError, match=r"mlp_extractor\.policy_net\.1 is a BatchNorm1d, whose"):
        GRPO("MlpPolicy", grouped(), policy_kwargs=kind(th.nn.BatchNorm1d))
    assert GRPO("MlpPolicy", grouped(), policy_kwargs=kind(th.nn.LayerNorm)).learn(64)


def test_rollouts_of_a_single_sample() -> None:
    model = GRPO("MlpPolicy", BanditEnv(), n_steps=1, advantage="critic", seed=0, device="cpu")
    before = weights(model.policy)
    assert model.learn(3).num_timesteps == 3
    assert not np.array_equal(weights(model.policy), before)


def test_what_the_environment_decided_is_decided_again_after_loading(tmp_path: Path) -> None:
    GRPO("MlpPolicy", grouped(16, 8), device="cpu").save(tmp_path / "model")
    decided = []
    for env in (grouped(8, 4), None):
        model = GRPO.load(tmp_path / "model", env=env, device="cpu")
        decided.append((model.advantage, model.group_size, model.n_steps, model.batch_size))
    assert decided == [("state", 4, 128, 512), ("auto", None, 64, 64)]
    model.set_env(grouped(16, 2))
    assert (model.advantage, model.group_size, model.batch_size) == ("state", 2, 512)
    assert model.learn(1).num_timesteps == 1024
    with pytest.warns(UserWarning, match="gives no groups"):
        model = GRPO.load(tmp_path / "model", env=BanditEnv(), device="cpu")
    assert (model.advantage, model.n_steps, model.batch_size) == ("critic", 1024, 64)


def test_save_load_predict(tmp_path: Path) -> None:
    model = small(advantage="outcome", ratio="old", clip_range=0.2).learn(320)
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model", device="cpu")  # no environment
    assert (loaded.env, loaded.advantage, loaded.clip_range(1.0)) == (None, "outcome", 0.2)
    drawn = []
    for each in (model, loaded):
        th.manual_seed(1)
        drawn.append(each.predict(np.tile(EYE, (9, 1)))[0].tolist())
    assert drawn[0] == drawn[1]
    # one environment is enough to evaluate on, but not to learn in groups
    alone = GRPO.load(tmp_path / "model", env=BanditEnv(), device="cpu")
    assert evaluate_policy(alone, alone.get_env(), 4)[1] is not None
    with pytest.raises(ValueError, match="1 environments do not divide into groups of 4"):
        alone.learn(4)
    # a group size given on loading, which no environment was there to be held against
    changed = GRPO.load(tmp_path / "model", device="cpu", group_size=5)
    changed.set_env(grouped())
    with pytest.raises(ValueError, match="16 environments do not divide into groups of 5"):
        changed.learn(64)


def test_resuming_goes_on_identically(tmp_path: Path) -> None:
    # 4 rollouts, the reference renewed after the third, in the middle of a learning-rate schedule
    schedule = {"reference_interval": 3, "learning_rate": lambda left: 1e-3 * (0.1 + left)}
    model = small(grouped(order="sequential"), **schedule).learn(4 * 64)
    model.save(tmp_path / "model")
    resumed = GRPO.load(tmp_path / "model", env=grouped(order="sequential"), device="cpu")
    model._last_obs = None  # begin with a reset, as the loaded one has to
    results = []
    for each in (model, resumed):
        th.manual_seed(11)
        each.learn(3 * 64, reset_num_timesteps=False)
        assert each.num_timesteps == 7 * 64
        results.append(np.concatenate([weights(each.policy), weights(each.reference_policy)]))
    assert np.array_equal(*results)


def test_learning_goes_on_with_fresh_observations_after_a_callback_stopped_it() -> None:
    model = small().learn(64, callback=lambda of, _: of["self"].num_timesteps != 32)
    assert model.num_timesteps == 32
    model.learn(64, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    contexts = buffer.observations.argmax(-1)
    # rewards belong to the observations beside them
    assert np.array_equal(buffer.rewards, buffer.actions[..., 0] == contexts)


def test_callbacks_tensorboard_and_evaluation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small(advantage="outcome", tensorboard_log=str(tmp_path), clip_range=0.2)
    evaluation = EvalCallback(grouped(4), eval_freq=8, n_eval_episodes=5, verbose=0)
    model.learn(5 * 64, callback=[evaluation, CheckpointCallback(10, str(tmp_path / "saved"))])
    assert (tmp_path / "saved" / "rl_model_160_steps.zip").is_file()
    tags = set(EventAccumulator(str(tmp_path / "GRPO_1")).Reload().Tags()["scalars"])
    names = ("policy_loss", "kl_reference", "approx_kl", "entropy_loss", "loss", "clip_fraction")
    names += ("grad_norm", "zero_std_groups", "learning_rate", "clip_range")
    others = {"rollout/ep_rew_mean", "eval/mean_reward", "time/fps", "policy/entropy"}
    assert tags >= others | {f"train/{name}" for name in names}
    assert "train/value_loss" not in tags


def test_the_example_of_the_page_about_grpo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(PAGE.split("```python\n")[1].split("```")[0].replace("100_000", "1_000"), {})
    assert capsys.readouterr().out.startswith("(")


def test_the_page_about_grpo_has_the_defaults_of_the_class() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", PAGE, re.MULTILINE)
    told: dict[str, str] = {}
    for names, values in rows:
        pairs = re.findall(r"\w+", names), re.findall(r"[\w.-]+", values)
        told |= dict(zip(*pairs, strict=True))
    parameters = inspect.signature(GRPO).parameters
    assert len(told) == 21
    for name, value in told.items():
        default = parameters[name].default
        assert value == str(default) or float(value) == default, name
    assert "| `clip_range`, `clip_range_high` | 0.2, None |" in PAGE
    assert (parameters["clip_range"].default, parameters["clip_range_high"].default) == (0.2, None)
