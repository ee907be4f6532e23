import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.errors import InputError
from maw_gym.runners import bandits
from maw_gym.runners.bandits import BanditSettings, Curve, Learner, draw, interval, main, table
from maw_gym.runners.experiments.bandits import PROBLEMS, Problem, ProblemEnv, problem
from maw_gym.runners.experiments.command_line import made

SMALL = Problem("small", np.eye(2, dtype=np.float32), np.array([[1.0, 0.0, 0.5], [0.0, 3.0, 1.0]]))


def test_share_of_the_optimum_by_hand() -> None:
    assert SMALL.optimum == 2.0
    assert SMALL.share([0, 1]) == 1.0
    assert SMALL.share([2, 2]) == 0.375  # (.5 + 1) / 2 of 2
    assert SMALL.share([1, 0]) == 0.0


@pytest.mark.parametrize(
    ("name", "contexts", "numbers", "actions"),
    [
        ("digits", 1797, 64, 10),
        ("breast cancer", 569, 30, 2),
        ("wine", 178, 13, 3),
        ("one-hot", 32, 32, 32),
        ("linear", 1000, 16, 8),
        ("dense", 16, 16, 8),
        ("offset", 1000, 16, 8),
        ("ring", 1000, 2, 8),
    ],
)
def test_sizes(name: str, contexts: int, numbers: int, actions: int) -> None:
    made = problem(name)
    assert made.contexts.shape == (contexts, numbers)
    assert made.rewards.shape == (contexts, actions)
    assert np.array_equal(made.rewards, problem(name).rewards)


@pytest.mark.parametrize("name", ["digits", "breast cancer", "wine", "one-hot", "ring"])
def test_one_action_is_right(name: str) -> None:
    rewards = problem(name).rewards
    assert rewards.sum(axis=1).tolist() == [1] * len(rewards)
    assert set(np.unique(rewards)) == {0, 1}
    assert problem(name).optimum == 1


def test_linear_rewards_are_linear_and_chance_gets_nothing() -> None:
    made = problem("linear")
    weights, residual, *_ = np.linalg.lstsq(made.contexts, made.rewards, rcond=None)
    assert weights.shape == (16, 8)
    assert residual.max() < 1e-9
    assert np.abs(made.rewards.mean(axis=1)).max() < 1e-12


def test_the_context_of_offset_counts_far_more_than_the_action() -> None:
    made = problem("offset")
    assert made.rewards.mean(axis=1).std() > 50 * made.rewards.std(axis=1).mean()
    assert made.optimum == pytest.approx(problem("linear").optimum)


def test_an_unknown_problem() -> None:
    with pytest.raises(InputError, match="unknown bandit 'iris'; choose from digits, breast"):
        problem("iris")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r'pip install "maw_gym\[benchmark\]"'):
        problem("wine")
    assert problem("dense").name == "dense"


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
        expected = [
            SMALL.rewards[row, action] for row, action in zip(rows, [0, 1, 2] * 2, strict=True)
        ]
        assert rewards.tolist() == expected
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
    """Takes one action, whatever it sees."""

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
        for _ in range(timesteps // self.env.num_envs):
            self.num_timesteps += self.env.num_envs
            callback.on_step()
        callback.on_training_end()


def test_everything_that_a_run_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    always: Any = Always
    learners = {"GRPO": Learner(always, 4, True), "PPO, grouped": Learner(always, 4, False)}
    learners["A2C"] = Learner(always, 4, False)
    monkeypatch.setattr(bandits, "LEARNERS", learners)
    monkeypatch.setattr(bandits, "problem", lambda name: SMALL._replace(name=name))
    settings = made(
        BanditSettings,
        logdir=tmp_path,
        run_name="b",
        problems=("wine",),
        learners=("PPO, grouped", "GRPO"),
        timesteps=40,
        evaluations=5,
        seeds=2,
    )
    main(settings)
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    # Seed 0 always takes action 0 (reward 1 and 0, over 4), seed 1 action 1 (0 and 3)
    expected = [[[step, share] for step in (0, 8, 16, 24, 32, 40, 40)] for share in (0.25, 0.75)]
    assert results == {"wine": {"GRPO": expected, "PPO, grouped": expected}}
    report = (tmp_path / "b" / "report.md").read_text()
    # mean 1/2, deviation sqrt(1/8), 12.706 sqrt(1/8) / sqrt(2)
    assert "| wine                 | 0.500 ± 3.177 | 0.500 ± 3.177 |" in report
    assert report.splitlines()[4] in capsys.readouterr().out
    assert (tmp_path / "b" / "bandits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("env_id", "learners", "lowest", "highest"),
    [("FrozenLake-v1", list(bandits.EPISODE_LEARNERS), 0, 1), ("Pendulum-v1", ["A2C"], -2000, 0)],
)
def test_episodes_of_gymnasium(
    env_id: str, learners: list[str], lowest: float, highest: float
) -> None:
    settings = made(BanditSettings, problems=(env_id,), timesteps=512, evaluations=1)
    curves = {}
    for name in learners:
        curve = bandits.train_on_episodes(name, env_id, 0, settings)
        assert (curve.points[0][0], curve.points[-1][0] >= 512) == (0, True)
        curves[name] = [curve.points]
        assert all(lowest <= value <= highest for _, value in curve.points)
    text = table({env_id: curves, "dense": {"GRPO": [[(0, 0.5), (8, 1.0)]]}})
    assert "| dense                | 1.000 ± 0.000 |" in text
    heading = text.split("\n\n")[1].splitlines()[0]
    cells = [cell.strip() for cell in heading.strip("|").split("|")]
    assert cells == ["return of an episode", *learners]
    assert draw({env_id: curves}).axes[0].get_ylabel() == "greedy return"


def test_settings_of_episodes_are_those_of_rl_zoo3(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Asked(Exception):
        pass

    def asked(policy: str, env: Any, **settings: Any) -> None:
        given.update(settings, env=env)
        raise Asked

    monkeypatch.setattr(bandits, "PPO", asked)
    settings = made(BanditSettings, timesteps=512)
    for env_id in ("CartPole-v1", "Acrobot-v1"):
        with pytest.raises(Asked):
            bandits.train_on_episodes("PPO", env_id, 0, settings)
        normalized = isinstance(given["env"], VecNormalize)
        assert normalized == (env_id == "Acrobot-v1")
        if not normalized:
            assert (given["env"].num_envs, given["batch_size"], given["gamma"]) == (8, 256, 0.98)
            assert [given["learning_rate"](left) for left in (1.0, 0.5)] == [1e-3, 5e-4]


def test_curves_and_table_of_real_learners() -> None:
    settings = made(BanditSettings, problems=("dense",), timesteps=256, evaluations=2, group_size=4)
    curves = {
        name: [bandits.train(name, problem("dense"), 0, settings).points]
        for name in bandits.LEARNERS
    }
    for (curve,) in curves.values():
        assert curve[0][0] == 0
        assert curve[-1][0] >= 256
        assert all(0 < share <= 1 for _, share in curve)
    assert len(table({"dense": curves}).splitlines()) == 3
    assert len(draw({"dense": curves}).axes) == 1


def test_grpo_reaches_the_goal_on_a_problem() -> None:
    settings = made(BanditSettings, timesteps=10_240, evaluations=1)
    curve = bandits.train("GRPO", problem("dense"), 0, settings)
    assert curve.points[-1][1] >= bandits.GOAL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": ("digits", "iris")}, "unknown bandit 'iris'; choose from digits"),
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


def test_every_problem_gives_groups() -> None:
    for name in PROBLEMS:
        assert to_sb3(ProblemEnv(problem(name), 16, 8)).get_attr("group_size") == [8] * 16
