"""A router on its own, and with its encoder as a retriever."""
