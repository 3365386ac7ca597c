"""What a block's backward pass computes again instead of keeping."""

from collections.abc import Callable
from typing import Literal

import jax

from fv_jax.models.layers import LINEAR_OUTPUT

Remat = Literal['none', 'dots', 'full']

ATTENTION_OUTPUT = 'attention_output'  # the name under which a policy can keep it


def rematerialised(body: Callable, remat: Remat) -> Callable:
    """The body of a scan over blocks under the policy of that name (`DiTConfig.remat`)."""
    if remat == 'none':
        return body
    kept = (LINEAR_OUTPUT, ATTENTION_OUTPUT) if remat == 'dots' else ()
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    # Within a scan the two computations cannot be merged by common-subexpression elimination anyway.
    return jax.checkpoint(body, policy=policy, prevent_cse=False)
