"""Logical axis names: what a dimension means, as opposed to how it is sharded.

Every parameter carries one name (or None) per dimension under the metadata key `axes`;
`parallel/rules.py` maps names to mesh axes. Flax's own sharding metadata is not used: it refuses to
build a model without a mesh.
"""

from flax import nnx

LAYERS = 'layers'  # stacked blocks; scanned over, never sharded
EMBED = 'embed'  # the residual stream's width
MLP = 'mlp'  # the inner width of an MLP
HEADS = 'heads'  # heads * head_dim, the attention width
MODULATION = 'modulation'  # outputs of an adaptive-norm projection
COND = 'cond'  # the conditioning vector
TEXT = 'text'  # the text encoder's width
PATCH = 'patch'  # a patch's features
CONV_IN = 'conv_in'
CONV_OUT = 'conv_out'
NORM = 'norm'  # scales and offsets of norms, and other small vectors

ACT_BATCH = 'act_batch'
ACT_TOKENS = 'act_tokens'
ACT_EMBED = 'act_embed'
ACT_HEADS = 'act_heads'
ACT_MLP = 'act_mlp'
ACT_WIDTH = 'act_width'  # columns of video frames


def param(value, axes: tuple[str | None, ...]) -> nnx.Param:
    """Makes a trainable parameter with one logical axis name per dimension."""
    assert len(axes) == value.ndim, (axes, value.shape)
    return nnx.Param(value, axes=axes)
