import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.baselines import fixed_router
from agents.networks import router_settings, standardisation
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.files import save_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.errors import InputError
from maw_gym.files import fingerprint
from maw_gym.retrieval.evaluation import evaluate_rankings
from maw_gym.routers.depth_router import DepthRouter, save_router
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.task import RetrievalTask

DEPTHS = 4
BLOCKS = [
    ("attention",),
    ("profile",),
    ("content",),
    ("content", "attention"),
    ("retrieval",),
    ("retrieval", "profile"),
]


def a_router(task: RetrievalTask, blocks: tuple[str, ...]) -> DepthRouter:
    """Random directions in standardised observations, so that several depths are used."""
    given = task.table("test").observation(blocks)
    mean, scale = (torch.from_numpy(values) for values in standardisation(given))
    generator = torch.Generator().manual_seed(1)
    layers = [(torch.randn(DEPTHS, len(mean), generator=generator), torch.zeros(DEPTHS))]
    router = DepthRouter(layers, "relu", mean, scale, blocks, router_settings(task, "test"))
    assert len(set(router.predict(given)[0].tolist())) > 1
    return router.requires_grad_(False)


def a_run(folder: Path, task: RetrievalTask, router: DepthRouter) -> Path:
    save_embedder(folder / "encoder.safetensors", task.embedder, {})
    save_router(folder / "router.safetensors", router)
    return folder


@pytest.mark.parametrize("blocks", BLOCKS)
def test_text_gives_the_tables_rows(
    task: RetrievalTask, tmp_path: Path, blocks: tuple[str, ...]
) -> None:
    router = a_router(task, blocks)
    routed = RoutedEncoder.from_run(a_run(tmp_path, task, router), device="cpu")
    texts = task.collection.splits["test"].texts
    if "retrieval" in blocks:
        with pytest.raises(
            InputError, match=r"nothing to search yet; call index\(doc_ids, texts\)"
        ):
            routed.observe(texts)
        routed.index(task.collection.doc_ids, task.collection.doc_texts)
    expected = task.table("test").observation(blocks)
    np.testing.assert_allclose(routed.observe(texts), expected, atol=1e-6, rtol=0)
    # One at a time, too: batches change nothing.
    np.testing.assert_allclose(routed.observe(texts[2:3]), expected[2:3], atol=1e-6, rtol=0)
    embeddings, depths = routed.encode_query(texts), routed.route(texts)
    np.testing.assert_array_equal(depths, router.predict(expected)[0])
    assert depths.dtype == np.int64
    assert embeddings.dtype == np.float32
    really = task.embedder.encode_queries(texts, torch.from_numpy(depths))
    np.testing.assert_allclose(embeddings, really, atol=1e-6, rtol=0)


def test_search_ranks_as_the_evaluation_does(task: RetrievalTask, tmp_path: Path) -> None:
    run = a_run(tmp_path, task, a_router(task, ("attention",)))
    routed = RoutedEncoder.from_run(run, device="cpu")
    collection, queries = task.collection, task.collection.splits["test"]
    assert routed.index(collection.doc_ids, collection.doc_texts) is routed
    found = routed.search(queries.texts, k=12)
    depths = routed.route(queries.texts)
    evaluation, ranking = task.evaluate("test", torch.from_numpy(depths), k=12)
    place = {name: row for row, name in enumerate(collection.doc_ids)}
    documents = [[place[one["id"]] for one in of_query] for of_query in found]
    assert documents == ranking.documents.tolist()
    scores = [[one["score"] for one in of_query] for of_query in found]
    np.testing.assert_allclose(scores, ranking.scores, atol=1e-6)
    again = evaluate_rankings(queries, collection.doc_ids, documents)
    assert again.mean == evaluation.mean


def test_search_of_few_documents(task: RetrievalTask) -> None:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 1))
    routed.index(["bee", "tide", "empty"], ["bees make honey", "the moon lifts the sea", ""])
    found = routed.search(["honey of bees", "sea and moon"], k=10)
    assert [[one["id"] for one in of_query] for of_query in found] == [
        ["bee", "tide", "empty"],
        ["tide", "bee", "empty"],
    ]
    assert found[0][2] == {"id": "empty", "score": -2.0}
    assert 0 < found[0][0]["score"] <= 1.000001
    assert [len(of_query) for of_query in routed.search(["honey"], k=1)] == [1]
    # One text in, one list out.
    alone = routed.search("honey of bees")
    assert [one["id"] for one in alone] == ["bee", "tide", "empty"]
    assert alone[0]["score"] == pytest.approx(found[0][0]["score"], abs=1e-6)


def test_hybrid_search_is_the_evaluations(task: RetrievalTask) -> None:
    router = fixed_router(task, 1)
    router.settings["hybrid_weight"] = 0.3
    routed = RoutedEncoder(task.embedder, router)
    collection, queries = task.collection, task.collection.splits["test"]
    routed.index(collection.doc_ids, collection.doc_texts)
    weighted = RetrievalTask(task.collection, task.embedder)
    weighted.hybrid_weight = 0.3
    _, expected = weighted.evaluate_hybrid("test", torch.full((7,), 1))
    for of_query, documents in zip(
        routed.search(queries.texts, 20, hybrid=True), expected.documents.tolist(), strict=True
    ):
        names = [collection.doc_ids[document] for document in documents[:20]]
        assert [one["id"] for one in of_query] == names
    without = RoutedEncoder(task.embedder, fixed_router(task, 1))
    assert without.hybrid_weight == 0.5
    without.index(["a"], ["x"], hybrid=False)
    with pytest.raises(InputError, match="has no BM25; index the documents with hybrid=True"):
        without.search("honey", hybrid=True)
    for wrong in (1.5, "much", True, float("nan")):
        router.settings["hybrid_weight"] = wrong
        with pytest.raises(InputError, match=r"hybrid_weight of a router must lie in \[0, 1\]"):
            RoutedEncoder(task.embedder, router)


def test_documents_take_the_standard_attention(task: RetrievalTask) -> None:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 1))
    found = routed.encode_document(task.collection.doc_texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, task.index.vectors, atol=1e-6)


def test_one_text_many_texts_arrays_and_tensors(task: RetrievalTask) -> None:
    routed = RoutedEncoder(task.embedder, a_router(task, ("content",)))
    texts = ["honey of bees", "sea and moon", "a king in check"]
    for encode in (routed.encode_query, routed.encode_document):
        many = encode(texts)
        assert isinstance(many, np.ndarray)
        assert many.shape == (3, 256)
        one = encode(texts[1])
        assert one.shape == (256,)
        np.testing.assert_allclose(one, many[1], atol=1e-6)
        np.testing.assert_allclose(encode(texts, batch_size=2), many, atol=1e-6)
        tensor = encode(texts, convert_to_tensor=True, device="cpu", show_progress_bar=True)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor, many)
        with pytest.raises(InputError, match="batch_size must be a whole number of 1 or more"):
            encode(texts, batch_size=0)
        with pytest.raises(InputError, match="device 'abacus' is not available"):
            encode(texts, device="abacus")


def test_similarity_is_the_cosine(task: RetrievalTask) -> None:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 1))
    found = routed.similarity(np.array([3.0, 4.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert routed.similarity(np.zeros((2, 2)), np.eye(2)).tolist() == [[0, 0], [0, 0]]


def test_arguments_and_results_are_those_of_sentence_transformers(task: RetrievalTask) -> None:
    routed = RoutedEncoder(task.embedder, a_router(task, ("content",)))
    texts = ["honey of bees", "sea and moon", "a king in check"]
    queries, documents = routed.encode_query(texts), routed.encode_document(texts)
    np.testing.assert_array_equal(routed.encode(texts), documents)
    np.testing.assert_array_equal(routed.encode(texts, prompt_name="query"), queries)
    again = routed.encode_query(texts, prompt_name="query", normalize_embeddings=True)
    np.testing.assert_array_equal(again, queries)
    rows = routed.encode_document(texts, convert_to_numpy=False)
    assert isinstance(rows, list)
    np.testing.assert_array_equal(torch.stack(rows), documents)
    np.testing.assert_array_equal(routed.encode_documents(texts), documents)
    embeddings, depths = routed.encode_queries(texts)
    np.testing.assert_array_equal(embeddings, queries)
    np.testing.assert_array_equal(depths, routed.route(texts))
    with pytest.raises(InputError, match=r"give a list of texts, not \{'title': 'bees'\}"):
        routed.encode_document({"title": "bees"})


def test_empty_texts_and_no_texts(task: RetrievalTask) -> None:
    for blocks in (("attention", "profile"), ("content",)):
        routed = RoutedEncoder(task.embedder, a_router(task, blocks))
        embeddings, depths = routed.encode_query(["", "honey"]), routed.route(["", "honey"])
        assert not embeddings[0].any()
        assert np.linalg.norm(embeddings[1]) == pytest.approx(1.0, abs=1e-6)
        assert depths.shape == (2,)
        embeddings, depths = routed.encode_query([]), routed.route([])
        assert embeddings.shape == (0, 256)
        assert depths.shape == (0,)


@pytest.mark.parametrize(
    ("config", "dataset"),
    [
        (None, "from the router"),
        ({"settings": {"dataset": "pydocs"}}, "pydocs"),
        ({"settings": {}}, "from the router"),
        ([1], "from the router"),
    ],
)
def test_dataset_is_read_from_the_config(
    task: RetrievalTask, tmp_path: Path, config: Any, dataset: str
) -> None:
    router = fixed_router(task, 0)
    router.settings["dataset"] = "from the router"
    run = a_run(tmp_path, task, router)
    if config is not None:
        (run / "config.json").write_text(json.dumps(config))
    assert RoutedEncoder.from_run(run, "cpu").dataset == dataset
    (run / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not readable as JSON"):
        RoutedEncoder.from_run(run, "cpu")


def test_a_router_of_another_encoder_is_refused(task: RetrievalTask, tmp_path: Path) -> None:
    run = a_run(tmp_path, task, fixed_router(task, 0))
    other = untrained_embedder(["other"], EncoderSettings(depths=DEPTHS))
    save_embedder(run / "encoder.safetensors", other, {})
    with pytest.raises(InputError, match="this router was trained for encoder"):
        RoutedEncoder.from_run(run, "cpu")


def test_a_router_that_does_not_name_its_encoder_is_refused(task: RetrievalTask) -> None:
    router = fixed_router(task, 0)
    del router.settings["encoder"]
    with pytest.raises(InputError, match="this router was trained for encoder None"):
        RoutedEncoder(task.embedder, router)


def test_a_router_of_other_shapes_is_refused(task: RetrievalTask) -> None:
    about = router_settings(task, "test")
    layers = [(torch.zeros(7, 256), torch.zeros(7))]
    wrong = DepthRouter(layers, "relu", torch.zeros(256), torch.ones(256), ("content",), about)
    with pytest.raises(InputError, match="256 inputs and 7 depths; the encoder gives 256 and has"):
        RoutedEncoder(task.embedder, wrong)


def test_missing_folders_and_files(task: RetrievalTask, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run folder '.*nowhere'"):
        RoutedEncoder.from_run(tmp_path / "nowhere")
    for name in ("encoder", "router"):
        run = a_run(tmp_path, task, fixed_router(task, 0))
        (run / f"{name}.safetensors").unlink()
        with pytest.raises(InputError, match=f"no {name} file"):
            RoutedEncoder.from_run(run, "cpu")


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trap",)


@pytest.mark.parametrize("name", ["encoder", "router"])
def test_a_pickle_in_place_of_a_file_runs_nothing(
    task: RetrievalTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path, task, fixed_router(task, 0))
    for write in (pickle.dump, torch.save):
        with (run / f"{name}.safetensors").open("wb") as file:
            write(Trap(), file)
        with pytest.raises(InputError, match="not a readable safetensors file") as caught:
            RoutedEncoder.from_run(run, "cpu")
        assert "\n" not in str(caught.value)
    assert not Path("trap").exists()


def test_mistakes_in_calls(task: RetrievalTask) -> None:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 0))
    with pytest.raises(InputError, match=r"call index\(doc_ids, texts\) first"):
        routed.search(["honey"])
    with pytest.raises(InputError, match="give a list of texts, not the single text 'honey'"):
        routed.route("honey")
    with pytest.raises(InputError, match="1 document ids for 2 texts"):
        routed.index(["a"], ["x", "y"])
    with pytest.raises(InputError, match="document ids must differ; 'a' is given 2 times"):
        routed.index(["a", "b", "a"], ["x", "y", "z"])
    with pytest.raises(InputError, match="0 document ids"):
        routed.index([], [])
    with pytest.raises(InputError, match="k must be a whole number of 1 or more, got 0"):
        routed.index(["a"], ["x"]).search(["honey"], k=0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "give a list of texts, not None"),
        (3, "give a list of texts, not 3"),
        (b"honey", "texts must be strings; number 0 is 104 of type int"),
        (["honey", None], "texts must be strings; number 1 is None of type NoneType"),
        ([b"honey"], "texts must be strings; number 0 is b'honey' of type bytes"),
        ([["honey"]], "texts must be strings; number 0 is ['honey'] of type list"),
        ([1.5], "texts must be strings; number 0 is 1.5 of type float"),
    ],
)
def test_what_is_no_text_is_refused(task: RetrievalTask, texts: Any, message: str) -> None:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 0)).index(["a"], ["x"])
    calls = [
        *(routed.encode_query, routed.encode_document, routed.route),
        *(routed.observe, routed.search),
    ]
    for call in (*calls, lambda given: routed.index(["a"], given)):
        with pytest.raises(InputError) as caught:
            call(texts)
        assert str(caught.value) == message


def test_ids_are_checked_before_documents_are_encoded(
    task: RetrievalTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 0))
    monkeypatch.setattr(type(task.embedder), "encode_ids", pytest.fail)
    with pytest.raises(InputError, match="document ids must be strings; number 1 is 7 of type int"):
        routed.index(["a", 7], ["x", "y"])  # type: ignore[list-item]
    many = [str(number) for number in range(200_000)]
    start = time.perf_counter()
    with pytest.raises(InputError, match="document ids must differ; '199999' is given 2 times"):
        routed.index([*many, "199999"], [*many, ""])
    assert time.perf_counter() - start < 10  # over a minute where each id is sought in a list


@pytest.mark.parametrize("k", [0, -1, 1.5, "3", None, True])
def test_k_is_a_whole_number(task: RetrievalTask, k: Any) -> None:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 0)).index(["a"], ["x"])
    with pytest.raises(InputError) as caught:
        routed.search(["honey"], k)
    assert str(caught.value) == f"k must be a whole number of 1 or more, got {k!r}"


def test_a_pipe_or_a_huge_config_is_not_read(task: RetrievalTask, tmp_path: Path) -> None:
    run = a_run(tmp_path, task, fixed_router(task, 0))
    os.mkfifo(run / "config.json")
    with pytest.raises(InputError, match=r"config\.json is not a regular file"):
        RoutedEncoder.from_run(run, "cpu")
    (run / "config.json").unlink()
    with (run / "config.json").open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(InputError, match=r"has 4294967296 bytes, and a config\.json of a run at"):
        RoutedEncoder.from_run(run, "cpu")


def test_the_folder_of_an_unknown_user() -> None:
    with pytest.raises(InputError) as caught:
        RoutedEncoder.from_run("~nosuchuser/run")
    assert str(caught.value) == "no home folder is known for '~nosuchuser/run'; give the whole path"


def test_heads_and_cuts_are_part_of_the_encoder(task: RetrievalTask) -> None:
    router = fixed_router(task, 0)
    fewer = untrained_embedder(task.collection.doc_texts, EncoderSettings(depths=DEPTHS, heads=4))
    fewer.encoder.load_state_dict(task.embedder.encoder.state_dict())
    assert fingerprint(fewer.tensors()) == fingerprint(task.embedder.tensors())
    for other in (fewer, replace(task.embedder, query_tokens=8)):
        with pytest.raises(InputError, match="this router was trained for encoder"):
            RoutedEncoder(other, router)
