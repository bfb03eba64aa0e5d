"""Training: step, optimizer, sharding, checkpoints and metrics."""
