"""The data source of shards in object storage."""

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from fv_jax.core import files
from fv_jax.core.paths import StoragePath
from fv_jax.core.storage.store import FileInfo
from fv_jax.data.shard_order import ShardLayout
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.shards.shard_cache import RemoteShard, ShardCache
from fv_jax.data.shards.shard_files import select_shards
from fv_jax.data.shards.source import Shards


class RemoteShards(Shards):
    """Records of the shards in a remote folder, which are fetched whole when they are read.

    Attributes:
      cache: holds the shards that are read.
    """

    def __init__(
        self,
        folder: StoragePath,
        cache: ShardCache,
        window: int,
        bad: BadRecords | None = None,
        name: str | None = None,
    ):
        """Lists the shards of a folder; with a manifest, none is fetched.

        Args:
          folder: of one set of shards or more.
          cache: fetches and holds shards.
          window: how many shards are mixed with each other (`shard_order.py`).
          bad: as of `Shards`.
          name: of one set; None takes all sets.

        Raises:
          ValueError, OSError: as of `Shards`; or the folder cannot be reached.
        """
        files.check_reachable(folder)
        listing = files.list_files(folder)
        names = select_shards(folder, listing, name)
        access = _RemoteAccess({f'{folder}/{name}': listing[name] for name in names}, cache)
        self._open(list(access.infos), access, bad)
        self._infos = [access.infos[path] for path in self.paths]
        self.cache, self._window = cache, window

    def layout(self) -> ShardLayout:
        """Returns how the records are divided into shards."""
        sizes = np.array([info.size for info in self._infos])
        return ShardLayout(self._records, sizes, self._window)

    def remote_shard(self, index: int) -> RemoteShard:
        """Returns the shard that must be fetched for a record."""
        shard, _ = self._locate(index)
        return self._remote_shard(shard)

    def _remote_shard(self, shard: int) -> RemoteShard:
        return RemoteShard(self.paths[shard], self._infos[shard], int(self._records[shard]))

    def _reader(self, shard: int) -> ArrayRecordReader:
        return self.cache.open(self._remote_shard(shard))


class _RemoteAccess:
    """Access to shards by what their listing states; infos: by URL."""

    def __init__(self, infos: dict[str, FileInfo], cache: ShardCache):
        self.infos, self._cache = infos, cache

    def size(self, path: str) -> int:
        return self.infos[path].size

    def count_records(self, path: str, stated: int | None) -> int:
        """Fetches the shard if its NAME.json does not state the number, and so do those of old sets."""
        return self._cache.open(RemoteShard(path, self.infos[path], None)).num_records() if stated is None else stated
