"""A sample of the clips that `prepare` would write, to see what a filter keeps of them before all are made."""

import contextlib
import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.curation.captioner import CaptionerConfig
from fv_jax.data.curation.clip_table import ClipTable
from fv_jax.data.even_indices import even_indices
from fv_jax.data.preparation import sets
from fv_jax.data.preparation.outcome import summarize
from fv_jax.data.preparation.plan import Header, Plan, write_plan
from fv_jax.data.preparation.units import Footage, plan_units
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards
from fv_jax.data.video.clips import ClipsConfig

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_sample(
    videos: Mapping[str, tuple[StoragePath, int]],
    config: ClipsConfig,
    count: int,
    make: Callable[[Plan, Sequence[int]], None],
) -> Iterator[ClipTable]:
    """A context with the clips of some units, in a temporary folder, as videos without captions.

    Args:
      videos: name of a video -> its path and its size in bytes.
      config: of the clips.
      count: of the units, which are evenly spaced among all; all of them where there are fewer.
      make: makes shards of a plan, those of the given numbers.

    Yields:
      The clips and their scores.

    Raises:
      ValueError: none of the units gives a clip.
      OSError: a file cannot be written.
    """
    config = dataclasses.replace(config, captioner=CaptionerConfig())
    footage = {name: Footage(path, size, None) for name, (path, size) in videos.items()}
    units = plan_units(footage, config)
    chosen = even_indices(len(units), count)
    made_with = {'config': json.loads(json.dumps(config_lib.to_dict(config)))}
    header = Header(config.name, made_with)
    with tempfile.TemporaryDirectory() as folder:
        work_folder = sets.work_folder(Path(folder), config.name)
        plan = write_plan(work_folder, header, [units[i] for i in chosen], config)
        make(plan, plan.missing())
        outcome = summarize(plan)
        reasons = '; '.join(f'{name}: {reason}' for name, reason in list(outcome.skipped.items())[:3])
        require(outcome.records, f'no clips in {len(chosen)} of {len(units)} units: {reasons}')
        log.info(f'{len(chosen)} of {len(units)} units; skipped: {len(outcome.skipped)} file(s)')
        sets.write_set(plan, (), made_with)
        yield ClipTable(Shards(list_shards(folder)))
