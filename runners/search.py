"""Search the documents of a trained run's collection, through the depth that its router chooses.

`maw-gym search runs/NAME "how do I read a file line by line"`
"""

import shutil
import sys
from typing import Annotated, ClassVar

from maw_gym.errors import InputError, printable
from maw_gym.settings import Count, HomePath, HomeText, checked
from runners.experiments.command_line import Flag
from runners.experiments.runs import run_main

LONGEST = 200  # characters of a line that nobody looks at on a terminal


@checked
class SearchSettings:
    """Which run is asked what."""

    main_flags: ClassVar = ("k", "hybrid", "dataset", "device")
    run: Annotated[HomePath, Flag(positional=True)]
    """folder of a training run, with encoder.safetensors and router.safetensors"""
    query: Annotated[str, Flag(positional=True)]
    """what is searched for, in one word of the shell: quote it"""
    k: Count = 10
    """documents to print"""
    hybrid: bool = False
    """fuse the cosines with BM25, whose scores are no cosines"""
    dataset: HomeText | None = None
    """an ir_datasets id or a folder in BEIR's layout; the run's own unless given"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""


def main(settings: SearchSettings) -> None:
    """Print the best documents: score, id and the first line of the text."""
    from maw_gym.corpora import load_collection
    from maw_gym.retrieval.index import SearchIndex
    from maw_gym.routers.routed_encoder import RoutedEncoder
    from maw_gym.run import Run
    from maw_gym.tables.task import RetrievalTask

    if not settings.query.strip():
        raise InputError(f"the query is {settings.query!r}; give some words")
    routed = RoutedEncoder.from_run(settings.run, settings.device)
    dataset = settings.dataset
    collection = Run(settings.run).collection() if dataset is None else load_collection(dataset)
    # The task keeps the documents' embeddings on disk: only the first search encodes them.
    task = RetrievalTask(collection, routed.embedder, routed.embedder.device)
    bm25 = task.bm25 if settings.hybrid else None
    routed.documents = SearchIndex(task.index, routed.embedder.fingerprint(), bm25)
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    found = routed.search(settings.query, settings.k, hybrid=settings.hybrid)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else LONGEST
    for document in found:
        first = next(iter(texts[document["id"]].strip().splitlines()), "")
        line = printable(f"{document['score']:7.4f}  {document['id']}  {first}")
        print(line if len(line) <= width else line[: width - 1] + "…")


if __name__ == "__main__":
    run_main(SearchSettings, main)
