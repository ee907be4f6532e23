"""Cells: the results of one method, dataset, seed and fold, on disk under a key of their content.

Notation: N test queries of the fold, D depths.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maw_gym.files.cache import written_whole


@dataclass
class Cell:
    """What one method did on the test queries of one fold.

    Attributes:
        method: its name.
        seed: of the method, 0 where it has none.
        fold: 0 where the dataset has none.
        measures: measure name to N values.
        parameters: learned numbers, token embeddings not counted; None for BM25.
        training_seconds: of this method's own training; None without training, or where the time
            is not known because the result came from the cache.
        latency_ms: added to encoding one query by the MAW encoder's standard attention; None where
            that means nothing.
        depths: N depths; None where none is chosen.
        terms: `reward`, `entropy`, `focus` and `alignment`, N values each; None without depths.
        history: (training queries seen, mean validation reward); None without training.
        chosen_at: place in the history.
        facts: further JSON values.
    """

    method: str
    seed: int
    fold: int
    measures: dict[str, list[float]]
    parameters: int | None = None
    training_seconds: float | None = None
    latency_ms: float | None = None
    depths: list[int] | None = None
    terms: dict[str, list[float]] | None = None
    history: list[tuple[int, float]] | None = None
    chosen_at: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reference:
    """What the cells of one fold are seen against.

    Attributes:
        fold: 0 where the dataset has none.
        query_ids: N ids.
        random: N expected rewards of a uniform depth.
        best_fixed: N rewards of the depth that is best on training queries.
        oracle: N largest rewards.
        best_fixed_depth: that depth.
        terms_by_depth: mean over test queries of each term and the reward, D values each.
        validation: mean reward on validation queries of `random`, `best_fixed` and `oracle`.
        encoder: its provenance.
        facts: counts for the report.
    """

    fold: int
    query_ids: list[str]
    random: list[float]
    best_fixed: list[float]
    oracle: list[float]
    best_fixed_depth: int
    terms_by_depth: dict[str, list[float]]
    validation: dict[str, float]
    encoder: dict[str, Any]
    facts: dict[str, Any]


def kept_cell(path: Path, compute: Callable[[], Cell]) -> Cell:
    """The cell at `path`, computed and written if it is not there, whole or not at all."""
    try:
        return Cell(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent, or cut short by a full disk
        cell = compute()
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(asdict(cell)), encoding="utf-8")
    return cell


def slug(name: str) -> str:
    """A dataset's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
