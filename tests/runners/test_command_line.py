"""Settings as a command line."""

from pathlib import Path
from typing import Annotated, ClassVar

import pytest

from maw_gym.errors import InputError
from maw_gym.runners.experiments.command_line import (
    Flag,
    Section,
    changed,
    flat,
    given_flags,
    made,
)  # fmt: skip
from maw_gym.settings import Count, HomePath, checked


@checked
class Box:
    """What it is sent in."""

    weight: Count = 1
    """in kilograms, 100% sure; the scales of the post office have the last word"""
    sizes: tuple[float, float] = (1.0, 2.0)
    """of its sides"""
    colour: str = "brown"
    """of the paper"""


@checked
class Parcel:
    """What to send where."""

    main_flags: ClassVar = ("weight",)
    sender: Annotated[str, Flag(positional=True)]
    """who sends it; a name"""
    town: Annotated[str, Flag(positional=True)] = "Ulm"
    """where it goes"""
    box: Annotated[Box, Section(without=("colour",))] = Box()
    bills: Annotated[tuple[str, ...], Flag("bill")] = ()
    """papers that go with it"""
    book: HomePath | None = None
    """where it stands"""
    express: bool = True
    """on the same day"""


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("Ann Bonn --weight 2", {"sender": "Ann", "town": "Bonn", "weight": "2"}),
        ("--weight=2 Ann --no-express", {"sender": "Ann", "weight": "2", "express": False}),
        ("Bonn --sender Ann --book None", {"sender": "Ann", "town": "Bonn", "book": None}),
        ("Ann --bill 1 2", {"sender": "Ann", "bills": ["1", "2"]}),
        ("Ann --sizes -1 2", {"sender": "Ann", "sizes": ["-1", "2"]}),
    ],
)  # fmt: skip
def test_only_what_was_given_is_said(line, given):
    assert given_flags(Parcel, None, line.split()) == given


def test_flat_values_make_settings_and_come_back():
    parcel = made(Parcel, {"sender": "Ann", "weight": "2", "sizes": ["-1", "2"], "book": "b"})
    assert parcel == Parcel("Ann", "Ulm", Box(2, (-1.0, 2.0)), (), Path("b"), True)
    assert flat(parcel) == {
        "sender": "Ann", "town": "Ulm", "weight": 2, "sizes": (-1.0, 2.0), "bills": (),
        "book": Path("b"), "express": True,
    }  # fmt: skip
    assert changed(parcel, weight=3, town="Bonn").box == Box(3, (-1.0, 2.0))
    with pytest.raises(InputError, match="unknown setting 'colour'; there are sender, "):
        changed(parcel, colour="red")  # which is no flag


def test_help_has_every_flag_with_its_default_the_main_ones_first(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        given_flags(Parcel, "Send it.\n\nOr do not.", ["--help"], "post send")
    assert not end.value.code
    assert capsys.readouterr().out == (
        "usage: post send SENDER TOWN [--flag VALUE ...]\n\n"
        "Send it.\n\nOr do not.\n\n"
        "options:\n"
        "  -h, --help              show this help message and exit\n\n"
        "arguments, in this order or by their flags:\n"
        "  --sender TEXT           who sends it; a name\n"
        "  --town TEXT             where it goes (default: Ulm)\n\n"
        "flags that are used most:\n"
        "  --weight INT            in kilograms, 100% sure; the scales of the post\n"
        "                          office have the last word (default: 1)\n\n"
        "all other flags:\n"
        "  --sizes FLOAT FLOAT     of its sides (default: 1.0 2.0)\n"
        "  --bill TEXT [TEXT ...]  papers that go with it (default: none)\n"
        "  --book PATH             where it stands\n"
        "  --express, --no-express\n"
        "                          on the same day (default: True)\n"
    )
