"""The tuning methods. Each is a folder with a `Method`; to add one, write the folder and its name.

Imports nothing heavy: what a method can do is in `peftkit.methods.method`, the keys that it takes
in a recipe's YAML in `peftkit.methods.settings`.
"""

NAMES = ("lora", "adalora", "bottleneck", "prefix", "ia3")
"""The names of the methods' folders, which ``adapter.method`` takes. The first is the default."""
