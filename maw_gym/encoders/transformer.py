"""Transformer: the last hidden states of a pretrained model, frozen or trained along.

A model is a folder as `save_pretrained` writes it. Weights are read from safetensors alone, no code
of a model's own is run, and nothing is downloaded. transformers is imported on first use.
"""

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maw_gym.corpora.text import encodable
from maw_gym.errors import InputError, first_line
from maw_gym.files import check_readable

log = logging.getLogger(__name__)

# Numbers held for the backward pass, per token, layer and unit of width: on MiniLM half as many,
# on DeBERTa, whose attention holds most, these.
HELD_NUMBERS: Final = 48
NO_LIMIT: Final = 1_000_000  # tokenizers that know no longest text say 1e30
MOST_LAYERS: Final = 200
MOST_OF_ANYTHING: Final = 100_000  # heads, labels, ...: a configuration may claim any number
LARGEST_CONFIG: Final = 2**24  # bytes
BESIDE_WEIGHTS: Final = 2**28  # bytes of a model that its weights need not have, such as masks
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
POINTER: Final = b"version https://git-lfs"
PROMPTS: Final = "config_sentence_transformers.json"
FILES: Final = "config.json, tokenizer.json and model.safetensors"


# States (n, h) of a text's n token ids that were computed before, or None.
Known = Callable[[NDArray[np.int64]], Tensor | None]


class Transformer:
    """A pretrained transformer behind the `TextEncoder` protocol."""

    static = False

    def __init__(self, name: str, model: Any, tokenizer: Any, packaged: bool = False) -> None:
        self.name, self.packaged = name, packaged
        self.model: Any = model.eval().requires_grad_(False)
        self.config = model.config
        self.fast_tokenizer = tokenizer
        self.tokenizer: Tokenizer = tokenizer.backend_tokenizer
        self.positions = _positions(model, tokenizer.model_max_length)
        self.pad: int = tokenizer.pad_token_id or 0
        self.tuned = False  # trained here
        self.recompute = False  # activations, for the backward pass
        self.states: tuple[Known, ...] = ()
        self.prompts: dict[str, str] = {}  # before every "query" and "document"
        self.width = int(self.config.hidden_size)
        self.heads = int(self.config.num_attention_heads)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        special = self.tokenizer.encode("a").special_tokens_mask
        self._opening = special.index(0) if 0 in special else 0
        self._closing = special[::-1].index(0) if 0 in special else 0

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text between special tokens; empty texts have none."""
        few = self._opening + self._closing
        encodings = self.tokenizer.encode_batch_fast([encodable(text) for text in texts])
        return [encoding.ids if len(encoding) > few else [] for encoding in encodings]

    def cut(self, ids: Sequence[int], limit: int) -> list[int]:
        """The first `limit` token ids, the last of them special ones."""
        if len(ids) <= limit:
            return list(ids)
        closing = list(ids[len(ids) - self._closing :])[:limit]
        return [*ids[: limit - len(closing)], *closing]

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Last hidden states (B, S, h) float32 of the token ids (B, S); see `TextEncoder`."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if self.states and (known := self._known(ids, mask)) is not None:
            return known
        # Attention over no token at all is not a number.
        attended = mask.clone()
        attended[:, 0] = True
        given = ids.masked_fill(~attended, self.pad)
        training = self.trained and torch.is_grad_enabled()
        self.model.to(ids.device)

        def run(ids: Tensor, mask: Tensor) -> Tensor:
            found: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            return found

        with torch.autocast("cuda", torch.bfloat16, enabled=training and ids.is_cuda):
            if training and self.recompute:
                states: Tensor = checkpoint(run, given, attended, use_reentrant=False)
            else:
                states = run(given, attended)
        return states.float()

    def _known(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """States (B, S, h) from `states`, or None where one of the texts is in none of them."""
        result = torch.zeros(*ids.shape, self.width, dtype=torch.float16)
        lengths = mask.sum(1).tolist()
        for row, (text, length) in enumerate(zip(ids.cpu().numpy(), lengths, strict=True)):
            if length:
                found = (find(text[:length]) for find in self.states)
                known = next((one for one in found if one is not None), None)
                if known is None:
                    return None
                result[row, :length] = known
        return result.to(ids.device).float()

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokenizer's own form of each token id."""
        return [self.tokenizer.id_to_token(token) or f"<{token}>" for token in ids]

    @property
    def trained(self) -> bool:
        """Whether the weights take gradients."""
        return bool(next(self.model.parameters()).requires_grad)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and floating-point buffers that are saved, tied ones once."""
        saved = set(self.model.state_dict())
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: t for name, t in named if name in saved and t.is_floating_point()}

    def own_weights(self) -> dict[str, Tensor]:
        """All weights, or none where an installed package has them."""
        return {} if self.packaged else self.weights()

    def trainable(self, tokens: int, device: torch.device) -> "Transformer":
        """A copy whose weights take gradients, for batches of so many tokens."""
        text = copy.copy(self)
        text.states, text.packaged, text.tuned = (), False, True
        text.model = copy.deepcopy(self.model).to(device).requires_grad_(True)
        held = HELD_NUMBERS * self.width * int(self.config.num_hidden_layers) * tokens
        size = 4 if device.type == "cpu" else 2  # bytes; on a GPU most numbers are bfloat16
        text.recompute = size * held > free_memory(device) / 2
        if text.recompute:
            log.info("memory is short: what the backward pass needs is computed again")
        return text

    def knowing(self, *states: Known) -> "Transformer":
        """The same text encoder, which looks states up before it computes them."""
        text = copy.copy(self)
        text.states = states
        return text

    def save(self, folder: Path) -> None:
        """Write model, configuration and tokenizer to a folder, for `load_transformer`."""
        with _quietly(library(self.name)):
            self.model.save_pretrained(folder)
            self.fast_tokenizer.save_pretrained(folder)
        if self.prompts:
            (folder / PROMPTS).write_text(json.dumps({"prompts": self.prompts}), encoding="utf-8")


def load_transformer(name: str, folder: Path) -> Transformer:
    """The frozen transformer that `save_pretrained` wrote to a folder."""
    transformers = library(name)
    _check_files(name, folder)
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _refusing(name), _quietly(transformers):
        _check_numbers(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        config = transformers.AutoConfig.from_pretrained(folder, **own)
        _check_architecture(transformers, config, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **own)
        own |= {"config": config, "use_safetensors": True, "dtype": torch.float32}
        load = partial(transformers.AutoModel.from_pretrained, folder, **own)
        model, report = _with_attention(load, output_loading_info=True)
        # The last hidden states do not pass through the pooler.
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        wrong = missing or sorted(str(key) for key in report["mismatched_keys"])
        if wrong:
            raise InputError(
                f"its weights are not those of its config.json, {len(wrong)} do not fit, such as"
                f" {wrong[0]}; save model and configuration together"
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # Without its files a tokenizer is made that knows special tokens and nothing else.
        words = set(backend.get_vocab()) if isinstance(backend, Tokenizer) else set()
        if not words - set(tokenizer.all_special_tokens):
            raise InputError("it has no tokenizer.json; save the tokenizer beside the model")
        text = Transformer(name, model, tokenizer)
        text.prompts = _prompts(folder)
        _check_fit(text)
    return text


def _prompts(folder: Path) -> dict[str, str]:
    """What sentence-transformers has stored to go before every text of a kind."""
    if not (folder / PROMPTS).exists():
        return {}
    check_readable(folder / PROMPTS, "file of prompts", LARGEST_CONFIG)
    told = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    prompts = told.get("prompts") or {}
    of_documents = [name for name in ("document", "passage", "corpus") if name in prompts]
    named = "query" in prompts or of_documents
    default = "" if named else prompts.get(told.get("default_prompt_name"), "")
    document = prompts[of_documents[0]] if of_documents else default
    found = {"query": prompts.get("query", default), "document": document}
    if not all(isinstance(prompt, str) for prompt in found.values()):
        raise ValueError(f"prompts {found} of {PROMPTS}")
    return {kind: prompt for kind, prompt in found.items() if prompt}


def _check_fit(text: Transformer) -> None:
    """Refuse a tokenizer and a model that do not belong together, after encoding a word."""
    most = max(text.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if most >= text.vocabulary:
        raise InputError(
            f"its tokenizer has token ids up to {most}, its model embeds {text.vocabulary}; save"
            " the two that belong together"
        )
    if not 0 <= text.pad < text.vocabulary or (text.positions is not None and text.positions < 1):
        raise ValueError(f"padding {text.pad}, texts of {text.positions} tokens")
    (ids,) = text.tokenize(["word"])
    with torch.no_grad():
        shape = tuple(text.hidden(torch.tensor([ids])).shape)
    if shape != (1, len(ids), text.width):
        raise InputError(
            f"it gives states of shape {shape} for {len(ids)} tokens and a width of {text.width};"
            " give an encoder such as BERT"
        )


def library(name: str) -> Any:
    """Transformers."""
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"text encoder {name!r} needs transformers; pip install 'maw_gym[transformers]'"
        ) from None
    return transformers


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """One line in the place of whatever transformers or tokenizers raise."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except InputError as error:
        raise InputError(f"text encoder {name!r}: {error}") from None
    except BaseException as error:
        # What tokenizers' Rust code raises in a panic is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = first_line(error)
        raise InputError(
            f"text encoder {name!r} cannot be read ({reason}); give a folder with {FILES}"
        ) from None


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
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


def _with_attention(make: Callable[..., Any], **how: Any) -> Any:
    """`make` with the fastest attention that the architecture has."""
    try:
        return make(attn_implementation="sdpa", **how)
    except ValueError:
        return make(attn_implementation="eager", **how)


def _check_files(name: str, folder: Path) -> None:
    """Refuse a folder without weights in safetensors, or with pointers to them."""
    names = sorted(path.name for path in folder.iterdir())
    weights = [file for file in names if file.endswith(".safetensors")]
    if not weights:
        pickled = [file for file in names if file.endswith(PICKLES)]
        found = f"only {pickled[0]}, whose reading may run code" if pickled else "no weights"
        raise InputError(
            f"text encoder {name!r} has {found}; save it with save_pretrained as model.safetensors"
        )
    for file in weights:
        check_readable(folder / file, "weights file")
        with (folder / file).open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise InputError(
                    f"{folder / file} is a pointer of git-lfs, not the weights; run git lfs pull"
                )
    check_readable(folder / "config.json", "configuration of a text encoder", LARGEST_CONFIG)


def _check_numbers(config: Any) -> None:
    """Refuse counts in a configuration that would take all memory before there is a model."""
    for name, value in config.items() if isinstance(config, dict) else ():
        _check_numbers(value)
        if name.startswith(("num_", "n_")) and isinstance(value, (int, float)):
            most = MOST_LAYERS if "layer" in name else MOST_OF_ANYTHING
            if not 0 <= value <= most:
                raise ValueError(f"{name} {value} of config.json is not one of 0 to {most}")


def _check_architecture(transformers: Any, config: Any, folder: Path) -> None:
    """Refuse what has not one last hidden state per token, or is far larger than its weights."""
    architecture = transformers.MODEL_MAPPING.get(type(config), None)
    of_text = getattr(architecture, "main_input_name", "") == "input_ids"
    wanted = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    if not of_text or config.is_encoder_decoder or not all(hasattr(config, key) for key in wanted):
        raise InputError(
            f"it is a {config.model_type}, which has not one last hidden state per token; give an"
            " encoder such as BERT"
        )
    with torch.device("meta"):
        model = _with_attention(
            transformers.AutoModel.from_config, config=config, trust_remote_code=False
        )
    asked = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if asked > 4 * weights + BESIDE_WEIGHTS:  # one byte a number, at least, may be stored
        raise InputError(
            f"its config.json asks for {asked >> 20} MB, its weights have {weights >> 20}; save the"
            " two that belong together"
        )


def _positions(model: Any, longest: float) -> int | None:
    """Tokens of the longest text that a model can read."""
    known = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if known is not None and padding is not None:
        known -= padding + 1  # RoBERTa counts from there
    limits = [int(limit) for limit in (known, longest) if limit and 0 < limit < NO_LIMIT]
    return min(limits, default=None)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device now; of the CPU, half of what there is."""
    if device.type == "cuda":
        # What torch holds and does not use is free too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
