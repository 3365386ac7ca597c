"""File formats: the zip archives of torch, safetensors, memory maps."""
