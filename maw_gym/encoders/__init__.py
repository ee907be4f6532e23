"""Text encoders, attention encoders over them, and both on disk."""
