"""pydocs: real text on every machine. Docstrings of the standard library, numpy and torch.

A query is the first paragraph of a docstring, its document the rest of it. CodeSearchNet (Husain
et al. 2019, arXiv:1909.09436) pairs docstrings and code the same way. What was read is cached in
one file, which another machine can use without the packages, by its path.
"""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from maw_gym import files
from maw_gym.corpora import docstrings
from maw_gym.corpora.collection import Groups
from maw_gym.corpora.docstrings import DEFAULT, STANDARD_LIBRARY, Docstring
from maw_gym.corpora.splits import ENDS, SPLITS, fraction, side
from maw_gym.corpora.text import normalised
from maw_gym.errors import DamagedFileError, InputError, expanded, first_line

NAME: Final = "pydocs"
KIND: Final = "pydocs"  # of files
FILE: Final = ".safetensors"  # how their names end
NEAR_DUPLICATE: Final = 0.7  # Jaccard similarity of word 3-grams
# Raise it with any change of what is read, joined or stored.
FORMAT: Final = 2


class Pydocs(NamedTuple):
    """The collection: texts of documents and queries by qualified name, and who answers whom.

    The `twins` of a query is the smallest text of its component, whose hash decides its side.
    """

    docs: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, list[str]]
    twins: dict[str, str]
    provenance: dict[str, Any]

    @property
    def sides(self) -> dict[str, str]:
        """By query id, the split."""
        return {query_id: side(fraction(text)) for query_id, text in self.twins.items()}

    @property
    def groups(self) -> Groups:
        """The package of each text; "python" is the standard library."""

        def package(text_id: str) -> str:
            head = re.split("[.#]", text_id, maxsplit=1)[0]
            return head if head in self.provenance["versions"] else STANDARD_LIBRARY

        return Groups(
            {one: package(one) for one in self.queries}, {one: package(one) for one in self.docs}
        )


def build(found: Sequence[Docstring]) -> Pydocs:
    """Merge equal texts; join queries of documents that are shared or nearly equal."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    doc_ids: dict[str, str] = {}  # by normalised text, as the next
    query_ids: dict[str, str] = {}
    docs: dict[str, str] = {}
    queries: dict[str, str] = {}
    relevance: dict[str, dict[str, None]] = {}
    for name, query, document in found:
        doc_id = doc_ids.setdefault(normalised(document), name)
        query_id = query_ids.setdefault(normalised(query), name)
        docs.setdefault(doc_id, document)
        queries.setdefault(query_id, query)
        relevance.setdefault(query_id, {})[doc_id] = None
    row = {doc_id: row for row, doc_id in enumerate(docs)}
    shared = [(row[first], row[other]) for first, *others in relevance.values() for other in others]
    near = near_duplicates([text.split() for text in doc_ids], NEAR_DUPLICATE)
    edges = np.array([*shared, *near], np.int64).reshape(-1, 2).T
    size = max(len(docs), 1)
    graph = coo_array((np.ones(edges.shape[1]), tuple(edges)), (size, size))
    labels = connected_components(graph, directed=False)[1].tolist()
    component = {name: labels[row[next(iter(answers))]] for name, answers in relevance.items()}
    smallest: dict[int, str] = {}
    for text, name in query_ids.items():
        smallest[component[name]] = min(text, smallest.get(component[name], text))
    twins = {name: smallest[label] for name, label in component.items()}
    return Pydocs(docs, queries, {name: list(relevance[name]) for name in queries}, twins, {})


def near_duplicates(texts: Sequence[Sequence[str]], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of texts whose word 3-grams have a Jaccard similarity over `threshold`."""
    from scipy.sparse import csr_array

    columns: dict[tuple[str, ...], int] = {}
    grams = [
        {
            columns.setdefault(gram, len(columns))
            for gram in zip(text, text[1:], text[2:], strict=False)
        }
        for text in texts
    ]
    lengths = np.array([len(text) for text in grams], np.int64)
    ends = np.append(0, np.cumsum(lengths))
    found = np.fromiter(itertools.chain.from_iterable(grams), np.int32, ends[-1])
    has = csr_array((np.ones(len(found), np.int32), found, ends), (len(grams), len(columns)))
    for start in range(0, len(grams), 1000):
        common = (has[start : start + 1000] @ has.T).tocoo()
        one, other = common.row + start, common.col
        share = common.data / (lengths[one] + lengths[other] - common.data)
        near = (share > threshold) & (one < other)
        yield from zip(one[near].tolist(), other[near].tolist(), strict=True)


@functools.cache
def installed_pydocs(name: str = NAME) -> Pydocs:
    """The collection of this machine called `name`, from its cache or, in seconds, from sources.

    The path of a file that another machine's cache has is a name, too.
    """
    if name.endswith(FILE):
        return read_pydocs_file(expanded(name))
    names = {one.strip() for one in name.removeprefix(NAME).removeprefix(":").split(",")} - {""}
    if name == NAME:
        names = {DEFAULT}
    if not names:
        raise InputError(f"{name!r} names no package; name some, such as pydocs:default,scipy")
    roots, versions = docstrings.named_packages(names)
    sources = {package: docstrings.source_files(root) for package, root in roots.items()}
    settings = {
        "format": FORMAT,
        "versions": versions,
        "files": sources,
        "left_out": sorted(docstrings.LEFT_OUT),
        "words": [*docstrings.QUERY_WORDS, docstrings.DOCUMENT_WORDS],
        "near_duplicate": NEAR_DUPLICATE,
        "ends": ENDS,
    }
    label = "" if names == {DEFAULT} else "+".join(sorted(names))[:80] + "-"  # for people
    path = files.cache_home() / NAME / f"{label}{files.content_key(settings)}.safetensors"

    def read() -> Pydocs:
        found, counts = docstrings.read_docstrings(roots, sources)
        pydocs = build(found)
        sides = Counter(pydocs.sides.values())
        provenance = {
            "versions": versions,
            **counts,
            "pairs": len(found),
            "documents": len(pydocs.docs),
            "queries": {split: sides[split] for split in SPLITS},
        }
        return pydocs._replace(provenance=provenance)

    pydocs = files.cached(path, read, write_pydocs, read_pydocs_file)
    if not pydocs.queries:
        raise InputError(f"{name!r} has no docstring of two paragraphs; name other packages")
    return pydocs


def write_pydocs(path: Path, pydocs: Pydocs) -> None:
    """Write what `read_pydocs_file` reads."""
    import torch

    # Bytes of a tensor: the settings of a file have a limit that large collections exceed.
    data = json.dumps(pydocs._asdict(), separators=(",", ":")).encode()
    files.write(path, {"json": torch.from_numpy(np.frombuffer(data, np.uint8).copy())}, KIND, {})


def read_pydocs_file(path: Path) -> Pydocs:
    """The collection in a file of a cache, which a stranger may have made."""
    tensors = files.read(path, KIND).tensors
    try:
        pydocs = TypeAdapter(Pydocs).validate_json(bytes(tensors["json"].numpy()))
        same = pydocs.queries.keys() == pydocs.relevance.keys() == pydocs.twins.keys()
        if not same or not isinstance(pydocs.provenance["versions"], dict):
            raise ValueError("not every query has documents, or they have no versions")
        for query_id, relevant in pydocs.relevance.items():
            if not pydocs.docs.keys() >= set(relevant) > set():
                raise ValueError(f"query {query_id[:60]!r} has no documents")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} is not a pydocs collection of this version ({first_line(error)}); give another"
        ) from None
    return pydocs
