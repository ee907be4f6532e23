"""Depth attention, its statistics without the 5D tensor, and pooling."""
