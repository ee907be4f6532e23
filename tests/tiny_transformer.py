"""A transformer of two tiny layers with random weights, and its tokenizer, as a folder."""

from string import ascii_lowercase as LETTERS

import torch
from tokenizers.implementations import BertWordPieceTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("bees", "bread", "honey", "moon", "tide", "the", "of", "how", "make", "word")
# WordPiece over ten words, the letters a to z and their continuations; a text is folded.
PIECES = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def write_tiny_transformer(folder, **changes):
    """Write a BERT of 2 layers, width 24, 3 heads and 96 positions; `changes` to its settings."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    settings = {
        "vocab_size": len(PIECES),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
        # Beyond BERT's .02, so that untrained layers mix their tokens.
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(**(settings | changes))).save_pretrained(folder)
    tokenizer = BertWordPieceTokenizer({piece: row for row, piece in enumerate(PIECES)})
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **names).save_pretrained(folder)
    return folder
