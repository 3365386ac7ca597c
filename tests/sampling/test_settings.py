"""The settings of both stages: official by default, a run's own, and what is refused."""

import dataclasses
import inspect

import pytest

from fv_jax.core import config as config_lib
from fv_jax.core.config import ConfigError
from fv_jax.diffusion import time_grids
from fv_jax.models.vae import OFFICIAL
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.stages import super_res
from fv_jax.stages.low_res import LowRes
from fv_jax.stages.sampler_configs import PreviewSamplerConfig
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from tests.sampling import tiny

SPEC = OFFICIAL.latent_spec


def test_default_settings_are_official():
    preview, final = PreviewSettings(), EnhanceSettings()
    preview.check(SPEC)
    final.check(SPEC)
    assert (preview.frames, preview.size, preview.num_steps) == (49, (256, 480), 51)
    assert (preview.guidance_kind, preview.guidance_scale, preview.guidance_exponent) == ('official', 8, 5)
    assert (final.size, final.noise_augmentation_timestep, final.shift, final.num_steps) == ((1072, 1920), 675, 2.5, 5)
    assert (final.guidance_scale, final.prompt_prefix, final.sample_posterior) == (13, 'medium motion,', True)
    assert final.size_for(256, 480, SPEC) == (1072, 1920)
    assert preview == PreviewSettings.from_config(PreviewSamplerConfig(), {})
    official = EnhanceSettings.from_config(
        SuperRes(super_res.OFFICIAL, tiny.DIT).sampler_config(), {'height': 1072, 'width': 1920, 'fit': 'resize'}
    )
    assert official == final


def test_official_numerics_are_the_bfloat16_grid_and_two_slices():
    exact, official = EnhanceSettings(), EnhanceSettings(numerics='official')
    assert (exact.numerics, exact.slices, official.slices) == ('exact', 1, 2)
    assert EnhanceSettings(width_slices=2).slices == 2
    config = SuperRes(SuperResConfig(), tiny.DIT).with_sampler_config(official).config
    grid = time_grids.flow_time_grid(config.num_steps, config.shift, config.numerics)
    assert grid.timestep[:-1].tolist() == [1000, 904, 784, 624, 384]
    assert float(time_grids.embedded_timestep(config.noise_augmentation_timestep, config.numerics)) == 676
    assert config.noise_augmentation_timestep == 675  # the index of the mixing


def test_tiling_is_off_by_default():
    assert EnhanceSettings().tiling(SPEC) is None
    assert EnhanceSettings(tile_size=(96, 128), tile_overlap=16).tiling(SPEC) == Tiling((96, 128), 16, 8)
    official = EnhanceSettings(tile_size=(96, 128), numerics='official', width_slices=1)
    assert (official.tiling(SPEC), official.slices) == (Tiling((96, 128), 64, 8), 1)


def test_settings_from_the_config_of_a_run():
    preview = PreviewSettings.from_config(
        LowRes(tiny.LOWRES, tiny.FIRST_DIT).sampler_config(), {'frames': 17, 'height': 64, 'width': 96}
    )
    assert (preview.frames, preview.size, preview.num_steps, preview.guidance_kind) == (17, (64, 96), 3, 'constant')
    second = SuperRes(tiny.SUPERRES, tiny.DIT)
    final = EnhanceSettings.from_config(
        second.sampler_config(), {'frames': 17, 'height': 64, 'width': 64, 'fit': 'crop'}
    )
    assert final.size is None and final.size_for(64, 96, SPEC) == (256, 384)  # it was never trained on whole frames
    assert (final.noise_augmentation_timestep, final.prompt_prefix, final.sample_posterior) == (100, '', False)
    whole = EnhanceSettings.from_config(
        second.sampler_config(), {'frames': 17, 'height': 256, 'width': 384, 'fit': 'resize'}
    )
    assert whole.size == (256, 384)


def test_settings_change_the_sampler_config_only():
    settings = PreviewSettings(
        num_steps=7, guidance_kind='cosine', guidance_scale=2.5, guidance_batched=False, sampler='ddim'
    )
    stage = LowRes(tiny.LOWRES, tiny.FIRST_DIT)
    expected = dataclasses.replace(
        tiny.LOWRES,
        num_steps=7,
        guidance_kind='cosine',
        guidance_scale=2.5,
        guidance_exponent=5,
        guidance_batched=False,
        sampler='ddim',
    )
    assert stage.with_sampler_config(settings) == dataclasses.replace(stage, config=expected)
    final = EnhanceSettings(
        num_steps=3,
        shift=1.5,
        noise_augmentation_timestep=10,
        sampler='heun',
        guidance_batched=False,
        numerics='official',
    )
    config = SuperRes(tiny.SUPERRES, tiny.DIT).with_sampler_config(final).config
    assert (config.num_steps, config.shift, config.noise_augmentation_timestep, config.sampler) == (3, 1.5, 10, 'heun')
    assert (config.numerics, config.text_length) == ('official', tiny.SUPERRES.text_length)
    assert not config.guidance_batched


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: PreviewSettings(frames=10).check(SPEC), 'frames=10: .* 1 or 8k.1 frames; use 9 or 17'),
        (lambda: PreviewSettings(frames=0).check(SPEC), 'frames=0: .* use 1 or 9'),
        (
            lambda: PreviewSettings(size=(100, 96)).check(SPEC, 'a.'),
            'a.size: height=100: must be a multiple of 16; use 96 or 112',
        ),
        (lambda: EnhanceSettings(size=(96, 100)).check(SPEC), 'width=100'),
        (lambda: EnhanceSettings(scale=0), 'scale=0: must be positive'),
        (lambda: EnhanceSettings(width_slices=0), 'width_slices=0: must be at least 1'),
        (lambda: EnhanceSettings(tile_size=(100, 96)).check(SPEC), 'tile_size: height=100'),
        (lambda: EnhanceSettings(tile_size=(96, 96), tile_overlap=96).check(SPEC), 'tile_overlap=96: must be less'),
        (
            lambda: EnhanceSettings(tile_size=(96, 96), width_slices=2),
            'cannot be combined with width_slices=2; set width_slices',
        ),
        (lambda: EnhanceSettings(tile_size=(96, 96), numerics='official'), "those of 'official' numerics; set"),
        (lambda: LowRes(tiny.LOWRES, tiny.FIRST_DIT).with_sampler_config(PreviewSettings(num_steps=0)), 'num_steps=0'),
        (lambda: SuperRes(tiny.SUPERRES, tiny.DIT).with_sampler_config(EnhanceSettings(num_steps=0)), 'num_steps=0'),
        (lambda: config_lib.build(EnhanceSettings, {'guidance': 3}), "guidance: unknown key; did you mean 'guidance_"),
    ],
)
def test_settings_refuse_invalid_values(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_settings_keep_the_aspect_ratio_of_the_preview():
    with pytest.raises(ValueError, match=r'would stretch a video of 480x256; use \(1920, 1024\)'):
        EnhanceSettings().size_for(480, 256, SPEC)


def test_settings_fields_are_documented():
    for settings in (PreviewSettings, EnhanceSettings):
        for field in dataclasses.fields(settings):
            docs = ' '.join(inspect.getdoc(cls) for cls in settings.__mro__[:2])
            assert f'{field.name}: ' in docs, field.name
