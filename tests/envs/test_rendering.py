"""Frames by their pixels: colours of cells, lengths of bars, and that nothing is cut."""

import os
import time

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


def even(n, heads=2):
    return np.full((heads, n, n), 1 / max(n, 1), np.float32)


def frame(tokens, weights=None, query="some query", outcome=OUTCOME):
    weights = even(len(tokens)) if weights is None else weights
    return attention_frame(query, weights, tokens, 3, 32, outcome)


def text(tokens, weights):
    return attention_text("some query", weights, tokens, 3, 32, OUTCOME)


def cells(picture, n, x, y, width, height):
    """Colours (n, n, 3) in the middle of the cells of a heat map."""
    rows = y + ((np.arange(n) + 0.5) * height / n).astype(int)
    columns = x + ((np.arange(n) + 0.5) * width / n).astype(int)
    return picture[rows[:, None], columns]


def assert_nothing_is_cut(picture):
    edge = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3)])
    edge = np.concatenate([edge, picture[:, :3].reshape(-1, 3), picture[:, -3:].reshape(-1, 3)])
    assert (edge == 255).all()


def changed(one, other):
    """The box (left, top, right, bottom) of the pixels that differ."""
    rows, columns = np.nonzero((one != other).any(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("tokens", [["a"], ["▁the", "▁cat"], [f"t{k}" for k in range(90)], []])
def test_frame_is_an_image_of_fixed_size(tokens, heads):
    picture = frame(tokens, even(len(tokens), heads))
    assert picture.shape == (600, 1100, 3)
    assert (picture.dtype, picture.flags.writeable) == (np.uint8, True)
    assert len(np.unique(picture)) > 10
    assert_nothing_is_cut(picture)


def test_cells_are_the_mean_over_heads_by_its_cube_root():
    found = cells(frame(["a", "b"], SWAPPED), 2, 140, 80, 450, 410)
    assert found[1].tolist() == [list(DARK), list(BRIGHT)]
    # Of 0.5 the cube root is 0.794, between the colours of 9/12 and 10/12.
    assert found[0, 0].tolist() == found[0, 1].tolist() == [199, 182, 103]


def test_before_a_choice_the_observed_attention_is_drawn_up_to_its_maximum():
    pooled = np.full((2, 8, 8), 0.1, np.float32)
    pooled[:, 0, 0] = 0
    before = attention_frame("some query", pooled)
    found = cells(before, 8, 140, 80, 450, 410)
    assert tuple(found[0, 0]) == DARK
    assert {tuple(colour) for colour in found.reshape(-1, 3)[1:]} == {BRIGHT}
    bars = before[81:490, 772:1080].reshape(-1, 3)
    assert not any((bars == ImageColor.getrgb(c)).all(1).any() for c in COLOURS.values())
    assert_nothing_is_cut(before)


@pytest.mark.parametrize(("reward", "end"), [(0.5, 1.0), (2.5, 2.5)])
def test_bars_have_the_length_of_the_terms_on_an_axis_that_holds_them(reward, end):
    picture = frame(["a", "b"], outcome=OUTCOME._replace(reward=reward))
    values = [0.25, 0.75, 1.0, reward, 0.125]
    for value, colour in zip(values, COLOURS.values(), strict=True):
        pixels = (picture == ImageColor.getrgb(colour)).all(-1).sum(1).max()
        assert pixels == pytest.approx(250 * value / end, abs=1.5)
    assert_nothing_is_cut(picture)


def test_every_text_stands_in_its_place():
    """Whatever changes shows, where it belongs and nowhere else."""
    first = frame(["▁red", "▁app"])
    _, top, _, bottom = changed(first, frame(["▁red", "▁app"], query="another"))
    assert 5 < top < bottom < 35
    left, top, right, bottom = changed(first, frame(["▁red", "▁apple"]))
    assert 30 < left < right < 600
    assert 80 < top < bottom < 580
    other = attention_frame("some query", even(2), ["▁red", "▁app"], 31, 32, OUTCOME)
    _, top, _, bottom = changed(first, other)
    assert 50 < top < bottom < 80
    left, *_ = changed(first, frame(["▁red", "▁app"], outcome=OUTCOME._replace(focus=0.7499)))
    assert left > 770  # the bar and the number beside it


@pytest.mark.parametrize("count", [4, 12, 40, 97])
def test_widest_labels_and_titles_are_not_cut(count):
    tokens = ["▁" + "W" * 20] * count
    picture = frame(tokens, query="W" * 200)
    assert_nothing_is_cut(picture)
    assert (picture[90:480, 24:30] == 255).all()  # between the labels and the name of the axis
    depths = {0: even(count), 31: even(count)}
    assert_nothing_is_cut(depths_frame("W" * 60, depths, tokens))
    assert len(readable_tokens(tokens)[0]) == 12


def test_a_long_query_is_cut_and_says_so():
    tokens = [f"t{k}" for k in range(97)]
    weights = np.zeros((1, 97, 97), np.float32)
    weights[0, np.arange(97), (np.arange(97) + 57) % 97] = 1
    found = cells(frame(tokens, weights), 40, 140, 80, 450, 410)
    assert (found == DARK).all()
    assert changed(frame(tokens, weights), frame(tokens[:40], weights[:, :40, :40]))[1] < 80
    assert "57 more tokens" in text(tokens, weights)


def test_odd_text_is_drawn_without_a_warning():
    odd = ["▁$x^2$", "日本", "a\nb", "\ud800", "🦉", "<0x0A>", "▁", "x_{", "▁" + "long" * 9]
    assert_nothing_is_cut(frame(odd, query="id_$a_{b\n日" * 20))
    assert "·日本" in text(odd, even(9))


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


def test_text_form_before_a_choice():
    weights = np.zeros((1, 8, 8), dtype=np.float32)
    weights[0, 0] = [0, 0.25, 0.5, 0.75, 1, 0, 0, 0]
    lines = attention_text("some query", weights).splitlines()
    assert lines[1] == "No depth chosen yet. Observed attention, pooled to 8 x 8:"
    assert lines[2] == "    ░░▒▒▓▓██      "
    assert len(lines) == 10


def test_twenty_frames_a_second():
    tokens, weights = [f"▁token{k}" for k in range(40)], even(40)
    frame(tokens, weights)  # reads the font
    start = time.process_time()
    for _ in range(10):
        frame(tokens, weights)
    assert time.process_time() - start < 0.5


BROKEN = """
import numpy as np
import maw_gym
from maw_gym.envs.rendering import attention_frame, check_matplotlib
print(attention_frame("q", np.ones((1, 1, 1)), ["a"], 0, 2).shape)
try:
    check_matplotlib()
except maw_gym.InputError as problem:
    print(problem)
"""


def test_broken_settings_of_matplotlib_hinder_no_frame(run_python, monkeypatch):
    monkeypatch.setitem(os.environ, "MPLBACKEND", "nonsense")
    first, second = run_python(BROKEN).splitlines()
    assert first == "(600, 1100, 3)"
    assert second.startswith(
        "matplotlib cannot be imported (Key backend: 'nonsense' is not a valid"
    )
    assert second.endswith("; mend its matplotlibrc or unset MPLBACKEND")


def test_depths_side_by_side():
    tokens = ["▁red", "▁app", "le"]
    shares = {0: 1.0, 8: 0.5, 31: 0.0}  # of a diagonal, the rest is even
    weights = {d: np.stack([s * np.eye(3) + (1 - s) / 3] * 2) for d, s in shares.items()}
    picture = depths_frame("q7", weights, tokens)
    assert picture.shape == (500, 1190, 3)
    assert_nothing_is_cut(picture)
    panels = [cells(picture, 3, 130 + 330 * column, 70, 310, 310) for column in range(3)]
    assert (panels[0] == np.where(np.eye(3)[..., None], BRIGHT, DARK)).all()
    assert len(np.unique(panels[1].reshape(-1, 3), axis=0)) == 2
    # One scale for all: a third and two thirds are neither dark nor bright.
    assert (panels[2] == panels[2][0, 0]).all()
    assert tuple(panels[2][0, 0]) not in (DARK, BRIGHT)


def test_the_focus_of_a_depth_is_that_of_each_head():
    """It is 1 of both heads, though their mean attention is .5 in the first row."""
    one = {3: SWAPPED}
    split = {3: np.stack([SWAPPED.mean(0)] * 2)}
    frames = (depths_frame("q", weights, ["a", "b"]) for weights in (one, split))
    _, top, _, bottom = changed(*frames)
    assert 40 < top < bottom < 70  # the heading alone
    assert_nothing_is_cut(depths_frame("q", {0: np.zeros((8, 0, 0))}, []))
