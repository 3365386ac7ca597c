"""The data set of moving sprites, and what is measured on its clips."""

import dataclasses
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.degradation.configs import WeakConfig
from fv_jax.data.loader import LoaderConfig, load_batches
from fv_jax.data.synthetic import sprite_drawing, sprites
from tests.benchmarks import sprite_measures
from tests.benchmarks.heldout_prompts import heldout_prompts

CONFIG = DataConfig(
    LoaderConfig(batch_size=2, num_threads=0),
    train='sprites:20',
    heldout='sprites',
    frames=9,
    height=32,
    width=48,
    fit='resize',
    flip=False,
    weak=WeakConfig(2.0, 4.0),
)


@pytest.fixture(scope='module')
def art() -> np.ndarray:
    return sprites.load_art()


@pytest.fixture(scope='module')
def clips() -> list[dict]:
    """Every object, motion and landscape at least once."""
    heldout, train = (sprites.SpriteClips(split, 200, sprites.PREVIEW, seed=5) for split in ('heldout', 'train'))
    return [heldout[i] for i in range(20, 40)] + [train[i] for i in range(10)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean(np.square(a.astype(np.float64) - b))))


# --- names and splits ---


def test_no_combination_is_in_both_splits_and_every_pair_is_trained_on():
    heldout, train = sprites.heldout_combinations(), sprites.train_combinations()
    assert len(set(heldout)) == len(heldout) == 120 and len(set(train)) == len(train) == 840
    assert not set(heldout) & set(train)
    names = sprites.OBJECTS, sprites.MOTIONS, sprites.BACKGROUNDS
    assert len(names[0]) >= 16 and len(names[1]) >= 8
    assert set(heldout) | set(train) == set(itertools.product(*names))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(c[a], c[b]) for c in train} == set(itertools.product(names[a], names[b]))


def test_heldout_prompts_cover_every_name():
    prompts = heldout_prompts(64)
    combinations = [(p.object, p.motion, p.background) for p in prompts]
    assert len({p.caption for p in prompts}) == 64 and set(combinations) <= set(sprites.heldout_combinations())
    for i, names in enumerate((sprites.OBJECTS, sprites.MOTIONS, sprites.BACKGROUNDS)):
        counts = [sum(c[i] == name for c in combinations) for name in names]
        assert min(counts) >= 64 // len(names) - 2 and max(counts) <= 64 // len(names) + 2
    with pytest.raises(ValueError, match='count=121: there are 1 to 120'):
        heldout_prompts(121)


def test_sprites_have_the_combinations_of_their_split():
    train, heldout = (sprites.SpriteClips(split, 400, sprites.PREVIEW) for split in ('train', 'heldout'))
    shown = [(s.object, s.motion, s.background) for s in map(train.scene, range(400))]
    assert not set(shown) & set(sprites.heldout_combinations()) and len(set(shown)) > 250
    scenes = [heldout.scene(i) for i in range(240)]
    assert [(s.object, s.motion, s.background) for s in scenes] == 2 * sprites.heldout_combinations()
    assert scenes[0] != scenes[120] and scenes[:64] == heldout_prompts(64)


def test_sprite_captions():
    scene = heldout_prompts(1)[0]
    assert scene.caption == 'a ladybug moves from left to right over a beach'
    other = dataclasses.replace(scene, object='umbrella', motion='bottom left to top right', background='town')
    assert other.caption == 'an umbrella moves from bottom left to top right over a town at night'
    train, heldout = (sprites.SpriteClips(split, 400) for split in ('train', 'heldout'))
    assert all(heldout.caption(i) == heldout.scene(i).caption for i in range(120))
    captions = [train.caption(i) for i in range(400)]
    canonical = np.mean([c == train.scene(i).caption for i, c in enumerate(captions)])
    assert 0.4 < canonical < 0.6
    for i, caption in enumerate(captions):
        scene = train.scene(i)
        assert caption in [scene.format_caption(p) for p in (sprites.CANONICAL, *sprites.PARAPHRASES)]
        assert scene.object in caption and sprites.BACKGROUNDS[scene.background] in caption
    combinations = sprites.train_combinations() + sprites.heldout_combinations()
    scenes = [dataclasses.replace(scene, object=o, motion=m, background=b) for o, m, b in combinations]
    for pattern in (sprites.CANONICAL, *sprites.PARAPHRASES):
        texts = [s.format_caption(pattern) for s in scenes]
        assert len(set(texts)) == len(texts) and max(len(text.split()) for text in texts) <= 16


# --- records ---


def test_sprites_are_a_function_of_seed_split_and_index():
    def clips(*args, **more):
        return sprites.SpriteClips(*args, sprites.PREVIEW, **more)

    record = clips('train', 50)[17]
    assert record.keys() >= {'video', 'fps', 'frames', 'height', 'width', 'source', 'caption'}
    assert record['video'].shape == (*sprites.PREVIEW, 3) and record['video'].dtype == np.uint8
    again = clips('train', 9000)
    again[3]
    np.testing.assert_array_equal(again[17]['video'], record['video'])
    assert again[17]['caption'] == record['caption'] == again.caption(17)
    for other in (clips('train', 50, seed=1)[17], clips('train', 50)[18], clips('heldout', 50)[17]):
        assert not np.array_equal(other['video'], record['video'])
    with pytest.raises(IndexError, match='clip 50 of 50'):
        clips('train', 50)[50]


def test_sprites_in_the_data_pipeline():
    records = pipeline.open_source(CONFIG.train, CONFIG, heldout=False)
    assert len(records) == 20 and len(pipeline.open_source('sprites', CONFIG, heldout=True)) == 120
    transform = pipeline.clip_transform(CONFIG, low_res=True, training=True)
    batch = next(load_batches(records, transform, CONFIG.loader))
    assert batch.keys() == {'high_res_BFHWC', 'low_res_BFHWC'}
    assert all(video.shape == (2, 9, 32, 48, 3) for video in batch.values())
    one = pipeline.clip_transform(CONFIG, low_res=False, training=True)(records[4], np.random.default_rng(0))[
        'high_res_FHWC'
    ]
    np.testing.assert_allclose((one + 1) * 127.5, records[4]['video'], atol=1e-3)


def test_grid_sprites_look_alike_in_every_latent_frame(art):
    """Four frames move the drawn sprite by one patch of a preview, 16 pixels, along each axis of its motion."""
    clips = sprites.open_source('grid_sprites:200', sprites.PREVIEW, heldout=False)
    backdrop = np.zeros((*sprites.PREVIEW[1:], 3), np.uint8)
    for scene in {(s.motion, s.start): s for s in map(clips.scene, range(200))}.values():
        centres = scene.centres(17)[::4] * 8
        np.testing.assert_allclose(centres, np.rint(centres), atol=1e-9)
        steps = [tuple(step) for step in np.diff(centres, axis=0).round().astype(int)]
        assert steps == [sprites.MOTIONS[scene.motion][0]] * 4
        frames = sprite_drawing.draw_moving_sprite(backdrop, art[0], scene.centres(17), scene.size)[::4]
        for i, frame in enumerate(frames):
            moved = np.roll(frames[0], [16 * i * step for step in steps[0]], axis=(0, 1))
            np.testing.assert_array_equal(frame, moved)


def test_grid_sprites_are_whole_and_their_motion_is_measured():
    heldout = sprites.open_source('grid_sprites', sprites.PREVIEW, heldout=True)
    assert len(heldout) == 120
    scenes = [heldout.scene(i) for i in range(120)]
    assert [(s.object, s.motion, s.background) for s in scenes] == sprites.heldout_combinations()
    for scene in scenes:
        ends = np.array([scene.start, scene.end])
        assert (ends >= scene.size / 2).all() and (ends <= np.array([1, 1.5]) - scene.size / 2).all()
        for axis, sign in enumerate(sprites.MOTIONS[scene.motion][0]):
            middle = (0.5, 0.75)[axis]
            assert sign == 0 or (sign * (middle - ends[0, axis]) > 0 and sign * (ends[1, axis] - middle) > 0)
    assert all(sprite_measures.motion_of(heldout[i]['video']) == scenes[i].motion for i in range(0, 120, 12))


def test_sprite_crops_show_the_sprite():
    """The centre of the sprite is within the crop in one of its frames; crops of the same record are the same."""
    crops = sprites.open_source('sprite_crops:12', (9, 48, 40), heldout=False)
    for index in range(len(crops)):
        record = crops[index]
        assert record['video'].shape == (17, 48, 40, 3)
        assert np.ptp(record['video'].astype(int), axis=0).max() > 60, 'nothing moves'
        np.testing.assert_array_equal(record['video'], crops[index]['video'])


def test_sprite_crops_have_all_scales():
    config = dataclasses.replace(CONFIG, train='sprite_crops:30', fit='crop', height=64, width=64)
    records = pipeline.open_source(config.train, config, heldout=False)
    sizes = [records.size(i) for i in range(6)]
    low, high = sprites.PREVIEW[1], sprites.FINAL[1]
    assert all(size[0] == 17 and low <= size[1] <= high and abs(size[2] - 1.5 * size[1]) < 1.6 for size in sizes)
    assert len(set(sizes)) >= 5
    assert all((records[i]['height'], records[i]['width']) == (64, 64) for i in range(6))
    transform = pipeline.clip_transform(config, low_res=False, training=True)
    batch = next(load_batches(records, transform, config.loader))
    assert batch['high_res_BFHWC'].shape == (2, 9, 64, 64, 3)


def test_sprites_can_be_concatenated_with_other_sources():
    joined = pipeline.open_source('embedded+sprites:7+synthetic', CONFIG, heldout=False)
    assert len(joined) == 66 + 7 + 4
    assert 'start_frame' in joined[0] and 'start_frame' in joined[65]
    np.testing.assert_array_equal(
        joined[66]['video'], pipeline.open_source('sprites:7', CONFIG, heldout=False)[0]['video']
    )
    assert joined[72]['source'] == 'sprites' and joined[73].keys() == joined[76].keys() == {'video'}


@pytest.mark.parametrize(
    ('name', 'words'),
    [('sprites:many', 'sprites:many: expected a number'), ('sprites:', 'expected a number'), ('sprites:0', '0 clips')],
)
def test_sprites_refuse_invalid_names(name, words):
    with pytest.raises(ConfigError, match=words):
        pipeline.open_source(name, CONFIG, heldout=False)


def test_sprites_refuse_a_narrow_image():
    with pytest.raises(ConfigError, match='height=64, width=16'):
        sprites.SpriteClips('train', 4, (9, 64, 16))


# --- drawing ---


def test_sprite_preview_is_the_downsampled_final_image(art):
    for scene in heldout_prompts(6):
        small, large = (sprites.draw_scene(scene, size, art) for size in ((3, 64, 96), (3, 256, 384)))
        mean = large.reshape(3, 64, 4, 96, 4, 3).mean(axis=(2, 4))
        assert psnr(small, mean) > 40
        # And it has less detail than the final image: there is something to enhance.
        assert psnr(np.repeat(np.repeat(small, 4, axis=1), 4, axis=2), large) < 35


def test_sprite_is_drawn_at_the_scene_position(art):
    backdrop = np.zeros((64, 96, 3), np.uint8)
    disc = np.zeros((160, 160, 4), np.float32)
    disc[np.hypot(*np.ogrid[-79.5:80, -79.5:80]) < 70] = 1
    rows, columns = np.arange(64) + 0.5, np.arange(96) + 0.5
    for centre in ((0.5, 0.75), (0.413, 0.902), (0.333, 1.1)):
        frame = sprite_drawing.draw_moving_sprite(backdrop, disc, np.array([centre]), 0.4)[0, ..., 0].astype(float)
        found = (frame.sum(1) @ rows / frame.sum() / 64, frame.sum(0) @ columns / frame.sum() / 64)
        np.testing.assert_allclose(found, centre, atol=0.1 / 64)
        assert frame.max() == 255 and abs(frame.sum() / 255 - np.pi * (70 / 160 * 0.4 * 64) ** 2) < 12
    large = sprite_drawing.resample_art(disc, (200.3, 180.6), 320.0, 400)[..., 3].astype(float)
    rows, columns = (np.arange(400) + 0.5,) * 2
    found = large.sum(1) @ rows / large.sum(), large.sum(0) @ columns / large.sum()
    np.testing.assert_allclose(found, (200.3, 180.6), atol=0.05)
    # Over an edge and beyond it.
    cut, outside = sprite_drawing.draw_moving_sprite(backdrop, disc, np.array([(0.0, 0.0), (-0.5, 2.5)]), 0.4)[..., 0]
    assert cut[0, 0] == 255 and cut[20:].max() == 0 and outside.max() == 0


def test_sprites_stay_in_the_image_and_move_as_captioned():
    clips = sprites.SpriteClips('train', 300)
    for i in range(300):
        scene = clips.scene(i)
        start, end = np.array(scene.start), np.array(scene.end)
        assert np.all(np.minimum(start, end) >= 0.45 * scene.size - 1e-6)
        assert np.all(np.maximum(start, end) <= np.array([1, 1.5]) - 0.45 * scene.size + 1e-6)
        move = end - start
        assert np.hypot(*move) >= 0.45 > scene.size
        direction = np.array(sprites.MOTIONS[scene.motion][0])
        angle = np.dot(move, direction) / np.hypot(*move) / np.hypot(*direction)
        assert np.degrees(np.arccos(min(angle, 1))) < 6
        # On the side it starts from, in the end on the other.
        middle = np.array([0.5, 0.75])
        assert np.all((start - middle) * direction <= 0) and np.all((end - middle) * direction >= 0)


def test_every_sprite_is_visible_on_every_landscape(art):
    for name in sprite_drawing.LANDSCAPES:
        backdrop = sprite_drawing.draw_landscape(name, np.random.default_rng(1), (64, 96))
        assert backdrop.shape == (64, 96, 3) and backdrop.astype(float).std() > 8
        for i, one in enumerate(art):
            shown = sprite_drawing.draw_moving_sprite(backdrop, one, np.array([(0.7, 0.75)]), 0.38)[0]
            seen = np.abs(shown.astype(float) - backdrop).max(axis=-1) > 40
            assert seen.sum() > 100, (name, list(sprites.OBJECTS)[i], seen.sum())
    assert set(sprite_drawing.LANDSCAPES) == set(sprites.BACKGROUNDS)


def test_sprite_art_is_small_and_attributed(art):
    assert art.shape == (len(sprites.OBJECTS), 160, 160, 4) and art.min() >= 0 and art.max() == 1
    assert np.all(art[..., :3] <= art[..., 3:])
    filled = [np.argwhere(one[..., 3] > 0.5) for one in art]
    assert all(150 <= np.max(np.ptp(where, axis=0)) < 160 for where in filled)
    files = list(Path(sprite_drawing.SHEET).parent.glob('sprites*'))
    assert sum(path.stat().st_size for path in files) < 100_000
    notice = Path(sprite_drawing.SHEET).with_name('sprites_NOTICE').read_text(encoding='utf-8')
    assert 'Noto Emoji' in notice and 'Google' in notice and 'Apache License, Version 2.0' in notice


# --- measures ---


def right(clips: list[dict], change=lambda video, rng: video) -> tuple[float, float]:
    """Shares of clips whose object and whose motion are found."""
    rng = np.random.default_rng(0)
    videos = [change(record['video'], rng) for record in clips]
    objects = [sprite_measures.object_of(v) == r['object'] for v, r in zip(videos, clips, strict=True)]
    motions = [sprite_measures.motion_of(v) == r['motion'] for v, r in zip(videos, clips, strict=True)]
    return float(np.mean(objects)), float(np.mean(motions))


def test_sprite_measures_find_object_and_motion(clips):
    assert right(clips) == (1, 1)


def test_sprite_measures_find_object_and_motion_in_blurred_noisy_clips(clips):
    def worse(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # A frame also shows what was there up to three frames ago, as if decoded from too few latents.
        smeared = [video[max(0, t - 3) : t + 1].mean(axis=0) for t in range(len(video))]
        soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in smeared])
        return np.clip(0.85 * soft + 15 + rng.normal(0, 6, video.shape), 0, 255).astype(np.uint8)

    found = right(clips[::2], worse)
    assert min(found) >= 0.95


def test_sprite_measures_on_large_and_long_clips(art):
    for scene, size in zip(heldout_prompts(3), ((5, 256, 384), (25, 64, 96), (5, 128, 240)), strict=True):
        frames = sprites.draw_scene(scene, size, art)
        assert sprite_measures.object_of(frames) == scene.object
        assert sprite_measures.motion_of(frames) == scene.motion


def test_sprite_measures_of_a_reversed_clip(clips):
    opposite = {
        name: b
        for name, (d, _) in sprites.MOTIONS.items()
        for b, (e, _) in sprites.MOTIONS.items()
        if d == (-e[0], -e[1])
    }
    for record in clips[:8]:
        assert sprite_measures.motion_of(record['video'][::-1]) == opposite[record['motion']]


def test_sprite_measures_find_no_motion_in_a_still_clip(clips):
    still = np.repeat(clips[0]['video'][8:9], 17, axis=0)
    assert sprite_measures.motion_of(still) is None
    noisy = np.clip(still + np.random.default_rng(0).normal(0, 8, still.shape), 0, 255).astype(np.uint8)
    assert sprite_measures.motion_of(noisy) is None
    assert sprite_measures.object_of(still) in sprites.OBJECTS


def test_sprite_measures_object_errors(clips):
    errors = sprite_measures.object_errors(clips[0]['video'])
    best, second, *_ = sorted(errors.values())
    assert errors[clips[0]['object']] == best < 0.1 and second > 0.2 and max(errors.values()) <= 1.0


def test_sprite_measures_refuse_invalid_arrays():
    for bad in (
        np.zeros((17, 64, 96, 3), np.float32),
        np.zeros((2, 64, 96, 3), np.uint8),
        np.zeros((17, 64, 96), np.uint8),
    ):
        with pytest.raises(ValueError, match='expected uint8'):
            sprite_measures.motion_of(bad)
