"""The parts of a comparison, by numbers worked out by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maw_gym.corpora import Collection, QuerySet
from maw_gym.errors import InputError
from runners.compare import CompareSettings
from runners.experiments.analysis import NAMES, Comparison, Reference, t_interval
from runners.experiments.command_line import command_of, made
from runners.experiments.comparison import shared_documents, slug
from runners.experiments.methods import METHODS, Result
from runners.experiments.report import markdown, p_value, pair_table, percent


def cell(ndcg: list[float], reward: list[float] | None = None) -> Result:
    values = np.array(ndcg)
    terms = reward and dict.fromkeys(("reward", "entropy", "focus", "alignment"), np.array(reward))
    depths = np.zeros(len(ndcg), np.int64) if reward else None
    return Result(dict.fromkeys(NAMES, values), depths, terms or None)


def comparison(
    results: dict[str, list[Result]], sizes: tuple[int, ...] = (2, 1), **more: Any
) -> Comparison:
    """Of folds of these sizes, in which a random depth gets .4 and the best .8."""
    references = [
        Reference(
            fold,
            encoder,
            [f"q{fold}-{row}" for row in range(size)],
            {
                name: np.full(size, level)
                for name, level in (("random", 0.4), ("best_fixed", 0.4), ("oracle", 0.8))
            },
        )
        for encoder in range(more.get("encoders", 1))
        for fold, size in enumerate(sizes)
    ]
    return Comparison("x", next(iter(results)), results, references, **more)


def test_scores_are_pooled_over_folds_and_averaged_over_seeds() -> None:
    cells = [cell([0.0, 1.0]), cell([0.5]), cell([1.0, 1.0]), cell([0.0])]
    made = comparison({"grpo": cells}, seeds=(0, 1))
    assert made.query_ids == ["q0-0", "q0-1", "q1-0"]
    assert made.values("grpo", "nDCG@10").tolist() == [[0.0, 1.0, 0.5], [1.0, 1.0, 0.0]]
    assert made.scores("grpo").tolist() == [0.5, 1.0, 0.25]


def test_every_encoder_has_scores_of_its_own_and_the_seeds_on_it_are_averaged() -> None:
    cells = [cell([0.0, 1.0]), cell([1.0, 1.0]), cell([0.2, 0.4]), cell([0.4, 0.0])]
    made = comparison({"grpo": cells}, (2,), encoders=2, seeds=(0, 1))
    assert made.by_encoder("grpo", "nDCG@10") == pytest.approx(np.array([[0.5, 1.0], [0.3, 0.2]]))
    assert made.scores("grpo") == pytest.approx([0.4, 0.6])


def test_a_constant_difference_has_itself_as_interval_and_margin() -> None:
    results = {"maw-single": [cell([0.2, 0.6])] * 2, "grpo": [cell([0.1, 0.5])] * 2}
    made = comparison(results, (2,), encoders=2)
    test = made.compared(["grpo"], "maw-single", "nDCG@10")["grpo"]
    numbers = [test[name] for name in ("difference", "low", "high", "equivalence_margin")]
    assert numbers == pytest.approx([-0.1, -0.1, -0.1, 0.1])
    assert test["baseline_mean"] == pytest.approx(0.4)


def test_rows_by_hand() -> None:
    ppo = [cell([1.0, 0.5], [0.5, 0.7]), cell([0.0], [0.6])]
    ppo += [cell([1.0, 0.5], [0.5, 0.7]), cell([0.6], [0.6])]
    results = {
        "bm25": [cell([0.5, 0.5]), cell([0.5])],
        "ppo": ppo,
        "oracle": [cell([1.0, 1.0]), cell([1.0])],
    }
    first, second, third = comparison(results, seeds=(0, 1), seed_intervals=True).rows

    assert first["test"] is None  # the baseline
    assert third["test"] is None  # an oracle
    # Averaged over seeds: 1, .5, .3; minus .5: +.5, 0, -.2, of mean .1. Both signs of two numbers:
    # sums .7, .3, -.3, -.7 are all at least .3 away from 0.
    assert second["test"]["difference"] == pytest.approx(0.1)
    assert second["test"]["p"] == 1.0
    assert second["test"]["p_holm"] == 1.0
    assert (second["test"]["wins"], second["test"]["ties"], second["test"]["losses"]) == (1, 1, 1)
    # Deviations .4, -.1, -.3 from the mean: s = sqrt(.26 / 2); (1.96 + .8416) s / sqrt 3.
    assert second["test"]["smallest_detectable"] == pytest.approx(0.5832, abs=1e-4)
    assert second["reward"]["mean"] == pytest.approx(0.6)
    assert second["reward"]["gap_closed"] == pytest.approx(0.5)  # (.6 - .4) / (.8 - .4)
    assert first["reward"] is None
    # Seeds have means .5 and .7: deviation .2 / sqrt 2, t interval .6 -+ 12.706 * .1.
    values = second["retrieval"]["nDCG@10"]
    assert values["mean"] == pytest.approx(0.6)
    assert values["seed_deviation"] == pytest.approx(0.141421, abs=1e-6)
    assert values["seed_low"] == pytest.approx(0.6 - 1.27062, abs=1e-5)
    assert second["relative"] == {"zero_shot": None, "trained": None}


def test_relative_change() -> None:
    given = (("non-maw-trained", 0.5), ("non-maw-zero-shot", 0.4), ("bm25", 0.6))
    made = comparison({name: [cell([value, value])] for name, value in given}, (2,))
    assert made.rows[2]["relative"]["zero_shot"] == pytest.approx(0.5)
    assert made.rows[2]["relative"]["trained"] == pytest.approx(0.2)


def test_holm_is_over_all_methods_tested() -> None:
    given = (("bm25", 0.0), ("ppo", 0.1), ("grpo", 0.0))
    made = comparison({name: [cell([value] * 5)] for name, value in given}, (5,))
    found = made.compared(["ppo", "grpo"], "bm25", "nDCG@10")
    # Of 32 signs, all plus and all minus are as far out: 2 / 32, times 2 tests.
    assert found["ppo"]["p"] == 0.0625
    assert found["ppo"]["p_holm"] == 0.125
    assert found["grpo"]["p_holm"] == 1.0


def test_t_interval() -> None:
    # Student's t with 2 degrees: 4.30265; standard error 1 / sqrt 3.
    low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    assert low == pytest.approx(2 - 2.48414, abs=1e-5)
    assert high == pytest.approx(2 + 2.48414, abs=1e-5)


def test_shared_documents() -> None:
    def queries(*relevance: dict[str, int]) -> QuerySet:
        ids = tuple(map(str, range(len(relevance))))
        return QuerySet(ids, ids, relevance)

    splits = {
        "encoder": queries({"a": 1}),
        "train": queries({"b": 0, "c": 2}),
        "validation": queries(),
        "test": queries({"a": 1, "b": 1}, {"c": 1, "d": 3, "e": 0}),
    }
    found = shared_documents(Collection("x", tuple("abcde"), tuple("abcde"), splits, {}))
    # Relevant in test: a, b, c, d. Of these, a and c were relevant before; b only with grade 0.
    assert found == {"test_relevant": 4, "test_relevant_seen": 2}


def test_settings_fill_in_what_is_not_told() -> None:
    quick = made(CompareSettings, quick=True)
    assert quick.learner_seeds == (0,)
    assert quick.tested_against == "standard-attention"
    assert quick.specs("pydocs")[0].online.timesteps == 40_000
    assert not {"non-maw-trained", "maw-single"} & set(quick.method_names)
    whole = made(CompareSettings)
    assert whole.learner_seeds == (0, 1, 2)
    assert whole.tested_against == "non-maw-trained"
    assert whole.specs("pydocs")[0].online.timesteps == 100_000
    told = made(
        CompareSettings, text_encoder="minilm", train_text_encoder=True, balance=0.5, folds=3
    )
    told = replace(told, encoder_seeds=(3, 7))
    assert [(one.task.encoder_seed, one.task.fold) for one in told.specs("x", (0, 2))] == [
        (3, 0), (3, 2), (7, 0), (7, 2),
    ]  # fmt: skip
    common = told.specs("pydocs", (0, 2))[3].task
    assert (common.text_encoder, common.train_text_encoder) == ("minilm", True)
    assert (common.balance, common.folds, common.fold, common.encoder_seed) == (0.5, 3, 2, 7)
    assert whole.method_names == tuple(METHODS)
    assert made(CompareSettings, methods=("all",)).method_names == tuple(METHODS)
    some = made(CompareSettings, methods=("grpo", "bm25"), baseline="ppo")
    assert some.method_names == ("bm25", "ppo", "grpo")  # the baseline joins, in the table's order


def test_command_says_what_differs() -> None:
    assert command_of("compare", made(CompareSettings)) == "python runners/compare.py"
    some = made(
        CompareSettings, datasets=("a b",), quick=True, seeds=(3, 4), logdir=Path("elsewhere")
    )
    assert command_of("compare", some) == (
        "python runners/compare.py --dataset 'a b' --seeds 3 4 --quick"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("gpro",)}, "unknown method 'gpro': did you mean 'grpo'"),
        ({"methods": ("ppo", "ppo")}, "'ppo' is given twice"),
        ({"methods": ()}, "methods: tuple should have at least 1 item"),
        ({"datasets": ()}, "datasets: tuple should have at least 1 item"),
        ({"datasets": ("a", "a")}, "datasets must differ, got a a"),
        ({"seeds": (1, 1)}, "seeds must differ, got 1 1"),
        ({"seeds": (-1,)}, "seeds must be at least 0, got -1"),
        ({"baseline": "bm52"}, "unknown method 'bm52'"),
        ({"baseline": "oracle"}, "cannot be 'oracle'"),
        ({"seeds": (1,), "seed_intervals": True}, "needs two seeds or more, got 1"),
        ({"timesteps": 0}, "timesteps must be at least 1"),
        ({"observation": ("colour",)}, "unknown observation block 'colour'"),
        ({"alignment": "map"}, "alignment must be 'ndcg' or 'listwise', got 'map'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(CompareSettings, **settings)


def test_a_pair_of_methods_by_hand() -> None:
    test = {
        "difference": 0.01, "low": -0.002, "high": 0.022, "p": 0.04, "baseline_mean": 0.4,
        "smallest_detectable": 0.001, "equivalence_margin": 0.02,
    }  # fmt: skip
    (line,) = pair_table({("grpo", "random"): (None, test)}).splitlines()[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "grpo minus random", "-", "-", "+0.01000 [-0.00200, +0.02200]", ".0400", "0.25%", "5.00%",
    ]  # fmt: skip


def test_words_for_numbers() -> None:
    assert p_value(0.00001) == "<.0001"
    assert p_value(0.0312) == ".0312"
    assert p_value(1.0) == "1.0000"
    assert percent(0.0325) == "+3.2%"
    assert percent(None) == "-"
    assert slug("pydocs") == "pydocs"
    assert slug("/x/a/b").startswith("x-a-b-")
    assert len({slug(name) for name in ("/x/a/b", "/x/a-b", "x-a-b", "/x/a b")}) == 4
    assert markdown(["a", "b"], [["x", "10"]]) == "| a   |    b |\n| --- | ---: |\n| x   |   10 |"


def test_a_folder_named_in_two_ways_is_given_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the dataset '{tmp_path}' is given twice"):
        made(CompareSettings, datasets=(f"{tmp_path}", f"{tmp_path}/"))
