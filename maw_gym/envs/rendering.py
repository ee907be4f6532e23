"""Frames of the environment: a depth's attention over a query's tokens beside its reward terms."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from maw_gym.errors import InputError

MAX_TOKENS: Final = 40
MAX_LABEL: Final = 12
MAX_TITLE: Final = 72
SPACE_MARK: Final = "▁"  # SentencePiece's mark of a word's beginning
# Okabe and Ito's palette, which colour-blind readers can tell apart; cividis is made for them too.
COLOURS: Final = {
    "entropy": "#0072B2",
    "focus": "#E69F00",
    "alignment": "#009E73",
    "reward": "#4D4D4D",
    "regret": "#D55E00",
}
SHADES: Final = " ░▒▓█"


class Terms(Protocol):
    """The numbers of one choice; `maw_gym.envs.bandit.Outcome` is one."""

    @property
    def entropy(self) -> float: ...  # noqa: D102
    @property
    def focus(self) -> float: ...  # noqa: D102
    @property
    def alignment(self) -> float: ...  # noqa: D102
    @property
    def reward(self) -> float: ...  # noqa: D102
    @property
    def regret(self) -> float: ...  # noqa: D102


class Scene(NamedTuple):
    """What one frame shows.

    Attributes:
        query_id: names the query.
        weights: (H, n, n) attention; before a choice the pooled state (H, 8, 8).
        tokens: n tokens; None before a choice.
        depth: the chosen depth; None before a choice.
        num_depths: D.
        outcome: reward and terms of the choice; None before a choice.
    """

    query_id: str
    weights: NDArray[np.floating]
    tokens: Sequence[str] | None = None
    depth: int | None = None
    num_depths: int = 0
    outcome: Terms | None = None


@contextmanager
def importing_matplotlib() -> Iterator[None]:
    """Import what draws in here, late: who draws nothing needs no matplotlib that can be
    imported.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"matplotlib cannot be imported ({reason}); mend its matplotlibrc or unset MPLBACKEND"
        ) from None


def check_matplotlib() -> None:
    """Refuse before the work what could not be drawn after it."""
    with importing_matplotlib():
        import matplotlib.figure  # noqa: F401


def attention_frame(scene: Scene) -> NDArray[np.uint8]:
    """The pixels of `maw_gym.envs.drawing.attention_figure`, (600, 1100, 3)."""
    with importing_matplotlib():
        from maw_gym.envs.drawing import attention_figure, figure_rgb
    return figure_rgb(attention_figure(scene))


def attention_text(scene: Scene) -> str:
    """The same in plain text: for each token what it attends to most, then the reward terms."""
    mean = mean_over_heads(scene.weights)
    lines = [shortened(f"Query {scene.query_id}", MAX_TITLE)]
    if scene.tokens is None:
        lines += ["No depth chosen yet. Observed attention, pooled to 8 x 8:", *_shaded(mean)]
        return "\n".join(lines)
    lines.append(f"Depth {scene.depth} of {scene.num_depths} (0 is the most focused)")
    names = readable_tokens(scene.tokens)
    width = max((len(name) for name in names[:MAX_TOKENS]), default=0)
    for name, row in list(zip(names, mean, strict=True))[:MAX_TOKENS]:
        best = np.argsort(-row, kind="stable")[:3]
        lines.append(
            f"  {name:<{width}}  ->  " + "  ".join(f"{names[k]} {row[k]:.2f}" for k in best)
        )
    if len(names) > MAX_TOKENS:
        lines.append(f"  ... {len(names) - MAX_TOKENS} more tokens")
    if scene.outcome is not None:
        for term in COLOURS:
            value = getattr(scene.outcome, term)
            lines.append(
                f"{term:<9} {value:6.3f}  {'█' * round(20 * min(max(value, 0), 1))}".rstrip()
            )
    return "\n".join(lines)


def readable_tokens(tokens: Sequence[str]) -> list[str]:
    """Tokens as labels: on one line each, at most 12 characters."""
    marked = any(SPACE_MARK in token for token in tokens)
    return [shortened(_unmarked(token) if marked else token, MAX_LABEL) for token in tokens]


def _unmarked(token: str) -> str:
    if not token.strip(SPACE_MARK):
        return "␣"
    return token.removeprefix(SPACE_MARK) if token.startswith(SPACE_MARK) else "·" + token


def mean_over_heads(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Attention (n, n) of attention (H, n, n)."""
    return np.asarray(np.asarray(weights, np.float64).mean(axis=0))


def _shaded(matrix: NDArray[np.float64]) -> list[str]:
    """Rows of a matrix as shading characters, two for each number so that a square looks square."""
    top = max(float(matrix.max(initial=0)), 1e-9)
    levels = np.rint(matrix / top * (len(SHADES) - 1)).astype(int)
    return ["  " + "".join(SHADES[level] * 2 for level in row) for row in levels]


def shortened(text: str, limit: int) -> str:
    """`text` on one line and at most `limit` characters long; "□" for what cannot be printed."""
    line = "".join(mark if mark.isprintable() else "␣" if mark.isspace() else "□" for mark in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"
