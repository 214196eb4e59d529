"""The training loop of both trees: steps, checkpoints, logs, and stopping so that nothing is lost."""
