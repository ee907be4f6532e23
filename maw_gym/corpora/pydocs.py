"""pydocs: real text on every machine. Docstrings of the standard library, numpy and torch.

A query is the first paragraph of a docstring, its document the rest of it. CodeSearchNet (Husain
et al. 2019, arXiv:1909.09436) pairs docstrings and code the same way. `pydocs:NAME,NAME` reads
other installed packages alike, see `maw_gym.corpora.docstrings`.

What was read is kept in one file, which another machine can use without the packages: give its path
as the dataset.
"""

import functools
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from maw_gym import files
from maw_gym.corpora import docstrings
from maw_gym.corpora.collection import Groups, QuerySet, Source
from maw_gym.corpora.docstrings import (
    DEFAULT,
    STANDARD_LIBRARY,
    Docstring,
    default_packages,
    named_packages,
)
from maw_gym.corpora.splits import ENDS, SPLITS, fraction, normalised, side
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import cache_home, cached, content_key

if TYPE_CHECKING:
    from ir_datasets.formats import GenericDoc, GenericQuery

logger = logging.getLogger(__name__)

NAME: Final = "pydocs"
KIND: Final = "pydocs"  # of files
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
    """Merge equal texts and decide the sides, as JSON values."""
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
    """Per query the smallest text of its component, by which the component is known."""
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
    """Read the collection from its cache, or from the sources, which takes some ten seconds."""
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
    """The collection in a file that `read_pydocs` has left in its cache, on whichever machine."""
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
    """The collection of this machine called `name`; read once in a process."""
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


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of a cache file, made first where it is not there or is damaged."""
    made: list[dict[str, Any]] = []

    def build() -> dict[str, Any]:
        made.append(make())
        return made[0]

    try:
        return cached(path, build, write_content, read_content)
    except InputError as problem:
        logger.warning("pydocs is not cached: %s", problem)
        return made[0] if made else make()


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `read_content` reads."""
    # Bytes of a tensor: the settings of a file have a limit that large collections exceed.
    data = json.dumps(content, separators=(",", ":")).encode()
    files.write(path, {"json": torch.from_numpy(np.frombuffer(data, np.uint8).copy())}, KIND, {})


def read_content(path: Path) -> dict[str, Any]:
    """What a file holds."""
    tensors = files.read(path, KIND).tensors
    try:
        content: Any = json.loads(bytes(tensors["json"].numpy()))
    except (KeyError, TypeError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} has no JSON object in it; give another {KIND} file")
    return content


def check_pydocs(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse what is no collection; others may have made the file."""
    try:
        docs = [(str.encode(doc_id), str.encode(text))[0] for doc_id, text in content["docs"]]
        known, ids = set(docs), set()
        for query_id, text, split, relevant in content["queries"]:
            ids.add((str.encode(query_id), str.encode(text))[0])
            if split not in SPLITS or not relevant or not known >= set(map(str.encode, relevant)):
                raise ValueError(f"query {query_id[:60]!r} has no documents or no split")
        for package, version in content["provenance"]["versions"].items():
            str.encode(package), str.encode(version)
        if len(known) != len(docs) or len(ids) != len(content["queries"]):
            raise ValueError("an id is given twice")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a pydocs collection ({type(error).__name__}: {error}); give another"
        ) from None


def near_duplicates(
    texts: Sequence[Sequence[str]], threshold: float, size: int = 3
) -> Iterator[tuple[int, int]]:
    """Pairs of texts whose word n-grams have a Jaccard similarity over `threshold`."""
    grams = [set(zip(*(words[k:] for k in range(size)), strict=False)) for words in texts]
    count = Counter(gram for text in grams for gram in text)
    # An n-gram of one text only leads to no other: it takes a place in the prefix, no more.
    shared = [gram for gram, texts_with_it in count.items() if texts_with_it > 1]
    # Which of two n-grams is the rarer must be the same for all texts.
    rank = {gram: place for place, gram in enumerate(sorted(shared, key=lambda g: (count[g], g)))}
    ranked = [sorted(rank[gram] for gram in text if gram in rank) for text in grams]
    sets = [frozenset(text) for text in ranked]
    index: defaultdict[int, list[int]] = defaultdict(list)
    for current in sorted(range(len(grams)), key=lambda i: len(grams[i])):
        length = len(grams[current])
        alone = length - len(ranked[current])
        prefix = ranked[current][: max(0, length - int(threshold * length) - alone)]
        candidates = {other for gram in prefix for other in index[gram]}
        for other in sorted(candidates):
            if len(grams[other]) <= threshold * length:
                continue
            common = len(sets[current] & sets[other])
            if common / (length + len(grams[other]) - common) > threshold:
                yield other, current
        for gram in prefix:
            index[gram].append(current)
