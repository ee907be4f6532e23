import ir_datasets
import pytest
from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrel

import maw_gym.corpora  # noqa: F401  (registers pydocs)
from maw_gym.corpora import pydocs_dataset
from maw_gym.corpora.pydocs import Pydocs

PYDOCS = Pydocs(
    docs={name: GenericDoc(name, f"text {name}") for name in "abcde"},
    queries={name: GenericQuery(name, f"query {name}") for name in ("a", "b", "e")},
    sides={"a": "encoder", "b": "test", "e": "test"},
    relevance={"a": ["a"], "b": ["b", "c"], "e": ["e"]},
    provenance={"documents": 5},
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(pydocs_dataset, "installed_pydocs", {"pydocs": PYDOCS}.__getitem__)


def ids(docs):
    return "".join(doc.doc_id for doc in docs)


def test_the_whole_and_a_subset():
    whole, test = ir_datasets.load("pydocs"), ir_datasets.load("pydocs/test")
    assert ids(whole.docs_iter()) == ids(test.docs_iter()) == "abcde"
    assert list(whole.queries_iter()) == list(PYDOCS.queries.values())
    assert list(test.queries_iter()) == [GenericQuery("b", "query b"), GenericQuery("e", "query e")]
    assert list(test.qrels_iter()) == [
        TrecQrel("b", "b", 1, "0"),
        TrecQrel("b", "c", 1, "0"),
        TrecQrel("e", "e", 1, "0"),
    ]
    assert test.qrels_dict() == {"b": {"b": 1, "c": 1}, "e": {"e": 1}}
    assert (test.docs_count(), test.queries_count(), test.qrels_count()) == (5, 2, 3)
    assert (whole.docs_count(), whole.queries_count(), whole.qrels_count()) == (5, 3, 4)
    assert list(ir_datasets.load("pydocs/validation").queries_iter()) == []


def test_slices_of_documents():
    dataset = ir_datasets.load("pydocs")
    assert ids(dataset.docs_iter()[1:3]) == "bc"
    assert ids(dataset.docs_iter()[: 1 / 2]) == "ab"
    assert ids(dataset.docs_iter()[1 / 2 : 1.0]) == "cde"
    assert ids(dataset.docs_iter()[-2:]) == "de"
    assert ids(dataset.docs_iter()[1:][:2]) == "bc"
    assert ids(dataset.docs_iter()[::2]) == "ace"
    assert ids(dataset.docs_iter()[3:99]) == "de"
    assert ids(dataset.docs_iter()[99:]) == ""
    assert dataset.docs_iter()[3].doc_id == "d"
    assert dataset.docs_iter()[-1].doc_id == "e"
    with pytest.raises(IndexError):
        dataset.docs_iter()[5]
    with pytest.raises(TypeError):
        dataset.docs_iter()["a"]
    docs = dataset.docs_iter()
    assert next(docs).doc_id == "a"
    assert ids(docs) == "bcde"


def test_docs_store():
    store = ir_datasets.load("pydocs/train").docs_store()
    assert store.get("c") == GenericDoc("c", "text c")
    assert store.get("c", field="text") == "text c"
    assert store.get_many(["e", "none", "a"]) == {
        "e": GenericDoc("e", "text e"),
        "a": GenericDoc("a", "text a"),
    }
    assert store.count() == 5
    with pytest.raises(KeyError):
        store.get("none")
    by_text = ir_datasets.load("pydocs").docs_store(field="text")
    assert by_text.get("text b").doc_id == "b"


def test_the_rest_of_the_interface():
    dataset = ir_datasets.load("pydocs/train")
    assert dataset.docs_cls() is GenericDoc
    assert dataset.queries_cls() is GenericQuery
    assert dataset.qrels_cls() is TrecQrel
    assert set(dataset.qrels_defs()) == {1}
    assert dataset.docs_lang() == dataset.queries_lang() == "en"
    assert dataset.docs_namespace() == dataset.queries_namespace() == "pydocs"
    assert dataset.dataset_id() == "pydocs/train"
    assert set(dataset.documentation()) == {"pretty_name", "desc"}
    assert dataset.provenance() == {"documents": 5}
    assert ir_datasets.docs_parent_id("pydocs/train") == "pydocs"
    assert len(dataset.docs.lookup(["a", "b"])) == 2
    assert len(dataset.docs) == 5
    assert dataset.docs_calc_metadata(verbose=False)["count"] == 5
