"""LoRA (arXiv:2106.09685): a trained update of low rank beside a frozen weight."""
