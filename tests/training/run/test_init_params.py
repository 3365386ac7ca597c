"""`init_from`: other runs, their steps, exports and files, with LoRA or without, give the parameters that they hold."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from configs import stage1
from fv_jax import export
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.config import ConfigError, build
from fv_jax.models.lora import LoRAConfig, merge_lora
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.stages import registry
from fv_jax.training import state
from fv_jax.training.run.init_params import load_init_params
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup
from fv_jax.weights import embedded, exported_network, init_dit_from_weights, save_official, trained_runs
from fv_jax.weights.init_from import check_network, fit_network
from tests.sampling import tiny

PLAIN = dataclasses.replace(tiny.FIRST_DIT, num_layers=2)
LORA = dataclasses.replace(PLAIN, lora=LoRAConfig(rank=2, alpha=2.0, targets=('qkv', 'mlp')))


@pytest.fixture(scope='module')
def saved(vae_file, tmp_path_factory):
    """A full run and one with LoRA, each as a run, an exported folder, an exported file and an official file."""
    folder = tmp_path_factory.mktemp('runs')
    for name, dit in (('plain', PLAIN), ('lora', LORA)):
        run = folder / name
        stage = tiny.first_stage_config(vae_file, dit=dit)
        tiny.save_run(run, stage)
        later = jax.tree.map(lambda x: x + 1, tiny.train_state(registry.build(stage)))
        Checkpoints(run).save(9, state.to_items(later), tiny.config(stage))
        for output in (f'{run}_export', f'{run}.safetensors'):
            assert export.main([f'--checkpoint={run}', f'--output={output}', '--step=7']) == 0
        save_official(f'{run}.pt', network(run))
    return folder


def network(run):
    """Returns the network of step 7, read without the code under test."""
    opened = trained_runs.open_run(run, 7)
    return opened.network.model(**opened.params)


def setup(vae_file, dit):
    config = stage1.get_config('smoke')
    config.parallel = {'data': 1, 'fsdp': 1}
    built = build(TrainConfig, config.to_dict())
    built = dataclasses.replace(built, stage=tiny.first_stage_config(vae_file, dit=dit))
    latent_spec = trained_runs.latent_spec(built.stage)
    mesh = make_mesh(ParallelConfig(data=1), jax.devices()[:1])
    return make_train_setup(built, make_partitioner(built, mesh, latent_spec), latent_spec)


def load(vae_file, dit, name):
    made = setup(vae_file, dit)
    trainable, frozen = load_init_params(made, str(name))
    shardings = made.shardings.trainable, made.shardings.frozen
    for leaf, sharding in zip(jax.tree.leaves((trainable, frozen)), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding
    return made.network.model(trainable=trainable, frozen=frozen)


def values(model):
    return {'/'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_close(model, expected, atol=0.0):
    a, b = values(model), values(expected)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize('dit', [PLAIN, LORA], ids=['plain', 'lora'])
def test_same_network_is_taken_as_it_is(saved, vae_file, dit):
    name = 'plain' if dit is PLAIN else 'lora'
    expected = network(saved / name)
    for source in (f'{name}/checkpoints/7', f'{name}_export'):
        assert_close(load(vae_file, dit, saved / source), expected)
    assert_close(load(vae_file, dit, saved / f'{name}.safetensors'), expected, atol=1e-3)  # float16
    assert_close(load(vae_file, dit, saved / f'{name}.pt'), expected, atol=1e-6)
    newest = load(vae_file, dit, saved / name)
    assert_close(newest, jax.tree.map(lambda x: x + 1, expected))


def test_embedded_is_the_stage_of_the_package_of_the_same_kind(vae_file):
    path = embedded.STAGES_TINY[0]
    dit = exported_network.read_config(path)
    assert_close(load(vae_file, dit, 'embedded'), init_dit_from_weights(path, dit, jax.random.key(0)))


@pytest.mark.parametrize('source', ['plain/checkpoints/7', 'plain_export', 'plain.safetensors', 'plain.pt'])
def test_lora_starts_from_a_full_run(saved, vae_file, source):
    model = load(vae_file, LORA, saved / source)
    assert_close(merge_lora(model), network(saved / 'plain'), atol=1e-3 if 'safe' in source else 0)
    from_official = load(vae_file, LORA, saved / 'plain.pt')
    matrices = {name: value for name, value in values(from_official).items() if '/lora/' in name}
    assert len(matrices) == 6
    for name, value in matrices.items():
        np.testing.assert_array_equal(values(model)[name], value)
        assert np.any(value) == name.endswith('/a')


@pytest.mark.parametrize('source', ['lora/checkpoints/7', 'lora_export', 'lora.safetensors', 'lora.pt'])
def test_full_training_starts_from_a_lora_run(saved, vae_file, source):
    merged = merge_lora(network(saved / 'lora'))
    assert_close(load(vae_file, PLAIN, saved / source), merged, atol=3e-3 if 'safe' in source else 1e-6)


@pytest.mark.parametrize('source', ['lora/checkpoints/7', 'lora_export', 'lora.safetensors', 'lora.pt'])
def test_lora_of_another_alpha_is_the_same_function(saved, vae_file, source):
    other = dataclasses.replace(LORA, lora=dataclasses.replace(LORA.lora, alpha=0.5), dtype='bfloat16')
    model = load(vae_file, other, saved / source)
    assert model.config == other
    merged = merge_lora(network(saved / 'lora'))
    assert_close(merge_lora(model), merged, atol=3e-3 if 'safe' in source else 1e-6)


@pytest.mark.parametrize('dit', [PLAIN, LORA], ids=['plain', 'lora'])
def test_parameters_are_stored_in_the_dtype_of_the_config(saved, vae_file, dit):
    half = dataclasses.replace(LORA, param_dtype='bfloat16')
    name = 'plain' if dit is PLAIN else 'lora'
    model = load(vae_file, half, saved / name / 'checkpoints' / '7')
    assert model.text_embed.kernel.dtype == 'bfloat16' and model.blocks.attention.qkv.lora.a.dtype == 'float32'


@pytest.mark.parametrize('source', ['plain/checkpoints/7', 'lora/checkpoints/7', 'lora.safetensors', 'lora.pt'])
def test_interval_embedding_is_added_to_the_teacher(saved, vae_file, source):
    """LoRA of the teacher is part of it: it is merged, and the student's own is new."""
    there = network(saved / source.split('/')[0].split('.')[0])
    wanted = dataclasses.replace(PLAIN, lora=LoRAConfig(rank=3, targets=('qkv',)), embed_interval=True)
    given = there if source.startswith('plain') else merge_lora(there)
    if source.endswith(('.pt', '.safetensors')):
        model = init_dit_from_weights(str(saved / source), wanted, jax.random.key(0))
    else:
        model = fit_network(there, wanted, jax.random.key(0))
    assert model.config == wanted
    found, expected = values(model), values(given)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-3 if 'safe' in source else 0, err_msg=name)
    added = {name for name in found if name not in expected}
    assert {name.split('/')[0] for name in added} == {'blocks', 'interval_embed'}
    assert not found['interval_embed/out/kernel'].any() and found['interval_embed/hidden/kernel'].any()
    assert found['blocks/attention/qkv/lora/a'].shape[-1] == 3 and not found['blocks/attention/qkv/lora/b'].any()


def test_flow_map_is_continued_with_its_lora_alone():
    lora = dataclasses.replace(LORA, embed_interval=True)
    check_network('there', lora, lora)
    check_network('there', PLAIN, lora)
    without = dataclasses.replace(PLAIN, embed_interval=True)
    for there, wanted in ((lora, LORA), (lora, PLAIN), (lora, without), (without, lora), (without, without)):
        with pytest.raises(ConfigError, match='there: holds a flow map'):
            check_network('there', there, wanted)


@pytest.mark.parametrize(
    ('source', 'change', 'words'),
    [
        ('nowhere', {}, 'nowhere: does not exist; name a run, RUN/checkpoints/STEP, an exported folder or weights'),
        ('lora/checkpoints/8', {}, 'has no step 8; it has 7, 9'),
        ('lora/checkpoints', {}, 'contains no checkpoints'),
        ('empty', {}, 'contains no checkpoints'),
        ('video.mp4', {}, 'video.mp4: '),
        ('nowhere.pt', {}, 'nowhere.pt'),
        ('lora', {'mlp_dim': 64}, 'lora: architecture mismatch: mlp_dim=64 here and 32 there'),
        ('lora_export', {'num_layers': 3}, 'architecture mismatch: num_layers=3 here and 2 there'),
        ('lora', {'lora': LoRAConfig(rank=4, targets=('qkv', 'mlp'))}, 'lora.rank=4, .*lora has rank 2 on qkv, mlp'),
        (
            'lora',
            {'lora': LoRAConfig(rank=2, targets=('qkv',))},
            'lora.targets=.*lora has rank 2 on qkv, mlp',
        ),
        ('vae_run', {}, 'vae_run: holds a VAE, not a DiT'),
        ('vae.safetensors', {}, 'holds a VAE, not a DiT'),
        ('no_stage', {}, 'no_stage: its configuration has no stage'),
    ],
)
def test_what_does_not_fit_is_one_line(saved, vae_file, source, change, words):
    (saved / 'empty').mkdir(exist_ok=True)
    (saved / 'video.mp4').touch()
    (saved / 'vae.safetensors').write_bytes(embedded.VAE_TINY.read_bytes())
    if source == 'no_stage':
        Checkpoints(saved / source).save(1, {'params': {'a': np.ones(1)}}, {'t5': {}})
    if source == 'vae_run':
        stage = registry.StageConfig('autoencoder', tiny.VAE_CONFIG, registry.KINDS['autoencoder'].options())
        items = state.to_items(tiny.train_state(registry.build(stage)))
        Checkpoints(saved / source).save(1, items, tiny.config(stage))
    with pytest.raises(ConfigError, match=f'^config.init_from: .*{words}') as error:
        load(vae_file, dataclasses.replace(LORA, **change), saved / source)
    assert '\n' not in str(error.value)
