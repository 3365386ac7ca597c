"""Networks as Flax NNX modules: single-device code that names its logical axes and is passed a parallel context.

"model guide 1.4", here and in other packages, is section 1.4 of README.md in this folder: what the official system
computes, and the papers that it comes from.
"""
