"""The manifest of a set of shards: what it states, that no shard is read, and that it belongs to its shards."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fv_jax.data.shards import manifest, source
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.manifest import ManifestWriter, read_manifest
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import list_shards, select_shards
from fv_jax.data.shards.source import Shards

SHARD_RECORDS = 3


def size(i: int) -> dict[str, int]:
    return {'frames': 9 + 8 * (i % 2), 'height': 32, 'width': 48 + 16 * (i % 3 == 0)}


def write(folder: Path, count: int = 8, name: str = 'clips', **more: object) -> list[str]:
    with RecordWriter(folder, name, shard_records=SHARD_RECORDS, overwrite=True) as writer:
        for i in range(count):
            writer.write({'i': i, 'video': b'x' * (i + 1), **size(i), **more})
    return list_shards(folder, name)


@pytest.mark.parametrize('group', [1, 4, 10**6])
def test_manifest_states_records_bytes_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(manifest, '_GROUP_RECORDS', group)
    paths = write(tmp_path, caption='a')
    found = read_manifest(tmp_path / 'clips.parquet', 'clips')
    assert found.records.tolist() == [3, 3, 2] and found.bytes.tolist() == [Path(p).stat().st_size for p in paths]
    assert found.keys == {'i', 'video', 'caption', 'frames', 'height', 'width'}
    expected = [list(size(i).values()) for i in range(8)]
    assert found.sizes().to_array().tolist() == expected
    assert found.sizes(np.array([0, 2])).to_array().tolist() == expected[:3] + expected[6:]
    rows = pyarrow.parquet.read_table(tmp_path / 'clips.parquet').to_pylist()  # for other programs
    assert rows == [{'shard': i // 3, **size(i)} for i in range(8)]


def test_more_columns_of_a_manifest(tmp_path: Path) -> None:
    path, columns = tmp_path / 'x.parquet', {'source': 'string', 'sharp': 'double', 'caption': 'string'}
    writer = ManifestWriter(path, columns)
    flat = {name: [1, 1] for name in ('frames', 'height', 'width')}
    writer.add(10, flat | {'source': ['a', 'b'], 'sharp': [0.5, 1.5], 'caption': [None, 'two']}, ['video'])
    writer.add(20, flat | {'source': ['c', 'd']}, ['video'])
    writer.close('x')
    found = read_manifest(path, 'x')
    assert found.columns() == ('shard', 'frames', 'height', 'width', *columns)
    (group,) = found.read_columns(['source', 'sharp', 'caption'])
    assert group['source'].to_pylist() == ['a', 'b', 'c', 'd']
    assert group['sharp'].to_pylist() == [0.5, 1.5, None, None]
    assert group['caption'].to_pylist() == [None, 'two', None, None]
    with pytest.raises(ValueError, match='has no column blur'):
        list(found.read_columns(['blur']))
    assert manifest.column_type('sharp', 1) == 'double' and manifest.column_type('black', True) == 'bool'
    with pytest.raises(ValueError, match=r'x=.1.: a manifest has numbers, booleans and strings'):
        manifest.column_type('x', [1])


def test_set_with_a_manifest_opens_without_reading_its_shards(tmp_path: Path) -> None:
    paths = write(tmp_path)
    for path in paths:
        Path(path).write_bytes(bytes(Path(path).stat().st_size))
    shards = Shards(paths)
    assert len(shards) == 8 and shards.sizes().to_array()[:, 0].tolist() == [9, 17] * 4
    assert shards.record_name(7) == f'{paths[2]}, record 1'
    with pytest.raises(ValueError, match=r'clips-00001-of-00003.array_record: cut off or not an ArrayRecord file'):
        shards[4]


def test_set_without_manifest_is_read(tmp_path: Path) -> None:
    paths = write(tmp_path)
    (tmp_path / 'clips.parquet').unlink()
    shards = Shards(paths)
    assert [shards[i]['i'] for i in range(8)] == list(range(8))
    assert shards.sizes().to_array().tolist() == [list(size(i).values()) for i in range(8)]


def test_several_sets_and_parts_of_them(tmp_path: Path) -> None:
    first, second = write(tmp_path), write(tmp_path, 4, 'more')
    (tmp_path / 'more.parquet').unlink()
    shards = Shards([*first[1:], *second])
    assert [shards[i]['i'] for i in range(len(shards))] == [*range(3, 8), *range(4)]
    assert shards.sizes().to_array().tolist() == [list(size(i).values()) for i in [*range(3, 8), *range(4)]]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    end = len(data) - 8 - int.from_bytes(data[-8:-4], 'little')  # of the columns
    data[8:end] = bytes(end - 8)
    path.write_bytes(data)


def _write_table(metadata: dict[bytes, bytes], **columns: list) -> object:
    def write_table(path: Path) -> None:
        pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)

    return write_table


def _stated(**more: object) -> dict[bytes, bytes]:
    stated = {'name': 'clips', 'records': [3, 3, 2], 'bytes': [1, 1, 1], 'keys': []}
    return {manifest.FORMAT: json.dumps(stated | more).encode()}


FLAT = {name: pa.array([1] * 8, pa.int32()) for name in ('frames', 'height', 'width')}


def _with(name: str, last: object, kind: pa.DataType | None = None) -> dict[str, object]:
    return FLAT | {name: pa.array([1] * 7 + [last], kind or pa.int32())}


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (_truncate, 'truncated, or not a Parquet file'),
        (_flip, 'damaged|states|lists'),
        (lambda path: path.write_text('file,frames\n'), 'truncated, or not a Parquet file'),
        (lambda path: path.write_bytes(b''), 'truncated, or not a Parquet file'),
        (_write_table({}, **FLAT), 'is not the manifest of a set of shards'),
        (_write_table(_stated(name='other'), **FLAT), "is the manifest of 'other'"),
        (_write_table(_stated(records=[3, 3]), **FLAT), 'states the records of 2 shards and 3 sizes'),
        (_write_table(_stated(records=[3, 3, 3]), **FLAT), 'has 8 rows, and states 9 records'),
        (_write_table(_stated(records=[9, -3, 2]), **FLAT), 'states a negative number'),
        (_write_table(_stated(records=[3, 3, '2']), **FLAT), 'its metadata cannot be read'),
        (_write_table({manifest.FORMAT: b'{'}, **FLAT), 'its metadata cannot be read'),
        (_write_table({manifest.FORMAT: b'[1]'}, **FLAT), 'its metadata cannot be read'),
    ],
)
def test_manifest_that_cannot_be_used_is_one_clear_line(tmp_path: Path, damage, words: str) -> None:
    paths = write(tmp_path)
    damage(tmp_path / 'clips.parquet')
    with pytest.raises(
        ValueError, match=rf'clips.parquet: ({words})[^\n]*; prepare the clips again, or remove'
    ) as error:
        Shards(paths).sizes()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('columns', 'words'),
    [
        (_with('width', -1), 'lists sizes that no clip has'),
        (_with('width', None), 'lists sizes that no clip has'),
        (_with('height', 2**40, pa.int64()), 'lists sizes that no clip has'),
        ({'frames': FLAT['frames']}, 'has no column height, width'),
    ],
)
def test_invalid_sizes_in_a_manifest_are_refused(tmp_path: Path, columns: dict, words: str) -> None:
    _write_table(_stated(), **columns)(tmp_path / 'clips.parquet')
    with pytest.raises(ValueError, match=f'clips.parquet: {words}'):
        read_manifest(tmp_path / 'clips.parquet', 'clips').sizes()


def test_manifest_of_other_shards_is_refused(tmp_path: Path) -> None:
    write(tmp_path / 'a')
    paths = write(tmp_path / 'b', 5)
    (tmp_path / 'b' / 'clips.parquet').write_bytes((tmp_path / 'a' / 'clips.parquet').read_bytes())
    with pytest.raises(ValueError, match=r'clips.parquet: lists 3 shards with 8 records, but clips has 2 shards'):
        Shards(paths)
    (tmp_path / 'b' / 'clips.json').unlink()
    with pytest.raises(ValueError, match=r'clips.parquet: lists 3 shards with 8 records, but clips has 2 shards'):
        Shards(paths)
    write(tmp_path / 'b', 7)
    (tmp_path / 'b' / 'clips.parquet').write_bytes((tmp_path / 'a' / 'clips.parquet').read_bytes())
    with pytest.raises(ValueError, match=r'lists 3 shards with 8 records, .*clips.json states 7 records'):
        Shards(list_shards(tmp_path / 'b'))


def test_shard_of_another_size_is_a_bad_shard(tmp_path: Path) -> None:
    paths = write(tmp_path)
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes() + b'x')
    with pytest.raises(
        ValueError, match=rf'{paths[1]}: cut off or replaced: it has \d+ bytes and clips.parquet states'
    ):
        Shards(paths)
    bad = BadRecords(BadRecordConfig('skip'))
    shards = Shards(paths, bad)
    assert list(bad.found) == [paths[1]] and [shards[i]['i'] for i in range(5)] == [0, 1, 2, 6, 7]
    assert shards.sizes().to_array().tolist() == [list(size(i).values()) for i in (0, 1, 2, 6, 7)]


def test_shard_with_other_records_than_stated_is_a_bad_shard(tmp_path: Path) -> None:
    paths = write(tmp_path)
    writer = ManifestWriter(tmp_path / 'clips.parquet')
    for path, count in zip(paths, (3, 2, 3), strict=True):
        sizes = {'frames': [9] * count, 'height': [32] * count, 'width': [48] * count}
        writer.add(Path(path).stat().st_size, sizes, [])
    writer.close('clips')
    shards = Shards(paths)
    assert shards[0]['i'] == 0
    with pytest.raises(ValueError, match=f'{paths[1]}: has 3 records instead of 2'):
        shards[3]


def test_more_than_99999_shards_are_in_order(tmp_path: Path) -> None:
    names = [f'x-{i:05d}-of-100002.array_record' for i in range(100_002)]
    for name in (names[0], names[99_999], names[100_000]):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r'x-00001-of-100002.array_record: missing; 3 of 100002'):
        list_shards(tmp_path)
    assert select_shards(tmp_path, sorted(names)) == names


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, '_MAX_OPEN', 2)
    paths = write(tmp_path, 30)
    shards = Shards(paths)
    for _ in range(2):
        assert [shards[i]['i'] for i in range(30)] == list(range(30))
    assert len(shards._readers._open) == 2
