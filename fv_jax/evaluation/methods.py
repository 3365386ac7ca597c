"""What is compared: interpolation, networks, the VAE's round trip, results of others, and the ground truth itself."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from fv_jax.data.numpy_resize import resize_uint8
from fv_jax.data.transforms import to_uint8
from fv_jax.evaluation.clip_sources import EvaluationClip, Size, resize
from fv_jax.evaluation.report_page import BASELINE
from fv_jax.evaluation.strips import TRUTH
from fv_jax.sampling.clip_enhancer import enhance_clip
from fv_jax.sampling.enhancer import Enhancer
from fv_jax.sampling.windows import Windows

Kind = Literal['baseline', 'ceiling', 'network', 'result', 'truth']


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to make the video of a clip.

    Attributes:
      name: for tables; unique.
      kind: what it is. A 'ceiling' and the 'truth' need the ground truth.
      make: makes the video, uint8 (F, *size, 3).
      details: of a network, for report.json: checkpoint, step, num_steps, nfe, settings.
    """

    name: str
    kind: Kind
    make: Callable[[EvaluationClip], np.ndarray]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def can_make(self, clip: EvaluationClip) -> bool:
        """Returns whether the clip has what the method needs."""
        return clip.truth is not None or self.kind not in ('ceiling', 'truth')

    def describe(self) -> dict[str, Any]:
        """Describes the method for report.json."""
        return {'name': self.name, 'kind': self.kind, **self.details}


def baselines() -> list[Method]:
    """Returns bilinear and bicubic interpolation."""
    return [
        Method(BASELINE, 'baseline', lambda clip: resize(clip.low_quality, clip.size)),
        Method('bicubic', 'baseline', lambda clip: resize_uint8(clip.low_quality, clip.size)),
    ]


def round_trip(enhancer: Enhancer, windows: Windows) -> Method:
    """Returns the ground truth, encoded and decoded by the VAE: what no network of its latents can surpass by much."""
    alone = dataclasses.replace(enhancer, enhance_latents=lambda z_low_BFHWC, *_: z_low_BFHWC)
    return Method('VAE round trip', 'ceiling', lambda clip: _enhance(alone, clip.truth, clip.size, clip.seed, windows))


def network(name: str, enhancer: Enhancer, windows: Windows, details: Mapping[str, Any]) -> Method:
    """Returns stage 2, as `sample clip --shots=none --no-color-fix` applies it."""
    return Method(
        name, 'network', lambda clip: _enhance(enhancer, clip.low_quality, clip.size, clip.seed, windows), details
    )


def result(name: str) -> Method:
    """Returns the results of another enhancer, which the clips hold."""
    return Method(name, 'result', lambda clip: clip.results[name]())


def ground_truth() -> Method:
    """Returns the ground truth, for the metrics of a video alone."""
    return Method(TRUTH, 'truth', lambda clip: clip.truth)


def _enhance(enhancer: Enhancer, video: np.ndarray, size: Size, seed: int, windows: Windows) -> np.ndarray:
    return np.concatenate([*map(to_uint8, enhance_clip(enhancer, video, size, seed=seed, windows=windows))])
