import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fv_jax.data.shards import records, shard_files
from fv_jax.data.shards.record_writer import RecordWriter


def test_record_round_trip() -> None:
    record = {
        'video': b'\x00\xffmp4',
        'caption': 'ein Häschen',
        'fps': 23.976,
        'frames': np.int64(17),
        'ok': True,
        'none': None,
        'z_high': np.arange(24, dtype=ml_dtypes.bfloat16).reshape(1, 2, 3, 4),
        'z_low': np.arange(6, dtype='>f4').reshape(2, 3)[:, ::-1],
        'empty': np.zeros((0, 4), np.uint8),
    }
    back = records.decode_record(records.encode_record(record))
    assert set(back) == set(record)
    for key, value in record.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(back[key], value)
            assert back[key].dtype.itemsize == value.dtype.itemsize and back[key].flags.writeable
        else:
            assert back[key] == value
    assert back['z_high'].dtype == ml_dtypes.bfloat16 and type(back['frames']) is int


def test_record_refuses_unsupported_values() -> None:
    with pytest.raises(ValueError, match=r"record\['x'\]: cannot store a set"):
        records.encode_record({'x': {1}})
    with pytest.raises(ValueError, match=r"record\['x'\]: arrays of dtype object"):
        records.encode_record({'x': np.array([None])})
    for data in (b'', b'\xc1', b'\x93\x01'):
        with pytest.raises(ValueError, match='not a record'):
            records.decode_record(data)


def write(folder: Path, count: int, **options) -> None:
    with RecordWriter(folder, 'train', **options) as writer:
        for i in range(count):
            writer.write({'i': i, 'bytes': bytes(2000)})


def test_shards_and_their_index(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / 'new' / 'folder', 'train', shard_records=4) as writer:
        for i in range(10):
            writer.write({'i': i})
        writer.summary = {'skipped': {'ä.mp4': 'why'}}
    shards = shard_files.list_shards(tmp_path / 'new' / 'folder')
    assert [Path(s).name for s in shards] == [f'train-0000{i}-of-00003.array_record' for i in range(3)]
    assert [record['i'] for record in shard_files.read_records(shards)] == list(range(10))
    assert shard_files.count_records(shards) == 10
    index = json.loads((tmp_path / 'new' / 'folder' / 'train.json').read_text(encoding='utf-8'))
    assert index['records'] == 10
    assert index['skipped'] == {'ä.mp4': 'why'}
    assert len(list((tmp_path / 'new' / 'folder').iterdir())) == 5


def test_record_writer_removes_everything_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / 'a' / 'b', 'train', shard_records=2) as writer:
        for i in range(5):
            writer.write({'i': i})
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_record_writer_replaces_existing_shards_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path, 9, shard_records=3)
    with pytest.raises(ValueError, match=r'already holds 3 shard\(s\) named train'):
        RecordWriter(tmp_path, 'train')
    with pytest.raises(RuntimeError), RecordWriter(tmp_path, 'train', overwrite=True) as writer:
        writer.write({'i': 100})
        raise RuntimeError
    assert [record['i'] for record in shard_files.read_records(shard_files.list_shards(tmp_path))] == list(range(9))
    write(tmp_path, 2, overwrite=True)
    assert [record['i'] for record in shard_files.read_records(shard_files.list_shards(tmp_path))] == [0, 1]
    assert len(list(tmp_path.iterdir())) == 3  # and no shard of the three before
    with RecordWriter(tmp_path, 'heldout') as writer:
        writer.write({'i': 7})
    assert len(shard_files.list_shards(tmp_path)) == 2 and len(shard_files.list_shards(tmp_path, 'heldout')) == 1


def test_record_writer_interrupted_restores_the_old_shards(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, 4, shard_records=2)
    rename, moved = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        moved.append(target)
        if len(moved) == 6:  # four old files are away, one new one is in
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 9, shard_records=3, overwrite=True)
    assert [record['i'] for record in shard_files.read_records(shard_files.list_shards(tmp_path))] == [0, 1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 4


def test_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    write(tmp_path, 6, shard_records=2)
    (tmp_path / 'train-00001-of-00003.array_record').unlink()
    with pytest.raises(ValueError, match=r'train-00001-of-00003.array_record: missing; 2 of 3'):
        shard_files.list_shards(tmp_path)
    with pytest.raises(ValueError, match='no such folder'):
        shard_files.list_shards(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match=r'holds no heldout-\*.array_record shards'):
        shard_files.list_shards(tmp_path, 'heldout')


def test_damaged_shard_is_an_error_that_names_the_record(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, 'train') as writer:
        for i in range(40):
            writer.write({'i': i, 'noise': np.random.default_rng(i).bytes(5000)})
    (shard,) = shard_files.list_shards(tmp_path)
    data = bytearray(Path(shard).read_bytes())
    data[100_000:100_010] = bytes(10)
    Path(shard).write_bytes(data)
    with pytest.raises(ValueError, match=r'train-00000-of-00001.array_record, record (1\d|2\d): damaged'):
        list(shard_files.read_records([shard]))
    Path(shard).write_bytes(data[:150_000])
    with pytest.raises(ValueError, match=r'train-00000-of-00001.array_record: cut off or not an ArrayRecord file'):
        list(shard_files.read_records([shard]))


def test_record_writer_on_a_full_disk_raises_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        'import pathlib, sys\nfrom fv_jax.data.shards.record_writer import RecordWriter\n'
        'try:\n    with RecordWriter(pathlib.Path(sys.argv[1]), "train") as writer:\n'
        '        for i in range(200): writer.write({"x": bytes(100_000)})\n'
        'except OSError as error: print("OSError", error)\n'
    )

    def limit() -> None:  # in the child: files of at most 1 MB, as a full disk would refuse more
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = subprocess.run(
        [sys.executable, '-c', program, str(tmp_path / 'out')],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[3])},
    )
    assert done.stdout.startswith('OSError'), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_shards_can_be_read_while_others_are_written(tmp_path: Path) -> None:
    """Shards are not seen before they are complete."""
    with RecordWriter(tmp_path, 'train') as writer:
        writer.write({'i': 0})
        with pytest.raises(ValueError, match='holds no'):
            shard_files.list_shards(tmp_path)
    assert shard_files.count_records(shard_files.list_shards(tmp_path)) == 1
