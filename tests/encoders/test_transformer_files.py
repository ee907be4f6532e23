"""Encoders over a transformer on disk: the file alone is enough."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from maw_gym import files
from maw_gym.encoders.encoder_files import (
    encoder_shape,
    load_embedder,
    save_embedder,
    untrained_embedder,
)
from maw_gym.encoders.text import Transformer, load_text_encoder
from maw_gym.errors import InputError

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
    monkeypatch.setattr(
        "maw_gym.encoders.encoder_files.load_text_encoder", lambda name: pytest.fail(name)
    )
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
    assert set(loaded.tensors()) == set(embedder.tensors())


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
    packaged = Transformer(
        "minilm-0123", text.model, text.tokenizer, text.positions, text.pad, packaged=True
    )
    path = tmp_path / "encoder.safetensors"
    save_embedder(path, untrained_embedder([], encoder_shape(text, depths=2), packaged), {})
    assert not any(name.startswith("text.") for name in load_file(path))
    asked = []
    monkeypatch.setattr(
        "maw_gym.encoders.encoder_files.load_text_encoder",
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


CONFIG = {
    "architecture that does not exist": {"model_type": "mine"},
    "no architecture": {"model_type": None},
    "architecture of pictures": {"model_type": "vit"},
    "more layers than are stored": {"num_hidden_layers": 3},
    "billions of layers": {"num_hidden_layers": 10**9},
    "other width": {"hidden_size": 48},
    "no whole heads": {"num_attention_heads": 7},
    "an immense vocabulary": {"vocab_size": 10**12},
    "text in place of a number": {"hidden_size": "24"},
}


@pytest.mark.parametrize("changes", CONFIG.values(), ids=CONFIG)
def test_other_configurations_are_refused(original, tmp_path, changes):
    settings, tensors = files.read(original, "encoder")
    settings["transformer"]["config"].update(changes)
    path = tmp_path / "encoder.safetensors"
    files.write(path, tensors, "encoder", settings)
    refused(path)


SETTINGS = {
    "no tokenizer": {"tokenizer": None},
    "a tokenizer that is none": {"tokenizer": "{}"},
    "no configuration": {"config": None},
    "a text for positions": {"positions": "96"},
    "no position": {"positions": 0},
    "a text for the padding": {"pad": "0"},
    "a padding that is not embedded": {"pad": 66},
    "fewer positions than the texts are cut at": {"positions": 95},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_other_settings_are_refused(original, tmp_path, changes):
    settings, tensors = files.read(original, "encoder")
    settings["transformer"].update(changes)
    path = tmp_path / "encoder.safetensors"
    files.write(path, tensors, "encoder", settings)
    refused(path)


def test_a_tokenizer_of_more_tokens_than_the_model_embeds(original, tmp_path):
    settings, tensors = files.read(original, "encoder")
    tokenizer = json.loads(settings["transformer"]["tokenizer"])
    tokenizer["model"]["vocab"]["zebra"] = 66
    settings["transformer"]["tokenizer"] = json.dumps(tokenizer)
    path = tmp_path / "encoder.safetensors"
    files.write(path, tensors, "encoder", settings)
    assert "token ids up to 66, its model embeds 66" in refused(path)


def test_what_would_run_code_is_not_even_read(original, tmp_path):
    settings, tensors = files.read(original, "encoder")
    settings["transformer"]["config"] |= {
        "auto_map": {"AutoModel": "some/where--code.Model"},
        "quantization_config": {"quant_method": "bitsandbytes"},
        "attn_implementation": "some/kernel",
    }
    path = tmp_path / "encoder.safetensors"
    files.write(path, tensors, "encoder", settings)
    loaded, _ = load_embedder(path)
    assert loaded.text.config._attn_implementation == "sdpa"
    assert not hasattr(loaded.text.config, "auto_map")


def test_without_transformers(original, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refused(original).endswith("pip install 'maw_gym[transformers]'")
