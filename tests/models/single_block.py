"""One block of a DiT, which the network itself runs in a scan over all."""

import jax
from flax import nnx

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.dit import DiT
from fv_jax.models.sequence import SequenceLayout


def run_block(
    model: DiT,
    index: int,
    h_BMD: jax.Array,
    emb_BE: jax.Array,
    layout: SequenceLayout,
    context: ParallelContext = SINGLE_DEVICE,
) -> jax.Array:
    """Block `index` alone: (B, M, D) to (B, M, D)."""
    graphdef, stacked = nnx.split(model.blocks)
    layer = jax.tree.map(lambda x: x[index], stacked)
    return nnx.merge(graphdef, layer)(h_BMD, emb_BE, model._tokens(layout, context), context)
