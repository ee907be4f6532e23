from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.special import entr

import maw_gym.encoders.embedder
from maw_gym.corpora import load_collection, splits
from maw_gym.corpora.collection import Groups
from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.files import save_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.text import load_text_encoder
from maw_gym.encoders.training import selection
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask, load_task, resolve_device

SHAPE = EncoderSettings(depths=4)


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
    for chosen in choices:
        evaluation, _ = task.evaluate(split, torch.tensor(chosen))
        found = evaluation.per_query["nDCG@10"]
        assert np.abs(found - table.ndcg[np.arange(len(table)), chosen]).max() <= 1e-6


# --- the table and the evaluation ------------------------------------------------------------


@pytest.mark.parametrize("split", splits.SPLITS)
def test_the_table_is_the_evaluation(task, split):
    count = len(task.collection.splits[split].ids)
    fixed = [[depth] * count for depth in range(4)]
    assert_table_is_evaluation(task, split, [*fixed, [row % 4 for row in range(count)]])
    assert len(np.unique(task.table("test").ndcg.mean(0))) > 1  # or the above would say little


def test_a_transformers_table_is_its_evaluation_and_pictures_show_its_tokens(
    tiny, tiny_transformer
):
    text = load_text_encoder(str(tiny_transformer))
    embedder = untrained_embedder(tiny.doc_texts, encoder_shape(text, depths=4), text)
    with torch.no_grad():
        embedder.maw.value_proj.weight.mul_(-40)  # so that the depths rank differently
    task = RetrievalTask(tiny, embedder)
    count = len(task.table("train"))
    assert not (task.table("train").ndcg[:, 0] == task.table("train").ndcg[:, 3]).all()
    assert_table_is_evaluation(task, "train", [[depth] * count for depth in range(4)])
    _, tokens = task.attention(tiny.splits["test"].ids[0], 2)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")


def test_groups_of_queries_and_a_split_without_any(task, tiny, tiny_folder):
    assert task.table("test").groups == ()
    first = tiny.splits["test"].ids[0]
    other = RetrievalTask(tiny._replace(groups=Groups({first: "x"}, {})), task.embedder)
    assert other.table("test").groups == ("x", *[""] * 6)
    assert (other.table("test").ndcg == task.table("test").ndcg).all()
    empty = RetrievalTask(load_collection(str(tiny_folder)), task.embedder).table("encoder")
    assert {name: values.shape for name, values in empty.columns.items()} == {
        name: (0, *values.shape[1:]) for name, values in task.table("test").columns.items()
    }


def test_the_table_does_not_depend_on_the_number_of_threads(tiny, task, monkeypatch, tmp_path):
    monkeypatch.setattr(maw_gym.encoders.embedder, "BATCH_TOKENS", 32)  # several batches
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / str(threads)))
        torch.set_num_threads(threads)
        found.append(RetrievalTask(tiny, task.embedder).table("train"))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for name, column in found[0].columns.items():
        assert (found[1].columns[name] == column).all(), name


def test_of_a_large_collection_queries_to_learn_from_are_given_their_relevant_documents(
    tiny, monkeypatch, caplog
):
    """They are ranked, so that there is something to learn, and are not observed."""
    monkeypatch.setattr("maw_gym.tables.task.CANDIDATES", 2)
    monkeypatch.setattr("maw_gym.tables.task.PORTION", 2)
    monkeypatch.setattr("maw_gym.corpora.collection.SMALL", 5)
    # Every query but the last finds documents 25 and 26, whatever else it asks for.
    texts = tuple(f"honey bee{row}" if row in (25, 26) else "" for row in range(30))
    asked = {
        name: one._replace(texts=(*(f"honey {row}" for row in range(len(one.ids) - 1)), "tide"))
        for name, one in tiny.splits.items()
    }
    other = tiny._replace(provenance={"content": "two candidates"}, doc_texts=texts, splits=asked)
    task = RetrievalTask(other, spread_out(tiny))
    for split in ("encoder", "train", "test"):
        count, learned = len(asked[split].ids), split != "test"
        found = [*[[26, 25]] * (count - 1), []]
        given = [
            [*listed, *(int(name[1:]) for name in grades if learned)]
            for listed, grades in zip(found, asked[split].relevance, strict=True)
        ]
        assert [row.tolist() for row in task.candidates(split)] == given
        assert [row.tolist() for row in task.candidates(split, judged=False)] == found
        line = f"1 of {count} {split} queries share no word with any document and find nothing"
        assert line in caplog.text
        ndcg, observed = task.table(split).ndcg, task.table(split).block("retrieval")
        assert ndcg.min() >= 0.5 if learned else ndcg.max() == 0  # of three, one is relevant
        assert_table_is_evaluation(task, split, [[0] * count, [3] * count])
        _, ranking = task.evaluate(split, k=5)
        assert (ranking.documents >= 0).sum(1).tolist() == list(map(len, given))
        for depth in range(4):
            depths = torch.full((count - 1,), depth)
            embedded = task.embedder.encode_queries(asked[split].texts[:-1], depths)
            highest = (embedded @ task.index.vectors[[25, 26]].T).amax(1).tolist()
            assert observed[:, depth] == pytest.approx([*highest, 0], abs=1e-5)


def test_the_weight_leads_from_bm25_to_the_encoder_and_is_chosen_on_validation_queries(task):
    task = RetrievalTask(task.collection, task.embedder)
    weight, quality = task.hybrid_weight, {}
    for value in (weight, 0.0, 1.0):
        task.hybrid_weight = value
        quality[value] = task.evaluate_hybrid("validation")[0].mean["nDCG@10"]
    assert quality[weight] == max(quality.values())
    for depths in (None, torch.full((7,), 3)):
        alone, _ = task.evaluate("test", depths)
        assert task.evaluate_hybrid("test", depths)[0].mean == alone.mean
    task.hybrid_weight = 0.0
    bm25 = task.bm25.rank(task.collection.splits["test"].texts, 3).documents
    fused = task.evaluate_hybrid("test")[1].documents[:, :3]
    assert bm25[bm25 >= 0].tolist() == fused[bm25 >= 0].tolist()
    ranks = task.evaluate_hybrid("test", fusion="ranks")[1]
    assert ((ranks.scores[:, 0] >= 1 / 61) & (ranks.scores[:, 0] <= 2 / 61)).all()
    assert ranks.documents.sort(1).values.tolist() == [list(range(30))] * 7
    with pytest.raises(InputError, match="unknown fusion 'product'; choose one of sum, ranks"):
        task.evaluate_hybrid("test", fusion="product")


def test_a_large_collection_is_fused_over_its_candidates(tiny, monkeypatch):
    monkeypatch.setattr("maw_gym.corpora.collection.SMALL", 5)
    task = RetrievalTask(tiny, untrained_embedder((), EncoderSettings(depths=0)))
    _, ranking = task.evaluate_hybrid("test")
    for documents, given in zip(ranking.documents.tolist(), task.candidates("test"), strict=True):
        assert sorted(d for d in documents if d >= 0) == sorted(given.tolist())


# --- attention and texts ---------------------------------------------------------------------


def test_attention_is_what_the_table_has(task, tiny):
    for split, row in (("test", 0), ("train", 1), ("validation", 4)):
        query_id, text = tiny.splits[split].ids[row], tiny.splits[split].texts[row]
        table = task.table(split)
        assert (table.query_ids[row], task.query_text(query_id)) == (query_id, text)
        (ids,) = task.embedder.text.tokenize([text])
        for depth in range(4):
            weights, tokens = task.attention(query_id, depth)
            assert weights.shape == (8, len(ids), len(ids))
            assert weights.max(-1).mean() == pytest.approx(table.focus[row, depth], abs=1e-5)
            entropy = entr(weights).sum(-1).mean() / np.log(len(ids))
            assert entropy == pytest.approx(table.entropy[row, depth], abs=1e-5)
        assert "".join(tokens).replace("▁", " ").split() == text.split()


def test_attention_of_a_query_without_tokens_and_of_a_long_one(tiny):
    queries = tiny.splits["train"]._replace(texts=("", "honey " * 100))
    changed = tiny._replace(splits={**tiny.splits, "train": queries})
    task = RetrievalTask(changed, untrained_embedder([], SHAPE))
    for name, tokens in ((queries.ids[0], 0), (queries.ids[1], 64)):
        weights, shown = task.attention(name, 0)
        assert (weights.shape, len(shown)) == ((8, tokens, tokens), tokens)
    for name, depth, message in (
        (queries.ids[0], -1, "depth must be a whole number from 0 to 3, got -1"),
        ("q99", 0, f"no query 'q99' in '{tiny.name}'"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            task.attention(name, depth)


# --- load_task -------------------------------------------------------------------------------


def test_an_encoder_from_a_file(tiny_folder, tiny, tmp_path):
    path = tmp_path / "encoder.safetensors"
    # Another encoder under the same name is not the one read before.
    for embedder in (spread_out(tiny), untrained_embedder([], SHAPE)):
        save_embedder(path, embedder, {"seed": 1})
        task = load_task(str(tiny_folder), str(path), "cpu")
        assert task.embedder.fingerprint() == embedder.fingerprint()
        assert task.encoder_provenance == {"chosen": str(path), "training": {"seed": 1}}
        assert load_task(str(tiny_folder), str(path), "cpu") is task
    with pytest.raises(InputError, match=r"has a text encoder of its own; leave out 'minilm'$"):
        load_task(str(tiny_folder), str(path), "cpu", text_encoder="minilm")


def test_tasks_and_environments_stand_on_a_transformer(home, tiny_folder, tiny_transformer):
    name, text = str(tiny_folder), str(tiny_transformer)
    task = load_task(name, "untrained", "cpu", text_encoder=text)
    assert task.embedder.maw.settings == encoder_shape(task.embedder.text)
    assert load_task(name, "untrained", "cpu", fold=0, text_encoder=text) is task
    assert load_task(name, "untrained", "cpu") is not task
    settings = {"dataset": name, "device": "cpu", "split": "test", "text_encoder": text}
    env = gym.make("maw_gym:MAWDepth-v0", render_mode="ansi", **settings)
    assert env.reset(seed=0)[0].shape == (64 * 3,)
    env.step(5)
    assert "[CLS]" in env.render()


def test_a_trained_encoder_and_how_it_is_trained(tiny_folder, home, monkeypatch):
    """Collection, both stages of training, index, tables and evaluation, all from settings."""
    monkeypatch.setattr(splits, "ENCODER_MINIMUM", 0)  # the tiny collection trains an encoder
    # Without pydocs, which takes long to train on, and better than the untrained one.
    scores = {"untrained": np.zeros(2), "own pairs": np.ones(2)}
    monkeypatch.setattr(selection, "_candidates", lambda one, text: {"own pairs": [one]})
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


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:99", "hpu", "privateuseone", "vulkan"])
def test_devices_that_are_none(name):
    with pytest.raises(InputError) as caught:
        resolve_device(name)
    assert str(caught.value) == f"device {name!r} is not available here; use 'cpu' or 'auto'"
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_depths_of_the_default_encoder_differ_and_cost_no_retrieval():
    """Trained on pydocs, judged on its test queries; the best fixed depth by training queries."""
    task = load_task("pydocs", "trained", "cpu")
    standard = task.evaluate("test")[0].mean["nDCG@10"]
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
