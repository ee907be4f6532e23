"""Drawing of frames by matplotlib.

Figures are drawn without pyplot, so no window opens and no global state is touched; they serve as
frames and as images for TensorBoard alike.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from maw_gym.envs.rendering import (
    COLOURS,
    MAX_TITLE,
    MAX_TOKENS,
    Scene,
    Terms,
    mean_over_heads,
    readable_tokens,
    shortened,
)

FONT: Final = "DejaVu Sans"  # ships with matplotlib
SCALE: Final = PowerNorm(1 / 3, 0, 1)  # of weights: a broad depth's are all near 0


def attention_figure(scene: Scene) -> Figure:
    """Draw the attention, averaged over heads, and the reward terms, 11 by 6 inches at 100 dpi."""
    figure = Figure(figsize=(11, 6), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        1, 2, width_ratios=(1.65, 1), left=0.11, right=0.965, bottom=0.17, top=0.87, wspace=0.42
    )
    title = _drawable(shortened(f"Query {scene.query_id}", MAX_TITLE))
    _plain(figure.suptitle(title, fontsize=13))
    left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    _draw_attention(figure, left, scene)
    _draw_terms(right, scene.outcome)
    return figure


def depths_figure(
    query: str, weights: Mapping[int, NDArray[np.floating]], tokens: Sequence[str]
) -> Figure:
    """Draw one query's attention through several depths side by side, averaged over heads."""
    if not weights:
        raise ValueError("give the attention of at least one depth")
    count, shown = len(weights), min(len(tokens), MAX_TOKENS)
    names = [_drawable(name) for name in readable_tokens(tokens[:shown])]
    figure = Figure(figsize=(2 + 2.6 * count, 4.2), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    title = _drawable(shortened(f"Query {query}", MAX_TITLE))
    if shown < len(tokens):
        title += f"; first {shown} of {len(tokens)} tokens"
    _plain(figure.suptitle(title, fontsize=12))
    left, right = 1.25 / figure.get_figwidth(), 1 - 0.75 / figure.get_figwidth()
    grid = figure.add_gridspec(1, count, left=left, right=right, bottom=0.23, top=0.84, wspace=0.08)
    for column, (depth, heads) in enumerate(weights.items()):
        axes = figure.add_subplot(grid[column])
        mean = mean_over_heads(heads)[:shown, :shown]
        focus = np.asarray(heads).max(-1).mean() if shown else 0.0
        axes.set_title(f"depth {depth}: focus {focus:.2f}", fontsize=10)
        if not shown:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no tokens", ha="center", transform=axes.transAxes)
            continue
        image = axes.imshow(
            mean, cmap="cividis", norm=SCALE, aspect="auto", interpolation="nearest"
        )
        size = 8 if shown <= 16 else 6 if shown <= 28 else 4.5
        axes.set_xticks(range(shown), names, rotation=90, fontsize=size)
        axes.set_yticks(range(shown), names if column == 0 else [""] * shown, fontsize=size)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            _plain(label)
    if shown:
        place = figure.add_axes((right + 0.15 / figure.get_figwidth(), 0.23, 0.012, 0.61))
        _colour_bar(figure.colorbar(image, cax=place))
    return figure


def figure_rgb(figure: Figure) -> NDArray[np.uint8]:
    """Pixels of a figure, (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_attention(figure: Figure, axes: Axes, scene: Scene) -> None:
    mean = mean_over_heads(scene.weights)
    total = len(mean)
    mean = mean[:MAX_TOKENS, :MAX_TOKENS]
    shown = len(mean)
    if scene.tokens is None:
        names = [str(part + 1) for part in range(shown)]
        heading = "observed: attention averaged over depths, pooled to 8 x 8"
        scale, unit = Normalize(0, max(float(mean.max(initial=0)), 1e-9)), "eighth of the text"
    else:
        names = [_drawable(name) for name in readable_tokens(scene.tokens[:shown])]
        heading = f"attention of depth {scene.depth} of {scene.num_depths}, mean over heads"
        scale, unit = SCALE, "token"
    if shown < total:
        heading += f"; first {shown} of {total} tokens"
    axes.set_title(heading, fontsize=10)
    if shown == 0:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "this query has no tokens", ha="center", transform=axes.transAxes)
        return
    image = axes.imshow(mean, cmap="cividis", norm=scale, aspect="auto", interpolation="nearest")
    size = 9 if shown <= 16 else 7.5 if shown <= 28 else 6
    positions = range(shown)
    rotation = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(positions, names, rotation=rotation, fontsize=size)
    axes.set_yticks(positions, names, fontsize=size)
    axes.set_xlabel(f"{unit} attended to (key)", fontsize=9)
    axes.set_ylabel(f"attending {unit} (query)", fontsize=9)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        _plain(label)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    if scene.tokens is None:
        bar.set_ticks([0, scale.vmax or 0], labels=["0", "max"])
        bar.ax.tick_params(labelsize=8)
    else:
        _colour_bar(bar)


def _colour_bar(bar: Colorbar) -> None:
    bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1], labels=["0", ".01", ".1", ".25", ".5", "1"])
    bar.ax.tick_params(labelsize=8)


def _draw_terms(axes: Axes, outcome: Terms | None) -> None:
    names = list(COLOURS)
    values = [0.0 if outcome is None else float(getattr(outcome, name)) for name in names]
    # Weights of the user's choice can take a reward beyond 1: the axis follows.
    end = max(1.0, *values)
    axes.barh(names, values, color=[COLOURS[name] for name in names], height=0.6)
    axes.invert_yaxis()
    axes.set_xlim(0, end * 1.18)
    axes.set_xticks(np.linspace(0, end, 5))
    axes.set_title("reward and its terms", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if outcome is None:
        axes.text(0.5, 0.5, "no depth chosen yet", ha="center", transform=axes.transAxes)
        return
    for place, value in enumerate(values):
        axes.text(value + 0.015 * end, place, f"{value:.3f}", va="center", fontsize=10)


def _drawable(text: str) -> str:
    """`text` with "□" for characters that the font lacks, which matplotlib would warn of."""
    return "".join(mark if _font().get_char_index(ord(mark)) else "□" for mark in text)


def _plain(text: Text) -> None:
    """Text as it stands: no mathematics between dollar signs, in the font of `_drawable`."""
    text.set_parse_math(False)
    text.set_fontfamily(FONT)


@functools.cache
def _font() -> ft2font.FT2Font:
    return font_manager.get_font(font_manager.findfont(FONT))
