"""Encoders over a transformer on disk: the file alone is enough."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.files import _checksums, load_embedder, save_embedder
from maw_gym.encoders.text import load_text_encoder
from maw_gym.encoders.transformer import Transformer
from maw_gym.errors import InputError
from maw_gym.files import content_key, read, write

TEXTS = ["how bees make honey", "", "bread"]


@pytest.fixture(scope="module")
def embedder(tiny_transformer):
    text = load_text_encoder(str(tiny_transformer))
    return untrained_embedder([], encoder_shape(text, depths=2), text)


@pytest.fixture(scope="module")
def original(tmp_path_factory, embedder):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_embedder(path, embedder, {"names": ["tiny"]})
    return path


def refused(path):
    """The message: one line that begins with the file."""
    with pytest.raises(InputError) as caught:
        load_embedder(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_round_trip_without_the_models_folder(original, embedder, monkeypatch):
    monkeypatch.setattr("maw_gym.encoders.files.load_text_encoder", lambda name: pytest.fail(name))
    loaded, provenance = load_embedder(original)
    assert provenance == {"names": ["tiny"]}
    assert (loaded.text.name, loaded.text.positions) == (embedder.text.name, 96)
    assert (loaded.query_tokens, loaded.document_tokens) == (64, 96)
    assert not loaded.text.trained
    assert loaded.text.tokenize(TEXTS) == embedder.text.tokenize(TEXTS)
    assert loaded.text.tokens([2, 4]) == ["[CLS]", "bees"]
    chosen = torch.tensor([0, 1, 1])
    for ask in (
        lambda one: one.encode_documents(TEXTS),
        lambda one: one.encode_queries(TEXTS, chosen),
    ):
        assert torch.equal(ask(loaded), ask(embedder))
    assert loaded.fingerprint() == embedder.fingerprint()


def test_trained_weights_travel_along(tmp_path, embedder):
    trained = embedder.text.trainable(1, torch.device("cpu"))
    with torch.no_grad():
        for weight in trained.weights().values():
            weight.mul_(1.1)
    path = tmp_path / "encoder.safetensors"
    made = untrained_embedder([], encoder_shape(trained, depths=2), trained)
    save_embedder(path, made, {})
    loaded, _ = load_embedder(path)
    for name, weight in loaded.text.weights().items():
        assert torch.equal(weight, embedder.text.weights()[name] * 1.1)
    assert torch.equal(loaded.encode_queries(TEXTS), made.encode_queries(TEXTS))


def test_weights_that_a_package_has_stay_there(tmp_path, embedder, monkeypatch):
    text = embedder.text
    packaged = Transformer("minilm-0123", text.model, text.fast_tokenizer, packaged=True)
    path = tmp_path / "encoder.safetensors"
    save_embedder(path, untrained_embedder([], encoder_shape(text, depths=2), packaged), {})
    assert not any(name.startswith("text.") for name in load_file(path))
    asked = []
    monkeypatch.setattr(
        "maw_gym.encoders.files.load_text_encoder",
        lambda name: asked.append(name) or packaged,
    )
    loaded, _ = load_embedder(path)
    assert loaded.text is packaged
    assert asked == ["minilm"]
    packaged.name = "minilm-4567"
    assert "stands on text encoder 'minilm-0123', and 'minilm-4567' is installed; install the" in (
        refused(path)
    )


def test_loading_leaves_the_global_generator_alone(original):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_embedder(original)
    assert torch.equal(torch.rand(1), expected)


@pytest.fixture
def copied(original, tmp_path):
    """A copy of an encoder's file and of the folder beside it."""
    shutil.copytree(original.parent, tmp_path / "copy")
    return tmp_path / "copy" / original.name


def beside(path):
    (folder,) = path.parent.glob("transformer-*")
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_flipped_bit_or_a_missing_file_is_noticed(copied, name):
    file = beside(copied) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert refused(copied).endswith(f"{file.parent.name} beside it is damaged")
    file.unlink()
    assert refused(copied).endswith(f"{file.parent.name} beside it is damaged")


def test_no_other_file_is_read_and_no_other_folder(copied):
    folder = beside(copied)
    (folder / "adapter_config.json").write_text("{}")
    assert refused(copied).endswith("beside it is damaged")
    shutil.rmtree(folder)
    assert refused(copied).endswith(f"its text encoder {folder.name} is not beside it")


STORED = {
    "nothing": None,
    "a number": 3,
    "no files": {"tuned": False},
    "files that are none": {"files": 3, "tuned": False},
    "another folder": {"files": {"../../config.json": "0"}, "tuned": False},
}


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_other_settings_are_refused(copied, stored):
    settings, tensors = read(copied, "encoder")
    write(copied, tensors, "encoder", settings | {"transformer": stored})
    refused(copied)


def changed(copied, change):
    """The encoder's file after a stranger has changed the folder, checksums and all."""
    change(beside(copied))
    settings, tensors = read(copied, "encoder")
    settings["transformer"]["files"] = files = _checksums(beside(copied))
    beside(copied).rename(copied.with_name(f"transformer-{content_key(files)}"))
    write(copied, tensors, "encoder", settings)
    return copied


def configured(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "vit"},
        {"num_labels": 10**12},
        {"max_position_embeddings": 10**8},
        {"max_position_embeddings": 95},
        {"hidden_size": 48},
    ],
)
def test_a_strangers_configuration_is_refused(copied, changes):
    refused(changed(copied, configured(**changes)))


def test_what_would_run_code_is_not_run(copied):
    hostile = {"auto_map": {"AutoModel": "some/where--code.Model"}}
    path = changed(copied, configured(**hostile, attn_implementation="some/kernel"))
    loaded, _ = load_embedder(path)
    assert loaded.text.config._attn_implementation == "sdpa"


def test_without_transformers(original, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refused(original).endswith("pip install 'maw_gym[transformers]'")
