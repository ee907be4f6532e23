"""The encoder's runner under torchrun: one set of files, one line of a mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The runner, for a collection that is smaller than those with pairs of their own.
TINY = """
from maw_gym.corpora import splits
from maw_gym.encoders.training import selection

splits.ENCODER_MINIMUM = 0
selection._candidates = lambda collection: {"own pairs": [collection]}
from runners.train_encoder import EncoderRunSettings, main, run_main

run_main(EncoderRunSettings, main)
"""


def torchrun(dataset: Path, place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    script = place / "train.py"
    script.write_text(TINY)
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    flags = {"dataset": dataset, "device": "cpu", "logdir": place / "runs", "epochs": 1}
    flags |= {"depth-epochs": 1, "run-name": "it"}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(script), *arguments, *more],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ
        | {
            "MAW_GYM_HOME": str(place / "home"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
    )


def test_two_processes_leave_one_run(tiny_folder: Path, tmp_path: Path) -> None:
    done = torchrun(tiny_folder, tmp_path, "--batch-size", "4")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["it"]
    assert sorted(path.name for path in (tmp_path / "runs" / "it").iterdir()) == [
        "config.json", "encoder.safetensors", "metrics.json",
    ]  # fmt: skip
    metrics = json.loads((tmp_path / "runs" / "it" / "metrics.json").read_text())
    rows = metrics["baselines"]
    assert 0 < rows["standard attention"]["retrieval"]["nDCG@10"] <= 1
    assert rows["dense + BM25"]["retrieval"]["nDCG@10"] > 0
    assert done.stderr.count("depth tables ...") == 1
    assert done.stdout.count("standard attention") == 1
    assert not list((tmp_path / "home").rglob("*.parts"))


def test_a_batch_that_two_cannot_share_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    failed = torchrun(tiny_folder, tmp_path, "--batch-size", "5")
    assert failed.returncode != 0
    ours = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert ours == ["error: batch_size 5 cannot be shared by 2 processes; give a multiple of 2"]
    assert not (tmp_path / "runs").exists()
