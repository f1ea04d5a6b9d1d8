"""The training loop on Accelerate, its checkpoints, its metrics and its report."""
