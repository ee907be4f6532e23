"""Figures of a run: the reward curve, which depths were chosen, the reward terms by depth.

matplotlib is imported where a figure is begun: a script may import this module whatever state that
library is in.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from maw_gym.envs.bandit import SMALLEST_GAP, Bandit
from maw_gym.envs.rendering import COLOURS, importing_matplotlib
from maw_gym.files import written_whole
from maw_gym.tables.task import RetrievalTask
from runners.experiments.results import Did
from runners.experiments.settings import TaskSettings
from runners.experiments.training import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        InputError: matplotlib cannot be imported under its present settings.
    """
    with importing_matplotlib():
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def draw(
    task: RetrievalTask,
    spec: TaskSettings,
    learner: str,
    did: Did,
    folder: Path,
) -> None:
    """Write the run's figures into `folder`, and that of attention into its TensorBoard too."""
    with importing_matplotlib():
        from maw_gym.envs.drawing import figure_rgb
    assert did.trained is not None
    assert did.depths is not None
    train, validation, test = (
        Bandit(task.table(split), reward=spec.reward) for split in ("train", "validation", "test")
    )
    curve = reward_curve(validation, train.best_fixed(), learner, did.trained)
    save(curve, folder / "reward_curve.png")
    save(depth_usage(did.depths, test.num_depths, learner), folder / "depth_usage.png")
    terms = {name: values.mean(0) for name, values in test.terms.items()}
    save(reward_by_depth(terms), folder / "reward_by_depth.png")
    attention = attention_by_depth(task)
    save(attention, folder / "attention_by_depth.png")
    with SummaryWriter(str(folder.parent)) as events:
        events.add_image("attention/depths", figure_rgb(attention), dataformats="HWC")


def reward_curve(validation: Bandit, fixed: int, learner: str, trained: Trained) -> "Figure":
    """Share of the gap between chance (0) and the oracle (1) over training and validation."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    chance, oracle = validation.random.mean(), validation.best.mean(dtype=np.float64)
    gap = max(float(oracle - chance), SMALLEST_GAP)
    if trained.training:
        steps, shares = zip(*trained.training, strict=True)
        axes.plot(
            steps, shares, color=COLOURS["focus"], alpha=0.6, label="training, as it explores"
        )
    steps, means = zip(*trained.history, strict=True)
    closed = [(mean - chance) / gap for mean in means]
    label = "validation, greedy"
    axes.plot(steps, closed, color=COLOURS["entropy"], marker="o", markersize=3, label=label)
    level = (validation.mean(fixed) - chance) / gap
    label = f"best fixed depth on validation, {level:.3f}"
    axes.axhline(level, color=COLOURS["reward"], linestyle="--", label=label)
    label = "averaged from here" if trained.training else "kept"
    axes.axvline(trained.chosen_at, color=COLOURS["regret"], linewidth=0.8, label=label)
    axes.set_title(f"{learner}: validation reward {means[0]:.4f} to {means[-1]:.4f}")
    axes.set_xlabel("training queries seen (environment steps)")
    axes.set_ylabel("share of the gap from chance to the oracle")
    axes.legend(frameon=False)
    return figure


def depth_usage(depths: NDArray[np.int64], num_depths: int, learner: str) -> "Figure":
    """How many test queries were sent to each depth."""
    figure = new_figure(7, 3)
    axes = figure.subplots()
    counts = np.bincount(depths, minlength=num_depths)
    axes.bar(np.arange(num_depths), counts, color=COLOURS["entropy"])
    axes.set_title(f"Depths chosen by {learner}: {np.count_nonzero(counts)} of {num_depths}")
    axes.set_xlabel("depth, from focused to broad")
    axes.set_ylabel("test queries")
    return figure


def reward_by_depth(terms: dict[str, NDArray[Any]]) -> "Figure":
    """Mean of each reward term at every depth, each on a scale of its own."""
    figure = new_figure(7, 6)
    for axes, (name, values) in zip(
        figure.subplots(len(terms), sharex=True), terms.items(), strict=True
    ):
        axes.plot(values, color=COLOURS[name], marker="o", markersize=3)
        axes.set_ylabel(name)
        axes.ticklabel_format(useOffset=False)
    figure.axes[0].set_title("Mean over test queries")
    figure.axes[-1].set_xlabel("depth, from focused to broad")
    return figure


def attention_by_depth(task: RetrievalTask) -> "Figure":
    """Attention of one test query through five depths, from the most focused to the broadest.

    The query is the first of 8 tokens or more, or the first of all.
    """
    with importing_matplotlib():
        from maw_gym.envs.drawing import depths_figure
    queries, depths = task.collection.splits["test"], task.embedder.maw.depths
    lengths = [len(ids) for ids in task.embedder.query_ids(queries.texts)]
    row = next((row for row, length in enumerate(lengths) if length >= 8), 0)
    weights = {}
    for depth in sorted({*(depths * part // 4 for part in range(4)), depths - 1}):
        weights[depth], tokens = task.attention(queries.ids[row], depth)
    return depths_figure(queries.ids[row], weights, tokens)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
