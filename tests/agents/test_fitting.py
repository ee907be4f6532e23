"""Which queries a learner without an environment is shown."""

from collections import Counter

import torch
from torch import Tensor

from agents.fitting import fit
from agents.settings import FitSettings
from maw_gym.routers.depth_router import DepthRouter

GROUPS = ["large"] * 99 + ["small"]


class Always:
    """Judges every router alike."""

    split = "validation"

    def __call__(self, router: DepthRouter) -> float:
        return 1.0


def shown(balance: float) -> Counter[int]:
    """How often each of 100 queries is shown in 20 epochs."""
    layers = [(torch.zeros(2, 1), torch.zeros(2))]
    router = DepthRouter(layers, "relu", torch.zeros(1), torch.ones(1), ("profile",), {})
    seen: Counter[int] = Counter()

    def terms(rows: Tensor, logits: Tensor, progress: float) -> dict[str, Tensor]:
        seen.update(rows.tolist())
        return {"loss": logits.sum()}

    fit(
        router,
        torch.zeros(100, 1),
        terms,
        Always(),  # type: ignore[arg-type]
        FitSettings(epochs=20, batch_size=25),
        torch.Generator().manual_seed(0),
        groups=GROUPS,
        balance=balance,
    )
    return seen


def test_without_balance_every_query_is_shown_once_an_epoch() -> None:
    assert shown(1) == dict.fromkeys(range(100), 20)


def test_groups_alike_are_shown_alike() -> None:
    seen = shown(0)
    assert seen.total() == 2000
    # The small group's one query in half of all draws: 1,000, with a deviation of sqrt(2000) / 2.
    assert abs(seen[99] - 1000) < 5 * 22.4
