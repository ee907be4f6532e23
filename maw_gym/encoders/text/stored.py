"""A transformer in an encoder's file: its settings, shapes and weights."""

import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from maw_gym.encoders.text.library import (
    check_kind,
    checked_transformer,
    first_line,
    import_transformers,
    quietly,
    with_attention,
)
from maw_gym.encoders.text.transformer import Transformer, model_weights

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
        self.transformers = import_transformers(name)
        self.positions, self.pad = about["positions"], about["pad"]
        self.tuned = bool(about["tuned"])
        given = {key: value for key, value in about["config"].items() if key not in LEFT_OUT}
        try:
            self.tokenizer = Tokenizer.from_str(about["tokenizer"])
            self.config = self.transformers.AutoConfig.for_model(**given)
            check_kind(self.transformers, name, self.config)
            if not 0 <= self.config.num_hidden_layers <= MOST_LAYERS:
                raise ValueError(f"{self.config.num_hidden_layers} layers")
            with torch.device("meta"):
                self.skeleton = self._model()
        # Tokenizer.from_str raises Exception itself.
        except Exception as error:
            raise ValueError(f"no text encoder: {first_line(error)}") from None
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
        text = checked_transformer(self.name, model, self.tokenizer, self.positions, self.pad)
        text.tuned = self.tuned
        return text

    def _model(self) -> Any:
        with quietly(self.transformers):
            return with_attention(
                lambda kind: self.transformers.AutoModel.from_config(
                    self.config,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    attn_implementation=kind,
                )
            )
