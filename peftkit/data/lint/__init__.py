"""The lint: what is likely not meant in the rows that a model learns from."""
