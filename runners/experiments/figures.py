"""Figures of a run and of a comparison, in colours and shapes that colour-blind readers tell apart.

matplotlib is imported where a figure is begun: a script may import this module whatever state that
library is in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from maw_gym.envs.bandit import SMALLEST_GAP, Bandit
from maw_gym.envs.rendering import COLOURS, check_matplotlib, depths_frame
from maw_gym.files import written_whole
from maw_gym.runners.experiments.analysis import COLUMNS, MAIN, Comparison
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
    "full-ndcg": ("#E69F00", "-", "X"),
    "full-ndcg-retrieval": ("#8C6D00", "--", "*"),
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


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


# --- a run -----------------------------------------------------------------------------------


def draw_run(
    task: RetrievalTask, spec: TaskSettings, learner: str, result: Result, folder: Path
) -> None:
    """Write the run's figures into `folder`, and that of attention into its TensorBoard too."""
    assert result.depths is not None
    train, validation, test = (
        Bandit(task.table(split), reward=spec.reward) for split in ("train", "validation", "test")
    )
    levels = {
        "random": float(validation.random.mean()),
        "best_fixed": validation.mean(train.best_fixed()),
        "oracle": validation.mean(validation.oracle),
    }
    save(reward_curve(levels, learner, result), folder / "reward_curve.png")
    save(depth_usage(result.depths, test.num_depths, learner), folder / "depth_usage.png")
    save(reward_by_depth(test.terms), folder / "reward_by_depth.png")
    attention = attention_by_depth(task)
    with written_whole(folder / "attention_by_depth.png") as temporary:
        Image.fromarray(attention).save(temporary, format="png")
    with SummaryWriter(str(folder.parent)) as events:
        events.add_image("attention/depths", attention, dataformats="HWC")


def learning_axes(levels: Mapping[str, float], title: str) -> "tuple[Figure, Axes]":
    """Axes for shares of the gap between chance and the oracle, with both and a fixed depth."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    axes.axhline(1, color="#D55E00", linewidth=1, label=f"oracle, {levels['oracle']:.4f}")
    label = f"best fixed depth, {levels['best_fixed']:.4f}"
    fixed = share(levels["best_fixed"], levels)
    axes.axhline(float(fixed), color="#E69F00", linestyle=(0, (6, 2)), label=label)
    label = f"random depth, {levels['random']:.4f}"
    axes.axhline(0, color="#4D4D4D", linestyle=(0, (1, 2)), label=label)
    axes.set_title(title)
    axes.set_xlabel("training queries seen (environment steps)")
    axes.set_ylabel("share of the gap from chance to the oracle")
    return figure, axes


def share(rewards: Floats | float, levels: Mapping[str, float]) -> Floats:
    """Mean rewards as shares of the gap between chance (0) and the oracle (1)."""
    gap = max(levels["oracle"] - levels["random"], SMALLEST_GAP)
    return (np.asarray(rewards) - levels["random"]) / gap


def reward_curve(levels: Mapping[str, float], learner: str, result: Result) -> "Figure":
    """A learner's share of the gap over training, on training and on validation queries."""
    assert result.trained is not None
    steps, means = np.array(result.trained.history, np.float64).T
    title = f"{learner}: validation reward {means[0]:.4f} to {means[-1]:.4f}"
    figure, axes = learning_axes(levels, title)
    if result.trained.training:
        seen, shares = zip(*result.trained.training, strict=True)
        axes.plot(seen, shares, color="#56B4E9", label="training, as it explores")
    axes.plot(
        steps,
        share(means, levels),
        color=COLOURS["entropy"],
        marker="o",
        markersize=3,
        label="validation, greedy",
    )
    label = "averaged from here" if result.trained.training else "kept"
    axes.axvline(result.trained.chosen_at, color="#999999", linewidth=0.8, label=label)
    figure.legend(frameon=False, ncols=3, fontsize="small", loc="outside lower center")
    return figure


def depth_usage(depths: NDArray[np.int64], num_depths: int, learner: str) -> "Figure":
    """How many test queries were sent to each depth."""
    figure = new_figure(7, 3)
    axes = figure.subplots()
    counts = np.bincount(depths, minlength=num_depths)
    axes.bar(np.arange(num_depths), counts, color=COLOURS["entropy"])
    axes.set_title(f"Depths chosen by {learner}: {np.count_nonzero(counts)} of {num_depths}")
    axes.set_xlabel(DEPTH)
    axes.set_ylabel("test queries")
    return figure


def reward_by_depth(terms: Mapping[str, NDArray[np.float32]], dataset: str = "") -> "Figure":
    """Means of each reward term (N, D) at every depth, each on a scale of its own."""
    figure = new_figure(7, 6)
    panels = figure.subplots(len(terms), sharex=True)
    for axes, (name, values) in zip(panels, terms.items(), strict=True):
        mean = values.mean(axis=0, dtype=np.float64)
        half = 1.96 * values.std(axis=0, dtype=np.float64) / np.sqrt(len(values))
        axes.plot(mean, color=COLOURS[name], marker="o", markersize=3)
        depths = np.arange(len(mean))
        axes.fill_between(depths, mean - half, mean + half, color=COLOURS[name], alpha=0.15)
        axes.set_ylabel(name)
        axes.ticklabel_format(useOffset=False)
    title = "mean over test queries with 95% interval"
    panels[0].set_title(f"{dataset}: {title}" if dataset else title.capitalize())
    panels[-1].set_xlabel(DEPTH)
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


def draw_comparison(made: Comparison, folder: Path, name: str) -> None:
    """Write the five figures of a dataset into `folder`, under names that begin with `name`."""
    terms = {term: np.concatenate([fold.terms[term] for fold in made.folds]) for term in COLUMNS}
    figures = {
        "reward_curves": reward_curves(made),
        "ndcg": ndcg_intervals(made),
        "depth_usage": shares_of_depths(made),
        "reward_terms": reward_by_depth(terms, made.dataset),
        "differences": differences(made),
    }
    for what, figure in figures.items():
        save(figure, folder / f"{name}-{what}.png")


def reward_curves(made: Comparison) -> "Figure":
    """Learners' shares of the gap over training: means and ranges over seeds, folds averaged."""
    known = [fold.validation for fold in made.folds]
    levels = {name: float(np.mean([fold[name] for fold in known])) for name in known[0]}
    title = f"{made.dataset}: validation queries, greedy (lines: means, bands: all seeds)"
    figure, axes = learning_axes(levels, title)
    for name, results in made.results.items():
        histories = [np.array(one.history, np.float64).T for one in results if one.history]
        # `full-ndcg` and its like are paid for something else.
        if not histories or name.startswith("full-ndcg"):
            continue
        grid = np.linspace(
            max(steps[0] for steps, _ in histories), min(steps[-1] for steps, _ in histories), GRID
        )
        curves = share(np.array([np.interp(grid, *history) for history in histories]), levels)
        curves = curves.reshape(-1, len(made.folds), GRID).mean(axis=1)
        colour, dash, marker = _looks(made, name)
        look: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": marker}
        axes.plot(grid, curves.mean(axis=0), **look, markevery=10, markersize=4, label=name)
        if len(curves) > 1:
            low, high = curves.min(axis=0), curves.max(axis=0)
            axes.fill_between(grid, low, high, color=colour, alpha=0.15)
    figure.legend(frameon=False, ncols=4, fontsize="small", loc="outside lower center")
    return figure


def _looks(made: Comparison, name: str) -> tuple[str, str, str]:
    """Colour, dash and marker of a method: no two of a comparison look alike."""
    if name in LOOKS:
        return LOOKS[name]
    at = [one for one in made.results if one not in LOOKS].index(name)
    return [*LOOKS.values()][at % len(LOOKS)][0], ("-.", ":", "--")[at // len(LOOKS) % 3], ""


def ndcg_intervals(made: Comparison) -> "Figure":
    """Every method's nDCG@10 with its interval; the baseline's interval as a strip."""
    rows = made.rows[::-1]
    figure = new_figure(8, 1.2 + 0.28 * len(rows))
    axes = figure.subplots()
    named = set()
    for at, row in enumerate(rows):
        mean, low, high = (row["retrieval"][MAIN][name] for name in ("mean", "low", "high"))
        colour, label = KINDS[row["kind"]]
        axes.errorbar(
            mean,
            at,
            xerr=[[mean - low], [high - mean]],
            color=colour,
            marker="D" if row["kind"] == "oracle" else "o",
            capsize=3,
            label=None if label in named else label,
        )
        axes.text(high, at, f"  {mean:.4f}", va="center", fontsize="small")
        named.add(label)
        if row["method"] == made.baseline:
            axes.axvspan(low, high, color="#999999", alpha=0.12)
            axes.axvline(mean, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.margins(x=0.12)
    axes.set_xlabel(f"{MAIN}, mean over test queries with bootstrap 95% interval")
    axes.set_title(f"{made.dataset}: retrieval (strip: the baseline, {made.baseline})")
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    return figure


def shares_of_depths(made: Comparison) -> "Figure":
    """Share of test queries sent to each depth by each method that chooses, seeds together."""
    count = made.references[0].facts["depths"]
    shares = {}
    for name, method in made.methods.items():
        wanted = method.seeded or name in ("best-fixed-reward", "oracle")
        if wanted and name in made.results and made.has_depths(name):
            chosen = made.values(name, "depth").ravel()
            shares[name] = 100 * np.bincount(chosen, minlength=count) / chosen.size
    figure = new_figure(8, 1.4 + 0.45 * max(len(shares), 1))
    axes = figure.subplots()
    # A constant choice must not darken all others: shares from a quarter on look the same.
    drawn = [*shares.values()] or [np.zeros(count)]
    image = axes.imshow(drawn, aspect="auto", cmap="Blues", vmin=0, vmax=25)
    axes.set_yticks(range(len(shares)), [*shares])
    axes.set_xlabel(DEPTH)
    axes.set_title(f"{made.dataset}: depths chosen for test queries")
    figure.colorbar(image, ax=axes, label="% of queries", extend="max")
    return figure


def differences(made: Comparison) -> "Figure":
    """Where the learners win and lose against the baseline."""
    figure = new_figure(8, 4.8)
    axes = figure.subplots()
    against = made.scores(made.baseline)
    others = [name for name in made.results if name != made.baseline]
    places = np.linspace(0, 100, len(against))
    for name in [name for name in others if made.methods[name].kind == "learner"] or others:
        ordered = np.sort(made.scores(name) - against)[::-1]
        colour, dash, _ = _looks(made, name)
        wins, losses = (ordered > 1e-9).mean(), (ordered < -1e-9).mean()
        label = f"{name}: {wins:.0%} of queries better, {losses:.0%} worse"
        axes.plot(places, ordered, color=colour, linestyle=dash, label=label)
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set_xlabel("test queries, each curve in its own order (%)")
    axes.set_ylabel(f"{MAIN} minus {made.baseline}")
    axes.set_title(f"{made.dataset}: query by query against {made.baseline}")
    axes.legend(frameon=False, fontsize="small")
    return figure
