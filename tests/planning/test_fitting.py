"""The choice of microbatches and remat: with memory given by a formula, and as programs compile on the CPU."""

import math

import pytest

from fv_jax import train
from fv_jax.core.command_line import read_config
from fv_jax.core.config import ConfigError
from fv_jax.parallel.mesh import make_mesh
from fv_jax.planning import fitting
from fv_jax.planning.collectives import CollectiveTraffic
from fv_jax.planning.compiling import CompiledProgram, CompileOutOfMemory
from fv_jax.planning.planner import latent_spec
from fv_jax.training.run.setup import TrainConfig, make_partitioner

MB = 2**20
OPEN = (('loop.microbatches', 'auto'), ('stage.network.remat', 'auto'))
SAVED = {'none': 40 * MB, 'dots': 20 * MB, 'full': 8 * MB}  # bytes of an example


def make_config(*overrides: tuple[str, str], batch_size: int = 4) -> TrainConfig:
    fields = (('data.loader.batch_size', str(batch_size)), ('stage.network.num_layers', '1'), *overrides)
    return read_config(TrainConfig, 'configs/stage2.py:smoke', fields)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """The choices that were compiled; their memory is that of the formula above."""
    tried = []

    def compile_ahead(lower, num_devices):
        config = lower.args[0].config
        tried.append((config.loop.microbatches, config.stage.network.remat))
        size = SAVED[config.stage.network.remat] * config.data.loader.batch_size // config.loop.microbatches
        if size > 100 * MB:
            return CompileOutOfMemory(size, 1.0)
        return CompiledProgram(0, size, 0, 0, 1.0, CollectiveTraffic({}, {}, 0))

    monkeypatch.setattr(fitting, 'compile_ahead', compile_ahead)
    monkeypatch.setattr(fitting, '_FORMULA_SLACK', math.inf)
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'cache'))
    return tried


def choose(config: TrainConfig, memory: float) -> tuple[int, str]:
    spec = latent_spec(config)
    choice = fitting.choose(config, make_partitioner(config, make_mesh(config.parallel), spec), spec, memory)
    return choice.microbatches, choice.remat


@pytest.mark.parametrize(
    ('megabytes', 'chosen', 'compiles'),
    [(90, (2, 'none'), 2), (19, (2, 'full'), 8)],
)
def test_first_choice_that_fits_recomputes_least(compiled, megabytes, chosen, compiles):
    config = make_config(*OPEN)
    assert choose(config, megabytes * MB) == chosen and len(compiled) == compiles
    assert choose(config, megabytes * MB) == chosen and len(compiled) == compiles  # kept in the cache folder


def test_choice_is_made_again_where_it_may_differ(compiled):
    choose(make_config(OPEN[0]), 90 * MB)
    choose(make_config(OPEN[0], ('data.width', '64')), 90 * MB)
    choose(make_config(OPEN[0]), 91 * MB)  # or other memory
    assert compiled == [(1, 'none'), (2, 'none')] * 3


def test_field_that_is_set_is_not_changed(compiled):
    assert choose(make_config(OPEN[0], ('stage.network.remat', 'dots')), 30 * MB) == (4, 'dots')
    assert choose(make_config(OPEN[1], ('loop.microbatches', '2')), 50 * MB) == (2, 'dots')
    config = make_config()
    assert not fitting.is_open(config) and all(fitting.is_open(make_config(field)) for field in OPEN)


def test_microbatches_divide_the_batch_of_every_shard_and_bucket(compiled):
    sizes = ('data.buckets', "({'frames': 9, 'height': 32, 'width': 48}, {'frames': 1, 'height': 32, 'width': 48})")
    config = make_config(OPEN[0], batch_size=6)
    spec = latent_spec(config)
    partitioner = make_partitioner(config, make_mesh(config.parallel), spec)
    assert [choice.microbatches for choice in fitting.list_choices(config, partitioner, spec)] == [1, 2, 3, 6]
    config = make_config(OPEN[0], sizes, ('data.token_budget', '160'), ('data.batch_multiple', '2'))
    counts = {config.data.batch_size(bucket, spec) for bucket in config.data.sizes}
    assert len(counts) == 2
    for choice in fitting.list_choices(config, partitioner, spec):
        assert all(count % choice.microbatches == 0 for count in counts)


def test_without_a_limit_nothing_is_compiled(compiled):
    assert choose(make_config(*OPEN), math.inf) == (1, 'none') and not compiled


def test_run_that_cannot_fit_is_one_line(compiled, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fitting, '_memory_limit', lambda device: 5.0 * MB)
    flags = [f'--config.{field}={value}' for field, value in OPEN]
    assert train.main(['--config=stage2:smoke', f'--workdir={tmp_path / "run"}', *flags]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'of the 0.00 GiB of a device' in error and 'remat=full needs' in error
    assert not (tmp_path / 'run').exists()


def test_choice_follows_the_memory_that_the_compiler_reports(monkeypatch, tmp_path):
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path))
    config = make_config(OPEN[0], ('data.width', '96'), ('data.height', '64'))
    spec = latent_spec(config)
    partitioner = make_partitioner(config, make_mesh(config.parallel), spec)
    whole = fitting.choose(config, partitioner, spec, 1e12)
    assert whole.microbatches == 1
    smaller = fitting.choose(config, partitioner, spec, whole.peak_bytes - 1)
    assert smaller.microbatches > 1 and smaller.peak_bytes < whole.peak_bytes


def test_run_trains_with_the_choice_and_records_the_fields_as_given(monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(fitting, 'choose', lambda *arguments: fitting.Choice(2, 'full'))
    monkeypatch.setattr(train, '_run', lambda setup, given, *others: found.append((setup.config, given)))
    flags = '--config.data.loader.batch_size=2', *(f'--config.{field}={value}' for field, value in OPEN)
    assert train.main(['--config=stage2:smoke', f'--workdir={tmp_path / "run"}', *flags]) == 0
    ((used, given),) = found
    assert (used.loop.microbatches, used.stage.network.remat) == (2, 'full')
    assert given.loop.microbatches == given.stage.network.remat == 'auto'


def test_vae_has_no_choice():
    with pytest.raises(ConfigError, match='networks of DiT only'):
        config = read_config(TrainConfig, 'configs/vae.py:smoke', OPEN[:1])
        fitting.choose(config, None, None, 1e9)
