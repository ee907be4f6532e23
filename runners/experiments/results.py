"""What a method did, in memory, and what is kept of it: results on disk under a key of everything.

Notation: N queries of the split, D depths.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from maw_gym import files
from maw_gym.errors import DamagedFileError
from maw_gym.files import loaded
from maw_gym.retrieval.evaluation import Evaluation
from maw_gym.retrieval.search import Ranking
from maw_gym.routers.depth_router import DepthRouter
from runners.experiments.training import Trained

KIND: Final = "result"

Encode = Callable[[list[str]], Any]  # a query alone in a list to what is ranked with


@dataclass
class Did:
    """What a method did with the queries of a split.

    Attributes:
        depths: the depth of each query (N,); None where none is chosen.
        ranked: the evaluation and the ranking; None is that of the depths.
        router: where there is one.
        parameters: learned numbers, token embeddings not counted; None for BM25.
        encode: how one query is encoded; None where its time means nothing.
        trained: what its own training left.
        training_seconds: of that, or of the encoder's; None where it is not known.
        facts: JSON values.
    """

    depths: NDArray[np.int64] | None = None
    ranked: tuple[Evaluation, Ranking] | None = None
    router: DepthRouter | None = None
    parameters: int | None = None
    encode: Encode | None = None
    trained: Trained | None = None
    training_seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What is kept of a method on the queries of one split.

    Attributes:
        method: its name.
        seed: of the method, 0 where it has none.
        fold: 0 where the dataset has none.
        encoder_seed: of the encoder that is routed.
        measures: measure name to N values.
        parameters: see `Did`.
        training_seconds: see `Did`.
        latency_ms: added to encoding one query by the MAW encoder's standard attention; None where
            that means nothing or was not asked for.
        depths: N depths; None where none is chosen.
        terms: `reward`, `entropy`, `focus` and `alignment`, N values each; None without depths.
        history: (training queries seen, mean validation reward); None without training.
        chosen_at: place in the history.
        facts: further JSON values.
    """

    method: str
    seed: int
    fold: int
    encoder_seed: int
    measures: dict[str, list[float]]
    parameters: int | None = None
    training_seconds: float | None = None
    latency_ms: float | None = None
    depths: list[int] | None = None
    terms: dict[str, list[float]] | None = None
    history: list[tuple[int, float]] | None = None
    chosen_at: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def kept_result(path: Path, compute: Callable[[], Result]) -> Result:
    """The result at `path`, computed and written where there is none or a damaged one."""
    result = loaded(path, _read)
    if result is None:
        result = compute()
        files.write(path, {}, KIND, asdict(result))
    return result


def _read(path: Path) -> Result:
    try:
        return Result(**files.read(path, KIND).settings)
    except TypeError as problem:  # of a version with other fields
        raise DamagedFileError(f"{path} holds no result ({problem})") from None


def size(module: torch.nn.Module, but: str = "-") -> int:
    """Number of parameters, without those whose names begin with `but`."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if not name.startswith(but)
    )


def slug(name: str) -> str:
    """A dataset's name as part of a file name; different names have different ones."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if plain == name:
        return name
    return f"{plain[-80:]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:6]}"
