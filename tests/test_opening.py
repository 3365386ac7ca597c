"""Opening a pipeline: official folders and our own checkpoints, what is missing from them and what does not fit."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import fv_jax
from fv_jax import export, weights
from fv_jax.api import FlashVideo
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core.config import ConfigError
from fv_jax.diffusion.time_grids import flow_time_grid
from fv_jax.sampling.metadata import WeightsOrigin
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.text.encoder import TextConfig
from fv_jax.text.hash_encoder import HashTextEncoder
from fv_jax.weights import embedded
from tests.sampling import tiny

OFFICIAL = Path(__file__).parent / 'parity' / 'official_dev'


def test_flashvideo_is_exported_by_the_package():
    assert fv_jax.FlashVideo is FlashVideo and 'FlashVideo' in fv_jax.__all__
    with pytest.raises(AttributeError, match='no attribute'):
        fv_jax.flash_video  # noqa: B018


# An official folder.


@pytest.fixture
def official(tmp_path):
    folder = tmp_path / 'official'
    folder.mkdir()
    for name in ('stage1.pt', 'stage2.pt', '3d-vae.pt'):
        (folder / name).symlink_to(OFFICIAL / name)
    (folder / 't5-v1_1-xxl').symlink_to(OFFICIAL / 't5')
    return folder


def test_from_official(official):
    fv = FlashVideo.from_official(official)
    assert fv.preview_settings == PreviewSettings() and fv.enhance_settings == EnhanceSettings()
    assert fv.origin == WeightsOrigin(official=str(official), dtype='bfloat16')
    assert fv.stage1.stage.network.lora is None  # merged
    assert {part.stage.network.param_dtype for part in (fv.stage1, fv.stage2)} == {'bfloat16'}
    assert fv.stage1.vae is fv.stage2.vae and fv.stage1.text is fv.stage2.text
    encoder = fv.stage1.text.open()
    assert (encoder.fingerprint.length, encoder.fingerprint.dim) == (226, fv.stage1.stage.network.text_dim)
    settings = FlashVideo.from_official(official, numerics='official').enhance_settings
    config = fv.stage2.stage.with_sampler_config(settings).config
    assert flow_time_grid(config.num_steps, config.shift, config.numerics).timestep[1] == 904
    again = FlashVideo.from_origin(fv.origin)
    assert again.origin == fv.origin


@pytest.mark.parametrize('name', ['stage1.pt', 'stage2.pt', '3d-vae.pt', 't5-v1_1-xxl/config.json'])
def test_from_official_names_a_missing_file(official, name):
    (official / name.partition('/')[0]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        FlashVideo.from_official(official)
    text = str(error.value)
    assert text.startswith(f'{official}: has no {name}') and '\n' not in text


def test_from_official_names_all_missing_files(tmp_path):
    for folder in (tmp_path, tmp_path / 'none'):
        with pytest.raises(
            FileNotFoundError, match=r'stage1\.pt, stage2\.pt, 3d-vae\.pt, t5-v1_1-xxl/config\.json, t5'
        ):
            FlashVideo.from_official(folder)


def test_from_official_with_another_text_encoder_needs_no_t5(official):
    (official / 't5-v1_1-xxl').unlink()
    fv = FlashVideo.from_official(official, text=TextConfig(str(OFFICIAL / 't5'), length=10))
    assert fv.stage1.text.open().fingerprint.length == 10


@pytest.mark.parametrize(
    ('name', 'other', 'words'),
    [
        ('stage1.pt', 'stage2.pt', r'stage1\.pt: contains the network of stage2\.pt'),
        ('stage2.pt', 'stage1.pt', r'stage2\.pt: contains the network of stage1\.pt'),
        ('stage2.pt', '3d-vae.pt', r'stage2\.pt: holds a VAE, not a DiT'),
        ('3d-vae.pt', 'stage2.pt', r'3d-vae\.pt: holds a DiT, not a VAE'),
    ],
)
def test_from_official_refuses_swapped_files(official, name, other, words):
    (official / name).unlink()
    (official / name).symlink_to(OFFICIAL / other)
    with pytest.raises(ValueError, match=words):
        FlashVideo.from_official(official)


def test_from_official_names_a_damaged_file(official):
    (official / 'stage2.pt').unlink()
    (official / 'stage2.pt').write_bytes((OFFICIAL / 'stage2.pt').read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r'stage2\.pt'):
        FlashVideo.from_official(official)


# Checkpoints.


@pytest.fixture
def folder(tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    tiny.save_pipeline(tmp_path / 'both', tmp_path / 'vae.safetensors')
    return tmp_path / 'both'


def test_from_checkpoint_of_one_or_two_folders(folder):
    at_once = FlashVideo.from_checkpoint(folder)
    apart = FlashVideo.from_checkpoint(folder / 'stage2', str(folder / 'stage1'))
    for fv in (at_once, apart):
        assert fv.stage1.stage.config == tiny.LOWRES and fv.stage2.stage.config == tiny.SUPERRES
        assert fv.preview_settings.size == tiny.PREVIEW and fv.preview_settings.frames == tiny.FRAMES
        assert fv.stage1.vae is fv.stage2.vae  # read once
        assert len(fv.notes) == 2 and 'does not record the fingerprint of its text encoder' in fv.notes[0]
    assert apart.origin.steps == (7, 7)
    assert apart.origin.checkpoints == (str(folder / 'stage2'), str(folder / 'stage1'))
    assert FlashVideo.from_origin(apart.origin).stage1.digest == at_once.stage1.digest
    assert FlashVideo.from_checkpoint(folder, numerics='official').enhance_settings.slices == 2


def test_from_checkpoint_refuses_other_folders(folder, tmp_path):
    stage1, stage2 = folder / 'stage1', folder / 'stage2'
    cases = [
        ([tmp_path / 'none'], CheckpointError, 'none: does not exist'),
        ([tmp_path], CheckpointError, 'contains no checkpoints .*stage1 and stage2'),
        ([folder, stage1], ValueError, 'both contain the same stage; pass one of each'),
        ([stage2, stage2], ValueError, 'contain the same stage'),
    ]
    for folders, kind, words in cases:
        with pytest.raises(kind, match=words):
            FlashVideo.from_checkpoint(*folders)
    with pytest.raises(ValueError, match=r'steps: 1 for 2 run\(s\)'):
        FlashVideo.from_checkpoint(folder, steps=[7])
    with pytest.raises(CheckpointError, match='has no step 8; it has 7'):
        FlashVideo.from_checkpoint(folder, steps=[7, 8])


def test_from_checkpoint_embedded(folder, monkeypatch):
    """Runs in one file, as `export` writes them; here and under their usual names."""
    files = [folder / f'{name}.safetensors' for name in ('stage1', 'stage2')]
    monkeypatch.setattr(embedded, 'STAGES_TINY', tuple(files))
    with pytest.raises(FileNotFoundError, match=r"'embedded': .* has no stage1\.safetensors and stage2"):
        FlashVideo.from_checkpoint('embedded')
    for path in files:
        assert export.main([f'--checkpoint={path.with_suffix("")}', f'--output={path}']) == 0
        shutil.rmtree(path.with_suffix(''))
    fv, same = FlashVideo.from_checkpoint('embedded'), FlashVideo.from_checkpoint(folder)
    assert fv.stage1.stage.config == tiny.LOWRES and fv.preview_settings.size == tiny.PREVIEW
    assert fv.origin.checkpoints == ('embedded',) and fv.origin.steps == (7, 7)
    assert fv.stage1.digest == same.stage1.digest
    assert [part.stage.network.embed_noise_augmentation_timestep for part in (fv.stage1, fv.stage2)] == [False, True]


def set_digests(folder: Path, vae: str, text: str) -> None:
    config = tiny.first_stage_config(folder / 'vae.safetensors')
    digests = {'vae': vae, 'text': text}
    tiny.save_run(folder / 'run', config, size=tiny.PREVIEW, digests=digests)


def test_from_checkpoint_finds_encoders_by_fingerprint(tmp_path):
    """The VAE is moved into the run; another one lies where it was."""
    path = tmp_path / 'vae.safetensors'
    tiny.save_vae(path)
    vae, text = weights.encoder_fingerprint(str(path)), HashTextEncoder(3, 8).fingerprint.digest
    set_digests(tmp_path, vae, text)
    shutil.move(path, tmp_path / 'run' / 'vae.safetensors')
    shutil.copy(embedded.VAE_TINY, path)
    fv = FlashVideo.from_checkpoint(tmp_path / 'run')
    assert fv.notes == ()
    assert fv.stage1.vae.digest == weights.vae_fingerprint(str(tmp_path / 'run' / 'vae.safetensors'))
    assert fv.stage1.vae.jitted is not None and fv.stage1.text.open().fingerprint.digest == text
    (tmp_path / 'run' / 'vae.safetensors').unlink()
    with pytest.raises(ValueError, match=f'trained with the VAE {vae}'):
        FlashVideo.from_checkpoint(tmp_path / 'run')
    path.unlink()
    with pytest.raises(FileNotFoundError, match='its VAE does not exist; searched'):
        FlashVideo.from_checkpoint(tmp_path / 'run')


def test_from_checkpoint_refuses_another_text_encoder_unless_given(tmp_path):
    path = tmp_path / 'vae.safetensors'
    tiny.save_vae(path)
    set_digests(tmp_path, weights.encoder_fingerprint(str(path)), 'f' * 16)
    with pytest.raises(ValueError, match='trained with the text encoder ffff'):
        FlashVideo.from_checkpoint(tmp_path / 'run')
    fv = FlashVideo.from_checkpoint(tmp_path / 'run', text=TextConfig('hash', dim=8))
    assert fv.stage1.text.open().fingerprint.dim == 8


def test_from_checkpoint_stage_1_requires_a_text_encoder(tmp_path):
    path = tmp_path / 'vae.safetensors'
    tiny.save_vae(path)
    tiny.save_pipeline(tmp_path / 'both', path, TextConfig())
    with pytest.raises(ConfigError, match=r"stage1: names no text encoder; pass one of 'hash' or a T5 folder"):
        FlashVideo.from_checkpoint(tmp_path / 'both')
    fv = FlashVideo.from_checkpoint(tmp_path / 'both', text=TextConfig('hash', dim=8))
    assert fv.stage1.text is not None and fv.stage2.text is None
    assert fv.stage2.encode_prompts(['a dog']) is None and fv.stage2.weight_digests.text == ''


def test_from_checkpoint_refuses_another_kind_of_stage(tmp_path):
    config = tiny.stage_config('embedded', dataclasses.replace(tiny.DIT, latent_channels=16))
    tiny.save_run(tmp_path / 'run', config)
    fv = FlashVideo.from_checkpoint(tmp_path / 'run')
    assert isinstance(fv.stage2.vae.digest, str) and fv.enhance_settings.size is None
    tiny.save_run(tmp_path / 'narrow', dataclasses.replace(config, network=tiny.DIT))
    with pytest.raises(ConfigError, match='its latents have 16 channels'):
        _ = FlashVideo.from_checkpoint(tmp_path / 'narrow').stage2.vae.jitted


def test_from_official_merges_lora(official):
    """Reading is lazy; what is read is stage 1 with its LoRA merged."""
    fv = FlashVideo.from_official(official, dtype='float32')
    merged = fv.stage1.load()
    plain = weights.load_official(OFFICIAL / 'stage1.pt')
    kernels = [network.blocks.attention.qkv.kernel[...] for network in (merged, plain)]
    assert plain.config.lora is not None and not np.allclose(*kernels, atol=1e-3)
