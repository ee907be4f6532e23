"""What transformers is asked, and how: quietly, without code of a model's own, and checked.

transformers is imported on first use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from maw_gym.encoders.text.transformer import Transformer
from maw_gym.errors import InputError

NO_LIMIT: Final = 1_000_000  # tokenizers that know no longest text say 1e30
# transformers has no exception of its own for a model that it cannot make sense of.
FAILURES: Final = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


def import_transformers(name: str) -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"text encoder {name!r} needs transformers; pip install 'maw_gym[transformers]'"
        ) from None
    return transformers


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and reports; and missing poolers are always the same."""
    log = transformers.utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()


def with_attention(make: Any) -> Any:
    """`make` of the fastest attention that the architecture has.

    The name is always given: one in a configuration may be that of a kernel on a hub.
    """
    try:
        return make("sdpa")
    except ValueError:
        return make("eager")


def check_kind(transformers: Any, name: str, config: Any) -> None:
    """Refuse architectures whose last hidden states are not one per token of a text."""
    try:
        architecture = transformers.MODEL_MAPPING[type(config)]
    except KeyError:
        raise InputError(f"text encoder {name!r} is a {config.model_type}, unknown here") from None
    architecture = architecture[0] if isinstance(architecture, (list, tuple)) else architecture
    of_text = getattr(architecture, "main_input_name", "") == "input_ids"
    wanted = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    if not of_text or config.is_encoder_decoder or not all(hasattr(config, key) for key in wanted):
        raise InputError(
            f"text encoder {name!r} is a {config.model_type}, which has not one last hidden state"
            " per token; give an encoder such as BERT"
        )


def positions_of(model: Any, longest: float) -> int | None:
    """Tokens of the longest text that a model can read."""
    known = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if known is not None and padding is not None:
        known -= padding + 1  # RoBERTa counts from there
    limits = [int(limit) for limit in (known, longest) if limit and 0 < limit < NO_LIMIT]
    return min(limits, default=None)


def checked_transformer(
    name: str, model: Any, tokenizer: Tokenizer, positions: int | None, pad: int
) -> Transformer:
    """The text encoder, after it has encoded a word.

    Raises:
        InputError: tokenizer and model do not fit.
    """
    text = Transformer(name, model, tokenizer, positions, pad)
    most = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if most >= text.vocabulary:
        raise InputError(
            f"text encoder {name!r}: its tokenizer has token ids up to {most}, its model embeds"
            f" {text.vocabulary}; save the two that belong together"
        )
    try:
        (ids,) = text.tokenize(["word"])
        with torch.no_grad():
            shape = tuple(text.hidden(torch.tensor([ids])).shape)
    except FAILURES as error:
        raise InputError(f"text encoder {name!r} cannot encode: {first_line(error)}") from None
    if shape != (1, len(ids), text.width):
        raise InputError(
            f"text encoder {name!r} gives states of shape {shape} for {len(ids)} tokens and a width"
            f" of {text.width}; give an encoder such as BERT"
        )
    return text


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).splitlines()), type(error).__name__).strip()
