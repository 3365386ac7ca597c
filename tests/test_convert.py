"""The command `convert`: round trips are bit-exact, output is atomic, errors are one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fv_jax import convert, weights
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.models.lora import LoRAConfig, merge_lora
from fv_jax.models.vae import VAEConfig
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import reader, trained_runs
from fv_jax.weights.formats import safetensors_file, torch_zip
from fv_jax.weights.layouts import diffusers_keys, key_table, official_dit
from fv_jax.weights.text_encoders import text_fingerprint
from tests.sampling import tiny
from tests.small_text import SMALL, make_folder

STAGE1 = dataclasses.replace(
    tiny.DIT,
    num_layers=2,
    embed_num_frames=False,
    embed_noise_augmentation_timestep=False,
    lora=LoRAConfig(rank=3, targets=('qkv', 'modulation')),
)
STAGE2 = dataclasses.replace(tiny.DIT, num_layers=2)
VAE = VAEConfig(base_channels=32, multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=4)
NETWORKS = {'stage1': STAGE1, 'stage2': STAGE2, 'vae': VAE}
FREQUENCIES = 'model.diffusion_model.mixins.pos_embed.freqs_sin'


def network(config):
    graphdef, abstract = nnx.split(reader.abstract_network(config))
    return nnx.merge(graphdef, tiny.random(abstract, 0.2))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Official files of small networks, with the table that nothing reads, and beside them the VAE that they need."""
    folder = tmp_path_factory.mktemp('official')
    tiny.save_vae(folder / '3d-vae.pt.safetensors')
    for name, config in NETWORKS.items():
        weights.save_official(folder / f'{name}.pt', network(config))
        if name != 'vae':
            arrays = tensors(folder / f'{name}.pt')
            table = np.random.default_rng(1).standard_normal((64, config.embed_dim)).astype(np.float32)
            write(folder / f'{name}.pt', arrays | {official_dit.POSITION_TABLE: table})
    return folder


@pytest.fixture(scope='module')
def runs(files, tmp_path_factory):
    """Each of them converted."""
    folder = tmp_path_factory.mktemp('runs')
    for name in NETWORKS:
        assert (
            run('--input', files / f'{name}.pt', '--output', folder / name, '--vae', files / '3d-vae.pt.safetensors')
            == 0
        )
    return folder


def write(path, arrays, outer='module'):
    specs = {key: torch_zip.TensorSpec(x.shape, x.dtype) for key, x in arrays.items()}
    torch_zip.write(path, outer, specs, arrays.items())
    return path


def tensors(path):
    if path.suffix == '.safetensors':
        return load_file(path)
    (found,) = torch_zip.read(path).values()
    return {key: np.array(tensor.numpy()) for key, tensor in found.items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].dtype == second[key].dtype
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def run(*argv):
    return convert.main([str(argument) for argument in argv])


def run_failing(capsys, code, *argv):
    """Runs a command that fails; returns its one line of error."""
    capsys.readouterr()
    assert run(*argv) == code
    error = capsys.readouterr().err
    assert error.startswith('convert: ') and error.count('\n') == 1, error
    return error


# Round trip.


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@pytest.mark.parametrize('name', NETWORKS)
def test_convert_round_trip_is_bit_exact(files, runs, tmp_path, name, suffix):
    assert run('--input', runs / name, '--output', tmp_path / f'x{suffix}') == 0
    assert_same(tensors(tmp_path / f'x{suffix}'), tensors(files / f'{name}.pt'))
    assert [path.name for path in tmp_path.iterdir()] == [f'x{suffix}']


@pytest.mark.parametrize('name', NETWORKS)
def test_convert_output_opens_as_a_run(files, runs, name):
    opened = trained_runs.open_run(runs / name)
    assert opened.step == 0 and opened.config['converted_from'] == str(files / f'{name}.pt')
    expected = weights.load_official(files / f'{name}.pt')
    model = opened.network.model(**opened.params)
    vae = {} if name == 'vae' else {'vae': weights.encoder_fingerprint(str(files / '3d-vae.pt.safetensors'))}
    assert opened.digests == vae  # there is no text encoder beside the file
    assert opened.config['stage']['kind'] == {'stage1': 'lowres', 'stage2': 'superres', 'vae': 'autoencoder'}[name]
    assert model.config == expected.config
    ours, theirs = (dict(nnx.to_flat_state(nnx.state(x))) for x in (model, expected))
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path][...], theirs[path][...], err_msg=str(path))
    if name == 'stage1':
        assert {key.key for key, *_ in map(list, parameter_paths(opened.params['trainable']))} == {'blocks'}
        assert len(parameter_paths(opened.params['trainable'])) == 4  # LoRA is trainable, the rest is frozen


def parameter_paths(tree):
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_convert_merges_lora_in_both_directions(files, runs, tmp_path):
    vae = files / '3d-vae.pt.safetensors'
    assert run('--input', files / 'stage1.pt', '--output', tmp_path / 'run', '--lora', 'merge', '--vae', vae) == 0
    assert run('--input', tmp_path / 'run', '--output', tmp_path / 'a.pt') == 0
    assert run('--input', runs / 'stage1', '--output', tmp_path / 'b.pt', '--lora=merge') == 0
    merged = tensors(tmp_path / 'a.pt')
    assert_same(merged, tensors(tmp_path / 'b.pt'))
    assert not [key for key in merged if 'matrix' in key or 'original' in key]
    expected = merge_lora(weights.load_official(files / 'stage1.pt'))
    weights.save_official(tmp_path / 'c.pt', expected)
    before = tensors(tmp_path / 'c.pt')
    for key in before.keys() - {official_dit.POSITION_TABLE}:  # compiled otherwise, and thus rounded otherwise
        np.testing.assert_allclose(merged[key], before[key], rtol=0, atol=1e-6, err_msg=key)


def test_convert_to_bfloat16(files, tmp_path, capsys):
    vae = files / '3d-vae.pt.safetensors'
    assert run('--input', files / 'stage1.pt', '--output', tmp_path / 'run', '--dtype=bfloat16', '--vae', vae) == 0
    assert 'in bfloat16' in capsys.readouterr().out
    saved = Checkpoints(tmp_path / 'run', read_only=True).meta()['config']['stage']['network']
    assert saved['param_dtype'] == saved['dtype'] == 'bfloat16'
    model = (opened := trained_runs.open_run(tmp_path / 'run')).network.model(**opened.params)
    assert model.blocks.attention.qkv.kernel.dtype == jnp.bfloat16
    assert model.blocks.attention.qkv.lora.a.dtype == jnp.float32
    assert run('--input', tmp_path / 'run', '--output', tmp_path / 'x.pt', '--dtype=bfloat16') == 0
    back, before = tensors(tmp_path / 'x.pt'), tensors(files / 'stage1.pt')
    assert_same(back, {key: x.astype(jnp.bfloat16) for key, x in before.items()})
    # What a file holds in 16 bits stays so.
    assert run('--input', tmp_path / 'x.pt', '--output', tmp_path / 'again', '--vae', vae) == 0
    assert (
        Checkpoints(tmp_path / 'again', read_only=True).meta()['config']['stage']['network']['param_dtype']
        == 'bfloat16'
    )


def test_convert_a_trained_run_to_an_official_file(files, tmp_path):
    """Its checkpoint was written by the trainer's own code, and has no table to give back: zeros stand for it."""
    stage = tiny.stage_config(files / '3d-vae.pt.safetensors')
    tiny.save_run(tmp_path / 'run', stage)
    assert run('--input', tmp_path / 'run', '--output', tmp_path / 'x.pt', '--step', 7) == 0
    found = tensors(tmp_path / 'x.pt')
    assert found[official_dit.POSITION_TABLE].shape == (64, 32) and not np.any(found[official_dit.POSITION_TABLE])
    opened = trained_runs.open_run(tmp_path / 'run')
    model = weights.load_official(tmp_path / 'x.pt')
    np.testing.assert_array_equal(model.text_embed.kernel[...], opened.params['trainable']['text_embed']['kernel'])


@pytest.mark.parametrize(
    ('zeros', 'report'),
    [
        ((), 'its kernels are not zero'),
        (('0', '2'), 'both kernels are exactly zero'),
        (('2',), 'the second kernel is exactly zero'),
    ],
)
def test_convert_reports_the_frame_count_embedding(files, tmp_path, capsys, zeros, report):
    arrays = tensors(files / 'stage2.pt')
    for i in zeros:
        arrays[f'model.diffusion_model.time_size_embedding.{i}.weight'][...] = 0
    path = write(tmp_path / 'stage2.pt', arrays)
    assert run('--input', path, '--output', tmp_path / 'run', '--vae', files / '3d-vae.pt.safetensors') == 0
    out = capsys.readouterr().out
    assert report in out and ('does not receive the length of a clip' in out) == bool(zeros)


def test_convert_t5_round_trip(tmp_path, capsys):
    source = Path(__file__).parent / 'parity' / 'official_dev' / 't5'
    assert run('--input', source, '--output', tmp_path / 'run') == 0
    assert run('--input', tmp_path / 'run', '--output', tmp_path / 't5') == 0
    assert 'in float32' in capsys.readouterr().out
    found, before = (safetensors_file.read_folder(folder) for folder in (tmp_path / 't5', source))
    assert_same(*({key: x.numpy() for key, x in tensors.items()} for tensors in (found, before)))
    assert (tmp_path / 't5' / 'spiece.model').read_bytes() == (source / 'spiece.model').read_bytes()
    assert 'a T5 becomes a folder' in run_failing(capsys, 2, '--input', tmp_path / 'run', '--output', tmp_path / 'x.pt')


def test_convert_a_diffusers_folder(tmp_path, capsys):
    """Its layout is tested in tests/weights/layouts/test_diffusers_folder.py; here, what the command says of it."""
    config = dataclasses.replace(STAGE1, lora=None, mlp_dim=128)
    folder = tmp_path / 'transformer'
    folder.mkdir()
    rows = [diffusers_keys._rename(row) for row in official_dit.table(config)]
    values = key_table.module_parameters(nnx.state(network(config)))
    save_file(dict(key_table.to_official(values, key_table.KeyTable(rows, 2))[1]), folder / 'x.safetensors')
    values = {'num_attention_heads': 1, 'attention_head_dim': 32, 'in_channels': 4, 'out_channels': 4, 'num_layers': 2}
    values |= {'_class_name': 'CogVideoXTransformer3DModel', 'text_embed_dim': 8, 'time_embed_dim': 8}
    (folder / 'config.json').write_text(json.dumps(values))
    assert run('--input', folder, '--output', tmp_path / 'run', '--target-stage=superres') == 0
    out = capsys.readouterr().out
    assert 'note: without a counterpart: its position table' in out
    assert 'note: not in the folder, newly initialised: source_embed' in out
    assert f'note: the checkpoint names {tmp_path / "vae"} as its VAE, which does not exist' in out
    assert f'note: the checkpoint names {tmp_path / "text_encoder"} as its text encoder' in out
    meta = Checkpoints(tmp_path / 'run', read_only=True).meta()
    assert meta['config']['stage']['kind'] == 'superres'


def test_convert_records_the_fingerprint_of_the_text_encoder(files, tmp_path, capsys):
    folder = make_folder(tmp_path / 't5-v1_1-xxl')
    source, vae = shutil.copy(files / 'stage2.pt', tmp_path / 'stage2.pt'), files / '3d-vae.pt.safetensors'
    argv = '--input', source, '--output', tmp_path / 'run', '--vae', vae
    assert 'has embeddings of width 12, the network takes 8' in run_failing(capsys, 2, *argv)
    wide = dataclasses.replace(SMALL, embed_dim=8)
    assert run(*argv, '--text', make_folder(tmp_path / 'right', wide)) == 0
    assert 'text encoder' not in capsys.readouterr().out
    opened = trained_runs.open_run(tmp_path / 'run')
    assert opened.digests['text'] == text_fingerprint(TextConfig(str(tmp_path / 'right'))).digest and not opened.notes
    assert trained_runs.open_run_text_encoder(opened).fingerprint.dim == 8 and folder.is_dir()


# Whole or not at all.


def test_convert_lists_all_mismatched_keys_and_writes_nothing(files, tmp_path, capsys):
    arrays, prefix = tensors(files / 'stage1.pt'), 'model.diffusion_model.'
    del arrays[f'{prefix}transformer.layers.1.attention.query_key_value.matrix_B.2']
    arrays[f'{prefix}transformer.layers.1.attention.extra'] = np.zeros(3, np.float32)
    arrays[f'{prefix}final_layernorm'] = arrays.pop(f'{prefix}transformer.final_layernorm.bias')
    arrays[f'{prefix}time_embed.0.weight'] = np.zeros((8, 31), np.float32)
    arrays[FREQUENCIES] = np.zeros(3, np.float32)  # known, and no reason to complain
    path = write(tmp_path / 'stage1.pt', arrays)
    assert run('--input', path, '--output', tmp_path / 'run') == 1
    assert capsys.readouterr().err.splitlines()[1:] == [
        '2 unknown:',
        f'  {prefix}final_layernorm',
        f'  {prefix}transformer.layers.1.attention.extra',
        '2 missing:',
        f'  {prefix}transformer.final_layernorm.bias',
        f'  {prefix}transformer.layers.1.attention.query_key_value.matrix_B.2',
        '1 mismatched:',
        f'  {prefix}time_embed.0.weight: (8, 31) float32, expected (8, 32) floating point',
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_convert_replaces_the_output_only_when_asked(files, runs, tmp_path, capsys):
    target, vae = tmp_path / 'run', files / '3d-vae.pt.safetensors'
    shutil.copytree(runs / 'stage1', target)
    argv = ('--input', files / 'stage2.pt', '--output', target, '--vae', vae)
    assert 'already exists; choose another name or pass --overwrite' in run_failing(capsys, 2, *argv)
    assert run(*argv, '--overwrite') == 0
    assert trained_runs.open_run(target).config['stage']['kind'] == 'superres'
    (target / 'notes.txt').write_text('mine')
    assert 'holds notes.txt, which this command did not write' in run_failing(capsys, 2, *argv, '--overwrite')
    path = tmp_path / 'x.pt'
    path.write_text('before')
    assert 'already exists' in run_failing(capsys, 2, '--input', target, '--output', path)
    assert path.read_text() == 'before'
    assert run('--input', runs / 'stage2', '--output', path, '--overwrite') == 0
    assert_same(tensors(path), tensors(files / 'stage2.pt'))


@pytest.mark.parametrize('direction', ['there', 'back'])
def test_convert_on_a_full_disk_leaves_nothing(files, runs, tmp_path, capsys, monkeypatch, direction):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    if direction == 'there':
        monkeypatch.setattr(key_table, '_read_layer', full)
        argv = '--input', files / 'stage2.pt', '--output', tmp_path / 'run', '--vae', files / '3d-vae.pt.safetensors'
    else:
        monkeypatch.setattr(key_table, 'to_official', full)
        argv = '--input', runs / 'stage2', '--output', tmp_path / 'x.safetensors'
    assert 'No space left on device' in run_failing(capsys, 1, *argv)
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses_an_unwritable_output(runs, capsys):
    run_failing(capsys, 2, '--input', runs / 'stage2', '--output', '/proc/x.pt')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('--input', '{}/none.pt', '--output', '{}/x'), 'none.pt: does not exist'),
        (('--input', '{}/stage1.pt', '--output', '{}/none/x'), 'does not exist'),
        (('--input', '{}/stage1.pt', '--output', '{}/x.pt'), 'become a work directory, not a file'),
        (('--input', '{}/stage1.pt', '--output', '{}/x', '--step', '3'), 'only a run has steps'),
        (('--input', '{}/stage1.pt', '--output', '{}/stage1.pt', '--overwrite'), 'is the input'),
        (('--input', '{}', '--output', '{}/x'), "holds neither checkpoints, as a run does, nor a model's config.json"),
        (('--input', '{}/vae.pt', '--output', '{}/x', '--dtype=bfloat16'), 'a VAE is kept in float32'),
        (('--input', '{}/stage1.pt', '--output', '{}/x', '--lora=drop'), "invalid choice: 'drop'"),
        (
            ('--input', '{}/stage1.pt', '--output', '{}/x', '--overwrit'),
            '--overwrit: unknown flag; did you mean --overwrite',
        ),
    ],
)
def test_convert_usage_errors_are_one_line(files, capsys, argv, message):
    before = sorted(files.iterdir())
    assert message in run_failing(capsys, 2, *(text.format(files) for text in argv))
    assert sorted(files.iterdir()) == before


def test_convert_a_run_to_an_official_file(runs, tmp_path, capsys):
    assert 'must end in .pt or .safetensors' in run_failing(
        capsys, 2, '--input', runs / 'vae', '--output', tmp_path / 'x'
    )
    assert 'has no step 3; it has 0' in run_failing(
        capsys, 1, '--input', runs / 'vae', '--output', tmp_path / 'x.pt', '--step', 3
    )


def test_convert_refuses_a_run_of_another_architecture(files, tmp_path, capsys):
    stage = tiny.stage_config(files / '3d-vae.pt.safetensors')
    tiny.save_run(tmp_path / 'run', stage, saved=tiny.wider(stage))
    error = run_failing(capsys, 1, '--input', tmp_path / 'run', '--output', tmp_path / 'x.pt')
    assert 'are not those of its configuration: blocks.mlp.hidden.bias is (1, 32) there and (1, 64)' in error
