import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock

import maw_gym.encoders.embedder
import maw_gym.tables.task
from maw_gym.corpora import load_collection, splits
from maw_gym.corpora.collection import Groups
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.files import save_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training import selection
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.errors import InputError
from maw_gym.retrieval.search import rank
from maw_gym.tables.task import RetrievalTask, load_task, resolve_device

SHAPE = EncoderSettings(depths=4)
SPLITS = ("encoder", "train", "validation", "test")


def spread_out(tiny):
    embedder = untrained_embedder(tiny.doc_texts, SHAPE)
    with torch.no_grad():
        embedder.maw.value_proj.weight.mul_(-4)  # so that the depths rank differently
    return embedder


@pytest.fixture(scope="module")
def task(tiny):
    return RetrievalTask(tiny, spread_out(tiny))


def assert_table_is_evaluation(task, split, choices):
    """The table's nDCG of the chosen depths is that of really encoded queries."""
    table = task.table(split)
    rows = np.arange(len(table))
    for chosen in choices:
        evaluation, _ = task.evaluate(split, torch.tensor(chosen))
        found = evaluation.per_query["nDCG@10"]
        assert np.abs(found - table.ndcg[rows, chosen]).max() <= 1e-6


# --- the table and the evaluation ------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_table_is_the_evaluation(task, split):
    count = len(task.collection.splits[split].ids)
    fixed = [[depth] * count for depth in range(4)]
    mixed = [row % 4 for row in range(count)]
    assert_table_is_evaluation(task, split, [*fixed, mixed])


def test_depths_rank_differently(task):
    """Otherwise the comparisons say little."""
    ndcg = task.table("test").ndcg
    assert len(np.unique(ndcg.mean(0))) > 1
    assert 0.3 < ndcg.mean() < 1


def test_the_table_is_the_evaluation_on_pydocs():
    whole = load_collection("pydocs")
    queries = whole.splits["test"].select(range(200))
    needed = {name for grades in queries.relevance for name in grades}
    rows = [row for row, name in enumerate(whole.doc_ids) if name in needed or row % 8 == 0]
    part = whole._replace(
        doc_ids=tuple(whole.doc_ids[row] for row in rows),
        doc_texts=tuple(whole.doc_texts[row] for row in rows),
        splits={**whole.splits, "test": queries},
        provenance={**whole.provenance, "content": "200 test queries of pydocs"},
    )
    embedder = untrained_embedder(part.doc_texts)
    task = RetrievalTask(part, Embedder(embedder.text, embedder.encoder, 32, 48))
    choices = [[0] * 200, [31] * 200, [row % 32 for row in range(200)]]
    assert_table_is_evaluation(task, "test", choices)
    assert 0.3 < task.table("test").ndcg.mean() < 0.8


def test_columns_of_the_table(task, tiny):
    table = task.table("test")
    queries = tiny.splits["test"]
    assert table.query_ids == queries.ids
    assert table.num_depths == 4
    assert (table.block("attention").shape, table.block("content").shape) == ((7, 512), (7, 256))
    assert table.block("attention").min() >= 0
    assert np.linalg.norm(table.block("attention"), axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    for name in ("entropy", "focus", "ndcg", "listwise"):
        column = getattr(table, name)
        assert column.shape == (7, 4)
        assert column.min() >= 0
        assert column.max() <= 1
    # From focused to broad.
    assert (np.diff(table.entropy.mean(0)) > 0).all()
    assert (np.diff(table.focus.mean(0)) < 0).all()


def test_listwise_is_the_mass_of_the_relevant_documents(task, tiny):
    table = task.table("test")
    queries = tiny.splits["test"]
    documents = task.embedder.encode_documents(tiny.doc_texts).double()
    for depth in range(4):
        embedded = task.embedder.encode_queries(queries.texts, torch.full((7,), depth)).double()
        mass = (embedded @ documents.T / 0.05).softmax(-1)
        for row, grades in enumerate(queries.relevance):
            expected = sum(mass[row, int(name[1:])].item() for name, g in grades.items() if g)
            assert table.listwise[row, depth] == pytest.approx(expected, abs=1e-5)


def test_a_table_knows_the_groups_of_its_queries(task, tiny):
    assert task.table("test").groups == ()
    first = tiny.splits["test"].ids[0]
    other = RetrievalTask(tiny._replace(groups=Groups({first: "x"}, {})), task.embedder)
    assert other.table("test").groups == ("x", *[""] * 6)
    assert (other.table("test").ndcg == task.table("test").ndcg).all()


def test_a_split_without_queries(tiny_folder):
    task = RetrievalTask(load_collection(str(tiny_folder)), untrained_embedder([], SHAPE))
    assert len(task.table("encoder")) == 0


def test_a_large_collection_is_ranked_over_candidates(tiny, monkeypatch):
    queries = tiny.splits["train"]
    lists = [
        np.array([int(name[1:]) for name in grades] + [25, 26]) for grades in queries.relevance
    ]
    monkeypatch.setattr(maw_gym.tables.task, "candidate_documents", lambda *_: lists)
    monkeypatch.setattr("maw_gym.corpora.collection.SMALL", 5)
    other = tiny._replace(provenance={**tiny.provenance, "content": "with candidates"})
    task = RetrievalTask(other, spread_out(tiny))
    assert task.candidates("train", judged=False) is lists
    assert [row.tolist() for row in task.candidates("train")] == [row.tolist() for row in lists]
    assert task.table("train").ndcg.min() >= 0.5  # one relevant document among three
    assert_table_is_evaluation(task, "train", [[0] * len(lists), [3] * len(lists)])
    _, ranking = task.evaluate("train", k=5)
    assert (ranking.documents[:, :3] >= 0).all()
    assert (ranking.documents[:, 3:] == -1).all()


def test_the_table_does_not_depend_on_the_number_of_threads(task, monkeypatch):
    monkeypatch.setattr(maw_gym.encoders.embedder, "BATCH_TOKENS", 32)  # several batches
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(task._columns("train", 0))
    torch.set_num_threads(before)
    for name, column in found[0].items():
        assert (found[1][name] == column).all(), name


def test_judgments_give_queries_to_learn_from_their_relevant_documents(tiny, monkeypatch):
    """They are ranked, so that there is something to learn, and are not observed."""
    found = {
        split: [np.array([25, 26])] * len(tiny.splits[split].ids) for split in ("train", "test")
    }
    monkeypatch.setattr(
        maw_gym.tables.task, "candidate_documents", lambda _, split, bm25: found[split]
    )
    monkeypatch.setattr("maw_gym.corpora.collection.SMALL", 5)
    other = tiny._replace(provenance={**tiny.provenance, "content": "two candidates"})
    task = RetrievalTask(other, spread_out(tiny))
    relevant = [int(name[1:]) for grades in tiny.splits["train"].relevance for name in grades]
    assert [row.tolist() for row in task.candidates("train")] == [[25, 26, d] for d in relevant]
    assert task.candidates("test") is found["test"]
    documents = task.index.vectors[[25, 26]]
    for split in ("train", "test"):
        table = task.table(split)
        for depth in range(4):
            chosen = torch.full((len(table),), depth)
            embedded = task.embedder.encode_queries(other.splits[split].texts, chosen)
            highest = (embedded @ documents.T).amax(1)
            assert table.block("retrieval")[:, depth] == pytest.approx(highest.numpy(), abs=1e-5)
    assert task.table("train").ndcg.min() >= 0.5
    assert task.table("test").ndcg.max() == 0


def test_retrieval_is_what_searches_find(task, tiny):
    table = task.table("test")
    assert table.block("retrieval").shape == (7, 44)
    texts = tiny.splits["test"].texts
    firsts = []
    for depth in range(4):
        embedded = task.embedder.encode_queries(texts, torch.full((7,), depth))
        scores, documents = rank(task.index, embedded, 30)
        firsts.append(documents[:, 0].numpy())
        kinds = table.block("retrieval").reshape(7, 11, 4)[:, :, depth]
        close = {"abs": 1e-5}
        assert kinds[:, 0] == pytest.approx(scores[:, 0].numpy(), **close)
        assert kinds[:, 1] == pytest.approx((scores[:, 0] - scores[:, 1]).numpy(), **close)
        assert kinds[:, 2] == pytest.approx((scores[:, 0] - scores[:, 9]).numpy(), **close)
        ten = scores[:, :10]
        assert kinds[:, 3] == pytest.approx(ten.mean(1).numpy(), **close)
        assert kinds[:, 4] == pytest.approx(ten.std(1, correction=0).numpy(), **close)
        assert kinds[:, 6] == pytest.approx(scores.mean(1).numpy(), **close)  # all 30 there are
    same = (np.array(firsts)[:, None] == np.array(firsts)[None]).mean(0)
    assert table.block("retrieval")[:, 40:] == pytest.approx(same.T, abs=1e-6)


# --- what is kept on disk --------------------------------------------------------------------


def test_a_second_task_reads_what_the_first_has_built(home, tiny, monkeypatch):
    first = RetrievalTask(tiny, spread_out(tiny))
    table = first.table("test")
    assert first.table("test") is table

    def encoded_again(*_, **__):
        pytest.fail("encoded again")

    monkeypatch.setattr(Embedder, "statistics", encoded_again)
    monkeypatch.setattr(Embedder, "encode_documents", encoded_again)
    second = RetrievalTask(tiny, spread_out(tiny))
    assert second.key == first.key
    assert (second.table("test").ndcg == table.ndcg).all()
    assert torch.equal(second.index.scores(torch.eye(256)), first.index.scores(torch.eye(256)))
    (path,) = (home / "tables").glob("*.safetensors")
    assert path.name == f"{first.key}-test.safetensors"


@pytest.mark.parametrize("folder", ["documents", "tables"])
def test_a_damaged_file_is_built_again(home, tiny, folder):
    expected = RetrievalTask(tiny, spread_out(tiny)).table("test").ndcg.tolist()
    (path,) = (home / folder).glob("*.safetensors")
    content = path.read_bytes()
    for damaged in (content[:-1], b"", b"\0" * len(content), content[:8] + b"[" * 10_000):
        path.write_bytes(damaged)
        task = RetrievalTask(tiny, spread_out(tiny))
        assert task.table("test").ndcg.tolist() == expected
        assert len(task.index) == 30
        assert path.read_bytes() == content


def test_a_warm_cache_is_used_without_writing_to_it(home, tiny, monkeypatch):
    def numbers():
        task = RetrievalTask(tiny, spread_out(tiny))
        task.bm25  # noqa: B018
        return task.table("test").ndcg.tolist(), task.index.vectors.tolist()

    first = numbers()

    def refuse(name, *_):
        raise PermissionError(13, "Permission denied", str(name))

    # For the superuser, who runs some tests, no folder is read only.
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert numbers() == first


def test_the_key_covers_all_that_numbers_depend_on(tiny):
    embedder = spread_out(tiny)
    tasks = [
        RetrievalTask(tiny, embedder),
        RetrievalTask(tiny._replace(provenance={"content": "other"}), embedder),
        RetrievalTask(tiny, untrained_embedder(tiny.doc_texts, SHAPE)),
        RetrievalTask(tiny, Embedder(embedder.text, embedder.encoder, query_tokens=63)),
        RetrievalTask(tiny, Embedder(embedder.text, embedder.encoder, document_tokens=255)),
        RetrievalTask(tiny, untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))),
        RetrievalTask(tiny, untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0, heads=4))),
    ]
    assert len({task.key for task in tasks}) == len(tasks)
    assert RetrievalTask(tiny._replace(name="renamed"), embedder).key == tasks[0].key


# --- attention and texts ---------------------------------------------------------------------


def test_attention_is_a_slice_of_the_5d_tensor(task, tiny):
    for split, row in (("test", 0), ("train", 1), ("validation", 4)):
        query_id, text = tiny.splits[split].ids[row], tiny.splits[split].texts[row]
        assert task.query_text(query_id) == text
        (ids,) = task.embedder.text.tokenize([text])
        hidden = task.embedder.text.hidden(torch.tensor([ids]))
        mask = torch.ones(1, len(ids), dtype=torch.bool)
        with torch.no_grad():
            whole = task.embedder.maw.depth_attention(hidden, mask)[0].numpy()
        for depth in range(4):
            weights, tokens = task.attention(query_id, depth)
            assert weights.shape == (8, len(ids), len(ids))
            assert weights.dtype == np.float32
            assert weights.sum(-1) == pytest.approx(np.ones((8, len(ids))), abs=1e-5)
            assert np.abs(weights - whole[..., depth]).max() <= 1e-6
            assert tokens == task.embedder.text.tokens(ids)
    assert "".join(tokens).replace("▁", " ").split() == text.split()


def test_attention_agrees_with_the_table(task, tiny):
    table = task.table("test")
    for row, query_id in enumerate(table.query_ids):
        for depth in range(4):
            weights, _ = task.attention(query_id, depth)
            focus = weights.max(-1).mean()
            assert table.focus[row, depth] == pytest.approx(focus, abs=1e-5)


def test_attention_of_a_query_without_tokens_and_of_a_long_one(tiny):
    queries = tiny.splits["train"]._replace(texts=("", "honey " * 100))
    task = RetrievalTask(
        tiny._replace(splits={**tiny.splits, "train": queries}), untrained_embedder([], SHAPE)
    )
    weights, tokens = task.attention(queries.ids[0], 0)
    assert (weights.shape, tokens) == ((8, 0, 0), [])
    weights, tokens = task.attention(queries.ids[1], 0)
    assert (weights.shape, len(tokens)) == ((8, 64, 64), 64)


@pytest.mark.parametrize("depth", [-1, 4])
def test_attention_of_a_depth_that_does_not_exist(task, depth):
    with pytest.raises(InputError, match=f"^depth must be .* from 0 to 3, got {depth}$"):
        task.attention("q0", depth)


def test_an_unknown_query(task, tiny):
    for ask in (task.query_text, lambda name: task.attention(name, 0)):
        with pytest.raises(InputError) as caught:
            ask("q99")
        assert str(caught.value) == f"no query 'q99' in {tiny.name!r}"


def test_a_non_maw_encoder_is_evaluated_but_has_no_table(tiny):
    task = RetrievalTask(tiny, untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0)))
    evaluation, ranking = task.evaluate("test")
    assert evaluation.mean["nDCG@10"] > 0.5
    assert ranking.documents.shape == (7, 30)
    for ask in (task.table, lambda split: task.evaluate(split, torch.zeros(7, dtype=torch.long))):
        with pytest.raises(InputError, match=r"^this encoder is NON-MAW"):
            ask("test")


# --- load_task -------------------------------------------------------------------------------


def test_equal_settings_share_one_task(tiny_folder):
    name = str(tiny_folder)
    task = load_task(name, "untrained", "cpu")
    assert load_task(dataset=name, encoder="untrained", device="cpu", fold=0) is task
    assert load_task(name, encoder="untrained", device="cpu") is task
    assert task.collection.name == name
    assert task.device == torch.device("cpu")
    if not torch.cuda.is_available():
        assert load_task(name, "untrained") is task


def test_an_encoder_from_a_file(tiny_folder, tiny, tmp_path):
    path = tmp_path / "encoder.safetensors"
    embedder = spread_out(tiny)
    save_embedder(path, embedder, {"seed": 1})
    task = load_task(str(tiny_folder), str(path), "cpu")
    assert task.embedder.fingerprint() == embedder.fingerprint()
    assert load_task(str(tiny_folder), str(path), "cpu") is task
    # Another encoder under the same name is not the one read before.
    other = untrained_embedder([], SHAPE)
    save_embedder(path, other, {})
    again = load_task(str(tiny_folder), str(path), "cpu")
    assert again.embedder.fingerprint() == other.fingerprint()


def test_a_trained_encoder_and_how_it_is_trained(tiny_folder, home, monkeypatch):
    """Collection, both stages of training, index, tables and evaluation, all from settings."""
    monkeypatch.setattr(splits, "ENCODER_MINIMUM", 0)  # the tiny collection trains an encoder
    # Without pydocs, which takes long to train on, and better than the untrained one.
    scores = {"untrained": np.zeros(2), "own pairs": np.ones(2)}
    monkeypatch.setattr(selection, "_candidates", lambda collection: {"own pairs": [collection]})
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)
    short = TrainingSettings(epochs=1, depth_epochs=1, batch_size=4)
    task = load_task(str(tiny_folder), "trained", "cpu", training=short)
    assert load_task(str(tiny_folder), "trained", "cpu", 0, None, replace(short)) is task
    assert task.encoder_provenance["chosen"] == "own pairs"
    assert task.encoder_provenance["training"]["settings"] == short.to_json()
    assert_table_is_evaluation(task, "test", [[0] * 7, [31] * 7])
    assert len(list((home / "documents").glob("*.safetensors"))) == 1
    slower = replace(short, depth_learning_rate=1e-3)
    other = load_task(str(tiny_folder), "trained", "cpu", training=slower)
    assert other is not task
    assert torch.equal(other.index.vectors, task.index.vectors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("no/such/set", "untrained", "cpu"), "no/such/set"),
        (("/no/such/folder", "untrained", "cpu"), "/no/such/folder"),
        (
            ("pydocs", "traned", "cpu"),
            "unknown encoder 'traned'; give 'untrained', 'trained' or the path of an"
            " encoder.safetensors",
        ),
        (("pydocs", "/tmp", "cpu"), "unknown encoder '/tmp'; "),
        (("pydocs", "untrained", "gpu"), "device 'gpu' is not available here; use 'cpu' or 'auto'"),
        (("pydocs", "untrained", "cpu", 7), "fold must be a whole number from 0 to 4, got 7"),
    ],
)
def test_settings_that_do_not_exist(settings, message):
    with pytest.raises(InputError) as caught:
        load_task(*settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:99", "hpu", "privateuseone", "vulkan"])
def test_devices_that_are_not_here(name):
    with pytest.raises(InputError) as caught:
        resolve_device(name)
    assert str(caught.value) == f"device {name!r} is not available here; use 'cpu' or 'auto'"


def test_devices_that_are_here():
    assert resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_depths_of_the_default_encoder_differ_and_cost_no_retrieval():
    """Trained on pydocs, judged on its test queries; the best fixed depth by training queries."""
    task = load_task("pydocs", "trained", "cpu")
    evaluation, _ = task.evaluate("test")
    standard = evaluation.mean["nDCG@10"]
    test = task.table("test")
    entropy, focus, ndcg = (values.mean(0) for values in (test.entropy, test.focus, test.ndcg))
    best = int(task.table("train").ndcg.mean(0).argmax())
    assert standard >= 0.409
    assert (np.diff(entropy) > 0).all()
    assert (np.diff(focus) < 0).all()
    assert entropy[-1] - entropy[0] >= 0.6
    assert focus[0] - focus[-1] >= 0.5
    assert ndcg.mean() >= standard - 0.005
    assert ndcg[best] >= standard
