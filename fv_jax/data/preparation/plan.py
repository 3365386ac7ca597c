"""The plan of a set of shards, and the folder in which the set is made: OUTPUT/.NAME.partial.

  plan.parquet            one row a unit, with the number of its shard; the metadata holds `Header`
  NUMBER.array_record     a shard that is complete
  NUMBER.json             its `ShardResult`, written after it

Every file appears at once or not at all. A shard whose two files exist is never made again: a process that is killed
loses the shards that it was making. Any number of processes can make shards of one plan.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from fv_jax.core import config as config_lib
from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.files import parse_json
from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath
from fv_jax.data.preparation.make_shard import Encoders, Progress, ShardResult, UnitResult, make_shard
from fv_jax.data.preparation.units import Unit, group_units
from fv_jax.data.shards.shard_files import SUFFIX
from fv_jax.data.video.clips import ClipsConfig

PLAN = 'plan.parquet'
_FORMAT = b'fv_jax.plan'
_CHUNK = 256  # results that are read at once
_COLUMNS = {'source': 'string', 'path': 'string', 'bytes': 'int64', 'first': 'double', 'last': 'double'} | {
    'caption': 'string',
    'part': 'int32',
    'shard': 'int32',
}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a plan states besides its units.

    Attributes:
      name: of the set.
      made_with: the configuration and the fingerprints of encoders, as JSON gives them back.
      replaces: whether the set replaces those that exist.
      skipped: file -> why it gives no units.
      captions: what is odd about the tables of captions, in lines.
    """

    name: str
    made_with: dict[str, Any]
    replaces: bool = False
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    captions: list[str] = dataclasses.field(default_factory=list)


class Plan:
    """A plan in its folder.

    Attributes:
      folder: OUTPUT/.NAME.partial.
      header: what it states.
      config: of the clips.
      num_shards: how many there are.
    """

    def __init__(self, folder: StoragePath):
        """Reads a plan. Raises ValueError if it is damaged, OSError if it cannot be read."""
        import pyarrow
        import pyarrow.parquet

        self.folder = folder
        path = folder / PLAN
        try:
            with open_copy(path) as local:
                self._table = pyarrow.parquet.read_table(local)
            header = parse_json(self._table.schema.metadata[_FORMAT])
            self.header = Header(**header)
            self.config = config_lib.build(ClipsConfig, self.header.made_with['config'])
            shards = self._table['shard'].to_numpy()
        except (pyarrow.ArrowException, ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}: cannot be read ({error}); remove {folder} to begin again') from None
        self.num_shards = int(shards[-1]) + 1 if len(shards) else 0
        self._starts = shards.searchsorted(range(self.num_shards + 1)).tolist()

    def units(self, number: int) -> list[Unit]:
        """Returns the units of a shard."""
        start, end = self._starts[number : number + 2]
        rows = self._table.slice(start, end - start).drop_columns(['shard']).to_pylist()
        return [Unit(**row) for row in rows]

    def bytes_of(self, numbers: Sequence[int]) -> int:
        """Returns the size of the files of some shards' units."""
        sizes = self._table['bytes'].to_numpy()
        return sum(int(sizes[self._starts[n] : self._starts[n + 1]].sum()) for n in numbers)

    def missing(self) -> list[int]:
        """Returns the numbers of the shards that are not complete."""
        names = {path.name for path in files.list_folder(self.folder)}
        return [n for n in range(self.num_shards) if not {_shard(n), _result(n)} <= names]

    def make(self, number: int, encoders: Encoders | None = None, progress: Progress | None = None) -> None:
        """Makes a shard. Raises OSError if it cannot be written, or object storage does not answer."""
        with files.atomic_write(self.folder / _shard(number)) as path:
            result = make_shard(self.units(number), self.config, path, encoders, progress)
        files.write_bytes(self.folder / _result(number), json.dumps(dataclasses.asdict(result)).encode())

    def shard(self, number: int) -> StoragePath:
        """Returns the path of a complete shard."""
        return self.folder / _shard(number)

    def results(self) -> Iterator[ShardResult]:
        """Yields the results of the shards, in order. Raises OSError."""
        for start in range(0, self.num_shards, _CHUNK):
            numbers = range(start, min(start + _CHUNK, self.num_shards))
            yield from files.map_paths(_read_result, [self.folder / _result(n) for n in numbers])

    def remove_unfinished(self) -> None:
        """Removes what killed processes left of files that they were writing."""
        files.remove_partial([self.folder / _shard(n) for n in range(self.num_shards)])


def write_plan(folder: StoragePath, header: Header, units: Sequence[Unit], config: ClipsConfig) -> Plan:
    """Writes a plan and returns it.

    Args:
      folder: OUTPUT/.NAME.partial; created if it does not exist.
      header: what the plan states.
      units: at least one.
      config: of the clips.

    Raises:
      OSError: it cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    require(units, 'a plan has at least one unit')
    rows = {name: [getattr(unit, name) for unit in units] for name in _COLUMNS if name != 'shard'}
    rows['shard'] = group_units(units, config.shard_mb)
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
    schema = schema.with_metadata({_FORMAT: json.dumps(dataclasses.asdict(header)).encode()})
    files.make_folder(folder)
    with files.atomic_write(folder / PLAN) as path:
        pyarrow.parquet.write_table(pyarrow.table(rows, schema=schema), path, compression='zstd')
    return Plan(folder)


def _shard(number: int) -> str:
    return f'{number:07d}{SUFFIX}'


def _result(number: int) -> str:
    return f'{number:07d}.json'


def _read_result(path: StoragePath) -> ShardResult:
    found = parse_json(path.read_bytes())
    return ShardResult(**found | {'units': [UnitResult(**unit) for unit in found['units']]})


def last_second(unit: Unit) -> float | None:
    """Returns where a unit ends in seconds; None for the end of the video."""
    return unit.last if unit.last < math.inf else None
