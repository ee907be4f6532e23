"""Two processes do what one does: over gloo, or over NCCL where there are two GPUs."""

import json
import os
import shutil
from functools import partial

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
from maw_gym.encoders.training.stages import Validation
from maw_gym.errors import InputError
from maw_gym.retrieval.bm25 import Words
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.index import SearchIndex
from maw_gym.retrieval.search import rank_together
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables import task as tasks
from maw_gym.tables.task import RetrievalTask

pytestmark = pytest.mark.processes

SAME_FILES = "; give all of them the same files"
ONE_FOLDER = "; give all of them one folder (of caches: one MAW_GYM_HOME)"
QUERIES = ["how bees make honey", "polar ice melting", ""]


@pytest.fixture(autouse=True)
def as_before(monkeypatch, maw_gym_home):
    """Undoes what the work of one process, which others start anew for, changes in this one."""
    monkeypatch.setattr(embedder_module, "PORTION", embedder_module.PORTION)
    monkeypatch.setattr(tasks, "PORTION", tasks.PORTION)
    monkeypatch.setenv("MAW_GYM_HOME", str(maw_gym_home))


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
    place = me, distributed.processes(), distributed.is_first(), distributed.own_range(5)
    told = distributed.from_first(f"of {me}"), distributed.from_all(f"of {me}")
    return *place, *told, loss.item(), rows.grad.flatten().tolist(), refused


def test_processes_exchange():
    refused = "process 1 has another collection (key 1) than process 0 (key 0)" + SAME_FILES
    told = "of 0", ["of 0", "of 1"], 10
    # The derivative 2 x of each row, from both processes.
    first = 0, 2, True, slice(0, 2), *told, [4, 4], refused
    assert together(exchange) == [first, (1, 2, False, slice(2, 5), *told, [8, 8], refused)]
    distributed.start()  # without torchrun there is one
    assert exchange() == (0, 1, True, slice(0, 5), "of 0", ["of 0"], 2, [2, 2], "")


MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
NO_RANK = "no process of several has RANK={}, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT="


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no process of several has RANK=, WORLD_SIZE=2, MASTER_ADDR=, MASTER_PORT=; start"),
        *((MEETING | {"RANK": rank}, NO_RANK.format(rank)) for rank in ("2", "-1", "one")),
        (MEETING | {"RANK": "1"}, "no rendezvous of 2 processes at 127.0.0.1:"),
        (
            MEETING | {"RANK": "1", "LOCAL_RANK": "1"},
            "there is no GPU for process 1 of this machine, which has 1; start as many,"
            " --nproc-per-node 1",
        ),
    ],
)
def test_processes_that_cannot_meet_are_told_so_in_one_line(monkeypatch, given, message):
    monkeypatch.setattr(distributed, "MEETING", distributed.timedelta(seconds=1))
    for name, value in {"WORLD_SIZE": "2", **given}.items():
        monkeypatch.setenv(name, value)
    if "LOCAL_RANK" in given:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError) as caught:
        distributed.start("auto" if "LOCAL_RANK" in given else "cpu")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def uneven():
    """A batch of three rows for two processes, and one of a single row."""
    weight = torch.nn.Parameter(torch.tensor([2.0], device=DEVICE))
    averaged = distributed.averaging([weight])
    found = []

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


def vectors(count):
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, 24, generator=generator), dim=1)


def search_part(k):
    index = DocumentIndex([str(n) for n in range(701)], vectors(701), DEVICE)
    ranking = rank_together(index, vectors(750)[700:], k)
    return ranking.documents.tolist(), ranking.scores.tolist()


@pytest.mark.parametrize("k", [1, 400])
def test_search_over_processes_is_that_of_one_bit_for_bit(k):
    assert together(search_part, k) == [search_part(k)] * 2


def collection_of(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "ENCODER_MINIMUM", 0)
        return load_collection(str(folder))


def trained(folder, home, *scores):
    """An encoder of both stages, two epochs each; it ends where no score is left for a look."""
    os.environ["MAW_GYM_HOME"] = str(home)
    left, settings = iter(scores), TrainingSettings(epochs=2, depth_epochs=2, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "score", lambda *_: float(next(left)))
        given = [collection_of(folder)], DEVICE, settings, EncoderSettings(depths=2), home / "it"
        embedder, _ = train_encoder(*given)
    return {name: tensor.cpu().numpy() for name, tensor in embedder.tensors().items()}


def test_two_processes_train_the_encoder_of_one_which_can_go_on(tiny_folder, tmp_path):
    # In each stage before training, and after epochs 1 and 2.
    expected = trained(tiny_folder, tmp_path / "one", 0, 1, 2, 0, 1, 2)
    two = together(trained, tiny_folder, tmp_path / "two", 0, 1, 2, 0, 1, 2)
    first, second = together(trained, tiny_folder, tmp_path / "stopped", 0, 1)
    assert isinstance(first, StopIteration)
    assert_lost(second, 1)
    assert list((tmp_path / "stopped" / "encoders").rglob("*attention*"))
    for tensors in (*two, trained(tiny_folder, tmp_path / "stopped", 0, 2, 0, 1, 2)):
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            # AdamW moves what has next to no gradient by rounding: of all together it is little.
            error = np.linalg.norm(tensors[name] - value) / np.linalg.norm(value)
            assert error < 1e-3, name
    names = [
        {path.name for path in (tmp_path / home / "encoders").glob("*.safetensors")}
        for home in ("one", "two", "stopped")
    ]
    assert names[0] == names[1] == names[2]


def task_of(folder):
    # 7 test queries for two processes, 5 validation queries, 12 others
    embedder_module.PORTION, tasks.PORTION = 7, 4
    collection = load_collection(str(folder))
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=4))
    return RetrievalTask(collection, embedder.to(DEVICE), torch.device(DEVICE))


def evaluated(folder, home):
    os.environ["MAW_GYM_HOME"] = str(home)
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


def test_documents_and_tables_are_built_in_shares_and_joined(tiny_folder, tmp_path):
    alone = evaluated(tiny_folder, tmp_path / "alone")
    for found in together(evaluated, tiny_folder, tmp_path / "together"):
        np.testing.assert_array_equal(found[0], alone[0])
        for name, column in alone[1].items():
            np.testing.assert_allclose(found[1][name], column, atol=1e-6)
        assert found[2:] == alone[2:]


def index_and_search(folder, target, own_texts=False, full=None):
    task = task_of(folder)
    routed = RoutedEncoder(task.embedder, fixed_router(task, 1))
    texts = list(task.collection.doc_texts)
    if own_texts:
        texts[20] += f" of process {distributed.process()}"
    if distributed.process() == full:
        full_disk()
    routed.index(iter(task.collection.doc_ids), iter(texts), folder=target)
    return routed.search(QUERIES, 9), routed.search(QUERIES, 9, hybrid=True)


@pytest.mark.parametrize("folder", [None, "index"])
def test_an_index_is_built_in_shares_and_searched_in_shares(tiny_folder, tmp_path, folder):
    alone = index_and_search(tiny_folder, None)
    target = folder and tmp_path / folder
    for found in together(index_and_search, tiny_folder, target):
        assert found == alone


def table(folder, homes, full=None):
    """The test queries' nDCG, built by two processes, of which `full` has a disk without room."""
    os.environ["MAW_GYM_HOME"] = str(homes[distributed.process()])
    task = task_of(folder)
    task.index  # noqa: B018  (before the disk is full)
    if distributed.process() == full:
        full_disk()
    return task.table("test").ndcg.tolist()


def encoder_of(folders, home):
    os.environ["MAW_GYM_HOME"] = str(home)
    settings = TrainingSettings(batch_size=4)
    trained_embedder(collection_of(folders[distributed.process()]), DEVICE, settings)


def index_of_own_kind(folder, target):
    task = task_of(folder)
    vectors = task.embedder.encode_documents(task.collection.doc_texts)
    documents = DocumentIndex(task.collection.doc_ids, vectors)
    words = Words() if distributed.is_first() else None
    SearchIndex.of(documents, task.embedder.fingerprint(), words, folder=target)


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
    homes, index = [tmp_path, tmp_path], tmp_path / "index"
    for work, *given in ((table, homes, 0), (index_and_search, index, False, 0)):
        first, second = together(work, tiny_folder, *given)
        assert isinstance(first, InputError)
        assert " cannot be written: " in str(first)
        assert "\n" not in str(first)
        assert_lost(second, 1)
    assert not list((tmp_path / "tables").glob("*.safetensors"))
    assert not index.exists()
    # Started again, both build it.
    assert together(table, tiny_folder, homes) == [table(tiny_folder, homes)] * 2
