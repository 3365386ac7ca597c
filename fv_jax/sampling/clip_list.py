"""Enhances a list of clips on disk: continues it, and names at the end what failed."""

import collections
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from fv_jax.core.files import remove_partial
from fv_jax.data.video.encoding import Codec
from fv_jax.parallel import distributed
from fv_jax.sampling import clip_outputs, existing
from fv_jax.sampling.clip_outputs import ClipOutput
from fv_jax.sampling.clip_sources import ClipSource
from fv_jax.sampling.clips import EnhancedClip
from fv_jax.sampling.metadata import GenerationMetadata
from fv_jax.sampling.prompt_list import ERRORS, ListProgress
from fv_jax.sampling.settings import ClipSettings, EnhanceSettings
from fv_jax.sampling.text_to_video import Pipeline

log = logging.getLogger(__name__)


class ClipJob(NamedTuple):
    """How clips are enhanced and written. The fields are those of `Pipeline.enhance_clip` and `write_output`."""

    fv: Pipeline
    seed: int
    settings: EnhanceSettings
    clip_settings: ClipSettings
    codec: Codec
    crf: float

    def enhance(self, source: ClipSource, output: ClipOutput) -> None:
        """Enhances one clip and writes it; only the first process writes. Raises ValueError or OSError."""
        clip, info = source.open()
        enhanced = self.fv.enhance_clip(clip, self.seed, self.settings, self.clip_settings)
        height, width = enhanced.size
        log.info(
            f'{source.path}: {clip.size[0]}x{clip.size[1]} to {height}x{width}, {enhanced.num_steps} step(s) of '
            f'{self.fv.stage2.name}, windows of {enhanced.windows.frames} frame(s)'
        )
        for note in enhanced.notes:
            log.info(f'{source.path}: {note}')
        comment = self._finish_metadata(enhanced.metadata()).to_json()
        started, blocks = time.monotonic(), _with_bar(enhanced)
        if distributed.is_first_process():
            file = {'codec': self.codec, 'crf': self.crf, 'comment': comment}
            try:
                count = clip_outputs.write_output(output, blocks, source, info, clip, **file)
            except ERRORS:
                if jax.process_count() > 1:  # the other processes compute the rest, which takes all of them
                    collections.deque(blocks, maxlen=0)
                raise
        else:
            count = sum(map(len, blocks))
        seconds = time.monotonic() - started
        speed = f'{count} frame(s) in {seconds:.1f} s, {count / seconds:.2f} frames/s'
        log.info(f'{output.path}: {height}x{width}, {speed}')

    def want(self, source: ClipSource, found: GenerationMetadata) -> GenerationMetadata:
        """Returns the metadata that an output should have; not compared are the weights, if their origin is the same.

        Raises ValueError for a source that cannot be read.
        """
        clip, _ = source.open()
        weights = existing.UNKNOWN_WEIGHTS
        if found.enhance is not None:
            weights = found.enhance.weights if found.origin == self.fv.origin else self.fv.stage2.weight_digests
        made = self.fv.clip_metadata(clip, self.seed, weights, self.settings, self.clip_settings)
        return self._finish_metadata(made)

    def _finish_metadata(self, made: GenerationMetadata) -> GenerationMetadata:
        return dataclasses.replace(made, crf=float(self.crf), codec=self.codec)


def find_existing_clips(
    job: ClipJob, sources: Sequence[ClipSource], outputs: Sequence[ClipOutput], overwrite: bool
) -> dict[int, GenerationMetadata]:
    """Finds the outputs that exist as `enhance_clips` would write them, by their index.

    Raises:
      UsageError: without `overwrite`: an output that exists and differs.
    """
    paths = [output.path for output in outputs]
    by_path = dict(zip(paths, outputs, strict=True))

    def want(i: int, found: GenerationMetadata) -> GenerationMetadata:
        try:
            return job.want(sources[i], found)
        except ERRORS:
            return found  # what cannot be read now was enhanced earlier

    return existing.find_existing(paths, lambda path: by_path[path].read_metadata(), want, overwrite)


def enhance_clips(
    job: ClipJob,
    sources: Sequence[ClipSource],
    outputs: Sequence[ClipOutput],
    found: Mapping[int, GenerationMetadata],
) -> ListProgress:
    """Enhances the clips whose outputs do not exist, one after the other; a clip that fails does not end the list.

    Returns what was made and what failed.

    Raises:
      ValueError: the weights cannot be loaded.
      OSError: nothing can be written.
    """
    progress = ListProgress('clip', [str(source.path) for source in sources], len(found))
    if len(found) < len(sources):
        _ = job.fv.stage2.weight_digests  # loads the network: if it cannot be, no clip is to blame
    if distributed.is_first_process():
        remove_partial(output.path for output in outputs)
    for i, (source, output) in enumerate(zip(sources, outputs, strict=True)):
        if i in found:
            continue
        try:
            job.enhance(source, output)
        except ERRORS as error:
            # Errors of reading name the file and are ValueErrors; others may have a cause of all, such as a full disk.
            progress.add_failed([i], error, odd=not isinstance(error, OSError))
        else:
            progress.add_success()
            progress.made.append(i)
        progress.log_time_left()
    return progress


def _with_bar(enhanced: EnhancedClip) -> Iterator[np.ndarray]:
    """Shows a progress bar that counts blocks, one per window."""
    options = {'unit': 'window', 'mininterval': 0.1 if sys.stderr.isatty() else 10, 'dynamic_ncols': True}
    shown = distributed.is_first_process()
    return iter(tqdm.tqdm(enhanced.blocks(), total=enhanced.num_windows, disable=not shown, **options))
