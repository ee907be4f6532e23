"""What runs leave, whatever trains; scoring it; and runs whose numbers stop being finite."""

import csv
import itertools
import json
import math
import os
import re
import shutil

import pytest
import torch
from killing import start
from processes import free_port
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maw_gym import files
from maw_gym.agents.grpo import GRPO, losses
from maw_gym.encoders.files import load_embedder
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import load_router
from maw_gym.run import Run
from maw_gym.runners.cli import main
from maw_gym.runners.evaluate import EvaluateSettings
from maw_gym.runners.evaluate import main as evaluate
from maw_gym.tables.task import load_task

# SB3 silences this one when it is imported, which pytest undoes.
pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

FILES = {
    "config.json", "encoder.safetensors", "router.safetensors", "metrics.json", "figures",
    "report.html", "per_query.csv.gz", "run.trec.gz",
}  # fmt: skip
TAGS = {
    "train/loss", "eval/reward", "eval/regret", "eval/ndcg@10", "policy/depths",
    "settings/text_summary", "_hparams_/session_start_info",
}  # fmt: skip
COUNTING = """
from pathlib import Path
from stable_baselines3.common.callbacks import BaseCallback

class Counting(BaseCallback):
    def _on_step(self):
        (Path(self.logger.dir) / "counted").write_text(str(self.num_timesteps))
        return True
"""
QUERIES = r"queries of the batch: q\d+(, q\d+)*( and \d+ more)?"


@pytest.fixture(scope="module")
def flags(tiny_folder):
    return ["--dataset", str(tiny_folder), "--encoder", "untrained", "--device", "cpu"]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=["grpo", "ppo"])
def online(request, flags, logdir):
    """The run of a learner in the environment, which a callback follows."""
    (logdir / "counting.py").write_text(COUNTING)
    words = ["--timesteps", 512, "--num-envs", 16, "--batch-size", 32, "--n-steps", 8]
    words += ["--callback", "counting:Counting", "--logdir", logdir, "--run-name", request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(logdir)
        main(["train", request.param, *flags, *map(str, words)])
    return logdir / request.param


@pytest.fixture(scope="module")
def supervised(flags, logdir, tiny_transformer):
    """A run over a transformer in a folder that is gone by now."""
    model = shutil.copytree(tiny_transformer, logdir / "model")
    words = ["--text-encoder", model, "--labels", "rule", "--epochs", 2, "--logdir", logdir]
    main(["train", "supervised", *flags, *map(str, words), "--run-name", "rule"])
    shutil.rmtree(model)
    return logdir / "rule"


def tags(folder):
    events = EventAccumulator(str(folder)).Reload()
    kinds, found = events.Tags(), events.PluginTagToContent("hparams")
    named = (kinds[kind] for kind in ("scalars", "histograms", "images", "tensors"))
    return {*itertools.chain(*named), *found}


def test_what_a_learner_in_the_environment_leaves(online):
    assert {path.name for path in online.iterdir()} >= FILES | {"model.zip"}
    metrics = Run(online).metrics
    assert metrics["split"] == "test"
    assert metrics["reward"]["random"] == metrics["baselines"]["random depth"]["reward"]["mean"]
    assert set(metrics["retrieval"]) == {"nDCG@10", "RR@10", "R@100", "Success@10"}
    assert tags(online) >= TAGS | {
        "rollout/ep_rew_mean", "reward/entropy", "reward/focus", "reward/alignment",
        "eval/gap_closed", "attention/depth", "attention/depths",
    }  # fmt: skip
    assert (online / "figures" / "attention_by_depth.png").stat().st_size > 10_000
    assert (online / "counted").read_text() == "512"


def test_all_that_a_run_says_is_one(online, tiny_folder):
    """progress.csv and per_query.csv, and the policy evaluated by SB3."""
    run = Run(online)
    rows = list(csv.DictReader((online / "progress.csv").read_text().splitlines()))
    curves = run.scalars()
    assert set(curves) <= set(rows[0])
    for tag in ("rollout/ep_rew_mean", "eval/reward", "train/loss"):
        found = {int(row["time/total_timesteps"]): float(row[tag]) for row in rows if row[tag]}
        assert found == pytest.approx(curves[tag], rel=1e-6)
    reported = run.metrics["reward"]["mean"]
    rewards = run.per_query().groupby("method")["reward"].mean()
    assert rewards[run.config["learner"]] == pytest.approx(reported, abs=1e-6)
    table = load_task(str(tiny_folder), "untrained", "cpu").table("test")
    env = Monitor(GRPOEnvironment(table=table, observation=("profile",), query_order="sequential"))
    router = load_router(online / "router.safetensors")
    mean, _ = evaluate_policy(router, env, n_eval_episodes=len(table), deterministic=True)
    assert mean == pytest.approx(reported, abs=1e-6)


def test_a_supervised_run_is_a_retriever_without_its_models_folder(supervised, logdir):
    assert {path.name for path in supervised.iterdir()} >= FILES
    run = Run(supervised)
    # 12 training queries with one relevant document each.
    assert run.metrics["training"]["label_histogram"] == [0] * 5 + [12] + [0] * 26
    assert run.metrics["training"]["label_constant"] is True
    assert run.metrics["chosen_at"] in (12, 24)  # 1 or 2 passes over the queries
    assert tags(supervised) >= TAGS | {"train/cross_entropy", "train/ranking_loss"}
    assert run.settings["text_encoder"] == str(logdir / "model")
    assert run.retriever("cpu").encode_query(["how bees make honey", "polar ice"]).shape == (2, 24)


def test_evaluate_finds_the_numbers_of_the_run(supervised, tmp_path, capsys):
    (tmp_path / "link.json").symlink_to(tmp_path / "numbers.json")  # which stays a link
    evaluate(EvaluateSettings(run=supervised, device="cpu", out=tmp_path / "link.json"))
    found, own = json.loads((tmp_path / "numbers.json").read_text()), Run(supervised).metrics
    for block in ("reward", "retrieval", "baselines"):
        assert found[block] == own[block]
    assert "| supervised-rule " in capsys.readouterr().out
    same = os.path.relpath(own["dataset"])  # another spelling is no other collection
    with pytest.raises(InputError, match="--folds 3 is not the run's own None: queries that it"):
        evaluate(EvaluateSettings(run=supervised, dataset=same, folds=3, device="cpu"))


def test_evaluate_without_training_queries(online, tmp_path, tiny_folder, capsys):
    unlearned = shutil.ignore_patterns("train.tsv", "dev.tsv")
    other = str(shutil.copytree(tiny_folder, tmp_path / "other", ignore=unlearned))
    evaluate(EvaluateSettings(run=online, dataset=other, device="cpu"))
    out = capsys.readouterr().out
    assert "7 test queries of" in out
    assert "best fixed depth" not in out  # there is nothing to choose it on
    with pytest.raises(InputError, match="has no train queries; choose another --split"):
        evaluate(EvaluateSettings(run=online, dataset=other, split="train", device="cpu"))


@pytest.fixture
def told(flags, tmp_path, capsys):
    """What a run says that ends with status 1."""

    def run(command, *more):
        words = ["--num-envs", 16, "--n-steps", 8, "--timesteps", 2560, "--checkpoint-every", 1]
        words += [*more, "--logdir", tmp_path, "--run-name", "run"]
        with pytest.raises(SystemExit, match="1"):
            main(["train", command, *flags, *map(str, words)])
        (line,) = (x for x in capsys.readouterr().err.splitlines() if not x.endswith(" ..."))
        return str(line)

    return run


def test_a_loss_that_is_not_finite(told, tmp_path, monkeypatch):
    loss, calls = losses.policy_loss, itertools.count(1)

    def failing(*arguments):
        return loss(*arguments) * (math.nan if next(calls) == 6 else 1.0)

    monkeypatch.setattr(losses, "policy_loss", failing)
    line = told("grpo", "--n-epochs", 1, "--batch-size", "None")  # one loss for each rollout
    # The sixth rollout of 128 steps fails; checkpoints are written before each but the first.
    last = tmp_path / "run" / "checkpoints" / "000000000640.safetensors"
    what = f"error: train/policy_loss is nan at step 768: .*; {QUERIES}"
    assert re.fullmatch(f"{what}; the last good checkpoint is {last}", line)
    assert sorted(last.parent.iterdir())[-1] == last
    for value in files.read(last, "checkpoint").tensors.values():
        assert not value.is_floating_point() or value.isfinite().all()
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(("command", "algorithm"), [("grpo", GRPO), ("ppo", PPO)])
def test_logits_that_are_not_finite(command, algorithm, told, monkeypatch):
    """Weights may be finite, and what they multiply to not."""

    def exploding(self):
        with torch.no_grad():
            for weight in self.policy.parameters():
                weight.fill_(1e30)

    monkeypatch.setattr(algorithm, "train", exploding)
    what = f"error: the policy's logits are not finite, at step 128; {QUERIES}"
    assert re.fullmatch(f"{what}; the last good checkpoint was not written yet", told(command))


def two_processes(dataset, place, *more):
    """The encoder's runner, as torchrun starts it."""
    words = ["--dataset", dataset, "--device", "cpu", "--logdir", place / "runs", "--run-name"]
    words += ["it", "--epochs", 1, "--depth-epochs", 1, *more]
    group = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        start("train encoder", *words, home=place, tiny=True, RANK=rank, LOCAL_RANK=rank, **group)
        for rank in range(2)
    ]


def test_two_processes_leave_one_run(tiny_folder, tmp_path):
    both = two_processes(tiny_folder, tmp_path, "--batch-size", 4)
    (status, out, err), (other, silent, told) = (one.ended() for one in both)
    assert (status, other) == (0, 0), err + told
    run = tmp_path / "runs" / "it"
    assert [*run.parent.iterdir()] == [run]
    names = "config.json encoder.safetensors metrics.json"
    assert {path.name for path in run.iterdir()} == {*names.split()}
    config, metrics = Run(run).config, Run(run).metrics
    assert (config["learner"], config["settings"]["depth_epochs"]) == ("encoder", 1)
    rows = metrics["baselines"]
    assert 0 < rows["standard attention"]["retrieval"]["nDCG@10"] <= 1
    assert {"mean pooling", "dense + BM25", "zero-shot NON-MAW"} <= set(rows)
    embedder, _ = load_embedder(run / "encoder.safetensors")
    assert embedder.maw.depths == len(metrics["depths"]["entropy"]) == 32
    assert f"; give others {run / 'encoder.safetensors'}" in out
    assert err.count("depth tables ...") == out.count("standard attention") == 1
    assert silent == ""


def test_a_batch_that_two_cannot_share_is_one_line(tiny_folder, tmp_path):
    first, other = two_processes(tiny_folder, tmp_path, "--batch-size", 5)
    status, _, err = first.ended()
    other.process.kill()  # as torchrun does
    assert status == 2
    (line,) = (line for line in err.splitlines() if not line.endswith(" ..."))
    assert line == "error: batch_size 5 cannot be shared by 2 processes; give a multiple of 2"
    assert other.ended()[2] == ""
    assert not (tmp_path / "runs").exists()
