"""Everything a user can get wrong, each with the one line that says so."""
# ruff: noqa: E501

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hand_made import TABLE

import maw_gym
from maw_gym import files
from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.corpora import load_collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.envs.bandit import RewardSpec
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.runners.cli import main
from maw_gym.runners.experiments.command_line import flat, made
from maw_gym.runners.train_grpo import GRPORunSettings
from maw_gym.tables.task import load_task

assert maw_gym.__name__ == "maw_gym"  # imported for its registration


@dataclass(frozen=True)
class Place:
    """Where a case may work; `tiny` and `encoder` are shared and must not be written to."""

    tmp: Path
    tiny: Path
    encoder: Path

    def copy(self) -> Path:
        return Path(shutil.copytree(self.tiny, self.tmp / "data"))

    def test_alone(self, name: bytes = b"data") -> Path:
        """A copy of the tiny collection that has test.tsv alone."""
        folder = self.copy().rename(self.tmp / os.fsdecode(name))
        for part in ("train", "dev"):
            (folder / "qrels" / f"{part}.tsv").unlink()
        return folder

    def run(self, content: object) -> Path:
        """A run folder with this config.json."""
        (self.tmp / "run").mkdir()
        (self.tmp / "run" / "config.json").write_text(json.dumps(content))
        return self.tmp / "run"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_embedder(path, untrained_embedder(["a text"], EncoderSettings(depths=2)), {})
    return path


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, encoder: Path) -> Place:
    return Place(tmp_path, tiny_folder, encoder)


# --- Runners: arguments, and the line on stderr after "error: " (a regular expression) -----------

Arguments = Callable[[Place], list[Any]]
TINY: Arguments = lambda at: ["--dataset", at.tiny, "--encoder", "untrained"]


def grpo_run(at: Place, **changes: Any) -> Path:
    """The folder of a run of GRPO that was stopped."""
    settings = json.loads(json.dumps(flat(made(GRPORunSettings)), default=str)) | changes
    return at.run({"learner": "GRPO", "settings": settings})


COMMANDS: dict[str, tuple[str, Arguments | str, str]] = {
    "block twice": ("train ppo", "--observation profile profile", r"observation must name one or more different blocks of .*; got \('profile', 'profile'\)"),
    "network": ("train grpo", "--network deep", "network must be 'auto', 'shared' or 'mlp', got 'deep'"),
    "shared attention": ("compare", "--network shared --observation attention", "a shared network wants numbers of every depth, and observation block 'attention' has none; leave it out or take network mlp"),
    "huge weight": ("train grpo", "--reward-weights 1e300 0 1", r"reward_weights must be .* the largest from 1e-06 to 1e\+06.*; got \(1e\+300, 0.0, 1.0\)"),
    "groups": ("train grpo", "--num-envs 10 --group-size 4", "num_envs 10 is not divisible by group_size 4"),
    "name above": ("train grpo", "--run-name ../evil", "run name '../evil' must be a plain folder name; use --logdir for its place"),
    "logdir is a file": ("train grpo", lambda at: ["--logdir", at.tiny / "corpus.jsonl"], r"cannot write the run folder '.*' \(File exists\); choose another --logdir"),
    "dataset": ("train grpo", "--dataset pydoc", "unknown dataset 'pydoc': did you mean 'pydocs'.*"),
    "dataset not UTF-8": ("train ppo", lambda at: ["--dataset", at.test_alone(b"d\xff"), "--encoder", "untrained"], r"the name '.*/d\\udcff' is not UTF-8; rename the folder"),
    **{
        f"test.tsv alone: {runner}": (f"train {runner}", lambda at: ["--dataset", at.test_alone(), "--encoder", "untrained"], ".*/data has no query to train on, all are for the test; cut them into folds, such as with --folds 5")
        for runner in ("grpo", "ppo", "supervised")
    },
    "encoder": ("train grpo", lambda at: ["--dataset", at.tiny, "--encoder", "best"], "unknown encoder 'best'; give 'untrained', 'trained' or the path of an encoder.safetensors"),
    "encoder is no file of ours": ("train ppo", lambda at: ["--dataset", at.tiny, "--encoder", at.tiny / "corpus.jsonl"], ".*corpus.jsonl is not a readable safetensors file: .*"),
    **{
        f"text encoder: {runner}": (runner, "--text-encoder ./nowhere --device cpu", r"text encoder '\./nowhere' is no folder; .*")
        for runner in ("train grpo", "train encoder", "compare")
    },
    "callback": ("train ppo", "--callback nowhere:Nothing", r"callback 'nowhere:Nothing' cannot be imported \(No module named 'nowhere'\); give module:name .*"),
    "callback without a name": ("train ppo", "--callback json:Nothing", r"callback 'json:Nothing' cannot be imported \(module 'json' has no attribute 'Nothing'\); .*"),
    "callback of another kind": ("train grpo", "--callback json:JSONDecoder", "callback 'json:JSONDecoder' is no BaseCallback of Stable-Baselines3"),
    "callback with arguments": ("train ppo", "--callback stable_baselines3.common.callbacks:EveryNTimesteps", r"callback '.*:EveryNTimesteps' is made without arguments: .* missing 2 required .*"),
    "fold": ("train grpo", lambda at: [*TINY(at), "--fold", 5], "fold must be a whole number from 0 to 4, got 5"),
    "fold of a test subset": ("train ppo", lambda at: [*TINY(at), "--fold", 1], "fold 1 of .*: it has a test subset; leave fold at 0"),
    "groups of one": ("train grpo", lambda at: [*TINY(at), "--group-size", 1, "--advantage", "outcome"], "group_size=1: advantage='outcome' compares the members of a group, .*"),
    "huge learning rate": ("train grpo", "--learning-rate 1e30", "learning_rate must be at most 10, got 1e30"),
    "environments without end": ("train grpo", "--num-envs 1000000000", "num_envs must be at most 16777216, got 1000000000"),
    "budget": ("benchmark", "--budget nan", "budget must be a finite number, got nan"),
    "no run": ("evaluate", "", "the following arguments are required: RUN; --help shows all flags"),
    "baseline": ("compare", "--baseline oracle-ndcg", "the baseline cannot be 'oracle-ndcg', which reads the answers"),
    "no number": ("train grpo", "--timesteps many", "timesteps must be a valid integer, got 'many'"),
    "resume a changed type": ("train grpo", lambda at: ["--resume", grpo_run(at, seed="0; import os")], r".*config.json: a run of 'GRPO': seed must be a valid integer, got '0; import os'"),
    "resume another": ("train ppo", lambda at: ["--resume", at.run({"learner": "GRPO", "settings": {"advantage": "outcome"}})], ".*config.json: a run of 'GRPO': unknown setting 'advantage'; there are dataset, .*"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "arguments", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_commands(
    command: str,
    arguments: Arguments | str,
    expected: str,
    place: Place,
    capsys: pytest.CaptureFixture[str],
):
    given = arguments.split() if isinstance(arguments, str) else arguments(place)
    logdir = place.tmp / "logs"
    if command not in ("evaluate", "benchmark") and not {"--logdir", "--resume"} & set(given):
        given = ["--logdir", logdir, *given]
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), *map(str, given)])
    shown = capsys.readouterr()
    # Stages say that they begin; nothing else is there but the one line.
    (line,) = (line for line in shown.err.splitlines() if not line.endswith(" ..."))
    assert re.fullmatch(f"error: {expected}", line)
    assert (caught.value.code, shown.out) == (2, "")
    assert not logdir.exists()  # what is refused leaves nothing: the name can be used again


# --- Everything else: what is called, and the message -------------------------------------------


def scalar(**changes: Any) -> GRPOEnvironment:
    return GRPOEnvironment(table=TABLE, **changes)


def vector(count: int = 2, **changes: Any) -> GRPOVectorEnvironment:
    return GRPOVectorEnvironment(count, table=TABLE, **changes)


def stepped(action: Any) -> Any:
    environment = scalar()
    environment.reset(seed=0)
    return environment.step(action)


def encoder_file(at: Place, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Any:
    """Load a copy of an encoder file whose tensors or settings were changed."""
    settings, tensors = files.read(at.encoder, "encoder")
    change(tensors, settings)
    files.write(at.tmp / "encoder.safetensors", tensors, "encoder", settings)
    return load_embedder(at.tmp / "encoder.safetensors")


def tiny_task(at: Place) -> Any:
    return load_task(str(at.tiny), "untrained", "cpu")


def huge(tensors: dict[str, Any], settings: dict[str, Any]) -> None:
    """Finite weights whose products are not."""
    for name in ("value_proj.weight", "out_proj.weight"):
        tensors[name].fill_(1e30)


def routed(at: Place, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> RoutedEncoder:
    """A changed encoder with a router of it that always takes depth 0."""
    embedder, _ = encoder_file(at, change)
    layers = [(torch.zeros(2, 256), torch.tensor([1.0, 0.0]))]
    about = {"encoder": embedder.fingerprint()}
    return RoutedEncoder(
        embedder, DepthRouter(layers, "relu", torch.zeros(256), torch.ones(256), ["content"], about)
    )


CALLS: dict[str, tuple[Callable[[Place], Any], str]] = {
    "action a float": (lambda at: stepped(np.float32(1)), r"action must be .*, got np.float32\(1.0\)"),
    "step first": (lambda at: scalar().step(0), r"an episode is one step long: call reset\(\) before each step\(\)"),
    "query": (lambda at: scalar().reset(options={"query_id": "fruit/aple"}), "no query 'fruit/aple' among the 3 of this environment; try 'fruit/apple'.*"),
    "no options": (lambda at: scalar().reset(options=5), "the options of a reset are a dictionary, not 5"),
    "block a number": (lambda at: scalar(observation=3), "give a list of blocks, not 3"),
    "table of another type": (lambda at: GRPOEnvironment(table={}), "table must be a DepthTable, not {}"),
    "state's queries": (lambda at: vector().set_state(vector().get_state() | {"queries": ["a", "b"]}), r"the state is not one that get_state\(\) has given: .*"),
    "state's query below 0": (lambda at: vector().set_state(vector().get_state() | {"queries": [0, -1]}), ".*: a row or the position is below 0"),
    "encoder's name far too long": (lambda at: load_task(str(at.tiny), "x" * 5000, "cpu"), "unknown encoder 'x*'; give .*"),
    "split": (lambda at: scalar(split="dev"), "unknown split 'dev'; choose one of encoder, train, validation, test"),
    "tokens without end": (lambda at: encoder_file(at, lambda t, s: s.update(document_tokens=10**9)), r".*: wrong encoder settings \(document_tokens must be a whole number from 1 to 4096, got 1000000000\)"),
    "seeds": (lambda at: vector().reset(seed=[1, 2]), r"seed must be one integer for the whole batch; got \[1, 2\]"),
    "frames of many": (lambda at: vector(render_mode="ansi"), "the batched form draws no frames, got render_mode 'ansi'; .*"),
    "state of others": (lambda at: vector(3).set_state(vector(2).get_state() | {"queries": [0, 1]}), r"the state is not one that get_state\(\) has given: it is of 2 rows, not of 3"),
    "text encoder": (lambda at: encoder_file(at, lambda t, s: s.update(text="bert")), ".*bert.*"),
    "depth": (lambda at: tiny_task(at).attention("q0", 99), "depth must be a whole number from 0 to 31, got 99"),
    "huge weights of queries": (lambda at: routed(at, huge).encode_query("honey"), "text embeddings must be finite; the encoder has probably diverged"),
    "query of a task": (lambda at: load_task(str(at.tiny), "untrained", "cpu").query_text("q99"), "no query 'q99' in .*"),
    "setting of training": (lambda at: TrainingSettings(depths="layers"), "there is no setting 'depths'; choose among epochs, .*"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "expected"), CALLS.values(), ids=CALLS)
def test_calls(call: Callable[[Place], Any], expected: str, place: Place):
    with pytest.raises((InputError, gym.error.ResetNeeded)) as caught:
        call(place)
    assert re.fullmatch(expected, str(caught.value))


# --- Input that is odd but has a meaning --------------------------------------------------------


def test_odd_texts_and_grades_are_read(place: Place):
    folder = place.copy()
    odd = {
        "empty": "",
        "control": "bell \x07",
        "half": "a \ud800 pair",
        "long": "so" + " long" * 99_999,
    }
    with (folder / "corpus.jsonl").open("a") as file:
        file.writelines(json.dumps({"_id": name, "text": odd[name]}) + "\n" for name in odd)
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q17\tempty\t-3\nq17\tcontrol\t1000000\nq17\tnowhere\t1\n")
    found = load_collection(str(folder))
    texts = dict(zip(found.doc_ids, found.doc_texts, strict=True))
    assert {name: texts[name] for name in odd if name != "half"} | {"half": odd["half"]} == odd
    assert texts["half"].encode()
    test = found.splits["test"]
    assert test.relevance[test.ids.index("q17")] == {
        "d17": 2, "d16": 1, "empty": 0, "control": 1000000,
    }  # fmt: skip
    assert found.provenance["dropped"] == {"judgments of missing documents": 1}
    reward = RewardSpec().of(load_task(str(folder), "untrained", "cpu").table("test"))
    assert ((reward >= 0) & (reward <= 1)).all()


def test_numbers_of_numpy_are_numbers() -> None:
    """As a random search draws them."""
    env = to_sb3(GRPOVectorEnvironment(np.int64(16), group_size=np.int32(8), table=TABLE))
    model = GRPO("MlpPolicy", env, n_steps=np.int64(4), batch_size=np.int64(64), device="cpu")
    model.learn(np.int64(64))
    assert model.num_timesteps == 64
