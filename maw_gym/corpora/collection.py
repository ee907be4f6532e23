"""The records that every stage reads: queries with their judgments, and whole collections."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from maw_gym.corpora.text import comparable, normal
from maw_gym.errors import InputError

LARGEST_GRADE = 1_000_000  # trec_eval takes 8 bytes for every grade up to the largest
OWN: Final = -1  # grade of the document that is the query itself, see `without_own_documents`
# Below this many documents every query ranks the whole collection.
SMALL = 50_000


class QuerySet(NamedTuple):
    """Queries in a fixed order, each with at least one relevant document.

    Attributes:
        ids: query ids.
        texts: query texts, as they came.
        relevance: per query its judged documents, doc_id -> grade >= 0; or `OWN`.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    relevance: tuple[Mapping[str, int], ...]

    def select(self, rows: Iterable[int]) -> "QuerySet":
        """The queries of the given rows, in the rows' order."""
        rows = tuple(rows)
        return QuerySet(
            tuple(self.ids[row] for row in rows),
            tuple(self.texts[row] for row in rows),
            tuple(self.relevance[row] for row in rows),
        )


NO_QUERIES = QuerySet((), (), ())


class Groups(NamedTuple):
    """What queries and documents belong to, such as packages; ids without a group are left out.

    Attributes:
        queries: query id -> group.
        documents: document id -> group.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]


NO_GROUPS = Groups({}, {})


class Source(NamedTuple):
    """A collection as its reader found it, before queries are divided into splits.

    Attributes:
        doc_ids: unique document ids.
        doc_texts: title and text of each document.
        parts: queries by part: `encoder`, `train`, `validation`, `test`, or `all` where the source
            has no subsets.
        provenance: JSON values.
        groups: see `Groups`.
        twins: finds, by query id, what queries that must not be parted have in common; a text says
            so for itself where there is no such rule.
    """

    doc_ids: tuple[str, ...]
    doc_texts: tuple[str, ...]
    parts: Mapping[str, QuerySet]
    provenance: Mapping[str, Any]
    groups: Groups = NO_GROUPS
    twins: Callable[[], Mapping[str, str]] | None = None


class Collection(NamedTuple):
    """Documents, and queries in the four splits.

    Attributes:
        name: as it was given to `load_collection`.
        doc_ids: unique document ids.
        doc_texts: title, a space and text of each document.
        splits: exactly the keys `encoder`, `train`, `validation`, `test`.
        provenance: JSON values: where the collection came from, versions, counts, what was
            dropped, how splits were made, and `content`, the sha256 of everything above but the
            name and the groups. Later stages use `content` as their cache key.
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


def encodable(text: str) -> str:
    """`text` in its `normal` form; lone surrogates replaced by U+FFFD, and pairs of them joined."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return normal(text)


def check_id(doc_id: str, of: str) -> str:
    """The id of a document, unless it ends in the middle for trec_eval, which is written in C.

    Raises:
        InputError: it has a NUL character.
    """
    if "\0" in doc_id:
        raise InputError(f"the id of {of} has a NUL character, got {doc_id[:60]!r}")
    return doc_id


def judged_queries(
    queries: Iterable[tuple[str, str]],
    judgments: Iterable[tuple[str, str, int]],
    documents: Mapping[str, Any] | set[str],
    dropped: Counter[str],
) -> QuerySet:
    """The queries that have a relevant document.

    Args:
        queries: pairs of id and text; of equal ids the first counts.
        judgments: query id, document id, grade; of equal pairs the last counts. Grades below 0
            become 0.
        documents: what knows the ids in the collection.
        dropped: is added to: judgments of missing queries or documents, queries without a relevant
            document, queries whose id came twice.

    Raises:
        InputError: a grade is larger than trec_eval can bear.
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
            if grade > LARGEST_GRADE:
                raise InputError(
                    f"the grade of document {doc_id!r} for query {query_id!r} must be at most"
                    f" {LARGEST_GRADE}, got {grade}"
                )
            if relevance[query_id].get(doc_id, max(grade, 0)) != max(grade, 0):
                dropped["judgments that a later one contradicts"] += 1
            relevance[query_id][doc_id] = max(grade, 0)
    kept = [query_id for query_id in texts if any(relevance[query_id].values())]
    dropped["queries without a relevant document"] += len(texts) - len(kept)
    return QuerySet(
        tuple(kept),
        tuple(texts[query_id] for query_id in kept),
        tuple(relevance[query_id] for query_id in kept),
    )


def without_own_documents(
    queries: QuerySet, doc_ids: Iterable[str], doc_texts: Iterable[str]
) -> QuerySet:
    """The queries, with the grade `OWN` for a document of a query's own id and text.

    Queries of some collections are documents (ArguAna, Quora). Such a one is first in any ranking
    and no answer: it is left out of the query's rankings, as BEIR leaves it out, unless it is
    judged relevant. The document may have a title before the text.
    """
    texts = dict(zip(queries.ids, map(comparable, queries.texts), strict=True))
    own = {
        doc_id
        for doc_id, text in zip(doc_ids, doc_texts, strict=True)
        if doc_id in texts and f" {comparable(text)}".endswith(f" {texts[doc_id]}")
    }
    relevance = (
        {**grades, name: OWN} if name in own and not grades.get(name) else grades
        for name, grades in zip(queries.ids, queries.relevance, strict=True)
    )
    return queries._replace(relevance=tuple(relevance))


def content_hash(
    doc_ids: Iterable[str], doc_texts: Iterable[str], splits: Mapping[str, QuerySet]
) -> str:
    """The sha256 (hex) of all ids, texts, splits and judgments."""
    digest = hashlib.sha256()
    for text in _strings(doc_ids, doc_texts, splits):
        # The length before each string: ("ab", "c") is not ("a", "bc").
        data = text.encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


def _strings(
    doc_ids: Iterable[str], doc_texts: Iterable[str], splits: Mapping[str, QuerySet]
) -> Iterator[str]:
    for doc_id, text in zip(doc_ids, doc_texts, strict=True):
        yield doc_id
        yield text
    for split in sorted(splits):
        yield f"split {split} {len(splits[split].ids)}"
        for query_id, text, relevance in zip(*splits[split], strict=True):
            yield query_id
            yield text
            yield str(sorted(relevance.items()))
