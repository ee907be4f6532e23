"""Two processes do what one does: over gloo, or over NCCL where there are two GPUs."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
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
from maw_gym.encoders.training.stages import (
    Validation,
    batch_loss,
    depth_loss,
    pairs_of,
)
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


def exchange() -> dict[str, Any]:
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


def test_two_processes_exchange() -> None:
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


def test_one_process_does_it_alone() -> None:
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


def test_a_missing_rendezvous_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError) as caught:
        distributed.start("cpu")
    assert str(caught.value) == (
        "WORLD_SIZE is set and RANK, MASTER_ADDR, MASTER_PORT is not; start several processes by"
        " torchrun --nproc-per-node N"
    )
    monkeypatch.setattr(distributed, "MEETING", distributed.timedelta(seconds=1))
    for name, value in (("RANK", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    for number in ("2", "-1", "one"):
        monkeypatch.setenv("RANK", number)
        with pytest.raises(InputError, match=f"RANK '{number}' is none of the numbers from 0"):
            distributed.start("cpu")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InputError, match=r"no rendezvous of 2 processes at 127\.0\.0\.1") as caught:
        distributed.start("cpu")
    assert "\n" not in str(caught.value)


def uneven() -> list[Any]:
    """A batch of three rows for two processes, and one of a single row."""
    weight = torch.nn.Parameter(torch.tensor([2.0], device=DEVICE))
    averaged = distributed.with_mean_gradients([weight])
    found: list[Any] = []

    def loss_of(batch: list[float]) -> torch.Tensor:
        rows = torch.tensor(batch, device=DEVICE)[distributed.share(len(batch))] * weight
        found.append(rows.tolist())
        return (distributed.gathered(rows, len(batch)) ** 2).mean()

    for batch in ([1.0, 2.0, 3.0], [5.0]):
        weight.grad = None
        loss = averaged(partial(loss_of, batch))
        loss.backward()
        found += [loss.item(), weight.grad.item()]
    try:
        distributed.check_shares(513)
    except InputError as problem:
        found.append(str(problem))
    return found


def test_gradients_are_those_of_the_whole_batch() -> None:
    # Mean of (w x)^2 at w = 2: 4 (1 + 4 + 9) / 3 = 56 / 3, derivative 56 / 3; then 100 and 100.
    refused = "batch_size 513 cannot be shared by 2 processes; give a multiple of 2"
    whole = [pytest.approx(56 / 3), pytest.approx(56 / 3)]
    first, second = together(uneven)
    assert first == [[2], *whole, [10], 100, 100, refused]
    assert second == [[4, 6], *whole, [10], 100, 100, refused]
    assert uneven() == [[2, 4, 6], *whole, [10], 100, 100]


# --- search -----------------------------------------------------------------------------------


def vectors(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, 24, generator=generator), dim=1)


def search_part(k: int) -> tuple[list, list]:
    index = DocumentIndex([str(n) for n in range(701)], vectors(701), DEVICE)
    found = rank_together(index, vectors(750)[700:], k)
    return found.documents.tolist(), found.scores.tolist()


@pytest.mark.parametrize("k", [1, 400])
def test_search_over_processes_is_that_of_one_bit_for_bit(k: int) -> None:
    index = DocumentIndex([str(n) for n in range(701)], vectors(701), DEVICE)
    expected = rank(index, vectors(750)[700:], k)
    for found in together(search_part, k):
        assert found == (expected.documents.tolist(), expected.scores.tolist())


# --- training ---------------------------------------------------------------------------------


def in_double(folder: Path, stage: str) -> tuple[float, dict[str, Any]]:
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
def test_losses_and_gradients_are_those_of_one_process(tiny_folder: Path, stage: str) -> None:
    loss, gradients = in_double(tiny_folder, stage)
    assert len(gradients) >= 2
    assert all(gradient.dtype == np.float64 for gradient in gradients.values())
    for other, found in together(in_double, tiny_folder, stage):
        assert other == pytest.approx(loss, abs=1e-5)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert np.abs(gradient).max() > 1e-5, name
            np.testing.assert_allclose(found[name], gradient, atol=1e-5, rtol=0)


def trained(folder: Path, home: Path, stop_after: int | None) -> dict[str, np.ndarray]:
    """An encoder of both stages, two epochs each; or stopped in the first stage."""
    os.environ["MAW_GYM_HOME"] = str(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "ENCODER_MINIMUM", 0)
        collection = load_collection(str(folder))
        if stop_after is not None:
            score = Validation.score
            calls = iter(range(stop_after + 1))

            def stopped(self: Validation, *more: Any) -> float:
                next(calls)  # raises when the epochs are over
                return score(self, *more)

            patch.setattr(Validation, "score", stopped)
        settings = TrainingSettings(epochs=2, depth_epochs=2, batch_size=4)
        shape = EncoderSettings(depths=2)
        embedder, _ = train_encoder([collection], DEVICE, settings, shape, home / "it")
    return {name: tensor.cpu().numpy() for name, tensor in embedder.tensors().items()}


def test_two_processes_train_the_encoder_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    expected = trained(tiny_folder, tmp_path / "one", None)
    found = together(trained, tiny_folder, tmp_path / "two", None)
    for tensors in found:
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(tensors[name], value, atol=2e-4, rtol=0)
    files = [
        sorted(p.name for p in (tmp_path / x / "encoders").glob("*.saf*")) for x in ("one", "two")
    ]
    assert files[0] == files[1]


def test_one_process_goes_on_from_a_checkpoint_of_two(tiny_folder: Path, tmp_path: Path) -> None:
    # Judged before the first epoch and after it; the second judgment more is the end.
    first, second = together(trained, tiny_folder, tmp_path / "shared", 1)
    assert isinstance(first, StopIteration)
    assert_lost(second, 1)
    kept = list((tmp_path / "shared" / "encoders").rglob("*attention*"))
    assert kept
    found = trained(tiny_folder, tmp_path / "shared", None)
    expected = trained(tiny_folder, tmp_path / "alone", None)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-4, rtol=0)


# --- documents and tables ---------------------------------------------------------------------


def task_of(folder: Path) -> RetrievalTask:
    collection = load_collection(str(folder))
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=4))
    return RetrievalTask(collection, embedder.to(DEVICE), torch.device(DEVICE))


def small_portions() -> None:
    embedder_module.PORTION = 7
    tasks.PORTION = 4  # 7 test queries for two processes, 5 validation queries, 12 others


def evaluated(folder: Path, home: Path) -> tuple[Any, ...]:
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


def test_documents_and_tables_are_built_in_shares_and_joined(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "PORTION", 7)
    monkeypatch.setattr(tasks, "PORTION", 4)
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "alone"))
    alone = evaluated(tiny_folder, tmp_path / "alone")
    for found in together(evaluated, tiny_folder, tmp_path / "together"):
        np.testing.assert_array_equal(found[0], alone[0])
        for name, column in alone[1].items():
            np.testing.assert_allclose(found[1][name], column, atol=1e-6)
        assert found[2:] == alone[2:]


def index_and_search(folder: Path, target: Path | None, own_texts: bool) -> list[Any]:
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
    tiny_folder: Path, tmp_path: Path, folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "PORTION", 7)
    monkeypatch.setattr(tasks, "PORTION", 4)
    alone = index_and_search(tiny_folder, None, own_texts=False)
    target = folder and tmp_path / folder
    for found in together(index_and_search, tiny_folder, target, False):
        assert found == alone


def test_processes_that_read_different_documents_do_not_go_on(
    tiny_folder: Path, tmp_path: Path
) -> None:
    for found in together(index_and_search, tiny_folder, tmp_path / "index", True):
        assert str(found).startswith("process 1 has another stream of documents (")
    assert not (tmp_path / "index").exists()


def full_disk_on_the_first(folder: Path, target: Path) -> Any:
    if distributed.is_first():
        full_disk()
    return index_and_search(folder, target, own_texts=False)


def test_a_full_disk_is_one_line_and_no_half_written_index(
    tiny_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "index"
    first, second = together(full_disk_on_the_first, tiny_folder, target)
    assert "index cannot be written: " in str(first)
    assert "\n" not in str(first)
    assert_lost(second, 1)
    assert not [*tmp_path.iterdir()]


# --- mistakes: one line from each, and no half-written file -------------------------------------


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
    small_portions()
    task = task_of(folder)
    task.index  # noqa: B018  (before the disk is full)
    if distributed.process() == full:
        full_disk()
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
