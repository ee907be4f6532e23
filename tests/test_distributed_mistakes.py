"""What goes wrong among several processes: one line from each, and no half-written file."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import DEVICE, assert_lost, together

from maw_gym import distributed
from maw_gym.corpora import load_collection, splits
from maw_gym.encoders import embedder as embedder_module
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training.selection import trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.errors import InputError
from maw_gym.retrieval.bm25 import Words
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.index import SearchIndex
from maw_gym.tables import task as tasks
from maw_gym.tables.task import RetrievalTask

pytestmark = pytest.mark.processes


def encoder_of_own_folder(folders: list[Path], home: Path) -> Any:
    os.environ["MAW_GYM_HOME"] = str(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "ENCODER_MINIMUM", 0)
        collection = load_collection(str(folders[distributed.process()]))
    return trained_embedder(collection, DEVICE, TrainingSettings(batch_size=4))


def test_processes_with_different_collections_do_not_train(
    tiny_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    with (other / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "d99", "title": "", "text": "One more."}) + "\n")
    for problem in together(encoder_of_own_folder, [tiny_folder, other], tmp_path / "home"):
        assert isinstance(problem, InputError)
        assert str(problem).startswith("process 1 has another collection (")
        assert str(problem).endswith("give all of them the same files")
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def table(folder: Path, homes: list[Path], full: int | None) -> list[list[float]]:
    """The test queries' nDCG, built by two processes, of which `full` has a disk without room."""
    os.environ["MAW_GYM_HOME"] = str(homes[distributed.process()])
    embedder_module.PORTION, tasks.PORTION = 7, 4
    collection = load_collection(str(folder))
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=4))
    task = RetrievalTask(collection, embedder.to(DEVICE), torch.device(DEVICE))
    task.index  # noqa: B018  (before the disk is full)
    if distributed.process() == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    found: list[list[float]] = task.table("test").ndcg.tolist()
    return found


def test_a_full_disk_leaves_no_half_of_a_table(tiny_folder: Path, tmp_path: Path) -> None:
    homes = [tmp_path, tmp_path]
    first, second = together(table, tiny_folder, homes, 0)  # the one that writes
    assert isinstance(first, InputError)
    assert "cannot be written: File too large; make room for it" in str(first)
    assert "\n" not in str(first)
    assert_lost(second, 1)
    assert not list((tmp_path / "tables").glob("*.safetensors"))
    # Started again, both build it.
    assert together(table, tiny_folder, homes, None) == [table(tiny_folder, homes, None)] * 2


def test_processes_that_do_not_see_one_folder(tiny_folder: Path, tmp_path: Path) -> None:
    homes = [tmp_path / "first", tmp_path / "second"]
    for problem in together(table, tiny_folder, homes, None):
        assert isinstance(problem, InputError)
        assert "process 1 does not see what process 0 writes to " in str(problem)
        assert str(problem).endswith("give all of them one folder (of caches: one MAW_GYM_HOME)")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def index_of_own_kind(folder: Path, target: Path) -> None:
    collection = load_collection(str(folder))
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=2)).to(DEVICE)
    vectors = embedder.encode_documents(collection.doc_texts)
    documents = DocumentIndex(collection.doc_ids, vectors)
    words = Words() if distributed.is_first() else None
    SearchIndex.of(documents, embedder.fingerprint(), words, folder=target)


def test_processes_that_make_indexes_of_different_kinds(tiny_folder: Path, tmp_path: Path) -> None:
    for problem in together(index_of_own_kind, tiny_folder, tmp_path / "index"):
        assert isinstance(problem, InputError)
        assert str(problem).startswith("process 1 has another kind of index (")
    assert not (tmp_path / "index").exists()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError) as caught:
        distributed.start()
    assert str(caught.value) == (
        "there is no GPU for process 2 of this machine, which has 2; start as many,"
        " --nproc-per-node 2"
    )
