"""The geometry of latents: sizes of videos and latents, valid lengths, tokens, and errors."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec, check_multiple

OFFICIAL = LatentSpec(channels=16, temporal=4, spatial=8)
WIDE = LatentSpec(channels=48, temporal=4, spatial=16)
SPECS = [OFFICIAL, WIDE, LatentSpec(16, 8, 8, patch=1), LatentSpec(4, 1, 8)]


def test_latent_sizes_of_the_official_vae():
    assert OFFICIAL.latent_size(49, 256, 480) == (13, 32, 60) and OFFICIAL.latent_size(1, 2048, 2048) == (1, 256, 256)
    assert OFFICIAL.num_tokens(49, 256, 480) == 6_240 and OFFICIAL.num_tokens(49, 1072, 1920) == 104_520
    assert (OFFICIAL.frame_step, OFFICIAL.pixel_multiple) == (8, 16)


def test_latent_sizes_of_another_vae():
    assert WIDE.latent_size(49, 704, 1280) == (13, 44, 80) and WIDE.num_tokens(49, 704, 1280) == 13 * 22 * 40
    assert (WIDE.frame_step, WIDE.pixel_multiple) == (8, 32)
    assert WIDE.with_patch(1) == LatentSpec(48, 4, 16, 1) and WIDE.with_patch(1).pixel_multiple == 16


@pytest.mark.parametrize('spec', SPECS, ids=str)
def test_video_size_inverts_latent_size(spec):
    for frames in (1, 1 + spec.frame_step, 1 + 6 * spec.frame_step):
        size = frames, 5 * spec.pixel_multiple, 3 * spec.pixel_multiple
        spec.check_clip('clip', *size)
        latents = spec.latent_size(*size)
        assert spec.video_size(*latents) == size and latents[0] % 2 == 1
        assert spec.num_tokens(*size) == latents[0] * 5 * 3


def test_valid_clip_lengths():
    assert [n for n in range(-8, 40) if OFFICIAL.is_valid_length(n)] == [1, 9, 17, 25, 33]
    assert [n for n in range(-8, 40) if SPECS[2].is_valid_length(n)] == [1, 17, 33]
    assert [OFFICIAL.padded_length(n) for n in (1, 2, 8, 9, 10, 23)] == [1, 9, 9, 9, 17, 25]


def test_round_down_to_whole_patches():
    assert OFFICIAL.round_down(270, 480) == (256, 480) and OFFICIAL.round_down(1080, 1920) == (1072, 1920)
    assert OFFICIAL.round_down(16 * 2.3, 30 * 2.3) == (32, 64) and WIDE.round_down(1080, 1920) == (1056, 1920)
    with pytest.raises(ValueError, match='15 pixels is too small: at least 16'):
        OFFICIAL.round_down(480, 15.9)


@pytest.mark.parametrize(
    ('frames', 'advice'), [(16, '9 or 17'), (10, '9 or 17'), (2, '1 or 9'), (0, '1 or 9'), (-7, '1 or 9')]
)
def test_invalid_clip_length_is_refused(frames, advice):
    with pytest.raises(ConfigError, match=f'^clip.frames={frames}: a clip must have 1 or 8k[+]1 frames; use {advice}$'):
        OFFICIAL.check_clip('clip', frames, 64, 64)


@pytest.mark.parametrize(('size', 'fix'), [(270, 'use 256 or 272'), (10, 'use 16$'), (0, 'use 16$'), (-3, 'use 16$')])
def test_invalid_size_is_refused_with_the_nearest_valid_ones(size, fix):
    with pytest.raises(ConfigError, match=f'^height={size}: must be a multiple of 16; {fix}'):
        check_multiple('height', size, 16)
    with pytest.raises(ConfigError, match=f'^a.width={size}: must be a multiple of 16; {fix}'):
        OFFICIAL.check_clip('a', 9, 272, size)
    with pytest.raises(ConfigError, match=f'^--size: height={size}: must be a multiple of 16; {fix}'):
        OFFICIAL.check_size('--size', (size, 272))
    check_multiple('height', 272, 16)
    OFFICIAL.check_size('--size', (272, 16))
