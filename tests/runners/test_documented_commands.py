"""Every command in the documentation is one, with flags that there are."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from runners.cli import COMMANDS
from runners.experiments.command_line import given_flags

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNER = re.compile(r"(?:python|torchrun).*?\brunners/(\w+)\.py(.*)")


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Runner and flags of each command, in blocks of code and between backticks."""
    text = re.sub(r"\\\n\s*", " ", text)
    codes = [*re.findall(r"`([^`\n]+)`", text), *text.splitlines()]
    names = "|".join(sorted(COMMANDS, key=len, reverse=True))
    for code in codes:
        line = code.strip()
        if found := re.match(rf"maw-gym ({names})\b(.*)", line):
            yield COMMANDS[found[1]].module, shlex.split(found[2], comments=True)
        elif found := RUNNER.match(line):
            yield found[1], shlex.split(found[2], comments=True)


DOCUMENTED = [
    (f"{page.name}: {runner} {shlex.join(flags)}", runner, flags)
    for page in PAGES
    for runner, flags in commands(page.read_text(encoding="utf-8"))
]


def test_the_documentation_has_commands() -> None:
    assert {runner for _, runner, _ in DOCUMENTED} >= {
        "train_grpo", "train_encoder", "compare", "benchmark", "bandits", "search", "evaluate",
    }  # fmt: skip


@pytest.mark.parametrize(("runner", "flags"), [
    pytest.param(runner, flags, id=name) for name, runner, flags in DOCUMENTED
])  # fmt: skip
def test_its_flags_are_there(runner: str, flags: list[str]) -> None:
    main = import_module(f"runners.{runner}").main
    settings = get_type_hints(main)["settings"]
    if flags and not flags[0].startswith("--help"):
        given_flags(settings, None, flags)
