"""pydocs: real text on every machine. Docstrings of the standard library, numpy and torch.

A query is the first paragraph of a docstring, its document the rest of it. CodeSearchNet (Husain
et al. 2019, arXiv:1909.09436) pairs docstrings and code the same way.
"""

import functools
import importlib.metadata
import logging
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ir_datasets.formats import GenericDoc, GenericQuery

from maw_gym.corpora import docstrings
from maw_gym.corpora.docstrings import Docstring
from maw_gym.corpora.near_duplicates import near_duplicates
from maw_gym.corpora.splits import ENDS, SPLITS, fraction, normalised, side
from maw_gym.errors import InputError
from maw_gym.files.cache import cache_home, content_key, kept_or_built
from maw_gym.files.tensor_files import read_tensors, write_tensors

logger = logging.getLogger(__name__)

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

    docs: dict[str, GenericDoc]
    queries: dict[str, GenericQuery]
    sides: dict[str, str]
    relevance: dict[str, list[str]]
    provenance: dict[str, Any]


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
    parent = list(range(len(docs)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for _, _, rows in queries.values():
        first, *others = rows
        for other in others:
            parent[root(other)] = root(first)
    for one, other in near_duplicates([text.split() for text in documents], NEAR_DUPLICATE):
        parent[root(one)] = root(other)
    component = {text: root(next(iter(rows))) for text, (_, _, rows) in queries.items()}
    smallest: dict[int, str] = {}
    for text in sorted(queries, reverse=True):
        smallest[component[text]] = text
    return {
        "docs": docs,
        "queries": [
            [name, query, side(fraction(smallest[component[text]])), [docs[row][0] for row in rows]]
            for text, (name, query, rows) in queries.items()
        ],
    }


def read_pydocs(roots: Mapping[str, Path], versions: Mapping[str, str]) -> Pydocs:
    """Read the collection from its cache, or from the sources, which takes some ten seconds.

    Args:
        roots: source folders by the name of their package.
        versions: of the packages. They, the names and sizes of all source files and the settings
            of this module are the key of the cache.
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
    path = cache_home() / NAME / f"{content_key(settings)}.safetensors"
    built: list[dict[str, Any]] = []

    def build() -> dict[str, Any]:
        built.append(_from_sources(roots, files, versions))
        write_tensors(path, {}, NAME, built[0])
        return built[0]

    try:
        content = kept_or_built(path, lambda path: read_tensors(path, NAME).settings, build)
    except InputError as problem:
        logger.warning("pydocs is not cached: %s", problem)
        content = built[0] if built else _from_sources(roots, files, versions)
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
def installed_pydocs() -> Pydocs:
    """The collection of this machine; read once in a process."""
    packages = {name: importlib.metadata.version(name) for name in docstrings.PACKAGES}
    versions = {"python": platform.python_version(), **packages}
    return read_pydocs(docstrings.installed_roots(), versions)
