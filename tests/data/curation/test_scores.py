"""The scores of clips, on the clips in the package: what is planted is found, and nothing in the clips themselves."""

import functools
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fv_jax.data import embedded
from fv_jax.data.curation import bars, burnt_text, exposure, hashing, motion, noise, resolution, sharpness
from fv_jax.data.curation.samples import ClipSample
from fv_jax.data.curation.scores import SCORES, score_clip
from fv_jax.data.shards.shard_files import read_records
from fv_jax.data.video import decoding, encoding


@functools.cache
def clips():
    """Eight clips of Big Buck Bunny, uint8 (9, 256, 480, 3)."""
    records = list(read_records(embedded.train_shards()))
    return tuple(decoding.decode(record['video'], 9).frames for record in records[::9])


def luma(frames):
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def enlarge(frames, factor, interpolation=cv2.INTER_CUBIC):
    return np.stack([cv2.resize(frame, None, fx=factor, fy=factor, interpolation=interpolation) for frame in frames])


def reencode(frames, crf=24.0):
    return decoding.decode(encoding.encode_bytes(list(frames), 24.0, crf, 'veryfast')).frames


def test_score_clip_has_every_score_as_a_plain_value():
    found = score_clip(clips()[0], 24.0)
    assert list(found) == list(SCORES)
    kinds = {'float': float, 'int': int, 'str': str}
    assert all(type(value) is kinds[SCORES[name].kind] for name, value in found.items()), found
    assert score_clip(clips()[0], 24.0) == found
    for name in ('cuts', 'black', 'white', 'static', 'letterbox', 'pillarbox'):
        assert found[name] == 0, name


@pytest.mark.parametrize('shape', [(1, 256, 480, 3), (2, 3, 5, 3), (1, 1, 1, 3)])
@pytest.mark.parametrize('level', [0, 128, 255])
def test_score_clip_takes_clips_of_one_colour_and_any_size(shape, level):
    found = score_clip(np.full(shape, level, np.uint8), 24.0)
    assert found['hash'] == '' and found['bandwidth'] is None and found['motion'] == 0
    assert (found['black'], found['white']) == (float(level == 0), float(level == 255))


def test_score_clip_refuses_other_arrays():
    small, other = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)
    for frames in (np.zeros((2, 8, 8, 3), np.float32), small, [], [small, other], [small[:0]]):
        with pytest.raises(ValueError, match='frames'):
            score_clip(frames, 24.0)
    with pytest.raises(ValueError, match='fps'):
        score_clip(np.zeros((2, 8, 8, 3), np.uint8), 0.0)


@pytest.mark.parametrize('interpolation', [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
def test_bandwidth_falls_with_enlargement(interpolation):
    for clip in clips()[:2]:
        clip = clip[:3]
        found = [resolution.measure_bandwidth(luma(clip))]
        found += [
            resolution.measure_bandwidth(luma(reencode(enlarge(clip, factor, interpolation)))) for factor in (1.5, 2, 3)
        ]
        # Bilinear interpolation by 3 leaves images of the spectrum above the cutoff.
        assert found[0] > 0.75 > found[1] > found[2] and found[3] < 0.6, found


def test_true_height_is_that_before_enlargement():
    heights = []
    for clip in clips():
        enlarged = luma(enlarge(clip[:2], 2))
        heights.append(resolution.true_height(resolution.measure_bandwidth(enlarged), enlarged.shape[1]))
    assert 0.8 * 256 < np.median(heights) < 1.25 * 256, heights


def test_sharpness_is_the_variance_of_the_laplacian():
    frame = luma(clips()[1][:1])[0].astype(float)
    padded = np.pad(frame, 1, mode='reflect')
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * frame
    assert sharpness.laplacian_variance(frame[None].astype(np.uint8)) == pytest.approx(laplacian.var(), rel=1e-6)


@pytest.mark.parametrize('sigma', [2.0, 5.0, 12.0])
def test_noise_is_measured(sigma):
    rng = np.random.default_rng(0)
    for clip in clips()[:4]:
        frames = cv2.GaussianBlur(luma(clip[:2])[0], (0, 0), 3)[None]
        noisy = np.clip(frames + rng.normal(0, sigma, frames.shape), 0, 255).round().astype(np.uint8)
        assert noise.noise_sigma(noisy) == pytest.approx(sigma, rel=0.15, abs=0.3)


def test_blocking_is_found_at_any_offset():
    for clip in clips()[:4]:
        buffer = io.BytesIO()
        Image.fromarray(clip[0]).save(buffer, 'JPEG', quality=10)
        blocky = luma(np.asarray(Image.open(buffer))[None])
        clean = noise.blocking(luma(clip[:1]))
        for top, left in ((0, 0), (3, 5)):
            assert noise.blocking(blocky[:, top:, left:]) > 0.35 + clean
        assert clean < 0.15


def test_motion_has_the_length_of_a_shift_per_second():
    wide = enlarge(clips()[2][:1], 2)[0]
    shifts = luma([wide[100:356, 200 + 3 * i : 680 + 3 * i] for i in range(5)])
    assert motion.motion(shifts, 24.0) == pytest.approx(3 * 24 / 256 * 100, rel=0.1)
    assert motion.motion(shifts[:1], 24.0) == 0 == motion.motion(np.repeat(shifts[:1], 4, axis=0), 24.0)


def test_static_share_counts_repeated_frames():
    frames = luma([clips()[0][i] for i in (0, 0, 0, 4, 8)])
    assert motion.static_share(frames) == 0.5
    repeated = reencode(np.repeat(clips()[0][:1], 6, axis=0))
    assert motion.static_share(luma(repeated)) == 1


def test_exposure():
    black, white = np.zeros((2, 8, 8), np.uint8), np.full((2, 8, 8), 255, np.uint8)
    frames = np.concatenate([black, white, white, luma(clips()[0][:2])[:, :8, :8]])
    assert (exposure.black_share(frames), exposure.white_share(frames)) == (0.25, 0.5)
    assert exposure.brightness(np.concatenate([black, white])) == 127.5
    grey = np.repeat(luma(clips()[0])[..., None], 3, axis=-1)
    assert exposure.colorfulness(grey) == 0 and exposure.colorfulness(clips()[0]) > 15


@pytest.mark.parametrize('share', [0.01, 0.05, 0.3])
@pytest.mark.parametrize('axis', [1, 2])
def test_bars_of_1_to_30_percent_are_found(share, axis):
    for clip, light in zip(clips()[:2], (1.0, 0.25), strict=True):
        frames = (enlarge(clip[[0, 4, 8]], 2) * light).astype(np.uint8)
        width = round(frames.shape[axis] * share / 2)
        barred = frames.copy()
        for part in (slice(0, width), slice(-width, None)):
            barred[(slice(None),) * axis + (part,)] = 0
        found = bars.find_bars(luma(reencode(barred)))
        ends, others = (found.top, found.bottom), (found.left, found.right)
        ends, others = (ends, others) if axis == 1 else (others, ends)
        assert others == (0, 0) and np.abs(np.array(ends) - width).max() <= 1
        assert bars.find_bars(luma(frames)) == bars.Bars()


def test_bars_are_cropped_and_may_have_a_subtitle():
    frames = enlarge(clips()[0][:3], 2)
    frames[:, :60] = frames[:, -60:] = 0
    for frame in frames:
        cv2.putText(frame, 'a subtitle', (400, 490), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    found = bars.find_bars(luma(frames))
    assert found == bars.Bars(60, 60, 0, 0)
    assert found.crop(frames[0]).shape == (392, 960, 3)


def plant_text(clip, text, fraction):
    size = round(fraction * clip.shape[1])
    planted = []
    for frame in clip:
        image = Image.fromarray(frame)
        place = clip.shape[2] // 8, round(0.85 * clip.shape[1])
        ImageDraw.Draw(image).text(
            place, text, 'white', ImageFont.load_default(size), stroke_width=2, stroke_fill='black'
        )
        planted.append(np.asarray(image))
    return np.stack(planted)


def test_text_is_found_where_it_is_planted_and_nowhere_else():
    with_text, without = [], []
    for clip in clips():
        frames = enlarge(clip[[0, 4, 8]], 2)
        without.append(burnt_text.text_share(luma(frames)))
        with_text.append(burnt_text.text_share(luma(plant_text(frames, 'We have never been here before.', 0.05))))
    assert np.mean(np.array(with_text) > 0.005) >= 0.85, with_text
    assert np.mean(np.array(without) < 0.002) >= 0.85, without


def test_cuts_inside_a_clip_are_counted():
    joined = np.concatenate([clips()[0], clips()[3], clips()[5]])
    assert score_clip(joined, 24.0)['cuts'] == 2 and score_clip(clips()[3], 24.0)['cuts'] == 0


def test_hash_is_that_of_a_copy_and_not_of_another_clip():
    def bits(a, b):
        first, second = (hashing.parse_hashes([hashing.perceptual_hash(luma(frames))]) for frames in (a, b))
        return int(np.bitwise_count(first ^ second).sum())

    for clip, other in zip(clips()[:3], clips()[1:], strict=False):
        brighter = np.clip(clip * 1.15 + 8, 0, 255).astype(np.uint8)
        for copy in (reencode(clip, 32.0), enlarge(clip, 1.5), brighter, clip[:, 3:-3, 5:-5]):
            assert bits(clip, copy) <= 18
        assert bits(clip, other) > 40


def test_samples_are_few_large_frames_and_all_small_ones():
    frames = enlarge(clips()[0], 3)
    sample = ClipSample(frames, 24.0)
    assert sample.detailed_FHW.shape == (3, 768, 1440) and sample.small_FHWC.shape == (9, 256, 480, 3)
    assert ClipSample(frames[:1], 24.0).detailed_FHWC.shape[0] == 1


def test_hash_is_that_of_what_is_between_the_bars():
    clip = clips()[1]
    barred = np.zeros_like(clip)
    for frame, original in zip(barred, clip, strict=True):
        frame[32:-32] = cv2.resize(original, (480, 192), interpolation=cv2.INTER_AREA)
    first, second = (hashing.parse_hashes([score_clip(frames, 24.0)['hash']]) for frames in (clip, barred))
    assert np.bitwise_count(first ^ second).sum() <= 18


def test_scores_do_not_depend_on_the_number_of_threads():
    before, found = cv2.getNumThreads(), []
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            found.append(score_clip(clips()[2], 24.0))
    finally:
        cv2.setNumThreads(before)
    assert found[0] == found[1]
