"""Reads damaged shards and prepares damaged videos, many of them, and checks that all damage is handled:

    PYTHONPATH=. python tests/fuzz/damaged_files.py [--shards 250] [--videos 250] [--seed 0]

Shards: every record is either read as it was written or raises ValueError, the loader skips exactly those and names
each once, and a shard that cannot be opened is named itself. Videos: `prepare` returns its exit code for skipped files,
and every video is either used or named. A case that takes over a minute ends the process, with a stack trace.
"""

import argparse
import contextlib
import faulthandler
import io
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from fv_jax import prepare
from fv_jax.data.loader import BatchStream, LoaderConfig, WeightedSource, load_mixed_batches
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecordError, BadRecords
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import ShardError, list_shards
from fv_jax.data.shards.source import Shards
from tests.data import sample_videos
from tests.fuzz.damage import damage

RECORDS = 6
SECONDS = 60.0  # that one case may take


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Fuzzes the reader of shards and `prepare`.')
    parser.add_argument('--shards', type=int, default=250)
    parser.add_argument('--videos', type=int, default=250)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print(fuzz_shards(Path(folder), arguments.shards, arguments.seed))
        print(fuzz_videos(Path(folder), arguments.videos, arguments.seed))
    return 0


def _clip(record: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {'i': np.array([[record['i']]]), 'x': np.frombuffer(record['x'], np.uint8)[None]}


def fuzz_shards(folder: Path, count: int, seed: int) -> str:
    """Damages shards and reads them. Returns a summary; raises AssertionError for damage that was not found."""
    shard = _good_shard(folder / 'good')
    good = shard.read_bytes()
    originals = [np.random.default_rng(i).bytes(3000) for i in range(RECORDS)]
    unopened = lost = 0
    for case in range(count):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        where = folder / 'damaged'
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(folder / 'good', where)
        (where / shard.name).write_bytes(damage(good, np.random.default_rng([seed, case])))
        missing = _read(where, originals, case)
        unopened += missing is None
        lost += missing or 0
    faulthandler.cancel_dump_traceback_later()
    return f'{count} damaged shards: {unopened} could not be opened, {lost} records of the others were bad, all named'


def _good_shard(folder: Path) -> Path:
    with RecordWriter(folder, 'clips') as writer:
        for i in range(RECORDS):
            writer.write({'i': i, 'x': np.random.default_rng(i).bytes(3000)})
    return writer.shards[0]


def _read(folder: Path, originals: list[bytes], case: int) -> int | None:
    """Counts the bad records; None if the shard cannot be opened."""
    bad = BadRecords(BadRecordConfig('skip', max_bad_records=10**6))
    try:
        source = Shards(list_shards(folder), bad)
    except ValueError as error:
        assert str(folder) in str(error) and len(bad.found) <= 1, f'case {case}: {error}'
        return None
    broken, lost = set(), 0
    for i in range(len(source)):
        try:
            record = source[i]
            assert record['x'] == originals[record['i']], f'case {case}: record {i} was read wrongly without an error'
        except ValueError as error:
            broken.add(error.shard if isinstance(error, ShardError) else source.record_name(i))
            lost += 1
    config = LoaderConfig(batch_size=1, seed=case, num_threads=2)
    rows = load_mixed_batches([BatchStream((WeightedSource('damaged', source),), _clip, 1)], config, bad=bad)
    try:
        for batch in itertools.islice(rows, 2 * len(source)):
            assert batch['x'].tobytes() == originals[int(batch['i'].item())], f'case {case}: a batch came back wrong'
    except BadRecordError:
        assert lost == len(source), f'case {case}: gave up with {len(source) - lost} good records'
    # Two epochs draw every record; those that replace others may be bad as well.
    assert set(bad.found) == broken, f'case {case}: {set(bad.found) ^ broken} not counted as it should be'
    return lost


def fuzz_videos(folder: Path, count: int, seed: int) -> str:
    """Returns a summary. Raises AssertionError for a video that is neither used nor named."""
    source, output = folder / 'videos', folder / 'clips'
    source.mkdir()
    sample_videos.write_two_shots(source / 'good.mp4')
    good = (source / 'good.mp4').read_bytes()
    for case in range(count):
        (source / f'{case:05d}.mp4').write_bytes(damage(good, np.random.default_rng([seed, case])))
    flags = ['--config.frames=9', '--config.height=64', '--config.width=96', '--config.preset=ultrafast']
    faulthandler.dump_traceback_later(SECONDS + count, exit=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = prepare.main([f'--input={source}', f'--output={output}', *flags])
    faulthandler.cancel_dump_traceback_later()
    index = json.loads((output / 'clips.json').read_text())
    assert code == (prepare.SKIPPED if index['skipped'] or index['damaged'] else 0), code
    assert index['files'] + len(index['skipped']) == count + 1 and 'good.mp4' not in index['skipped']
    assert all(reason for reason in index['skipped'].values())
    parts, used = len(index['damaged']), index['files'] - 1 - len(index['damaged'])
    return (
        f'{count} damaged videos: {len(index["skipped"])} skipped and named, {parts} used in part and named, '
        f'{used} used, with no visible damage'
    )


if __name__ == '__main__':
    sys.exit(main())
