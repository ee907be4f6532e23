"""Settings as a command line."""

from pathlib import Path
from typing import Annotated, ClassVar

import pytest

from maw_gym.errors import InputError
from maw_gym.settings import Count, HomePath, checked
from runners.experiments.command_line import Flag, command_of, given_flags
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
        ([], "the following arguments are required: --dish; --help-all shows all flags"),
        (["--dish"], "argument --dish: expected one argument; --help-all shows all flags"),
        (["--dish", "a", "--sizes", "1"], "argument --sizes: expected 2 arguments; --help-all"),
        (
            ["--dish", "a", "--egg", "1"],
            "unrecognized arguments: --egg 1; did you mean --eggs[?]; --help-all shows all flags",
        ),
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
    assert "--spices TEXT [TEXT ...] all of them (default: salt)" in shown
    assert "--hot, --no-hot cooked (default: True)" in shown


def test_every_flag_of_a_run_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        given_flags(GRPORunSettings, None, ["--help-all"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--kl-coef FLOAT weight of the KL penalty (default: 0.1)" in shown
    assert "--logdir PATH folder of all runs" in shown
    assert "--alignment {ndcg,listwise} relevance alignment in the reward (default: ndcg)" in shown


@checked
class Parcel:
    """What to send where."""

    main_flags: ClassVar = ("weight",)
    sender: Annotated[str, Flag(positional=True)]
    """who sends it; a name"""
    town: Annotated[str, Flag(positional=True)]
    """where it goes"""
    weight: Count = 1
    """in kilograms; the scales of the post office have the last word"""
    bills: Annotated[tuple[str, ...], Flag("bill")] = ()
    """papers that go with it"""
    express: bool = False
    """on the same day"""


@pytest.mark.parametrize(
    "line",
    [
        ["Ann", "Ulm", "--weight", "2"],
        ["Ann", "--weight", "2", "Ulm"],
        ["--weight=2", "Ann", "Ulm"],
        ["Ulm", "--weight", "2", "--sender", "Ann"],
        ["--town", "Ulm", "--sender", "Ann", "--weight", "2"],
    ],
)
def test_positional_words_have_flags_too(line: list[str]) -> None:
    assert given_flags(Parcel, None, line) == {"sender": "Ann", "town": "Ulm", "weight": "2"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "the following arguments are required: SENDER, TOWN; --help-all shows all flags"),
        (["Ann"], "the following arguments are required: TOWN; --help-all shows all flags"),
        (["Ann", "Ulm", "by air"], "unrecognized arguments: 'by air'; --help-all shows all flags"),
    ],
)
def test_mistakes_with_positional_words(line: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        given_flags(Parcel, None, line)


def test_a_command_says_what_differs() -> None:
    parcel = Parcel("Ann", "Ulm", bills=("1.txt", "my bill"), express=True)
    assert command_of("send", parcel).endswith(" --bill 1.txt 'my bill' --express")


def test_the_short_help_has_the_flags_used_most(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        given_flags(Parcel, "Send it.\n\nOr do not.", ["--help"], "post send")
    assert capsys.readouterr().out == (
        "usage: post send SENDER TOWN [--flag VALUE ...]\n\n"
        "Send it.\n\n"
        "arguments:\n"
        "  SENDER        who sends it\n"
        "  TOWN          where it goes\n\n"
        "flags:\n"
        "  --weight INT  in kilograms (default: 1)\n"
        "  --help-all    show the other 2 flags too, and more about each\n"
    )
    with pytest.raises(SystemExit):
        given_flags(Parcel, "Send it.\n\nOr do not.", ["--help-all"], "post send")
    shown = capsys.readouterr().out
    assert "Or do not." in shown
    assert "in kilograms; the scales of the post office" in " ".join(shown.split())
    assert "--bill TEXT [TEXT ...]" in shown
