"""Compare GRPO with PPO, A2C and DQN of Stable-Baselines3 on bandits and on episodes of Gymnasium.

On eight contextual bandits every learner has its defaults and the same number of environment steps;
all rewards are known, so that the greedy policy's share of the optimum is exact. On episodes (asked
for by name: CartPole-v1, Acrobot-v1, FrozenLake-v1, Pendulum-v1 and, with gymnasium[box2d],
LunarLander-v3) PPO and A2C have rl_zoo3's settings, GRPO with a critic those of PPO, and the greedy
policy's return is measured over 20 episodes. Leaves results.json, report.md with the tables and
bandits.png with the learning curves in the run's folder. The first three bandits need scikit-learn:
pip install "maw_gym[benchmark]".
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import gymnasium as gym
import numpy as np
from pydantic import model_validator
from rich.console import Console
from scipy import stats
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from tqdm import tqdm

from maw_gym.agents.grpo import GRPO, make_groups
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.errors import InputError
from maw_gym.files import write_json, written_whole
from maw_gym.runners.experiments.bandits import EPISODES, PROBLEMS, Problem, ProblemEnv, problem
from maw_gym.runners.experiments.figures import new_figure, plot_runs, save
from maw_gym.runners.experiments.report import markdown
from maw_gym.runners.experiments.runs import open_run, run_main
from maw_gym.runners.experiments.settings import FolderSettings, check_different
from maw_gym.settings import Count, checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMESTEPS: Final = 20_000  # on a bandit
GOAL: Final = 0.97  # share of the optimum that the project wants of GRPO


class Learner(NamedTuple):
    """A learner on bandits, with the arguments that are not its defaults."""

    kind: Callable[..., BaseAlgorithm]
    num_envs: int = 64
    grouped: bool = False  # neighbours share each context, as GRPO needs it
    given: Mapping[str, int] = MappingProxyType({})


LEARNERS: Final = {
    "GRPO": Learner(GRPO, grouped=True),
    # Of as many samples as GRPO's: SB3's n_steps of 2,048 would be one rollout in all.
    "PPO": Learner(PPO, given={"n_steps": 16}),
    "PPO, contexts in groups": Learner(PPO, grouped=True, given={"n_steps": 16}),
    # 512 updates of 40 samples; of 64 sub-environments it would have 64 of 320.
    "A2C": Learner(A2C, num_envs=8),
    # 16 gradient steps every 64 environment steps are SB3's one in four.
    "DQN": Learner(DQN, given={"train_freq": 1, "gradient_steps": 16}),
}
EPISODE_LEARNERS: Final[dict[str, dict[str, Any]]] = {
    "GRPO, state": {"advantage": "state"},
    "GRPO, process": {"advantage": "process"},
    "GRPO, outcome": {"advantage": "outcome"},
    "GRPO, critic": {"advantage": "critic"},
    "PPO": {},
    "A2C": {},
}
# With a critic GRPO has the settings of PPO: these are PPO's defaults that differ from its own
PPO_DEFAULTS: Final = {"learning_rate": 3e-4, "batch_size": 64, "n_epochs": 10, "ent_coef": 0.0}


@checked
class BanditSettings:
    """What is compared."""

    main_flags: ClassVar = ("problems", "learners", "timesteps", "group_size", "seeds", "run_name")
    problems: tuple[str, ...] = PROBLEMS
    """of digits, breast cancer, wine, one-hot, linear, dense, offset, ring; and of CartPole-v1,
    Acrobot-v1, FrozenLake-v1, Pendulum-v1, LunarLander-v3"""
    learners: tuple[str, ...] = ()
    """of GRPO, PPO, "PPO, contexts in groups", A2C, DQN, and on episodes "GRPO, state", "GRPO,
    process", "GRPO, outcome", "GRPO, critic"; unless given, all"""
    timesteps: Count | None = None
    """environment steps of every learner; unless given, 20,000 of bandits, more of episodes"""
    group_size: Count = 8
    """sub-environments that share each context, where a learner wants groups; divides 64,
    and of episodes 16"""
    seeds: Count = 3
    """runs of every learner on every problem, with seeds from 0"""
    evaluations: Count = 20
    """looks at the greedy policy, for the curves"""
    run: FolderSettings = FolderSettings()

    def learners_on(self, problem: str) -> list[str]:
        """Names of those that learn on a problem."""
        known = EPISODE_LEARNERS if problem in EPISODES else LEARNERS
        return [name for name in known if not self.learners or name in self.learners]

    @model_validator(mode="after")
    def _exist(self) -> "BanditSettings":
        check_different(self, "problems", "learners")
        for name in self.problems:
            if name not in EPISODES and name not in PROBLEMS:
                names = ", ".join((*PROBLEMS, *EPISODES))
                raise InputError(f"unknown bandit {name!r}; choose from {names}")
            if not self.learners_on(name):
                known = ", ".join(EPISODE_LEARNERS if name in EPISODES else LEARNERS)
                raise InputError(
                    f"none of the learners {', '.join(self.learners)} learns on {name}; choose from"
                    f" {known}"
                )
        if 64 % self.group_size:
            raise InputError(f"group_size must divide 64, got {self.group_size}")
        if EPISODES.keys() & self.problems and self.group_size not in (2, 4, 8, 16):
            raise InputError(f"group_size of episodes is 2, 4, 8 or 16, got {self.group_size}")
        return self


Points = list[tuple[int, float]]
Curves = dict[str, dict[str, list[Points]]]  # by problem, then by learner


class Curve(BaseCallback):
    """What the greedy policy is worth as training goes on."""

    def __init__(self, judge: Callable[[Any], float], timesteps: int, evaluations: int) -> None:
        super().__init__()
        self.judge = judge
        self.timesteps = timesteps
        self.interval = timesteps // evaluations
        self.points: Points = []

    def _on_training_start(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        # The last rollout may go on far beyond the timesteps.
        if self.points[-1][0] + self.interval <= self.num_timesteps <= self.timesteps:
            self._look()
        return True

    def _on_training_end(self) -> None:
        self._look()

    def _look(self) -> None:
        self.points.append((self.num_timesteps, self.judge(self.model)))


def train(name: str, problem: Problem, seed: int, settings: BanditSettings) -> Points:
    """The learning curve of one learner on a bandit."""
    learner, timesteps = LEARNERS[name], settings.timesteps or TIMESTEPS
    groups = settings.group_size if learner.grouped else 1
    env = to_sb3(ProblemEnv(problem, learner.num_envs, groups))

    def share(model: BaseAlgorithm) -> float:
        return problem.share(model.predict(problem.contexts, deterministic=True)[0])

    curve = Curve(share, timesteps, settings.evaluations)
    model = learner.kind("MlpPolicy", env, seed=seed, device="cpu", **learner.given)
    model.learn(timesteps, curve)
    return curve.points


def train_on_episodes(name: str, env_id: str, seed: int, settings: BanditSettings) -> Points:
    """The learning curve of one learner on episodes of Gymnasium."""
    problem = EPISODES[env_id]
    timesteps = settings.timesteps or problem.timesteps
    kind = {"PPO": PPO, "A2C": A2C}.get(name, GRPO)
    given = {PPO: problem.ppo, A2C: problem.a2c, GRPO: problem.grpo}[kind]
    if name == "GRPO, critic":
        given = PPO_DEFAULTS | problem.ppo
    given = {
        key: LinearSchedule(float(value[4:]), 0.0, 1.0) if str(value)[:4] == "lin_" else value
        for key, value in (dict(given) | EPISODE_LEARNERS[name]).items()
    }
    normalize = given.pop("normalize", False)
    env = make_vec_env(env_id, given.pop("n_envs", 16), seed=seed, env_kwargs=dict(problem.kwargs))
    if kind is GRPO and given["advantage"] != "critic":
        env = make_groups(env, group_size=settings.group_size, seed=seed)
    judged = make_vec_env(env_id, 10, seed=10_000 + seed, env_kwargs=dict(problem.kwargs))
    if normalize:
        env = VecNormalize(env, gamma=given.get("gamma", 0.99))
        judged = VecNormalize(judged, training=False, norm_reward=False)
        judged.obs_rms = env.obs_rms  # one object, so that it stays up to date

    def mean_return(model: BaseAlgorithm) -> float:
        return float(evaluate_policy(model, judged, n_eval_episodes=20)[0])  # type: ignore[arg-type]

    curve = Curve(mean_return, timesteps, settings.evaluations)
    kind("MlpPolicy", env, seed=seed, device="cpu", **given).learn(timesteps, curve)
    return curve.points


def interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of the mean; 0 of equal values or a single one."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def table(curves: Curves) -> str:
    """Markdown: what the policy is worth at the end, mean over seeds and 95% interval."""
    tables = []
    for heading, places, episodes in (
        ("share of the optimum", 3, False),
        ("return of an episode", 2, True),
    ):
        chosen = [name for name in curves if (name in EPISODES) == episodes]
        ends = {name: [[run[-1][1] for run in x] for x in curves[name].values()] for name in chosen}
        lines = [
            [name, *(f"{np.mean(x):.{places}f} ± {interval(x):.{places}f}" for x in ends[name])]
            for name in chosen
        ]
        if lines:
            tables.append(markdown([heading, *curves[chosen[0]]], lines))
    return "\n\n".join(tables)


def draw(curves: Curves) -> "Figure":
    """A panel for every problem: mean over seeds, and bands from the lowest to the highest."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, panels = new_figure(4 * columns, 3 * rows, rows, columns)
    for axes in panels[len(curves) :]:
        axes.remove()
    for axes, (name, learners) in zip(panels, curves.items(), strict=False):
        for learner, runs in learners.items():
            steps, values = np.array(runs).transpose(2, 0, 1)  # (R, T) each
            dash = "--" if "," in learner else "-"
            plot_runs(axes, steps.mean(0), values, linestyle=dash, label=learner, linewidth=1.4)
        if name not in EPISODES:
            axes.axhline(GOAL, color="grey", linewidth=0.6, linestyle=":")
        worth = "greedy return" if name in EPISODES else "greedy share of the optimum"
        axes.set(title=name, xlabel="environment steps", ylabel=worth)
        axes.locator_params(axis="x", nbins=5)
        axes.legend(frameon=False, fontsize=6)
    return figure


REPORT: Final = """# Bandits and episodes

What the greedy policy gets at the end, on bandits as a share of the optimum; mean over {seeds} \
seeds ± Student's 95% interval. Contexts and starts come in groups of {group_size} for GRPO, so it \
sees so many times fewer of them than the others do in as many steps.

{table}

![learning curves](bandits.png)
"""


def main(settings: BanditSettings) -> None:
    """Train every learner on every problem and write what came of it, after each."""
    problems = {name: problem(name) for name in settings.problems if name not in EPISODES}
    for name in EPISODES.keys() & settings.problems:
        try:
            gym.make(name).close()
        except gym.error.DependencyNotInstalled as missing:
            raise InputError(f"{name}: {missing}") from None
    folder = open_run(settings, "bandits")
    curves: Curves = {}
    runs = [(each, name) for each in settings.problems for name in settings.learners_on(each)]
    for each, name in (bar := tqdm(runs, desc="bandits", disable=None)):
        bar.set_postfix_str(f"{each}, {name}")
        curves.setdefault(each, {})[name] = [
            train_on_episodes(name, each, seed, settings)
            if each in EPISODES
            else train(name, problems[each], seed, settings)
            for seed in range(settings.seeds)
        ]
        write_json(folder / "results.json", curves)
    save(draw(curves), folder / "bandits.png")
    with written_whole(folder / "report.md") as temporary:
        told = {"seeds": settings.seeds, "group_size": settings.group_size, "table": table(curves)}
        temporary.write_text(REPORT.format(**told), "utf-8")
    Console().print(table(curves), markup=False, highlight=False, soft_wrap=True)
    print(f"\n{folder / 'report.md'}")


if __name__ == "__main__":
    run_main(BanditSettings, main)
