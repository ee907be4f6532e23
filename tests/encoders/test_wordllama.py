import pytest
import torch

from maw_gym.encoders.text import WordLlama, load_text_encoder, padded
from maw_gym.errors import InputError


@pytest.fixture(scope="module")
def text():
    return WordLlama()


def test_shape_of_the_packaged_table(text):
    assert (text.name, text.width, text.vocabulary, text.static) == ("wordllama", 256, 32_000, True)
    assert text.embedding.dtype == torch.float32
    assert text.embedding.std().item() == pytest.approx(1, abs=1e-5)


def test_tokens_have_no_special_ones_and_are_not_cut(text):
    assert text.tokenize(["hello world"]) == [[22172, 3186]]
    assert text.tokens([22172, 3186]) == ["▁hello", "▁world"]
    assert [len(ids) for ids in text.tokenize(["hello " * 5000])] == [5000]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HELLO WORLD", "hello world"),
        ("WHAT IS A V-2 ROCKET?", "what is a v-2 rocket?"),
        ("hello \n\t world ", "hello world"),
        ("\ud800 hello", "\ufffd hello"),
        ("\ud83d\ude00", "\U0001f600"),  # two halves of one character
    ],
)
def test_texts_that_are_the_same(text, one, other):
    first, second = text.tokenize([one, other])
    assert first == second
    assert first


def test_case_matters_where_a_text_is_not_all_upper_case(text):
    first, second = text.tokenize(["NASA rockets", "nasa rockets"])
    assert first != second


def test_texts_without_tokens(text):
    assert text.tokenize(["", "  \n", "hello"]) == [[], [], [22172]]
    assert text.tokenize([]) == []


def test_control_characters_and_long_words_are_tokens(text):
    for ids in text.tokenize(["\x00\x01", "a" * 10_000]):
        assert ids
        assert all(0 <= token < 32_000 for token in ids)


def test_hidden_states_are_rows_of_the_table(text):
    hidden = text.hidden(torch.tensor([[3, 5], [5, 0]]))
    assert hidden.shape == (2, 2, 256)
    assert torch.equal(hidden[0, 1], text.embedding[5])
    assert torch.equal(hidden[0, 1], hidden[1, 0])


def test_a_table_of_ones_own():
    table = torch.arange(32_000 * 4, dtype=torch.float32).view(32_000, 4)
    text = WordLlama(table)
    assert text.width == 4
    assert text.hidden(torch.tensor([1])).tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert text.own_weights()["embedding"] is table
    assert WordLlama().own_weights() == {}


def test_unknown_name():
    assert load_text_encoder("wordllama").width == 256
    with pytest.raises(InputError, match=r"^unknown text encoder 'Bert': no .*; give 'wordl"):
        load_text_encoder("Bert")


def test_padding():
    ids, mask = padded([[7, 8, 9], [], [5]])
    assert ids.tolist() == [[7, 8, 9], [0, 0, 0], [5, 0, 0]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_padding_of_nothing_has_one_column():
    assert [tuple(t.shape) for t in padded([[]])] == [(1, 1), (1, 1)]
    assert [tuple(t.shape) for t in padded([])] == [(0, 1), (0, 1)]


def test_loading_leaves_the_callers_log_alone(run_python):
    run_python(
        "import logging; from maw_gym.encoders.text import WordLlama; WordLlama();"
        "assert not logging.root.handlers and logging.root.level == logging.WARNING"
    )
