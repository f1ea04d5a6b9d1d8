"""Prefix tuning (arXiv:2101.00190): learned keys and values in every attention."""
