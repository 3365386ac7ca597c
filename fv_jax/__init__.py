"""fv_jax: FlashVideo in JAX. Text to 1080p video in two stages, trained and sampled on TPU, GPU or CPU."""

__version__ = '0.1.0'
