"""What several GPUs of one machine are worth, and that a process which dies costs no result.

python -m runners.benchmarks.several_devices [--parts training search restart] [--out FILE]

Training: pairs per second of the first stage over a text encoder that is trained along, at some
batch sizes. Search: seconds to encode synthetic documents and queries and to search exactly; the
rankings must be equal. Each by one process and by all, which torchrun starts. Restart: one process
is killed in the middle, torchrun starts all again, and the end must be that of a run left alone.
Without GPUs the processes share the CPU. A table in Markdown goes to stdout.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file

from maw_gym.corpora import load_collection
from maw_gym.distributed import check_shares
from maw_gym.encoders import document_parts
from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.errors import InputError
from maw_gym.settings import Count, HomePath, HomeText, Index, checked
from runners.benchmarks.device_work import FOUND, KILLED
from runners.benchmarks.search import DOCUMENT_WORDS, QUERY_WORDS, synthetic_texts, write_texts
from runners.experiments.runs import run_main, writable_output, write_json

Part = Literal["training", "search", "restart"]
ROOT: Final = Path(__file__).resolve().parents[2]
SAME: Final = 1e-6  # scores and weights that differ by no more are the same


@checked
class DevicesSettings:
    """What is measured, and how much of it."""

    parts: tuple[Part, ...] = get_args(Part)
    """which of them"""
    processes: Index = 0
    """how many share the work; 0 is one for each GPU, or two without any"""
    dataset: HomeText = "pydocs"
    """whose pairs are trained on"""
    text_encoder: HomeText = "minilm"
    """what is trained along, see runners/train_encoder.py"""
    batch_sizes: tuple[Count, ...] = (1024, 2048)
    """pairs of a step, by all processes together; they are to share each evenly"""
    epochs: Count = 4
    """of training; the first one warms up and is not counted"""
    search_encoder: HomeText = "wordllama"
    """text encoder of the documents and queries that are searched"""
    documents: Count = 1_000_000
    """synthetic documents that are encoded and searched"""
    queries: Count = 10_000
    """that are searched"""
    restart_documents: Count = 200_000
    """that are encoded while a process is killed"""
    restart_batch_size: Count = 512
    """pairs of a step of the training in which a process is killed"""
    device: str = "auto"
    """auto (the GPUs where there are some) or cpu"""
    out: HomePath | None = None
    """JSON file of all numbers"""


class Machine:
    """Starts processes by torchrun, each of which has the same share of the CPU's cores.

    Args:
        settings: of the benchmark.
        count: of processes that share the work.
        folder: for everything that is written.
    """

    def __init__(self, settings: DevicesSettings, count: int, folder: Path) -> None:
        self.settings, self.count, self.folder = settings, count, folder
        threads = str(max(1, len(os.sched_getaffinity(0)) // count))
        self.environment = os.environ | {
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # products are made in the same way every time
            "MAW_GYM_HOME": str(folder / "home"),
            "NCCL_NVLS_ENABLE": "0",  # multicast of NVLink, which not every machine's GPUs may use
            "OMP_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "RAYON_NUM_THREADS": threads,  # of the tokenizers
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
        }

    def run(self, work: str, processes: int, restarts: int = 0, **about: Any) -> dict[str, Any]:
        """What `processes` find that do a work of `runners.benchmarks.device_work` together.

        Raises:
            InputError: they fail.
        """
        rmtree(self.folder / "home" / "encoders", ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix=f"{work}-", dir=self.folder))
        about |= {"work": work, "device": self.settings.device, "folder": str(place)}
        write_json(place / "about.json", about)
        launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
        done = subprocess.run(
            [*launcher, "-m", "runners.benchmarks.device_work", str(place / "about.json")],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.stderr.write(done.stderr[-20_000:])
            raise InputError(f"{work} by {processes} processes failed; what they say stands above")
        found = json.loads((place / FOUND).read_text())
        return {"processes": processes, **found, "folder": str(place)}

    def texts(self, count: int, words: tuple[int, int], seed: int) -> str:
        """A file of synthetic texts."""
        path = self.folder / f"texts-{count}-{seed}"
        if not path.exists():
            write_texts(path, synthetic_texts(untrained_embedder(()), count, words, seed))
        return str(path)


def training_part(machine: Machine) -> list[dict[str, Any]]:
    """Pairs per second of one process, and of all."""
    settings = machine.settings
    rows: dict[int, list[dict[str, Any]]] = {}
    names = ("dataset", "text_encoder", "batch_sizes", "epochs")
    about = {name: getattr(settings, name) for name in names}
    about["batch_sizes"] = sorted(set(settings.batch_sizes))
    for processes in (1, machine.count):
        for run in machine.run("training", processes, **about)["runs"]:
            counted = run["pairs/s"][1:] or run["pairs/s"]
            what = f"training over {settings.text_encoder}, batches of {run['batch']:,}"
            row = {"what": what, "value": statistics.median(counted), "unit": "pairs/s"}
            rows.setdefault(run["batch"], []).append({"processes": processes} | run | row)
    return [row for some in rows.values() for row in _times_one(some)]


def search_part(machine: Machine) -> list[dict[str, Any]]:
    """Seconds of one process and of all, and how far their rankings are apart."""
    settings = machine.settings
    texts = machine.texts(settings.documents, DOCUMENT_WORDS, 0)
    queries = machine.texts(settings.queries, QUERY_WORDS, 1)
    about: dict[str, Any] = {
        "documents": settings.documents,
        "search_encoder": settings.search_encoder,
    }
    steps: dict[str, list[dict[str, Any]]] = {}
    rankings = []
    for processes in (1, machine.count):
        found = machine.run("search", processes, texts=texts, queries=queries, **about)
        with np.load(Path(found["folder"]) / "ranking.npz") as file:
            rankings.append({name: file[name] for name in file.files})
        for name, seconds in found["seconds"].items():
            what = f"{name} ({settings.search_encoder})"
            row = {"processes": processes, "what": what, "value": seconds, "unit": "s"}
            steps.setdefault(name, []).append(row)
        rmtree(found["folder"])
    one, other = rankings
    equal = {
        "what": f"rankings of {settings.queries:,} queries in {settings.documents:,} documents",
        "processes": machine.count,
        "value": _apart(one["scores"], other["scores"]),
        "unit": "largest difference of a score",
        "same": bool((one["documents"] == other["documents"]).all()),
    }
    return [*(row for rows in steps.values() for row in _times_one(rows)), equal]


def restart_part(machine: Machine) -> list[dict[str, Any]]:
    """How far the end of a run with a killed process is from that of one left alone."""
    settings = machine.settings
    count = settings.restart_documents
    half = -(-count // document_parts.PART) // 2
    texts = machine.texts(count, DOCUMENT_WORDS, 0)
    encoding = {"texts": texts, "documents": count, "half": half}
    training = {"dataset": settings.dataset, "batch_size": settings.restart_batch_size}
    rows = []
    for work, about in (("restarted_training", training), ("restarted_encoding", encoding)):
        runs = [
            machine.run(work, machine.count, restarts, **about, kill=bool(restarts))
            for restarts in (0, 1)
        ]
        places = [Path(run["folder"]) for run in runs]
        if not (places[1] / KILLED).exists():
            raise InputError(f"{work}: it was over before a process could be killed; give it more")
        one, other = (_end(place) for place in places)
        difference = max(_apart(one[name], other[name]) for name in one)
        rows.append(
            {
                "what": f"{work.replace('_', ' ')}, one process killed",
                "processes": machine.count,
                "value": difference,
                "unit": "largest difference of a number",
                "same": one.keys() == other.keys(),
            }
        )
    return rows


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two arrays of one shape, which may be empty."""
    return float(np.abs(one - other).max(initial=0))


def _end(place: Path) -> dict[str, np.ndarray]:
    """The weights, or the vectors, that a run leaves."""
    if (place / "weights.safetensors").exists():
        return {k: v.numpy() for k, v in load_file(place / "weights.safetensors").items()}
    return {"vectors": np.load(place / "index" / "vectors.npy", mmap_mode="r")}


def _times_one(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with how many times as fast as the first each is."""
    first = rows[0]
    for row in rows:
        ratio = row["value"] / first["value"]
        row["times one"] = 1 / ratio if row["unit"] == "s" else ratio
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| what | processes | | times one process |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        value = f"{row['value']:,.2f}" if "times one" in row else f"{row['value']:.2g}"
        times = f"{row['times one']:.2f}" if "times one" in row else ""
        if row.get("same") is False:
            value += ", ANOTHER ORDER"
        lines.append(f"| {row['what']} | {row['processes']} | {value} {row['unit']} | {times} |")
    return "\n".join(lines)


def main(settings: DevicesSettings) -> None:
    """Measure, print, write; what should be equal and is not ends it with an error."""
    out = settings.out and writable_output(settings.out)
    gpus = 0 if settings.device == "cpu" else torch.cuda.device_count()
    count = settings.processes or gpus or 2
    sizes = {"training": settings.batch_sizes, "restart": (settings.restart_batch_size,)}
    for size in (size for part in settings.parts for size in sizes.get(part, ())):
        check_shares(size, count)
    parts = {"training": training_part, "search": search_part, "restart": restart_part}
    rows: list[dict[str, Any]] = []
    name = f"{count} x {torch.cuda.get_device_name()}" if gpus else f"CPU, {count} processes"
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(settings, count, Path(folder))
        if {"training", "restart"} & set(settings.parts):
            _prepare(machine)
        for part in settings.parts:
            found = parts[part](machine)
            rows += [{"part": part} | row for row in found]
            print(markdown(found), end="\n\n", flush=True)
    if out is not None:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        content = {"device": name, "versions": versions, "settings": asdict(settings)}
        write_json(out, content | {"rows": rows})
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
    apart = [row for row in rows if "same" in row and not (row["same"] and row["value"] <= SAME)]
    if apart:
        raise InputError(f"results differ: {apart[0]['what']}, by {apart[0]['value']:.2g}")


def _prepare(machine: Machine) -> None:
    """Read the collection once for all processes to come."""
    before = os.environ.get("MAW_GYM_HOME")
    os.environ["MAW_GYM_HOME"] = machine.environment["MAW_GYM_HOME"]
    try:
        load_collection(machine.settings.dataset)
    finally:
        os.environ.pop("MAW_GYM_HOME")
        if before is not None:
            os.environ["MAW_GYM_HOME"] = before


if __name__ == "__main__":
    run_main(DevicesSettings, main)
