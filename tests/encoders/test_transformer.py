"""A tiny transformer as text encoder; what transformers itself says is the reference."""

import json
import shutil
import sys

import pytest
import torch
from tiny_transformer import write_tiny_transformer

from maw_gym.encoders.embedder import Embedder, encoder_shape, untrained_embedder
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.text import load_text_encoder, padded
from maw_gym.encoders.transformer import Transformer
from maw_gym.errors import InputError

TEXTS = ["how bees make honey", "", "bread", "  \n", "The MOON!", "a tide of honey " * 30]
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def text(tiny_transformer):
    return load_text_encoder(str(tiny_transformer))


@pytest.fixture(scope="module")
def states_of(tiny_transformer):
    """What transformers alone gives for the token ids of one text."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_transformer).eval().requires_grad_(False)
    return lambda ids: model(input_ids=torch.tensor([ids])).last_hidden_state[0]


# --- tokens and states -----------------------------------------------------------------------


def test_width_heads_and_limits_are_the_models(text):
    assert (text.width, text.heads, text.vocabulary, text.positions) == (24, 3, 66, 96)
    assert (text.static, text.trained, text.prompts) == (False, False, {})


def test_texts_stand_between_the_tokenizers_special_tokens(text):
    # Texts without any other token, such as half a character, have none.
    found = text.tokenize(["how bees make honey", "zoo", "", "  \n", "\ud800"])
    assert found == [[2, 11, 4, 12, 6, 3], [2, 39, 54, 54, 3], [], [], []]
    assert text.tokenize([]) == []
    assert text.tokens(found[0]) == ["[CLS]", "how", "bees", "make", "honey", "[SEP]"]
    assert text.tokens([39, 54, 66]) == ["z", "##o", "<66>"]
    # A cut text keeps its closing token.
    cuts = {limit: text.cut(found[0], limit) for limit in (60, 6, 4, 2, 1)}
    assert cuts == {60: found[0], 6: found[0], 4: [2, 11, 4, 3], 2: [2, 3], 1: [3]}
    assert text.cut([], 5) == []


def test_states_are_the_models_last_hidden_states(text, states_of):
    rows = [ids for ids in text.tokenize(TEXTS[:5]) if ids]
    hidden = text.hidden(*padded(rows))
    assert hidden.dtype == torch.float32
    assert not hidden.requires_grad
    for row, alone in enumerate(rows):
        assert torch.allclose(hidden[row, : len(alone)], states_of(alone), atol=1e-5)
        assert torch.allclose(text.hidden(torch.tensor([alone]))[0], states_of(alone), atol=1e-5)
    assert text.hidden(*padded([[], rows[0]])).isfinite().all()


# --- embeddings ------------------------------------------------------------------------------


def test_texts_are_cut_at_the_models_positions(text):
    embedder = untrained_embedder([], None, text)
    assert (embedder.query_tokens, embedder.document_tokens) == (64, 96)
    assert [len(ids) for ids in embedder.document_ids(TEXTS)] == [6, 0, 3, 0, 5, 96]
    assert embedder.encode_documents(TEXTS).isfinite().all()
    for limits, setting in (((97, 5), "query_tokens"), ((5, 97), "document_tokens")):
        with pytest.raises(
            InputError, match=rf"^{setting} 97 is more than the 96 tokens that text encoder 'tiny_"
        ):
            Embedder(text, embedder.encoder, *limits)


def test_texts_together_equal_texts_alone(text):
    embedder = untrained_embedder([], encoder_shape(text, depths=4), text)
    for depths in (None, torch.tensor([0, 1, 2, 3, 0, 1])):
        together = embedder.encode_queries(TEXTS, depths)
        assert together.norm(dim=1).tolist() == pytest.approx([1, 0, 1, 0, 1, 1], abs=1e-5)
        for row, one in enumerate(TEXTS):
            depth = None if depths is None else depths[row : row + 1]
            alone = embedder.encode_queries([one], depth)[0]
            assert torch.allclose(alone, together[row], atol=1e-5)
    first, last = (embedder.encode_queries(TEXTS[:1], torch.tensor([d]))[0] for d in (0, 3))
    assert (first - last).norm() > 1e-3


# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [10**9, 10**4], ids=["plenty of memory", "little memory"])
def test_a_trainable_copy_has_the_models_gradient(text, monkeypatch, free):
    monkeypatch.setattr("maw_gym.encoders.transformer.free_memory", lambda device: free)
    packaged = Transformer("minilm-0", text.model, text.fast_tokenizer, packaged=True)
    assert packaged.own_weights() == {}
    trained = packaged.trainable(1000, torch.device("cpu"))
    assert set(trained.own_weights()) == set(text.weights())  # no longer the packaged ones
    # 4 bytes * 48 * width 24 * 2 layers * 1000 tokens are 9.2 MB.
    assert trained.recompute is (free == 10**4)
    ids, mask = padded(text.tokenize(["how bees make honey", "bread"]))
    weight = trained.weights()[QUERY]

    def loss():
        return trained.hidden(ids, mask)[mask][:, :5].square().sum()

    loss().backward()
    losses = []
    with torch.no_grad():
        for step in (1e-2, -1e-2):
            weight[0, 0] += step
            losses.append(loss().item())
            weight[0, 0] -= step
    slope = (losses[0] - losses[1]) / 2e-2
    assert abs(slope) > 1e-2
    assert weight.grad[0, 0].item() == pytest.approx(slope, rel=0.02)
    assert not text.trained
    assert text.weights()[QUERY].grad is None


# --- folders ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_transformer, tmp_path):
    """A copy of the model's folder, to be changed."""
    return shutil.copytree(tiny_transformer, tmp_path / tiny_transformer.name)


def test_equal_models_have_equal_names_and_a_changed_folder_is_read_again(text, folder):
    before = load_text_encoder(str(folder))
    assert before.name == text.name
    assert load_text_encoder(str(folder)) is before
    write_tiny_transformer(folder, intermediate_size=32)
    assert load_text_encoder(str(folder)).name != text.name


@pytest.mark.parametrize(
    ("stored", "query", "document"),
    [
        ({"prompts": {"query": "how ", "passage": "bread "}}, "how ", "bread "),
        ({"prompts": {"query": "how "}, "default_prompt_name": "query"}, "how ", ""),
        ({"prompts": {"a": "moon "}, "default_prompt_name": "a"}, "moon ", "moon "),
        ({"prompts": {"a": "moon "}}, "", ""),
        ({"prompts": None}, "", ""),
    ],
)
def test_the_models_own_prompts_go_before_texts(text, folder, tmp_path, stored, query, document):
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stored))
    found = load_text_encoder(str(folder))
    assert (found.name == text.name) is (query + document == "")
    embedder = untrained_embedder([], encoder_shape(found, depths=2), found)
    save_embedder(tmp_path / "encoder.safetensors", embedder, {})
    for one in (embedder, load_embedder(tmp_path / "encoder.safetensors")[0]):
        assert one.query_ids(["honey", ""]) == [*text.tokenize([query + "honey"]), []]
        assert one.document_ids(["honey", " "]) == [*text.tokenize([document + "honey"]), []]


# --- what can go wrong -----------------------------------------------------------------------


def message(name):
    with pytest.raises(InputError) as caught:
        load_text_encoder(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


NO_FOLDER = "text encoder {!r} is no folder; give 'wordllama', "


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minilmm", "unknown text encoder 'minilmm'; did you mean 'minilm'?"),
        ("word-llama", "unknown text encoder 'word-llama'; did you mean 'wordllama'?"),
        # Without a network and without it in the cache of the hub.
        (
            "maw-gym/none",
            "unknown text encoder 'maw-gym/none': no such folder, and no hub has it (",
        ),
        ("Bert", "unknown text encoder 'Bert': no such folder, and no hub has it ("),
        ("a" * 300, "unknown text encoder 'aaa"),
        *((name, NO_FOLDER.format(name)) for name in ("./nowhere", "/no/where", "~/nowhere", "")),
    ],
)
def test_unknown_names(name, expected):
    assert message(name).startswith(expected)


def test_without_transformers(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    expected = "needs transformers; pip install 'maw_gym[transformers]'"
    assert message("some/model") == f"text encoder 'some/model' {expected}"


def configured(**changes):
    """Changes config.json; {} keeps nothing of it."""

    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def of_another(name, **changes):
    """A file of a model of other settings."""

    def change(folder):
        other = write_tiny_transformer(folder.with_name("other"), **changes)
        shutil.copy(other / name, folder)

    return change


CODE = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
WRONG = {
    "no weights": (without("model.safetensors"), "has no weights; save it with save_pretrained as"),
    "no configuration": (without("config.json"), "no configuration of a text encoder"),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        "it has no tokenizer.json; save the tokenizer beside the model",
    ),
    "prompts that are none": (
        written("config_sentence_transformers.json", b'{"prompts": {"query": 3}}'),
        "cannot be read (prompts {'query': 3, ",
    ),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "has only pytorch_model.bin, whose reading may run code; save it",
    ),
    "damaged weights": (written("model.safetensors", b"\1" * 1000), "cannot be read ("),
    "weights of fewer layers": (
        of_another("model.safetensors", num_hidden_layers=1),
        "its weights are not those of its config.json, 16 do not fit, such as encoder.layer.1.",
    ),
    "weights of other widths": (
        of_another("model.safetensors", intermediate_size=32),
        "text encoder ",
    ),
    "a smaller vocabulary": (
        lambda folder: write_tiny_transformer(folder, vocab_size=60),
        "its tokenizer has token ids up to 65, its model embeds 60; save the two",
    ),
    "code of its own": (configured(**CODE), "cannot be read ("),
    **{
        f"a {kind}": (
            written("config.json", json.dumps({"model_type": kind}).encode()),
            f"it is a {kind}, which has not one last hidden state per token; give",
        )
        for kind in ("t5", "vit")
    },
    **{
        f"{name} {value}": (configured(**{name: value}), "text encoder ")
        for name, value in (
            ("num_labels", 10**12),
            ("num_hidden_layers", 10**9),
            ("max_position_embeddings", 10**8),
            ("vocab_size", 10**12),
            ("hidden_size", "24"),
            ("num_attention_heads", 7),
            ("model_type", None),
        )
    },
    **{
        f"tokenizer {content!r}": (written("tokenizer.json", content), "text encoder ")
        for content in (b"", b"[]", b'{"model": {"type": "WordPiece"}}', b"\0" * 99)
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_folders_that_hold_no_model(folder, what):
    change, expected = WRONG[what]
    (folder / "code.py").write_text("raise SystemExit('code of the model was run')")
    change(folder)
    found = message(folder)
    assert expected in found
    assert str(folder) in found
