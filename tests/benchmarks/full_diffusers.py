"""Exports for diffusers and PEFT against the stock classes of both, in float32; needs the extra `diffusers`.

    python -m pytest -q -n0 -s tests/benchmarks/full_diffusers.py    # prints the largest errors
    python -m tests.benchmarks.full_diffusers                        # records the names for the fast tests

Networks are small, have the official head size of 64, and every parameter of theirs is random and has an effect.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from flax import nnx
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from fv_jax import export, weights
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.resize import resize
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models import vae_chunking
from fv_jax.models.dit import DiTConfig
from fv_jax.models.lora import LoRAConfig
from fv_jax.models.vae import VAEConfig, sample_latents
from fv_jax.stages import registry
from fv_jax.stages.autoencoder import AutoencoderConfig
from fv_jax.stages.low_res import LowResConfig
from fv_jax.stages.super_res import SuperResConfig
from fv_jax.training import state
from fv_jax.weights import trained_runs
from tests.sampling import tiny

FORWARD, TRAJECTORY = 1e-4, 1e-2  # largest absolute error
VAE = VAEConfig(base_channels=8, multipliers=(1, 2, 2, 3), num_res_blocks=1, latent_channels=4, groups=4)
DIT = DiTConfig(latent_channels=4, embed_dim=128, num_layers=3, num_heads=2, mlp_dim=512, cond_dim=16, text_dim=24)
LORA = LoRAConfig(rank=4, alpha=2.0, targets=('qkv', 'attention_out', 'modulation', 'mlp'))
FIRST = dataclasses.replace(DIT, embed_num_frames=False, embed_noise_augmentation_timestep=False)
MODULES = ['to_q', 'to_k', 'to_v', 'to_out.0', 'norm1.linear', 'norm2.linear', 'ff.net.0.proj', 'ff.net.2']
RECORDED = pathlib.Path(__file__).parents[1] / 'weights' / 'layouts' / 'diffusers_keys.json'
TEXT = 5
PREVIEW, VIDEO = (17, 32, 48), (17, 64, 96)
OPTIONS = SuperResConfig(text_length=TEXT, noise_augmentation_timestep=650, guidance_scale=13.0, numerics='exact')


def stock_names():
    """Names and shapes of the stock classes, for the sizes of `tests/weights/layouts/test_diffusers_export`."""
    sizes = {'num_attention_heads': 2, 'attention_head_dim': 16, 'num_layers': 2, 'time_embed_dim': 8}
    sizes |= {'in_channels': 3, 'out_channels': 3, 'text_embed_dim': 5, 'use_rotary_positional_embeddings': True}
    transformer = CogVideoXTransformer3DModel(**sizes)
    vae = AutoencoderKLCogVideoX(block_out_channels=(32, 64, 64, 96), latent_channels=4, layers_per_block=1)
    schedulers = CogVideoXDPMScheduler, CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

    def shapes(tensors):
        return {key: list(x.shape) for key, x in tensors.items()}

    def fields(config):
        return sorted(name for name in config if not name.startswith('_'))

    found = {'transformer': shapes(transformer.state_dict()), 'vae': shapes(vae.state_dict())}
    found |= {'transformer_config': fields(transformer.config), 'vae_config': fields(vae.config)}
    found['schedulers'] = {cls.__name__: fields(cls().config) for cls in schedulers}
    transformer.add_adapter(LoraConfig(r=2, target_modules=MODULES))
    lora = get_peft_model_state_dict(transformer)
    return found | {'lora': {f'transformer.{key}': shape for key, shape in shapes(lora).items()}}


def test_recorded_names_are_those_of_the_stock_classes():
    recorded, found = json.loads(RECORDED.read_text()), stock_names()
    for name in ('transformer', 'vae', 'lora'):
        assert recorded[name] == found[name]
    for name in ('transformer_config', 'vae_config'):
        assert set(recorded[name]) <= set(found[name])


def random_parameters(path, shape, rng):
    """Norms around 1, small final norms, so that eps has an effect; all others with outputs of the order of 1."""
    name = '.'.join(map(str, path))
    if name.endswith('scale'):
        return (0.1 if name.startswith('final_norm') else 1.0) * rng.uniform(0.5, 1.5, shape)
    if name.endswith('bias'):
        return rng.normal(0, 0.1, shape)
    return rng.normal(0, 0.7 / np.sqrt(np.prod(shape[-2:]) / shape[-1]), shape)


def save_run(folder, stage, size):
    """A run with random parameters."""
    rng, items = np.random.default_rng(0), state.to_items(tiny.train_state(registry.build(stage)))
    items['params'] = jax.tree_util.tree_map_with_path(
        lambda path, x: random_parameters([key.key for key in path[1:]], x.shape, rng).astype(x.dtype), items['params']
    )
    frames, height, width = size
    config = {'stage': config_lib.to_dict(stage), 'data': {'frames': frames, 'height': height, 'width': width}}
    digests = {'vae': weights.encoder_fingerprint(stage.vae)} if stage.vae else {}
    Checkpoints(folder).save(1, items, config, digests)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Runs, and what was exported of each for diffusers."""
    folder = tmp_path_factory.mktemp('runs')
    save_run(folder / 'vae', registry.StageConfig('autoencoder', VAE, AutoencoderConfig()), PREVIEW)
    run('--checkpoint', folder / 'vae', '--output', folder / 'own_vae')
    vae = str(folder / 'own_vae')
    first = LowResConfig(text_length=TEXT)
    stages = {
        'stage1': (registry.StageConfig('lowres', dataclasses.replace(FIRST, lora=LORA), first, vae=vae), PREVIEW),
        'stage2': (registry.StageConfig('superres', DIT, OPTIONS, vae=vae), VIDEO),
        'stage2_lora': (registry.StageConfig('superres', dataclasses.replace(DIT, lora=LORA), OPTIONS, vae=vae), VIDEO),
    }
    for name, (stage, size) in stages.items():
        save_run(folder / name, stage, size)
        run('--checkpoint', folder / name, '--output', folder / f'{name}_torch', '--format', 'diffusers')
    run('--checkpoint', folder / 'vae', '--output', folder / 'vae_torch', '--format', 'diffusers')
    return folder


def run(*argv):
    assert export.main([str(argument) for argument in argv]) == 0


def random_inputs(size, seed=0):
    rng, latents = np.random.default_rng(seed), VAE.latent_spec.latent_size(*size)
    x = rng.standard_normal((2, *latents, VAE.latent_channels)).astype(np.float32)
    text = rng.standard_normal((2, TEXT, DIT.text_dim)).astype(np.float32)
    return x, np.array([909.0909, 384.6154], np.float32), text


def our_prediction(path, x, timestep, text):
    opened = trained_runs.open_run(path)
    model = opened.network.model(**opened.params)
    at = (jnp.full(2, OPTIONS.noise_augmentation_timestep),) if model.config.embed_noise_augmentation_timestep else ()
    with jax.default_matmul_precision('highest'):
        return np.asarray(jax.jit(lambda *inputs: model(*inputs, context=SINGLE_DEVICE))(x, timestep, text, *at))


def their_prediction(pipe, size, x, timestep, text):
    rotary = pipe._prepare_rotary_positional_embeddings(*size[1:], x.shape[1], torch.device('cpu'))
    with torch.no_grad():
        out = pipe.transformer(
            hidden_states=torch.from_numpy(x).permute(0, 1, 4, 2, 3),
            encoder_hidden_states=torch.from_numpy(text),
            timestep=torch.from_numpy(timestep),
            image_rotary_emb=rotary,
        ).sample
    return out.permute(0, 1, 3, 4, 2).numpy()


def open_pipeline(path):
    return DiffusionPipeline.from_pretrained(str(path), trust_remote_code=True)


def assert_close(found, expected, limit, what):
    error = float(np.abs(found - expected).max())
    print(f'{what}: largest absolute error {error:.1e}, standard deviation {expected.std():.2g}')
    assert 0.1 < expected.std() < 50
    assert error < limit


def test_forward_of_stage_1_with_lora_merged(folder):
    inputs = random_inputs(PREVIEW)
    theirs = their_prediction(open_pipeline(folder / 'stage1_torch'), PREVIEW, *inputs)
    assert_close(theirs, our_prediction(folder / 'stage1', *inputs), FORWARD, 'stage 1, forward')


@pytest.mark.parametrize('name', ['stage2', 'stage2_lora'])
def test_forward_of_stage_2_with_folded_embeddings(folder, name):
    inputs = random_inputs(VIDEO)
    theirs = their_prediction(open_pipeline(folder / f'{name}_torch'), VIDEO, *inputs)
    assert_close(-theirs, our_prediction(folder / name, *inputs), FORWARD, f'{name}, forward')


def test_stock_transformer_class_loads_the_folder(folder):
    found, report = CogVideoXTransformer3DModel.from_pretrained(
        folder / 'stage2_torch', subfolder='transformer', output_loading_info=True
    )
    assert not any(report.values()), report
    assert found.config.sample_height == 8 and found.config.sample_frames == 17


@pytest.mark.parametrize('frames', [1, 9, 17, 49])
def test_vae_encodes_and_decodes_the_same(folder, frames):
    theirs, report = AutoencoderKLCogVideoX.from_pretrained(folder / 'vae_torch', output_loading_info=True)
    assert not any(report.values()), report
    theirs.num_sample_frames_batch_size = 16
    ours = weights.load_vae(str(folder / 'own_vae'))
    video = np.random.default_rng(1).uniform(-1, 1, (1, frames, 32, 48, 3)).astype(np.float32)
    moments = np.asarray(vae_chunking.encode(ours, jnp.asarray(video)))
    z = np.random.default_rng(2).standard_normal((*moments.shape[:-1], VAE.latent_channels)).astype(np.float32)
    with torch.no_grad():
        found = theirs.encode(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).latent_dist.parameters
        decoded = theirs.decode(torch.from_numpy(z).permute(0, 4, 1, 2, 3)).sample
    assert_close(found.permute(0, 2, 3, 4, 1).numpy(), moments, FORWARD, f'VAE, encode {frames} frames')
    expected = np.asarray(vae_chunking.decode(ours, jnp.asarray(z)))
    assert_close(decoded.permute(0, 2, 3, 4, 1).numpy(), expected, FORWARD, f'VAE, decode {frames} frames')


@pytest.mark.parametrize(
    'name, sampled', [('stage2', False), ('stage2_lora', False), ('stage2', True)], ids=['mean', 'lora', 'sampled']
)
def test_trajectory_of_stage_2(folder, name, sampled):
    """From a low-resolution video to latents: resize, encode, sample the posterior, noise, five guided steps."""
    pipe, opened = open_pipeline(folder / f'{name}_torch'), trained_runs.open_run(folder / name)
    pipe.register_to_config(sample_posterior=sampled)
    rng = np.random.default_rng(3)
    preview = rng.uniform(0, 1, (*PREVIEW, 3)).astype(np.float32)
    _, _, text = random_inputs(VIDEO)
    shape = (1, *VAE.latent_spec.latent_size(*VIDEO), VAE.latent_channels)
    noise = rng.standard_normal(shape).astype(np.float32)
    drawn = torch.randn((1, *np.moveaxis(noise[0], -1, 0).shape), generator=torch.Generator().manual_seed(4))
    theirs = pipe(
        preview,
        prompt_embeds=torch.from_numpy(text[:1]),
        generator=torch.Generator().manual_seed(4),  # of the posterior, as the noise of the source is given
        noise=torch.from_numpy(noise).permute(0, 1, 4, 2, 3),
        output_type='latent',
    ).frames
    with jax.default_matmul_precision('highest'):
        large = resize(jnp.asarray(2 * preview[None] - 1), *VIDEO[1:])
        z_low = opened.vae.encode(large)
        if sampled:
            z_low = sample_latents(opened.vae.encode_moments(large), jnp.asarray(drawn.permute(0, 2, 3, 4, 1).numpy()))
        source = opened.stage.make_source(z_low, jnp.asarray(noise))
        model = opened.network.model(**opened.params)
        expected = opened.stage.trajectory(model, source, jnp.asarray(text[:1]), context=SINGLE_DEVICE).integrate()
    what = f'{name}, trajectory from {"a sample" if sampled else "the mean"} of the posterior'
    assert_close(theirs.permute(0, 1, 3, 4, 2).numpy(), np.asarray(expected), TRAJECTORY, what)


# LoRA.


def test_our_lora_is_loaded_by_diffusers(folder, tmp_path):
    for name, size, sign in (('stage1', PREVIEW, 1), ('stage2_lora', VIDEO, -1)):
        run('--checkpoint', folder / name, '--output', tmp_path / name, '--format', 'peft')
        base = tmp_path / f'{name}_base'
        save_base(folder / name, base)
        run('--checkpoint', base, '--output', tmp_path / f'{name}_torch', '--format', 'diffusers')
        pipe, inputs = open_pipeline(tmp_path / f'{name}_torch'), random_inputs(size)
        before = their_prediction(pipe, size, *inputs)
        pipe.load_lora_weights(str(tmp_path / name))
        theirs, ours = their_prediction(pipe, size, *inputs), our_prediction(folder / name, *inputs)
        assert np.abs(before - theirs).max() > 0.1
        assert_close(sign * theirs, ours, FORWARD, f'LoRA of {name} in diffusers')


def save_base(run_folder, target):
    """The run without its LoRA."""
    opened = trained_runs.open_run(run_folder)
    stage = trained_runs.read_stage_config(run_folder, {'config': opened.config, 'digests': opened.digests})
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, lora=None))
    network = state.ModelDef.from_stage(registry.build(stage))
    values = dict(nnx.to_flat_state(nnx.state(opened.network.model(**opened.params))))
    params = {
        part: nnx.to_pure_dict(nnx.from_flat_state([(path, values[path]) for path, _ in nnx.to_flat_state(variables)]))
        for part, variables in (('trainable', network.trainable), ('frozen', network.frozen))
    }
    config = opened.config | {'stage': config_lib.to_dict(stage)}
    Checkpoints(target).save(1, {'params': params}, config, opened.digests)


@pytest.mark.parametrize('format', ['diffusers', 'peft'])
def test_lora_of_peft_is_added_to_ours(folder, tmp_path, format):
    """Trained elsewhere: two ranks, an alpha, another A for each of the two modules of the modulations."""
    pipe, inputs = open_pipeline(folder / 'stage2_torch'), random_inputs(VIDEO)
    patterns = {'rank_pattern': {'to_k': 2}, 'alpha_pattern': {'to_v': 3}}
    adapter = LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, **patterns)
    pipe.transformer.add_adapter(adapter)
    torch.manual_seed(0)
    for name, parameter in pipe.transformer.named_parameters():
        if 'lora_' in name:
            torch.nn.init.normal_(parameter, std=0.1)
    lora = tmp_path / 'lora'
    if format == 'diffusers':
        pipe.transformer.save_lora_adapter(lora)
    else:
        save_as_peft(pipe.transformer, lora, adapter)
    run('--checkpoint', folder / 'stage2', '--output', tmp_path / 'out', '--add-lora', lora)
    run('--checkpoint', folder / 'stage2', '--output', tmp_path / 'merged', '--add-lora', lora, '--lora', 'merge')
    theirs = their_prediction(pipe, VIDEO, *inputs)
    for name in ('out', 'merged'):
        assert_close(-theirs, our_prediction(tmp_path / name, *inputs), FORWARD, f'LoRA of {format} in ours, {name}')
    assert trained_runs.open_run(tmp_path / 'out').stage.network.lora.rank == 8  # 4 of each module


def save_as_peft(model, folder: pathlib.Path, config: LoraConfig):
    """As `PeftModel.save_pretrained` writes it."""
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = get_peft_model_state_dict(model)
    save_file(
        {f'base_model.model.{key}': x.contiguous() for key, x in tensors.items()}, folder / 'adapter_model.safetensors'
    )
    config.save_pretrained(folder)


def test_pipelines_of_the_embedded_weights_make_a_video(folder, tmp_path):
    """The whole way: a preview by diffusers' sampler, then its enhancement; the text is a random one."""
    there = pathlib.Path(weights.__file__).parent / 'embedded'
    for name in ('stage1_tiny', 'stage2_tiny'):
        run('--checkpoint', there / f'{name}.safetensors', '--output', tmp_path / name, '--format', 'diffusers')
    first, second = (open_pipeline(tmp_path / name) for name in ('stage1_tiny', 'stage2_tiny'))
    text = 0.1 * torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0))
    preview = first(prompt_embeds=text, num_inference_steps=5, guidance_scale=4.0, output_type='pt').frames
    assert preview.shape == (1, 17, 3, 64, 96)
    video = second(preview, prompt_embeds=torch.zeros(1, 4, 32), num_inference_steps=1).frames
    assert video.shape == (1, 17, 256, 384, 3) and np.isfinite(video).all() and video.std() > 0.01


if __name__ == '__main__':
    RECORDED.write_text(json.dumps(stock_names(), separators=(',', ':'), sort_keys=True) + '\n')
