"""pydocs: real text on every machine. Docstrings of the standard library, numpy and torch.

A query is the first paragraph of a docstring, its document the rest of it. CodeSearchNet (Husain
et al. 2019, arXiv:1909.09436) pairs docstrings and code the same way. `pydocs:NAME,NAME` reads
other installed packages alike, see `maw_gym.corpora.packages`.

What was read is kept in one file, which another machine can use without the packages: give its path
as the dataset.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from maw_gym.corpora import docstrings
from maw_gym.corpora.docstrings import Docstring
from maw_gym.corpora.near_duplicates import near_duplicates
from maw_gym.corpora.packages import DEFAULT, STANDARD_LIBRARY, default_packages, named_packages
from maw_gym.corpora.pydocs_files import check_pydocs, kept, read_content
from maw_gym.corpora.records import Groups, QuerySet, Source
from maw_gym.corpora.splits import ENDS, SPLITS, fraction, normalised, side
from maw_gym.errors import InputError
from maw_gym.files import cache_home, content_key

if TYPE_CHECKING:
    from ir_datasets.formats import GenericDoc, GenericQuery

NAME: Final = "pydocs"
NEAR_DUPLICATE: Final = 0.7  # Jaccard similarity of word 3-grams
# Raise it with any change of what is read, joined or stored.
FORMAT: Final = 1


class Pydocs(NamedTuple):
    """The collection in memory.

    Attributes:
        docs: by document id, ids are qualified names.
        queries: by query id.
        sides: by query id, the split.
        relevance: by query id, its relevant documents' ids.
        provenance: versions and counts, JSON values.
    """

    docs: "dict[str, GenericDoc]"
    queries: "dict[str, GenericQuery]"
    sides: dict[str, str]
    relevance: dict[str, list[str]]
    provenance: dict[str, Any]

    def package(self, text_id: str) -> str:
        """The package that a query or a document comes from; "python" is the standard library."""
        head = re.split("[.#]", text_id, maxsplit=1)[0]
        return head if head in self.provenance["versions"] else STANDARD_LIBRARY

    def twins(self) -> dict[str, str]:
        """Query id to the name of its component, see `build`; found once, then read from disk."""
        key = content_key(
            {
                "near_duplicate": NEAR_DUPLICATE,
                "documents": list(self.docs.values()),
                "queries": list(self.queries.values()),
                "relevance": self.relevance,
            }
        )
        path = cache_home() / NAME / f"twins-{key}.safetensors"

        def found() -> dict[str, Any]:
            row = {doc_id: row for row, doc_id in enumerate(self.docs)}
            texts = [normalised(query.text) for query in self.queries.values()]
            documents = [normalised(doc.text) for doc in self.docs.values()]
            rows = [[row[doc_id] for doc_id in self.relevance[name]] for name in self.queries]
            return dict(zip(self.queries, components(texts, documents, rows), strict=True))

        return kept(path, found)


def build(found: Sequence[Docstring]) -> dict[str, Any]:
    """Merge equal texts and decide the sides, as JSON values.

    Texts are equal if their words are. Queries that share a document, or whose documents are
    near-duplicates, form a component and stay together; the smallest text in it decides the side.

    Args:
        found: sorted by name. Of equal texts the first gives text and id.

    Returns:
        `docs`, lists of id and text; `queries`, lists of id, text, split and relevant ids.
    """
    documents: dict[str, int] = {}
    docs: list[list[str]] = []
    queries: dict[str, tuple[str, str, dict[int, None]]] = {}
    for name, query, document in found:
        row = documents.setdefault(normalised(document), len(docs))
        if row == len(docs):
            docs.append([name, document])
        queries.setdefault(normalised(query), (name, query, {}))[2][row] = None
    names = components(
        list(queries), list(documents), [list(rows) for _, _, rows in queries.values()]
    )
    return {
        "docs": docs,
        "queries": [
            [name, query, side(fraction(smallest)), [docs[row][0] for row in rows]]
            for smallest, (name, query, rows) in zip(names, queries.values(), strict=True)
        ],
    }


def components(
    queries: Sequence[str], documents: Sequence[str], relevant: Sequence[Iterable[int]]
) -> list[str]:
    """Per query the smallest text of its component, by which the component is known.

    Args:
        queries: normalised texts.
        documents: normalised texts.
        relevant: per query the rows of its documents.
    """
    parent = list(range(len(documents)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for first, *others in relevant:
        for other in others:
            parent[root(other)] = root(first)
    for one, other in near_duplicates([text.split() for text in documents], NEAR_DUPLICATE):
        parent[root(one)] = root(other)
    component = [root(next(iter(rows))) for rows in relevant]
    smallest: dict[int, str] = {}
    for text, one in zip(queries, component, strict=True):
        smallest[one] = min(text, smallest.get(one, text))
    return [smallest[one] for one in component]


def read_pydocs(roots: Mapping[str, Path], versions: Mapping[str, str], label: str = "") -> Pydocs:
    """Read the collection from its cache, or from the sources, which takes some ten seconds.

    Args:
        roots: source folders by the name of their package.
        versions: of the packages. They, the names and sizes of all source files and the settings
            of this module are the key of the cache.
        label: stands before the key in the name of the cache's file, for people.
    """
    files = {package: docstrings.source_files(root) for package, root in roots.items()}
    settings = {
        "format": FORMAT,
        "versions": dict(versions),
        "files": files,
        "left_out": sorted(docstrings.LEFT_OUT),
        "words": [*docstrings.QUERY_WORDS, docstrings.DOCUMENT_WORDS],
        "near_duplicate": NEAR_DUPLICATE,
        "ends": ENDS,
    }
    path = cache_home() / NAME / f"{label}{content_key(settings)}.safetensors"
    return _collection(kept(path, lambda: _from_sources(roots, files, versions)))


def pydocs_from_file(path: Path) -> Pydocs:
    """The collection in a file that `read_pydocs` has left in its cache, on whichever machine.

    Raises:
        InputError: the file cannot be read, is damaged, or is none.
    """
    content = read_content(path)
    check_pydocs(path, content)
    return _collection(content)


def source_of(pydocs: Pydocs) -> Source:
    """The collection without a detour through ir_datasets."""
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    for query_id, split in pydocs.sides.items():
        rows[split].append(query_id)
    parts = {
        split: QuerySet(
            tuple(ids),
            tuple(pydocs.queries[query_id].text for query_id in ids),
            tuple(dict.fromkeys(pydocs.relevance[query_id], 1) for query_id in ids),
        )
        for split, ids in rows.items()
    }
    groups = Groups(
        {query_id: pydocs.package(query_id) for query_id in pydocs.queries},
        {doc_id: pydocs.package(doc_id) for doc_id in pydocs.docs},
    )
    texts = tuple(doc.text for doc in pydocs.docs.values())
    provenance = {"source": "pydocs file", "collection": pydocs.provenance, "dropped": {}}
    return Source(tuple(pydocs.docs), texts, parts, provenance, groups, pydocs.twins)


def _collection(content: Mapping[str, Any]) -> Pydocs:
    from ir_datasets.formats import GenericDoc, GenericQuery  # late, see `register`

    return Pydocs(
        {doc_id: GenericDoc(doc_id, text) for doc_id, text in content["docs"]},
        {query[0]: GenericQuery(*query[:2]) for query in content["queries"]},
        {query[0]: query[2] for query in content["queries"]},
        {query[0]: query[3] for query in content["queries"]},
        content["provenance"],
    )


def _from_sources(
    roots: Mapping[str, Path],
    files: Mapping[str, Sequence[tuple[str, int]]],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    found, counts = docstrings.read_docstrings(roots, files)
    content = build(found)
    sides = Counter(query[2] for query in content["queries"])
    content["provenance"] = {
        "versions": dict(versions),
        **counts,
        "pairs": len(found),
        "documents": len(content["docs"]),
        "queries": {split: sides[split] for split in SPLITS},
    }
    return content


@functools.cache
def installed_pydocs(name: str = NAME) -> Pydocs:
    """The collection of this machine called `name`; read once in a process.

    Args:
        name: "pydocs", or "pydocs:" and names of packages between commas, see
            `maw_gym.corpora.packages.named_packages`.

    Raises:
        InputError: a package is not installed, or there is no docstring to read in any.
    """
    if name in (NAME, f"{NAME}:{DEFAULT}"):
        return read_pydocs(*default_packages())
    names = {one.strip() for one in name.removeprefix(f"{NAME}:").split(",")} - {""}
    if not names:
        raise InputError(f"{name!r} names no package; name some, such as pydocs:default,scipy")
    found = named_packages(sorted(names))
    collection = read_pydocs(*found, f"{found.label}-")
    if not collection.queries:
        raise InputError(f"{name!r} has no docstring of two paragraphs; name other packages")
    return collection
