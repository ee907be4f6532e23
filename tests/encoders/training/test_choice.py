"""Which encoder a collection gets, by hand."""

import numpy as np
import pytest

from maw_gym.encoders.training.selection import choose, judges


def test_a_clear_advantage_wins():
    before, after = np.array([0.0, 0.2, 0.1, 0.3]), np.array([0.5, 0.6, 0.7, 0.6])
    choice = choose({"untrained": before, "a": after})
    # Differences .5, .4, .6, .3: mean .45, standard deviation .129099, of 4 queries.
    assert choice["chosen"] == "a"
    assert choice["queries"] == 4
    assert choice["candidates"]["a"] == pytest.approx(
        {"nDCG@10": 0.6, "advantage": 0.45, "standard error": 0.0645497}
    )
    assert choice["candidates"]["untrained"] == {
        "nDCG@10": pytest.approx(0.15),
        "advantage": 0.0,
        "standard error": 0.0,
    }


def test_an_advantage_within_its_standard_error_does_not():
    # Differences 1, 0, 0, 0: mean .25, standard error .25.
    choice = choose({"untrained": np.zeros(4), "lucky": np.array([1.0, 0.0, 0.0, 0.0])})
    assert choice["candidates"]["lucky"]["standard error"] == pytest.approx(0.25)
    assert choice["chosen"] == "untrained"
    # Differences 1, 1, 0, 0: mean .5, standard error .288675.
    assert choose({"untrained": np.zeros(4), "a": np.array([1, 1, 0, 0])})["chosen"] == "a"


def test_of_those_that_pass_the_largest_mean_wins():
    scores = {
        "untrained": np.zeros(4),
        "steady": np.full(4, 0.2),
        "lucky": np.array([1.2, 0.0, 0.0, 0.0]),  # mean .3, standard error .3
        "better": np.array([0.3, 0.2, 0.3, 0.2]),
    }
    assert choose(scores)["chosen"] == "better"
    assert choose({**scores, "equal": scores["better"]})["chosen"] == "better"


@pytest.mark.parametrize("scores", [[], [1.0]], ids=["no query", "one query"])
def test_too_few_queries_choose_nothing(scores):
    choice = choose({"untrained": np.zeros(len(scores)), "a": np.array(scores)})
    assert choice["chosen"] == "untrained"
    assert choice["queries"] == len(scores)
    assert choice["candidates"]["a"]["standard error"] is None


def test_judges_have_been_learned_from_by_nobody(tiny):
    ids = {name: queries.ids for name, queries in tiny.splits.items()}
    assert judges(tiny, True).ids == (*ids["validation"], *ids["train"])
    everyone = judges(tiny, False)
    assert everyone.ids == (*ids["validation"], *ids["train"], *ids["encoder"])
    assert len(everyone.texts) == len(everyone.relevance) == len(everyone.ids)
    assert not set(everyone.ids) & set(ids["test"])


def test_so_many_judges_at_most(tiny, monkeypatch):
    monkeypatch.setattr("maw_gym.encoders.training.selection.JUDGES", 3)
    assert judges(tiny, True).ids == (*tiny.splits["validation"].ids, *tiny.splits["train"].ids)[:3]
