"""The training loop on Accelerate: its order, its passes, its checkpoints and its log."""
