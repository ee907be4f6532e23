"""The scripts of examples/, as they stand there; what their texts say is printed is printed."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from hostile_run import write_hostile_run
from PIL import Image
from tiny_collection import write_tiny_collection

from maw_gym.tables.depth_table import BLOCKS

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[..., list[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example with some arguments; the lines that it prints."""

    def run(name: str, *arguments: object) -> list[str]:
        path = str(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def promised(name: str) -> list[str]:
    """The lines that an example's text says that it prints."""
    text = (EXAMPLES / f"{name}.py").read_text().split('"""')[1]
    return re.findall(r"^    (.*)", text, re.MULTILINE)


def shape(line: str) -> str:
    """A line without its numbers."""
    return re.sub(r"-?\d+(\.\d+)?", "0", line)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "attention_film", "environment_by_hand", "grpo_on_a_bandit", "own_collection",
        "own_learner", "own_observation", "own_reward", "own_text_encoder",
        "ppo_on_mawdepth", "search_with_a_run", "track_with_mlflow",
    }  # fmt: skip


def test_environment_by_hand(run: Run, tiny_folder: Path) -> None:
    lines = run("environment_by_hand", tiny_folder)
    expected = promised("environment_by_hand")
    assert [shape(line) for line in lines[1:]] == [shape(line) for line in expected[1:]]
    assert re.fullmatch(r"query q\d+: observation of 64 numbers, 32 depths", lines[0])
    best = float(re.findall(r"paid (\d\.\d{3})", lines[-1])[0])
    for line in lines[1:-1]:
        reward, entropy, focus, alignment, regret = map(float, re.findall(r"\d\.\d{3}", line))
        assert reward == pytest.approx(0.3 * entropy + 0.3 * focus + 0.4 * alignment, abs=0.0011)
        assert reward + regret == pytest.approx(best, abs=0.0011)


def test_grpo_on_a_bandit(run: Run) -> None:
    assert run("grpo_on_a_bandit") == promised("grpo_on_a_bandit")


def test_ppo_on_mawdepth(run: Run, tiny_folder: Path) -> None:
    lines = run("ppo_on_mawdepth", tiny_folder, 2048)
    assert [shape(line) for line in lines] == [shape(line) for line in promised("ppo_on_mawdepth")]
    mean, random, oracle, gap = map(float, re.findall(r"-?\d\.\d+", " ".join(lines)))
    assert random < mean <= oracle
    assert gap == pytest.approx((mean - random) / (oracle - random), abs=0.06)


def test_own_collection(run: Run, tmp_path: Path) -> None:
    assert run("own_collection", tmp_path / "mine") == promised("own_collection")


def test_own_learner(run: Run, tiny_folder: Path) -> None:
    lines = run("own_learner", tiny_folder, 64)
    assert [shape(line) for line in lines] == [shape(line) for line in promised("own_learner")]


def test_own_reward(run: Run, tiny_folder: Path) -> None:
    (line,) = run("own_reward", tiny_folder, 2048)
    assert shape(line) == shape(promised("own_reward")[0])
    assert 0 < float(line.split()[-1]) < 1


def test_own_observation(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "length", BLOCKS["profile"])  # so that it is taken away again
    (line,) = run("own_observation", write_tiny_collection(tmp_path / "tiny"))
    assert shape(line) == shape(promised("own_observation")[0])
    assert line.startswith("65 observed numbers")
    assert 0 < float(line.split()[-1]) < 1


def test_own_text_encoder(run: Run, tiny_folder: Path) -> None:
    lines = run("own_text_encoder", tiny_folder)
    assert [shape(line) for line in lines] == [shape(line) for line in promised("own_text_encoder")]
    assert all(0 < float(line.split()[-1]) < 1 for line in lines)


def test_search_with_a_run(run: Run, tmp_path: Path) -> None:
    lines = run("search_with_a_run", write_hostile_run(tmp_path / "run"))
    expected = promised("search_with_a_run")
    assert lines[0] == "depth 2: how do I read a file line by line"
    assert [line.split()[-1] for line in lines] == [line.split()[-1] for line in expected]


def test_track_with_mlflow(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install mlflow-skinny")
    from maw_gym.runners.cli import main

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path / "tracked")
    monkeypatch.chdir(EXAMPLES)
    words = ["--dataset", tiny_folder, "--encoder", "untrained", "--device", "cpu", "--logdir"]
    words += [tmp_path, "--run-name", "one", "--timesteps", "512", "--num-envs", "16"]
    main(["train", "grpo", *map(str, words), "--callback", "track_with_mlflow:MLflowCallback"])
    (found,) = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert found.info.run_name == "one"
    assert found.data.params["timesteps"] == "512"
    assert 0 < found.data.metrics["eval/reward"] < 1


def test_attention_film(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    assert run("attention_film", film, tiny_folder, "q20") == ["32 depths of q20"]
    with Image.open(film) as frames:
        assert (frames.n_frames, frames.size) == (32, (825, 450))


def test_the_notebook(tiny_folder: Path) -> None:
    cells = json.loads((EXAMPLES / "tutorial.ipynb").read_text())["cells"]
    found: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace('"pydocs"', repr(str(tiny_folder)))
            exec(code.replace("20_000", "1_024"), found)
    assert found["model"].num_timesteps == 1024
    assert found["summary"].oracle >= found["summary"].mean
    plt.close("all")


def test_the_lines_of_the_readme(tiny_folder: Path) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    lines = lines.replace('MAWDepth-v0"', f'MAWDepth-v0", dataset="{tiny_folder}"')
    found: dict[str, Any] = {}
    exec(lines.replace("20_000", "1_024"), found)
    assert found["info"]["regret"] >= 0
    assert found["model"].num_timesteps == 1024
