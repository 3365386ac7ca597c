"""Networks as flax NNX modules: single-device code that names its axes and is handed `rules`."""
