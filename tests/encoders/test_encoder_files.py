"""Encoders on disk: what was written comes back, and what was not is refused in one line.

Damage to the bytes of an encoder's file is in tests/files/test_every_kind.py.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from maw_gym import files
from maw_gym.encoders.embedder import Embedder, encoder_shape, untrained_embedder
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.maw import EncoderSettings, MAWEncoder, NonMAWEncoder
from maw_gym.encoders.text import WordLlama, load_text_encoder
from maw_gym.encoders.transformer import Transformer
from maw_gym.errors import DamagedFileError, InputError

SMALL = EncoderSettings(depths=2)
TEXTS = ["how bees make honey", "", "bread"]
CHOSEN = torch.tensor([0, 1, 1])
PROVENANCE = {"names": ["tiny"], "seed": 0}


@pytest.fixture(scope="module")
def embedder():
    return untrained_embedder(["bees and bread", "bees"], SMALL)


@pytest.fixture(scope="module")
def contextual(tiny_transformer):
    text = load_text_encoder(str(tiny_transformer))
    return untrained_embedder([], encoder_shape(text, depths=2), text)


@pytest.fixture(scope="module")
def originals(tmp_path_factory, embedder, contextual):
    """Folders with an encoder's file: over WordLlama, and over a transformer."""
    folders = {}
    for name, one in (("static", embedder), ("contextual", contextual)):
        folders[name] = tmp_path_factory.mktemp(name)
        save_embedder(folders[name] / "encoder.safetensors", one, PROVENANCE)
    return folders


@pytest.fixture
def copied(originals, tmp_path):
    """Copies an original; its file."""
    return lambda name: shutil.copytree(originals[name], tmp_path / "copy") / "encoder.safetensors"


def refused(path, kind=InputError):
    """The message: one line that begins with the file."""
    with pytest.raises(InputError) as caught:
        load_embedder(path)
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def rewritten(path, tensors=lambda found: None, settings=lambda found: None):
    """The file with other tensors or settings, still well-formed."""
    told, found = files.read(path, "encoder")
    tensors(found)
    settings(told)
    files.write(path, found, "encoder", told)
    return path


# --- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["static", "contextual"])
def test_round_trip(request, originals, name, monkeypatch):
    made = request.getfixturevalue("embedder" if name == "static" else name)
    monkeypatch.setattr("maw_gym.encoders.files.load_text_encoder", lambda name: pytest.fail(name))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found, provenance = load_embedder(originals[name] / "encoder.safetensors")
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert provenance == PROVENANCE
    assert isinstance(found.encoder, MAWEncoder)
    assert found.encoder.settings == made.encoder.settings
    assert (found.query_tokens, found.document_tokens) == (64, made.document_tokens)
    assert not found.encoder.training
    assert all(parameter.requires_grad for parameter in found.encoder.parameters())
    assert all(tensor.device.type == "cpu" for tensor in found.tensors().values())
    assert found.text.tokenize(TEXTS) == made.text.tokenize(TEXTS)
    assert torch.equal(found.encode_documents(TEXTS), made.encode_documents(TEXTS))
    expected = made.encode_queries(TEXTS, CHOSEN)
    assert torch.equal(found.encode_queries(TEXTS, CHOSEN), expected)
    assert found.fingerprint() == made.fingerprint()


def test_round_trip_of_limits_a_non_maw_encoder_and_trained_token_embeddings(tmp_path, originals):
    settings = EncoderSettings(depths=0, heads=4)
    text = WordLlama(torch.nn.Parameter(WordLlama().embedding * 2))
    path = tmp_path / "encoder.safetensors"
    save_embedder(path, Embedder(text, NonMAWEncoder(settings), 5, 6), {})
    found, provenance = load_embedder(path)
    assert (found.query_tokens, found.document_tokens, provenance) == (5, 6, {})
    assert type(found.encoder) is NonMAWEncoder
    assert found.encoder.settings == settings
    assert torch.equal(found.text.own_weights()["embedding"], text.embedding)
    # Packaged ones stay at home.
    assert "text.embedding" not in load_file(originals["static"] / "encoder.safetensors")


def test_a_trained_transformer_travels_along(tmp_path, contextual):
    trained = contextual.text.trainable(1, torch.device("cpu"))
    with torch.no_grad():
        for weight in trained.weights().values():
            weight.mul_(1.1)
    made = untrained_embedder([], encoder_shape(trained, depths=2), trained)
    # Beside another one, in the same folder.
    for name, one in (("before", contextual), ("after", made), ("again", made)):
        save_embedder(tmp_path / name, one, {})
    names = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert names == ["after", "again", "before", "transformer", "transformer"]
    found = load_embedder(tmp_path / "after")[0]
    assert found.text.tuned
    assert not found.text.trained
    assert found.fingerprint() == made.fingerprint()
    assert torch.equal(found.encode_queries(TEXTS), made.encode_queries(TEXTS))
    assert load_embedder(tmp_path / "before")[0].fingerprint() == contextual.fingerprint()


def test_a_transformer_that_a_package_has_stays_there(tmp_path, contextual, monkeypatch):
    text = contextual.text
    packaged = Transformer("minilm-0123", text.model, text.fast_tokenizer, packaged=True)
    path = tmp_path / "encoder.safetensors"
    save_embedder(path, untrained_embedder([], encoder_shape(text, depths=2), packaged), {})
    assert [one.name for one in tmp_path.iterdir()] == ["encoder.safetensors"]
    monkeypatch.setattr("maw_gym.encoders.files.load_text_encoder", {"minilm": packaged}.get)
    assert load_embedder(path)[0].text is packaged
    packaged.name = "minilm-4567"
    assert "stands on text encoder 'minilm-0123', and 'minilm-4567' is installed; install the" in (
        refused(path)
    )


# --- other contents --------------------------------------------------------------------------


def test_token_embeddings_unasked_for(copied):
    one = {"text.embedding": torch.ones(1)}
    path = rewritten(copied("static"), lambda found: found.update(one))
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
    *(("document_tokens", value) for value in (0, "all", None)),
    *(("provenance", value) for value in (3, NOTHING)),
    *(("transformer", value) for value in (3, "", "transformer-0", "../../x", {"files": {}})),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_other_settings(copied, name, value):
    def change(told):
        place = told["encoder"] if name in told["encoder"] else told
        place.pop(name) if value is NOTHING else place.update({name: value})

    refused(rewritten(copied("static"), settings=change))


def test_settings_of_a_later_version_are_left_out(copied):
    path = rewritten(copied("static"), settings=lambda told: told["encoder"].update(colour="red"))
    assert load_embedder(path)[0].encoder.settings == SMALL


# --- the transformer's folder ----------------------------------------------------------------


@pytest.fixture
def beside(copied):
    """The file of an encoder over a transformer, and the folder beside it."""
    path = copied("contextual")
    (folder,) = path.parent.glob("transformer-*")
    return path, folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", files.MANIFEST]
)
def test_one_flipped_bit_or_a_missing_file_is_noticed(beside, name):
    path, folder = beside
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(path, DamagedFileError)
    (folder / name).unlink()
    refused(path, DamagedFileError)


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
