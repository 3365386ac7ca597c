"""Prompt to preview to video, with two small random stages."""

import contextlib
import dataclasses
import gc
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.api import FlashVideo
from fv_jax.core.config import ConfigError
from fv_jax.data.transforms import to_uint8
from fv_jax.data.video import decoding, encoding
from fv_jax.sampling import preview_store, programs, text_to_video
from fv_jax.sampling.color_fix import fix_colors
from fv_jax.sampling.lazy_stages import split_into_batches
from fv_jax.sampling.metadata import ClipMetadata
from fv_jax.sampling.noise import SeededNoise
from fv_jax.text.encoder import TextConfig
from tests.compiling import compiled
from tests.data import sample_videos
from tests.sampling import tiny
from tests.small_text import SMALL, make_folder

DOG, CAT = 'a dog', 'a cat runs'
pytestmark = pytest.mark.filterwarnings('ignore:prompt .*only the first:UserWarning')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pipeline')
    tiny.save_pipeline_and_vae(folder)
    return folder


@pytest.fixture(scope='module')
def fv(folder):
    return FlashVideo.from_checkpoint(folder)


@pytest.fixture(scope='module')
def both(fv):
    """Two previews of one call."""
    return fv.preview([DOG, CAT], seed=[3, 4])


@pytest.fixture(scope='module')
def videos(fv, both):
    return fv.enhance(both)


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max())


def assert_similar(a, b):
    """uint8 frames, up to rounding."""
    assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_preview_equals_stage_1_and_the_vae(fv, both):
    text = jnp.asarray(fv.stage1.text.open().encode([DOG, CAT]))
    z = programs.generate(fv.stage1.loaded, text, SeededNoise.from_seeds([3, 4]), (3, 2, 4))
    preview = both[1]
    assert preview.latents.shape == (3, 2, 4, 4) and preview.latents.dtype == np.float32
    np.testing.assert_array_equal(preview.latents, z[1])
    assert preview.frames.shape == (9, 16, 32, 3) and preview.frames.dtype == np.uint8 and preview.frames.std() > 1
    np.testing.assert_array_equal(
        preview.frames, to_uint8(np.asarray(programs.decode_latents(fv.stage1.vae.jitted, z)))[1]
    )
    assert (preview.prompt, preview.seed) == (CAT, 4)


def test_preview_depends_on_its_prompt_and_seed_alone(fv, both):
    """In any batch, also one that is filled up."""
    close(fv.preview(f' {CAT}\n', seed=4).latents, both[1].latents)
    split = [p for batch in fv.preview_batches([DOG, CAT, DOG], [3, 4, 5], batch_size=2) for p in batch]
    assert [p.seed for p in split] == [3, 4, 5]
    for got, expected in zip(split, both, strict=False):
        close(got.latents, expected.latents)
    assert not np.allclose(split[2].latents, split[0].latents, atol=0.1)  # the seed
    other = fv.preview([DOG, CAT], seed=4)
    assert not np.allclose(other[0].latents, both[1].latents, atol=1e-3)  # the prompt


def test_enhance_equals_stage_2_with_the_text_of_the_preview(fv, both, videos):
    stage, vae = fv.stage2.loaded, fv.stage2.vae.jitted
    z = jnp.stack([preview.latents for preview in both])
    z_low = programs.low_res_latents(vae, programs.decode_latents(vae, z), (64, 128))
    text, noise = jnp.asarray(fv.stage2.text.open().encode([DOG, CAT])), SeededNoise.from_seeds([3, 4])
    z_high = programs.enhance_latents(stage, z_low, text, noise)
    frames = to_uint8(np.asarray(programs.decode_latents(vae, z_high)))
    assert frames.shape == (2, 9, 64, 128, 3) and frames.std() > 1
    for video, expected in zip(videos, frames, strict=True):
        np.testing.assert_array_equal(video.frames, expected)
    swapped = programs.enhance_latents(stage, z_low, text[::-1], noise)
    assert not np.allclose(swapped, z_high, atol=1e-3)


def test_settings_of_a_call_override_the_defaults(fv, both, videos):
    """Each one changes the video: the seed, the prefix, the sampled source, the numerics, slices, tiles."""
    base = fv.enhance_settings
    assert base.size is None and base.prompt_prefix == '' and not base.sample_posterior
    changes = [{'prompt_prefix': 'slow, '}, {'sample_posterior': True}, {'numerics': 'official'}, {'width_slices': 2}]
    changes.append({'tile_size': (64, 72), 'tile_overlap': 16})
    for settings in (dataclasses.replace(base, **change) for change in changes):
        made = fv.enhance(both, settings=settings)
        assert made[0].metadata.enhance.settings == settings
        assert not np.array_equal(made[0].frames, videos[0].frames), settings
    reseeded = fv.enhance(both, seed=9)
    assert [video.seed for video in reseeded] == [9, 10]
    assert np.abs(reseeded[0].frames.astype(int) - videos[0].frames).max() > 3


def test_second_batch_does_not_compile(fv, both, videos, monkeypatch):
    calls = []
    advance = programs._advance
    monkeypatch.setattr(programs, '_advance', lambda *args: calls.append(type(args[3]).__name__) or advance(*args))
    with compiled() as new_programs:
        again = fv.enhance(fv.preview([CAT, DOG], seed=8))
    steps = fv.preview_settings.num_steps, fv.enhance_settings.num_steps
    assert calls == ['LowRes'] * steps[0] + ['SuperRes'] * steps[1] and not new_programs
    assert not np.array_equal(again[0].frames, videos[0].frames)


def test_progress_counts_the_steps_and_can_stop_sampling(fv):
    seen = []

    @contextlib.contextmanager
    def progress(name, num_steps):
        def on_step(done, total):
            seen.append((name, done, total))
            if done == 2:
                raise KeyboardInterrupt

        yield on_step

    stopping = dataclasses.replace(fv, progress=progress)
    with pytest.raises(KeyboardInterrupt):
        stopping.preview(CAT)
    total = fv.preview_settings.num_steps
    assert seen == [('preview', 1, total), ('preview', 2, total)] and total > 2


def test_reloaded_pipeline_does_not_compile(folder, both, videos):
    with compiled() as new_programs:
        again = FlashVideo.from_checkpoint(folder)
        previews = again.preview([DOG, CAT], seed=[3, 4])
        made = again.enhance(previews)
    assert not new_programs
    np.testing.assert_array_equal(previews[0].latents, both[0].latents)
    np.testing.assert_array_equal(made[1].frames, videos[1].frames)


def test_metadata_describes_the_generation(fv, folder, both, videos):
    metadata = videos[1].metadata
    assert dataclasses.replace(metadata, enhance=None) == both[1].metadata
    assert (metadata.preview.prompt, metadata.preview.seed, metadata.enhance.seed) == (CAT, 4, 4)
    assert metadata.preview.settings == fv.preview_settings and metadata.enhance.settings == fv.enhance_settings
    assert metadata.origin.checkpoints == (str(folder),) and metadata.origin.steps == (7, 7)
    first, second = metadata.preview.weights, metadata.enhance.weights
    assert first.vae == second.vae and first.text == second.text and first.network != second.network


def test_stored_preview_is_enhanced_to_the_same_video(fv, both, videos, tmp_path):
    preview_store.save(tmp_path / '0', both[0], fps=8, crf=18)
    open_and_read = fv.open_preview(tmp_path / '0')
    assert_similar(open_and_read.frames, both[0].frames)
    np.testing.assert_array_equal(open_and_read.latents, both[0].latents)
    assert_similar(fv.enhance([open_and_read, both[1]])[0].frames, videos[0].frames)


def test_text_is_encoded_before_the_network_is_loaded(folder, both, monkeypatch):
    """Both would not fit a small device together."""
    calls, again = [], FlashVideo.from_checkpoint(folder)
    for part in (again.stage1, again.stage2):
        opened, load = part.text.open, part.load
        monkeypatch.setattr(part.text, 'open', lambda opened=opened: calls.append('text') or opened())
        monkeypatch.setattr(part, 'load', lambda where, load=load: calls.append('network') or load(where))
    again.enhance(both[0])
    assert calls == ['text', 'network']
    again.preview(DOG)
    assert calls == ['text', 'network'] * 2


def test_values_that_are_not_finite_are_refused(fv, both):
    overflown = dataclasses.replace(both[0], latents=np.full_like(both[0].latents, np.inf))
    with pytest.raises(ValueError, match='values that are not finite'):
        fv.enhance(overflown)


def test_enhance_refuses_latents_of_another_vae(fv, both):
    weights = dataclasses.replace(both[0].metadata.preview.weights, vae='f' * 16)
    previewed = dataclasses.replace(both[0].metadata.preview, weights=weights)
    other = dataclasses.replace(both[0], metadata=dataclasses.replace(both[0].metadata, preview=previewed))
    with pytest.raises(ValueError, match='latents of the preview are of another VAE: ffff'):
        fv.enhance(other)


def test_enhance_takes_frames_paths_and_stored_previews(fv, both, videos, tmp_path):
    """A clip in memory and in a file, in windows and without text; a folder is the preview in it."""
    preview_store.save(tmp_path / '0', both[0], fps=8, crf=18)
    assert_similar(fv.enhance(tmp_path / '0').frames, videos[0].frames)
    clip = sample_videos.pattern(11, 16, 32)
    video = fv.enhance(clip, seed=5)
    assert video.frames.shape == (11, 64, 128, 3) and video.seed == 5
    made = ClipMetadata('', 9, 5, 'adaptive', None, True, 'crop')
    assert video.metadata.preview is None and video.metadata.clip == made
    encoding.encode(tmp_path / 'clip.mp4', clip, 12, crf=0)
    stored = fv.enhance(str(tmp_path / 'clip.mp4'), seed=5)
    assert np.abs(stored.frames.astype(int) - video.frames).mean() < 4 and 'clip.mp4, enhanced' in repr(stored)
    stored.save(tmp_path / 'large.mp4')
    assert decoding.probe(tmp_path / 'large.mp4').fps == 12
    enhancer, settings = fv.enhancer(), fv.enhance_settings
    window = enhancer.enhance_window(clip[:9], (64, 128), seed=5, first_latent=0)
    assert_similar(to_uint8(fix_colors(window, clip[:9]))[:4], video.frames[:4])
    assert fv.enhance(clip, settings=dataclasses.replace(settings, sample_posterior=True)).frames.std() > 1


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        (
            np.zeros((9, 16, 32, 3), np.float32),
            r'shape \(9, 16, 32, 3\), float32; give \(F, H, W, 3\) of uint8',
        ),
        (np.zeros((16, 32, 3), np.uint8), r'shape \(16, 32, 3\)'),
        (np.zeros((0, 16, 32, 3), np.uint8), r'shape \(0, 16, 32, 3\)'),
        ('none.mp4', 'none.mp4: does not exist'),
        ([], 'must not be empty'),
    ],
)
def test_enhance_refuses_other_sources(fv, source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fv.enhance(source)


def test_enhance_refuses_previews_of_several_sizes(fv, both):
    other = dataclasses.replace(both[0], latents=both[0].latents[:1])
    with pytest.raises(ValueError, match='of different sizes'):
        fv.enhance([both[0], other])


def test_pipeline_of_one_stage(folder, both):
    alone = FlashVideo.from_checkpoint(folder / 'stage1')
    with pytest.raises(ValueError, match='stage1: contains no stage 2, which enhance needs'):
        alone.enhance(both[0])
    alone = FlashVideo.from_checkpoint(folder / 'stage2')
    with pytest.raises(ValueError, match='stage2: contains no stage 1, which preview needs'):
        alone.preview(DOG)
    assert alone.enhance(both)[0].frames.shape == (9, 64, 128, 3)  # its VAE is the previews'


# Texts.


def test_truncated_prompt_is_reported(fv):
    with pytest.warns(UserWarning, match=r"prompt 'w0 w1 .*\.\.\.': the text has 2500 tokens, .* first 3") as notes:
        long = fv.preview(' '.join(f'w{i}' for i in range(2500)))
    assert notes[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        close(long.latents, fv.preview('w0 w1 w2').latents)


@pytest.mark.parametrize('prompt', ['🐞 over 🏖️', 'سلحفاة تسبح', 'חתול רץ', '犬が走る'])
def test_prompt_in_any_script(fv, both, prompt):
    assert not np.allclose(fv.preview(prompt, seed=3).latents, both[0].latents, atol=1e-3)


def test_prompt_without_words_is_refused(fv):
    with pytest.raises(ValueError, match="prompt '!!!': contains no text that 'hash' can encode"):
        fv.preview('!!!')


def test_invalid_prompts_and_seeds_are_refused_before_loading(fv, monkeypatch):
    monkeypatch.setattr(text_to_video.Pipeline, 'preview_batches', None)
    for prompt, seed in (('', 0), (7, 0), ([], 0), (DOG, 'x'), ([DOG, CAT], [1])):
        with pytest.raises(ValueError, match=r'prompt|seed'):
            fv.preview(prompt, seed)


def test_t5_is_freed_before_the_network_runs(folder, tmp_path, monkeypatch):
    """And is opened again, without compiling."""
    t5 = TextConfig(str(make_folder(tmp_path / 't5')), length=5, dtype='float32')
    wide = dataclasses.replace(tiny.FIRST_DIT, text_dim=SMALL.embed_dim)
    vae = folder / 'vae.safetensors'
    tiny.save_run(tmp_path / 'run', tiny.first_stage_config(vae, t5, wide), size=tiny.PREVIEW)
    fv = FlashVideo.from_checkpoint(tmp_path / 'run')
    fv.stage1.loaded  # noqa: B018 - has weights of its own
    embedding = SMALL.vocab_size, SMALL.embed_dim
    alive = []
    generate, open_text = programs.generate, fv.stage1.text.open

    def open_and_read():
        encoder = open_text()
        alive.append([x.shape for x in jax.live_arrays()].count(embedding))
        return encoder

    def count_calls(*args, **kwargs):
        alive.append([x.shape for x in jax.live_arrays()].count(embedding))
        return generate(*args, **kwargs)

    fv.stage1.text.open = open_and_read
    gc.collect()  # what wrote the folder
    monkeypatch.setattr(programs, 'generate', count_calls)
    fv.preview('a ladybug')
    assert alive == [1, 0]
    with compiled() as new_programs:
        fv.preview('a meadow')
    assert alive == [1, 0, 1, 0] and not new_programs


def test_pipeline_refuses_a_text_encoder_of_another_width(folder):
    fv = FlashVideo.from_checkpoint(folder, text=TextConfig('hash', dim=16))
    with pytest.raises(ConfigError, match="text embeddings of width 8; those of 'hash' have width 16"):
        fv.preview(DOG)


# What it is made of.


def test_preview_batches():
    assert split_into_batches(5, 2) == [[0, 1], [2, 3], [4, 4]]
    assert split_into_batches(2, None) == [[0, 1]] and split_into_batches(2, 8) == [[0, 1]]


def test_public_functions_are_documented():
    """Shapes, ranges, units, errors and the paper's section."""
    for method, words in (
        (FlashVideo.preview, ('(F, H, W, 3) uint8', '0 to 2^32 - 1', 'frames per second', 'Low-Resolution Stage I')),
        (FlashVideo.enhance, ('(F, H, W, 3) uint8', '1072 x 1920', 'High-Resolution Stage II')),
    ):
        text = inspect.getdoc(method)
        for word in ('Args:', 'Returns:', 'Raises:', 'ValueError', 'FileNotFoundError', 'arXiv 2502.05179', *words):
            assert word in text, word
