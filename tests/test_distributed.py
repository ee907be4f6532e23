"""Two processes do what one does: over gloo, or over NCCL where there are two GPUs."""

import json
import os
import shutil
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from processes import DEVICE, assert_lost, free_port, full_disk, together

from maw_gym import distributed
from maw_gym.agents.baselines import fixed_router
from maw_gym.corpora import load_collection, splits
from maw_gym.encoders import embedder as embedder_module
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training.selection import train_encoder, trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation, batch_loss, depth_loss, pairs_of
from maw_gym.errors import InputError
from maw_gym.retrieval.bm25 import Words
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.index import SearchIndex
from maw_gym.retrieval.search import rank, rank_together
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables import task as tasks
from maw_gym.tables.task import RetrievalTask

pytestmark = pytest.mark.processes

QUERIES = ["how bees make honey", "polar ice melting", ""]


# --- the words that processes exchange --------------------------------------------------------


def exchange():
    me = distributed.process()
    rows = torch.full((2, 1), float(me + 1), device=DEVICE, requires_grad=True)
    # Every process has the whole loss: the sum of the squares 1, 1, 4, 4.
    loss = (distributed.gathered(rows, 2 * distributed.processes()) ** 2).sum()
    loss.backward()
    distributed.wait()
    try:
        distributed.check_same("collection", f"key {me}")
        refused = ""
    except InputError as problem:
        refused = str(problem)
    return {
        "process": (me, distributed.processes(), distributed.is_first()),
        "range": distributed.own_range(5),
        "from first": distributed.from_first(f"of {me}"),
        "from all": distributed.from_all(f"of {me}"),
        "loss": loss.item(),
        "gradient": rows.grad.flatten().tolist(),
        "refused": refused,
    }


def test_two_processes_exchange():
    first, second = together(exchange)
    assert (first["process"], second["process"]) == ((0, 2, True), (1, 2, False))
    assert (first["range"], second["range"]) == (slice(0, 2), slice(2, 5))
    for found in (first, second):
        assert found["from first"] == "of 0"
        assert found["from all"] == ["of 0", "of 1"]
        assert found["loss"] == 10
        assert found["refused"] == (
            "process 1 has another collection (key 1) than process 0 (key 0); give all of them the"
            " same files"
        )
    # The derivative 2 x of each row, from both processes.
    assert first["gradient"] == [4, 4]
    assert second["gradient"] == [8, 8]


def test_one_process_does_it_alone():
    distributed.start()
    assert exchange() == {
        "process": (0, 1, True),
        "range": slice(0, 5),
        "from first": "of 0",
        "from all": ["of 0"],
        "loss": 2.0,
        "gradient": [2, 2],
        "refused": "",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no process of several has RANK=, WORLD_SIZE=2, MASTER_ADDR=, MASTER_PORT=; start"),
        ({"RANK": "2"}, "no process of several has RANK=2, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1"),
        ({"RANK": "-1"}, "no process of several has RANK=-1, "),
        ({"RANK": "one"}, "no process of several has RANK=one, "),
        ({"RANK": "1"}, "no rendezvous of 2 processes at 127.0.0.1:"),
    ],
)
def test_a_missing_rendezvous_is_one_line(monkeypatch, given, message):
    monkeypatch.setattr(distributed, "MEETING", distributed.timedelta(seconds=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(InputError) as caught:
        distributed.start("cpu")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def uneven():
    """A batch of three rows for two processes, and one of a single row."""
    weight = torch.nn.Parameter(torch.tensor([2.0], device=DEVICE))
    averaged = distributed.with_mean_gradients([weight])
    found: list[Any] = []

    def loss_of(batch):
        rows = torch.tensor(batch, device=DEVICE)[distributed.share(len(batch))] * weight
        found.append(rows.tolist())
        return (distributed.gathered(rows, len(batch)) ** 2).mean()

    for batch in ([1.0, 2.0, 3.0], [5.0]):
        weight.grad = None
        loss = averaged(partial(loss_of, batch))
        loss.backward()
        found += [loss.item(), weight.grad.item()]
    return found


def test_gradients_are_those_of_the_whole_batch():
    # Mean of (w x)^2 at w = 2: 4 (1 + 4 + 9) / 3 = 56 / 3, derivative 56 / 3; then 100 and 100.
    whole = [pytest.approx(56 / 3), pytest.approx(56 / 3)]
    expected = [[rows, *whole, [10], 100, 100] for rows in ([2], [4, 6], [2, 4, 6])]
    assert [*together(uneven), uneven()] == expected


# --- search -----------------------------------------------------------------------------------


def vectors(count):
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, 24, generator=generator), dim=1)


def search_part(k):
    index = DocumentIndex([str(n) for n in range(701)], vectors(701), DEVICE)
    found = rank_together(index, vectors(750)[700:], k)
    return found.documents.tolist(), found.scores.tolist()


@pytest.mark.parametrize("k", [1, 400])
def test_search_over_processes_is_that_of_one_bit_for_bit(k):
    index = DocumentIndex([str(n) for n in range(701)], vectors(701), DEVICE)
    expected = rank(index, vectors(750)[700:], k)
    for found in together(search_part, k):
        assert found == (expected.documents.tolist(), expected.scores.tolist())


# --- training ---------------------------------------------------------------------------------


def in_double(folder, stage):
    """Loss and gradients of one batch of 11 pairs, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(splits, "ENCODER_MINIMUM", 0)
            collection = load_collection(str(folder))
        shape = EncoderSettings(depths=3)
        embedder = untrained_embedder(collection.doc_texts, shape).to(DEVICE)
        embedder.encoder.double()
        trained = {
            name: parameter.requires_grad_(True)
            for name, parameter in embedder.encoder.named_parameters()
            if name.startswith("depth_") == (stage == "depths")
        }
        averaged = distributed.with_mean_gradients(trained.values())
        embedder.text.embedding = embedder.text.embedding.double()
        pairs = pairs_of([collection], embedder)
        rows = torch.arange(len(pairs.queries))
        settings = TrainingSettings()
        if stage == "attention":
            documents = [options[0] for options in pairs.relevant]
            loss = averaged(partial(batch_loss, embedder, pairs, rows, documents, settings))
        else:
            with torch.no_grad():
                vectors = embedder.encode_ids(pairs.documents).double()
            generator = torch.Generator().manual_seed(0)
            depth = rows % 3
            more = (rows.tolist(), depth, settings, generator)
            loss = averaged(partial(depth_loss, embedder, pairs, vectors, *more))
        loss.backward()
        return loss.item(), {name: one.grad.cpu().numpy() for name, one in trained.items()}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("stage", ["attention", "depths"])
def test_losses_and_gradients_are_those_of_one_process(tiny_folder, stage):
    loss, gradients = in_double(tiny_folder, stage)
    assert len(gradients) >= 2
    assert all(gradient.dtype == np.float64 for gradient in gradients.values())
    for other, found in together(in_double, tiny_folder, stage):
        assert other == pytest.approx(loss, abs=1e-5)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert np.abs(gradient).max() > 1e-5, name
            np.testing.assert_allclose(found[name], gradient, atol=1e-5, rtol=0)


def trained(folder, home, stop_after):
    """An encoder of both stages, two epochs each; or stopped in the first stage."""
    os.environ["MAW_GYM_HOME"] = str(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "ENCODER_MINIMUM", 0)
        collection = load_collection(str(folder))
        if stop_after is not None:
            score = Validation.score
            calls = iter(range(stop_after + 1))

            def stopped(self, *more):
                next(calls)  # raises when the epochs are over
                return score(self, *more)

            patch.setattr(Validation, "score", stopped)
        settings = TrainingSettings(epochs=2, depth_epochs=2, batch_size=4)
        shape = EncoderSettings(depths=2)
        embedder, _ = train_encoder([collection], DEVICE, settings, shape, home / "it")
    return {name: tensor.cpu().numpy() for name, tensor in embedder.tensors().items()}


def test_two_processes_train_the_encoder_of_one_and_one_goes_on_from_their_checkpoint(
    tiny_folder, tmp_path
):
    expected = trained(tiny_folder, tmp_path / "one", None)
    two = together(trained, tiny_folder, tmp_path / "two", None)
    # Judged before the first epoch and after it; the second judgment more is the end.
    first, second = together(trained, tiny_folder, tmp_path / "stopped", 1)
    assert isinstance(first, StopIteration)
    assert_lost(second, 1)
    assert list((tmp_path / "stopped" / "encoders").rglob("*attention*"))
    for tensors in (*two, trained(tiny_folder, tmp_path / "stopped", None)):
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(tensors[name], value, atol=2e-4, rtol=0)
    names = [
        {path.name for path in (tmp_path / home / "encoders").glob("*.safetensors")}
        for home in ("one", "two", "stopped")
    ]
    assert names[0] == names[1] == names[2]


# --- documents and tables ---------------------------------------------------------------------


def task_of(folder):
    collection = load_collection(str(folder))
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=4))
    return RetrievalTask(collection, embedder.to(DEVICE), torch.device(DEVICE))


def small_portions():
    embedder_module.PORTION = 7
    tasks.PORTION = 4  # 7 test queries for two processes, 5 validation queries, 12 others


def evaluated(folder, home):
    os.environ["MAW_GYM_HOME"] = str(home)
    small_portions()
    task = task_of(folder)
    table = task.table("test")
    evaluation, ranking = task.evaluate("test", torch.full((7,), 2))
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*.safetensors"))
    return (
        task.index.vectors.cpu().numpy(),
        {name: np.asarray(values) for name, values in table.columns.items()},
        evaluation.mean,
        ranking.documents.tolist(),
        left,
    )


def test_documents_and_tables_are_built_in_shares_and_joined(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder_module, "PORTION", 7)
    monkeypatch.setattr(tasks, "PORTION", 4)
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "alone"))
    alone = evaluated(tiny_folder, tmp_path / "alone")
    for found in together(evaluated, tiny_folder, tmp_path / "together"):
        np.testing.assert_array_equal(found[0], alone[0])
        for name, column in alone[1].items():
            np.testing.assert_allclose(found[1][name], column, atol=1e-6)
        assert found[2:] == alone[2:]


def index_and_search(folder, target, own_texts):
    small_portions()
    task = task_of(folder)
    routed = RoutedEncoder(task.embedder, fixed_router(task, 1))
    texts = list(task.collection.doc_texts)
    if own_texts:
        texts[20] += f" of process {distributed.process()}"
    routed.index(iter(task.collection.doc_ids), iter(texts), folder=target)
    return routed.search(QUERIES, 9), routed.search(QUERIES, 9, hybrid=True)


@pytest.mark.parametrize("folder", [None, "index"])
def test_an_index_is_built_in_shares_and_searched_in_shares(
    tiny_folder, tmp_path, folder, monkeypatch
):
    monkeypatch.setattr(embedder_module, "PORTION", 7)
    monkeypatch.setattr(tasks, "PORTION", 4)
    alone = index_and_search(tiny_folder, None, own_texts=False)
    target = folder and tmp_path / folder
    for found in together(index_and_search, tiny_folder, target, False):
        assert found == alone


# --- mistakes: one line from each, and no half-written file -------------------------------------


def encoder_of(folders, home):
    os.environ["MAW_GYM_HOME"] = str(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "ENCODER_MINIMUM", 0)
        collection = load_collection(str(folders[distributed.process()]))
    trained_embedder(collection, DEVICE, TrainingSettings(batch_size=4))


def table(folder, homes, full=None):
    """The test queries' nDCG, built by two processes, of which `full` has a disk without room."""
    os.environ["MAW_GYM_HOME"] = str(homes[distributed.process()])
    small_portions()
    task = task_of(folder)
    task.index  # noqa: B018  (before the disk is full)
    if distributed.process() == full:
        full_disk()
    found: list[list[float]] = task.table("test").ndcg.tolist()
    return found


def index_of_own_kind(folder, target):
    task = task_of(folder)
    vectors = task.embedder.encode_documents(task.collection.doc_texts)
    documents = DocumentIndex(task.collection.doc_ids, vectors)
    words = Words() if distributed.is_first() else None
    SearchIndex.of(documents, task.embedder.fingerprint(), words, folder=target)


def full_disk_on_the_first(folder, target):
    if distributed.is_first():
        full_disk()
    return index_and_search(folder, target, own_texts=False)


SAME_FILES = "; give all of them the same files"
ONE_FOLDER = "; give all of them one folder (of caches: one MAW_GYM_HOME)"


def test_mistakes_are_one_line_of_each_process(tiny_folder, tmp_path):
    other, left = shutil.copytree(tiny_folder, tmp_path / "other"), tmp_path / "left"
    with (other / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "d99", "title": "", "text": "One more."}) + "\n")
    index, homes = left / "index", [left / "first", left / "second"]
    for work, given, begins, ends in (
        (encoder_of, ([tiny_folder, other], left), "1 has another collection (", SAME_FILES),
        (index_and_search, (tiny_folder, index, True), "1 has another stream of doc", SAME_FILES),
        (index_of_own_kind, (tiny_folder, index), "1 has another kind of index (", SAME_FILES),
        (table, (tiny_folder, homes), "1 does not see what process 0 writes to ", ONE_FOLDER),
    ):
        for problem in together(work, *given):
            assert isinstance(problem, InputError)
            assert str(problem).startswith(f"process {begins}")
            assert str(problem).endswith(ends)
            assert "\n" not in str(problem)
    assert not [path for path in left.rglob("*") if path.is_file()]


def test_a_full_disk_leaves_no_half_of_a_table_or_an_index(tiny_folder, tmp_path):
    homes = [tmp_path, tmp_path]
    for work, target in ((table, homes), (full_disk_on_the_first, tmp_path / "index")):
        first, second = together(work, tiny_folder, target, *([0] if work is table else []))
        assert isinstance(first, InputError)
        assert " cannot be written: " in str(first)
        assert "\n" not in str(first)
        assert_lost(second, 1)
    assert not list((tmp_path / "tables").glob("*.safetensors"))
    assert not (tmp_path / "index").exists()
    # Started again, both build it.
    assert together(table, tiny_folder, homes) == [table(tiny_folder, homes)] * 2


def test_more_processes_than_gpus(monkeypatch):
    for name, value in (
        *(("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "3")),
        *(("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError) as caught:
        distributed.start()
    assert str(caught.value) == (
        "there is no GPU for process 2 of this machine, which has 2; start as many,"
        " --nproc-per-node 2"
    )
