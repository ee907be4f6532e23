"""What is cached of a task: tables, the index, BM25. Damage of every kind: tests/files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hand_made import TABLE, first_rows

from maw_gym import files
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.tables.depth_table import read_table, write_table
from maw_gym.tables.task import RetrievalTask


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tables" / "key.safetensors"
    write_table(path, TABLE)
    return path


def check(found, table):
    assert found.query_ids == table.query_ids
    assert list(found.columns) == list(table.columns)
    for name, column in table.columns.items():
        assert found.columns[name].tolist() == column.tolist()


def test_a_table_is_read_as_it_was_written_into_read_only_memory_maps(path):
    table = read_table(path)
    check(table, TABLE)
    assert str(path) in Path("/proc/self/maps").read_text()
    for column in table.columns.values():
        with pytest.raises(ValueError, match="read-only"):
            column[0, 0] = 1
    write_table(path, first_rows(TABLE, 0))
    check(read_table(path), first_rows(TABLE, 0))
    with pytest.raises(DamagedFileError, match="is the table of other queries"):
        read_table(path, ("another",))
    path.unlink()
    with pytest.raises(InputError, match="no table file"):
        read_table(path)


@pytest.mark.parametrize(
    "change",
    [
        {"focus": None},
        {"more": np.zeros((3, 1), np.float32)},
        {"focus": np.zeros((2, 4), np.float32)},  # a row less
        {"profile": np.zeros((3, 6), np.float32)},  # of other depths
        {"content": np.zeros(3, np.float32)},
        {"content": np.zeros((3, 3), np.uint8)},
        {"query_ids": np.zeros(5, np.uint8)},
        {"query_ids": np.full(100_000, ord("["), np.uint8)},
    ],
)
def test_a_table_of_other_columns_is_refused(path, change):
    tensors = files.read(path, "table").tensors
    tensors |= {name: torch.tensor(values) for name, values in change.items() if values is not None}
    gone = [name for name, values in change.items() if values is None]
    tensors = {name: tensor.clone() for name, tensor in tensors.items() if name not in gone}
    files.write(path, tensors, "table", {})
    with pytest.raises(DamagedFileError, match=r"^.*key\.safetensors.*$"):
        read_table(path)


def test_an_interrupted_table_leaves_nothing(task, home, monkeypatch):
    monkeypatch.setattr("maw_gym.tables.task.PORTION", 4)
    first = RetrievalTask(task.collection, task.embedder)
    second, hidden = [], Embedder.query_ids

    def killed(self, texts):
        second.append(texts)
        if len(second) == 2:
            raise KeyboardInterrupt
        return hidden(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "query_ids", killed)
        with pytest.raises(KeyboardInterrupt):
            first.table("test")
    assert not list((home / "tables").glob("*.safetensors"))
    assert len(first.table("test")) == 7


def test_a_second_task_reads_what_the_first_has_built_and_writes_nothing(task, home, monkeypatch):
    def numbers():
        made = RetrievalTask(task.collection, task.embedder)
        table = made.table("test")
        assert made.table("test") is table
        scores = made.index.scores(torch.eye(256)).tolist()
        return table.ndcg.tolist(), scores, made.bm25.scores("honey bees").tolist()

    first = numbers()

    def refuse(name, *_, **__):
        raise PermissionError(13, "Permission denied", str(name))

    for kind, name in ((Embedder, "encode_documents"), (Embedder, "batches")):
        monkeypatch.setattr(kind, name, lambda *_, **__: pytest.fail("encoded again"))
    # For the superuser, who runs some tests, no folder is read only.
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert numbers() == first


def test_the_key_covers_all_that_numbers_depend_on(tiny):
    def untrained(texts, **shape):
        return untrained_embedder(texts, EncoderSettings(**shape))

    embedder = untrained(tiny.doc_texts, depths=4)
    tasks = [
        RetrievalTask(tiny, embedder),
        RetrievalTask(tiny._replace(provenance={"content": "other"}), embedder),
        RetrievalTask(tiny, untrained([], depths=4)),
        RetrievalTask(tiny, Embedder(embedder.text, embedder.encoder, query_tokens=63)),
        RetrievalTask(tiny, Embedder(embedder.text, embedder.encoder, document_tokens=255)),
        RetrievalTask(tiny, untrained(tiny.doc_texts, depths=0)),
        RetrievalTask(tiny, untrained(tiny.doc_texts, depths=0, heads=4)),
    ]
    assert len({task.key for task in tasks}) == len(tasks)
    assert RetrievalTask(tiny._replace(name="renamed"), embedder).key == tasks[0].key
