"""pydocs in the ir_datasets registry: `pydocs`, `pydocs/encoder`, `/train`, `/validation`, `/test`.

`pydocs:NAME` and its splits are entered when they are asked for. Nothing is read before a method
asks for it.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import ir_datasets
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQuery, TrecQrel
from ir_datasets.indices import DEFAULT_DOCSTORE_OPTIONS, Docstore
from ir_datasets.util import apply_sub_slice, slice_idx

from maw_gym.corpora.pydocs import NAME, installed_pydocs
from maw_gym.corpora.splits import SPLITS

QREL_DEFS: Final = {1: "the rest of a docstring that begins with the query"}
DOCUMENTATION: Final = {
    "pretty_name": "Python docstrings",
    "desc": "Docstrings of installed packages, of the standard library, numpy and torch unless"
    " others are named: the first paragraph is a query, the rest its document.",
}
NAMED: Final = rf"^({NAME}:[^/]+)(?:/({'|'.join(SPLITS)}))?$"


class DocsIter:
    """Iterator over documents in memory that can be sliced, as all of ir_datasets' can be."""

    def __init__(self, docs: Sequence[GenericDoc], bounds: slice) -> None:
        self.docs = docs
        self.slice = bounds

    def __iter__(self) -> Iterator[GenericDoc]:
        return self

    def __next__(self) -> GenericDoc:
        at = self.slice.start
        if at >= self.slice.stop:
            raise StopIteration
        self.slice = slice(at + (self.slice.step or 1), self.slice.stop, self.slice.step)
        return self.docs[at]

    def __getitem__(self, key: Any) -> "DocsIter | GenericDoc":
        if isinstance(key, slice):
            return DocsIter(self.docs, apply_sub_slice(self.slice, key))
        if isinstance(key, int):
            try:
                return next(DocsIter(self.docs, slice_idx(self.slice, key)))
            except StopIteration:
                raise IndexError(key) from None
        raise TypeError("key must be int or slice")


class PydocsStore(Docstore):
    """Look-up of documents by one of their fields."""

    def __init__(self, name: str, field: str, options: Any) -> None:
        super().__init__(GenericDoc, field, options=options)
        docs = installed_pydocs(name).docs
        by_id = field == "doc_id"
        self.docs = docs if by_id else {getattr(doc, field): doc for doc in docs.values()}

    def get_many_iter(self, doc_ids: Sequence[str]) -> Iterator[GenericDoc]:
        """The documents that there are of the given ids."""
        return (self.docs[doc_id] for doc_id in doc_ids if doc_id in self.docs)

    def count(self) -> int:
        """Number of documents."""
        return len(self.docs)


class PydocsDocs(BaseDocs):
    """The documents of the collection `name`, which all subsets share."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def docs_iter(self) -> DocsIter:
        """All documents in the order of their ids."""
        docs = tuple(installed_pydocs(self.name).docs.values())
        return DocsIter(docs, slice(0, len(docs), 1))

    def docs_cls(self) -> type[GenericDoc]:
        """The record of a document."""
        return GenericDoc

    def docs_store(
        self, field: str = "doc_id", options: Any = DEFAULT_DOCSTORE_OPTIONS
    ) -> PydocsStore:
        """Look-up by `field`."""
        return PydocsStore(self.name, field, options)

    def docs_count(self) -> int:
        """Number of documents."""
        return len(installed_pydocs(self.name).docs)

    def docs_namespace(self) -> str:
        """Name that the ids belong to."""
        return NAME

    def docs_lang(self) -> str:
        """ISO 639-1 code."""
        return "en"

    def documentation(self) -> dict[str, str]:
        """Title and description, as the YAML files of ir_datasets have them."""
        return dict(DOCUMENTATION)

    def provenance(self) -> dict[str, Any]:
        """Package versions and counts, JSON values."""
        return installed_pydocs(self.name).provenance

    def group_of(self, text_id: str) -> str:
        """The package of a query or a document."""
        return installed_pydocs(self.name).package(text_id)

    def twins(self) -> dict[str, str]:
        """Query id to what it shares with those that must not be parted from it."""
        return installed_pydocs(self.name).twins()


class PydocsQueries(BaseQueries):
    """The queries of one split, or of all."""

    def __init__(self, name: str, splits: Sequence[str]) -> None:
        super().__init__()
        self.name = name
        self.splits = splits

    def queries_iter(self) -> Iterator[GenericQuery]:
        """The queries in the order of their ids."""
        pydocs = installed_pydocs(self.name)
        return (q for q in pydocs.queries.values() if pydocs.sides[q.query_id] in self.splits)

    def queries_cls(self) -> type[GenericQuery]:
        """The record of a query."""
        return GenericQuery

    def queries_count(self) -> int:
        """Number of queries."""
        return sum(1 for _ in self.queries_iter())

    def queries_namespace(self) -> str:
        """Name that the ids belong to."""
        return NAME

    def queries_lang(self) -> str:
        """ISO 639-1 code."""
        return "en"


class PydocsQrels(BaseQrels):
    """The judgments of one split, or of all."""

    def __init__(self, name: str, splits: Sequence[str]) -> None:
        super().__init__()
        self.name = name
        self.splits = splits

    def qrels_iter(self) -> Iterator[TrecQrel]:
        """The judgments in the order of the queries' ids."""
        pydocs = installed_pydocs(self.name)
        for query_id, split in pydocs.sides.items():
            if split in self.splits:
                for doc_id in pydocs.relevance[query_id]:
                    yield TrecQrel(query_id, doc_id, 1, "0")

    def qrels_cls(self) -> type[TrecQrel]:
        """The record of a judgment."""
        return TrecQrel

    def qrels_count(self) -> int:
        """Number of judgments."""
        return sum(1 for _ in self.qrels_iter())

    def qrels_defs(self) -> dict[int, str]:
        """What the grades mean."""
        return dict(QREL_DEFS)


def register() -> None:
    """Enter the collections and their splits in the ir_datasets registry, unless they are there."""
    docs = PydocsDocs(NAME)
    subsets = {NAME: SPLITS} | {f"{NAME}/{split}": (split,) for split in SPLITS}
    for dataset_id, splits in subsets.items():
        if dataset_id not in ir_datasets.registry:
            ir_datasets.registry.register(dataset_id, _dataset(docs, splits))
    _register_named()


@functools.cache
def _register_named() -> None:
    ir_datasets.registry.register_pattern(NAMED, _named)


def _named(_: str, parts: tuple[str, str | None]) -> Dataset:
    name, split = parts
    return _dataset(PydocsDocs(name), SPLITS if split is None else (split,))


def _dataset(docs: PydocsDocs, splits: Sequence[str]) -> Dataset:
    return Dataset(docs, PydocsQueries(docs.name, splits), PydocsQrels(docs.name, splits))


register()
