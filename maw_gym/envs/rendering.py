"""Frames of the environment: a depth's attention over a query's tokens beside its reward terms.

Frames are painted by Pillow, some hundred a second, in the font that comes with matplotlib.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from maw_gym.envs.bandit import Outcome

Attention = NDArray[np.floating]

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
CIVIDIS: Final = bytes.fromhex(
    "00224e 003170 2a3f6d 434e6c 575d6d 6a6c71 7d7c78 918b78 a59c74 bbad6d d1bf61 e9d34e fee838"
)
SHADES: Final = " ░▒▓█"
# Weights stand on a colour bar by their cube root, as a broad depth's are all small.
WEIGHTS: Final = {0.0: "0", 0.01: ".01", 0.1: ".1", 0.25: ".25", 0.5: ".5", 1.0: "1"}
WEIGHT_TICKS: Final = {np.cbrt(weight): label for weight, label in WEIGHTS.items()}


def attention_text(
    query_id: str,
    weights: Attention,
    tokens: Sequence[str] | None = None,
    depth: int | None = None,
    num_depths: int = 0,
    outcome: Outcome | None = None,
) -> str:
    """For each token what it attends to most, then the reward and its terms.

    Args:
        query_id: names the query.
        weights: (H, n, n) attention; before a choice the pooled state (H, 8, 8).
        tokens: n tokens; None before a choice, as all that follows.
        depth: the depth chosen.
        num_depths: D.
        outcome: what it brought.
    """
    mean = _over_heads(weights)
    lines = [shortened(f"Query {query_id}", MAX_TITLE)]
    if tokens is None:
        levels = np.rint(mean / max(mean.max(initial=0), 1e-9) * (len(SHADES) - 1)).astype(int)
        lines.append("No depth chosen yet. Observed attention, pooled to 8 x 8:")
        lines += ["  " + "".join(SHADES[level] * 2 for level in row) for row in levels]
        return "\n".join(lines)
    lines.append(f"Depth {depth} of {num_depths} (0 is the most focused)")
    names = readable_tokens(tokens)
    width = max(map(len, names[:MAX_TOKENS]), default=0)
    for name, row in list(zip(names, mean, strict=True))[:MAX_TOKENS]:
        best = np.argsort(-row, kind="stable")[:3]
        attended = "  ".join(f"{names[k]} {row[k]:.2f}" for k in best)
        lines.append(f"  {name:<{width}}  ->  {attended}")
    if len(names) > MAX_TOKENS:
        lines.append(f"  ... {len(names) - MAX_TOKENS} more tokens")
    if outcome is not None:
        for term in COLOURS:
            value = getattr(outcome, term)
            bar = "█" * round(20 * min(max(value, 0), 1))
            lines.append(f"{term:<9} {value:6.3f}  {bar}".rstrip())
    return "\n".join(lines)


def attention_frame(
    query_id: str,
    weights: Attention,
    tokens: Sequence[str] | None = None,
    depth: int | None = None,
    num_depths: int = 0,
    outcome: Outcome | None = None,
) -> NDArray[np.uint8]:
    """The same as a picture (600, 1100, 3), with the attention of every pair of tokens."""
    mean = _over_heads(weights)[:MAX_TOKENS, :MAX_TOKENS]
    image = _canvas(1100, 600, shortened(f"Query {query_id}", MAX_TITLE))
    if tokens is None:
        heading = "observed: attention averaged over depths, pooled to 8 x 8"
        names, unit = [str(part + 1) for part in range(len(mean))], "eighth of the text"
        shares, ticks = mean / max(mean.max(initial=0), 1e-9), {0.0: "0", 1.0: "max"}
    else:
        heading = f"attention of depth {depth} of {num_depths}, mean over heads{_cut(tokens)}"
        names, unit = readable_tokens(tokens[:MAX_TOKENS]), "token"
        shares, ticks = np.cbrt(mean), WEIGHT_TICKS
    _write(image, (365, 65), heading, 13.5)
    _heat_map(image, (140, 80, 450, 410), shares, names, names)
    if len(mean):
        _colour_bar(image, (602, 80, 20, 410), ticks)
        _write(image, (365, 592), f"{unit} attended to (key)", 12.5, "ms")
        _write(image, (14, 285), f"attending {unit} (query)", 12.5, upright=True)
    _draw_terms(image, outcome)
    return np.array(image)


def depths_frame(
    query: str, weights: Mapping[int, Attention], tokens: Sequence[str]
) -> NDArray[np.uint8]:
    """One query's attention through several depths side by side, averaged over heads."""
    names = readable_tokens(tokens[:MAX_TOKENS])
    title = shortened(f"Query {query}", MAX_TITLE) + _cut(tokens)
    image = _canvas(200 + 330 * len(weights), 500, title)
    for column, (depth, heads) in enumerate(weights.items()):
        mean = _over_heads(heads)[:MAX_TOKENS, :MAX_TOKENS]
        focus = np.asarray(heads).max(-1).mean() if len(mean) else 0.0
        left = 130 + 330 * column
        _write(image, (left + 155, 55), f"depth {depth}: mean focus {focus:.2f}", 14)
        _heat_map(image, (left, 70, 310, 310), np.cbrt(mean), names, [] if column else names)
    _colour_bar(image, (image.width - 75, 70, 18, 310), WEIGHT_TICKS)
    return np.array(image)


def readable_tokens(tokens: Sequence[str]) -> list[str]:
    """Tokens as labels: on one line each, at most 12 characters."""
    if any(SPACE_MARK in token for token in tokens):
        tokens = [
            "␣" if not token.strip(SPACE_MARK)
            else token.removeprefix(SPACE_MARK) if token.startswith(SPACE_MARK)
            else "·" + token
            for token in tokens
        ]  # fmt: skip
    return [shortened(token, MAX_LABEL) for token in tokens]


def shortened(text: str, limit: int) -> str:
    """`text` on one line and at most `limit` characters long; "□" for what cannot be printed."""
    line = "".join(mark if mark.isprintable() else "␣" if mark.isspace() else "□" for mark in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _over_heads(weights: Attention) -> NDArray[np.float64]:
    return np.asarray(np.mean(weights, axis=0, dtype=np.float64))


def _cut(tokens: Sequence[str]) -> str:
    return f"; first {MAX_TOKENS} of {len(tokens)} tokens" if len(tokens) > MAX_TOKENS else ""


# --- painting --------------------------------------------------------------------------------


@lru_cache(64)
def _font(size: float) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of so many pixels; matplotlib itself is not imported."""
    found = find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _fitting(size: float, room: float, texts: Sequence[str]) -> float:
    """`size`, or the smaller one at which the longest of the texts has room."""
    return size * min(1, room / max(1, *map(_font(size).getlength, texts)))


def _canvas(width: int, height: int, title: str) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    _write(image, (width / 2, 20), title, _fitting(18, width - 80, [title]))
    return image


def _write(
    image: Image.Image,
    place: tuple[float, float],
    text: str,
    size: float,
    anchor: str = "mm",
    *,
    upright: bool = False,
) -> None:
    """Write a line of text; upright it reads from below, and its anchor is turned with it."""
    if not upright:
        ImageDraw.Draw(image).text(place, text, "black", _font(size), anchor)
        return
    _, _, right, bottom = (round(edge) for edge in _font(size).getbbox(text, anchor="la"))
    line = Image.new("L", (max(right, 1), max(bottom, 1)))
    ImageDraw.Draw(line).text((0, 0), text, 255, _font(size), "la")
    turned = line.rotate(90, expand=True)
    x, y = place[0] - turned.width / 2, place[1] - (turned.height / 2 if anchor == "mm" else 0)
    image.paste("black", (round(x), round(y)), turned)


def _shade(
    image: Image.Image, box: tuple[int, int, int, int], shares: NDArray[np.float64]
) -> ImageDraw.ImageDraw:
    """Fill a box (x, y, width, height) with numbers (m, n) in [0, 1] as colours, and frame it."""
    x, y, width, height = box
    known = np.frombuffer(CIVIDIS, np.uint8).reshape(-1, 3)
    places = np.linspace(0, 1, len(known))
    colours = np.stack([np.interp(shares, places, part) for part in known.T], -1).round()
    cells = Image.fromarray(colours.astype(np.uint8))
    image.paste(cells.resize((width, height), Image.Resampling.NEAREST), (x, y))
    draw = ImageDraw.Draw(image)
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline="black")
    return draw


def _heat_map(
    image: Image.Image,
    box: tuple[int, int, int, int],
    shares: NDArray[np.float64],
    below: Sequence[str],
    beside: Sequence[str],
) -> None:
    """Cells (n, n) in a box with their labels; where n is 0, a line that says so."""
    x, y, width, height = box
    if not len(shares):
        _write(image, (x + width / 2, y + height / 2), "this query has no tokens", 13.5)
        return
    draw = _shade(image, box, shares)
    size = min(_fitting(12.5, 75, below), 0.9 * height / len(shares))
    upright = max(map(len, below)) > 2
    middles = (np.arange(len(shares)) + 0.5) / len(shares)
    for middle, label in zip(x + width * middles, below, strict=True):
        draw.line((middle, y + height, middle, y + height + 4), "black")
        _write(image, (middle, y + height + 7), label, size, "mt", upright=upright)
    for middle, label in zip(y + height * middles, beside, strict=False):
        draw.line((x - 5, middle, x - 1, middle), "black")
        _write(image, (x - 8, middle), label, size, "rm")


def _colour_bar(
    image: Image.Image, box: tuple[int, int, int, int], ticks: Mapping[float, str]
) -> None:
    """The colours from 0, below, to 1, above, with labels at some of the heights."""
    x, y, width, height = box
    draw = _shade(image, box, np.linspace(1, 0, height)[:, None])
    for share, label in ticks.items():
        place = y + (1 - share) * (height - 1)
        draw.line((x + width, place, x + width + 4, place), "black")
        _write(image, (x + width + 7, place), label, 11, "lm")


def _draw_terms(image: Image.Image, outcome: Outcome | None) -> None:
    """Bars of the reward and its terms, on an axis that follows weights of the user's choice."""
    left, top, bottom, width = 770, 80, 490, 250
    draw = ImageDraw.Draw(image)
    _write(image, (915, 65), "reward and its terms", 13.5)
    values = [] if outcome is None else [float(getattr(outcome, name)) for name in COLOURS]
    end = max(1.0, *values, 0.0)
    middles = np.linspace(top, bottom, 2 * len(COLOURS) + 1)[1::2].tolist()
    for middle, name in zip(middles, COLOURS, strict=True):
        _write(image, (left - 10, middle), name, 12.5, "rm")
    for middle, value, colour in zip(middles, values, COLOURS.values(), strict=False):
        right = left + width * max(value, 0) / end
        draw.rectangle((left, middle - 24, right, middle + 24), colour)
        _write(image, (right + 5, middle), f"{value:.3f}", 13.5, "lm")
    if outcome is None:
        _write(image, (left + 150, (top + bottom) / 2), "no depth chosen yet", 13.5)
    draw.line((left, top, left, bottom), "black")
    draw.line((left, bottom, left + width + 60, bottom), "black")
