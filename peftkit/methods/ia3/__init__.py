"""IA3 (arXiv:2205.05638): learned vectors that scale keys, values and feed-forward inputs."""
