"""Which tensor of a file is which parameter: the official files, diffusers, T5."""
