"""The runners of PPO and the supervised router, and scoring what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.supervised import label_sentence
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.errors import InputError
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.task import load_task
from runners import evaluate
from runners.evaluate import EvaluateSettings
from runners.experiments.command_line import made
from runners.experiments.report import row_of
from runners.experiments.result import by_router
from runners.experiments.settings import GRPOSpec, PPOSpec
from runners.experiments.training import Log
from runners.train_grpo import train_grpo
from runners.train_ppo import PPORunSettings, train_ppo
from runners.train_supervised import SupervisedRunSettings

FILES = {
    "config.json",
    "encoder.safetensors",
    "router.safetensors",
    "metrics.json",
    "figures",
    "report.html",
    "per_query.csv.gz",
    "run.trec.gz",
}


def run(runner: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", f"runners.{runner}", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def common(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    logdir = tmp_path_factory.mktemp("runs")
    return ["--dataset", tiny_folder, "--encoder", "untrained", "--observation", "profile",
            "--device", "cpu", "--logdir", logdir, "--run-name", "one"]  # fmt: skip


@pytest.fixture(scope="module")
def ppo(common: list[object]) -> Path:
    done = run(
        "train_ppo", *common[:-1], "ppo", "--timesteps", 512, "--num-envs", 16, "--batch-size", 32
    )
    assert done.returncode == 0, done.stderr
    assert "| PPO " in done.stdout
    return Path(str(common[-3])) / "ppo"


@pytest.fixture(scope="module")
def supervised(common: list[object]) -> Path:
    done = run("train_supervised", *common[:-1], "rule", "--labels", "rule", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert "| supervised-rule " in done.stdout
    assert "the rule labels are a CONSTANT: depth 5 for every training query" in done.stdout
    return Path(str(common[-3])) / "rule"


def tags(folder: Path) -> set[str]:
    events = EventAccumulator(str(folder)).Reload().Tags()
    return {*events["scalars"], *events["histograms"], *events["images"]}


def test_ppo_leaves_what_a_run_leaves(ppo: Path) -> None:
    assert {path.name for path in ppo.iterdir()} >= FILES | {"model.zip"}
    metrics = json.loads((ppo / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["reward"]["random"] == metrics["baselines"]["random depth"]["reward"]["mean"]
    assert set(metrics["retrieval"]) == {"nDCG@10", "RR@10", "R@100", "Success@10"}
    assert tags(ppo) >= {
        "rollout/ep_rew_mean", "reward/entropy", "reward/focus", "reward/alignment", "eval/reward",
        "eval/regret", "eval/gap_closed", "eval/ndcg@10", "policy/depths", "attention/depth",
        "train/loss", "attention/depths",
    }  # fmt: skip
    assert (ppo / "figures" / "attention_by_depth.png").stat().st_size > 10_000


def test_supervised_leaves_what_a_run_leaves(supervised: Path) -> None:
    assert {path.name for path in supervised.iterdir()} >= FILES
    metrics = json.loads((supervised / "metrics.json").read_text())
    # 12 training queries with one relevant document each.
    assert metrics["training"]["label_histogram"] == [0] * 5 + [12] + [0] * 26
    assert metrics["training"]["label_constant"] is True
    assert metrics["chosen_at"] in (12, 24)  # 1 or 2 passes over the queries
    assert tags(supervised) >= {
        "train/loss", "train/cross_entropy", "train/ranking_loss", "eval/reward", "eval/regret",
        "eval/ndcg@10", "policy/depths",
    }  # fmt: skip


def test_from_run_takes_a_run_home(ppo: Path) -> None:
    routed = RoutedEncoder.from_run(ppo, "cpu")
    assert routed.encode_query(["how bees make honey", "polar ice"]).shape == (2, 256)
    routed.index(["a", "b"], ["Bees dry nectar until it is honey.", "The king is in check."])
    assert routed.search("how bees make honey", k=1)[0]["id"] == "a"


def test_evaluate_finds_the_numbers_of_the_run(
    ppo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "numbers.json"
    evaluate.main(EvaluateSettings(run=ppo, device="cpu", out=output))
    found, own = (json.loads(path.read_text()) for path in (output, ppo / "metrics.json"))
    for block in ("reward", "retrieval", "baselines"):
        assert found[block] == own[block]
    assert "| PPO " in capsys.readouterr().out


def test_evaluate_without_training_queries(
    ppo: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    (other / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (other / name).write_text((tiny_folder / name).read_text())
    evaluate.main(EvaluateSettings(run=ppo, dataset=str(other), device="cpu"))
    out = capsys.readouterr().out
    assert "7 test queries of" in out
    assert "best fixed depth" not in out  # there is nothing to choose it on
    with pytest.raises(InputError, match="has no train queries; choose another --split"):
        evaluate.main(EvaluateSettings(run=ppo, dataset=str(other), split="train", device="cpu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no run folder 'nowhere'"),
        ({"split": "dev"}, "split must be 'encoder', 'train', 'validation' or 'test', got 'dev'"),
    ],
)
def test_evaluate_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.main(EvaluateSettings(run=Path("nowhere"), **settings))


# SB3's progress bar is tqdm's for rich terminals, which calls itself experimental.
@pytest.mark.filterwarnings("ignore::tqdm.std.TqdmExperimentalWarning")
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_evaluate_policy_equals_the_table(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    """SB3's own evaluation of one environment, query after query, gives the report's reward."""
    given: dict[str, Any] = {"dataset": str(tiny_folder), "encoder": "untrained", "device": "cpu",
                             "timesteps": 512, "num_envs": 16}  # fmt: skip
    task = load_task(given["dataset"], "untrained", "cpu")
    if kind == "grpo":
        spec: GRPOSpec | PPOSpec = made(GRPOSpec, given)
        router = train_grpo(task, spec, Log(tmp_path)).router
    else:
        spec = made(PPOSpec, given, batch_size=32)
        router = train_ppo(task, spec, Log(tmp_path)).router
    expected = row_of(task, spec.task, by_router(task, spec.task, "test", router)).reward
    assert expected is not None
    table = task.table("test")
    env = Monitor(GRPOEnvironment(table=table, observation=("profile",), query_order="sequential"))
    mean, _ = evaluate_policy(router, env, n_eval_episodes=len(table), deterministic=True)
    assert mean == pytest.approx(expected["mean"], abs=1e-6)


def test_label_sentence() -> None:
    facts = {"labels": "oracle", "label_histogram": [1, 0, 3], "label_most_common": 2,
             "label_share_of_most_common": 0.75, "label_constant": False}  # fmt: skip
    assert label_sentence(facts) == (
        "the oracle labels use 2 of 3 depths; the most common, depth 2, is that of 75.0% of the"
        " training queries"
    )


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (PPORunSettings, {"num_envs": 10}, "num_envs 10 is not divisible by group_size 8"),
        (PPORunSettings, {"clip_range": 0}, "clip_range must be above 0, got 0"),
        (PPORunSettings, {"n_steps": 2**20}, "256 num_envs times 1048576 n_steps is larger than"),
        (
            SupervisedRunSettings,
            {"labels": "best"},
            "labels must be 'rule' or 'oracle', got 'best'",
        ),
        (SupervisedRunSettings, {"epochs": 0}, "epochs must be at least 1, got 0"),
        (
            SupervisedRunSettings,
            {"alignment": "map"},
            "alignment must be 'ndcg' or 'listwise', got",
        ),
    ],
)
def test_bad_settings(kind: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(kind, settings)


def test_a_mistake_is_one_line(ppo: Path) -> None:
    done = run("evaluate", "--run", ppo, "--dataset", "nowhere")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: unknown dataset 'nowhere'")
    assert "Traceback" not in done.stderr
