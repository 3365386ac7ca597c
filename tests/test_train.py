"""The training command on stage 2's smoke config with a small VAE: to the end, resumed, and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import stage1, stage2, vae
from fv_jax import export, train, weights
from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.data import pipeline
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import count_records, list_shards
from fv_jax.models.lora import merge_lora
from fv_jax.models.vae import OFFICIAL
from fv_jax.stages import registry
from fv_jax.text.encoder import TextConfig
from fv_jax.training.run import save_policy
from fv_jax.weights import trained_runs
from fv_jax.weights.text_encoders import text_fingerprint
from tests import runs
from tests.golden import measure

NO_EVAL = '--config.loop.eval_every=0'
FIXTURES = runs.ROOT / 'tests' / 'parity' / 'official_dev'


@pytest.fixture(scope='module')
def command(vae_file):
    """(work directory, more flags) -> the command's exit code."""
    return lambda folder, *more: train.main(runs.superres(folder, vae_file, *more))


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, command):
    """A run of 4 steps that was not interrupted; read-only for tests."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    assert command(folder) == 0
    return folder


def stopped_at_2(uninterrupted: Path, folder: Path) -> Path:
    """The run as it was when it had saved step 2 and was killed after step 3."""
    shutil.copytree(uninterrupted, folder)
    shutil.rmtree(folder / 'checkpoints' / '4')
    path = folder / 'metrics.jsonl'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:3]))
    return folder


def assert_refused(capsys, code: int, *words: str) -> str:
    """One line on stderr, without a trace."""
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith('train: ') and code in (1, 2) and 'Traceback' not in out
    for word in words:
        assert word in line
    return line


# A run.


def test_train_writes_checkpoints_metrics_and_config(uninterrupted):
    assert {p.name for p in uninterrupted.iterdir()} == {
        'config.json',
        'metrics.jsonl',
        'run.json',
        'tensorboard',
        'checkpoints',
        'latents',
    }
    assert runs.steps(uninterrupted) == [2, 4]
    rows = runs.rows(uninterrupted)
    assert [row['step'] for row in rows if 'loss' in row] == [1, 2, 3, 4]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    (evaluated,) = [row for row in rows if 'eval/loss' in row]
    assert evaluated['step'] == 4
    config = json.loads((uninterrupted / 'config.json').read_text())
    assert to_dict(build(train.TrainConfig, config)) == config
    run = trained_runs.open_run(uninterrupted)
    assert (run.step, run.config) == (4, config)
    first = jax.local_devices()[0]
    assert all(leaf.devices() == {first} for leaf in jax.tree.leaves(run.params))
    averages = runs.arrays(uninterrupted, 4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.params):
        np.testing.assert_array_equal(leaf, averages[f'params{jax.tree_util.keystr(path)}'])
    assert count_records(list_shards(uninterrupted / 'latents')) == 4
    assert run.digests == {'vae': weights.encoder_fingerprint(config['stage']['vae'])} and not run.notes


def test_resume_is_bit_exact_after_stopping_early(command, uninterrupted, tmp_path, capsys):
    resumed = stopped_at_2(uninterrupted, tmp_path / 'run')
    capsys.readouterr()
    assert command(resumed) == 0
    assert runs.rows(resumed) == runs.rows(uninterrupted)  # exactly
    runs.assert_same(resumed, uninterrupted, 4)
    # What a person sees: what, where, on which sizes, from which step; then a line a step; nothing from libraries.
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f'superres: {runs.ROOT}/configs/stage2.py:smoke in {resumed}'
    assert lines[1].startswith('9x32x48: 4 clips, batch 1 ')
    assert 'trainable parameters on 1 cpu device' in lines[2]
    assert lines[3] == 'resuming from step 2 of 4'
    assert [line.split('  ')[0] for line in lines if line.startswith('step ')] == ['step 3/4', 'step 4/4']
    assert lines[-3] == 'saved step 4' and lines[-2].startswith('goodput at step 4: ')
    assert lines[-1].startswith('done: 4 steps')
    assert err == ''
    # Once more: it is complete.
    assert command(resumed) == 0
    assert 'already at the last step' in capsys.readouterr().out
    assert runs.rows(resumed) == runs.rows(uninterrupted)


def test_train_stage_1(tmp_path):
    folder = tmp_path / 'run'
    measure.assert_golden_steps('stage1', measure.training_steps('stage1', folder))
    steps = measure.NUM_STEPS
    names = {'loss_near_noise', 'loss_near_data', 'target_norm'}
    assert [set(row) >= names for row in runs.rows(folder)] == [True] * steps
    assert not list((folder / 'checkpoints' / str(steps)).glob('*low*'))
    run, words = trained_runs.open_run(folder), text_fingerprint(TextConfig('hash', length=4, dim=32))
    assert run.digests == {'vae': weights.encoder_fingerprint('embedded'), 'text': words.digest}
    encoder = trained_runs.open_run_text_encoder(run)
    assert encoder.fingerprint == words and (words.length, words.dim) == (4, 32)


@pytest.mark.parametrize('name', ['stage1', 'stage2'])
def test_train_lora_from_a_file_changes_lora_only(tmp_path, log_lines, name):
    """From the official fixture, with its own LoRA, of stage 1, merged."""
    official = weights.load_official(FIXTURES / f'{name}.pt')
    merged = tmp_path / 'merged.safetensors'
    weights.save_official(merged, official, lora='merge')
    config = {'stage1': stage1, 'stage2': stage2}[name].get_config('smoke')
    config.stage.network.update(dataclasses.asdict(dataclasses.replace(official.config, lora=None)))
    config.stage.network.lora = {'rank': 2, 'alpha': 1.0, 'targets': ('qkv',)}
    config.stage.options.text_length = 2
    config.stage.text.update(encoder='', length=None, dim=None)
    config.init_from = str(merged)
    config.loop.update(num_steps=1, eval_every=0)
    train.run(build(train.TrainConfig, config.to_dict()), tmp_path / 'run')
    assert f'initialized from {merged}' in log_lines
    run = trained_runs.open_run(tmp_path / 'run')
    kernel = run.params['frozen']['blocks']['attention']['qkv']['kernel']
    np.testing.assert_array_equal(kernel, weights.load_official(merged).blocks.attention.qkv.kernel[...])
    changed = jax.tree_util.tree_leaves_with_path(run.params['trainable'])
    assert {jax.tree_util.keystr(path[-2:]) for path, _ in changed} == {"['lora']['a']", "['lora']['b']"}
    assert all(np.any(np.asarray(leaf)) for _, leaf in changed)
    folder = tmp_path / 'exported'
    assert export.main([f'--checkpoint={tmp_path / "run"}', f'--output={folder}', '--lora=merge']) == 0
    exported = trained_runs.open_run(folder)
    expected = merge_lora(run.network.model(**run.params)).blocks.attention.qkv.kernel[...]
    assert exported.stage.network.lora is None
    np.testing.assert_array_equal(exported.params['trainable']['blocks']['attention']['qkv']['kernel'], expected)


def test_train_init_from_another_run(command, uninterrupted, tmp_path, capsys):
    folder = tmp_path / 'run'
    assert command(folder, NO_EVAL, f'--config.init_from={uninterrupted}') == 0
    assert f'initialized from {uninterrupted}' in capsys.readouterr().out
    assert runs.steps(folder) == [2, 4]
    first, other = runs.losses(folder)[1], runs.losses(uninterrupted)[1]
    assert first['learning_rate'] == other['learning_rate']
    averages = runs.arrays(uninterrupted, 4)
    norm = np.sqrt(sum(np.sum(np.square(v)) for k, v in averages.items() if k.startswith("params['trainable']")))
    assert first['param_norm'] == pytest.approx(norm, rel=1e-3)
    assert first['loss'] != other['loss']


def test_resume_after_an_interrupt(command, uninterrupted, tmp_path, capsys, monkeypatch):
    """From the keyboard, while step 4 is being saved."""
    folder = stopped_at_2(uninterrupted, tmp_path / 'run')
    capsys.readouterr()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(save_policy.SavePolicy, 'start', interrupt)
        assert command(folder, NO_EVAL) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('train: interrupted; run the same command again')
    assert runs.steps(folder) == [2]
    assert command(folder, NO_EVAL) == 0
    runs.assert_same(folder, uninterrupted, 4)
    assert runs.losses(folder) == runs.losses(uninterrupted)


# Bad input: one line, nothing is made or lost.


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (['--config.optim.learning_rat=1'], ('config.optim.learning_rat: unknown key', "did you mean 'learning_rate'")),
        (['--config.optimm.eps=1'], ('config.optimm: unknown key', "'optim'")),
        (['--config.optim=1'], ('config.optim: is a section',)),
        (['--config.loop.num_steps=many'], ('config.loop.num_steps: expected int',)),
        (['--config.data.height=100'], ('height=100', 'multiple of 16', '96 or 112')),
        (['--config.data.heldout_size=(9, 16, 20)'], ('heldout_size[2]=20', 'multiple of 16')),
        (['--config.data.frames=10'], ('frames=10', '8k+1', '9 or 17')),
        (['--config.stage.kind=autoencoder'], ('config.stage.network: has', "not part of stage 'autoencoder'")),
        (['--config.stage.network.embed_dimm=3'], ('config.stage.network.embed_dimm: unknown key', "'embed_dim'")),
        (['--workdi=x'], ('--workdi:', 'did you mean --workdir')),
        (['--config.seed'], ('--config.seed: needs a value',)),
    ],
)
def test_train_refuses_invalid_flags(command, more, words, tmp_path, capsys):
    code = command(tmp_path / 'run', *more)
    assert code == 2
    assert_refused(capsys, code, *words)
    assert not (tmp_path / 'run').exists()


def test_train_refuses_invalid_config_files(tmp_path, capsys):
    empty = tmp_path / 'empty.py'
    empty.write_text('')
    for program, words in (
        ('none.py', ('file none.py does not exist',)),
        (str(empty), ('has no function get_config',)),
        (f'{runs.ROOT}/configs/vae.py:smok', ('smok: unknown variant', "did you mean 'smoke'")),
    ):
        assert train.main([f'--config={program}', f'--workdir={tmp_path / "run"}']) == 2
        assert_refused(capsys, 2, *words)
    assert train.main([f'--workdir={tmp_path / "run"}']) == 2
    assert_refused(capsys, 2, '--config')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (['--config.data.train={tmp}/empty'], ('empty', 'holds no', 'prepare')),
        (['--config.data.train={tmp}/none'], ('none', 'no such folder')),
        (['--config.data.heldout={tmp}/empty'], ('empty', 'holds no')),
        (['--config.init_from={tmp}/empty'], ('empty', 'contains no checkpoints')),
        (['--config.init_from={tmp}/none'], ('config.init_from: ', 'none: does not exist')),
        (['--config.init_from={tmp}/stage1.pt'], ('stage1.pt', 'No such file')),
    ],
)
def test_train_refuses_incomplete_folders(command, more, words, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    code = command(tmp_path / 'run', *(flag.format(tmp=tmp_path) for flag in more))
    assert code == (2 if 'init_from' in more[0] else 1)
    assert_refused(capsys, code, *words)
    assert not (tmp_path / 'run').exists() and not any((tmp_path / 'empty').iterdir())


def test_train_refuses_a_missing_vae(tmp_path, capsys):
    (tmp_path / 'text.safetensors').write_text('no weights')
    for name in ('none.safetensors', 'none.pt', 'text.safetensors'):
        assert train.main(runs.superres(tmp_path / 'run', tmp_path / name)) == 1
        assert_refused(capsys, 1, name)
    assert not (tmp_path / 'run').exists()


def test_resume_refuses_another_vae_under_the_same_name(vae_file, uninterrupted, tmp_path, capsys, command):
    folder = stopped_at_2(uninterrupted, tmp_path / 'run')
    meta = folder / 'checkpoints' / '2' / 'meta' / 'metadata'
    meta.write_text(meta.read_text().replace(weights.encoder_fingerprint(str(vae_file)), '0' * 16))
    (folder / 'checkpoints' / '2' / 'checksums.json').unlink()
    assert command(folder) == 2
    assert_refused(
        capsys,
        2,
        'config.stage.vae: has the fingerprint',
        'was trained with 0000000000000000',
        'choose another --workdir',
    )


def test_train_refuses_embeddings_of_another_encoder(vae_file, tmp_path, capsys):
    with RecordWriter(tmp_path / 'clips', 'x') as writer:
        writer.write({'video': np.zeros((9, 32, 48, 3), np.uint8), 'text': np.zeros((4, 32), np.float16)})
        writer.summary = {'text': {'digest': 'f' * 16, 'length': 4, 'dim': 32}}
    flags = NO_EVAL, f'--config.data.train={tmp_path / "clips"}'
    assert train.main(runs.lowres(tmp_path / 'run', vae_file, *flags)) == 2
    assert_refused(capsys, 2, 'x.json: its text embeddings are of encoder ffffffffffffffff', 'those of hash are of')
    flags += ('--config.stage.text.encoder=', '--config.stage.text.length=None', '--config.stage.text.dim=None')
    assert train.main(runs.lowres(tmp_path / 'run', vae_file, *flags)) == 2
    assert_refused(capsys, 2, 'config.stage.text.encoder is empty', 'name the encoder that prepare used')
    assert not (tmp_path / 'run').exists()


def test_train_refuses_the_workdir_of_another_run(command, uninterrupted, tmp_path, capsys):
    folder = stopped_at_2(uninterrupted, tmp_path / 'run')
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    for more, words in (
        (
            ['--config.optim.learning_rate=0.5'],
            ('contains another run: optim.learning_rate is 0.001 there and 0.5 here',),
        ),
        (['--config.seed=1', '--config.data.flip=false'], ('data.flip is True there', 'and 1 more')),
    ):
        assert command(folder, *more) == 2
        assert_refused(capsys, 2, str(folder), '--workdir', *words)
    (folder / 'config.json').write_text('{"stage"')
    before[folder / 'config.json'] = b'{"stage"'
    assert command(folder) == 2
    assert_refused(capsys, 2, 'config.json: cannot be read')
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before


def test_resume_with_a_config_field_that_was_added_later(command, uninterrupted, tmp_path, capsys):
    """A field that config.json lacks has its default value, as the run had."""
    folder = tmp_path / 'run'
    shutil.copytree(uninterrupted, folder)
    config = json.loads((folder / 'config.json').read_text())
    del config['optim']['eps']
    (folder / 'config.json').write_text(json.dumps(config))
    assert command(folder) == 0
    assert 'already at the last step' in capsys.readouterr().out


def test_resume_refuses_a_checkpoint_of_another_architecture(command, uninterrupted, tmp_path, capsys):
    wider = '--config.stage.network.mlp_dim=96'
    assert command(tmp_path / 'run', wider, f'--config.init_from={uninterrupted}') == 2
    words = f'config.init_from: {uninterrupted}: architecture mismatch: ', 'mlp_dim=96 here and 128 there'
    assert_refused(capsys, 2, *words)
    assert not (tmp_path / 'run').exists()
    words = ('another architecture', '128) there and ', '96) in this configuration')
    folder = stopped_at_2(uninterrupted, tmp_path / 'other')
    (folder / 'config.json').unlink()
    assert command(folder, wider) == 1
    assert_refused(capsys, 1, *words)
    runs.assert_same(folder, uninterrupted, 2)


# The configs.


@pytest.mark.parametrize('program', [vae, stage1, stage2])
@pytest.mark.parametrize('variant', ['', 'tiny', 'smoke'])
def test_every_config_builds(program, variant):
    config = build(train.TrainConfig, program.get_config(variant).to_dict())
    assert build(train.TrainConfig, to_dict(config)) == config
    if not variant:
        assert config.data.frames in (17, 49)
    if program is stage1 and not variant:
        full = build(train.TrainConfig, program.get_config('full_ft').to_dict())
        assert config.stage.network.lora is not None and full.stage.network.lora is None
    if program is stage2 and not variant:
        assert (config.data.height, config.data.width, config.stage.network.embed_dim) == (1072, 1920, 1920)
        assert config.optim.clip_norm == 0.1 and config.stage.options.caption_dropout == 0.1
    with pytest.raises(ConfigError, match="smokey: unknown variant; did you mean 'smoke'"):
        program.get_config('smokey')


def test_stage_2_requires_degraded_clips():
    config = stage2.get_config('tiny')
    config.data.cache.num_degraded_variants = 0
    with pytest.raises(ConfigError, match='num_degraded_variants=0: stage superres needs'):
        build(train.TrainConfig, config.to_dict())


@pytest.mark.parametrize('size', ['', ',tiny=true'])
def test_stage_2_phases(size):
    """One network through all of them, nearer to the source each time, and batches of about as many tokens."""
    phases = [build(train.TrainConfig, stage2.get_config(f'phase{i}{size}').to_dict()) for i in (1, 2, 3)]
    assert len({phase.stage.network for phase in phases}) == 1 and len({phase.stage.vae for phase in phases}) == 1
    ranges = [registry.build(phase.stage).noise_augmentation_timesteps(latent_frames=5) for phase in phases]
    assert ranges[0][1] > ranges[1][1] >= ranges[2][1] and ranges[2][0] >= ranges[1][0]
    rates = [phase.optim.learning_rate for phase in phases]
    assert rates == sorted(rates, reverse=True) and all(phase.optim.lr_schedule == 'constant' for phase in phases)
    for phase in phases:
        data = phase.data
        assert data.strong_probability == 0.5 and {bucket.frames == 1 for bucket in data.sizes} == {True, False}
        assert (data.frames, data.height, data.width) in {(b.frames, b.height, b.width) for b in data.sizes}
        if not size:
            spec = OFFICIAL.latent_spec
            tokens = [data.batch_size(bucket, spec) * spec.num_tokens(*bucket.size) for bucket in data.sizes]
            assert min(tokens) > 1.4e6 and max(tokens) <= 1.7e6


def test_stage_2_clips_of_the_small_phases(log_lines):
    for i in (1, 2):
        data = build(train.TrainConfig, stage2.get_config(f'phase{i},tiny=true').to_dict()).data
        bad = BadRecords(data.bad_records)
        log_lines.clear()
        groups = pipeline.group_by_bucket(pipeline.training_sources(data, bad), data, OFFICIAL.latent_spec)
        assert [sum(map(len, group.parts)) for group in groups] == [66, 66] and len(log_lines) == 2
