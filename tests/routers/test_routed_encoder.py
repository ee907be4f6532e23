import time
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN

from maw_gym.agents.baselines import fixed_router
from maw_gym.agents.networks import router_settings, standardisation
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.files import save_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.errors import InputError
from maw_gym.retrieval.bm25 import BM25
from maw_gym.routers.depth_router import DepthRouter, save_router
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.task import RetrievalTask

DEPTHS = 4
TEXTS = ["honey of bees", "sea and moon", "a king in check"]


def a_router(task, blocks):
    """Random directions in standardised observations, so that several depths are used."""
    given = task.table("test").observation(blocks)
    mean, scale = (torch.from_numpy(values) for values in standardisation(given))
    generator = torch.Generator().manual_seed(1)
    layers = [(torch.randn(DEPTHS, len(mean), generator=generator), torch.zeros(DEPTHS))]
    router = DepthRouter(layers, "relu", mean, scale, blocks, router_settings(task, "test"))
    assert len(set(router.predict(given)[0].tolist())) > 1
    return router.requires_grad_(False)


def a_run(folder, task, router):
    save_embedder(folder / "encoder.safetensors", task.embedder, {})
    save_router(folder / "router.safetensors", router)
    return folder


@pytest.fixture
def fixed(task):
    """Every query through the second depth."""
    return RoutedEncoder(task.embedder, fixed_router(task, 1))


@pytest.fixture
def routed(task):
    return RoutedEncoder(task.embedder, a_router(task, ("content",)))


def ids_of(found):
    return [one["id"] for one in found]


@pytest.mark.parametrize("blocks", [("content", "attention"), ("retrieval", "profile")])
def test_text_gives_the_tables_rows(task, tmp_path, blocks):
    router = a_router(task, blocks)
    routed = RoutedEncoder.from_run(a_run(tmp_path, task, router), device="cpu")
    assert routed.dataset == task.collection.name
    texts = task.collection.splits["test"].texts
    if "retrieval" in blocks:
        with pytest.raises(InputError, match=r"nothing to search yet; call index\(doc_ids, tex"):
            routed.observe(texts)
        routed.index(task.collection.doc_ids, task.collection.doc_texts)
    expected = task.table("test").observation(blocks)
    np.testing.assert_allclose(routed.observe(texts), expected, atol=1e-6, rtol=0)
    # One at a time, too: batches change nothing.
    np.testing.assert_allclose(routed.observe(texts[2:3]), expected[2:3], atol=1e-6, rtol=0)
    embeddings, depths = routed.encode_queries(texts)
    np.testing.assert_array_equal(depths, router.predict(expected)[0])
    np.testing.assert_array_equal(routed.route(texts), depths)
    assert (embeddings.dtype, depths.dtype) == (np.float32, np.int64)
    really = task.embedder.encode_queries(texts, torch.from_numpy(depths))
    np.testing.assert_allclose(embeddings, really, atol=1e-6, rtol=0)


def test_search_ranks_as_the_evaluation_does(task, routed):
    collection, queries = task.collection, task.collection.splits["test"]
    assert routed.index(collection.doc_ids, collection.doc_texts) is routed
    found = routed.search(queries.texts, k=12)
    _, ranking = task.evaluate("test", torch.from_numpy(routed.route(queries.texts)), k=12)
    names = [[collection.doc_ids[d] for d in row] for row in ranking.documents.tolist()]
    assert list(map(ids_of, found)) == names
    scores = [[one["score"] for one in of_query] for of_query in found]
    np.testing.assert_allclose(scores, ranking.scores, atol=1e-6)


def test_search_of_few_documents(fixed):
    fixed.index(["bee", "tide", "empty"], ["bees make honey", "the moon lifts the sea", ""])
    first, second = fixed.search(["honey of bees", "sea and moon"], k=10)
    assert (ids_of(first), ids_of(second)) == (["bee", "tide", "empty"], ["tide", "bee", "empty"])
    assert first[2] == {"id": "empty", "score": -2.0}
    assert 0 < first[0]["score"] <= 1.000001
    alone = fixed.search("honey of bees", k=1)  # one text in, one list out
    assert alone == [{"id": "bee", "score": pytest.approx(first[0]["score"], abs=1e-6)}]


def test_hybrid_search_is_the_evaluations(task, fixed):
    router = fixed_router(task, 1)
    router.settings["hybrid_weight"] = 0.3
    routed = RoutedEncoder(task.embedder, router)
    collection, queries = task.collection, task.collection.splits["test"]
    routed.index(collection.doc_ids, collection.doc_texts)
    weighted = RetrievalTask(task.collection, task.embedder)
    weighted.hybrid_weight = 0.3
    _, expected = weighted.evaluate_hybrid("test", torch.full((7,), 1))
    found = routed.search(queries.texts, 20, hybrid=True)
    for of_query, documents in zip(found, expected.documents.tolist(), strict=True):
        assert ids_of(of_query) == [collection.doc_ids[document] for document in documents[:20]]
    assert fixed.hybrid_weight == 0.5


@pytest.mark.parametrize("index", ["exact", "faiss:Flat"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_documents_come_and_go(task, routed, tmp_path, index, hybrid):
    if index != "exact":
        pytest.importorskip("faiss")
    ids, texts = list(task.collection.doc_ids), list(task.collection.doc_texts)
    queries = task.collection.splits["test"].texts
    how: dict[str, Any] = {"index": index, "hybrid": hybrid}
    search = {"k": 40, "hybrid": hybrid}
    expected = routed.index(ids, texts, **how).search(queries, **search)
    routed.index(ids[:9], texts[:9], store=True, **how).add(iter(ids[9:20]), iter(texts[9:20]))
    routed.add(ids[20:], texts[20:])
    found = routed.search(queries, texts=True, **search)
    stored = dict(zip(ids, texts, strict=True))
    assert [[one.pop("text") for one in of] for of in found] == [
        [stored[name] for name in ids_of(of)] for of in expected
    ]
    # Batches of other sizes may differ in the last bit.
    close = [[one | {"score": pytest.approx(one["score"])} for one in of] for of in expected]
    assert found == close
    routed.remove(ids[3:8])
    routed.save(tmp_path)
    left = [*range(3), *range(8, len(ids))]
    for one in (routed, RoutedEncoder.load(tmp_path, "cpu")):
        found = one.search(queries, texts=True, **search)
        assert all(entry["text"] == stored[entry["id"]] for of in found for entry in of)
        one.index([ids[n] for n in left], [texts[n] for n in left], **how)
        assert list(map(ids_of, one.search(queries, **search))) == list(map(ids_of, found))


def test_mistakes_with_documents(task, fixed):
    def refused(call, message):
        with pytest.raises(InputError, match=message):
            call()

    refused(lambda: fixed.add(["a"], ["x"]), "nothing to search yet")
    fixed.index(["a", "b"], ["bees", "moon"], store=True)
    for call, message in (
        (lambda: fixed.add(["b"], ["x"]), "document ids must differ; 'b' is given 2 times"),
        (lambda: fixed.add(["c"], []), "1 document ids for 0 texts"),
        (lambda: fixed.remove(["c"]), "no document 'c' in this index"),
        (lambda: fixed.remove(["a", "b"]), "0 document ids"),
        (lambda: fixed.search("honey", only=["c"]), "no document 'c' in this index"),
        (lambda: fixed.search("honey", only="a"), "a list of document ids, not the single text"),
        (lambda: fixed.search("honey", only=[["a"]]), r"ids must be strings; number 0 is \['a'\]"),
        (lambda: fixed.search(["honey"], 0), "k must be a whole number of 1 or more, got 0"),
    ):
        refused(call, message)
    assert ids_of(fixed.search("bees")) == ["a", "b"]  # nothing has changed
    fixed.index(["a"], ["x"])
    refused(lambda: fixed.search("honey", texts=True), "index the documents with store=True")
    refused(lambda: fixed.add(["b"], ["y"]), "index them with store=True or hybrid=False")
    fixed.index(["a"], ["x"], hybrid=False)
    refused(lambda: fixed.search("honey", hybrid=True), "no BM25; index the documents with hybrid")
    router = fixed_router(task, 1)
    for wrong in (1.5, "much", True, float("nan")):
        router.settings["hybrid_weight"] = wrong
        refused(lambda: RoutedEncoder(task.embedder, router), r"hybrid_weight of .* in \[0, 1\]")


def test_words_are_counted_once_for_all_searches(fixed, monkeypatch):
    counted = Mock(wraps=BM25.of)
    monkeypatch.setattr(BM25, "of", counted)
    fixed.index(["a", "b"], ["bees", "moon"], hybrid=False, store=True)
    for only in (["b"], ["a", "b"], None):
        assert ids_of(fixed.search("moon", hybrid=True, only=only))[0] == "b"
    assert counted.call_count == 1


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_filter_leaves_the_order_of_the_others(task, routed, hybrid):
    ids, queries = task.collection.doc_ids, task.collection.splits["test"].texts
    routed.index(ids, task.collection.doc_texts, hybrid=hybrid)
    even = [name for name in ids if int(name[1:]) % 2 == 0]
    found = routed.search(queries, 5, only=even, hybrid=hybrid)
    by_rule = routed.search(queries, 5, only=lambda name: int(name[1:]) % 2 == 0, hybrid=hybrid)
    assert by_rule == found
    assert all(len(of_query) == 5 for of_query in found)
    if hybrid:  # fused scores are standardised over the candidates
        assert all(set(ids_of(of_query)) <= set(even) for of_query in found)
        everything = routed.search(queries, 100, only=even, hybrid=True)
        assert all(sorted(ids_of(of_query)) == sorted(even) for of_query in everything)
    else:
        everything = routed.search(queries, 100)
        assert found == [[one for one in of if one["id"] in even][:5] for of in everything]
    assert routed.search(queries, 5, only=[]) == [[]] * len(queries)


def test_any_model_of_sb3_is_a_retriever(task, tmp_path):
    env = GRPOEnvironment(table=task.table("train"), observation=("profile",))
    model = DQN("MlpPolicy", env, seed=0, device="cpu")
    routed = RoutedEncoder.from_model(task, model, "profile")
    texts = task.collection.splits["test"].texts
    depths, _ = model.predict(task.table("test").observation("profile"), deterministic=True)
    np.testing.assert_array_equal(routed.route(texts), depths)
    assert routed.route([]).shape == (0,)
    _, ranking = task.evaluate("test", torch.from_numpy(np.array(depths)), k=3)
    found = routed.search(texts, 3, texts=True)
    names = [[task.collection.doc_ids[d] for d in row] for row in ranking.documents.tolist()]
    assert list(map(ids_of, found)) == names
    assert found[0][0]["text"] in task.collection.doc_texts
    assert len(routed.search(texts[0], 4, hybrid=True)) == 4
    with pytest.raises(InputError, match="a model is saved by its own library"):
        routed.save(tmp_path)
    policy, box, dictionary = model.policy, env.observation_space, spaces.Dict()
    for seen, actions, message in (
        (box, spaces.MultiBinary(4), r"Discrete actions from 0; this model has M.*4"),
        (box, spaces.Discrete(4, start=1), r"Discrete actions from 0; this model has D.*4"),
        (dictionary, env.action_space, r"observes Dict.*, not a Box"),
    ):
        policy.observation_space, policy.action_space = seen, actions
        with pytest.raises(InputError, match=message):
            RoutedEncoder.from_model(task, policy)


def test_arguments_and_results_are_those_of_sentence_transformers(task, routed):
    queries, documents = routed.encode_query(TEXTS), routed.encode_document(TEXTS)
    assert (queries.shape, queries.dtype) == ((3, 256), np.float32)
    np.testing.assert_array_equal(queries, routed.encode_queries(TEXTS)[0])
    np.testing.assert_array_equal(documents, routed.encode_documents(TEXTS))
    found = routed.encode_document(task.collection.doc_texts)
    np.testing.assert_allclose(found, task.index.vectors, atol=1e-6)
    for encode, expected in ((routed.encode_query, queries), (routed.encode_document, documents)):
        np.testing.assert_allclose(encode(TEXTS[1]), expected[1], atol=1e-6)
        np.testing.assert_allclose(encode(TEXTS, batch_size=2), expected, atol=1e-6)
        tensor = encode(TEXTS, convert_to_tensor=True, device="cpu", show_progress_bar=True)
        assert torch.equal(tensor, torch.from_numpy(expected))
        rows = encode(TEXTS, convert_to_numpy=False, normalize_embeddings=True)
        np.testing.assert_array_equal(torch.stack(rows), expected)
        assert isinstance(encode(TEXTS[1], convert_to_numpy=False), torch.Tensor)
        short = expected[:, :64] / np.linalg.norm(expected[:, :64], axis=1, keepdims=True)
        np.testing.assert_allclose(encode(TEXTS, truncate_dim=64), short, atol=1e-6)
        with_prompt = encode([f"find: {text}" for text in TEXTS])
        np.testing.assert_array_equal(encode(TEXTS, prompt="find: "), with_prompt)
        with pytest.raises(InputError, match="batch_size must be a whole number of 1 or more"):
            encode(TEXTS, batch_size=0)
        with pytest.raises(InputError, match="device 'abacus' is not available"):
            encode(TEXTS, device="abacus")
        with pytest.raises(TypeError, match="unexpected argument 'batchsize'"):
            encode(TEXTS, batchsize=3)
    np.testing.assert_array_equal(routed.encode(TEXTS), documents)
    np.testing.assert_array_equal(routed.encode(TEXTS, prompt_name="query"), queries)


def test_mtebs_batches_and_words(routed):
    batches = [{"text": TEXTS[:2], "title": ["", ""]}, {"text": TEXTS[2:]}]
    about = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "batch_size": 32}
    for kind, encode in (("query", routed.encode_query), ("document", routed.encode_document)):
        found = routed.encode(iter(batches), prompt_type=kind, **about)
        np.testing.assert_array_equal(found, encode(TEXTS))
    with pytest.raises(InputError, match="texts must be strings; number 1 is 3 of type int"):
        routed.encode([{"text": ["a", 3]}])


def test_sentence_transformers_evaluates_as_we_do(task, routed):
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    queries = task.collection.splits["test"]
    relevant = {
        name: {document for document, grade in grades.items() if grade > 0}
        for name, grades in zip(queries.ids, queries.relevance, strict=True)
    }
    evaluate = evaluation.InformationRetrievalEvaluator(
        dict(zip(queries.ids, queries.texts, strict=True)),
        dict(zip(task.collection.doc_ids, task.collection.doc_texts, strict=True)),
        relevant,
        name="tiny",
    )
    found = evaluate(routed)
    expected, _ = task.evaluate("test", torch.from_numpy(routed.route(queries.texts)))
    assert evaluate.primary_metric == "tiny_cosine_ndcg@10"
    assert found["tiny_cosine_mrr@10"] == pytest.approx(expected.mean["RR@10"])
    assert found["tiny_cosine_accuracy@10"] == pytest.approx(expected.mean["Success@10"])


def test_similarity_is_the_cosine(fixed):
    found = fixed.similarity(np.array([3.0, 4.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert fixed.similarity(np.zeros((2, 2)), np.eye(2)).tolist() == [[0, 0], [0, 0]]
    one, other = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    assert fixed.similarity_pairwise(one, other).tolist() == [pytest.approx(0.6), 0]


def test_empty_texts_and_no_texts(task):
    routed = RoutedEncoder(task.embedder, a_router(task, ("attention", "profile", "content")))
    embeddings, depths = routed.encode_queries(["", "honey"])
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([0.0, 1.0], abs=1e-6)
    assert depths.shape == (2,)
    assert routed.encode_query([]).shape == (0, 256)
    assert routed.route([]).shape == (0,)


def test_routers_of_others_are_refused(task, tmp_path):
    run = a_run(tmp_path, task, fixed_router(task, 0))
    other = untrained_embedder(["other"], EncoderSettings(depths=DEPTHS))
    save_embedder(run / "encoder.safetensors", other, {})
    with pytest.raises(InputError, match="this router was trained for encoder"):
        RoutedEncoder.from_run(run, "cpu")
    # Heads and cuts are part of an encoder.
    fewer = untrained_embedder(task.collection.doc_texts, EncoderSettings(depths=DEPTHS, heads=4))
    fewer.encoder.load_state_dict(task.embedder.encoder.state_dict())
    for embedder in (fewer, replace(task.embedder, query_tokens=8)):
        with pytest.raises(InputError, match="this router was trained for encoder"):
            RoutedEncoder(embedder, fixed_router(task, 0))
    layers, about = [(torch.zeros(7, 256), torch.zeros(7))], router_settings(task, "test")
    wrong = DepthRouter(layers, "relu", torch.zeros(256), torch.ones(256), ("content",), about)
    with pytest.raises(InputError, match="256 inputs and 7 depths; the encoder gives 256 and has"):
        RoutedEncoder(task.embedder, wrong)


def test_missing_files(task, tmp_path):
    save_embedder(tmp_path / "encoder.safetensors", task.embedder, {})
    for folder, message in (
        (tmp_path, "no router file"),
        (tmp_path / "nowhere", "no run folder '.*nowhere'"),
        ("~nosuchuser/run", "no home folder is known for '~nosuchuser/run'; give the"),
    ):
        with pytest.raises(InputError, match=message):
            RoutedEncoder.from_run(folder, "cpu")


def test_what_is_no_text_is_refused(fixed):
    fixed.index(["a"], ["x"])
    calls = [fixed.encode_query, fixed.encode_document, fixed.route, fixed.observe, fixed.search]
    for call in (*calls, lambda given: fixed.index(["a"], given)):
        for texts, message in (
            (None, "give a list of texts, not None"),
            ({"title": "bees"}, "give a list of texts, not {'title': 'bees'}"),
            ([["honey"]], r"texts must be strings; number 0 is \['honey'\] of type list"),
        ):
            with pytest.raises(InputError, match=message):
                call(texts)
    with pytest.raises(InputError, match="give a list of texts, not the single text 'honey'"):
        fixed.route("honey")


def test_ids_are_checked_before_documents_are_encoded(fixed, monkeypatch):
    monkeypatch.setattr(type(fixed.embedder), "encode_ids", pytest.fail)
    many = [str(number) for number in range(200_000)]
    start = time.perf_counter()
    for ids, texts, message in (
        (["a"], ["x", "y"], "1 document ids for 2 texts"),
        ([], [], "0 document ids"),
        ("ab", ["x", "y"], "give a list of document ids, not the single text 'ab'"),
        (iter("ab"), "xy", "give a list of texts, not the single text 'xy'"),
        (["a", 7], ["x", "y"], "document ids must be strings; number 1 is 7 of type int"),
        ([*many, "199999"], [*many, ""], "document ids must differ; '199999' is given 2 times"),
    ):
        with pytest.raises(InputError, match=message):
            fixed.index(ids, texts)
    assert time.perf_counter() - start < 10  # over a minute where each id is sought in a list
