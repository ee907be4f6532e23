"""The pages of the documentation: what the site's generator cannot know."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import griffe
import pytest

from maw_gym.agents.grpo.settings import AllSettings
from maw_gym.runners.cli import COMMANDS
from maw_gym.runners.experiments.command_line import given_flags

ROOT = Path(__file__).parents[1]
RUNNER = re.compile(r"(?:python|torchrun).*?\brunners/(\w+)\.py(.*)")
PAGES = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_markers_and_paths_name_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    markers = [line for line in text.splitlines() if line.lstrip().startswith("--8")]
    named = [re.fullmatch(r'--8<-- "(.+)"', marker) for marker in markers]
    assert all(named), "a marker that the site shows in place of the example"
    paths = re.findall(r"\b(?:maw_gym|agents|runners|tests|examples)/[\w/]+\.py\b", text)
    missing = [
        path for path in [*(match[1] for match in named), *paths] if not (ROOT / path).is_file()
    ]
    assert not missing


def test_signatures_of_the_reference_show_values():
    values = griffe.load_extensions(str(ROOT / "docs" / ".values.py"))
    grpo = griffe.load("maw_gym.agents.grpo.grpo", extensions=values, search_paths=[ROOT])
    shown = {one.name: one.default for one in grpo["GRPO.__init__"].parameters}
    assert shown["learning_rate"] == repr(AllSettings.learning_rate)
    assert (shown["kl"], shown["gamma"], shown["n_steps"]) == ("'exact'", "0.99", "None")


def commands(text):
    """Runner and flags of each command, in blocks of code and between backticks."""
    text = re.sub(r"\\\n\s*", " ", text)
    names = "|".join(sorted(COMMANDS, key=len, reverse=True))
    for code in [*re.findall(r"`([^`\n]+)`", text), *text.splitlines()]:
        if found := re.match(rf"maw-gym ({names})\b(.*)", code.strip()):
            yield COMMANDS[found[1]][0], shlex.split(found[2], comments=True)
        elif found := RUNNER.match(code.strip()):
            yield found[1], shlex.split(found[2], comments=True)


def test_the_flags_of_documented_commands_are_there():
    found = [one for page in PAGES for one in commands(page.read_text(encoding="utf-8"))]
    for runner, flags in found:
        settings = get_type_hints(import_module(f"maw_gym.runners.{runner}").main)["settings"]
        if flags and not flags[0].startswith("--help"):
            given_flags(settings, None, flags)
    assert len({runner for runner, _ in found}) > 6
