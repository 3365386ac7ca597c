"""Finds the outputs of a list that exist, so that the same command makes the rest alone.

Their metadata is compared with what the command would write.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fv_jax.core.checks import require
from fv_jax.core.command_line import UsageError
from fv_jax.core.config import to_dict
from fv_jax.core.files import map_paths
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import containers
from fv_jax.parallel import distributed
from fv_jax.sampling import metadata
from fv_jax.sampling.metadata import GenerationMetadata, WeightDigests

# (index, metadata of the output that exists) -> the metadata to write. What is not compared is that of the output.
Want = Callable[[int, GenerationMetadata], GenerationMetadata]
UNKNOWN_WEIGHTS = WeightDigests('', '', '')  # where an output states none
OVERWRITE = 'choose another folder or pass --overwrite'


def read_mp4(path: StoragePath) -> GenerationMetadata:
    """Reads the metadata of an mp4. Raises ValueError if it has none, and for an enhanced clip."""
    made = metadata.from_json(containers.read_comment(path))
    require(made.preview is not None, 'is an enhanced clip')
    return made


def find_existing(
    outputs: Sequence[StoragePath],
    read: Callable[[StoragePath], GenerationMetadata],
    want: Want,
    overwrite: bool,
    marker: str = '',
) -> dict[int, GenerationMetadata]:
    """Finds the outputs that exist as a call would write them.

    Args:
      outputs: the files or folders of a list.
      read: reads the metadata of one; raises ValueError if it has none.
      want: see `Want`.
      overwrite: whether an output that differs is omitted, to be written again, instead of refused.
      marker: the file without which a folder does not count as existing.

    Returns:
      Their metadata, by their index.

    Raises:
      UsageError: without `overwrite`: an output that exists and differs.
    """

    def find(output: StoragePath) -> GenerationMetadata | None:
        if not (output / marker).exists():
            return None
        try:
            return read(output)
        except ValueError as error:
            reason = str(error).removeprefix(f'{output}: ')
            require(overwrite, f'{output}: already exists and cannot be kept ({reason}); {OVERWRITE}', UsageError)
            return None

    existing = {i: found for i, found in enumerate(map_paths(find, outputs)) if found is not None}
    distributed.check_same(
        str([outputs[i] for i in existing]),
        'the processes see different outputs; write to a folder that all of them share',
    )
    return keep_wanted(existing, outputs, want, overwrite)


def keep_wanted(
    existing: Mapping[int, GenerationMetadata],
    outputs: Sequence[StoragePath],
    want: Want,
    overwrite: bool,
    fix: str = OVERWRITE,
) -> dict[int, GenerationMetadata]:
    """Returns those that are as a call would write them. fix: of the message. Raises UsageError as `find_existing`."""
    kept = {}
    for i, found in existing.items():
        reason = _compare(_comparable(found), _comparable(want(i, found)))
        require(overwrite or not reason, f'{outputs[i]}: {reason}; {fix}', UsageError)
        kept |= {} if reason else {i: found}
    return kept


def _comparable(made: GenerationMetadata) -> dict[str, Any]:
    # Not the version and the origin: the digests say which weights these are.
    return to_dict(dataclasses.replace(made, version='', origin=metadata.WeightsOrigin()))


def _compare(found: Any, wanted: Any, path: str = '') -> str:
    """Returns the first difference of two nested dicts, or ''."""
    if path == 'enhance' and (found is None) != (wanted is None):
        return f'already exists, and is {"a preview" if found is None else "an enhanced video"}'
    if isinstance(found, dict) and isinstance(wanted, dict):
        fields = (_compare(found.get(name), wanted[name], f'{path}.{name}' if path else name) for name in wanted)
        return next(filter(None, fields), '')
    return '' if found == wanted else f'already exists, made with {path}={found} instead of {wanted}'
