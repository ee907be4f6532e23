"""Learning curves of a run, from its TensorBoard files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

POINTS: Final = 400  # of a curve: more than a page has room for
# What is drawn first, and with what beside it: tag -> name.
CHARTS: Final[dict[str, dict[str, str]]] = {
    "Mean reward, validation queries": {"eval/reward": ""},
    "Share of the gap from random to oracle closed, validation queries": {"eval/gap_closed": ""},
    "nDCG@10, validation queries": {"eval/ndcg@10": ""},
    "Mean reward, training queries": {"rollout/ep_rew_mean": ""},
    "Terms of the reward, training queries": {
        "reward/entropy": "entropy",
        "reward/focus": "focus",
        "reward/alignment": "alignment",
    },
}
LEFT_OUT: Final = ("time/", "rollout/ep_len_mean", "train/learning_rate")


class Curve(NamedTuple):
    """One line of a chart.

    Attributes:
        name: what it is of.
        steps: training queries seen.
        values: at these steps; None where a number is not finite.
    """

    name: str
    steps: list[int]
    values: list[float | None]


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """Charts `{"title", "curves"}` of everything the run has logged, the important ones first."""
    if not any(folder.glob("events.out.tfevents.*")):
        return []
    # All scalars, and none of the pictures.
    sizes = {"scalars": 0, "images": 1, "histograms": 1, "compressedHistograms": 1, "tensors": 1}
    events = EventAccumulator(str(folder), size_guidance=sizes)
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        scalars = events.Scalars(tag)
        found[tag] = ([one.step for one in scalars], [one.value for one in scalars])
    charts = []
    for title, names in CHARTS.items():
        curves = [curve(name, *found.pop(tag)) for tag, name in names.items() if tag in found]
        if curves:
            charts.append({"title": title, "curves": [one._asdict() for one in curves]})
    for tag, (steps, values) in found.items():
        if not tag.startswith(LEFT_OUT):
            charts.append({"title": tag, "curves": [curve("", steps, values)._asdict()]})
    return charts


def curve(name: str, steps: Sequence[int], values: Sequence[float]) -> Curve:
    """A curve of at most `POINTS` points: of many, means of neighbours."""
    last = dict(zip(steps, values, strict=True))
    order = sorted(last)
    parts = np.array_split(np.arange(len(order)), min(POINTS, len(order)))
    means = [float(np.mean([last[order[at]] for at in part])) for part in parts]
    return Curve(
        name,
        [int(order[part[-1]]) for part in parts],
        [mean if np.isfinite(mean) else None for mean in means],
    )
