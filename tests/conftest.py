"""One cache folder for the whole session, one thread per worker, and a tiny collection."""

import os
import subprocess
import sys

import pytest
import torch
from hostile_run import write_hostile_run
from tiny_collection import write_tiny_collection
from tiny_transformer import write_tiny_transformer

from maw_gym.corpora import load_collection, splits
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.tables.task import RetrievalTask

WORKER = "PYTEST_XDIST_WORKER"


def pytest_configure():
    os.environ["HF_HUB_OFFLINE"] = "1"  # read where transformers is imported
    if WORKER in os.environ:
        # As many workers as cores: more threads would only wait for each other. Runners started
        # by tests inherit the setting.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def maw_gym_home(tmp_path_factory):
    """The cache folder of this session, shared by all workers: pydocs is read once."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if WORKER in os.environ else base) / "maw_gym_home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAW_GYM_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A BEIR folder of 30 documents and 24 queries; its `encoder` split is empty, as of any small
    collection. Not to be written to."""
    return write_tiny_collection(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The collection of `tiny_folder` with queries in all four splits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "ENCODER_MINIMUM", 0)
        return load_collection(str(tiny_folder))


@pytest.fixture(scope="session")
def task(tiny):
    """The tiny collection with an untrained encoder of four depths. Not to be changed."""
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=4))
    return RetrievalTask(tiny, embedder, "cpu")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder of this test alone."""
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory):
    """The folder of a transformer of two tiny layers. Not to be written to."""
    return write_tiny_transformer(tmp_path_factory.mktemp("model") / "tiny_transformer")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """The folder of a finished run whose ids and texts try to be more than text."""
    return write_hostile_run(tmp_path_factory.mktemp("hostile") / "run <b>1")


@pytest.fixture(scope="session")
def run_python():
    """Runs a program in a process of its own, which must succeed; its output."""

    def run(program):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
