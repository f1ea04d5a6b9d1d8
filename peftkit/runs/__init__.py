"""One run, from its config to its report; several runs compared; a sweep over settings."""
