"""Bandits and episodes on which learners are compared, and the runner that compares them."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.errors import InputError
from maw_gym.runners import bandits
from maw_gym.runners.bandits import BanditSettings, Curve, Learner, interval, main, table
from maw_gym.runners.experiments.bandits import EPISODES, Problem, ProblemEnv, problem
from maw_gym.runners.experiments.command_line import made

SMALL = Problem(np.eye(2, dtype=np.float32), np.array([[1.0, 0.0, 0.5], [0.0, 3.0, 1.0]]))


def test_share_of_the_optimum_by_hand() -> None:
    assert SMALL.optimum == 2.0
    assert SMALL.share([0, 1]) == 1.0
    assert SMALL.share([2, 2]) == 0.375  # (.5 + 1) / 2 of 2
    assert SMALL.share([1, 0]) == 0.0


@pytest.mark.parametrize(
    ("name", "contexts", "numbers", "actions", "one_is_right"),
    [
        ("digits", 1797, 64, 10, True),
        ("breast cancer", 569, 30, 2, True),
        ("wine", 178, 13, 3, True),
        ("one-hot", 32, 32, 32, True),
        ("linear", 1000, 16, 8, False),
        ("dense", 16, 16, 8, False),
        ("offset", 1000, 16, 8, False),
        ("ring", 1000, 2, 8, True),
    ],
)
def test_problems(name: str, contexts: int, numbers: int, actions: int, one_is_right: bool) -> None:
    made = problem(name)
    assert made.contexts.shape == (contexts, numbers)
    assert made.rewards.shape == (contexts, actions)
    assert np.array_equal(made.rewards, problem(name).rewards)
    rewards = np.sort(made.rewards, axis=1)
    assert (rewards == [0] * (actions - 1) + [1]).all() == one_is_right
    assert to_sb3(ProblemEnv(made, 16, 8)).get_attr("group_size") == [8] * 16


def test_linear_rewards_are_linear_and_the_context_of_offset_counts_far_more() -> None:
    linear, offset = problem("linear"), problem("offset")
    _, residual, *_ = np.linalg.lstsq(linear.contexts, linear.rewards, rcond=None)
    assert residual.max() < 1e-9
    assert np.abs(linear.rewards.mean(axis=1)).max() < 1e-12  # chance gets nothing
    assert offset.rewards.mean(axis=1).std() > 50 * offset.rewards.std(axis=1).mean()
    assert offset.optimum == pytest.approx(linear.optimum)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r'pip install "maw_gym\[benchmark\]"'):
        problem("wine")
    assert len(problem("dense").rewards) == 16


def test_without_box2d(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(InputError, match=r"LunarLander-v3: Box2D is not installed"):
        main(made(BanditSettings, problems=("LunarLander-v3",), logdir=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_environment_by_hand() -> None:
    env = ProblemEnv(SMALL, 6, group_size=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    contexts, _ = env.reset(seed=0)
    for _ in range(9):
        rows = contexts.argmax(axis=1)
        assert len(set(rows[:3])) == len(set(rows[3:])) == 1
        following, rewards, ended, truncated, infos = env.step(np.array([0, 1, 2, 0, 1, 2]))
        assert rewards.tolist() == SMALL.rewards[rows, [0, 1, 2] * 2].tolist()
        assert np.array_equal(infos["final_obs"], contexts)
        assert (ended.all(), truncated.any()) == (True, False)
        contexts = following
    first = ProblemEnv(SMALL, 6).reset(seed=5)[0]
    assert np.array_equal(first, ProblemEnv(SMALL, 6).reset(seed=5)[0])


def test_students_interval_by_hand() -> None:
    # deviation 1, 4.3027 / sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(2.48414, abs=1e-4)
    assert interval([0.5]) == 0.0


class Always:
    """Takes one action, whatever it sees, and ends 8 steps later than it was told to."""

    num_timesteps = 0

    def __init__(self, policy: str, env: VecMonitor, seed: int, device: str) -> None:
        assert (policy, device) == ("MlpPolicy", "cpu")
        self.env, self.seed = env, seed

    def predict(self, contexts: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
        assert deterministic
        return np.full(len(contexts), self.seed), None

    def learn(self, timesteps: int, callback: Curve) -> None:
        callback.model = self  # type: ignore[assignment]
        callback.on_training_start({}, {})
        while self.num_timesteps < timesteps + 8:
            self.num_timesteps += self.env.num_envs
            callback.on_step()
        callback.on_training_end()


@pytest.mark.parametrize(
    ("timesteps", "evaluations", "steps"),
    # Looks at the beginning, then every eighth step, and at the end.
    [(40, 5, [0, 8, 16, 24, 32, 40, 48]), (4, 20, [0, 4, 12])],
)
def test_everything_that_a_run_leaves(
    timesteps: int,
    evaluations: int,
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    always: Any = Always
    learners = {"GRPO": Learner(always, 4, True), "PPO, grouped": Learner(always, 4, False)}
    monkeypatch.setattr(bandits, "LEARNERS", learners | {"A2C": Learner(always)})
    monkeypatch.setattr(bandits, "problem", lambda name: SMALL)
    given: dict[str, Any] = {"timesteps": timesteps, "evaluations": evaluations, "seeds": 2}
    given["learners"] = ("PPO, grouped", "GRPO")
    main(made(BanditSettings, logdir=tmp_path, run_name="b", problems=("wine",), **given))
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    # Seed 0 always takes action 0 (reward 1 and 0, over 4), seed 1 action 1 (0 and 3)
    expected = [[[step, share] for step in steps] for share in (0.25, 0.75)]
    assert results == {"wine": {"GRPO": expected, "PPO, grouped": expected}}
    report = (tmp_path / "b" / "report.md").read_text()
    # mean 1/2, deviation sqrt(1/8), 12.706 sqrt(1/8) / sqrt(2)
    assert "| wine                 | 0.500 ± 3.177 | 0.500 ± 3.177 |" in report
    assert report.splitlines()[4] in capsys.readouterr().out
    assert (tmp_path / "b" / "bandits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("problem", "learners", "lowest", "highest"),
    [
        ("FrozenLake-v1", list(bandits.EPISODE_LEARNERS), 0, 1),
        ("Pendulum-v1", ["A2C"], -2000, 0),
        ("dense", list(bandits.LEARNERS), 0.01, 1),
    ],
)
def test_real_learners(
    problem: str,
    learners: list[str],
    lowest: float,
    highest: float,
    tmp_path: Path,
) -> None:
    given: dict[str, Any] = {"timesteps": 512, "evaluations": 1, "seeds": 1, "group_size": 4}
    given["learners"] = tuple(learners)
    main(made(BanditSettings, problems=(problem,), logdir=tmp_path, run_name="b", **given))
    curves = json.loads((tmp_path / "b" / "results.json").read_text())[problem]
    assert [*curves] == learners
    for (points,) in curves.values():
        assert (points[0][0], points[-1][0] >= 512) == (0, True)
        assert all(lowest <= value <= highest for _, value in points)


def test_grpo_with_a_critic_has_the_settings_of_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of = Mock()
    monkeypatch.setattr(bandits, "GRPO", made_of)
    bandits.train_on_episodes("GRPO, critic", "Pendulum-v1", 0, made(BanditSettings))
    given, own = made_of.call_args.kwargs, EPISODES["Pendulum-v1"].ppo
    assert given["advantage"] == "critic"
    defaults = [inspect.signature(kind).parameters for kind in (GRPO, PPO)]
    for name in ("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda",
                 "clip_range", "ent_coef", "vf_coef", "max_grad_norm", "target_kl", "use_sde",
                 "sde_sample_freq"):  # fmt: skip
        ours, ppos = (known[name].default for known in defaults)
        assert given.get(name, ours) == own.get(name, ppos), name


def test_bandits_and_episodes_have_tables_of_their_own() -> None:
    curves = {"Pendulum-v1": {"A2C": [[(0, -9.0), (8, -1.0)]]}, "dense": {"GRPO": [[(8, 1.0)]]}}
    first, second = table(curves).split("\n\n")  # type: ignore[arg-type]
    assert first.splitlines()[2] == "| dense                | 1.000 ± 0.000 |"
    assert second.splitlines()[0] == "| return of an episode |          A2C |"
    assert second.splitlines()[2] == "| Pendulum-v1          | -1.00 ± 0.00 |"


def test_grpo_reaches_the_goal_on_a_problem() -> None:
    settings = made(BanditSettings, timesteps=10_240, evaluations=1)
    assert bandits.train("GRPO", problem("dense"), 0, settings)[-1][1] >= bandits.GOAL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": ("digits", "iris")}, "unknown bandit 'iris'; choose from digits"),
        ({"problems": ("wine", "ring", "wine")}, "problems must differ, got wine ring wine"),
        ({"group_size": 5}, "group_size must divide 64, got 5"),
        (
            {"problems": ("CartPole-v1",), "group_size": 1},
            "group_size of episodes is 2, 4, 8 or 16, got 1",
        ),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"learners": ("SAC", "DQN2")}, "none of the learners SAC, DQN2 learns on digits; choose"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        made(BanditSettings, **changes)
    assert "\n" not in str(error.value)
