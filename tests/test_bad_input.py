"""Everything a user can get wrong, each with the one line that says so."""
# ruff: noqa: E501

import gzip
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hand_made import TABLE

from maw_gym.agents.baselines import fixed_router
from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.corpora import load_collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.run import Run
from maw_gym.runners.cli import main
from maw_gym.runners.experiments.command_line import flat, made
from maw_gym.runners.train_grpo import GRPORunSettings
from maw_gym.tables.task import RetrievalTask, load_task


@dataclass(frozen=True)
class Place:
    """Where a case may work; `tiny` is shared and must not be written to."""

    tmp: Path
    tiny: Path

    def judged(self, queries, part="test", name=b"data"):
        """A copy of the tiny collection with judgments of so many queries, in one file alone."""
        folder = shutil.copytree(self.tiny, self.tmp / os.fsdecode(name))
        shutil.rmtree(folder / "qrels")
        (folder / "qrels").mkdir()
        lines = "".join(f"q{row}\td{row}\t1\n" for row in range(queries))
        (folder / "qrels" / f"{part}.tsv").write_text(lines)
        return folder

    def file(self, content, name="recipe"):
        (self.tmp / name).write_bytes(content)
        return self.tmp / name

    def run(self, content, name="config.json"):
        """A run folder with this file."""
        (self.tmp / "run").mkdir()
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.file(raw, f"run/{name}")
        return self.tmp / "run"


@pytest.fixture
def place(tmp_path, tiny_folder):
    return Place(tmp_path, tiny_folder)


# --- Runners: arguments, and the line on stderr after "error: " (a regular expression) -----------

TINY = lambda at: ["--dataset", at.tiny, "--encoder", "untrained"]


def grpo_run(at, **changes):
    """The folder of a run of GRPO that was stopped."""
    settings = json.loads(json.dumps(flat(made(GRPORunSettings)), default=str)) | changes
    return at.run({"learner": "GRPO", "settings": settings})


def recipe(content):
    return lambda at: ["--config", at.file(content)]


COMMANDS = {
    "block twice": ("train ppo", "--observation profile profile", r"observation must name one or more different blocks of .*; got \('profile', 'profile'\)"),
    "network": ("train grpo", "--network deep", "network must be 'auto', 'shared' or 'mlp', got 'deep'"),
    "shared attention": ("compare", "--network shared --observation attention", "a shared network wants numbers of every depth, and observation block 'attention' has none; leave it out or take network mlp"),
    "huge weight": ("train grpo", "--reward-weights 1e300 0 1", r"reward_weights must be .* the largest from 1e-06 to 1e\+06.*; got \(1e\+300, 0.0, 1.0\)"),
    "groups": ("train grpo", "--num-envs 10 --group-size 4", "num_envs 10 is not divisible by group_size 4"),
    "name above": ("train grpo", "--run-name ../evil", "run name '../evil' must be a plain folder name; use --logdir for its place"),
    "logdir is a file": ("train grpo", lambda at: ["--logdir", at.tiny / "corpus.jsonl"], r"cannot write the run folder '.*' \(File exists\); choose another --logdir"),
    "dataset": ("train grpo", "--dataset pydoc", "unknown dataset 'pydoc': did you mean 'pydocs'.*"),
    "dataset not UTF-8": ("train ppo", lambda at: ["--dataset", at.judged(7, name=b"d\xff"), "--encoder", "untrained"], r"the name '.*/d\\udcff' is not UTF-8; rename the folder"),
    "test.tsv alone": ("train supervised", lambda at: ["--dataset", at.judged(7), "--encoder", "untrained"], ".*/data has no query to train on, all are for the test; cut them into folds, such as with --folds 5"),
    "encoder": ("train grpo", lambda at: ["--dataset", at.tiny, "--encoder", "best"], "unknown encoder 'best'; give 'untrained', 'trained' or the path of an encoder.safetensors"),
    "encoder is no file of ours": ("train ppo", lambda at: ["--dataset", at.tiny, "--encoder", at.tiny / "corpus.jsonl"], ".*corpus.jsonl is not a readable safetensors file: .*"),
    **{
        f"text encoder: {runner}": (runner, "--text-encoder ./nowhere --device cpu", r"text encoder '\./nowhere' is no folder; .*")
        for runner in ("train grpo", "train encoder", "compare")
    },
    "callback without a name": ("train ppo", "--callback json:Nothing", r"callback 'json:Nothing' cannot be imported \(module 'json' has no attribute 'Nothing'\); .*"),
    "callback of another kind": ("train grpo", "--callback json:JSONDecoder", "callback 'json:JSONDecoder' is no BaseCallback of Stable-Baselines3"),
    "callback with arguments": ("train ppo", "--callback stable_baselines3.common.callbacks:EveryNTimesteps", r"callback '.*:EveryNTimesteps' is made without arguments: .* missing 2 required .*"),
    "fold": ("train grpo", lambda at: [*TINY(at), "--fold", 5], "fold must be a whole number from 0 to 4, got 5"),
    "fold of a test subset": ("train ppo", lambda at: [*TINY(at), "--fold", 1], "fold 1 of .*: it has a test subset; leave fold at 0"),
    "groups of one": ("train grpo", lambda at: [*TINY(at), "--group-size", 1, "--advantage", "outcome"], "group_size=1: advantage='outcome' compares the members of a group, .*"),
    "huge learning rate": ("train grpo", "--learning-rate 1e30", "learning_rate must be at most 10, got 1e30"),
    "budget": ("benchmark", "--budget nan", "budget must be a finite number, got nan"),
    "no run": ("evaluate", "", "the following arguments are required: RUN; --help shows all flags"),
    "baseline": ("compare", "--baseline oracle-ndcg", "the baseline cannot be 'oracle-ndcg', which reads the answers"),
    "resume with control characters": ("train grpo", lambda at: ["--resume", grpo_run(at, network="\x1b[2J")], r".*config.json: a run of 'GRPO': network must be 'auto', 'shared' or 'mlp', got '\\x1b\[2J'"),
    "resume another": ("train ppo", lambda at: ["--resume", at.run({"learner": "GRPO", "settings": {"advantage": "outcome"}})], ".*config.json: a run of 'GRPO': unknown setting 'advantage'; there are dataset, .*"),
    "no home": ("train supervised", "--resume ~nosuchuser/x", "no home folder is known for '~nosuchuser/x'; .*"),
    "logdir not UTF-8": ("train ppo", lambda at: ["--logdir", at.tmp / os.fsdecode(b"r\xffns")], r"the log folder '.*/r\\udcffns' has characters that TensorBoard cannot write; choose another --logdir"),
    "rollouts too large": ("train grpo", lambda at: [*TINY(at), "--n-steps", 10**7, "--num-envs", 4096], "n_steps=10000000: rollouts of 4096 environments with 64 numbers each need .* GiB, .*"),
    "balance": ("train grpo", lambda at: [*TINY(at), "--balance", 0.5], r"balance 0\.5 needs queries in groups, and those of .* have none; leave it at 1"),
    "file: setting": ("train supervised", recipe(b"colour: red"), ".*recipe: unknown setting 'colour'; there are dataset, fold, .*"),
    "file: value": ("train supervised", recipe(b"epochs: many"), "epochs must be a valid integer, got 'many'"),
    "file: list": ("train supervised", recipe(b"- 1"), ".*recipe has no settings; write one a line, such as `timesteps: 1000`"),
    "file: no YAML": ("train supervised", recipe(b"a: [1"), r".*recipe is neither YAML nor JSON \(while parsing a flow sequence.*"),
    "file: no text": ("train supervised", recipe(b"\xff\xfe\x00"), ".*recipe is neither YAML nor JSON .*"),
    "file: program": ("train supervised", recipe(b"!!python/object/apply:os.getcwd []"), r".*recipe is neither YAML nor JSON \(could not determine.*"),
    "no methods": ("compare", recipe(b"methods: []"), "methods: tuple should have at least 1 item .*"),
    "method": ("compare", "--methods grop", "unknown method 'grop': did you mean 'grpo'.*"),
    "method twice": ("compare", "--methods ppo ppo", "method 'ppo' is given twice"),
    "dataset twice": ("compare", "--dataset a a", "datasets must differ, got a a"),
    "intervals over one seed": ("compare", "--seeds 1 --seed-intervals", "an interval over seeds needs two seeds or more, got 1; .*"),
    "learner": ("compare", "--methods nowhere:learner", r"learner 'nowhere:learner' cannot be imported \(No module named 'nowhere'\); give module:name .*"),
    "learner of another kind": ("compare", "--methods os:name", "a learner is a function or a class with a name of its own, got 'posix'"),
    "too few queries": ("compare", lambda at: ["--dataset", at.judged(9, "all")], ".* has 1 test queries in fold . of 5; a comparison needs 2 or more: .*"),
    "too many folds": ("compare", lambda at: ["--dataset", at.judged(24, "all"), "--folds", 13], ".* has 1 test queries in fold .* of 13; .*"),
    "test.tsv alone: compare": ("compare", lambda at: ["--dataset", at.judged(7)], ".* has 0 train queries; a comparison needs 2 or more: .*"),
    "encoder to compare": ("compare", lambda at: ["--dataset", at.tiny, "--encoder", "nowhere.safetensors"], "unknown encoder 'nowhere.safetensors'; .*"),
    "device": ("compare", "--device abacus", "device 'abacus' is not available.*"),
    "seed twice": ("ablate", "--seeds 1 1", "seeds must differ, got 1 1"),
    "part": ("benchmark", "--parts speed", "parts must be 'attention', 'table', 'environment', .*"),
    "odd number": ("benchmark", "--num-envs 12", "num_envs must be a multiple of 8, got 12"),
    "out is a device": ("benchmark", "--out /dev/null", "'/dev/null' is no ordinary file; give another for the numbers"),
    "out below a file": ("evaluate", lambda at: [at.tmp, "--out", at.file(b"") / "out.json"], ".*recipe' cannot be written to; give another file"),
    "run": ("search", "nowhere honey", "no run folder 'nowhere'; give the folder of a training run"),
    "query without words": ("search", lambda at: [at.tmp, " "], "the query is ' '; give some words"),
    "query without quotes": ("search", "run bees honey", "unrecognized arguments: honey; --help shows all flags"),
    "flag without a value": ("train grpo", "--seed", "argument --seed: expected one argument; --help shows all flags"),
    "flag with too few": ("train grpo", "--reward-weights 1", "argument --reward-weights: expected 3 arguments; --help shows all flags"),
    "flag misspelt": ("train grpo", "--sede 1", r"unrecognized arguments: --sede 1; did you mean '--seed'\?; --help shows all flags"),
    "command": ("train gpro", "", "unknown command 'train gpro'; did you mean 'train grpo'.*"),
    "command that draws": ("\x1b[31mred", "", r"unknown command '\\x1b\[31mred'; maw-gym --help shows all"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "arguments", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_commands(command, arguments, expected, place, capsys):
    given = arguments.split() if isinstance(arguments, str) else arguments(place)
    logdir = place.tmp / "logs" / "all"
    runs = command.startswith(("train", "compare", "ablate"))
    if runs and not {"--logdir", "--resume"} & set(given):
        given = ["--logdir", logdir, *given]
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), *map(str, given)])
    shown = capsys.readouterr()
    # Stages say that they begin; nothing else is there but the one line.
    (line,) = (line for line in shown.err.splitlines() if not line.endswith(" ..."))
    assert re.fullmatch(f"error: {expected}", line)
    assert (caught.value.code, shown.out) == (2, "")
    assert not logdir.parent.exists()  # what is refused leaves nothing: the name can be used again


# --- Everything else: what is called, and the message -------------------------------------------


def scalar(**changes):
    return GRPOEnvironment(table=TABLE, **changes)


def vector(count=2, **changes):
    return GRPOVectorEnvironment(count, table=TABLE, **changes)


def diverged(at):
    """A query's embedding, of finite weights whose products are not."""
    embedder = untrained_embedder((), EncoderSettings(depths=2))
    for projection in (embedder.encoder.value_proj, embedder.encoder.out_proj):
        projection.weight.data.fill_(1e30)
    task = RetrievalTask(load_collection(str(at.tiny)), embedder, "cpu")
    return RoutedEncoder(embedder, fixed_router(task, 0)).encode_query("honey")


CALLS = {
    "step first": (lambda at: scalar().step(0), r"an episode is one step long: call reset\(\) before each step\(\)"),
    "no options": (lambda at: scalar().reset(options=5), "the options of a reset are a dictionary, not 5"),
    "block a number": (lambda at: scalar(observation=3), "give a list of blocks, not 3"),
    "table of another type": (lambda at: GRPOEnvironment(table={}), "table must be a DepthTable, not {}"),
    "state's queries": (lambda at: vector().set_state(vector().get_state() | {"queries": ["a", "b"]}), r"the state is not one that get_state\(\) has given: .*"),
    "state's query below 0": (lambda at: vector().set_state(vector().get_state() | {"queries": [0, -1]}), ".*: a row or the position is below 0"),
    "encoder's name far too long": (lambda at: load_task(str(at.tiny), "x" * 5000, "cpu"), "unknown encoder 'x*'; give .*"),
    "seeds": (lambda at: vector().reset(seed=[1, 2]), r"seed must be one integer for the whole batch; got \[1, 2\]"),
    "frames of many": (lambda at: vector(render_mode="ansi"), "the batched form draws no frames, got render_mode 'ansi'; .*"),
    "state of others": (lambda at: vector(3).set_state(vector(2).get_state() | {"queries": [0, 1]}), r"the state is not one that get_state\(\) has given: it is of 2 rows, not of 3"),
    "huge weights": (diverged, "text embeddings must be finite; the encoder has probably diverged"),
    **{
        f"run without {name}": (lambda at, read=read: read(Run(at.tmp)), f"no run with a {name} in '.*'; give the folder of a finished run")
        for name, read in (("config.json", lambda run: run.config), ("metrics.json", lambda run: run.metrics), ("per_query.csv.gz", Run.per_query))
    },
    "config nested": (lambda at: Run(at.run(b"[" * 100_000)).config, r".*config.json is not JSON \(recursion.*\); give the folder of a run"),
    "config a list": (lambda at: Run(at.run([1])).config, ".*config.json is not a run's config.json; give the folder of a run"),
    "metrics empty": (lambda at: Run(at.run(b"", "metrics.json")).metrics, r".*metrics.json is not JSON \(EOF.*\); .*"),
    "config a pipe": (lambda at: (os.mkfifo(at.tmp / "config.json"), Run(at.tmp).config), ".*config.json is not a regular file.*"),
    "config endless": (lambda at: (os.truncate(at.file(b"", "config.json"), 2**33), Run(at.tmp).config), ".*config.json has 8589934592 bytes.*"),
    "config without settings": (lambda at: Run(at.run({"settings": 3})).settings, ".*config.json has no settings; give the folder of another run"),
    "config without dataset": (lambda at: Run(at.run({"settings": {"dataset": 3}})).collection(), ".*config.json does not name a dataset; give another run"),
    **{
        f"queries {number}": (lambda at, content=content: Run(at.run(content, "per_query.csv.gz")).per_query(), r".*per_query.csv.gz is damaged \(.*\); give another run")
        for number, content in enumerate([b"", b"a,b", gzip.compress(b""), gzip.compress(b"a" * 99)[:-9]])
    },
    "depth": (lambda at: load_task(str(at.tiny), "untrained", "cpu").attention("q0", 99), "depth must be a whole number from 0 to 31, got 99"),
    "path": (lambda at: RoutedEncoder.from_run(3), "a path must be a string or a Path, got 3"),
    "query of a task": (lambda at: load_task(str(at.tiny), "untrained", "cpu").query_text("q99"), "no query 'q99' in .*"),
    "setting of training": (lambda at: TrainingSettings(depths="layers"), "there is no setting 'depths'; choose among epochs, .*"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "expected"), CALLS.values(), ids=CALLS)
def test_calls(call, expected, place):
    with pytest.raises((InputError, gym.error.ResetNeeded)) as caught:
        call(place)
    assert re.fullmatch(expected, str(caught.value))


def test_numbers_of_numpy_are_numbers():
    """As a random search draws them."""
    env = to_sb3(GRPOVectorEnvironment(np.int64(16), group_size=np.int32(8), table=TABLE))
    model = GRPO("MlpPolicy", env, n_steps=np.int64(4), batch_size=np.int64(64), device="cpu")
    model.learn(np.int64(64))
    assert model.num_timesteps == 64
