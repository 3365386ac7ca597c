"""Cost model of attention over a sequence that is spread over chips, and the choice of the cheapest plan.

The plans are those of `context_parallel`: Ulysses (arXiv:2309.14509), gathered keys, ring attention (arXiv:2310.01889).

With c chips in r = c / u groups of u, B examples of M tokens, N heads of size K (N' = N rounded up to a multiple of u),
e bytes per value, R FLOP/s of attention, W bytes/s per link and V bytes/s of memory, one forward pass takes seconds

    compute   4 B M^2 K N' / (c R)                                        (1)
    heads     4 (u - 1)/u  B (M/c) N' K e / W       q, k, v there, o back (2)
    gather    2 (r - 1)/r  B M (N'/u) K e / W       keys and values       (3)
    ring      max(0, (3) - (r - 1)/r (1)) + r 12 B (M/c) N' K / V         (4)   what the arithmetic does not hide,
                                                                          and merging float32 results in memory

and training 3.5 times (1) and twice (2) and (3); the ring, whose backward pass is the gather's, (4) besides. 2.5 of the
3.5, the backward kernel's, take longer where its heads do not divide over a chip's cores. Where two devices are one
package (v7x), they exchange heads (u = 2) at the rate between them, and share the links in (3) unless u = 1. Not
counted: latency, and other traffic on the same links.
"""

import dataclasses
import math
from typing import NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import Chip


class ContextParallelPlan(NamedTuple):
    """A way to compute attention over the chips of the context axis.

    Attributes:
      ulysses_degree: u, the number of neighbouring chips that exchange tokens for heads; 1 exchanges none.
      ring: whether keys and values go round between the groups of u chips; otherwise every chip gathers them.
    """

    ulysses_degree: int = 1
    ring: bool = False


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """The attention of one layer on the chips of one context axis.

    Attributes:
      batch, tokens, heads, head_dim: B, M, N, K.
      bytes: per value, e.
      training: whether the backward pass counts.
    """

    batch: int
    tokens: int
    heads: int
    head_dim: int
    bytes: int = 2
    training: bool = True


def seconds(plan: ContextParallelPlan, shape: AttentionShape, chips: int, chip: Chip) -> float:
    """Models the time of attention in one layer by (1) to (4).

    Args:
      plan: how attention is computed over the chips.
      shape: of the attention.
      chips: of the context axis, c.
      chip: the data sheet: R, W and V.

    Returns:
      Seconds; with `shape.training`, of the forward and the backward pass.
    """
    u, groups = plan.ulysses_degree, chips // plan.ulysses_degree
    heads = -(-shape.heads // u) * u
    values = shape.batch * shape.tokens * heads * shape.head_dim  # of one of q, k, v, o, over all chips
    compute = 4 * values * shape.tokens / (chips * chip.attention_flops(shape.head_dim))
    in_package = 1 < u <= chip.package_devices
    exchange = 4 * (u - 1) / u * values / chips * shape.bytes / (chip.package_rate if in_package else chip.link_rate)
    sharing = math.gcd(u, chip.package_devices)
    gather = sharing * 2 * (groups - 1) / groups * values / u * shape.bytes / chip.link_rate
    both = compute * (1 + 2.5 / chip.core_share(shape.batch * heads // u))  # passes, forward and backward
    if not plan.ring:
        return both + 2 * (exchange + gather) if shape.training else compute + exchange + gather
    hidden = (groups - 1) / groups * compute
    ring = max(0.0, gather - hidden) + groups * 12 * values / chips / chip.memory_rate
    return both + 2 * exchange + ring + 2 * gather if shape.training else compute + exchange + ring


def all_plans(chips: int) -> list[ContextParallelPlan]:
    """Lists all plans for a context axis of `chips` chips. A single group has no ring."""
    degrees = [u for u in range(1, chips + 1) if chips % u == 0]
    return [ContextParallelPlan(u, ring) for u in degrees for ring in (False, True) if not (ring and u == chips)]


def cheapest_plan(
    shape: AttentionShape, chips: int, chip: Chip, *, ulysses_degree: int | None = None, ring: bool | None = None
) -> ContextParallelPlan:
    """Finds the cheapest plan by `seconds`.

    Args:
      shape, chips, chip: as of `seconds`.
      ulysses_degree, ring: required of the plan; None leaves it open.

    Raises:
      ConfigError: no plan has the required `ulysses_degree` and `ring`.
    """
    allowed = [m for m in all_plans(chips) if ulysses_degree in (None, m.ulysses_degree) and ring in (None, m.ring)]
    require(
        allowed,
        f'config.parallel: ulysses_degree={ulysses_degree} and ring={ring} are not possible on a context axis of '
        f'{chips} chips: ulysses_degree must divide {chips}, and a single group has no ring',
        ConfigError,
    )
    return min(allowed, key=lambda plan: seconds(plan, shape, chips, chip))
