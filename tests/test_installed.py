"""The first minutes of two kinds of users with an installed wheel, far from the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Installed = Callable[..., str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Runs Python where the wheel is installed, beside packages of others called as our folders."""
    place = tmp_path_factory.mktemp("installed")
    flags = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    wheel = [sys.executable, "-m", "pip", "wheel", str(ROOT), *flags, "--wheel-dir", str(place)]
    subprocess.run(wheel, check=True, timeout=120)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as packed:
        packed.extractall(place / "site")
    for name in ("agents", "runners"):
        (place / "site" / name).mkdir()
        (place / "site" / name / "__init__.py").write_text("whose = 'theirs'\n")
    (place / "work").mkdir()
    here = {"PYTHONPATH": str(place / "site"), "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> str:
        line = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            line, cwd=place / "work", env=os.environ | here, capture_output=True, text=True,
            timeout=250, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_nothing_but_maw_gym_is_installed_at_the_top(installed: Installed) -> None:
    program = """
import agents, maw_gym.agents, maw_gym.runners.cli, runners
print(agents.whose, runners.whose, maw_gym.__file__.endswith("site/maw_gym/__init__.py"))
"""
    assert installed("-c", program) == "theirs theirs True\n"


def test_a_retrieval_person_trains_loads_and_searches(
    installed: Installed, tiny_folder: Path
) -> None:
    flags = ["--encoder", "untrained", "--timesteps", 512, "--device", "cpu", "--run-name", "mine"]
    table = installed(
        "-m", "maw_gym.runners.cli", "train", "grpo", "--dataset", tiny_folder, *flags
    )
    assert "GRPO" in table
    found = installed("-m", "maw_gym.runners.cli", "search", "runs/mine", "how bees make honey")
    assert "d0" in found.splitlines()[1] + found.splitlines()[0]
    program = """
import json, maw_gym
retriever = maw_gym.RoutedEncoder.from_run("runs/mine")
retriever.index(["a", "b"], ["Bees make honey.", "The moon lifts the sea."])
print(json.dumps(retriever.search("how bees make honey", k=1)))
"""
    (best,) = json.loads(installed("-c", program))
    assert best["id"] == "a"


def test_an_rl_person_trains_grpo_on_an_environment_of_their_own(installed: Installed) -> None:
    example = (ROOT / "examples" / "grpo_on_a_bandit.py").read_text()
    assert installed("-c", example) == "mean reward of the greedy policy: 1.00\n"
