"""The preview: what a model reads and learns of some rows, for a person to see."""
