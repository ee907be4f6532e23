import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from maw_gym.envs.bandit import Outcome
from maw_gym.envs.drawing import attention_figure, depths_figure, figure_rgb
from maw_gym.envs.rendering import Scene, attention_text, readable_tokens

OUTCOME = Outcome(reward=0.5, entropy=0.25, focus=0.75, alignment=1.0, regret=0.125, random=0.5)


def scene(tokens, **changes):
    n = len(tokens)
    weights = np.full((2, n, n), 1 / max(n, 1), dtype=np.float32)
    return Scene("some query", weights, tokens, 3, 32, OUTCOME)._replace(**changes)


def texts(figure):
    """Every string in the figure."""
    figure.canvas.draw()
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        labels = (*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts)
        found += [label.get_text() for label in labels]
    return found


def test_frame_is_an_image_of_fixed_size():
    for tokens in (["a"], ["▁the", "▁cat"], [f"t{k}" for k in range(90)]):
        frame = figure_rgb(attention_figure(scene(tokens)))
        assert frame.shape == (600, 1100, 3)
        assert frame.dtype == np.uint8
        assert len(np.unique(frame)) > 10


def test_figure_shows_tokens_terms_query_and_depth():
    found = texts(attention_figure(scene(["▁red", "▁app", "le"])))
    assert found.count("red") == found.count("app") == found.count("·le") == 2
    for expected in ("Query some query", "0.500", "0.250", "0.750", "1.000", "0.125"):
        assert expected in found
    assert "attention of depth 3 of 32, mean over heads" in found


def test_figure_draws_the_mean_over_heads():
    weights = np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], dtype=np.float32)
    figure = attention_figure(scene(["a", "b"], weights=weights))
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_bars_have_the_length_of_the_terms():
    bars = attention_figure(scene(["a", "b"])).axes[1].patches
    assert [bar.get_width() for bar in bars] == [0.25, 0.75, 1.0, 0.5, 0.125]


def test_long_query_is_cut_and_says_so():
    figure = attention_figure(scene([f"t{k}" for k in range(97)]))
    assert figure.axes[0].images[0].get_array().shape == (40, 40)
    assert "first 40 of 97 tokens" in figure.axes[0].get_title()
    text = attention_text(scene([f"t{k}" for k in range(97)]))
    assert "57 more tokens" in text


def test_labels_do_not_overlap():
    figure = attention_figure(scene([f"▁token{k}" for k in range(40)]))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 40
    for upper, lower in itertools.pairwise(boxes):
        assert upper.y0 >= lower.y1 - 1
    edge = min(box.x0 for box in boxes)
    assert edge > figure.axes[0].yaxis.label.get_window_extent().x1


def test_odd_text_is_drawn_without_a_warning():
    odd = ["▁$x^2$", "日本", "a\nb", "\ud800", "🦉", "<0x0A>", "▁", "x_{", "▁" + "long" * 9]
    figure = attention_figure(scene(odd, query_id="id_$a_{b\n日" * 20))
    found = texts(figure)
    assert "$x^2$" in found
    assert "·□□" in found
    assert "·a␣b" in found
    assert all("\n" not in text for text in found)
    assert figure_rgb(figure).shape == (600, 1100, 3)
    assert "·日本" in attention_text(scene(odd))


def test_readable_tokens():
    tokens = ["▁Return", "ing", "▁", "▁" * 3, "▁extraordinarily", "▁a▁b"]
    assert readable_tokens(tokens) == ["Return", "·ing", "␣", "␣", "extraordina…", "a▁b"]
    assert readable_tokens(["play", "##ing", "\t"]) == ["play", "##ing", "␣"]


def test_query_without_tokens():
    found = texts(attention_figure(scene([])))
    assert "this query has no tokens" in found
    assert "0.750" in found


def test_before_a_choice_the_observed_attention_is_drawn():
    before = Scene("some query", np.full((2, 8, 8), 0.1, dtype=np.float32))
    found = texts(attention_figure(before))
    assert "no depth chosen yet" in found
    assert "eighth of the text attended to (key)" in found
    assert figure_rgb(attention_figure(before)).shape == (600, 1100, 3)


def test_reward_above_one_stays_inside_the_axes():
    figure = attention_figure(scene(["a"], outcome=OUTCOME._replace(reward=2.5)))
    assert figure.axes[1].get_xlim()[1] > 2.5


def test_text_form():
    weights = np.array([[[0.1, 0.9], [0.75, 0.25]]], dtype=np.float32)
    assert attention_text(scene(["▁red", "▁apple"], weights=weights)).splitlines() == [
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
    lines = attention_text(Scene("some query", weights)).splitlines()
    assert lines[1] == "No depth chosen yet. Observed attention, pooled to 8 x 8:"
    assert lines[2] == "    ░░▒▒▓▓██      "
    assert len(lines) == 10


def test_pyplot_is_left_alone():
    from matplotlib import pyplot

    attention_figure(scene(["a", "b"]))
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("head_count", [1, 8])
def test_any_number_of_heads(head_count):
    weights = np.full((head_count, 2, 2), 0.5, dtype=np.float32)
    assert "0.50" in attention_text(scene(["a", "b"], weights=weights))


BROKEN = """
import numpy as np
import maw_gym
from maw_gym.envs.rendering import Scene, attention_frame, attention_text
scene = Scene("q", np.ones((1, 1, 1)), ["a"], 0, 2)
print(attention_text(scene).splitlines()[0])
try:
    attention_frame(scene)
except maw_gym.InputError as problem:
    print(problem)
"""


def test_broken_settings_of_matplotlib_hinder_nothing_but_drawing():
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], env=os.environ | {"MPLBACKEND": "nonsense"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == "Query q"
    assert second.startswith(
        "matplotlib cannot be imported (Key backend: 'nonsense' is not a valid"
    )
    assert second.endswith("; mend its matplotlibrc or unset MPLBACKEND")


# --- several depths --------------------------------------------------------------------------


def through_depths(tokens, depths=(0, 8, 16, 24, 31)):
    """Attention that is even but for the diagonal, which is the weaker the higher the depth."""
    n = len(tokens)
    shares = {depth: 1 - place / len(depths) for place, depth in enumerate(depths)}
    return {
        depth: np.stack([share * np.eye(n) + (1 - share) / n] * 2)
        for depth, share in shares.items()
    }


def test_depths_side_by_side():
    tokens = ["▁red", "▁app", "le"]
    figure = depths_figure("q7", through_depths(tokens), tokens)
    found = texts(figure)
    # Largest weights: 1, .8 + .2 / 3, .6 + .4 / 3, .4 + .6 / 3 and .2 + .8 / 3.
    assert [axes.get_title() for axes in figure.axes[:5]] == [
        "depth 0: focus 1.00",
        "depth 8: focus 0.87",
        "depth 16: focus 0.73",
        "depth 24: focus 0.60",
        "depth 31: focus 0.47",
    ]
    assert "Query q7" in found
    assert found.count("·le") == 6  # under every depth, and once beside the first
    drawn = [axes.images[0].get_array() for axes in figure.axes[:5]]
    assert drawn[0].tolist() == np.eye(3).tolist()
    assert drawn[4][0].tolist() == pytest.approx([0.466667, 0.266667, 0.266667], abs=1e-6)
    # One scale for all of them.
    assert {axes.images[0].get_clim() for axes in figure.axes[:5]} == {(0, 1)}
    assert figure_rgb(figure).shape == (420, 1500, 3)


def test_the_mean_over_heads_of_one_depth():
    weights = np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], dtype=np.float32)
    figure = depths_figure("q", {3: weights}, ["a", "b"])
    assert figure.axes[0].get_title() == "depth 3: focus 1.00"  # of each head, not of their mean
    assert figure.axes[0].images[0].get_array().tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_depths_of_long_odd_and_empty_queries():
    long = [f"t{k}" for k in range(97)]
    figure = depths_figure("q", through_depths(long, (0, 1)), long)
    assert figure.axes[1].images[0].get_array().shape == (40, 40)
    assert "first 40 of 97 tokens" in figure.get_suptitle()
    odd = ["▁$x^2$", "日本", "a\nb"]
    assert "$x^2$" in texts(depths_figure("id_$a_{b", through_depths(odd), odd))
    empty = depths_figure("q", {0: np.zeros((8, 0, 0))}, [])
    assert "no tokens" in texts(empty)
    with pytest.raises(ValueError, match="at least one depth"):
        depths_figure("q", {}, ["a"])


def test_labels_of_depths_stay_inside_the_figure():
    tokens = ["▁extraordinarily"] * 12
    figure = depths_figure("q", through_depths(tokens), tokens)
    figure.canvas.draw()
    height, width = figure_rgb(figure).shape[:2]
    for axes in figure.axes[:5]:
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            box = label.get_window_extent()
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height
