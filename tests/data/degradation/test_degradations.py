"""Degradations: their parameters are sampled once per clip, and depend on the generator alone."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from configs import degradations as published
from fv_jax.core import resize as core_resize
from fv_jax.core.config import ConfigError, build
from fv_jax.data.degradation import degradations
from fv_jax.data.degradation import operations as steps
from fv_jax.data.degradation.configs import SHAPES, StrongConfig, WeakConfig
from fv_jax.data.degradation.degradations import (
    Degradation,
    Degrade,
    degrade_strong,
    degrade_weak,
    sample_strong,
)
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.transforms import to_float
from tests.data import sample_videos

STRONG = build(StrongConfig, published.strong())


def high_res(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, height, width, 3)).astype(np.float32)


def test_weak_degradation_is_down_and_upsampling_by_one_factor() -> None:
    frames = high_res()
    degraded = degrade_weak(frames, np.random.default_rng(1), WeakConfig(4, 4))
    small = core_resize.resize(jnp.asarray(frames), 12, 16)
    np.testing.assert_allclose(degraded, core_resize.resize(small, 48, 64), atol=3e-6)
    # The same factor for all frames: equal frames stay equal, whatever is drawn.
    still = np.repeat(frames[:1], 3, axis=0)
    for seed in range(5):
        out = degrade_weak(still, np.random.default_rng(seed), WeakConfig(2, 8))
        assert (out == out[:1]).all() and out.shape == frames.shape and out.dtype == np.float32


def test_weak_degradation_is_a_function_of_the_generator() -> None:
    frames, config = high_res(), WeakConfig(2, 8)
    a, b, c = (degrade_weak(frames, np.random.default_rng(seed), config) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.01
    detail = [
        np.abs(np.diff(degrade_weak(frames, np.random.default_rng(0), WeakConfig(f, f)), axis=2)).mean()
        for f in (2, 4, 8)
    ]
    assert detail[0] > 2 * detail[1] > 4 * detail[2]


def test_degrade_transform_adds_the_degraded_clip() -> None:
    frames = high_res()
    record = Degrade(Degradation(weak=WeakConfig(4, 8)))({'high_res_FHWC': frames}, np.random.default_rng(3))
    np.testing.assert_array_equal(
        record['low_res_FHWC'], degrade_weak(frames, np.random.default_rng(3), WeakConfig(4, 8))
    )
    assert record['high_res_FHWC'] is frames


@pytest.mark.parametrize(('low', 'high'), [(0.5, 4), (8, 4), (1, float('inf'))])
def test_weak_degradation_refuses_invalid_ranges(low: float, high: float) -> None:
    with pytest.raises(ValueError, match='1 <= low <= high'):
        WeakConfig(low, high)
    with pytest.raises(ValueError, match=r'a clip of 4x64 cannot be made 8.00 times smaller'):
        degrade_weak(high_res(4), np.random.default_rng(0), WeakConfig(8, 8))


def make_video(frames: int = 5, height: int = 64, width: int = 96) -> np.ndarray:
    return sample_videos.pattern(frames, height, width).astype(np.float32) * np.float32(2 / 255) - 1


def sample_steps(count: int, frames: int = 9, config: StrongConfig = STRONG) -> list[tuple[steps.Step, ...]]:
    return [sample_strong(np.random.default_rng(seed), config, target=(16, 24), frames=frames) for seed in range(count)]


@pytest.fixture(scope='module')
def sample_many() -> list[tuple[steps.Step, ...]]:
    return sample_steps(1500)


def test_strong_degradation_is_a_function_of_the_generator() -> None:
    frames, factor = make_video(), WeakConfig(2, 4)
    before = frames.copy()
    a, b, c = (degrade_strong(frames, np.random.default_rng(seed), STRONG, factor) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(frames, before)
    assert np.abs(a - c).mean() > 0.01


def test_downsample_strong_is_the_small_video_of_degrade_strong() -> None:
    clip, factor = make_video(5, 64, 96), WeakConfig(4, 4)
    small = degradations.downsample_strong(clip, np.random.default_rng(3), STRONG, factor)
    assert small.dtype == np.uint8 and small.shape == (5, 16, 24, 3)
    expected = degrade_strong(clip, np.random.default_rng(3), STRONG, factor)
    np.testing.assert_allclose(resize_bilinear(to_float(small), (64, 96)), expected, atol=1e-6)


@pytest.mark.parametrize('seed', range(24))
def test_strong_degradation_keeps_shape_range_and_dtype(seed: int) -> None:
    rng = np.random.default_rng([9, seed])
    frames = int(rng.choice([1, 1, 2, 9]))
    size = 16 * int(rng.integers(1, 7)), 16 * int(rng.integers(1, 7))
    clip = make_video(frames, *size) if seed % 3 else rng.choice([-1.0, 1.0], (frames, *size, 3)).astype(np.float32)
    factor = WeakConfig(low := rng.uniform(1, 4), low + rng.uniform(0, 8))
    degraded = degrade_strong(clip, rng, STRONG, factor)
    assert degraded.shape == clip.shape and degraded.dtype == np.float32
    assert np.isfinite(degraded).all() and degraded.min() >= -1 - 1e-6 and degraded.max() <= 1 + 1e-6


def test_strong_degradation_has_the_published_order(sample_many: list[tuple[steps.Step, ...]]) -> None:
    kinds = {
        steps.Blur: 'b', steps.Resize: 'r', steps.GaussianNoise: 'n', steps.PoissonNoise: 'n',
        steps.Jpeg: 'j', steps.Video: 'v',
    }  # fmt: skip
    words = [''.join(kinds[type(step)] for step in one) for one in sample_many]
    rounds = [a + b + 'nj' for a, b in itertools.product(('b', ''), ('r', ''))]
    ends = ['vr', 'vrb', 'rv', 'rbv']
    expected = {a + 'v' + b + end for a in rounds if a[0] == 'b' for b in rounds for end in ends}
    assert set(words) <= expected and len(expected - set(words)) <= 4  # the rarest comes once in 1,700
    image = {''.join(kinds[type(step)] for step in one) for one in sample_steps(400, frames=1)}
    assert image <= {word.replace('v', 'j') for word in expected} and len(image) > 16


def test_strong_degradation_samples_steps_with_their_probabilities(sample_many: list[tuple[steps.Step, ...]]) -> None:
    """Within four standard deviations of the shares asked for."""
    count = len(sample_many)

    def share_of(found: int, total: int, expected: float) -> None:
        assert abs(found / total - expected) < 4 * np.sqrt(expected * (1 - expected) / total), (found / total, expected)

    flat = [step for one in sample_many for step in one]
    noise = [step for step in flat if isinstance(step, steps.GaussianNoise | steps.PoissonNoise)]
    share_of(sum(isinstance(step, steps.PoissonNoise) for step in noise), len(noise), 0.5)
    share_of(sum(step.grey for step in noise), len(noise), 0.4)
    video = [step for step in flat if isinstance(step, steps.Video)]
    assert len(video) == 2 * count
    share_of(sum(step.codec == 'mpeg4' for step in video), len(video), 1 / 3)
    firsts = [one[0].name.split()[0] for one in sample_many]
    for shape, share in zip(SHAPES, STRONG.first.blur.shapes, strict=True):
        share_of(firsts.count(shape), count, share)
    scales = [one[1].scale for one in sample_many if isinstance(one[1], steps.Resize)]
    share_of(sum(scale > 1 for scale in scales), len(scales), 0.2 / 0.9)
    share_of(len(scales), count, 0.9)


def test_strong_degradation_samples_parameters_in_their_ranges(sample_many: list[tuple[steps.Step, ...]]) -> None:
    for step in itertools.chain.from_iterable(sample_many):
        match step:
            case steps.Blur():
                assert len(step.kernel) % 2 and 7 <= len(step.kernel) <= 21
            case steps.Resize(scale=float(scale)):
                assert 0.15 <= scale <= 1.5
            case steps.Resize(size=size):
                assert size == (16, 24)
            case steps.GaussianNoise():
                assert 1 <= step.sigma <= 30
            case steps.PoissonNoise():
                assert 0.05 <= step.scale <= 3
            case steps.Jpeg():
                assert 30 <= step.quality <= 95
            case steps.Video():
                assert 0.152 < step.bits_per_pixel < 1.53


def test_strong_degradation_has_one_set_of_parameters_per_clip() -> None:
    """With the noise, which is new in each frame, off, equal frames stay equal where no codec looks at other frames."""
    quiet = {'poisson': 0.0, 'grey': 0.0, 'gaussian_sigma': (0.0, 0.0), 'poisson_scale': (0.0, 0.0)}
    values = published.strong()
    for name in ('first', 'second'):
        values[name]['noise'] = quiet
    still = np.repeat(make_video(1), 4, axis=0)
    for one in sample_steps(6, config=build(StrongConfig, values)):
        out = degradations.apply_steps([step for step in one if not isinstance(step, steps.Video)], still)
        assert (out == out[:1]).all()


def test_degradation_noise_is_independent_in_each_frame() -> None:
    grey = [np.full((32, 32, 3), 128, np.float32)] * 3
    step = steps.GaussianNoise(5.0, False, seed=4)
    a, b, c = step(grey)
    assert np.abs(a - b).mean() > 3 and np.abs(b - c).mean() > 3
    np.testing.assert_array_equal(b, list(step(iter(grey)))[1])


def test_degradation_is_strong_with_its_probability() -> None:
    clip, factor = make_video(1, 32, 48), WeakConfig(2, 2)
    both = Degradation(weak=factor, strong=STRONG, strong_probability=0.3)
    count = sum(
        np.array_equal(
            both.degrade(clip, np.random.default_rng(seed)), degrade_weak(clip, np.random.default_rng(), factor)
        )
        for seed in range(200)
    )
    assert 110 < count < 170  # 140 of 200 expected
    # Nothing is drawn for the choice where there is none.
    config = WeakConfig(2, 5)
    np.testing.assert_array_equal(
        Degradation(weak=config).degrade(clip, np.random.default_rng(5)),
        degrade_weak(clip, np.random.default_rng(5), config),
    )


@pytest.mark.parametrize(
    ('group', 'field', 'value', 'words'),
    [
        ('blur', 'shapes', (0.5, 0.5), 'shapes=.*: must be 7 probabilities that sum to 1'),
        ('blur', 'sizes', (6, 21), 'sizes=.*: both must be odd'),
        ('blur', 'sigma', (3.0, 0.2), 'sigma=.*: must be from 0.1 to 99, the smaller first'),
        ('resize', 'modes', (1.0, 0.5, -0.5), 'modes=.*: must be 3 probabilities'),
        ('resize', 'scale', (0.2, 0.8), 'scale=.*: must contain 1'),
        ('noise', 'grey', 1.5, 'grey=1.5: must be from 0 to 1'),
    ],
)
def test_strong_degradation_refuses_invalid_ranges(group: str, field: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(getattr(STRONG.first, group), **{field: value})


def test_kinds_are_drawn_with_their_probabilities() -> None:
    ranges = build(Degradation, published.get_config('like_previews').to_dict())
    mixed = dataclasses.replace(
        ranges, strong_probability=0.2, flow_based_probability=0.4, model_guided_probability=0.1
    )
    drawn = [mixed.sample_kind(np.random.default_rng(seed)) for seed in range(1000)]
    for kind, probability in {'strong': 0.2, 'flow_based': 0.4, 'model_guided': 0.1, 'weak': 0.3}.items():
        assert abs(drawn.count(kind) / 1000 - probability) < 4 * np.sqrt(probability * (1 - probability) / 1000)
    # A clip of a kind stays of that kind when another one is added after it.
    alone = dataclasses.replace(mixed.without_model(), flow_based_probability=0.0)
    before = [alone.sample_kind(np.random.default_rng(seed)) == 'strong' for seed in range(1000)]
    assert before == [kind == 'strong' for kind in drawn]


def test_probability_requires_ranges_and_a_sum_of_at_most_1() -> None:
    with pytest.raises(ConfigError, match=r'strong_probability=0.5: needs `strong`, which is none'):
        Degradation(strong_probability=0.5)
    with pytest.raises(ConfigError, match=r'flow_based_probability=0.5: needs `flow_based`, which is none'):
        Degradation(flow_based_probability=0.5)
    both = build(Degradation, published.get_config('like_previews').to_dict())
    with pytest.raises(ConfigError, match=r'sum to 1.05; must be at most 1'):
        dataclasses.replace(both, strong_probability=0.3, flow_based_probability=0.5)
    assert build(Degradation, published.get_config().to_dict()).strong == STRONG
    assert build(Degradation, published.get_config('weak').to_dict()) == Degradation(weak=WeakConfig(4.0, 8.0))
