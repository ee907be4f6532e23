"""Two runs that start at once on cold caches, and caches that were damaged since."""

import subprocess
from pathlib import Path

from killing import command, environment, metrics, run


def test_two_runs_at_once_and_damaged_caches(tiny_folder: Path, tmp_path: Path):
    home = tmp_path / "home"
    flags: list[object] = [
        "--dataset", tiny_folder, "--encoder", "untrained", "--observation", "profile",
        "--num-envs", 16, "--timesteps", 256, "--device", "cpu", "--logdir", tmp_path,
    ]  # fmt: skip
    both = [
        subprocess.Popen(
            command("train_grpo", *flags, "--run-name", name),
            env=environment(home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    for process in both:
        _, told = process.communicate(timeout=200)
        assert process.returncode == 0, told
    assert metrics(tmp_path / "one") == metrics(tmp_path / "other")

    files = [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    kinds = {path.parent.name for path in files}
    assert {"documents", "tables"} <= kinds
    # Nothing half written, nothing left over from the building.
    assert all(path.suffix in (".safetensors", ".json", ".gz", ".npy") for path in files), files
    for path in files:
        path.write_bytes(path.read_bytes()[:-7])
    done = run(command("train_grpo", *flags, "--run-name", "third"), home)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "one") == metrics(tmp_path / "third")
    for path in files:
        assert path.stat().st_size > 0
