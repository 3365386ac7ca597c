"""Enhancing: in closed form with networks that keep what they see, and with small real ones."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.core.resize import resize
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.kernels.attention import SINGLE_DEVICE, attention
from fv_jax.models.vae import OFFICIAL
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sampling.clip_enhancer import enhance_clip
from fv_jax.sampling.enhancer import Enhancer
from fv_jax.sampling.noise import WindowNoise
from fv_jax.sampling.programs import LoadedStage
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.sampling.windows import Windows, split_windows
from fv_jax.stages.frozen_vae import JittedVAE, jit_vae
from fv_jax.stages.super_res import SuperRes
from fv_jax.training.state import ModelDef
from tests.data import sample_videos
from tests.sampling import tiny

SIZE = (32, 48)
SEED = 0
SPEC = OFFICIAL.latent_spec
WINDOWS = Windows(9, 5, SPEC)


# The noise.


def latent_noise(seed, first, shape):
    return WindowNoise.create(seed, first).augmentation(shape)


def test_window_noise_depends_on_the_latent_frame_alone():
    shape = (1, 5, 2, 3, 4)
    noise = latent_noise(SEED, 0, shape)
    np.testing.assert_array_equal(latent_noise(SEED, 3, (1, 2, 2, 3, 4)), noise[:, 3:])
    assert abs(float(noise.mean())) < 0.3 and 0.7 < float(noise.std()) < 1.3
    frames = np.asarray(noise[0]).reshape(5, -1)
    assert len({tuple(f) for f in frames}) == 5
    assert not np.allclose(latent_noise(1, 0, shape), noise)


# With a VAE that averages 8x8 pixels and keeps the last of every 4 frames.


def _encode(video_BFHWC, cache):
    """Frames 0, 4, 8 ... of the first chunk, whose cache is empty, and 3, 7 ... of a later one."""
    kept = video_BFHWC[:, 3 if cache else 0 :: 4]
    b, f, h, w, c = kept.shape
    mean = kept.reshape(b, f, h // 8, 8, w // 8, 8, c).mean((3, 5))
    return jnp.concatenate([mean, jnp.zeros_like(mean)], axis=-1), {'seen': True}


def _decode(z_BFHWC, cache):
    large = z_BFHWC.repeat(4, axis=1).repeat(8, axis=2).repeat(8, axis=3)
    return (large if cache else large[:, 3:]), {'seen': True}


KEEPING = JittedVAE(_encode, _decode, OFFICIAL)


def enhance(enhancer, video_FHWC, windows=WINDOWS, size=SIZE, seed=SEED, cuts=(), **options):
    blocks = list(enhance_clip(enhancer, iter(video_FHWC), size, seed=seed, windows=windows, cuts=cuts, **options))
    bounds = [0, *cuts, len(video_FHWC)]
    assert len(blocks) == sum(windows.count(end - first) for first, end in itertools.pairwise(bounds))
    video = to_uint8(np.concatenate(blocks))
    assert video.dtype == np.uint8 and video.shape == (len(video_FHWC), *size, 3)
    return video


@pytest.mark.parametrize(('frames', 'overlap'), [(9, 5), (9, 1), (17, 5), (1, 0)])
@pytest.mark.parametrize('length', [1, 5, 9, 23])
def test_enhance_clip_in_windows_equals_one_window(frames, overlap, length):
    """Every latent frame is where it would be in the whole clip: the windows agree, and the blend changes nothing."""
    windows, firsts = Windows(frames, overlap, SPEC), []

    def enhance_latents(z, text, noise, on_step):
        assert text is None and noise.seed == SEED
        firsts.append(noise.first)
        return z

    video = enhance(Enhancer(enhance_latents, KEEPING), sample_videos.numbered_frames(length, 8, 12), windows)
    held = [min(-(-f // 4) * 4, length - 1) if frames > 1 else f for f in range(length)]
    np.testing.assert_array_equal(video[:, 4, 4, 0], [16 + 4 * f for f in held])
    np.testing.assert_array_equal(video[:, :, -8:], 128)
    starts = [w.start for w in split_windows(sample_videos.numbered_frames(length), windows)]
    assert firsts == [start // windows.alignment for start in starts]


def test_enhance_clip_tiles_the_encode_and_the_decode():
    """The network between them sees whole frames."""
    seen = []

    def record_call(half):
        def run(x, cache):
            seen.append(x.shape[2:4])
            return half(x, cache)

        return run

    def enhance_latents(z, text, noise, on_step):
        seen.append(z.shape[2:4])
        return z

    vae = JittedVAE(record_call(_encode), record_call(_decode), OFFICIAL)
    clip_video = sample_videos.numbered_frames(1, 8, 12)
    tiled = Enhancer(enhance_latents, vae, Tiling((32, 32), 16, 8)).enhance_window(
        clip_video, SIZE, seed=SEED, first_latent=0
    )
    assert seen == [(32, 32)] * 2 + [(4, 6)] + [(4, 4)] * 2
    whole = Enhancer(enhance_latents, KEEPING).enhance_window(clip_video, SIZE, seed=SEED, first_latent=0)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_enhance_window_refuses_values_that_are_not_finite():
    broken = Enhancer(lambda z_low_BFHWC, *_: z_low_BFHWC.at[0, 1, 0, 0, 0].set(jnp.nan), KEEPING)
    with pytest.raises(ValueError, match='not finite'):
        broken.enhance_window(np.zeros((9, 16, 24, 3), np.uint8), SIZE, seed=SEED, first_latent=0)


def test_overlapping_windows_share_noise():
    firsts = []

    def enhance_latents(z, text, noise, on_step):
        firsts.append(noise.first)
        return z + 0.01 * noise.augmentation(z.shape)

    grey = np.full((23, 8, 12, 3), 100, np.uint8)
    video = enhance(Enhancer(enhance_latents, KEEPING), grey)
    assert firsts == [0, 1, 2, 3, 4]
    # Frames 4f-3 ... 4f are latent frame f, in every window.
    noise = latent_noise(SEED, 0, (1, 7, 4, 6, 3))[0]
    for f in range(23):
        expected = 100 + 1.275 * np.asarray(noise[-(-f // 4)]).repeat(8, axis=0).repeat(8, axis=1)
        np.testing.assert_allclose(video[f], expected, atol=0.51)


def test_windows_are_clipped_before_blending():
    levels = iter((-3.0, 1.0))
    enhancer = Enhancer(lambda z, *_: jnp.full_like(z, next(levels)), KEEPING)
    video = enhance(enhancer, np.zeros((13, 8, 12, 3), np.uint8))
    expected = [0] * 4 + [255 * i / 6 for i in (1, 2, 3, 4, 5)] + [255] * 4
    np.testing.assert_allclose(video[:, 0, 0, 0], expected, atol=0.51)


# With networks.


class Traced:
    """The attention of one device, and the batch size of every trace of it."""

    def __init__(self):
        self.batches = []

    def __call__(self, q, k, v, num_tokens):
        self.batches.append(q.shape[0])
        return attention(q, k, v, num_tokens)


class TracedMesh:
    """A mesh of one device, and the attention of its contexts."""

    def __init__(self, mesh, attention):
        self.replicate, self.to_host = mesh.replicate, mesh.to_host
        self.context = ParallelContext(attention=attention)

    def parallel_context(self, partitioner, rows, num_tokens):
        return self.context


@pytest.fixture(scope='module')
def networks():
    stage = SuperRes(tiny.SUPERRES, tiny.DIT)
    state = tiny.train_state(stage)
    return stage, ModelDef.from_stage(stage).model(state.trainable, state.frozen), jit_vae(tiny.vae())


@pytest.fixture(scope='module')
def traced():
    return Traced()


@pytest.fixture(scope='module')
def enhancer(networks, traced):
    stage, model, vae = networks
    mesh = SamplingMesh.create()
    loaded = LoadedStage.create(stage, lambda partitioner: model, mesh)
    traced_stage = dataclasses.replace(loaded, mesh=TracedMesh(mesh, traced))
    return Enhancer.create(traced_stage, vae)


@pytest.fixture(scope='module')
def long_video(enhancer):
    return enhance(enhancer, sample_videos.pattern(23, 10, 13))


def test_enhance_window_equals_the_stage_with_guidance(networks, enhancer):
    """Without guidance, which changes nothing here; otherwise the stage, applied to the resized clip."""
    stage, model, vae = networks
    assert stage.config.guidance_scale == 13
    clip_video = sample_videos.pattern(8, 10, 13)
    padded = np.concatenate([clip_video, clip_video[-1:]])
    z_low = vae.encode(resize(jnp.asarray(to_float(padded)), *SIZE)[None])
    source = stage.make_source(z_low, latent_noise(SEED, 6, z_low.shape))
    text = jnp.zeros((1, tiny.SUPERRES.text_length, tiny.DIT.text_dim))
    moved = jax.jit(lambda s: stage.trajectory(model, s, text, context=SINGLE_DEVICE).integrate())(source)
    expected = np.clip(vae.decode(moved / stage.config.scale_factor)[0, :8], -1, 1)
    got = enhancer.enhance_window(clip_video, SIZE, seed=SEED, first_latent=6)
    assert got.shape == (8, *SIZE, 3) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert got.std() > 0.05 and np.abs(moved - source).max() > 0.05


def test_all_windows_share_the_executables(enhancer, traced, long_video):
    assert long_video.shape == (23, *SIZE, 3)
    before = list(traced.batches)
    assert set(before) == {1}  # no second half for guidance
    enhance(enhancer, sample_videos.pattern(14, 10, 13))
    enhance(enhancer, sample_videos.pattern(7, 10, 13))
    assert traced.batches == before


def test_first_window_does_not_depend_on_the_rest_of_the_clip(enhancer, long_video):
    alone = enhance(enhancer, sample_videos.pattern(9, 10, 13))
    np.testing.assert_array_equal(long_video[:4], alone[:4])
    assert not np.array_equal(long_video[4:9], alone[4:9])


@pytest.mark.parametrize('lengths', [(23, 9), (1, 14, 3), (5, 4)])
@pytest.mark.parametrize('color_fix', [False, True])
def test_shots_are_enhanced_as_clips_of_their_own(lengths, color_fix, enhancer):
    """Bit for bit: no window contains a cut, and shorter shots than a window are padded and cropped."""
    shots = [sample_videos.pattern(length, 10, 13, seed=i) for i, length in enumerate(lengths)]
    cuts = [*itertools.accumulate(lengths)][:-1]
    together = enhance(enhancer, np.concatenate(shots), cuts=cuts, color_fix=color_fix)
    alone = [enhance(enhancer, shot, color_fix=color_fix) for shot in shots]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    mixed = enhance(enhancer, np.concatenate(shots), color_fix=color_fix)
    assert np.abs(mixed.astype(int) - together).max() > 20  # without cuts the shots do mix


def test_enhance_clip_refuses_frames_of_several_sizes_in_different_shots(enhancer):
    frames = [*sample_videos.pattern(9, 10, 13), *sample_videos.pattern(9, 13, 10)]
    blocks = enhance_clip(enhancer, frames, SIZE, seed=0, windows=WINDOWS, cuts=[9])
    with pytest.raises(ValueError, match='frame 9 is 13x10, the ones before 10x13'):
        list(blocks)


def test_enhance_clip_is_deterministic_by_seed(enhancer):
    clip_video = sample_videos.pattern(5, 10, 13)
    once, again = enhance(enhancer, clip_video), enhance(enhancer, clip_video)
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, enhance(enhancer, clip_video, seed=1))


def test_out_of_memory_names_the_size_and_what_to_change():
    class Full:
        def enhance_window(self, video_FHWC, size, *, seed, first_latent, on_step, ratio):
            raise jax.errors.JaxRuntimeError('INTERNAL: Out of memory allocating 38064543752 bytes.')

    frames = [np.zeros((4, 4, 3), np.uint8)] * 9
    blocks = enhance_clip(Full(), frames, (1920, 2560), seed=0, windows=Windows(9, 1, OFFICIAL.latent_spec))
    with pytest.raises(ValueError, match=r'out of memory for windows of 9x1920x2560; use a smaller size or scale'):
        list(blocks)
