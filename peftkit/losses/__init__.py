"""What is minimised, each loss a sum over supervised items."""
