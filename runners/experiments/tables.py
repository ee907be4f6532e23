"""Markdown tables of a comparison, made of rows as `analysis.rows_of` makes them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maw_gym.retrieval.evaluation import Evaluation
from runners.experiments.analysis import COLUMNS, MAIN, NAMES

Row = Mapping[str, Any]


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def percent(value: float | None) -> str:
    """A relative change."""
    return "-" if value is None else f"{100 * value:+.1f}%"


def share(value: float, whole: float, digits: int = 1) -> str:
    """A size as a share of another."""
    return f"{100 * value / whole:.{digits}f}%" if whole else "-"


def p_value(value: float) -> str:
    """A p-value; the smallest that 10,000 draws can tell is shown as a bound."""
    return "<.0001" if value < 1e-4 else f"{value:.4f}".lstrip("0")


def run_table(rows: Mapping[str, Any], measures: Sequence[str]) -> str:
    """The table of a single run: reward and retrieval of every method, by title."""
    head = ["method", "reward", "gap closed", *measures]
    lines = []
    for title, row in rows.items():
        reward = row.reward or {}
        cells = [number(reward.get("mean")), number(reward.get("gap_closed"), 3)]
        lines.append([title, *cells, *(number(row.retrieval[name]) for name in measures)])
    return markdown(head, lines)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A padded Markdown table; the first `left` columns are aligned to the left."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    whole = [list(head), rule, *map(list, lines)]
    widths = [max(len(line[column]) for line in whole) for column in range(len(head))]
    padded = (
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in whole
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def group_table(scores: Mapping[str, NDArray[np.float64]], groups: Sequence[str]) -> str:
    """Mean nDCG@10 of every method on the queries of each group, and with all groups alike.

    Args:
        scores: by method, (N,) of the queries.
        groups: of the N queries.
    """
    sizes = Counter(groups)
    head = ["method", *(f"{name or 'none'} ({sizes[name]})" for name in sorted(sizes)), "alike"]
    lines = []
    for method, values in scores.items():
        of_groups = Evaluation({MAIN: values}).by_group(groups).values()
        means = [one.mean[MAIN] for one in of_groups]
        lines.append([method, *map(number, means), number(float(np.mean(means)))])
    return markdown(head, lines)


def retrieval_table(rows: Sequence[Row]) -> str:
    """Every measure with its interval over queries."""
    head = ["method", *(f"{name} [95%]" for name in NAMES)]
    lines = []
    for row in rows:
        cells = [row["method"]]
        for name in NAMES:
            found = row["retrieval"][name]
            cells.append(f"{found['mean']:.4f} [{found['low']:.3f}, {found['high']:.3f}]")
        lines.append(cells)
    return markdown(head, lines)


def test_table(rows: Sequence[Row], baseline: str) -> str:
    """Differences in nDCG@10 from the baseline, and relative changes."""
    head = [
        "method",
        MAIN,
        f"minus {baseline}",
        "p",
        "p (Holm)",
        "detectable",
        "within",
        "wins / ties / losses",
        "vs zero-shot",
        "vs trained",
    ]
    lines = []
    for row in rows:
        test = row["test"]
        tested: list[str] = ["-"] * 6
        if test:
            tested = [
                difference(test, 4),
                p_value(test["p"]),
                p_value(test["p_holm"]),
                share(test["smallest_detectable"], test["baseline_mean"]),
                share(test["equivalence_margin"], test["baseline_mean"]),
                f"{test['wins']} / {test['ties']} / {test['losses']}",
            ]
        lines.append(
            [
                row["method"],
                number(row["retrieval"][MAIN]["mean"]),
                *tested,
                percent(row["relative"]["zero_shot"]),
                percent(row["relative"]["trained"]),
            ]
        )
    return markdown(head, lines)


def reward_table(rows: Sequence[Row]) -> str:
    """Reward, its terms and the share of the gap, of methods that choose depths."""
    head = ["method", *COLUMNS, "gap closed", "depths used"]
    lines = [
        [
            row["method"],
            *(number(row["reward"]["mean" if name == "reward" else name]) for name in COLUMNS),
            number(row["reward"]["gap_closed"], 3),
            str(row["depths_used"]),
        ]
        for row in rows
        if row["reward"]
    ]
    return markdown(head, lines)


def cost_table(rows: Sequence[Row]) -> str:
    """Parameters, training time and latency."""
    head = ["method", "what it is", "parameters", "training s", "added ms per query", "seeds"]
    lines = [
        [
            row["method"],
            row["about"],
            "-" if row["params"] is None else f"{row['params']:,}",
            number(row["training_seconds"], 1),
            number(row["latency_ms"], 2, sign=True),
            str(len(row["seeds"])) if row["seeds"] else "-",
        ]
        for row in rows
    ]
    return markdown(head, lines, left=2)


def seed_table(rows: Sequence[Row]) -> str:
    """How nDCG@10 varies from seed to seed, with intervals where they were asked for."""
    found = [(row, row["retrieval"][MAIN]) for row in rows]
    found = [(row, values) for row, values in found if "seed_deviation" in values]
    intervals = any("seed_low" in values for _, values in found)
    head = ["method", MAIN, "deviation over seeds", *(["95% over seeds"] if intervals else [])]
    lines = []
    for row, values in found:
        cells = [row["method"], number(values["mean"]), number(values["seed_deviation"])]
        if intervals:
            cells.append(f"[{values['seed_low']:.4f}, {values['seed_high']:.4f}]")
        lines.append(cells)
    return markdown(head, lines) if lines else ""


def pair_table(tests: Mapping[tuple[str, str], tuple[Row | None, Row]]) -> str:
    """Pairs of methods, the first minus the second, in reward and in nDCG@10.

    Args:
        tests: by pair that of the reward, None where one of the two has none, and of nDCG@10.
    """
    head = ["", "reward", "p", MAIN, "p", "detectable", "within"]
    lines = []
    for (first, second), (reward, ndcg) in tests.items():
        lines.append(
            [
                f"{first} minus {second}",
                *(["-", "-"] if reward is None else [difference(reward), p_value(reward["p"])]),
                difference(ndcg),
                p_value(ndcg["p"]),
                share(ndcg["smallest_detectable"], ndcg["baseline_mean"], 2),
                share(ndcg["equivalence_margin"], ndcg["baseline_mean"], 2),
            ]
        )
    return markdown(head, lines)


def difference(test: Row, digits: int = 5) -> str:
    """A difference with its interval."""
    low, high = (number(test[name], digits, sign=True) for name in ("low", "high"))
    return f"{number(test['difference'], digits, sign=True)} [{low}, {high}]"


def duel_table(reward: Mapping[str, Row], ndcg: Mapping[str, Row]) -> str:
    """GRPO minus every other method that chooses depths, in reward and in nDCG@10."""
    head = ["GRPO minus", "reward", "p (Holm)", MAIN, "p (Holm)", "wins / ties / losses"]
    lines = []
    for name, test in reward.items():
        other = ndcg[name]
        lines.append(
            [
                name,
                number(test["difference"], 5, sign=True),
                p_value(test["p_holm"]),
                number(other["difference"], 4, sign=True),
                p_value(other["p_holm"]),
                f"{other['wins']} / {other['ties']} / {other['losses']}",
            ]
        )
    return markdown(head, lines)
