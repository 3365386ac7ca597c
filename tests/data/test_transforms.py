import numpy as np
import pytest

from fv_jax.data import transforms
from fv_jax.data.transforms import Crop, Flip, Latents, Resize, Window
from fv_jax.data.video import encoding
from tests.data import sample_videos


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clip(frames: int = 20, height: int = 12, width: int = 16) -> np.ndarray:
    """uint8 FHWC whose channels are the numbers of the frame, row and column."""
    f, h, w = np.mgrid[:frames, :height, :width]
    return np.stack([f, h, w], axis=-1).astype(np.uint8)


def test_window_has_consecutive_frames_at_random_positions() -> None:
    starts = set()
    for seed in range(200):
        frames = Window(9)({'video_FHWC': clip(12)}, rng(seed))['video_FHWC'][:, 0, 0, 0]
        np.testing.assert_array_equal(np.diff(frames), 1)
        starts.add(int(frames[0]))
    assert starts == {0, 1, 2, 3}
    assert Window(9, random=False)({'video_FHWC': clip(13)}, rng())['video_FHWC'][0, 0, 0, 0] == 2


def test_window_refuses_a_short_clip() -> None:
    with pytest.raises(ValueError, match='its video must have at least 9 frames'):
        Window(9)({'video_FHWC': clip(6)}, rng())


def test_crop_is_the_same_for_all_frames_and_reaches_every_edge() -> None:
    corners = set()
    for seed in range(300):
        video = Crop(10, 13)({'video_FHWC': clip(3)}, rng(seed))['video_FHWC']
        assert video.shape == (3, 10, 13, 3)
        corners.add((int(video[0, 0, 0, 1]), int(video[0, 0, 0, 2])))
        assert (video[..., 1:] == video[:1, ..., 1:]).all()
    assert corners == {(top, left) for top in range(3) for left in range(4)}
    middle = Crop(10, 12, random=False)({'video_FHWC': clip(1)}, rng())['video_FHWC']
    assert list(middle[0, 0, 0]) == [0, 1, 2]
    with pytest.raises(ValueError, match='cannot crop 13x12 out of a video of 12x16'):
        Crop(13, 12)({'video_FHWC': clip()}, rng())


def test_crop_pans_in_half_of_the_clips() -> None:
    still, pans = 0, []
    for seed in range(400):
        video = Crop(10, 13, max_pan=1.5)({'video_FHWC': clip(9, 30, 40)}, rng(seed))['video_FHWC']
        assert video.shape == (9, 10, 13, 3)
        corner = video[:, 0, 0].astype(int)
        np.testing.assert_array_equal(video - video[:, :1, :1], clip(1, 10, 13) * [0, 1, 1] + np.zeros((9, 1, 1, 1)))
        steps = np.diff(corner[:, 1:], axis=0)
        still += not steps.any()
        # A constant velocity, to the pixel, that keeps to its limit.
        even = corner[:1, 1:] + np.linspace(0, 1, 9)[:, None] * (corner[-1:, 1:] - corner[:1, 1:])
        assert np.abs(corner[:, 1:] - even).max() <= 1
        pans.append(np.abs(corner[-1, 1:] - corner[0, 1:]).max())
    assert 190 < still < 270 and 10 < max(pans) <= 12
    with pytest.raises(ValueError, match='cannot crop 13x12 out of a video of 12x16'):
        [Crop(13, 12, max_pan=1.0)({'video_FHWC': clip()}, rng(seed)) for seed in range(9)]


def test_flip() -> None:
    video = clip(1)
    flipped = [Flip()({'video_FHWC': video}, rng(seed))['video_FHWC'] for seed in range(100)]
    turned = sum((f == video[:, :, ::-1]).all() for f in flipped)
    assert 30 < turned < 70 and turned + sum((f == video).all() for f in flipped) == 100
    assert (Flip(0.0)({'video_FHWC': video}, rng())['video_FHWC'] == video).all()


def test_resize_crops_to_the_aspect_ratio() -> None:
    video = Resize(16, 16)({'video_FHWC': clip(1, 64, 128)}, rng())['video_FHWC']
    assert video.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(video[0, :, 8, 1], 4 * np.arange(16) + 1.5, atol=1)
    np.testing.assert_allclose(video[0, 8, :, 2], 32 + 4 * np.arange(16) + 1.5, atol=1)


def test_to_float_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8)
    floats = transforms.to_float(levels)
    assert floats.dtype == np.float32 and floats[0] == -1 and floats[255] == 1
    np.testing.assert_array_equal(transforms.to_uint8(floats), levels)
    np.testing.assert_array_equal(transforms.to_uint8(np.array([-1.5, 1.5])), [0, 255])


def test_transforms_from_video_to_arrays() -> None:
    source_video = sample_videos.pattern(12)
    record = {
        'video': encoding.encode_bytes(source_video, 24, crf=4),
        'caption': 'a pattern',
        'fps': 24.0,
        'text': np.ones((4, 8), np.float32),
    }
    chain = transforms.compose(
        transforms.decode_video, Window(9), Crop(32, 48), transforms.normalize_video, transforms.keep_arrays
    )
    out = chain(record, rng(1))
    assert {key: value.shape for key, value in out.items()} == {'high_res_FHWC': (9, 32, 48, 3), 'text_LD': (4, 8)}
    assert 'video' in record and all(v.flags.c_contiguous for v in out.values())
    again = chain(record, rng(1))
    np.testing.assert_array_equal(again['high_res_FHWC'], out['high_res_FHWC'])
    # It is a crop of the video, at some position, up to the loss of H.264.
    errors = [
        np.abs(transforms.to_float(source_video[f : f + 9, y : y + 32, x : x + 48]) - out['high_res_FHWC']).mean()
        for f in range(4)
        for y in range(33)
        for x in range(49)
    ]
    assert min(errors) < 0.03 < np.median(errors)
    with pytest.raises(ValueError, match='the record has no video, only caption'):
        transforms.decode_video({'caption': 'x'}, rng())


def test_latents_sample_one_variant_and_one_crop() -> None:
    z_high = np.moveaxis(np.mgrid[:2, :6, :8], 0, -1).astype(np.float32)
    z_low = np.stack([z_high + 100 * (k + 1) for k in range(3)])
    variants = set()
    for seed in range(50):
        out = Latents(crop=(4, 5))({'z_high': z_high, 'z_low': z_low}, rng(seed))
        assert out['z_high_FHWC'].shape == (2, 4, 5, 3)
        (difference,) = np.unique(out['z_low_FHWC'] - out['z_high_FHWC'])
        variants.add(float(difference))
    assert variants == {100.0, 200.0, 300.0}
    whole = Latents()({'z_high': z_high, 'z_low': z_low}, rng())
    np.testing.assert_array_equal(whole['z_high_FHWC'], z_high)
    with pytest.raises(ValueError, match=r'z_low \(2, 6, 8, 3\) must be a stack'):
        Latents()({'z_high': z_high, 'z_low': z_low[0]}, rng())
