"""What is cached of a task: tables, the index, BM25. Damage of every kind: tests/files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import TABLE

from maw_gym import files
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.retrieval.bm25 import BM25
from maw_gym.tables.depth_table import DepthTable, read_table, write_table
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
    empty = DepthTable.of((), {name: column[:0] for name, column in TABLE.columns.items()})
    write_table(path, empty)
    check(read_table(path), empty)
    with pytest.raises(DamagedFileError, match="is the table of other queries"):
        read_table(path, ("another",))
    path.unlink()
    with pytest.raises(InputError, match="no table file"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("focus", np.zeros((2, 4), np.float32)),  # a row less
        ("profile", np.zeros((3, 6), np.float32)),  # of other depths
        ("entropy", np.zeros(3, np.float32)),
        ("query_ids", np.zeros(5, np.uint8)),
        ("query_ids", np.full(100_000, ord("["), np.uint8)),
    ],
)
def test_a_table_of_other_columns_is_refused(path, name, values):
    tensors = {key: tensor.clone() for key, tensor in files.read(path, "table").tensors.items()}
    files.write(path, tensors | {name: torch.from_numpy(values)}, "table", {})
    with pytest.raises(DamagedFileError, match=r"^.*key\.safetensors.*$"):
        read_table(path)


@pytest.mark.usefixtures("home")
def test_a_second_task_reads_what_the_first_has_built(task, monkeypatch):
    def numbers():
        made = RetrievalTask(task.collection, task.embedder)
        table = made.table("test")
        assert made.table("test") is table
        scores = made.index.scores(torch.eye(256)).tolist()
        return table.ndcg.tolist(), scores, made.bm25.scores("honey bees").tolist()

    first = numbers()
    for kind, name in (
        *((Embedder, "encode_documents"), (Embedder, "batches")),
        *((BM25, "of"), (files, "locked")),  # of what is there, none is taken
    ):
        monkeypatch.setattr(kind, name, lambda *_, **__: pytest.fail("made again"))
    assert numbers() == first


def test_the_key_covers_collection_and_encoder(tiny):
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=4))
    key = RetrievalTask(tiny, embedder).key
    assert RetrievalTask(tiny._replace(name="renamed"), embedder).key == key
    other = tiny._replace(provenance={"content": "other"})
    others = [
        replace(embedder, query_tokens=63),
        replace(embedder, document_tokens=255),
        untrained_embedder(tiny.doc_texts, EncoderSettings(depths=4, heads=4)),
        untrained_embedder([], EncoderSettings(depths=4)),  # other weights of tokens
    ]
    keys = {RetrievalTask(other, embedder).key, *(RetrievalTask(tiny, one).key for one in others)}
    assert len({key, *keys}) == 6
