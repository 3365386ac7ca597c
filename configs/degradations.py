"""How a clip becomes its degraded (low-quality) version: the ranges, each with its source.

    python -m fv_jax.degrade --config=configs/degradations.py --input clip.mp4 --output sheet.png    shows what they do

    :weak           bilinear alone, as the first stage's output is
    :like_previews  weak and strong, and what looks like the first stage's output: flow-based and model-guided

RE: Real-ESRGAN (arXiv:2107.10833) and the training options that its authors published. RB: RealBasicVSR
(arXiv:2111.12704) and its published training configuration, which takes RE's ranges over and adds video codecs.
FV: what FlashVideo's author published about the training of stage 2.
SG: SimpleGVR (arXiv:2506.19838), whose flow-based and model-guided degradations these are. It published the noise of
the latter and no ranges of the former, and trains on both after the other degradations.

The field `pairs=NAME` of variants of `configs/stage2.py` and `configs/prepare.py` chooses one of the variants above.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import parse_variant
from fv_jax.core.config import ConfigError, did_you_mean

WEAK = {'low': 4.0, 'high': 8.0}  # FV: bilinear, antialiased, down by U(4, 8)
STRONG_PROBABILITY = 0.5  # FV


def get_config(variant: str = '') -> ConfigDict:
    """Builds the configuration of a variant; its fields are those of `Degradation`."""
    name, _ = parse_variant(variant, tuple(VARIANTS))
    return ConfigDict(pairs(name) if name else weak_and_strong())


def pairs(name: str) -> dict[str, Any]:
    """Returns the degradations of a variant. Raises ConfigError for an unknown one."""
    if name not in VARIANTS:
        raise ConfigError(f'pairs={name}: {did_you_mean(name, VARIANTS)}')
    return VARIANTS[name]()


def weak() -> dict[str, Any]:
    """Returns the weak degradation alone."""
    return {'weak': WEAK, **_none()}


def weak_and_strong() -> dict[str, Any]:
    """Returns both kinds; also fields of `fv_jax.data.config.DataConfig`."""
    return {'weak': WEAK, **_none(), 'strong': strong(), 'strong_probability': STRONG_PROBABILITY}


def like_previews() -> dict[str, Any]:
    """Returns all kinds, a quarter of each; the shares are ours."""
    return {
        **weak_and_strong(),
        'strong_probability': 0.25,
        'flow_based': flow_based(),
        'flow_based_probability': 0.25,
        'model_guided': model_guided(),
        'model_guided_probability': 0.25,
    }


def model_guided() -> dict[str, Any]:
    """Returns fields of `fv_jax.data.degradation.configs.ModelGuidedConfig`."""
    return {
        'checkpoint': 'embedded',
        'noise_levels': (0.3, 0.4),  # SG
        'factor': 4.0,  # FV: 1072x1920 is enhanced from 256x480
    }


def flow_based() -> dict[str, Any]:
    """Returns fields of `fv_jax.data.degradation.configs.FlowBasedConfig`; all ranges are ours."""
    return {
        'blending': (0.3, 0.7),
        'ellipses': (1, 4),
        'radius': (0.1, 0.4),
        'shutter': (0.5, 1.5),  # a video camera's is often open for half of the time
        'threshold': 0.002,  # 2 pixels a frame at 1080p
    }


def _none() -> dict[str, Any]:
    kinds = 'strong', 'flow_based', 'model_guided'
    return {kind: None for kind in kinds} | {f'{kind}_probability': 0.0 for kind in kinds}


def strong() -> dict[str, Any]:
    """Returns the published second-order model; fields of `fv_jax.data.degradation.configs.StrongConfig`."""
    return {
        'first': {
            'blur': _blur(probability=1.0, sigma=(0.2, 3.0)),  # RE, RB
            'resize': {'modes': (0.2, 0.7, 0.1), 'scale': (0.15, 1.5)},  # RE, RB: up, down, keep
            'noise': _noise(gaussian_sigma=(1.0, 30.0), poisson_scale=(0.05, 3.0)),  # RE, RB
            'quality': (30, 95),  # RE, RB
        },
        'second': {
            'blur': _blur(probability=0.8, sigma=(0.2, 1.5)),  # RE, RB
            'resize': {'modes': (0.3, 0.4, 0.3), 'scale': (0.3, 1.2)},  # RE, RB
            'noise': _noise(gaussian_sigma=(1.0, 25.0), poisson_scale=(0.05, 2.5)),  # RE, RB
            'quality': (30, 95),  # RE, RB
        },
        'video': {
            # RB draws from libx264, h264 and mpeg4 alike; the first two are one codec.
            'codecs': (2 / 3, 1 / 3),
            # RB: 1e4 to 1e5 bits a frame, for patches of 256x256. Per pixel, it holds at any size.
            'bits_per_pixel': (1e4 / 256**2, 1e5 / 256**2),
        },
        'sinc': {'probability': 0.8, 'sizes': (7, 21), 'omega': (3.1416 / 3, 3.1416)},  # RE, RB
    }


def _blur(*, probability: float, sigma: tuple[float, float]) -> dict[str, Any]:
    return {
        'probability': probability,
        'sizes': (7, 21),  # RE, RB
        # RE, RB: isotropic, anisotropic, generalised of both kinds, plateau of both kinds, sinc.
        'shapes': (0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1),
        'sigma': sigma,
        'angle': (-3.1416, 3.1416),  # RE, RB
        'generalized_beta': (0.5, 4.0),  # RE, RB
        'plateau_beta': (1.0, 2.0),  # RE, RB
    }


def _noise(*, gaussian_sigma: tuple[float, float], poisson_scale: tuple[float, float]) -> dict[str, Any]:
    return {'poisson': 0.5, 'grey': 0.4, 'gaussian_sigma': gaussian_sigma, 'poisson_scale': poisson_scale}  # RE, RB


VARIANTS = {'weak': weak, 'like_previews': like_previews}
