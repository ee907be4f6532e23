"""PyTerrier's own pipelines and experiments over a routed encoder; no Java is needed for these."""

import importlib
import sys

import pytest
import torch

pt = pytest.importorskip("pyterrier")
pd = pytest.importorskip("pandas")

from ir_measures import RR, nDCG  # noqa: E402

from maw_gym.agents.baselines import fixed_router  # noqa: E402
from maw_gym.errors import InputError  # noqa: E402
from maw_gym.pyterrier import RoutedRetriever  # noqa: E402
from maw_gym.routers.routed_encoder import RoutedEncoder  # noqa: E402


@pytest.fixture(scope="module")
def routed(task):
    routed = RoutedEncoder(task.embedder, fixed_router(task, 2), "tiny")
    return routed.index(task.collection.doc_ids, task.collection.doc_texts)


def test_every_query_gets_its_documents_ranked(routed):
    topics = pd.DataFrame({"qid": ["x", "y"], "query": ["bees and honey", "moon"], "kind": [1, 2]})
    frame = RoutedRetriever(routed, 3).transform(topics)
    assert frame.columns.tolist() == ["qid", "query", "kind", "docno", "score", "rank"]
    assert frame["qid"].tolist() == ["x"] * 3 + ["y"] * 3
    assert frame["rank"].tolist() == [0, 1, 2] * 2
    assert frame["docno"].tolist()[3:] == [one["id"] for one in routed.search("moon", 3)]
    assert RoutedRetriever(routed, 3, hybrid=True).search("honey")["docno"][0] == "d0"
    nothing = RoutedRetriever(routed).transform(topics[:0])
    assert nothing.columns.tolist() == frame.columns.tolist()


def test_an_experiment_measures_what_the_evaluation_does(routed, task):
    queries = task.collection.splits["test"]
    topics = pd.DataFrame({"qid": queries.ids, "query": queries.texts})
    pairs = zip(queries.ids, queries.relevance, strict=True)
    qrels = [(query_id, *judgment) for query_id, grades in pairs for judgment in grades.items()]
    qrels = pd.DataFrame(qrels, columns=["qid", "docno", "label"])
    retrievers = [RoutedRetriever(routed), RoutedRetriever(routed, 1)]
    table = pt.Experiment(retrievers, topics, qrels, [nDCG @ 10, RR @ 10], names=["all", "first"])
    evaluation, _ = task.evaluate("test", torch.full((len(queries.ids),), 2))
    for name in ("nDCG@10", "RR@10"):
        assert table[name][0] == pytest.approx(evaluation.mean[name])
        assert table[name][1] <= table[name][0]


def test_without_pyterrier_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyterrier", None)
    monkeypatch.delitem(sys.modules, "maw_gym.pyterrier")
    message = r"^maw_gym.pyterrier needs PyTerrier; .* pip install 'maw_gym\[pyterrier\]'$"
    with pytest.raises(InputError, match=message):
        importlib.import_module("maw_gym.pyterrier")
