"""Training on shards in a bucket, and on latents that were cached there: a part of launch/check_services.sh."""

import itertools
import json

import pytest

from fv_jax import train
from fv_jax.core.cache_folder import GB
from fv_jax.core.paths import as_path
from fv_jax.data import embedded
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import read_records
from tests import runs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The empty cache folder."""
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path / 'cache'))


def goodput_row(workdir, vae_file, *more: str) -> dict:
    """Trains, and returns the last row about the time of the run."""
    arguments = runs.superres(workdir, vae_file, '--config.loop.num_steps=3', '--config.loop.eval_every=0', *more)
    assert train.main(arguments) == 0
    found = [json.loads(line) for line in (as_path(str(workdir)) / 'metrics.jsonl').read_text().splitlines()]
    return [row for row in found if 'goodput/step' in row][-1]


def test_training_from_a_bucket_reports_how_shards_were_read(gs_bucket, tmp_path, vae_file, capsys):
    folder = as_path(f'{gs_bucket.url}/clips')
    with RecordWriter(folder, 'clips', shard_records=2) as writer:
        for record in itertools.islice(read_records(embedded.train_shards()), 4):
            writer.write(record)
    row = goodput_row(tmp_path / 'run', vae_file, f'--config.data.train={folder}', '--config.data.cache=none')
    assert 0 < row['goodput/shard_hit_rate'] <= 1 and row['goodput/shard_wait_seconds'] > 0
    shards = [size for name, size in gs_bucket.sizes().items() if name.endswith('.array_record')]
    assert row['goodput/shard_gigabytes'] * GB == pytest.approx(sum(shards))
    assert ' of the reads without waiting, ' in capsys.readouterr().out


def test_latents_that_a_run_cached_in_a_bucket_are_streamed(gs_bucket, vae_file, capsys):
    workdir = f'{gs_bucket.url}/run'
    row = goodput_row(workdir, vae_file)
    assert row['goodput/shard_gigabytes'] > 0 and 'encoding 4 clips' in capsys.readouterr().out
    assert goodput_row(workdir, vae_file, '--config.loop.num_steps=4')['goodput/shard_gigabytes'] == 0
    assert 'encoding' not in capsys.readouterr().out
