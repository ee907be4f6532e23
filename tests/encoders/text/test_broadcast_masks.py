"""Masks (B, 1, 1, S), for which no GPU is waited: which models take them, and what comes out."""

import pytest
import torch

from maw_gym.encoders.text import Transformer, load_text_encoder, padded


@pytest.fixture(scope="module")
def text(tiny_transformer):
    return load_text_encoder(str(tiny_transformer))


def test_a_broadcast_mask_means_to_a_bert_what_its_own_does(text):
    assert text.takes_broadcast_masks(torch.device("cpu"))
    ids, mask = padded(text.tokenize(["how bees make honey", "bread"]))
    wide = text._states_under(ids, mask[:, None, None])
    assert torch.allclose(wide[mask], text.hidden(ids, mask)[mask], atol=1e-6)


def test_a_model_that_looks_at_neighbours_alone_gets_its_own_masks(text):
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=300, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=3, global_attn_every_n_layers=2, local_attention=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    local = Transformer("local", ModernBertModel(config), text.tokenizer, 512)
    assert not local.takes_broadcast_masks(torch.device("cpu"))


@pytest.mark.parametrize("problem", [AssertionError, KeyError, ValueError])
def test_a_model_that_fails_over_broadcast_masks_gets_its_own(text, monkeypatch, problem):
    states_under = text._states_under

    def failing(ids, mask):
        if mask.ndim == 4:
            raise problem
        return states_under(ids, mask)

    wary = text.knowing()
    wary._broadcast = None
    monkeypatch.setattr(wary, "_states_under", failing)
    monkeypatch.setattr(
        "maw_gym.encoders.text.transformer.prefers_broadcast_masks", lambda ids: True
    )
    ids, mask = padded(text.tokenize(["how bees make honey", "bread"]))
    assert torch.equal(wary.hidden(ids, mask), text.hidden(ids, mask))
    assert wary._broadcast is False


def test_memory_that_is_short_while_masks_are_tried_is_said(text, monkeypatch):
    def short(ids, mask):
        raise torch.OutOfMemoryError

    wary = text.knowing()
    wary._broadcast = None
    monkeypatch.setattr(wary, "_states_under", short)
    with pytest.raises(torch.OutOfMemoryError):
        wary.takes_broadcast_masks(torch.device("cpu"))


def test_states_under_broadcast_masks_are_the_same(text, monkeypatch):
    ids, mask = padded(text.tokenize(["how bees make honey", "bread"]))
    expected = text.hidden(ids, mask)
    given = []
    wide = text.knowing()
    states_under = text._states_under
    monkeypatch.setattr(
        "maw_gym.encoders.text.transformer.prefers_broadcast_masks", lambda ids: True
    )
    monkeypatch.setattr(
        wide, "_states_under", lambda ids, m: given.append(m.shape) or states_under(ids, m)
    )
    found = wide.hidden(ids, mask)
    assert given[-1] == (2, 1, 1, ids.shape[1])
    assert torch.allclose(found[mask], expected[mask], atol=1e-6)
