"""Frames by their pixels: colours of cells, lengths of bars, and that nothing is cut."""

import os

import numpy as np
import pytest
from PIL import ImageColor

from maw_gym.envs.bandit import Outcome
from maw_gym.envs.rendering import (
    COLOURS,
    attention_frame,
    attention_text,
    depths_frame,
    readable_tokens,
)

OUTCOME = Outcome(reward=0.5, entropy=0.25, focus=0.75, alignment=1.0, regret=0.125, random=0.5)
DARK, BRIGHT = (0, 34, 78), (254, 232, 56)  # the ends of cividis
SWAPPED = np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], np.float32)  # two heads
ODD = ["▁$x^2$", "日本", "a\nb", "\ud800", "🦉", "<0x0A>", "▁", "x_{", "▁" + "long" * 9]


def even(n, heads=2):
    return np.full((heads, n, n), 1 / max(n, 1), np.float32)


def frame(tokens, weights=None, query="some query", outcome=OUTCOME):
    weights = even(len(tokens)) if weights is None else weights
    return attention_frame(query, weights, tokens, 3, 32, outcome)


def text(tokens, weights):
    return attention_text("some query", weights, tokens, 3, 32, OUTCOME)


def cells(picture, n, x=140, y=80, width=450, height=410):
    """Colours (n, n, 3) in the middle of the cells of a heat map."""
    rows = y + ((np.arange(n) + 0.5) * height / n).astype(int)
    columns = x + ((np.arange(n) + 0.5) * width / n).astype(int)
    return picture[rows[:, None], columns]


def assert_nothing_is_cut(picture):
    inside = picture[3:-3, 3:-3]
    assert (picture != 255).sum() == (inside != 255).sum()


def changed(one, other):
    """The box (left, top, right, bottom) of the pixels that differ."""
    rows, columns = np.nonzero((one != other).any(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize(
    "tokens",
    [["a"], ["▁the", "▁cat"], [f"t{k}" for k in range(90)], [], ["▁" + "W" * 20] * 12, ODD],
)
def test_frames_have_a_fixed_size_and_nothing_is_cut(tokens, heads):
    for query in ("some query", "W" * 200, "id_$a_{b\n日" * 20):
        picture = frame(tokens, even(len(tokens), heads), query)
        assert picture.shape == (600, 1100, 3)
        assert (picture.dtype, picture.flags.writeable) == (np.uint8, True)
        assert len(np.unique(picture)) > 10
        assert_nothing_is_cut(picture)
        assert (picture[90:480, 24:30] == 255).all()  # between labels and the name of the axis
    depths = {0: even(len(tokens), heads), 31: even(len(tokens), heads)}
    assert_nothing_is_cut(depths_frame("W" * 60, depths, tokens))


def test_cells_are_the_mean_over_heads_by_its_cube_root():
    found = cells(frame(["a", "b"], SWAPPED), 2)
    assert found[1].tolist() == [list(DARK), list(BRIGHT)]
    # Of 0.5 the cube root is 0.794, between the colours of 9/12 and 10/12.
    assert found[0, 0].tolist() == found[0, 1].tolist() == [199, 182, 103]


def test_before_a_choice_the_observed_attention_is_drawn_up_to_its_maximum():
    pooled = np.full((2, 8, 8), 0.1, np.float32)
    pooled[:, 0, 0] = 0
    before = attention_frame("some query", pooled)
    found = cells(before, 8)
    assert tuple(found[0, 0]) == DARK
    assert {tuple(colour) for colour in found.reshape(-1, 3)[1:]} == {BRIGHT}
    bars = before[81:490, 772:1080].reshape(-1, 3)
    assert not any((bars == ImageColor.getrgb(c)).all(1).any() for c in COLOURS.values())
    assert_nothing_is_cut(before)


@pytest.mark.parametrize(("reward", "end"), [(0.5, 1.0), (2.5, 2.5)])
def test_bars_have_the_length_of_the_terms_on_an_axis_that_holds_them(reward, end):
    picture = frame(["a", "b"], outcome=OUTCOME._replace(reward=reward))
    for value, colour in zip([0.25, 0.75, 1.0, reward, 0.125], COLOURS.values(), strict=True):
        pixels = (picture == ImageColor.getrgb(colour)).all(-1).sum(1).max()
        assert pixels == pytest.approx(250 * value / end, abs=1.5)


def test_what_changes_shows_in_its_place_and_nowhere_else():
    tokens = ["▁red", "▁app"]
    first = frame(tokens)
    _, top, _, bottom = changed(first, frame(tokens, query="another"))
    assert 5 < top < bottom < 35
    left, top, right, bottom = changed(first, frame(["▁red", "▁apple"]))
    assert (30 < left < right < 600, 80 < top < bottom < 580) == (True, True)
    other = attention_frame("some query", even(2), tokens, 31, 32, OUTCOME)
    _, top, _, bottom = changed(first, other)
    assert 50 < top < bottom < 80
    left, *_ = changed(first, frame(tokens, outcome=OUTCOME._replace(focus=0.7499)))
    assert left > 770  # the bar and the number beside it


def test_a_long_query_is_cut_and_says_so():
    tokens = [f"t{k}" for k in range(97)]
    weights = np.zeros((1, 97, 97), np.float32)
    weights[0, np.arange(97), (np.arange(97) + 57) % 97] = 1
    found = frame(tokens, weights)
    assert (cells(found, 40) == DARK).all()
    assert changed(found, frame(tokens[:40], weights[:, :40, :40]))[1] < 80
    assert "57 more tokens" in text(tokens, weights)


def test_readable_tokens():
    tokens = ["▁Return", "ing", "▁", "▁" * 3, "▁extraordinarily", "▁a▁b", "a\nb", "\ud800"]
    shown = ["Return", "·ing", "␣", "␣", "extraordina…", "a▁b", "·a␣b", "·□"]
    assert readable_tokens(tokens) == shown
    assert readable_tokens(["play", "##ing", "\t"]) == ["play", "##ing", "␣"]


def test_text_form():
    weights = np.array([[[0.1, 0.9], [0.75, 0.25]]], dtype=np.float32)
    assert text(["▁red", "▁apple"], weights).splitlines() == [
        "Query some query",
        "Depth 3 of 32 (0 is the most focused)",
        "  red    ->  apple 0.90  red 0.10",
        "  apple  ->  red 0.75  apple 0.25",
        "entropy    0.250  █████",
        "focus      0.750  ███████████████",
        "alignment  1.000  ████████████████████",
        "reward     0.500  ██████████",
        "regret     0.125  ██",
    ]
    weights = np.zeros((1, 8, 8), dtype=np.float32)
    weights[0, 0] = [0, 0.25, 0.5, 0.75, 1, 0, 0, 0]
    lines = attention_text("some query", weights).splitlines()
    assert lines[1] == "No depth chosen yet. Observed attention, pooled to 8 x 8:"
    assert lines[2] == "    ░░▒▒▓▓██      "
    assert len(lines) == 10


def test_broken_settings_of_matplotlib_hinder_no_frame(run_python, monkeypatch):
    monkeypatch.setitem(os.environ, "MPLBACKEND", "nonsense")
    program = "from maw_gym.envs.rendering import attention_frame as draw; import numpy as np;"
    program += "print(draw('q', np.ones((1, 1, 1)), ['a'], 0, 2).shape)"
    assert run_python(program) == "(600, 1100, 3)\n"


def test_depths_side_by_side():
    tokens = ["▁red", "▁app", "le"]
    shares = {0: 1.0, 8: 0.5, 31: 0.0}  # of a diagonal, the rest is even
    weights = {d: np.stack([s * np.eye(3) + (1 - s) / 3] * 2) for d, s in shares.items()}
    picture = depths_frame("q7", weights, tokens)
    assert picture.shape == (500, 1190, 3)
    panels = [cells(picture, 3, 130 + 330 * column, 70, 310, 310) for column in range(3)]
    assert (panels[0] == np.where(np.eye(3)[..., None], BRIGHT, DARK)).all()
    assert len(np.unique(panels[1].reshape(-1, 3), axis=0)) == 2
    # One scale for all: a third and two thirds are neither dark nor bright.
    assert (panels[2] == panels[2][0, 0]).all()
    assert tuple(panels[2][0, 0]) not in (DARK, BRIGHT)
    # The focus of the first is 1 of both heads, though their mean attention is .5 in a row.
    split = {3: np.stack([SWAPPED.mean(0)] * 2)}
    frames = (depths_frame("q", given, ["a", "b"]) for given in ({3: SWAPPED}, split))
    _, top, _, bottom = changed(*frames)
    assert 40 < top < bottom < 70  # the heading alone
