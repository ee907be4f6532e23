"""Compare GRPO with PPO, A2C and DQN of Stable-Baselines3 on eight contextual bandits.

Every learner has its defaults and the same number of environment steps; all rewards are known, so
that the greedy policy's share of the optimum is exact. Leaves results.json, report.md with the
table and bandits.png with the learning curves in the run's folder. It needs scikit-learn:
pip install "maw_gym[benchmark]".
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np
from pydantic import model_validator
from rich.console import Console
from scipy import stats
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from agents.grpo import GRPO
from agents.sb3.vec_env import to_sb3
from maw_gym.envs.rendering import check_matplotlib
from maw_gym.errors import InputError
from maw_gym.files import write_json, written_whole
from maw_gym.settings import Count, checked
from runners.experiments.bandits import PROBLEMS, Problem, ProblemEnv, problem
from runners.experiments.figures import new_figure, save
from runners.experiments.report import markdown
from runners.experiments.runs import open_run, run_main
from runners.experiments.settings import FolderSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL: Final = 0.97  # share of the optimum that the project wants of GRPO


class Learner(NamedTuple):
    """How a learner meets its contexts.

    Attributes:
        make: the algorithm, of an environment and the arguments that all have.
        num_envs: sub-environments.
        grouped: whether neighbours share each context, as GRPO needs it.
    """

    make: Callable[..., BaseAlgorithm]
    num_envs: int
    grouped: bool


def _ppo(policy: str, env: Any, **others: Any) -> PPO:
    # Of as many samples as GRPO's: SB3's n_steps of 2,048 would be one rollout in all.
    return PPO(policy, env, n_steps=16, **others)


def _dqn(policy: str, env: Any, **others: Any) -> DQN:
    # 16 gradient steps every 64 environment steps are SB3's one in four.
    return DQN(policy, env, train_freq=1, gradient_steps=16, **others)


LEARNERS: Final = {
    "GRPO": Learner(GRPO, 64, True),
    "PPO": Learner(_ppo, 64, False),
    "PPO, contexts in groups": Learner(_ppo, 64, True),
    # 512 updates of 40 samples; of 64 sub-environments it would have 64 of 320.
    "A2C": Learner(A2C, 8, False),
    "DQN": Learner(_dqn, 64, False),
}


@checked
class BanditSettings:
    """What is compared."""

    main_flags: ClassVar = ("problems", "timesteps", "group_size", "seeds", "run_name")
    problems: tuple[str, ...] = PROBLEMS
    """of digits, breast cancer, wine, one-hot, linear, dense, offset, ring"""
    timesteps: Count = 20_000
    """environment steps of every learner on every problem"""
    group_size: Count = 8
    """sub-environments that share each context, where a learner wants groups; divides 64"""
    seeds: Count = 3
    """runs of every learner on every problem, with seeds from 0"""
    evaluations: Count = 20
    """looks at the greedy policy, for the curves"""
    run: FolderSettings = FolderSettings()

    @model_validator(mode="after")
    def _exist(self) -> "BanditSettings":
        for name in self.problems:
            if name not in PROBLEMS:
                raise InputError(f"unknown bandit {name!r}; choose from {', '.join(PROBLEMS)}")
        if 64 % self.group_size:
            raise InputError(f"group_size must divide 64, got {self.group_size}")
        return self


class Curve(BaseCallback):
    """The greedy policy's share of the optimum as training goes on."""

    def __init__(self, problem: Problem, interval: int) -> None:
        super().__init__()
        self.problem = problem
        self.interval = interval
        self.points: list[tuple[int, float]] = []

    def _on_training_start(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        if self.num_timesteps - self.points[-1][0] >= self.interval:
            self._look()
        return True

    def _on_training_end(self) -> None:
        self._look()

    def _look(self) -> None:
        actions, _ = self.model.predict(self.problem.contexts, deterministic=True)
        self.points.append((self.num_timesteps, self.problem.share(actions)))


def train(name: str, problem: Problem, seed: int, settings: BanditSettings) -> Curve:
    """The learning curve of one learner."""
    learner = LEARNERS[name]
    groups = settings.group_size if learner.grouped else 1
    env = to_sb3(ProblemEnv(problem, learner.num_envs, groups))
    curve = Curve(problem, settings.timesteps // settings.evaluations)
    model = learner.make("MlpPolicy", env, seed=seed, device="cpu")
    model.learn(settings.timesteps, curve)
    return curve


def interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of the mean; 0 of equal values or a single one."""
    if len(values) < 2:
        return 0.0
    error = stats.sem(values)
    return float(stats.t.ppf(0.975, len(values) - 1) * error)


Curves = dict[str, dict[str, list[list[tuple[int, float]]]]]  # by problem, then by learner


def table(curves: Curves) -> str:
    """Markdown: the share of the optimum at the end, mean over seeds and 95% interval."""
    lines = []
    for name, learners in curves.items():
        ends = {learner: [run[-1][1] for run in runs] for learner, runs in learners.items()}
        cells = [f"{np.mean(last):.3f} ± {interval(last):.3f}" for last in ends.values()]
        lines.append([name, *cells])
    return markdown(["share of the optimum", *next(iter(curves.values()))], lines)


def draw(curves: Curves) -> "Figure":
    """A panel for every problem: mean over seeds, and bands from the lowest to the highest."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(4 * columns, 3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, learners) in zip(panels, curves.items(), strict=False):
        for learner, runs in learners.items():
            steps = np.mean([[step for step, _ in run] for run in runs], axis=0)
            shares = np.array([[share for _, share in run] for run in runs])
            style = "--" if "," in learner else "-"
            (line,) = axes.plot(steps, shares.mean(axis=0), style, label=learner, linewidth=1.4)
            low, high = shares.min(axis=0), shares.max(axis=0)
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15)
        axes.axhline(GOAL, color="grey", linewidth=0.6, linestyle=":")
        axes.set_title(name)
        axes.set_xlabel("environment steps")
        axes.set_ylabel("greedy share of the optimum")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def report(curves: Curves, settings: BanditSettings) -> str:
    """The whole of report.md."""
    return "\n\n".join(
        (
            "# Bandits",
            f"Share of the optimum that the greedy policy gets after {settings.timesteps:,}"
            f" environment steps; mean over {settings.seeds} seeds ± Student's 95% interval."
            f" Contexts come in groups of {settings.group_size} for GRPO, so it sees so many times"
            " fewer of them than the others do in as many steps.",
            table(curves),
            "![learning curves](bandits.png)",
        )
    )


def main(settings: BanditSettings) -> None:
    """Train every learner on every problem and write what came of it."""
    check_matplotlib()
    problems = [problem(name) for name in settings.problems]
    folder = open_run(settings, "bandits")
    curves: Curves = {}
    runs = [
        (p, name, seed) for p in problems for name in LEARNERS for seed in range(settings.seeds)
    ]
    for each, name, seed in (bar := tqdm(runs, desc="bandits", disable=None)):
        bar.set_postfix_str(f"{each.name}, {name}")
        curve = train(name, each, seed, settings)
        curves.setdefault(each.name, {}).setdefault(name, []).append(curve.points)
    write_json(folder / "results.json", curves)
    save(draw(curves), folder / "bandits.png")
    text = report(curves, settings)
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", "utf-8")
    Console().print(table(curves), markup=False, highlight=False, soft_wrap=True)
    print(f"\n{folder / 'report.md'}")


if __name__ == "__main__":
    run_main(BanditSettings, main)
