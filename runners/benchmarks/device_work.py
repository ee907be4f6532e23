"""What each process of `runners.benchmarks.several_devices` does; torchrun starts it.

The one argument is a JSON file: the name of the work, its sizes, and the folder where the first
process leaves what it has found.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file

from maw_gym.corpora import Collection, load_collection
from maw_gym.distributed import is_first, process, processes, start, stop, wait
from maw_gym.encoders.document_parts import encoded_parts
from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.encoders.text import load_text_encoder
from maw_gym.encoders.training import loop
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import train_encoder, trained_attention
from maw_gym.files import cache_home
from maw_gym.retrieval.index import PARTS, SearchIndex
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.loading import resolve_device
from runners.benchmarks.measuring import synchronize
from runners.benchmarks.search import K, random_router
from runners.experiments.runs import write_json

FOUND: Final = "found.json"
WARM_UP: Final = 8192  # documents encoded before the time counts
KILLED: Final = "killed"  # file that the process leaves which ends itself

Found = dict[str, Any]


class Rates(logging.Handler):
    """The queries per second of every epoch, from what the training loop logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.rates: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the rate of an epoch."""
        if isinstance(record.args, tuple) and len(record.args) == 4:
            self.rates.append(float(str(record.args[2])))


def training(about: dict[str, Any], device: torch.device) -> Found:
    """The first stage over a text encoder that is trained along, at several batch sizes."""
    collection = load_collection(about["dataset"])
    loop.log.setLevel(logging.INFO)
    return {"runs": [_training(collection, about, size, device) for size in about["batch_sizes"]]}


def _training(
    collection: Collection, about: dict[str, Any], batch_size: int, device: torch.device
) -> Found:
    """Pairs per second of each epoch."""
    text = load_text_encoder(about["text_encoder"])
    settings = TrainingSettings(
        epochs=about["epochs"], batch_size=batch_size, train_text_encoder=True
    )
    rates = Rates()
    loop.log.addHandler(rates)
    try:
        _, provenance = trained_attention([collection], device, settings, text=text)
    finally:
        loop.log.removeHandler(rates)
    return {
        "pairs": provenance["pairs"],
        "batch": provenance["settings"]["batch_size"],
        "pairs/s": rates.rates,
        "validation nDCG@10": provenance["attention"]["validation nDCG@10"],
    }


def search(about: dict[str, Any], device: torch.device) -> Found:
    """Documents encoded and indexed, queries encoded and searched: seconds of each step."""
    routed, texts = _encoder(device, about["search_encoder"]), Path(about["texts"])
    queries = Path(about["queries"]).read_text(encoding="utf-8").splitlines()
    with texts.open(encoding="utf-8") as lines:
        routed.encode_document(list(islice(lines, WARM_UP)))  # loads, compiles and tunes kernels
    routed.encode_query(queries)
    moments = [_moment(device)]
    index = _index(routed, about, Path(about["folder"]) / "index", moments)
    moments.append(_moment(device))
    embeddings = torch.as_tensor(routed.encode_query(queries, convert_to_tensor=True))
    moments.append(_moment(device))
    ranking = index.rank(embeddings, K)
    moments.append(_moment(device))
    if is_first():
        documents, scores = (values.cpu().numpy() for values in reversed(ranking))
        np.savez(Path(about["folder"]) / "ranking.npz", documents=documents, scores=scores)
    names = ("encode documents", "join and index", "encode queries", "search")
    taken = np.diff(moments).tolist()
    return {"seconds": dict(zip(names, taken, strict=True)) | {"all of it": sum(taken)}}


def restarted_encoding(about: dict[str, Any], device: torch.device) -> Found:
    """Documents encoded and indexed; one process ends itself when half of the parts are there."""
    place = Path(about["folder"]) / "index"
    if about["kill"]:
        _kill_last(about, lambda: len([*(place / PARTS).glob("*.safetensors")]) >= about["half"])
    _index(_encoder(device), about, place, [])
    return {}


def restarted_training(about: dict[str, Any], device: torch.device) -> Found:
    """Both stages of a training; one process ends itself after an epoch of the first."""
    deterministic()
    if about["kill"]:
        kept = cache_home() / "encoders"
        _kill_last(about, lambda: any(kept.glob("*.checkpoints/attention/*.safetensors")))
    settings = TrainingSettings(epochs=4, depth_epochs=2, batch_size=about["batch_size"])
    path = cache_home() / "encoders" / "both-stages.safetensors"
    collection = load_collection(about["dataset"])
    embedder, _ = train_encoder([collection], device, settings, checkpoint=path)
    if is_first():
        weights = {name: one.detach().cpu() for name, one in embedder.tensors().items()}
        save_file(weights, Path(about["folder"]) / "weights.safetensors")
    return {}


def deterministic() -> None:
    """Let sums of a GPU be made in the same order every time, where torch can do that."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    for kind in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(False)


def _encoder(device: torch.device, text: str = "wordllama") -> RoutedEncoder:
    embedder = untrained_embedder((), text=load_text_encoder(text))
    return RoutedEncoder(embedder, random_router(embedder), device=str(device))


def _index(
    routed: RoutedEncoder, about: dict[str, Any], place: Path, moments: list[float]
) -> SearchIndex:
    """The lines of a file indexed; when they are encoded is added to `moments`."""
    embedder, texts, count = routed.embedder, Path(about["texts"]), about["documents"]
    with texts.open(encoding="utf-8") as lines:
        ids = (f"d{number}" for number in range(count))
        parts = [
            part._replace(texts=[])  # not needed without BM25
            for part in encoded_parts(embedder, ids, lines, torch.float32, place / PARTS)
        ]
    moments.append(_moment(embedder.device))
    return SearchIndex.of(
        parts, embedder.fingerprint(), hybrid=False, folder=place, device=embedder.device
    )


def _moment(device: torch.device) -> float:
    """The time when all processes are here."""
    synchronize(device)
    wait()
    return time.perf_counter()


def _kill_last(about: dict[str, Any], due: Callable[[], bool]) -> None:
    """End the last process by SIGKILL as soon as `due`, unless it was started again already."""
    if process() != processes() - 1 or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return

    def watch() -> None:
        while not due():
            time.sleep(0.002)
        (Path(about["folder"]) / KILLED).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


WORKS: Final[dict[str, Callable[[dict[str, Any], torch.device], Found]]] = {
    work.__name__: work for work in (training, search, restarted_encoding, restarted_training)
}


def main() -> None:
    """Do the work that the argument describes."""
    about = json.loads(Path(sys.argv[1]).read_text())
    start(about["device"])
    found = WORKS[about["work"]](about, resolve_device(about["device"]))
    if is_first():
        write_json(Path(about["folder"]) / FOUND, found)
    wait()
    stop()


if __name__ == "__main__":
    main()
