"""How to attend over a sequence spread over chips: what each way costs, and the cheapest.

The ways are those of `context_parallel`: Ulysses (arXiv:2309.14509), gathered keys, ring attention (arXiv:2310.01889).

With c chips, r = c / u groups of u, B rows of M tokens, N heads of K (N' = N rounded up to a multiple of u), e bytes a
number, attention at R operations a second, links of W and memory of V bytes a second, one forward pass takes

    compute   4 B M^2 K N' / (c R)                                        (1)
    heads     4 (u - 1)/u  B (M/c) N' K e / W       q, k, v there, o back (2)
    gather    2 (r - 1)/r  B M (N'/u) K e / W       keys and values       (3)
    ring      max(0, (3) - (r - 1)/r (1)) + r 12 B (M/c) N' K / V         (4): what is not hidden behind the arithmetic,
                                                    and merging float32 results in memory

and training 3.5 times (1) and twice (2) and (3); the ring, whose backward pass is the gather's with one more forward
pass, 4.5 (1), twice (2), (4) and twice (3). Not counted: latency, and other traffic on the same links.
"""

import dataclasses
from typing import NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import Chip


class Method(NamedTuple):
    """heads: u, the chips of a group that exchange tokens for heads; 1 exchanges none. ring: between the groups keys
    and values go round, else they are gathered.
    """

    heads: int = 1
    ring: bool = False


@dataclasses.dataclass(frozen=True)
class Work:
    """One layer's attention on the chips of one context axis: B, M, N, K, e; and whether it is trained."""

    rows: int
    tokens: int
    heads: int
    head_dim: int
    bytes: int = 2
    training: bool = True


def seconds(method: Method, work: Work, chips: int, chip: Chip) -> float:
    """What (1) to (4) add up to."""
    u, groups = method.heads, chips // method.heads
    heads = -(-work.heads // u) * u
    numbers = work.rows * work.tokens * heads * work.head_dim  # of one of q, k, v, o, over all chips
    compute = 4 * numbers * work.tokens / (chips * chip.attention_flops(work.head_dim))
    exchange = 4 * (u - 1) / u * numbers / chips * work.bytes / chip.link_rate
    gather = 2 * (groups - 1) / groups * numbers / u * work.bytes / chip.link_rate
    if not method.ring:
        return 3.5 * compute + 2 * (exchange + gather) if work.training else compute + exchange + gather
    hidden = (groups - 1) / groups * compute
    ring = max(0.0, gather - hidden) + groups * 12 * numbers / chips / chip.memory_rate
    return 4.5 * compute + 2 * exchange + ring + 2 * gather if work.training else compute + exchange + ring


def methods(chips: int) -> list[Method]:
    """All ways to attend over so many chips."""
    groups = [u for u in range(1, chips + 1) if chips % u == 0]
    return [Method(u, ring) for u in groups for ring in (False, True) if not (ring and u == chips)]


def choose(work: Work, chips: int, chip: Chip, *, heads: int | None = None, ring: bool | None = None) -> Method:
    """The cheapest way; of those with these `heads` and this `ring` where they are given.

    Raises ConfigError when there is none.
    """
    allowed = [m for m in methods(chips) if heads in (None, m.heads) and ring in (None, m.ring)]
    require(
        allowed,
        f'config.parallel: attention over {chips} chips of the context axis cannot have heads={heads} and ring='
        f'{ring}; heads must divide {chips}, and between the groups of one there is no ring',
        ConfigError,
    )
    return min(allowed, key=lambda method: seconds(method, work, chips, chip))
