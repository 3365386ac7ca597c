"""Networks as flax NNX modules: single-device code that names its axes and is handed `rules`.

"model guide 1.4", here and in other packages, is section 1.4 of README.md in this folder: what the official system
computes, and the papers that it comes from.
"""
