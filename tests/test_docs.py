"""The pages of the documentation: what the site's generator cannot know."""

import re
from pathlib import Path

import griffe
import pytest

from maw_gym.agents.grpo.settings import AllSettings

ROOT = Path(__file__).parents[1]
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
