"""From files of rows to batches of tensors."""
