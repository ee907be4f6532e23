"""A transformer of two tiny layers with random weights, and its tokenizer, as a folder."""

import string

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("bees", "bread", "honey", "moon", "tide", "the", "of", "how", "make", "word")
POSITIONS = 96
WIDTH = 24


def tiny_tokenizer():
    """WordPiece over ten words, the letters a to z and their continuations; a text is folded."""
    letters = string.ascii_lowercase
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: row for row, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write_tiny_transformer(folder, **changes):
    """Write a BERT of 2 layers, width 24, 3 heads and 96 positions; `changes` to its settings."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    settings = {
        "vocab_size": len(SPECIAL) + len(WORDS) + 2 * 26,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
        # Beyond BERT's .02, so that untrained layers mix their tokens.
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(**(settings | changes))).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return folder
