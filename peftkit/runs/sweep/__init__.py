"""Search for settings: many runs of a recipe, chosen by Optuna (arXiv:1907.10902)."""
