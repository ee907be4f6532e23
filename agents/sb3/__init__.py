"""What Stable-Baselines3 needs around a training: adapter, callbacks, checkpoints, state."""
