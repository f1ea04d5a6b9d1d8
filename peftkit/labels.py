"""The label of what no loss counts."""

IGNORED = -100
"""The label of padding, of prompts, and of rows without a label: torch's default `ignore_index`."""
