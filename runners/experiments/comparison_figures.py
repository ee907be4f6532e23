"""Figures of a comparison, in colours and shapes that colour-blind readers can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from maw_gym.envs.rendering import COLOURS
from runners.experiments.analysis import MAIN, Floats, Results
from runners.experiments.fields import Reference
from runners.experiments.figures import new_figure, reward_by_depth, save
from runners.experiments.methods import METHODS
from runners.experiments.results import slug
from runners.experiments.writing import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette; dashes and markers say the same once more.
# Of the learners whose curves are comparable: `full-ndcg` and its like are paid for something else.
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
GRID: Final = 101  # points of a curve


def draw_all(outcome: Outcome, baseline: str, folder: Path) -> None:
    """Write the five figures of a dataset into `folder`."""
    name = outcome.field.dataset
    figures = {
        "reward_curves": reward_curves(outcome.results, outcome.references, name),
        "ndcg": ndcg_intervals(outcome.rows, baseline, name),
        "depth_usage": depth_usage(outcome.results, outcome.references, name),
        "reward_terms": reward_terms(outcome.references, name),
        "differences": differences(outcome.named, baseline, name),
    }
    for what, figure in figures.items():
        save(figure, folder / f"{slug(name)}-{what}.png")


def reward_curves(
    results: Sequence[Results], references: Sequence[Reference], dataset: str
) -> "Figure":
    """Validation reward of the learners over training; the oracle beyond a broken axis."""
    figure = new_figure(8, 5.4)
    top, axes = figure.subplots(2, sharex=True, height_ratios=(1, 7))
    levels = {
        name: float(np.mean([fold.validation[name] for fold in references]))
        for name in ("random", "best_fixed", "oracle")
    }
    for one in results:
        if one.method in LOOKS:
            _curve(axes, one)
    axes.axhline(
        levels["best_fixed"],
        color="#E69F00",
        linestyle=(0, (6, 2)),
        label=f"best fixed depth, {levels['best_fixed']:.4f}",
    )
    axes.axhline(
        levels["random"],
        color="#4D4D4D",
        linestyle=(0, (1, 2)),
        label=f"random depth, {levels['random']:.4f}",
    )
    top.axhline(levels["oracle"], color="#D55E00")
    top.annotate(
        f"oracle, {levels['oracle']:.4f}",
        (0.99, levels["oracle"]),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize="small",
    )
    _break(top, axes, levels["oracle"])
    top.set_title(f"{dataset}: reward on validation queries (lines: means, bands: all seeds)")
    axes.set_xlabel("training queries seen (environment steps)")
    axes.set_ylabel("mean reward of the greedy policy")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, ncols=4, fontsize="small", loc="outside lower center"
    )
    return figure


def _curve(axes: "Axes", one: Results) -> None:
    """Mean and range over seeds, folds averaged, on a common grid."""
    histories = [[cell.history or [] for cell in row] for row in one.cells]
    last = min(history[-1][0] for row in histories for history in row)
    first = max(history[0][0] for row in histories for history in row)
    grid = np.linspace(first, last, GRID)
    curves = np.array([np.mean([_at(grid, h) for h in row], axis=0) for row in histories])
    colour, dash, marker = LOOKS[one.method]
    axes.plot(
        grid,
        curves.mean(axis=0),
        color=colour,
        linestyle=dash,
        marker=marker,
        markevery=10,
        markersize=4,
        label=one.method,
    )
    if len(curves) > 1:
        axes.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15)


def _at(grid: Floats, history: list[tuple[int, float]]) -> Floats:
    seen, rewards = np.array(history, np.float64).T
    return np.asarray(np.interp(grid, seen, rewards))


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


def ndcg_intervals(rows: Sequence[Mapping[str, Any]], baseline: str, dataset: str) -> "Figure":
    """Every method's nDCG@10 with its interval; the baseline's interval as a strip."""
    figure = new_figure(8, 1.2 + 0.28 * len(rows))
    axes = figure.subplots()
    named = set()
    for at, row in enumerate(reversed(rows)):
        found = row["retrieval"][MAIN]
        colour, label = KINDS[row["kind"]]
        spread = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
        axes.errorbar(
            found["mean"],
            at,
            xerr=spread,
            color=colour,
            marker="o" if row["kind"] != "oracle" else "D",
            capsize=3,
            label=None if label in named else label,
        )
        axes.text(found["high"], at, f"  {found['mean']:.4f}", va="center", fontsize="small")
        named.add(label)
        if row["method"] == baseline:
            axes.axvspan(found["low"], found["high"], color="#999999", alpha=0.12)
            axes.axvline(found["mean"], color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
    axes.margins(x=0.12)
    axes.set_xlabel(f"{MAIN}, mean over test queries with bootstrap 95% interval")
    axes.set_title(f"{dataset}: retrieval (strip: the baseline, {baseline})")
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
    return figure


def depth_usage(
    results: Sequence[Results], references: Sequence[Reference], dataset: str
) -> "Figure":
    """Share of test queries sent to each depth by each method that chooses, seeds together."""
    shown = [one for one in results if one.depths is not None and METHODS[one.method].seeded]
    shown += [one for one in results if one.method in ("best-fixed-reward", "oracle")]
    depths = references[0].facts["depths"]
    figure = new_figure(8, 1.4 + 0.45 * max(len(shown), 1))
    axes = figure.subplots()
    shares = np.zeros((max(len(shown), 1), depths))
    for row, one in enumerate(shown):
        assert one.depths is not None
        shares[row] = np.bincount(one.depths.ravel(), minlength=depths) / one.depths.size
    # A constant choice must not darken all others: shares from a quarter on look the same.
    image = axes.imshow(100 * shares, aspect="auto", cmap="Blues", vmin=0, vmax=25)
    axes.set_yticks(range(len(shown)), [one.method for one in shown])
    axes.set_xlabel("depth, from focused to broad")
    axes.set_title(f"{dataset}: depths chosen for test queries")
    figure.colorbar(image, ax=axes, label="% of queries", extend="max")
    return figure


def reward_terms(references: Sequence[Reference], dataset: str) -> "Figure":
    """The reward and its terms by depth, folds averaged by their number of queries."""
    weights = [len(fold.query_ids) for fold in references]
    terms = {
        name: np.average(
            [fold.terms_by_depth[name] for fold in references], axis=0, weights=weights
        )
        for name in COLOURS
        if name in references[0].terms_by_depth
    }
    figure = reward_by_depth(terms)
    figure.axes[0].set_title(f"{dataset}: means over test queries, by depth")
    return figure


def differences(named: Mapping[str, Results], baseline: str, dataset: str) -> "Figure":
    """Where the learners win and lose against the baseline."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    against = named[baseline].scores(MAIN)
    learners = [one for name, one in named.items() if METHODS[name].kind == "learner"]
    if not learners:
        learners = [one for name, one in named.items() if name != baseline]
    places = np.arange(len(against)) / max(len(against) - 1, 1) * 100
    for row, one in enumerate(learners):
        ordered = np.sort(one.scores(MAIN) - against)[::-1]
        plain = [(colour, "-", "") for colour, _ in KINDS.values()]
        colour, dash, _ = LOOKS.get(one.method, plain[row % len(plain)])
        wins, losses = (ordered > 1e-9).mean(), (ordered < -1e-9).mean()
        label = f"{one.method}: {wins:.0%} of queries better, {losses:.0%} worse"
        axes.plot(places, ordered, color=colour, linestyle=dash, label=label)
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set_xlabel("test queries, each curve in its own order (%)")
    axes.set_ylabel(f"{MAIN} minus {baseline}")
    axes.set_title(f"{dataset}: query by query against {baseline}")
    axes.legend(frameon=False, fontsize="small")
    return figure
