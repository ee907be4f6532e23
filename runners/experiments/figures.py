"""Figures of a run and of a comparison, in colours and shapes that colour-blind readers tell apart.

matplotlib is imported where a figure is begun: a script may import this module whatever state that
library is in.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from maw_gym.envs.bandit import SMALLEST_GAP, Bandit
from maw_gym.envs.rendering import COLOURS, importing_matplotlib
from maw_gym.files import written_whole
from maw_gym.tables.task import RetrievalTask
from runners.experiments.analysis import COLUMNS, LEVELS, MAIN, Comparison
from runners.experiments.methods import Result
from runners.experiments.settings import TaskSettings
from runners.experiments.training import Trained

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
    # Paid for something else: their rewards are not comparable, their retrieval is.
    "full-ndcg": ("#E69F00", "-", "X"),
    "full-ndcg-retrieval": ("#8C6D00", "--", "*"),
}
OTHER_LOOKS: Final = [
    (colour, dash, "") for dash in ("-.", ":", "--") for colour, _, _ in LOOKS.values()
]
KINDS: Final = {
    "ranker": ("#56B4E9", "BM25, alone or fused"),
    "encoder": ("#999999", "encoder, nothing routed"),
    "static": ("#E69F00", "depth by rule"),
    "learner": ("#0072B2", "depth by learner"),
    "oracle": ("#D55E00", "oracle (upper bound)"),
}
GRID: Final = 101  # points of a curve


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    with importing_matplotlib():
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def draw_run(
    task: RetrievalTask,
    spec: TaskSettings,
    learner: str,
    result: Result,
    folder: Path,
) -> None:
    """Write the run's figures into `folder`, and that of attention into its TensorBoard too."""
    with importing_matplotlib():
        from maw_gym.envs.drawing import figure_rgb
    assert result.trained is not None
    assert result.depths is not None
    train, validation, test = (
        Bandit(task.table(split), reward=spec.reward) for split in ("train", "validation", "test")
    )
    curve = reward_curve(validation, train.best_fixed(), learner, result.trained)
    save(curve, folder / "reward_curve.png")
    save(depth_usage(result.depths, test.num_depths, learner), folder / "depth_usage.png")
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
    """Attention of one test query through five depths, from the most focused to the broadest."""
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


# --- a comparison ----------------------------------------------------------------------------


def draw_comparison(made: Comparison, folder: Path, name: str) -> None:
    """Write the five figures of a dataset into `folder`, under names that begin with `name`."""
    figures = {
        "reward_curves": reward_curves(made),
        "ndcg": ndcg_intervals(made),
        "depth_usage": shares_of_depths(made),
        "reward_terms": reward_terms(made),
        "differences": differences(made),
    }
    for what, figure in figures.items():
        save(figure, folder / f"{name}-{what}.png")


def reward_curves(made: Comparison) -> "Figure":
    """Validation reward of the learners over training; the oracle beyond a broken axis."""
    figure = new_figure(8, 5.4)
    top, axes = figure.subplots(2, sharex=True, height_ratios=(1, 7))
    random, fixed, oracle = (
        float(np.mean([fold.validation[name] for fold in made.folds])) for name in LEVELS
    )
    for name in made.results:
        # `full-ndcg` and its like are paid for something else.
        if made.kind(name) == "learner" and not name.startswith("full-ndcg"):
            _curve(axes, made, name)
    axes.axhline(
        fixed, color="#E69F00", linestyle=(0, (6, 2)), label=f"best fixed depth, {fixed:.4f}"
    )
    axes.axhline(
        random, color="#4D4D4D", linestyle=(0, (1, 2)), label=f"random depth, {random:.4f}"
    )
    top.axhline(oracle, color="#D55E00")
    top.annotate(
        f"oracle, {oracle:.4f}",
        (0.99, oracle),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize="small",
    )
    _break(top, axes, oracle)
    top.set_title(f"{made.dataset}: reward on validation queries (lines: means, bands: all seeds)")
    axes.set_xlabel("training queries seen (environment steps)")
    axes.set_ylabel("mean reward of the greedy policy")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, ncols=4, fontsize="small", loc="outside lower center"
    )
    return figure


def _curve(axes: "Axes", made: Comparison, name: str) -> None:
    """Mean and range over seeds, folds averaged, on a common grid."""
    histories = [np.array(one.history or [(0, np.nan)], np.float64) for one in made.results[name]]
    grid = np.linspace(
        max(history[0, 0] for history in histories),
        min(history[-1, 0] for history in histories),
        GRID,
    )
    curves = np.array([np.interp(grid, *history.T) for history in histories])
    curves = curves.reshape(-1, len(made.folds), GRID).mean(axis=1)
    colour, dash, marker = _looks(made, name)
    axes.plot(
        grid,
        curves.mean(axis=0),
        color=colour,
        linestyle=dash,
        marker=marker,
        markevery=10,
        markersize=4,
        label=name,
    )
    if len(curves) > 1:
        axes.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15)


def _looks(made: Comparison, name: str) -> tuple[str, str, str]:
    """Colour, dash and marker of a method: no two of a comparison look alike."""
    if name in LOOKS:
        return LOOKS[name]
    return OTHER_LOOKS[[one for one in made.results if one not in LOOKS].index(name) % 24]


def _break(top: "Axes", bottom: "Axes", level: float) -> None:
    """Show that the y axis leaves something out between two plots."""
    top.set_ylim(level - 6e-4, level + 4e-4)
    top.set_yticks([level])
    top.yaxis.set_major_formatter("{x:.3f}")
    bottom.ticklabel_format(axis="y", useOffset=False)
    top.spines.bottom.set_visible(False)
    bottom.spines.top.set_visible(False)
    top.tick_params(bottom=False)
    for axes, height in ((top, 0), (bottom, 1)):
        axes.plot(
            [0, 1],
            [height, height],
            transform=axes.transAxes,
            color="k",
            clip_on=False,
            marker=[(-1, -0.6), (1, 0.6)],
            markersize=10,
            linestyle="none",
        )


def ndcg_intervals(made: Comparison) -> "Figure":
    """Every method's nDCG@10 with its interval; the baseline's interval as a strip."""
    rows = made.rows[::-1]
    figure = new_figure(8, 1.2 + 0.28 * len(rows))
    axes = figure.subplots()
    named = set()
    for at, row in enumerate(rows):
        found = row["retrieval"][MAIN]
        colour, label = KINDS[row["kind"]]
        axes.errorbar(
            found["mean"],
            at,
            xerr=[[found["mean"] - found["low"]], [found["high"] - found["mean"]]],
            color=colour,
            marker="o" if row["kind"] != "oracle" else "D",
            capsize=3,
            label=None if label in named else label,
        )
        axes.text(found["high"], at, f"  {found['mean']:.4f}", va="center", fontsize="small")
        named.add(label)
        if row["method"] == made.baseline:
            axes.axvspan(found["low"], found["high"], color="#999999", alpha=0.12)
            axes.axvline(found["mean"], color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.margins(x=0.12)
    axes.set_xlabel(f"{MAIN}, mean over test queries with bootstrap 95% interval")
    axes.set_title(f"{made.dataset}: retrieval (strip: the baseline, {made.baseline})")
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    return figure


def shares_of_depths(made: Comparison) -> "Figure":
    """Share of test queries sent to each depth by each method that chooses, seeds together."""
    shown = [
        name
        for name in made.results
        if made.has_depths(name)
        and (made.methods[name].seeded or name in ("best-fixed-reward", "oracle"))
    ]
    depths = made.references[0].facts["depths"]
    figure = new_figure(8, 1.4 + 0.45 * max(len(shown), 1))
    axes = figure.subplots()
    shares = np.zeros((max(len(shown), 1), depths))
    for row, name in enumerate(shown):
        chosen = made.values(name, "depths").ravel()
        shares[row] = np.bincount(chosen, minlength=depths) / chosen.size
    # A constant choice must not darken all others: shares from a quarter on look the same.
    image = axes.imshow(100 * shares, aspect="auto", cmap="Blues", vmin=0, vmax=25)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_xlabel("depth, from focused to broad")
    axes.set_title(f"{made.dataset}: depths chosen for test queries")
    figure.colorbar(image, ax=axes, label="% of queries", extend="max")
    return figure


def reward_terms(made: Comparison) -> "Figure":
    """The reward and its terms by depth, folds averaged by their number of queries."""
    weights = [len(fold.query_ids) for fold in made.folds]
    terms = {
        name: np.average([fold.by_depth[name] for fold in made.folds], axis=0, weights=weights)
        for name in COLUMNS
    }
    figure = reward_by_depth(terms)
    figure.axes[0].set_title(f"{made.dataset}: means over test queries, by depth")
    return figure


def differences(made: Comparison) -> "Figure":
    """Where the learners win and lose against the baseline."""
    figure = new_figure(8, 4.8)
    axes = figure.subplots()
    against = made.scores(made.baseline)
    others = [name for name in made.results if name != made.baseline]
    names = [name for name in others if made.kind(name) == "learner"] or others
    places = np.arange(len(against)) / max(len(against) - 1, 1) * 100
    for name in names:
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
