"""Bottleneck adapters (arXiv:1902.00751, arXiv:2005.00052, arXiv:2110.04366)."""
