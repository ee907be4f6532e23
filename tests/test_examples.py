"""The scripts of examples/, as they stand there; what their texts say is printed is printed."""

import json
import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from tiny_collection import write_tiny_collection

from maw_gym.tables.depth_table import BLOCKS

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example with some arguments: the lines that it prints and those that it promises.

    In those of a text that says "something like" numbers and names of queries are left out.
    """

    def run(name, *arguments):
        path = EXAMPLES / f"{name}.py"
        text = path.read_text().split('"""')[1]
        promised = re.findall(r"^    (.*)", text, re.MULTILINE)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr().out.splitlines()
        if "something like" in text:
            assert [*map(shape, printed)] == [*map(shape, promised)]
        return printed, promised

    return run


def shape(line):
    return re.sub(r"-?\d+(\.\d+)?", "0", re.sub(r"^query \S+:", "query:", line))


def numbers(lines):
    return [float(one) for one in re.findall(r"-?\d\.\d+", " ".join(lines))]


def test_every_example_is_tested():
    tests = Path(__file__).read_text()
    assert all(f'"{path.stem}' in tests for path in EXAMPLES.glob("*.py"))


def test_environment_by_hand(run, tiny_folder):
    lines, _ = run("environment_by_hand", tiny_folder)
    best, _ = numbers(lines[-1:])
    for line in lines[1:-1]:
        reward, _, entropy, _, focus, _, alignment, regret = numbers([line])
        assert reward == pytest.approx(0.3 * entropy + 0.3 * focus + 0.4 * alignment, abs=0.0011)
        assert reward + regret == pytest.approx(best, abs=0.0011)


def test_what_always_prints_the_same(run, tmp_path):
    for name, *folder in (("grpo_on_a_bandit",), ("own_collection", tmp_path / "mine")):
        printed, promised = run(name, *folder)
        assert printed == promised


def test_ppo_on_mawdepth(run, tiny_folder):
    mean, random, oracle, gap = numbers(run("ppo_on_mawdepth", tiny_folder, 2048)[0])
    assert random < mean <= oracle
    assert gap == pytest.approx((mean - random) / (oracle - random), abs=0.06)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("own_learner", 64), ("own_reward", 2048), ("own_observation", ""), ("own_text_encoder", "")],
)
def test_ones_own(name, steps, run, tmp_path, monkeypatch):
    monkeypatch.setitem(BLOCKS, "length", None)  # so that it is taken away again
    del BLOCKS["length"]
    tiny = write_tiny_collection(tmp_path / "tiny")  # a name without tables in memory
    printed, _ = run(name, tiny, *([steps] if steps else []))
    assert all(0 < number < 1 for number in numbers(printed)[:4])
    assert printed[0].startswith("65 observed") == (name == "own_observation")


def test_search_with_a_run(run, hostile):
    printed, promised = run("search_with_a_run", hostile)
    assert printed[0] == "depth 2: how do I read a file line by line"
    assert [line.split()[-1] for line in printed] == [line.split()[-1] for line in promised]


def test_track_with_mlflow(tiny_folder, tmp_path, monkeypatch):
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


def test_attention_film(run, tiny_folder, tmp_path):
    film = tmp_path / "film.gif"
    assert run("attention_film", film, tiny_folder, "q20")[0] == ["32 depths of q20"]
    with Image.open(film) as frames:
        assert (frames.n_frames, frames.size) == (32, (825, 450))


def test_the_notebook(tiny_folder):
    cells = json.loads((EXAMPLES / "tutorial.ipynb").read_text())["cells"]
    found = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace('"pydocs"', repr(str(tiny_folder)))
            exec(code.replace("20_000", "1_024"), found)
    assert found["model"].num_timesteps == 1024
    assert found["summary"].oracle >= found["summary"].mean
    plt.close("all")


def test_the_lines_of_the_readme(tiny_folder):
    readme = (EXAMPLES.parent / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    lines = lines.replace('MAWDepth-v0"', f'MAWDepth-v0", dataset="{tiny_folder}"')
    found = {}
    exec(lines.replace("20_000", "1_024"), found)
    assert found["info"]["regret"] >= 0
    assert found["model"].num_timesteps == 1024
