"""Depth tables, their columns and files, and the task that builds them."""
