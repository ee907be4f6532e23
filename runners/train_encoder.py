"""Train an encoder in two stages and show what its depths are worth before a router is learned."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from maw_gym.corpora import load_collection
from maw_gym.encoders.attention_encoders import EncoderSettings
from maw_gym.encoders.encoder_files import save_embedder, untrained_embedder
from maw_gym.encoders.training.selection import trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.tables.task import RetrievalTask, resolve_device
from runners.experiments.report import MEASURES, Row, encoder_rows, static_rows, table_text
from runners.experiments.runs import Stopwatch, new_run, run_main, write_config, write_json
from runners.experiments.settings import CommonSettings


@dataclass(frozen=True)
class EncoderRunSettings:
    """Which collection, where, and how to train; equal settings are trained once and cached."""

    dataset: str = "pydocs"
    """an ir_datasets id (pydocs, beir/scifact, cranfield, ...) or a folder in BEIR's layout"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    logdir: Path = field(default_factory=lambda: Path("runs"))
    """folder of all runs"""
    run_name: str | None = None
    """folder of this run inside logdir; made of dataset, seed and time unless given"""
    fold: int = 0
    """which of 5 folds is the test split, for datasets without subsets"""
    training: tyro.conf.OmitArgPrefixes[TrainingSettings] = field(default_factory=TrainingSettings)
    """see below"""


def mean_pooling(task: RetrievalTask) -> Row:
    """Plain averages of token embeddings: no attention, no token weights."""
    embedder = untrained_embedder((), EncoderSettings(depths=0))
    with torch.no_grad():
        embedder.encoder.out_proj.weight.zero_()
        embedder.encoder.token_weight.zero_()
    evaluation, _ = RetrievalTask(task.collection, embedder, task.device).evaluate("test")
    return Row(None, {measure: evaluation.mean[measure] for measure in MEASURES})


def main(settings: EncoderRunSettings) -> None:
    """Train or read the encoder, judge it on the test split, and leave a run folder."""
    device = resolve_device(settings.device)
    seed = settings.training.seed
    folder = new_run(settings.logdir, settings.run_name, f"encoder-{settings.dataset}-seed{seed}")
    watch = Stopwatch()
    with watch.stage("collection"):
        collection = load_collection(settings.dataset, settings.fold)
    with watch.stage("encoder"):
        embedder, provenance = trained_embedder(collection, device, settings.training)
        save_embedder(folder / "encoder.safetensors", embedder, {"encoder": provenance})
    write_config(folder, "encoder", settings, collection.provenance, provenance)
    with watch.stage("depth tables"):
        task = RetrievalTask(collection, embedder, device, provenance)
        for split in ("train", "test"):
            task.table(split)
    with watch.stage("evaluation on test queries"):
        common = CommonSettings(dataset=settings.dataset, seed=seed)
        rows = {"mean pooling": mean_pooling(task)} | encoder_rows(task)
        rows |= static_rows(task, common)
    write_json(
        folder / "metrics.json",
        {
            "dataset": settings.dataset,
            "split": "test",
            "seed": seed,
            "encoder": provenance,
            "baselines": {name: row._asdict() for name, row in rows.items()},
            "wall_seconds": watch.seconds,
        },
    )
    print(table_text(rows))
    print(f"\nencoder: {provenance['chosen']}; give others {folder / 'encoder.safetensors'}")


if __name__ == "__main__":
    run_main(EncoderRunSettings, main)
