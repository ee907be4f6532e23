import math
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from maw_gym import files
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.maw import EncoderSettings, MAWEncoder, NonMAWEncoder
from maw_gym.encoders.text import WordLlama
from maw_gym.errors import InputError

SMALL = EncoderSettings(depths=2)
TEXTS = ["how bees make honey", "", "bread"]
PROVENANCE = {"names": ["tiny"], "seed": 0}


@pytest.fixture(scope="module")
def embedder():
    return untrained_embedder(["bees and bread", "bees"], SMALL)


@pytest.fixture(scope="module")
def original(tmp_path_factory, embedder):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_embedder(path, embedder, PROVENANCE)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "encoder.safetensors"


def refused(path):
    """The message: one line that begins with the file."""
    with pytest.raises(InputError) as caught:
        load_embedder(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_an_untrained_embedder_knows_how_rare_tokens_are(embedder):
    assert isinstance(embedder.encoder, MAWEncoder)
    assert not embedder.encoder.training
    weights = embedder.encoder.token_weight
    bees, bread = (ids[-1] for ids in embedder.text.tokenize(["bees", "bread"]))
    # Of 2 documents a token is in both, in one, in none: log(3 / 2.5) is cut at .5.
    assert weights[bees].item() == pytest.approx(math.log(0.5))
    assert weights[bread].item() == pytest.approx(math.log(math.log(3 / 1.5)))
    assert weights[1234].item() == pytest.approx(math.log(math.log(3 / 0.5)))


def test_an_untrained_embedder_of_no_depths_is_non_maw():
    embedder = untrained_embedder([], EncoderSettings(depths=0))
    assert type(embedder.encoder) is NonMAWEncoder
    assert untrained_embedder([]).encoder.settings == EncoderSettings()


def test_round_trip(original, embedder):
    found, provenance = load_embedder(original)
    assert provenance == PROVENANCE
    assert isinstance(found.encoder, MAWEncoder)
    assert found.encoder.settings == SMALL
    assert (found.query_tokens, found.document_tokens) == (64, 256)
    assert not found.encoder.training
    assert all(tensor.device.type == "cpu" for tensor in found.tensors().values())
    assert set(found.tensors()) == set(embedder.tensors())
    for name, tensor in embedder.tensors().items():
        assert torch.equal(found.tensors()[name], tensor)
    chosen = torch.tensor([0, 1, 1])
    assert torch.equal(found.encode_documents(TEXTS), embedder.encode_documents(TEXTS))
    expected = embedder.encode_queries(TEXTS, chosen)
    assert torch.equal(found.encode_queries(TEXTS, chosen), expected)


def test_a_loaded_encoder_can_be_trained(original):
    found, _ = load_embedder(original)
    assert all(parameter.requires_grad for parameter in found.encoder.parameters())


def test_round_trip_of_a_non_maw_encoder_and_its_limits(path):
    settings = EncoderSettings(depths=0, heads=4)
    made = untrained_embedder([], settings)
    save_embedder(path, Embedder(made.text, made.encoder, 5, 6), {})
    found, provenance = load_embedder(path)
    assert (found.query_tokens, found.document_tokens, provenance) == (5, 6, {})
    assert type(found.encoder) is NonMAWEncoder
    assert found.encoder.settings == settings
    assert torch.equal(found.encode_documents(TEXTS), made.encode_documents(TEXTS))


def test_trained_token_embeddings_travel_along(path, embedder):
    table = torch.nn.Parameter(WordLlama().embedding * 2)
    save_embedder(path, Embedder(WordLlama(table), embedder.encoder), {})
    found, _ = load_embedder(path)
    assert found.text.trained
    assert torch.equal(found.text.embedding, table)
    assert set(found.text.own_weights()) == {"embedding"}
    assert WordLlama().trained is False


def test_packaged_token_embeddings_stay_at_home(original):
    assert not any(name.startswith("text.") for name in load_file(original))


def changed(original, path, tensors=lambda found: None, settings=lambda found: None):
    """The file with other tensors or settings, still well-formed."""
    told, found = files.read(original, "encoder")
    tensors(found)
    settings(told)
    files.write(path, found, "encoder", told)


def test_an_unchanged_copy_loads(original, path):
    changed(original, path)
    assert load_embedder(path)[1] == PROVENANCE


TENSORS = {
    "gone": (
        lambda found: found.pop("key_proj.weight"),
        "tensor 'key_proj.weight' is gone",
    ),
    "unknown": (
        lambda found: found.update(extra=torch.ones(1)),
        "tensor 'extra' is unknown",
    ),
    "token embeddings unasked for": (
        lambda found: found.update({"text.embedding": torch.ones(1)}),
        "tensor 'text.embedding' has shape (1,), expected (32000, 256)",
    ),
    "shape": (
        lambda found: found.update({"norm.weight": torch.ones(255)}),
        "tensor 'norm.weight' has shape (255,), expected (256,)",
    ),
    "not a number": (
        lambda found: found["out_proj.weight"].__setitem__((0, 0), float("nan")),
        "tensor 'out_proj.weight' holds values that are not finite",
    ),
    "type": (
        lambda found: found.update({"norm.weight": torch.ones(256, dtype=torch.int64)}),
        "tensor 'norm.weight' is torch.int64, expected torch.float32",
    ),
}


@pytest.mark.parametrize("change", TENSORS)
def test_other_tensors_than_the_settings_say(original, path, change):
    tensors, message = TENSORS[change]
    changed(original, path, tensors)
    assert refused(path).endswith(message)


SETTINGS = {
    "no shape": lambda found: found.pop("encoder"),
    "shape is a number": lambda found: found.update(encoder=3),
    "shape is a list": lambda found: found.update(encoder=[256]),
    "hidden": lambda found: found["encoder"].update(hidden=10**9),
    "hidden is small": lambda found: found["encoder"].update(hidden=8),
    "hidden is text": lambda found: found["encoder"].update(hidden="256"),
    "hidden is no whole number": lambda found: found["encoder"].update(hidden=256.0),
    "hidden is nothing": lambda found: found["encoder"].update(hidden=None),
    "vocabulary": lambda found: found["encoder"].update(vocabulary=10**12),
    "depths": lambda found: found["encoder"].update(depths=3),
    "depths are many": lambda found: found["encoder"].update(depths=10**9),
    "depths are too many to count": lambda found: found["encoder"].update(depths=10**18),
    "depths are beyond numbers": lambda found: found["encoder"].update(depths=10**400),
    "no depths": lambda found: found["encoder"].update(depths=0),
    "depths are negative": lambda found: found["encoder"].update(depths=-1),
    "heads": lambda found: found["encoder"].update(heads=3),
    "heads are none": lambda found: found["encoder"].update(heads=0),
    "text encoder": lambda found: found.update(text="bert"),
    "text encoder is a list": lambda found: found.update(text=["wordllama"]),
    "no limit": lambda found: found.pop("query_tokens"),
    "limit is negative": lambda found: found.update(query_tokens=-1),
    "limit is zero": lambda found: found.update(document_tokens=0),
    "limit is text": lambda found: found.update(document_tokens="all"),
    "limit is nothing": lambda found: found.update(document_tokens=None),
    "provenance": lambda found: found.update(provenance=3),
    "no provenance": lambda found: found.pop("provenance"),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_wrong_settings(original, path, change):
    changed(original, path, settings=SETTINGS[change])
    refused(path)


def test_settings_of_a_later_version_are_left_out(original, path):
    changed(original, path, settings=lambda found: found["encoder"].update(colour="red"))
    assert load_embedder(path)[0].encoder.settings == SMALL


def test_a_file_cut_short(original, path):
    content = original.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path)


def test_foreign_files(path, tmp_path):
    refused(path)  # none there
    save_file({"weight": torch.ones(3)}, path)
    assert refused(path).endswith("was not written by maw_gym; give another encoder file")


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_nothing_in_a_file_is_run(path, tmp_path):
    target = tmp_path / "exploded"
    for dump in (pickle.dump, torch.save):
        with path.open("wb") as file:
            dump(Bomb(str(target)), file)
        refused(path)
    assert not target.exists()
