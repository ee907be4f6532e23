"""Text to token ids to hidden states: the models that encoders stand on."""

from maw_gym.encoders.text.loading import load_text_encoder, text_encoders
from maw_gym.encoders.text.protocol import TextEncoder, length_batches, on_device, padded
from maw_gym.encoders.text.transformer import Transformer
from maw_gym.encoders.text.wordllama import WordLlama

__all__ = [
    "TextEncoder",
    "Transformer",
    "WordLlama",
    "length_batches",
    "load_text_encoder",
    "on_device",
    "padded",
    "text_encoders",
]
