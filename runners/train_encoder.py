"""Train an encoder in two stages and show what its depths are worth before a router is learned.

Several processes share the work: torchrun --nproc-per-node 4 runners/train_encoder.py ...
"""

from typing import ClassVar

from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.files import write_json
from maw_gym.settings import Folds, HomeText, Index, checked, part
from runners.experiments.runs import Stopwatch, open_run, run_main, write_config
from runners.experiments.settings import FolderSettings, TaskSettings


@checked
class EncoderRunSettings(FolderSettings, TrainingSettings):
    """Which collection, where, and how to train; equal settings are trained once and cached."""

    main_flags: ClassVar = (
        "dataset",
        "text_encoder",
        "train_text_encoder",
        "epochs",
        "seed",
        "device",
        "run_name",
    )

    dataset: HomeText = "pydocs"
    """an ir_datasets id (pydocs, beir/scifact, cranfield, ...) or a folder in BEIR's layout"""
    fold: Index = 0
    """which fold is the test split, where there are folds"""
    folds: Folds | None = None
    """cut all queries into so many folds; unless given, 5 where there are no subsets"""
    text_encoder: HomeText = "wordllama"
    """what the encoder stands on: wordllama (static token embeddings), minilm (all-MiniLM-L6-v2),
    the folder or hub name of a transformer, or auto (wordllama, or untrained minilm where that is
    better); over a transformer, settings left at their default take values that suit it"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""


def main(settings: EncoderRunSettings) -> None:
    """Train or read the encoder, judge it on the test split, and leave a run folder."""
    from maw_gym.corpora import load_collection
    from maw_gym.distributed import is_first, start, stop
    from maw_gym.encoders.files import save_embedder
    from maw_gym.encoders.text import text_encoders
    from maw_gym.encoders.training.selection import trained_embedder
    from maw_gym.tables.task import RetrievalTask, resolve_device
    from runners.experiments.report import BASELINES, metrics, rows_of, run_table

    start(settings.device)
    device = resolve_device(settings.device)
    texts = text_encoders(settings.text_encoder)
    # Several processes do the same; the first one writes.
    name = f"encoder-{settings.dataset}-seed{settings.seed}"
    folder = open_run(settings, name) if is_first() else None
    watch = Stopwatch(silent=folder is None)
    with watch.stage("collection"):
        collection = load_collection(settings.dataset, settings.fold, settings.folds)
    with watch.stage("encoder"):
        embedder, provenance = trained_embedder(
            collection, device, part(TrainingSettings, settings), texts[0], texts[1:]
        )
    if folder is not None:
        save_embedder(folder / "encoder.safetensors", embedder, {"encoder": provenance})
        write_config(folder, "encoder", settings, collection.provenance, provenance)
    with watch.stage("depth tables"):
        pretrained = next((text for text in texts if text.name == embedder.text.name), None)
        task = RetrievalTask(collection, embedder, device, provenance, pretrained)
        for split in ("train", "test"):
            task.table(split)
    with watch.stage("evaluation on test queries"):
        spec = TaskSettings(dataset=settings.dataset, seed=settings.seed)
        rows = rows_of(task, spec, ("mean-pooling", *BASELINES))
    if folder is not None:
        test = task.table("test")
        profile = {
            name: getattr(test, name).mean(0, dtype=float) for name in ("entropy", "focus", "ndcg")
        }
        content = metrics(spec, rows, None, watch) | {"encoder": provenance}
        content["depths"] = {name: values.tolist() for name, values in profile.items()}
        write_json(folder / "metrics.json", content)
        print("depth  entropy  focus  nDCG@10")
        for depth, row in enumerate(zip(*profile.values(), strict=True)):
            print(f"{depth:5d}  {row[0]:7.3f}  {row[1]:5.3f}  {row[2]:7.4f}")
        print()
        print(run_table(rows))
        print(f"\nencoder: {provenance['chosen']}; give others {folder / 'encoder.safetensors'}")
    stop()


if __name__ == "__main__":
    run_main(EncoderRunSettings, main)
