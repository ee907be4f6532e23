"""The first minutes with an installed wheel, far from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_has_all_that_a_run_needs_and_nothing_of_others(tiny_folder, tmp_path):
    flags = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    wheel = [sys.executable, "-m", "pip", "wheel", str(ROOT), *flags, "--wheel-dir", str(tmp_path)]
    subprocess.run(wheel, check=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as packed:
        packed.extractall(tmp_path / "site")
    for name in ("agents", "runners"):  # packages of others, called as our folders
        (tmp_path / "site" / name).mkdir()
        (tmp_path / "site" / name / "__init__.py").write_text("whose = 'theirs'\n")
    (tmp_path / "work").mkdir()

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=tmp_path / "work",
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    program = """
import agents, maw_gym.agents, maw_gym.runners.cli, runners
print(agents.whose, runners.whose, maw_gym.__file__.endswith("site/maw_gym/__init__.py"))
"""
    assert run("-c", program) == "theirs theirs True\n"
    flags = ["--encoder", "untrained", "--timesteps", 512, "--device", "cpu", "--run-name", "mine"]
    command = ("-m", "maw_gym.runners.cli")
    assert "GRPO" in run(*command, "train", "grpo", "--dataset", tiny_folder, *flags)
    assert (tmp_path / "work" / "runs" / "mine" / "report.html").exists()
    found = run(*command, "search", "runs/mine", "how bees make honey")
    assert "d0" in found.splitlines()[1]
