"""Clips encoded once: what is kept, that degraded variants are degraded, and that stale latents are refused."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data import pipeline
from fv_jax.data.buckets import Bucket
from fv_jax.data.config import DataConfig, LatentCacheConfig
from fv_jax.data.degradation.configs import ModelGuidedConfig, WeakConfig
from fv_jax.data.loader import LoaderConfig, WeightedSource, load_batches
from fv_jax.data.shards import manifest
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.shard_files import read_records
from fv_jax.data.transforms import Latents, compose, keep_arrays
from fv_jax.models.vae import OFFICIAL
from fv_jax.text.hash_encoder import HashTextEncoder
from fv_jax.training.run import latent_cache

CONFIG = DataConfig(
    LoaderConfig(batch_size=1, num_threads=0),
    train='synthetic',
    frames=1,
    height=16,
    width=32,
    weak=WeakConfig(2.0, 4.0),
    cache=LatentCacheConfig(num_degraded_variants=3),
)


class Pixels:
    """A fake VAE whose latents are the pixels."""

    def __init__(self):
        self.videos = []

    def encode(self, video_BFHWC):
        self.videos.append(np.asarray(video_BFHWC[0]))
        return video_BFHWC


def cached(folder, config=CONFIG, digest='abc', vae=None, open_model=None):
    records = pipeline.open_source('synthetic', config, heldout=False)
    transform = pipeline.clip_transform(config, low_res=False, training=True)
    bad = BadRecords(config.bad_records)
    part = WeightedSource('synthetic', records)
    return latent_cache.cached_latents(
        folder, part, transform, vae or Pixels(), config, digest, bad=bad, open_model=open_model
    )


def luma_correlation(a, b):
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


def test_latent_cache_contents(tmp_path, log_lines):
    records = cached(tmp_path / 'latents')
    assert len(records) == 4
    for i in range(4):
        record = records[i]
        assert record['z_high'].shape == (1, 16, 32, 3) and record['z_low'].shape == (3, 1, 16, 32, 3)
        assert record['z_high'].dtype == record['z_low'].dtype == np.float16
    assert 'encoding 4 clips and 3 degraded variant(s)' in log_lines[0] and log_lines[-1] == 'encoded 4/4 clips'


def test_latent_cache_without_degraded_variants(tmp_path):
    vae = Pixels()
    config = dataclasses.replace(CONFIG, cache=LatentCacheConfig(num_degraded_variants=0))
    records = cached(tmp_path / 'latents', config, vae=vae)
    assert len(vae.videos) == len(records) == 4
    assert records[0]['z_low'].shape == (0, 1, 16, 32, 3)
    drawn = Latents(crop=(8, 8))(records[0], np.random.default_rng(0))
    assert drawn['z_high_FHWC'].shape == (1, 8, 8, 3) and 'z_low_FHWC' not in drawn
    # The clip's own size stands beside its latents.
    assert [drawn[name] for name in ('frames', 'height', 'width')] == [1, 16, 32]
    found = manifest.read_manifest(tmp_path / 'latents' / 'latents.parquet', 'latents')
    assert found.sizes().to_array().tolist() == [[1, 16, 32]] * 4


def test_latent_cache_degrades_each_clip_itself(tmp_path):
    """Clips are mirrored at random: the degraded must be mirrored with them."""
    records = cached(tmp_path / 'latents')
    originals = [r['video'] for r in pipeline.open_source('synthetic', CONFIG, heldout=False)]
    mirrored = []
    for i in range(4):
        high, lows = records[i]['z_high'], records[i]['z_low']
        for low in lows:
            assert luma_correlation(high, low) > 0.8 > luma_correlation(high[:, :, ::-1], low)
            assert np.abs(high - low).mean() > 0.01
        mirrored.append(bool(luma_correlation(originals[i], high) < 0.8))
        assert len({low.tobytes() for low in lows}) > 1  # factors of their own, few sizes of so few pixels
    assert len(set(mirrored)) == 2


def test_latent_cache_is_deterministic_by_seed(tmp_path):
    first, again = cached(tmp_path / 'a'), cached(tmp_path / 'b')
    other = cached(tmp_path / 'c', dataclasses.replace(CONFIG, loader=LoaderConfig(batch_size=1, seed=5)))
    np.testing.assert_array_equal(first[1]['z_low'], again[1]['z_low'])
    assert not np.array_equal(first[1]['z_low'], other[1]['z_low'])


def test_latent_cache_encodes_once(tmp_path, log_lines):
    vae = Pixels()
    cached(tmp_path / 'latents', vae=vae)
    assert len(vae.videos) == 16
    log_lines.clear()
    later = dataclasses.replace(
        CONFIG,
        loader=LoaderConfig(batch_size=2),
        eval_clips=1,
        heldout='',
        bad_records=BadRecordConfig('skip', 7),
        in_memory=True,
    )
    records = cached(tmp_path / 'latents', later, vae=vae)
    assert len(vae.videos) == 16 and log_lines == [] and len(records) == 4
    crop = dataclasses.replace(CONFIG, cache=LatentCacheConfig(num_degraded_variants=3, crop=(8, 8)))
    assert len(cached(tmp_path / 'latents', crop, vae=vae)) == 4 and len(vae.videos) == 16


@pytest.mark.parametrize(
    ('field', 'difference'),
    [
        ({}, "VAE and text encoder is 'abc' there and 'def' in this run"),
        ({'weak': WeakConfig(2.0, 3.0)}, "data.weak is .*'high': 4.0.* there and .*'high': 3.0"),
        ({'flip': False}, 'data.flip is True there and False'),
        ({'height': 32}, 'data.height is 16 there and 32'),
        ({'cache': LatentCacheConfig(num_degraded_variants=2)}, 'data.cache.num_degraded_variants is 3 there and 2'),
        ({'loader': LoaderConfig(batch_size=1, seed=1)}, 'data.loader.seed is 0 there and 1'),
        ({'train': 'elsewhere'}, "data.train is 'synthetic' there and 'elsewhere'"),
    ],
)
def test_latent_cache_refuses_other_settings_and_names_them(tmp_path, field, difference):
    cached(tmp_path / 'latents')
    before = (tmp_path / 'latents' / 'latents.json').read_text()
    with pytest.raises(ValueError, match=rf'other settings: {difference}.*; choose another --workdir, or delete '):
        cached(tmp_path / 'latents', dataclasses.replace(CONFIG, **field), 'abc' if field else 'def')
    assert (tmp_path / 'latents' / 'latents.json').read_text() == before


def test_latent_cache_interrupted_leaves_nothing(tmp_path):
    class Failing(Pixels):
        def encode(self, video_BFHWC):
            if len(self.videos) == 6:
                raise KeyboardInterrupt
            return super().encode(video_BFHWC)

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / 'latents', vae=Failing())
    assert not (tmp_path / 'latents').exists()
    assert len(cached(tmp_path / 'latents')) == 4


def test_latent_cache_is_trained_on(tmp_path):
    records = cached(tmp_path / 'latents')
    transform = compose(Latents((8, 8)), keep_arrays)
    batch = next(load_batches(records, transform, CONFIG.loader))
    assert {name: value.shape for name, value in batch.items()} == {
        'z_high_BFHWC': (1, 1, 8, 8, 3),
        'z_low_BFHWC': (1, 1, 8, 8, 3),
    }


def test_latent_cache_keeps_text_embeddings(tmp_path):
    text = np.ones((4, 8), np.float32)
    clips = [record | {'text': text} for record in pipeline.synthetic_clips(1, 1, 16, 32)]
    transform = pipeline.clip_transform(CONFIG, low_res=False, training=True)
    bad = BadRecords(CONFIG.bad_records)
    part = WeightedSource('clips', clips)
    latent_cache.cached_latents(tmp_path, part, transform, Pixels(), CONFIG, 'abc', bad=bad)
    (record,) = read_records(sorted(tmp_path.glob('*.array_record')))
    np.testing.assert_array_equal(record['text'], text)


def test_latent_cache_embeds_captions(tmp_path):
    """In every bucket; and what another encoder embedded is refused."""
    clips = [
        record | {'caption': 'a wave'}
        for size in ((16, 32), (32, 16))
        for record in pipeline.synthetic_clips(1, 1, *size)
    ]
    bad, words = BadRecords(CONFIG.bad_records), HashTextEncoder(4, 32)
    parts = [WeightedSource('clips', clips)]
    config = dataclasses.replace(CONFIG, buckets=(Bucket(1, 16, 32), Bucket(1, 32, 16)))
    groups = pipeline.group_by_bucket(parts, config, OFFICIAL.latent_spec)
    assert len(groups) == 2

    def streams(text):
        return latent_cache.cached_streams(tmp_path, groups, Pixels(), config, 'abc', bad=bad, text=text)

    expected = words.encode(['a wave'])[0].astype(np.float16)
    for made in (streams(words), pipeline.make_streams(groups, config, low_res=True, text=words)):
        for stream in made:
            _, read = stream.parts[0].record(0)
            row = stream.transform(read(), np.random.default_rng(0))
            np.testing.assert_array_equal(row['text_LD'], expected)
    with pytest.raises(ValueError, match='VAE and text encoder is '):
        streams(HashTextEncoder(8, 32))


def test_latent_cache_of_clips_alone_does_not_depend_on_degradations(tmp_path):
    vae = Pixels()
    config = dataclasses.replace(CONFIG, cache=LatentCacheConfig(num_degraded_variants=0))
    cached(tmp_path / 'latents', config, vae=vae)
    cached(tmp_path / 'latents', dataclasses.replace(config, weak=WeakConfig(2.0, 3.0)), vae=vae)
    assert len(vae.videos) == 4


@pytest.mark.parametrize('threads', [0, 3])
def test_latent_cache_calls_the_model_for_the_variants_that_it_degrades(tmp_path, threads):
    """In this thread, once for each, with its clip, its text and a seed of its own."""
    here, calls = threading.get_ident(), []

    def model(frames_FHWC, drawn, text_LD):
        assert threading.get_ident() == here
        calls.append((frames_FHWC.copy(), drawn.seed, text_LD))
        return frames_FHWC * 0 + np.float32(drawn.seed % 7 / 8)

    guided = dataclasses.replace(
        CONFIG,
        loader=LoaderConfig(batch_size=1, num_threads=threads),
        frames=9,
        model_guided=ModelGuidedConfig('embedded'),
        model_guided_probability=0.5,
    )
    opened = []
    records = cached(tmp_path / 'latents', guided, open_model=lambda: opened.append(1) or model)
    made = [low for record in (records[i] for i in range(4)) for low in record['z_low'] if not np.ptp(low)]
    assert opened == [1] and 2 <= len(calls) == len(made) <= 10
    seeds = [seed for _, seed, _ in calls]
    assert len(set(seeds)) == len(seeds)
    assert [float(low.flat[0]) for low in made] == [seed % 7 / 8 for seed in seeds]
    highs = [records[i]['z_high'] for i in range(4)]
    for frames, _, text in calls:
        assert text is None and any(np.allclose(frames, high, atol=1e-3) for high in highs)
    # The same whatever the threads; and what exists needs no model.
    if threads:
        again = cached(tmp_path / 'again', dataclasses.replace(guided, loader=CONFIG.loader), open_model=lambda: model)
        np.testing.assert_array_equal(again[2]['z_low'], records[2]['z_low'])
    cached(tmp_path / 'latents', guided)
    other = dataclasses.replace(guided, model_guided=ModelGuidedConfig('embedded', noise_levels=(0.1, 0.4)))
    with pytest.raises(ValueError, match=r'data.model_guided is .*0.3.* there and .*0.1'):
        cached(tmp_path / 'latents', other)


def test_latents_of_earlier_versions_are_those_without_new_degradations(tmp_path):
    cached(tmp_path / 'latents')
    path = tmp_path / 'latents' / 'latents.json'
    stored = json.loads(path.read_text())
    for kind in ('flow_based', 'model_guided'):
        del stored['made_with'][f'data.{kind}'], stored['made_with'][f'data.{kind}_probability']
    path.write_text(json.dumps(stored))
    assert len(cached(tmp_path / 'latents')) == 4


def test_model_guided_degradations_need_latents_that_are_made_once():
    guided = {'model_guided': ModelGuidedConfig('embedded'), 'model_guided_probability': 0.5}
    with pytest.raises(ConfigError, match=r'model_guided_probability=0.5: .*; set cache, or let `prepare` store'):
        dataclasses.replace(CONFIG, cache=None, **guided)
    # Held-out clips are degraded without the model.
    config = dataclasses.replace(CONFIG, frames=9, **guided)
    records = pipeline.open_source('synthetic', config, heldout=True)
    clip = pipeline.load_heldout(records, pipeline.clip_transform(config, low_res=True, training=False), [0])
    assert clip['low_res_BFHWC'].shape == clip['high_res_BFHWC'].shape


def test_latents_are_encoded_again_after_a_process_was_killed(tmp_path):
    """While it published them: shards exist, and their JSON does not."""
    folder = tmp_path / 'latents'
    cached(folder)
    shards = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / 'latents.json').unlink()
    (folder / '.latents.0a1b2c3d.partial' / '0').mkdir(parents=True)
    cached(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == shards
