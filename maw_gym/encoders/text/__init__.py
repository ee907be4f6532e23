"""Text to token ids to hidden states: the models that encoders stand on."""

from maw_gym.encoders.text.wordllama import TextEncoder, WordLlama, load_text_encoder, padded

__all__ = ["TextEncoder", "WordLlama", "load_text_encoder", "padded"]
