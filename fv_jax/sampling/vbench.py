"""Videos for VBench (arXiv 2311.17982), in the layout that its evaluation reads.

As its guide has it (https://github.com/Vchitect/VBench/blob/master/prompts/README.md, "How to Sample Videos for
Evaluation"): N videos of each prompt, each with a random seed of its own, in one folder as

    {prompt}-{index}.mp4        index 0 ... N - 1

N is 5, and 25 for the dimension temporal_flickering, of whose videos VBench leaves out those that do not move. Prompts
come from prompts/all_dimension.txt, prompts/prompts_per_dimension/*.txt (one per line) or vbench/VBench_full_info.json,
a list of {"prompt_en": ..., "dimension": [...]}. The mp4 records its seed, as VBench recommends.

Files are written atomically and hold their generation metadata, so that a list can be continued at any time: what was
made with the same settings and weights is not made again.
"""

import dataclasses
import logging
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.config import did_you_mean, to_dict
from fv_jax.core.files import parse_json
from fv_jax.core.hashing import fingerprint
from fv_jax.data.video import video_io
from fv_jax.sampling import batch, metadata, prompts
from fv_jax.sampling.metadata import EnhanceMetadata, PreviewMetadata
from fv_jax.sampling.results import Preview
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.text_to_video import Pipeline

log = logging.getLogger(__name__)

NUM_SAMPLES = 5
MAX_NAME_BYTES = 255  # of a file name, on ext4, XFS, APFS and NTFS
GROUP = 32  # videos between two uses of the text encoder; an interrupt loses at most their previews


class Sample(NamedTuple):
    """A video to generate. seed: of both stages. output: its mp4."""

    prompt: str
    seed: int
    output: Path


def read_prompts(path: Path, dimensions: Sequence[str] = ()) -> list[str]:
    """Reads VBench's prompts from a text file, or from a JSON file of its full information, each prompt once.

    Args:
      path: ends in .json for JSON.
      dimensions: of a JSON file: only prompts of one of these dimensions; all for none.

    Raises:
      ValueError: the file cannot be read, is of neither format, or has no prompts; the message names the file.
    """
    if path.suffix.lower() != '.json':
        require(not dimensions, f'{path}: a text file states no dimensions; give VBench_full_info.json')
        return list(dict.fromkeys(prompts.read_prompts(path)))
    try:
        entries = parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f'{path}: {error.strerror or error}') from None
    except ValueError as error:
        raise ValueError(f'{path}: is not JSON ({error})') from None
    require(isinstance(entries, list) and entries, f'{path}: must be a list of prompts, as VBench_full_info.json is')
    read = [_read_entry(entry, f'{path}: entry {i}') for i, entry in enumerate(entries)]
    known = {dimension for _, of in read for dimension in of}
    for name in dimensions:
        require(name in known, f'{path}: has no dimension {name!r}; {did_you_mean(name, known)}')
    return list(dict.fromkeys(text for text, of in read if not dimensions or of & {*dimensions}))


def _read_entry(entry: Any, where: str) -> tuple[str, set[str]]:
    """Returns the prompt and the dimensions of an entry of the JSON file."""
    prompt, of = (entry.get('prompt_en'), entry.get('dimension')) if isinstance(entry, dict) else (None, None)
    if not isinstance(of, list) or not all(isinstance(name, str) for name in of):
        raise ValueError(f'{where}: must have a "prompt_en" and a list "dimension"')
    return prompts.check_prompt(prompt, f'{where}, prompt_en'), set(of)


def list_samples(texts: Sequence[str], folder: Path, num_samples: int, seed: int) -> list[Sample]:
    """Lists the videos of prompts, index by index.

    The seed of a video is a hash of `seed`, its prompt and its index: it does not depend on the other prompts.

    Raises:
      ValueError: a prompt that no file can be named after.
    """
    for text in texts:
        _check_name(text, f'{text}-{num_samples - 1}.mp4')
    return [
        Sample(text, int(fingerprint([f'{seed} {i} {text}'])[:8], 16), folder / f'{text}-{i}.mp4')
        for text in texts
        for i in range(num_samples)
    ]


def _check_name(prompt: str, name: str) -> None:
    where = f'prompt {prompts.quote_prompt(prompt)}: VBench names its files by it'
    refused = [c for c in prompt if c == '/' or unicodedata.category(c) == 'Cc']
    require(not refused, f'{where}, which cannot hold {refused[0] if refused else ""!r}; rewrite the prompt')
    try:
        count = len(os.fsencode(name))
    except UnicodeEncodeError as error:
        raise ValueError(f'{where}, and the locale cannot encode it as {error.encoding}; set LC_ALL=C.UTF-8') from None
    require(count <= MAX_NAME_BYTES, f'{where}, with {count} bytes; they can have {MAX_NAME_BYTES}; shorten it')


class Job(NamedTuple):
    """How videos are generated.

    Attributes:
      preview, enhance: the sampler settings of the stages; without `enhance` the previews are the videos.
      batch: the batch size; None for the default of each stage.
      mp4: how the videos are written.
    """

    preview: PreviewSettings
    enhance: EnhanceSettings | None
    batch: int | None
    mp4: batch.Mp4Options


def find_missing(fv: Pipeline, samples: Sequence[Sample], job: Job, overwrite: bool) -> list[Sample]:
    """Finds the videos that are still to be generated. Weights are loaded only if there are videos to compare them to.

    Args:
      fv: the pipeline.
      samples: all videos.
      job: how they are generated.
      overwrite: whether a video of other settings or weights is generated again.

    Raises:
      ValueError: without `overwrite`: a file that is no such video. A folder where a video should be, in any case.
    """
    missing = []
    for sample in samples:
        require(not sample.output.is_dir(), f'{sample.output}: is a folder')
        if sample.output.exists():
            reason = _difference(fv, sample, job)
            require(overwrite or not reason, f'{sample.output}: {reason}; choose another folder or pass --overwrite')
        else:
            reason = 'missing'
        missing += [sample] if reason else []
    return missing


def _difference(fv: Pipeline, sample: Sample, job: Job) -> str:
    """Returns in what an existing file differs from what would be generated, or ''."""
    try:
        found = metadata.from_json(video_io.read_comment(sample.output))
    except ValueError as error:
        return f'already exists and is none of our videos ({str(error).removeprefix(f"{sample.output}: ")})'
    if (found.enhance is None) != (job.enhance is None):
        return f'already exists, and is {"a preview" if found.enhance is None else "an enhanced video"}'
    second = job.enhance and EnhanceMetadata(sample.seed, job.enhance, fv.stage2.weight_digests)
    first = PreviewMetadata(sample.prompt, sample.seed, job.preview, fv.stage1.weight_digests)
    fps, crf = float(job.mp4.fps), float(job.mp4.crf)
    # Not the version and the origin: the digests say which weights these are.
    wanted = dataclasses.replace(found, preview=first, enhance=second, fps=fps, crf=crf)
    return _compare(to_dict(found), to_dict(wanted))


def _compare(found: Any, wanted: Any, path: str = '') -> str:
    """Returns the first difference of two nested dicts, or ''."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        fields = (_compare(found.get(name), wanted[name], f'{path}.{name}' if path else name) for name in wanted)
        return next(filter(None, fields), '')
    return '' if found == wanted else f'already exists, made with {path}={found} instead of {wanted}'


def generate(fv: Pipeline, samples: Sequence[Sample], job: Job) -> None:
    """Generates videos and writes each as soon as it exists; creates their folder."""
    size = job.batch or batch.batch_size(fv.stage1.latent_spec, job.preview.frames, job.preview.size)
    step = size * math.ceil(GROUP / size)
    for first in range(0, len(samples), step):
        group = samples[first : first + step]
        group[0].output.parent.mkdir(exist_ok=True)
        previews: list[Preview] = []
        texts, seeds = [sample.prompt for sample in group], [sample.seed for sample in group]
        for made in fv.preview_batches(texts, seeds, job.preview, batch_size=size):
            if job.enhance is None:
                for sample, preview in zip(group[len(previews) :], made, strict=False):
                    preview.save(sample.output, fps=job.mp4.fps, crf=job.mp4.crf)
                    log.info(f'{sample.output}: seed {sample.seed}')
            previews += made
        if job.enhance is not None:
            outputs = [sample.output for sample in group]
            batch.enhance_previews(fv, previews, outputs, job.enhance, None, job.batch, job.mp4)
        log.info(f'{first + len(group)} of {len(samples)} video(s)')
