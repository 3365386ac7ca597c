"""Maps tensors of files to parameters: the official files, diffusers, T5."""
