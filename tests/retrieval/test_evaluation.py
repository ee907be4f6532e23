import gzip
import math

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import AP, RR, nDCG
from lattice import Lattice

from maw_gym.corpora.collection import QuerySet
from maw_gym.retrieval.evaluation import evaluate_embeddings, evaluate_rankings, write_trec_run


def query_set(*relevance):
    ids = tuple(f"q{n}" for n in range(len(relevance)))
    return QuerySet(ids, ids, relevance)


def test_measures_by_hand():
    queries = query_set(
        {"a": 1}, {"b": 2, "c": 1}, {"d": 1}, {"a": 1}, {}, {"a": -1, "b": 0, "c": 1}
    )
    documents = [[0, 1, 2], [0, 2, 1], [0, 1, 2], [-1, -1, -1], [0, 1, 2], [0, 1, 2]]
    evaluation = evaluate_rankings(queries, ("a", "b", "c", "d"), documents)
    # q1: grade 1 at rank 2, grade 2 at rank 3: (1 / 1.58496 + 2 / 2) / (2 + 1 / 1.58496) = .61991
    ndcg = (1 / math.log2(3) + 1) / (2 + 1 / math.log2(3))
    expected = {
        "nDCG@10": [1, ndcg, 0, 0, 0, 1 / 2],
        "RR@10": [1, 1 / 2, 0, 0, 0, 1 / 3],  # of a grade of 0 or below nothing is relevant
        "AP": [1, (1 / 2 + 2 / 3) / 2, 0, 0, 0, 1 / 3],
        "R@100": [1, 1, 0, 0, 0, 1],
        "Success@10": [1, 1, 0, 0, 0, 1],
    }
    assert list(evaluation.per_query) == list(expected)
    for name, values in expected.items():
        assert evaluation.per_query[name].tolist() == pytest.approx(values, abs=1e-9)
        assert evaluation.mean[name] == pytest.approx(sum(values) / 6)  # over every query
    with pytest.raises(ValueError, match="query 'q1' names a document twice"):
        evaluate_rankings(queries, ("a", "b", "c", "d"), [[0, 1], [2, 2], *[[0, 1]] * 4])
    with pytest.raises(ValueError, match=r"6 queries for rankings of shape \(1, 2\)"):
        evaluate_rankings(queries, ("a", "b", "c", "d"), [[0, 1]])


@pytest.mark.parametrize("k", [10, 83])
def test_the_written_run_scores_the_same_in_trec_eval(tmp_path, k):
    """Of many documents with equal scores, some with none."""
    data = Lattice(2)
    index, embeddings = data.index, torch.from_numpy(data.queries[:, 0])
    pairs = [zip(one.documents, one.grades, strict=True) for one in data.relevant]
    queries = query_set(*({data.ids[d]: int(grade) for d, grade in one} for one in pairs))
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
    path, packed = tmp_path / "run.trec", tmp_path / "run.trec.gz"
    scores = np.array([[0.1, -2.0, 0.0], [1.0, -np.inf, -np.inf]], np.float32)
    documents = [[1, 0, 2], [2, -1, -1]]
    for file in (path, packed):
        write_trec_run(file, ["q1", "q2"], ["a", "b%", "é"], documents, scores, "best fixed")
    assert path.read_text() == (
        "q1 Q0 b% 1 0.100000001 best_fixed\n"
        "q1 Q0 a 2 -2 best_fixed\n"
        "q1 Q0 é 3 0 best_fixed\n"
        "q2 Q0 é 1 1 best_fixed\n"
    )
    assert gzip.decompress(packed.read_bytes()) == path.read_bytes()
