"""Rematerialization (gradient checkpointing) policies: what a block's backward pass recomputes instead of saving."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from fv_jax.kernels.residuals import ATTENTION_RESIDUALS, is_cudnn_forward
from fv_jax.models.layers import LINEAR_OUTPUT

Remat = Literal['none', 'dots', 'full', 'offload', 'auto']
CHEAPEST_FIRST: tuple[Remat, ...] = ('none', 'dots', 'full')  # by what they recompute

BLOCK_INPUT = 'block_input'  # a `checkpoint_name` by which a policy selects what is saved


def apply_remat(body: Callable, remat: Remat) -> Callable:
    """Wraps the body of a scan over blocks in `jax.checkpoint` under the policy of that name (`DiTConfig.remat`).

    Every policy saves the residuals of attention: they are small, and its forward pass takes most of the time of one.
    Training replaces 'auto' by what fits; a network that is not trained has no backward pass.
    """
    if remat in ('none', 'auto'):
        return body
    kept = (ATTENTION_RESIDUALS, LINEAR_OUTPUT) if remat == 'dots' else (ATTENTION_RESIDUALS,)
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    if remat == 'offload':
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=kept,
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src='device',
            offload_dst='pinned_host',
        )

    def policy_or_cudnn(primitive: Any, *arguments: Any, **params: Any) -> Any:
        return is_cudnn_forward(primitive) or policy(primitive, *arguments, **params)

    # Within a scan, common-subexpression elimination cannot merge the two computations anyway.
    return jax.checkpoint(body, policy=policy_or_cudnn, prevent_cse=False)
