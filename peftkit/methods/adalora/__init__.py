"""AdaLoRA (arXiv:2303.10512): LoRA whose rank falls, layer by layer, to a budget."""
