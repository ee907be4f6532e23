"""Data from strangers: whatever is in it, nothing is run, written elsewhere or allocated."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny_collection import write_tiny_collection

from maw_gym import files
from maw_gym.checkpoints import Checkpoints
from maw_gym.corpora import load_collection
from maw_gym.encoders.files import load_embedder
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import load_router
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.runners.experiments.runs import open_run, settings_of
from maw_gym.runners.experiments.settings import FolderSettings
from maw_gym.runners.train_grpo import GRPORunSettings


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("depths", [2**40, 10**30])
def test_settings_that_claim_terabytes(depths: int, shared: bool, tmp_path: Path) -> None:
    router = {
        "activation": "relu", "observation": ["profile"], "widths": [64, depths], "router": {},
        "limit": None, "shared": shared,
    }  # fmt: skip
    files.write(tmp_path / "r.safetensors", {}, "router", router)
    with pytest.raises(InputError, match=r"'layers\.0\.bias' is gone"):
        load_router(tmp_path / "r.safetensors")
    shape = {"hidden": 256, "heads": 8, "depths": depths, "vocabulary": 32000}
    encoder = {
        "encoder": shape, "text": "wordllama", "query_tokens": 64, "document_tokens": 256,
        "provenance": {},
    }  # fmt: skip
    files.write(tmp_path / "e.safetensors", {}, "encoder", encoder)
    with pytest.raises(InputError):
        load_embedder(tmp_path / "e.safetensors")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "config.json"])
def test_what_is_pickled_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder, mark = write_tiny_collection(tmp_path / "data"), tmp_path / "it ran"

    def read() -> Any:
        if name == "config.json":
            return settings_of(GRPORunSettings, {"resume": str(folder)})
        return load_collection(str(folder))

    for content in (pickle.dumps(Bomb(mark)), b"[" * 1_000_000, b'{"settings": "__import__"}'):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_model_zip_is_never_opened(tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "it ran"
    run.mkdir()
    (run / "model.zip").write_bytes(pickle.dumps(Bomb(mark)))
    (run / "config.json").write_text("{}")
    for read in (
        RoutedEncoder.from_run,
        lambda path: settings_of(GRPORunSettings, {"resume": path}),
    ):
        with pytest.raises(InputError):
            read(run)
    assert Checkpoints(run, {}).restore(pytest.fail) is None
    assert not mark.exists()


def test_documents_whose_names_are_paths_write_nothing(tmp_path: Path) -> None:
    folder = write_tiny_collection(tmp_path / "data")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "../../../../evil", "text": "x"}\n')
    before = sorted(tmp_path.rglob("*"))
    assert "../../../../evil" in load_collection(str(folder)).doc_ids
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", ".", "", "a\0b"])
def test_run_names_stay_inside(name: str, tmp_path: Path) -> None:
    settings = FolderSettings(logdir=tmp_path / "logs", run_name=name)
    with pytest.raises(InputError):
        open_run(settings, "default")
    assert not (tmp_path / "logs").exists()
    made = open_run(FolderSettings(logdir=tmp_path / "logs"), f"grpo-{name}-../../evil")
    assert made.parent == tmp_path / "logs"
