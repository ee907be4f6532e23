"""Files from strangers: whatever is in them, nothing is run, nothing huge is allocated."""

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
from runners.experiments.runs import open_run, run_settings
from runners.experiments.settings import FolderSettings
from runners.train_grpo import GRPORunSettings


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "it ran")


def pickled(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps({"query_proj.weight": bomb}))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("depths", [2**40, 10**30])
def test_settings_that_claim_terabytes(depths: int, shared: bool, tmp_path: Path):
    router = {
        "activation": "relu", "observation": ["profile"], "widths": [64, depths], "router": {},
        "limit": None, "shared": shared,
    }  # fmt: skip
    files.write(tmp_path / "r.safetensors", {}, "router", router)
    with pytest.raises(InputError, match="incomplete router settings"):
        load_router(tmp_path / "r.safetensors")
    shape = {"hidden": 256, "heads": 8, "depths": depths, "vocabulary": 32000}
    encoder = {
        "encoder": shape, "text": "wordllama", "query_tokens": 64, "document_tokens": 256,
        "provenance": {},
    }  # fmt: skip
    files.write(tmp_path / "e.safetensors", {}, "encoder", encoder)
    with pytest.raises(InputError):
        load_embedder(tmp_path / "e.safetensors")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_collections(name: str, bomb: Bomb, tmp_path: Path):
    folder = write_tiny_collection(tmp_path / "data")
    (folder / name).write_bytes(pickle.dumps(bomb))
    with pytest.raises(InputError) as caught:
        load_collection(str(folder))
    assert "\n" not in str(caught.value)
    assert not bomb.mark.exists()


def test_documents_whose_names_are_paths_write_nothing(tmp_path: Path):
    folder = write_tiny_collection(tmp_path / "data")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "../../../../evil", "text": "x"}\n')
    before = sorted(tmp_path.rglob("*"))
    assert "../../../../evil" in load_collection(str(folder)).doc_ids
    assert sorted(tmp_path.rglob("*")) == before


def test_the_config_of_a_run(bomb: Bomb, tmp_path: Path):
    for content in (pickle.dumps(bomb), b"[" * 1_000_000, b'{"settings": "__import__(\'os\')"}'):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(InputError) as caught:
            run_settings(GRPORunSettings, tmp_path)
        assert "\n" not in str(caught.value)
        assert not bomb.mark.exists()


def test_model_zip_is_never_opened(bomb: Bomb, tmp_path: Path):
    pickled(bomb, tmp_path / "model.zip")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError):
        RoutedEncoder.from_run(tmp_path)
    with pytest.raises(InputError):
        run_settings(GRPORunSettings, tmp_path)
    assert Checkpoints(tmp_path, {}).restore(pytest.fail) is None
    assert not bomb.mark.exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", ".", "", "a\0b"])
def test_run_names_stay_inside(name: str, tmp_path: Path):
    with pytest.raises(InputError):
        open_run(FolderSettings(logdir=tmp_path / "logs", run_name=name), "default")
    assert not (tmp_path / "logs").exists()


def test_names_of_datasets_stay_inside(tmp_path: Path):
    settings = FolderSettings(logdir=tmp_path / "logs")
    made = open_run(settings, "grpo-../../evil-/etc/passwd")
    assert made.parent == tmp_path / "logs"
