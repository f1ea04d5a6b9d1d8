"""A frozen backbone: how it is loaded, and how its weights are stored in 16, 8 or 4 bits."""
