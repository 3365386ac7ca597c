"""Statistics of the sets of shards in a folder, from their manifests and tables of units; no shard is read."""

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.files import format_bytes
from fv_jax.core.paths import StoragePath
from fv_jax.data.curation.duplicates import DUPLICATE_OF
from fv_jax.data.preparation.sets import UNITS, read_units
from fv_jax.data.shards import manifest as manifest_lib
from fv_jax.data.shards.manifest import Manifest, read_manifest
from fv_jax.data.shards.shard_files import SHARD, read_index

_MOST = 8  # sizes, reasons or values that are listed


def holds_sets(folder: StoragePath) -> bool:
    """Returns whether a folder has shards."""
    return any(SHARD.fullmatch(path.name) for path in files.list_folder(folder))


def describe_sets(folder: StoragePath) -> Iterator[str]:
    """Yields lines about each set of shards in a folder.

    Raises:
      ValueError: a set has no manifest, or it is damaged.
    """
    names = {match['name'] for path in files.list_folder(folder) if (match := SHARD.fullmatch(path.name))}
    for name in sorted(names):
        path = folder / f'{name}{manifest_lib.SUFFIX}'
        require(path.exists(), f'{path}: does not exist; `prepare` writes it')
        yield from _describe_set(folder, read_manifest(path, name))


def _describe_set(folder: StoragePath, manifest: Manifest) -> Iterator[str]:
    index = read_index(folder / f'{manifest.name}.json')
    shards, clips = len(manifest.records), int(manifest.records.sum())
    yield f'{folder / manifest.name}: {clips:,} clips in {shards:,} shards, {format_bytes(int(manifest.bytes.sum()))}'
    yield f'  records: {", ".join(sorted(manifest.keys))}'
    for kind in ('latents', 'text'):
        if kind in index:
            yield f'  {kind} of {index[kind].get("vae" if kind == "latents" else "digest")}'
    sizes = collections.Counter(map(tuple, manifest.sizes().to_array().tolist()))
    yield f'  size: {_list_counts({f"{f}x{h}x{w}": count for (f, h, w), count in sizes.items()})}'
    if 'first_seconds' in manifest.columns():
        yield from _describe_videos(manifest)
    if DUPLICATE_OF in manifest.columns():
        groups = manifest.read_columns([DUPLICATE_OF])
        yield f'  near duplicates: {sum(len(group[DUPLICATE_OF].drop_null()) for group in groups):,} clips'
    known = {'shard', 'hash', DUPLICATE_OF, *manifest_lib.SIZE, *manifest_lib.CLIP_COLUMNS}
    for column in manifest.columns():
        if column not in known:
            values = [group[column] for group in manifest.read_columns([column])]
            yield f'  {column}: {_describe_values([value for part in values for value in part.to_pylist()])}'
    yield from _describe_units(folder / f'{manifest.name}{UNITS}')


def _describe_videos(manifest: Manifest) -> Iterator[str]:
    sources, rates = collections.Counter(), collections.Counter()
    seconds, captions = 0.0, 0
    for group in manifest.read_columns(['source', 'first_seconds', 'last_seconds', 'fps', 'caption']):
        sources.update(group['source'].to_pylist())
        rates.update(f'{rate:g}' for rate in group['fps'].to_pylist())
        seconds += float((group['last_seconds'].to_numpy() - group['first_seconds'].to_numpy()).sum())
        captions += len(group['caption']) - group['caption'].null_count
    counts = np.array([*sources.values(), 0][: max(len(sources), 1)])
    few, median, many = counts.min(), np.median(counts), counts.max()
    yield f'  videos: {len(sources):,}, with {few} to {many} clips, {median:g} in the median'
    yield f'  length: {seconds / 3600:.4g} hours'
    yield f'  frames per second: {_list_counts(rates)}'
    yield f'  captions: of {captions:,} clips'


def _describe_values(values: list[Any]) -> str:
    present = [value for value in values if value is not None]
    missing = f'; {len(values) - len(present):,} without' if len(present) < len(values) else ''
    if not present:
        return 'none'
    if isinstance(present[0], bool):
        return f'true for {sum(present):,} of {len(present):,}{missing}'
    if isinstance(present[0], str):
        return _list_counts(collections.Counter(present)) + missing
    quantiles = np.nanquantile(np.array(present, float), [0, 0.1, 0.5, 0.9, 1])
    names = ('minimum', '10 %', 'median', '90 %', 'maximum')
    return ', '.join(f'{name} {value:.4g}' for name, value in zip(names, quantiles, strict=True)) + missing


def _describe_units(path: StoragePath) -> Iterator[str]:
    if not path.exists():
        return
    columns = read_units(path, ('clips', 'black', 'empty', 'failed', 'damaged'))
    used = sum(count > 0 for count in columns['clips'])
    black = sum(columns['black'])
    yield f'  units: {len(columns["clips"]):,}, of which {used:,} have clips; {black:,} black clips dropped'
    for name in ('empty', 'failed', 'damaged'):
        reasons = collections.Counter(text.partition(';')[0] for text in columns[name] if text)
        if reasons:
            yield f'  {name}: {_list_counts(reasons)}'


def _list_counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    more = f', {len(ordered) - _MOST} more' if len(ordered) > _MOST else ''
    return ', '.join(f'{name} ({count:,})' for name, count in ordered[:_MOST]) + more
