"""Sizes that clips are trained at: which clip goes to which, and which is trained on at which step.

A bucket is a number of frames, a height and a width; a batch comes from one bucket, so each is one compiled shape.
Pictures are clips of one frame, in buckets of their own.

A cycle of steps holds every bucket as often as its clips deserve, at least once, in an order drawn from (seed, cycle):
which bucket a step trains on, and how many of its batches came before, follow from the step alone.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fv_jax.core.config import check_range
from fv_jax.core.latent_spec import LatentSpec

Size = tuple[int, int, int]  # frames, height, width

_CYCLE = 1000  # steps; a bucket's share is kept to one in so many
_TOLERANCE = 0.05  # of the picture: among buckets that cut off nearly as little, the largest is taken


@dataclasses.dataclass(frozen=True)
class Bucket:
    """frames, height, width: a size that the VAE's `LatentSpec` allows."""

    frames: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        return self.frames, self.height, self.width

    def __str__(self) -> str:
        return f'{self.frames}x{self.height}x{self.width}'


@dataclasses.dataclass(frozen=True)
class Fit:
    """Which clips a bucket takes.

    scaled: clips are scaled to cover the bucket, then cut in the middle; otherwise the bucket is cut out of them.
    max_upscale: of scaled ones. max_cut: the share of the picture that may be cut off a scaled one.
    exact: only those of a bucket's very size.
    """

    scaled: bool = True
    max_upscale: float = 1.0
    max_cut: float = 0.4
    exact: bool = False

    def __post_init__(self):
        check_range(self, 'max_upscale', above=0)
        check_range(self, 'max_cut', low=0, below=1)

    def bucket(self, size: Size, buckets: Sequence[Bucket], latent_spec: LatentSpec) -> Bucket | str:
        """The bucket that a clip of this size goes to, or why there is none. latent_spec: says which is larger."""
        if 0 in size:
            return 'whose size cannot be told'
        if self.exact:
            same = [b for b in buckets if b.size == size]
            return same[0] if same else f'of {"x".join(map(str, size))}, which is no size that is trained at'
        kind = [b for b in buckets if (b.frames == 1) == (size[0] == 1)]
        if not kind:
            return 'a picture, and no bucket takes pictures' if size[0] == 1 else 'a clip, and no bucket takes clips'
        long_enough = [b for b in kind if b.frames <= size[0]]
        if not long_enough:
            return f'of fewer than {min(b.frames for b in kind)} frames'
        large_enough = [b for b in long_enough if self._upscale(size, b) <= self._max_upscale]
        if not large_enough:
            smallest = min(long_enough, key=lambda b: b.height * b.width)
            return f'smaller than {smallest.height}x{smallest.width}'
        cut = {b: self._cut(size, b) for b in large_enough}
        kept = [b for b in large_enough if cut[b] <= self.max_cut] if self.scaled else large_enough
        if not kept:
            return f'of another shape: more than {self.max_cut:.0%} would be cut off'
        least = min(cut[b] for b in kept)
        kept = [b for b in kept if not self.scaled or cut[b] <= least + _TOLERANCE]
        return max(kept, key=lambda b: latent_spec.num_tokens(*b.size))

    @property
    def _max_upscale(self) -> float:
        return self.max_upscale * (1 + 1e-6) if self.scaled else 1.0

    def _upscale(self, size: Size, bucket: Bucket) -> float:
        return max(bucket.height / size[1], bucket.width / size[2])

    def _cut(self, size: Size, bucket: Bucket) -> float:
        """The share of the picture that is lost when it is cut to the bucket's shape."""
        ratio = (bucket.width / bucket.height) / (size[2] / size[1])
        return 1 - min(ratio, 1 / ratio)


EXACT = Fit(exact=True)  # of latents, which cannot be scaled


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Which records of a source go where. members: the indices of each bucket's. left_out: reason -> how many."""

    members: dict[Bucket, np.ndarray]
    left_out: dict[str, int]


def assign(sizes: np.ndarray, buckets: Sequence[Bucket], fit: Fit, latent_spec: LatentSpec) -> Assignment:
    """Of all records of a source. sizes: (n, 3), frames, height and width of each."""
    kinds, inverse = np.unique(sizes, axis=0, return_inverse=True)
    goes = [fit.bucket(tuple(int(v) for v in kind), buckets, latent_spec) for kind in kinds]
    members, left_out = {}, {}
    for bucket in buckets:
        of_bucket = [k for k, found in enumerate(goes) if found == bucket]
        members[bucket] = np.flatnonzero(np.isin(inverse.ravel(), of_bucket))
    for kind, found in enumerate(goes):
        if isinstance(found, str):
            left_out[found] = left_out.get(found, 0) + int(np.sum(inverse.ravel() == kind))
    return Assignment(members, left_out)


def batch_size(tokens: int, token_budget: int, multiple: int) -> int:
    """How many clips of so many tokens make a batch of at most `token_budget`: a multiple of `multiple`, and at least
    that.
    """
    return max(token_budget // (tokens * multiple), 1) * multiple


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which stream every step takes its batch from. shares: of the streams, of all steps, not necessarily summing to 1.
    seed: of the order.
    """

    shares: tuple[float, ...]
    seed: int

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """How many steps of a cycle each stream has."""
        if len(self.shares) == 1:
            return np.ones(1, int)
        shares = np.asarray(self.shares, float)
        return np.maximum(np.rint(_CYCLE * shares / shares.sum()).astype(int), 1)

    @property
    def cycle(self) -> int:
        """Steps of a cycle."""
        return int(self.steps.sum())

    def order(self, cycle: int) -> np.ndarray:
        """The streams of a cycle's steps."""
        order = np.repeat(np.arange(len(self.steps)), self.steps)
        return np.random.default_rng([self.seed, cycle]).permutation(order)
