"""Encoders on disk: what was written comes back, and what was not is refused in one line.

Damage to the bytes of an encoder's files is in tests/files/test_every_kind.py.
"""

import json
import shutil

import pytest
import torch

from maw_gym import files
from maw_gym.encoders.embedder import Embedder, encoder_shape, untrained_embedder
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.maw import EncoderSettings, NonMAWEncoder
from maw_gym.encoders.text import WordLlama, load_text_encoder
from maw_gym.encoders.transformer import Transformer
from maw_gym.errors import DamagedFileError, InputError

SMALL = EncoderSettings(depths=2)
TEXTS = ["how bees make honey", "", "bread"]
PROVENANCE = {"names": ["tiny"], "seed": 0}


def contextual(text):
    return untrained_embedder([], encoder_shape(text, depths=2), text)


@pytest.fixture(scope="module")
def made(tiny_transformer):
    """Embedders of all kinds, by name."""
    text = load_text_encoder(str(tiny_transformer))
    tuned = text.trainable(1, torch.device("cpu"))
    with torch.no_grad():
        for weight in tuned.weights().values():
            weight.mul_(1.1)
    table = WordLlama(torch.nn.Parameter(WordLlama().embedding * 2))
    return {
        "static": untrained_embedder(["bees and bread", "bees"], SMALL),
        "trained table": Embedder(table, NonMAWEncoder(EncoderSettings(depths=0, heads=4)), 5, 6),
        "contextual": contextual(text),
        "tuned": contextual(tuned),
    }


@pytest.fixture
def saved(made, tmp_path):
    """Writes an embedder; its file."""

    def save(name):
        path = tmp_path / "copy" / "encoder.safetensors"
        save_embedder(path, made[name], PROVENANCE)
        return path

    return save


def refused(path, kind=InputError):
    """The message: one line that names the file."""
    with pytest.raises(InputError) as caught:
        load_embedder(path)
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["static", "trained table", "contextual", "tuned"])
def test_round_trip(made, saved, name, monkeypatch):
    one, path = made[name], saved(name)
    monkeypatch.setattr("maw_gym.encoders.files.load_text_encoder", lambda name: pytest.fail(name))
    before = torch.get_rng_state()
    found, provenance = load_embedder(path)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    assert provenance == PROVENANCE
    assert type(found.encoder) is type(one.encoder)
    assert found.encoder.settings == one.encoder.settings
    assert (found.query_tokens, found.document_tokens) == (one.query_tokens, one.document_tokens)
    assert not found.encoder.training
    assert all(parameter.requires_grad for parameter in found.encoder.parameters())
    assert getattr(found.text, "tuned", False) is (name == "tuned")
    assert found.text.trained is (name == "trained table")
    assert set(found.tensors()) == set(one.tensors())  # packaged ones stay at home
    assert all(tensor.device.type == "cpu" for tensor in found.tensors().values())
    assert found.fingerprint() == one.fingerprint()
    assert found.text.tokenize(TEXTS) == one.text.tokenize(TEXTS)
    chosen = torch.tensor([0, 1, 1]) if one.encoder.settings.depths else None
    assert torch.equal(found.encode_queries(TEXTS, chosen), one.encode_queries(TEXTS, chosen))


def test_encoders_in_one_folder_share_a_transformer_and_none_replaces_another(made, tmp_path):
    for name, kind in (("before", "contextual"), ("after", "tuned"), ("again", "tuned")):
        save_embedder(tmp_path / name, made[kind], {})
    names = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert names == ["after", "again", "before", "transformer", "transformer"]
    for name, kind in (("before", "contextual"), ("after", "tuned")):
        assert load_embedder(tmp_path / name)[0].fingerprint() == made[kind].fingerprint()


def test_a_transformer_that_a_package_has_stays_there(tmp_path, made, monkeypatch):
    text = made["contextual"].text
    packaged = Transformer("minilm-0123", text.model, text.fast_tokenizer, packaged=True)
    path = tmp_path / "encoder.safetensors"
    save_embedder(path, contextual(packaged), {})
    assert [one.name for one in tmp_path.iterdir()] == ["encoder.safetensors"]
    monkeypatch.setattr("maw_gym.encoders.files.load_text_encoder", {"minilm": packaged}.get)
    assert load_embedder(path)[0].text is packaged
    packaged.name = "minilm-4567"
    assert "stands on text encoder 'minilm-0123', and 'minilm-4567' is installed; install the" in (
        refused(path)
    )


def rewritten(path, change):
    """The file with other settings and tensors, still well-formed."""
    settings, tensors = files.read(path, "encoder")
    change(settings, tensors)
    files.write(path, tensors, "encoder", settings)
    return path


def test_tensors_unasked_for_are_refused_and_settings_of_a_later_version_left_out(saved):
    path = rewritten(saved("static"), lambda told, _: told["encoder"].update(colour="red"))
    assert load_embedder(path)[0].encoder.settings == SMALL
    rewritten(path, lambda _, found: found.update({"text.embedding": torch.ones(1)}))
    assert refused(path).endswith("'text.embedding' has shape (1,), expected (32000, 256)")


NOTHING = object()
SETTINGS = [
    *(("encoder", value) for value in (NOTHING, 3, [256])),
    *(("hidden", value) for value in (10**9, 8, "256", 256.0, None)),
    ("vocabulary", 10**12),
    *(("depths", value) for value in (3, 10**9, 10**18, 10**400, 0, -1)),
    *(("heads", value) for value in (3, 0)),
    *(("text", value) for value in ("bert", "minilm", ["wordllama"])),
    *(("query_tokens", value) for value in (NOTHING, -1)),
    *(("document_tokens", value) for value in (0, 10**9, "all", None)),
    *(("provenance", value) for value in (3, NOTHING)),
    *(("transformer", value) for value in (3, "", "transformer-0", "../../x", {"files": {}})),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_other_settings(saved, name, value):
    def change(told, _):
        place = told["encoder"] if name in told["encoder"] else told
        place.pop(name) if value is NOTHING else place.update({name: value})

    refused(rewritten(saved("static"), change))


@pytest.fixture
def beside(saved):
    """The file of an encoder over a transformer, and the folder beside it."""
    path = saved("contextual")
    (folder,) = path.parent.glob("transformer-*")
    return path, folder


def test_no_other_file_is_read_and_no_other_folder(beside):
    path, folder = beside
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refused(path, DamagedFileError)
    shutil.rmtree(folder)
    assert f"no text encoder {folder.name!r} beside it" in refused(path, DamagedFileError)


@pytest.mark.parametrize(
    "changes", [{"model_type": "vit"}, {"max_position_embeddings": 95}, {"hidden_size": 48}, {}]
)
def test_a_strangers_configuration_is_refused_and_runs_no_code(beside, changes):
    path, folder = beside
    settings, _ = files.read_manifest(folder, "transformer")
    config = json.loads((folder / "config.json").read_text()) | changes
    config |= {"auto_map": {"AutoModel": "some/where--code.Model"}}
    config |= {"attn_implementation": "some/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / files.MANIFEST).unlink()
    files.write_manifest(folder, "transformer", settings)  # checksums and all
    if changes:
        refused(path)
    else:
        assert load_embedder(path)[0].text.config._attn_implementation == "sdpa"
