import gzip
import math
from urllib.parse import unquote

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import AP, RR, nDCG

from maw_gym.corpora.collection import QuerySet
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.evaluation import (
    evaluate_embeddings,
    evaluate_rankings,
    trec_name,
    write_trec_run,
)
from maw_gym.retrieval.ranking import rankings_of_depths


def query_set(*relevance):
    ids = tuple(f"q{n}" for n in range(len(relevance)))
    return QuerySet(ids, ids, relevance)


def random_task(seed, queries=40, documents=150):
    generator = torch.Generator().manual_seed(seed)
    docs = torch.randn(documents, 16, generator=generator)
    docs[100:130] = docs[:30]  # equal documents
    docs = torch.nn.functional.normalize(docs, dim=1)
    docs[7] = 0
    rng = np.random.default_rng(seed)
    relevance = []
    embeddings = torch.zeros(queries, 16)
    for row in range(queries):
        found = rng.choice(documents, rng.integers(1, 25), replace=False)
        relevance.append({f"d{d}": int(rng.integers(1, 4)) for d in found})
        embeddings[row] = docs[found].mean(0) + 0.2 * torch.randn(16, generator=generator)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    embeddings[3] = 0
    index = DocumentIndex([f"d{n}" for n in range(documents)], docs)
    return index, query_set(*relevance), embeddings


def test_measures_by_hand():
    queries = query_set({"a": 1}, {"b": 2, "c": 1}, {"d": 1}, {"a": 1}, {})
    doc_ids = ("a", "b", "c", "d")
    documents = [[0, 1, 2], [0, 2, 1], [0, 1, 2], [-1, -1, -1], [0, 1, 2]]
    per_query = evaluate_rankings(queries, doc_ids, documents).per_query
    # q1: grade 1 at rank 2, grade 2 at rank 3: (1 / 1.58496 + 2 / 2) / (2 + 1 / 1.58496)
    ndcg = (1 / math.log2(3) + 1) / (2 + 1 / math.log2(3))  # .61991
    assert ndcg == pytest.approx(0.61991, abs=1e-5)
    expected = {
        "nDCG@10": [1, ndcg, 0, 0, 0],
        "RR@10": [1, 1 / 2, 0, 0, 0],
        "AP": [1, (1 / 2 + 2 / 3) / 2, 0, 0, 0],
        "R@100": [1, 1, 0, 0, 0],
        "Success@10": [1, 1, 0, 0, 0],
    }
    assert list(per_query) == list(expected)
    for name, values in expected.items():
        assert per_query[name].tolist() == pytest.approx(values, abs=1e-9)


def test_judgments_of_grade_zero_or_below_are_not_relevant():
    evaluation = evaluate_rankings(
        query_set({"a": -1, "b": 0, "c": 1}, {"b": 1}), "abc", [[0, 1, 2]] * 2
    )
    assert evaluation.mean["RR@10"] == pytest.approx((1 / 3 + 1 / 2) / 2)  # over every query
    assert evaluation.per_query["nDCG@10"][0] == pytest.approx(0.5)


def test_every_measure_judges_the_order_given():
    # all scores tie; trec_eval's order is c, b, a: RR@10's provider alone would take a, b, c
    index = DocumentIndex(["a", "b", "c"], torch.eye(3))
    evaluation, ranking = evaluate_embeddings(index, query_set({"c": 1}), torch.zeros(1, 3))
    assert ranking.documents.tolist() == [[2, 1, 0]]
    assert set(evaluation.mean.values()) == {1.0}


@pytest.mark.parametrize("listed", [False, True])
def test_agrees_with_the_depths_alignment_per_query(listed):
    index, queries, embeddings = random_task(0)
    lists = [np.random.default_rng(row).permutation(150)[:60] for row in range(40)]
    lists = lists if listed else None
    evaluation, _ = evaluate_embeddings(index, queries, embeddings, lists)
    alignment = rankings_of_depths(index, embeddings[:, None], index.relevant(queries), lists)
    np.testing.assert_allclose(alignment.ndcg[:, 0], evaluation.per_query["nDCG@10"], atol=1e-6)


@pytest.mark.parametrize("k", [10, 150])
def test_the_written_run_scores_the_same_in_trec_eval(tmp_path, k):
    index, queries, embeddings = random_task(2)
    evaluation, ranking = evaluate_embeddings(index, queries, embeddings, k=k)
    path = tmp_path / "runs" / "a.trec"
    scores = ranking.scores.numpy()
    write_trec_run(path, queries.ids, index.doc_ids, ranking.documents, scores, "a")
    run = list(ir_measures.read_trec_run(str(path)))
    assert np.array_equal(np.float32([line.score for line in run]), scores.ravel())
    qrels = [
        ir_measures.Qrel(query_id, doc_id, grade)
        for query_id, grades in zip(queries.ids, queries.relevance, strict=True)
        for doc_id, grade in grades.items()
    ]
    # pytrec_eval alone: it sorts the raw scores as trec_eval does
    for measure, name in ((nDCG @ 10, "nDCG@10"), (AP, "AP"), (RR, None)):
        for metric in ir_measures.pytrec_eval.iter_calc([measure], qrels, run):
            row = int(metric.query_id[1:])
            if name:
                assert metric.value == pytest.approx(evaluation.per_query[name][row], abs=1e-9)
            elif metric.value >= 0.1:
                assert metric.value == evaluation.per_query["RR@10"][row]


def test_run_file_by_hand(tmp_path):
    path = tmp_path / "run.trec"
    scores = np.array([[0.1, -2.0, 0.0], [1.0, -np.inf, -np.inf]], np.float32)
    documents = [[1, 0, 2], [2, -1, -1]]
    write_trec_run(path, ["q 1", "q2"], ["a", "b%\tc", "d%"], documents, scores, "best fixed")
    assert path.read_text() == (
        "q%201 Q0 b%25%09c 1 0.100000001 best%20fixed\n"
        "q%201 Q0 a 2 -2 best%20fixed\n"
        "q%201 Q0 d% 3 0 best%20fixed\n"
        "q2 Q0 d% 1 1 best%20fixed\n"
    )
    packed = tmp_path / "run.trec.gz"
    write_trec_run(packed, ["q 1", "q2"], ["a", "b%\tc", "d%"], documents, scores, "best fixed")
    assert gzip.decompress(packed.read_bytes()) == path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path, packed]
    assert unquote(trec_name("b%\tc\u00a0é")) == "b%\tc\u00a0é"


def test_a_run_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("old")
    with pytest.raises(IndexError):
        write_trec_run(path, ["q"], ["a"], [[0, 5]], [[1.0, 0.5]], "tag")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_rankings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 queries for rankings of shape"):
        evaluate_rankings(query_set({"a": 1}), ("a",), [[0], [0]])
    with pytest.raises(ValueError, match="0 queries for rankings"):
        evaluate_rankings(query_set(), ("a",), np.zeros((0, 1), int))
    with pytest.raises(ValueError, match="query 'q0' names a document twice"):
        evaluate_rankings(query_set({"a": 1}), ("a",), [[0, 0]])
    with pytest.raises(ValueError, match="do not fit"):
        write_trec_run(tmp_path / "x", ["q"], ["a"], [[0]], [[1.0, 2.0]], "tag")


@pytest.mark.parametrize(
    ("name", "value"),
    [("nDCG@10", 0.0), ("R@100", 2.0), ("AP", math.nan), ("RR@10", -1.0), ("AP", None)],
)
def test_a_measure_that_cannot_be_ends_the_evaluation(name, value, monkeypatch):
    whole = ir_measures.iter_calc

    def failing(measures, judged, run):
        for metric in whole(measures, judged, run):
            if str(metric.measure) != name or metric.query_id != "1":
                yield metric
            elif value is not None:  # else it is left out
                yield metric._replace(value=value)

    monkeypatch.setattr(ir_measures, "iter_calc", failing)
    with pytest.raises(FloatingPointError) as caught:
        evaluate_rankings(query_set({"a": 1}, {"b": 1}), ("a", "b"), [[0, 1], [0, 1]])
    assert str(caught.value) == (
        f"{name} of query 'q1' came out as {value or 0.0}: what computes it has failed, perhaps for"
        " want of memory"
    )
