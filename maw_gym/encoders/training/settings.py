"""How encoders are trained, with the defaults."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from maw_gym.checks import checked_int, shown
from maw_gym.errors import InputError

Depths = Literal["temperatures", "clusters"]
LARGEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class TrainingSettings:
    """How an encoder is trained; part of its cache key. What begins with "depth" is stage 2's.

    Attributes:
        epochs: of the standard attention.
        learning_rate: peak of the one-cycle schedule for its projections.
        token_learning_rate: the same for the pooling weight of each token.
        depths: what tells the depths apart. "temperatures": depth d divides its scores by T_d, as
            in an untrained encoder, and learns from all queries. "clusters": each depth learns from
            one k-means cluster of the queries, all at one temperature.
        depth_epochs: of the depths.
        depth_learning_rate: peak for what the projections of all depths have in common.
        depth_own_learning_rate: peak for what each depth's projections have of their own.
        depth_negatives: a query is ranked among all relevant documents of the training queries, or
            among this many of them, drawn anew in every step, where there are more.
        weight_decay: AdamW's, on the projections.
        batch_size: queries per step; stage 1 ranks each among the batch's documents.
        temperature: tau, cosines are divided by it.
        query_tokens: queries are cut here in training.
        document_tokens: documents are cut here in stage 1.
        train_embedding: train the token embeddings too, in stage 1.
        embedding_learning_rate: peak for them.
        seed: of the order of the pairs, the draws of depths and documents, and the clusters.
    """

    epochs: int = 6
    learning_rate: float = 2e-3
    token_learning_rate: float = 2e-2
    depths: Depths = "temperatures"
    depth_epochs: int = 6
    depth_learning_rate: float = 1e-2
    depth_own_learning_rate: float = 1e-3
    depth_negatives: int = 8192
    weight_decay: float = 0.01
    batch_size: int = 512
    temperature: float = 0.05
    query_tokens: int = 32
    document_tokens: int = 128
    train_embedding: bool = False
    embedding_learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("depth_negatives", "batch_size", "query_tokens", "document_tokens"):
            checked_int(getattr(self, name), name, 1)
        for name in ("epochs", "depth_epochs"):
            checked_int(getattr(self, name), name, 0)
        checked_int(self.seed, "seed", 0, LARGEST_SEED)
        for name, value in asdict(self).items():
            if name == "temperature" or name.endswith("learning_rate"):
                if not _finite(value) or value <= 0:
                    raise InputError(f"{name} must be a number above 0, got {shown(value)}")
            elif name == "weight_decay" and (not _finite(value) or value < 0):
                raise InputError(f"{name} must be a number of 0 or more, got {shown(value)}")
        if self.depths not in get_args(Depths):
            raise InputError(
                f"depths must be {' or '.join(get_args(Depths))}, got {shown(self.depths)}"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)

    def of_attention(self) -> dict[str, Any]:
        """Those that the first stage depends on, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name[:5] != "depth"}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
