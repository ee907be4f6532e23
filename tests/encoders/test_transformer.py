"""A tiny transformer as text encoder; what transformers itself says is the reference."""

import copy
import json
import shutil
import sys
from dataclasses import replace

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


def test_states_are_the_models_last_hidden_states(text, tiny_transformer):
    from transformers import AutoModel

    assert (text.width, text.heads, text.vocabulary, text.positions) == (24, 3, 66, 96)
    assert (text.static, text.trained, text.prompts) == (False, False, {})
    model = AutoModel.from_pretrained(tiny_transformer).eval()
    rows = [ids for ids in text.tokenize(TEXTS[:5]) if ids]
    hidden = text.hidden(*padded(rows))
    assert hidden.dtype == torch.float32
    assert not hidden.requires_grad
    for row, ids in enumerate(rows):
        alone = torch.tensor([ids])
        expected = model(input_ids=alone).last_hidden_state[0]
        assert torch.allclose(hidden[row, : len(ids)], expected, atol=1e-5)
        assert torch.allclose(text.hidden(alone)[0], expected, atol=1e-5)
    assert text.hidden(*padded([[], rows[0]])).isfinite().all()


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


def test_texts_are_cut_at_the_models_positions(text):
    embedder = untrained_embedder([], None, text)
    assert (embedder.query_tokens, embedder.document_tokens) == (64, 96)
    assert [len(ids) for ids in embedder.document_ids(TEXTS)] == [6, 0, 3, 0, 5, 96]
    for limits, setting in (((97, 5), "query_tokens"), ((5, 97), "document_tokens")):
        with pytest.raises(
            InputError, match=rf"^{setting} 97 is more than the 96 tokens that text encoder 'tiny_"
        ):
            Embedder(text, embedder.encoder, *limits)


@pytest.mark.parametrize("free", [10**9, 10**4], ids=["plenty of memory", "little memory"])
def test_a_trainable_copy_has_the_models_gradient(text, monkeypatch, free):
    monkeypatch.setattr("maw_gym.encoders.transformer.free_memory", lambda device: free)
    packaged = Transformer("minilm-0", text.model, text.fast_tokenizer, packaged=True)
    assert packaged.own_weights() == {}
    trained = packaged.trainable(1000, torch.device("cpu"))
    # 4 bytes * 48 * width 24 * 2 layers * 1000 tokens are 9.2 MB.
    assert trained.recompute is (free == 10**4)
    ids, mask = padded(text.tokenize(["how bees make honey", "bread"]))
    trained.hidden(ids, mask)[mask][:, :5].square().sum().backward()
    found = trained.own_weights()[QUERY].grad  # no longer the packaged ones
    model = copy.deepcopy(text.model).requires_grad_(True)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    states[mask][:, :5].square().sum().backward()
    assert found.abs().max() > 1e-2
    torch.testing.assert_close(found, model.get_parameter(QUERY).grad)
    assert not text.trained
    assert text.weights()[QUERY].grad is None


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


@pytest.mark.parametrize("kind", ["query", "document"])
def test_a_prompt_has_to_leave_room_for_a_text(folder, kind):
    stored = {"prompts": {kind: "how moon honey"}}  # 3 tokens, and one at either end
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stored))
    text = load_text_encoder(str(folder))
    embedder = untrained_embedder([], encoder_shape(text, depths=2), text)
    assert replace(embedder, **{f"{kind}_tokens": 6})
    with pytest.raises(InputError, match=f"^{kind}_tokens 5 leaves no room behind the prompt 'how"):
        replace(embedder, **{f"{kind}_tokens": 5})


def message(name):
    with pytest.raises(InputError) as caught:
        load_text_encoder(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


NO_FOLDER = "text encoder {!r} is no folder; give 'wordllama', "
NO_HUB = "unknown text encoder {!r}: no such folder, and no hub has it ("  # nor its cache


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minilmm", "unknown text encoder 'minilmm'; did you mean 'minilm'?"),
        ("word-llama", "unknown text encoder 'word-llama'; did you mean 'wordllama'?"),
        *((name, NO_HUB.format(name)) for name in ("maw-gym/none", "Bert")),
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


WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
PROMPTS = "config_sentence_transformers.json"
CODE = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
NO_STATES = "which has not one last hidden state per token; give"
# By file what it holds instead: None for no file, a dictionary of changes to a JSON file, bytes.
WRONG = [
    ({WEIGHTS: None}, "has no weights; save it with save_pretrained as"),
    ({CONFIG: None}, "no configuration of a text encoder"),
    (
        {TOKENIZER: None, "tokenizer_config.json": None},
        "it has no tokenizer.json; save the tokenizer beside the model",
    ),
    ({PROMPTS: b'{"prompts": {"query": 3}}'}, "cannot be read (prompts {'query': 3, "),
    (
        {WEIGHTS: None, "pytorch_model.bin": b""},
        "has only pytorch_model.bin, whose reading may run code; save it",
    ),
    ({WEIGHTS: b"version https://git-lfs.github.com/spec/v1"}, "is a pointer of git-lfs, not the"),
    ({WEIGHTS: b"\1" * 1000}, "cannot be read ("),
    (
        {CONFIG: {"num_hidden_layers": 3}},
        "its weights are not those of its config.json, 16 do not fit, such as encoder.layer.2.",
    ),
    ({CONFIG: {"intermediate_size": 32}}, ""),
    ({CONFIG: CODE}, "cannot be read ("),
    ({CONFIG: b'{"model_type": "t5"}'}, f"it is a t5, {NO_STATES}"),
    ({CONFIG: b'{"model_type": "vit"}'}, f"it is a vit, {NO_STATES}"),
    *(({CONFIG: {name: 10**9}}, "") for name in ("num_labels", "num_hidden_layers", "vocab_size")),
    ({CONFIG: {"max_position_embeddings": 10**8}}, ""),
    *(({CONFIG: change}, "") for change in ({"hidden_size": "24"}, {"num_attention_heads": 7})),
    ({CONFIG: {"model_type": None}}, ""),
    *(({TOKENIZER: some}, "") for some in (b"", b"[]", b'{"model": {"type": "W"}}', b"\0" * 99)),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG)
def test_folders_that_hold_no_model(folder, changes, expected):
    (folder / "code.py").write_text("raise SystemExit('code of the model was run')")
    for name, content in changes.items():
        path = folder / name
        if content is None:
            path.unlink()
        elif isinstance(content, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | content))
        else:
            path.write_bytes(content)
    found = message(folder)
    assert expected in found
    assert str(folder) in found


def test_a_smaller_vocabulary_than_the_tokenizers(folder):
    write_tiny_transformer(folder, vocab_size=60)
    expected = "its tokenizer has token ids up to 65, its model embeds 60; save the two"
    assert expected in message(folder)
