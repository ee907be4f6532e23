"""The environments and what they share."""
