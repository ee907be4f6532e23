"""The records that every stage reads: queries with their judgments, and whole collections."""

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from numbers import Integral
from typing import Any, Final, NamedTuple

from maw_gym.corpora.text import comparable, encodable
from maw_gym.errors import InputError, shown

LARGEST_GRADE = 1_000_000  # trec_eval takes 8 bytes for every grade up to the largest
OWN: Final = -1  # grade of the document that is the query itself, see `without_own_documents`
SMALL = 50_000  # below this many documents every query ranks the whole collection


class QuerySet(NamedTuple):
    """Queries in a fixed order, each with at least one relevant document."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]  # as they came
    relevance: tuple[Mapping[str, int], ...]  # judged documents: doc_id -> grade >= 0, or `OWN`

    def select(self, rows: Iterable[int]) -> "QuerySet":
        """The queries of the given rows, in the rows' order."""
        rows = tuple(rows)
        return QuerySet(*(tuple(of_all[row] for row in rows) for of_all in self))  # type: ignore[arg-type]


NO_QUERIES = QuerySet((), (), ())


class Groups(NamedTuple):
    """By id of a query or document its group, such as a package, where it has one."""

    queries: Mapping[str, str]
    documents: Mapping[str, str]


NO_GROUPS = Groups({}, {})


class Source(NamedTuple):
    """A collection as it was read: queries by part, which are splits, or `all` without subsets.

    Queries whose `twins` are equal must stay on one side; None: a text stands for itself.
    """

    documents: Mapping[str, str]
    parts: Mapping[str, QuerySet]
    provenance: Mapping[str, Any]
    groups: Groups = NO_GROUPS
    twins: Mapping[str, str] | None = None


class Collection(NamedTuple):
    """Documents, and queries in the four splits.

    Attributes:
        name: as it was given to `load_collection`.
        doc_ids: unique document ids.
        doc_texts: title, a space and text of each document.
        splits: exactly the keys `encoder`, `train`, `validation`, `test`.
        provenance: JSON values: where the collection came from, versions, counts, how splits were
            made, and `content`, the sha256 of ids, texts, splits and judgments, a key for caches.
        groups: see `Groups`.
    """

    name: str
    doc_ids: tuple[str, ...]
    doc_texts: tuple[str, ...]
    splits: Mapping[str, QuerySet]
    provenance: Mapping[str, Any]
    groups: Groups = NO_GROUPS

    @property
    def small(self) -> bool:
        """Whether every query ranks all documents, not BM25's candidates."""
        return len(self.doc_ids) < SMALL

    def query_groups(self, split: str) -> tuple[str, ...]:
        """The group of each query of a split; "" where it has none."""
        return tuple(self.groups.queries.get(name, "") for name in self.splits[split].ids)


def checked_id(given: Any, where: str) -> str:
    """An id as a text, which TREC run files and trec_eval, written in C, can hold."""
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    text = str(given) if whole else given
    if not isinstance(text, str) or text.split() != [text] or "\0" in text:
        raise InputError(
            f"{where}: an id must be a whole number or a text without white space and NUL, got"
            f" {shown(given)}"
        )
    return encodable(text)


def checked_grade(given: Any, where: str) -> int:
    """A grade of relevance that trec_eval can bear; those below 0 count as 0."""
    try:
        grade = float(given)
    except (TypeError, ValueError, OverflowError):
        grade = float("nan")
    if not grade.is_integer() or abs(grade) > LARGEST_GRADE:
        raise InputError(
            f"{where}: a grade must be a whole number from -{LARGEST_GRADE} to {LARGEST_GRADE}, got"
            f" {shown(given)}"
        )
    return max(int(grade), 0)


def judged_queries(
    queries: Iterable[tuple[str, str]],
    judgments: Iterable[tuple[str, str, int]],
    documents: Container[str],
    dropped: Counter[str],
) -> QuerySet:
    """The queries that have a relevant document; `dropped` counts what is left out, by reason.

    Of queries with one id the first counts, of judgments of one pair the last.
    """
    texts: dict[str, str] = {}
    for query_id, text in queries:
        if query_id in texts:
            dropped["queries with an id seen before"] += 1
        else:
            texts[query_id] = encodable(text)
    relevance: dict[str, dict[str, int]] = {query_id: {} for query_id in texts}
    for query_id, doc_id, grade in judgments:
        if query_id not in relevance:
            dropped["judgments of missing queries"] += 1
        elif doc_id not in documents:
            dropped["judgments of missing documents"] += 1
        else:
            if relevance[query_id].get(doc_id, grade) != grade:
                dropped["judgments that a later one contradicts"] += 1
            relevance[query_id][doc_id] = grade
    found = QuerySet(tuple(texts), tuple(texts.values()), tuple(relevance.values()))
    kept = [row for row, grades in enumerate(found.relevance) if any(grades.values())]
    dropped["queries without a relevant document"] += len(texts) - len(kept)
    return found.select(kept)


def without_own_documents(queries: QuerySet, documents: Mapping[str, str]) -> QuerySet:
    """The queries, with the grade `OWN` for a document of a query's own id and text.

    Queries of some collections are documents (ArguAna, Quora), perhaps after a title. Such a one is
    first in any ranking and no answer: as in BEIR it is left out, unless it is judged relevant.
    """
    relevance = []
    for name, text, grades in zip(*queries, strict=True):
        if name in documents and not grades.get(name):
            document = f" {comparable(documents[name])}"
            if document.endswith(f" {comparable(text)}"):
                grades = {**grades, name: OWN}
        relevance.append(grades)
    return queries._replace(relevance=tuple(relevance))


def content_hash(documents: Mapping[str, str], splits: Mapping[str, QuerySet]) -> str:
    """The sha256 (hex) of all ids, texts, splits and judgments."""
    strings = [text for document in documents.items() for text in document]
    for split in sorted(splits):
        strings.append(f"split {split} {len(splits[split].ids)}")
        for query_id, text, relevance in zip(*splits[split], strict=True):
            strings += [query_id, text, str(sorted(relevance.items()))]
    digest = hashlib.sha256()
    for data in map(str.encode, strings):
        digest.update(b"%d:" % len(data) + data)  # ("ab", "c") is not ("a", "bc")
    return digest.hexdigest()
