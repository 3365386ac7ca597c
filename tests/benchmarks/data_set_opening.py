"""How long it takes to open a large data set, and how much memory: shards, sizes, buckets, and the first examples.

    PYTHONPATH=. python tests/benchmarks/data_set_opening.py [--shards 10000] [--clips 25000000]

* SHARDS local shards of 8 small records, with their manifest, and without it as earlier versions wrote them
* the same in a local server of a bucket (with the extras dev and gcs)
* a manifest of CLIPS clips of 6 sizes in shards of 256, whose shards are empty files of 100 MB: none is read

Each is opened in a process of its own. `memory` is the largest resident memory since the packages were imported, and
`kept` is what remains of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fv_jax.data.shards.manifest import ManifestWriter
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import shard_name

SIZES = np.array(
    [[49, 544, 960], [49, 960, 544], [49, 720, 720], [1, 544, 960], [1, 960, 544], [1, 720, 720]], np.int32
)
SHARD_CLIPS, SHARD_BYTES = 256, 10**8
SMALL_RECORDS = 8


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Seconds and memory to open large data sets.')
    parser.add_argument('--shards', type=int, default=10_000)
    parser.add_argument('--clips', type=int, default=25_000_000)
    parser.add_argument('--open', help='of one case: the folder to open, in this process')
    arguments = parser.parse_args(argv)
    if arguments.open:
        print(json.dumps(measure(arguments.open)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / 'small', Path(folder) / 'large'
        write_shards(small, arguments.shards)
        report(f'{arguments.shards:,} local shards', str(small))
        report_in_bucket(small, arguments.shards)
        remove_manifest(small)
        report(f'{arguments.shards:,} local shards, no manifest', str(small))
        write_manifest(large, arguments.clips)
        report(f'manifest of {arguments.clips:,} clips', str(large))
    return 0


def write_shards(folder: Path, count: int) -> None:
    with RecordWriter(folder, 'clips', shard_records=SMALL_RECORDS) as writer:
        for i in range(count * SMALL_RECORDS):
            frames, height, width = map(int, SIZES[i % len(SIZES)])
            writer.write({'video': b'x' * 100, 'frames': frames, 'height': height, 'width': width})


def remove_manifest(folder: Path) -> None:
    """Makes a set look as earlier versions wrote it."""
    (folder / 'clips.parquet').unlink()
    names = sorted(path.name for path in folder.glob('*.array_record'))
    sizes = [[*map(int, SIZES[i % len(SIZES)]), 1] for i in range(len(names) * SMALL_RECORDS)]
    index = json.loads((folder / 'clips.json').read_text())
    index |= {'shards': dict.fromkeys(names, SMALL_RECORDS), 'sizes': sizes}
    (folder / 'clips.json').write_text(json.dumps(index))


def write_manifest(folder: Path, clips: int) -> None:
    folder.mkdir()
    count = -(-clips // SHARD_CLIPS)
    rng = np.random.default_rng(0)
    writer = ManifestWriter(folder / 'clips.parquet')
    for i in range(count):
        number = min(SHARD_CLIPS, clips - i * SHARD_CLIPS)
        frames, height, width = SIZES[rng.integers(len(SIZES), size=number)].T
        writer.add(SHARD_BYTES, {'frames': frames, 'height': height, 'width': width}, ['video'])
        with open(folder / shard_name('clips', i, count), 'wb') as file:
            file.truncate(SHARD_BYTES)
    writer.close('clips')
    (folder / 'clips.json').write_text(json.dumps({'name': 'clips', 'records': clips}))
    size = (folder / 'clips.parquet').stat().st_size
    print(f'the manifest of {clips:,} clips in {count:,} shards has {size / 1e6:.1f} MB')


def report(name: str, folder: str, environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, __file__, '--open', folder]
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = ', '.join(f'{key} {value:.2f} s' for key, value in found['seconds'].items())
    memory = ', '.join(f'{key} {value:.0f} MB' for key, value in found['memory'].items())
    print(f'{name}: {seconds}; {memory}; {found["clips"]:,} clips', flush=True)


def report_in_bucket(folder: Path, count: int) -> None:
    try:
        from tests.storage.servers import gcs_server

        with gcs_server() as server:
            server.make_bucket('bucket')
            for path in folder.iterdir():
                server.upload('bucket', f'small/{path.name}', path.read_bytes())
            report(f'{count:,} shards in a bucket', 'gs://bucket/small', server.environment())
    except ModuleNotFoundError as error:
        print(f'shards in a bucket: not run: {error}')


def measure(folder: str) -> dict:
    """Opens a data set and draws the first batch's records; returns seconds and memory."""
    import pyarrow.parquet  # noqa: F401

    from fv_jax.data import pipeline
    from fv_jax.data.buckets import Bucket
    from fv_jax.data.config import DataConfig
    from fv_jax.data.loader import LoaderConfig, _plan_examples
    from fv_jax.data.shards.bad_records import BadRecords
    from fv_jax.models.vae import OFFICIAL

    buckets = tuple(Bucket(*map(int, size)) for size in SIZES)
    config = DataConfig(LoaderConfig(batch_size=64), train=folder, buckets=buckets)
    before, seconds, started = _memory('VmRSS'), {}, time.monotonic()
    Path('/proc/self/clear_refs').write_text('5')  # the largest memory counts from here

    def lap(name: str) -> None:
        nonlocal started
        seconds[name], started = time.monotonic() - started, time.monotonic()

    parts = pipeline.training_sources(config, BadRecords(config.bad_records))
    lap('open')
    groups = pipeline.group_by_bucket(parts, config, OFFICIAL.latent_spec)
    lap('assign to buckets')
    for group in groups:
        stream = pipeline.BatchStream(group.parts, lambda record, rng: record, group.batch_size, group.share)
        plan = _plan_examples(stream, 0, 0)
        _ = [plan[i] for i in range(group.batch_size)]
    lap('order')
    memory = {'memory': _memory('VmHWM') - before, 'kept': _memory('VmRSS') - before}
    return {'seconds': seconds, 'memory': memory, 'clips': sum(map(len, parts))}


def _memory(name: str) -> float:
    """Reads a value of /proc/self/status, in MB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f'/proc/self/status has no {name}')


if __name__ == '__main__':
    sys.exit(main())
