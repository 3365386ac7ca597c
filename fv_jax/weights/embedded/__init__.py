"""The weights that come with the package: a small VAE, trained by `configs/vae.py:tiny`, in 16 bits."""

from pathlib import Path

VAE_TINY = Path(__file__).parent / 'vae_tiny.safetensors'
