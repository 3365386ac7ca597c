"""The sets of shards of one name in a folder, and how a complete plan becomes one.

The first set is NAME; what later footage adds are the sets NAME.1, NAME.2, and so on. A set consists of its shards, its
manifest and two more files:

  NAME.json            what is known of it as a whole; written last
  NAME.units.parquet   one row a unit: source, bytes, first_seconds and last_seconds (null at the end of the video), the
                       number of its shard (null without clips), clips, black, and the texts empty, failed, damaged and
                       truncated of `UnitResult`, null for nothing

A complete plan is published by renaming: PUBLISH, in its folder, lists what is to be done, and whoever finds it does
what is left of that. Shards without clips are dropped.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fv_jax.core import files
from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath
from fv_jax.data.curation.duplicates import DUPLICATE_OF, find_duplicates
from fv_jax.data.curation.scores import COLUMN_TYPES
from fv_jax.data.preparation.plan import PLAN, Plan, last_second
from fv_jax.data.shards import manifest
from fv_jax.data.shards.shard_files import SHARD, read_index, shard_name

UNITS = '.units.parquet'
PUBLISH = 'publish.json'
_TEXTS = ('empty', 'failed', 'damaged', 'truncated')
_UNIT_COLUMNS = {
    **{'source': 'string', 'bytes': 'int64', 'first_seconds': 'double', 'last_seconds': 'double', 'shard': 'int32'},
    **{'clips': 'int32', 'black': 'int32'},
    **dict.fromkeys(_TEXTS, 'string'),
}
_REMOVED = '.removed'
_ROWS = 2**16  # of a group of the table of units


@dataclasses.dataclass(frozen=True)
class Sets:
    """The sets of one name in a folder.

    Attributes:
      folder: the output.
      name: of the first set.
      names: of the complete sets, in order.
      files: the names of all files of these sets, and of incomplete ones.
    """

    folder: StoragePath
    name: str
    names: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def work_folder(self) -> StoragePath:
        """The folder of a plan that is not complete."""
        return work_folder(self.folder, self.name)

    @property
    def next_name(self) -> str:
        """The name of the next set."""
        return f'{self.name}.{len(self.names)}' if self.names else self.name

    def indexes(self) -> dict[str, dict[str, Any]]:
        """Reads the NAME.json of each set. Raises ValueError for an invalid one."""
        return {name: read_index(self.folder / f'{name}.json') for name in self.names}

    def read_sources(self) -> dict[str, int]:
        """Returns the videos that the sets were made of, with or without clips: name -> bytes of the file.

        Raises:
          ValueError: a set was not made by `prepare`, or its table of units is damaged.
        """
        found: dict[str, int] = {}
        for name in self.names:
            path = self.folder / f'{name}{UNITS}'
            if not path.exists():
                raise ValueError(f'{path}: does not exist, so that {name} cannot be continued; --overwrite replaces it')
            for source, size in zip(*read_units(path, ('source', 'bytes')).values(), strict=True):
                found[source] = found.get(source, 0) + size
        return found


def work_folder(folder: StoragePath, name: str) -> StoragePath:
    """Returns the folder of a plan for sets of a name in an output folder."""
    return folder / f'.{name}.partial'


def read_units(path: StoragePath, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Reads columns of NAME.units.parquet, by name. Raises ValueError: the file is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        with open_copy(path) as local:
            table = pyarrow.parquet.read_table(local, columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{path}: cannot be read: {error}') from None
    return {name: table[name].to_pylist() for name in columns}


def find_sets(folder: StoragePath, name: str) -> Sets:
    """Finds the sets of a name, after what is left of an interrupted publication is done."""
    partial = work_folder(folder, name)
    publish(partial)
    if partial.is_dir() and not (partial / PLAN).exists():
        discard(partial)  # a process was killed when it began, or when it removed this
    return Sets(folder, name, find_names(folder, name), find_files(folder, name))


def find_names(folder: StoragePath, name: str) -> tuple[str, ...]:
    """Returns the names of the complete sets of a name in a folder, in order."""
    names = [file.removesuffix('.json') for file in find_files(folder, name) if file.endswith('.json')]
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def find_files(folder: StoragePath, name: str) -> tuple[str, ...]:
    """Returns the names of all files of the sets of a name in a folder."""
    own = re.compile(re.escape(name) + r'(\.[1-9][0-9]*)?')
    found = []
    for file in sorted(path.name for path in files.list_folder(folder)):
        shard = SHARD.fullmatch(file)
        end = next((end for end in (UNITS, manifest.SUFFIX, '.json') if file.endswith(end)), '')
        if (shard or end) and own.fullmatch(shard['name'] if shard else file.removesuffix(end)):
            found.append(file)
    return tuple(found)


def write_set(plan: Plan, replaced: tuple[str, ...], summary: Mapping[str, Any]) -> None:
    """Writes the files of the set of a complete plan, and publishes it.

    Args:
      plan: all of its shards are complete, and at least one has clips.
      replaced: the names of the files in the output folder that the set replaces.
      summary: JSON values of NAME.json.

    Raises:
      OSError: a file cannot be written.
    """
    name, folder = plan.header.name, plan.folder
    numbers, records = _write_manifest(plan)
    _write_units(plan, numbers)
    index = {'name': name, 'records': records, **summary}
    text = json.dumps(index, indent=1, ensure_ascii=False) + '\n'
    # Names of files may hold bytes that are not UTF-8; they become escapes of JSON.
    files.write_bytes(folder / 'index', text.encode(errors='backslashreplace'))
    moves = [(plan.shard(n).name, shard_name(name, i, len(numbers))) for n, i in numbers.items()]
    moves += [('manifest', name + manifest.SUFFIX), ('units', name + UNITS), ('index', f'{name}.json')]
    removed = sorted(set(replaced) - {target for _, target in moves})
    files.write_bytes(folder / PUBLISH, json.dumps({'moves': moves, 'removed': removed}).encode())
    publish(folder)


def publish(folder: StoragePath) -> None:
    """Does what PUBLISH in the folder of a plan lists, and removes the folder; nothing without that file."""
    if not (folder / PUBLISH).exists():
        return
    stated, present = json.loads((folder / PUBLISH).read_bytes()), {path.name for path in files.list_folder(folder)}
    moves = [move for move in stated['moves'] if move[0] in present]
    # The old NAME.json first and the new one last: without it a set counts as incomplete.
    old = [*stated['removed'], *(target for _, target in moves[-1:])]
    for name in sorted(old, key=lambda name: not name.endswith('.json')):
        (folder.parent / name).unlink(missing_ok=True)
    files.map_paths(lambda move: (folder / move[0]).rename(folder.parent / move[1]), moves[:-1])
    for source, target in moves[-1:]:
        (folder / source).rename(folder.parent / target)
    discard(folder)


def discard(folder: StoragePath) -> None:
    """Removes the folder of a plan."""
    removed = folder.with_name(folder.name + _REMOVED)
    if removed.is_dir():
        files.remove_folder(removed)  # left by a process that was killed
    files.remove_folder(folder, PLAN, _REMOVED)


def _write_manifest(plan: Plan) -> tuple[dict[int, int], int]:
    """Writes the manifest; returns the numbers in the set of the shards that have clips, and the number of records."""
    columns: dict[str, str] = {}
    for result in plan.results():
        for row in result.rows:
            columns |= {name: manifest.column_type(name, value) for name, value in row.items() if value is not None}
    known = manifest.CLIP_COLUMNS | COLUMN_TYPES | {DUPLICATE_OF: 'int64'}
    columns = known | {name: kind for name, kind in columns.items() if name not in {*manifest.SIZE, *known}}
    marks = iter(_find_duplicates(plan))
    numbers, records = {}, 0
    with files.atomic_write(plan.folder / 'manifest') as path:
        writer = manifest.ManifestWriter(path, columns)
        for number, result in enumerate(plan.results()):
            if result.rows:
                numbers[number] = len(numbers)
                records += len(result.rows)
                values = {name: [row.get(name) for row in result.rows] for name in (*columns, *manifest.SIZE)}
                values[DUPLICATE_OF] = list(itertools.islice(marks, len(result.rows)))
                writer.add(result.bytes, values, result.keys)
        writer.close(plan.header.name)
    return numbers, records


def _find_duplicates(plan: Plan) -> Iterator[int | None]:
    """Yields for each clip the number of the clip that it is a near duplicate of, None for others.

    The clips of earlier sets of the name come first, so that their marks do not change.
    """
    hashes, sources = [], []
    earlier = () if plan.header.replaces else find_names(plan.folder.parent, plan.header.made_with['config']['name'])
    for name in earlier:
        found = manifest.read_manifest(plan.folder.parent / f'{name}{manifest.SUFFIX}', name)
        if 'hash' not in found.columns():  # of an earlier version
            hashes += [None] * int(found.records.sum())
            sources += [None] * int(found.records.sum())
            continue
        for group in found.read_columns(['hash', 'source']):
            hashes += group['hash'].to_pylist()
            sources += group['source'].to_pylist()
    before = len(hashes)
    for result in plan.results():
        hashes += [row.get('hash') for row in result.rows]
        sources += [row['source'] for row in result.rows]
    return (None if mark < 0 else int(mark) for mark in find_duplicates(hashes, sources)[before:])


def _write_units(plan: Plan, numbers: Mapping[int, int]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in _UNIT_COLUMNS.items()])
    with files.atomic_write(plan.folder / 'units') as path, pyarrow.parquet.ParquetWriter(path, schema) as writer:
        rows = []
        for row in _unit_rows(plan, numbers):
            rows.append(row)
            if len(rows) == _ROWS:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                rows.clear()
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _unit_rows(plan: Plan, numbers: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    for number, result in enumerate(plan.results()):
        for unit, outcome in zip(plan.units(number), result.units, strict=True):
            yield {
                'source': unit.source,
                'bytes': unit.bytes,
                'first_seconds': unit.first,
                'last_seconds': last_second(unit),
                'shard': numbers.get(number) if outcome.clips else None,
                'clips': outcome.clips,
                'black': outcome.black,
                **{name: _utf8(getattr(outcome, name)) for name in _TEXTS},
            }


def _utf8(text: str) -> str | None:
    return text.encode(errors='backslashreplace').decode() or None


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str = '') -> Iterator[str]:
    """Yields 'FIELD is X there and Y here' for each value of nested dicts that differs.

    Args:
      found: of a set that exists.
      wanted: of this command.
      path: of the dicts, with dots.
    """
    for key in dict.fromkeys([*wanted, *found]):
        there, here, where = found.get(key), wanted.get(key), f'{path}.{key}' if path else str(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from differences(there, here, where)
        elif there != here:
            yield f'{where} is {there!r} there and {here!r} here'
