"""The parts of runners/benchmark.py."""
