"""Search the documents of a trained run's collection, through the depth that its router chooses.

`maw-gym search runs/NAME "how do I read a file line by line"`; without a query it stays open and
reads queries from its input, one a line.
"""

import io
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated, ClassVar

from maw_gym.errors import InputError, printable
from maw_gym.runners.experiments.command_line import Flag
from maw_gym.runners.experiments.runs import run_main
from maw_gym.settings import Count, HomePath, HomeText, checked

LONGEST = 200  # characters of a line that nobody looks at on a terminal


@checked
class SearchSettings:
    """Which run is asked what."""

    main_flags: ClassVar = ("k", "hybrid", "dataset", "device")
    run: Annotated[HomePath, Flag(positional=True)]
    """folder of a training run, with encoder.safetensors and router.safetensors"""
    query: Annotated[str | None, Flag(positional=True)] = None
    """what is searched for, in quotes (left out, queries are typed, one a line)"""
    k: Count = 10
    """documents to print"""
    hybrid: bool = False
    """fuse the cosines with BM25, whose scores are no cosines"""
    dataset: HomeText | None = None
    """an ir_datasets id or a folder in BEIR's layout; the run's own unless given"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""


def main(settings: SearchSettings) -> None:
    """Print the depth, and of the best documents rank, score, id and the first line of the text."""
    # Late: nothing of training is imported, nor waited for.
    from maw_gym.corpora import load_collection
    from maw_gym.retrieval.index import SearchIndex
    from maw_gym.routers.routed_encoder import RoutedEncoder
    from maw_gym.run import Run
    from maw_gym.tables.task import RetrievalTask

    if settings.query is not None and not settings.query.strip():
        raise InputError(f"the query is {settings.query!r}; give some words")
    routed = RoutedEncoder.from_run(settings.run, settings.device)
    dataset = settings.dataset
    collection = Run(settings.run).collection() if dataset is None else load_collection(dataset)
    # The task keeps the documents' embeddings on disk: only the first search encodes them.
    task = RetrievalTask(collection, routed.embedder, routed.embedder.device)
    bm25 = task.bm25 if settings.hybrid else None
    encoder = routed.embedder.fingerprint()
    routed.documents = SearchIndex(task.index, encoder, bm25, texts=collection.doc_texts)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else LONGEST
    for query in [settings.query] if settings.query else _queries():
        found = routed.search(query, settings.k, hybrid=settings.hybrid, texts=True)
        print(f"depth {routed.route([query])[0]}")
        for rank, one in enumerate(found, 1):
            first = next(iter(one["text"].strip().splitlines()), "")
            line = printable(f"{rank:3}  {one['score']:7.4f}  {one['id']}  {first}")
            print(line if len(line) <= width else line[: width - 1] + "…")
        sys.stdout.flush()
        if getattr(sys.stdout, "lost", False):
            return  # nobody reads the answers


def _queries() -> Iterator[str]:
    """Lines of the input that hold words."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
        if sys.stdin.isatty():
            print("queries, one a line:", file=sys.stderr, flush=True)
    for line in sys.stdin or ():
        if line.strip():
            yield line.strip()


if __name__ == "__main__":
    run_main(SearchSettings, main)
