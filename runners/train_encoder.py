"""Train an encoder in two stages and show what its depths are worth before a router is learned.

Several processes share the work: torchrun --nproc-per-node 4 runners/train_encoder.py ...
"""

from dataclasses import replace
from typing import Annotated, ClassVar

from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.files import write_json
from maw_gym.runners.experiments.command_line import Section
from maw_gym.runners.experiments.runs import Stopwatch, open_run, run_main, write_config
from maw_gym.runners.experiments.settings import FolderSettings, TaskSettings
from maw_gym.settings import checked


@checked
class EncoderRunSettings:
    """Which collection, where, and how to train; equal settings are trained once and cached."""

    main_flags: ClassVar = (
        *("dataset", "text_encoder", "train_text_encoder", "epochs", "seed", "device", "run_name"),
    )
    task: Annotated[
        TaskSettings, Section(only=("dataset", "fold", "folds", "text_encoder", "device"))
    ] = TaskSettings()
    training: TrainingSettings = TrainingSettings()
    run: FolderSettings = FolderSettings()


def main(settings: EncoderRunSettings) -> None:
    """Train or read the encoder, judge it on the test split, and leave a run folder."""
    from maw_gym.corpora import load_collection
    from maw_gym.distributed import is_first, start, stop
    from maw_gym.encoders.files import save_embedder
    from maw_gym.encoders.text import text_encoders
    from maw_gym.encoders.training.selection import trained_embedder
    from maw_gym.runners.experiments.report import BASELINES, metrics, rows_of, run_table
    from maw_gym.tables.task import RetrievalTask, resolve_device

    given = settings.task
    start(given.device)
    device = resolve_device(given.device)
    texts = text_encoders(given.text_encoder)
    # Several processes do the same; the first one writes.
    name = f"encoder-{given.dataset}-seed{settings.training.seed}"
    folder = open_run(settings, name) if is_first() else None
    watch = Stopwatch(silent=folder is None)
    with watch.stage("collection"):
        collection = load_collection(given.dataset, given.fold, given.folds)
    with watch.stage("encoder"):
        embedder, provenance = trained_embedder(
            collection, device, settings.training, texts[0], texts[1:]
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
        spec = replace(given, seed=settings.training.seed % 2**32)
        rows = rows_of(task, spec, {"mean-pooling": "mean pooling", **BASELINES})
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
