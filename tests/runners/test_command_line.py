"""Settings as a command line."""

from pathlib import Path

import pytest

from maw_gym.errors import InputError
from maw_gym.settings import Count, HomePath, checked
from runners.experiments.command_line import given_flags
from runners.train_grpo import GRPORunSettings


@checked
class Recipe:
    """What to cook."""

    dish: str
    """its name, 100% sure"""
    eggs: Count = 3
    """how many"""
    spices: tuple[str, ...] = ("salt",)
    """all of them"""
    sizes: tuple[float, float] = (1.0, 2.0)
    """of pans"""
    book: HomePath | None = None
    """where it stands"""
    hot: bool = True
    """cooked"""


def test_only_what_was_given_is_said() -> None:
    line = ["--dish", "soup", "--spices", "salt", "mint", "--book", "None", "--no-hot"]
    given = given_flags(Recipe, None, line)
    assert given == {"dish": "soup", "spices": ["salt", "mint"], "book": None, "hot": False}
    assert Recipe(**given) == Recipe("soup", 3, ("salt", "mint"), (1.0, 2.0), None, False)
    given = given_flags(Recipe, None, ["--dish=a", "--eggs=4", "--sizes", "-1", "2", "--book=b"])
    assert Recipe(**given) == Recipe("a", 4, ("salt",), (-1.0, 2.0), Path("b"), True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "the following arguments are required: --dish; --help shows all flags"),
        (["--dish"], "argument --dish: expected one argument; --help shows all flags"),
        (["--dish", "a", "--sizes", "1"], "argument --sizes: expected 2 arguments; --help shows"),
        (["--dish", "a", "--egg", "1"], "unrecognized arguments: --egg 1; --help shows all flags"),
    ],
)
def test_mistakes(line: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        given_flags(Recipe, None, line)


def test_the_help_says_what_stands_below_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        given_flags(Recipe, "Cooking.", ["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Cooking." in shown
    assert "--dish TEXT its name, 100% sure" in shown
    assert "--eggs INT how many (default: 3)" in shown
    assert "--spices [TEXT ...] all of them (default: salt)" in shown
    assert "--hot, --no-hot cooked (default: True)" in shown


def test_every_flag_of_a_run_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        given_flags(GRPORunSettings, None, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--kl-coef FLOAT weight of the KL penalty (default: 0.1)" in shown
    assert "--logdir PATH folder of all runs" in shown
    assert "--alignment {ndcg,listwise} relevance alignment in the reward (default: ndcg)" in shown
