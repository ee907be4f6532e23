"""Figures of a run and of a comparison, in colours and shapes that colour-blind readers tell apart.

matplotlib is imported where a figure is begun: a script may import this module whatever state that
library is in.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from maw_gym.envs.bandit import SMALLEST_GAP, Bandit
from maw_gym.envs.rendering import COLOURS, depths_frame
from maw_gym.files import written_whole
from maw_gym.runners.experiments.analysis import COLUMNS, MAIN, Comparison, levels
from maw_gym.runners.experiments.result import Floats, Result
from maw_gym.runners.experiments.settings import TaskSettings
from maw_gym.tables.task import RetrievalTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette; dashes and markers say the same once more.
LOOKS: Final[dict[str, tuple[str, str, str]]] = {
    "grpo": ("#0072B2", "-", "o"),
    "ppo": ("#D55E00", "--", "s"),
    "supervised-oracle": ("#009E73", "-.", "^"),
    "supervised-rule": ("#CC79A7", ":", "v"),
    "full-information": ("#000000", "-", "D"),
    "grpo-retrieval": ("#56B4E9", "--", "P"),
}
KINDS: Final = {
    "ranker": ("#56B4E9", "BM25, alone or fused"),
    "encoder": ("#999999", "encoder, nothing routed"),
    "static": ("#E69F00", "depth by rule"),
    "learner": ("#0072B2", "depth by learner"),
    "oracle": ("#D55E00", "oracle (upper bound)"),
}
DEPTH: Final = "depth, from focused to broad"
GRID: Final = 101  # points of a curve


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> "tuple[Figure, list[Axes]]":
    """An empty figure of so many inches, and its panels; one column of them shares its x-axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [*figure.subplots(rows, columns, squeeze=False, sharex=columns == 1).flat]


def legend_below(figure: "Figure", columns: int = 3) -> None:
    """A legend of all panels below them."""
    figure.legend(frameon=False, ncols=columns, fontsize="small", loc="outside lower center")


def plot_runs(axes: "Axes", steps: Floats, runs: Floats, **look: Any) -> None:
    """The mean over runs (R, T), in a band from the lowest to the highest."""
    (line,) = axes.plot(steps, runs.mean(axis=0), **look)
    low, high = runs.min(axis=0), runs.max(axis=0)
    axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


# --- a run -----------------------------------------------------------------------------------


def draw_run(
    task: RetrievalTask, spec: TaskSettings, learner: str, result: Result, folder: Path
) -> None:
    """Write the run's figures into `folder`, and that of attention into its TensorBoard too."""
    known = {name: float(x.mean()) for name, x in levels(task, spec.reward, "validation").items()}
    save(reward_curve(known, learner, result), folder / "reward_curve.png")
    attention = attention_by_depth(task)
    with written_whole(folder / "attention_by_depth.png") as temporary:
        Image.fromarray(attention).save(temporary, format="png")
    with SummaryWriter(str(folder.parent)) as events:
        events.add_image("attention/depths", attention, dataformats="HWC")


def learning_axes(known: Mapping[str, float], title: str) -> "tuple[Figure, Axes]":
    """Axes for shares of the gap between chance and the oracle, with both and a fixed depth."""
    figure, (axes,) = new_figure(8, 5)
    fixed = float(share(known["best_fixed"], known))
    for height, name, label, colour, dash in (
        (1, "oracle", "oracle", "#D55E00", "-"),
        (fixed, "best_fixed", "best fixed depth", "#E69F00", (0, (6, 2))),
        (0, "random", "random depth", "#4D4D4D", (0, (1, 2))),
    ):
        axes.axhline(height, color=colour, linestyle=dash, label=f"{label}, {known[name]:.4f}")
    axes.set(title=title, xlabel="training queries seen (environment steps)")
    axes.set_ylabel("share of the gap from chance to the oracle")
    return figure, axes


def share(rewards: Floats | float, known: Mapping[str, float]) -> Floats:
    """Mean rewards as shares of the gap between chance (0) and the oracle (1)."""
    gap = max(known["oracle"] - known["random"], SMALLEST_GAP)
    return (np.asarray(rewards) - known["random"]) / gap


def reward_curve(known: Mapping[str, float], learner: str, result: Result) -> "Figure":
    """A learner's share of the gap over training, on training and on validation queries."""
    assert result.trained is not None
    steps, means = np.array(result.trained.history, np.float64).T
    title = f"{learner}: validation reward {means[0]:.4f} to {means[-1]:.4f}"
    figure, axes = learning_axes(known, title)
    if result.trained.training:
        seen, shares = zip(*result.trained.training, strict=True)
        axes.plot(seen, shares, color="#56B4E9", label="training, as it explores")
    look: dict[str, Any] = {"color": COLOURS["entropy"], "marker": "o", "markersize": 3}
    axes.plot(steps, share(means, known), label="validation, greedy", **look)
    label = "averaged from here" if result.trained.training else "kept"
    axes.axvline(result.trained.chosen_at, color="#999999", linewidth=0.8, label=label)
    legend_below(figure)
    return figure


def attention_by_depth(task: RetrievalTask) -> NDArray[np.uint8]:
    """Attention of one test query through five depths, from the most focused to the broadest."""
    queries, depths = task.collection.splits["test"], task.embedder.maw.depths
    lengths = [len(ids) for ids in task.embedder.query_ids(queries.texts)]
    row = next((row for row, length in enumerate(lengths) if length >= 8), 0)
    weights = {}
    for depth in sorted({*(depths * part // 4 for part in range(4)), depths - 1}):
        weights[depth], tokens = task.attention(queries.ids[row], depth)
    return depths_frame(queries.ids[row], weights, tokens)


# --- a comparison ----------------------------------------------------------------------------


def reward_curves(made: Comparison) -> "Figure":
    """Learners' shares of the gap over training: means and ranges over seeds, folds averaged."""
    found = [levels(fold.task, fold.spec.task.reward, "validation") for fold in made.encoders[0]]
    known = {name: float(np.mean([one[name].mean() for one in found])) for name in found[0]}
    title = f"{made.dataset}: validation queries, greedy (lines: means, bands: all seeds)"
    figure, axes = learning_axes(known, title)
    dashes, colours = ("-.", ":", "--"), [colour for colour, *_ in LOOKS.values()]
    others = itertools.cycle((colour, dash, "") for dash in dashes for colour in colours)
    for name, results in made.results.items():
        histories = [np.array(one.history, np.float64).T for one in results if one.history]
        # `full-ndcg` and its like are paid for something else.
        if not histories or name.startswith("full-ndcg"):
            continue
        grid = np.linspace(
            max(steps[0] for steps, _ in histories), min(steps[-1] for steps, _ in histories), GRID
        )
        curves = share(np.array([np.interp(grid, *history) for history in histories]), known)
        curves = curves.reshape(-1, len(found), GRID).mean(axis=1)
        colour, dash, mark = LOOKS.get(name) or next(others)
        look = {"color": colour, "linestyle": dash, "marker": mark, "label": name}
        plot_runs(axes, grid, curves, markevery=10, markersize=4, **look)
    legend_below(figure, 4)
    return figure


def ndcg_intervals(made: Comparison) -> "Figure":
    """Every method's nDCG@10 with its interval; the baseline's interval as a strip."""
    rows = made.rows[::-1]
    names, kinds = [row["method"] for row in rows], np.array([row["kind"] for row in rows])
    found = pd.DataFrame([row["retrieval"][MAIN] for row in rows])
    strip = found.iloc[names.index(made.baseline)]
    figure, (axes,) = new_figure(8, 1.2 + 0.28 * len(rows))
    for kind, (colour, label) in KINDS.items():
        if kind in kinds:
            some, mark = found[kinds == kind], "D" if kind == "oracle" else "o"
            ends = [some["mean"] - some["low"], some["high"] - some["mean"]]
            look: dict[str, Any] = {"fmt": mark, "color": colour, "capsize": 3, "label": label}
            axes.errorbar(some["mean"], some.index, xerr=ends, **look)
    for at, one in found.iterrows():
        axes.text(one["high"], at, f"  {one['mean']:.4f}", va="center", fontsize="small")
    axes.axvspan(strip["low"], strip["high"], color="#999999", alpha=0.12)
    axes.axvline(strip["mean"], color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(rows)), names)
    axes.margins(x=0.12)
    title = f"{made.dataset}: retrieval (strip: the baseline, {made.baseline})"
    axes.set(title=title, xlabel=f"{MAIN}, mean over test queries with bootstrap 95% interval")
    legend_below(figure)
    return figure


def shares_of_depths(made: Comparison) -> "Figure":
    """Share of test queries sent to each depth by each method that chooses, seeds together."""
    count = made.folds[0].task.embedder.maw.depths
    shares = {}
    for name in made.results:
        wanted = made.methods[name].seeded or name in ("best-fixed-reward", "oracle")
        if wanted and made.has_depths(name):
            chosen = made.values(name, "depth").ravel()
            shares[name] = 100 * np.bincount(chosen, minlength=count) / chosen.size
    figure, (axes,) = new_figure(8, 1.4 + 0.45 * max(len(shares), 1))
    # A constant choice must not darken all others: shares from a quarter on look the same.
    drawn = [*shares.values()] or [np.zeros(count)]
    image = axes.imshow(drawn, aspect="auto", cmap="Blues", vmin=0, vmax=25)
    axes.set_yticks(range(len(shares)), [*shares])
    axes.set(title=f"{made.dataset}: depths chosen for test queries", xlabel=DEPTH)
    figure.colorbar(image, ax=axes, label="% of queries", extend="max")
    return figure


def reward_terms(made: Comparison) -> "Figure":
    """Means of the reward and its terms at every depth, each on a scale of its own."""
    tests = [Bandit(one.task.table("test"), (), one.spec.task.reward) for one in made.encoders[0]]
    figure, panels = new_figure(7, 6, len(COLUMNS))
    for axes, name in zip(panels, COLUMNS, strict=True):
        values = np.concatenate([one.terms[name] for one in tests])  # (N, D)
        mean = values.mean(axis=0, dtype=np.float64)
        half = 1.96 * values.std(axis=0, dtype=np.float64) / np.sqrt(len(values))
        depths, colour = np.arange(len(mean)), COLOURS[name]
        axes.plot(depths, mean, color=colour, marker="o", markersize=3)
        axes.fill_between(depths, mean - half, mean + half, color=colour, alpha=0.15)
        axes.set_ylabel(name)
        axes.ticklabel_format(useOffset=False)
    panels[0].set_title(f"{made.dataset}: mean over test queries with 95% interval")
    panels[-1].set_xlabel(DEPTH)
    return figure


FIGURES: Final = {
    "reward_curves": (
        reward_curves,
        "What the greedy policy closes of the gap from chance to the oracle on validation queries"
        " while it trains; bands reach from the lowest to the highest seed.",
    ),
    "ndcg": (ndcg_intervals, "nDCG@10 on test queries with bootstrap 95% intervals over queries."),
    "depth_usage": (shares_of_depths, "How often each depth is chosen for test queries."),
    "reward_terms": (
        reward_terms,
        "The reward and its terms at every depth, means over test queries.",
    ),
}


def draw_comparison(made: Comparison, folder: Path, name: str) -> None:
    """Write the figures of a dataset into `folder`, under names that begin with `name`."""
    for what, (draw, _) in FIGURES.items():
        save(draw(made), folder / f"{name}-{what}.png")
