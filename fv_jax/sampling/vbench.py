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
import math
import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.command_line import UsageError
from fv_jax.core.config import did_you_mean
from fv_jax.core.files import make_folder, parse_json, remove_partial
from fv_jax.core.hashing import fingerprint
from fv_jax.core.paths import StoragePath
from fv_jax.parallel import distributed
from fv_jax.sampling import batch, existing, prompts
from fv_jax.sampling.existing import UNKNOWN_WEIGHTS
from fv_jax.sampling.metadata import EnhanceMetadata, GenerationMetadata, PreviewMetadata
from fv_jax.sampling.prompt_list import ListProgress, sample_list
from fv_jax.sampling.results import Preview
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.text_to_video import Pipeline

NUM_SAMPLES = 5
MAX_NAME_BYTES = 255  # of a file name, on ext4, XFS, APFS and NTFS
GROUP = 32  # videos between two uses of the text encoder; an interrupt loses at most their previews


class Sample(NamedTuple):
    """A video to generate. seed: of both stages. output: its mp4."""

    prompt: str
    seed: int
    output: StoragePath


def read_prompts(path: StoragePath, dimensions: Sequence[str] = ()) -> list[str]:
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


def list_samples(texts: Sequence[str], folder: StoragePath, num_samples: int, seed: int) -> list[Sample]:
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


def find_existing(fv: Pipeline, samples: Sequence[Sample], job: Job, overwrite: bool) -> dict[int, GenerationMetadata]:
    """Finds the videos that exist already, by their index. Weights are loaded only if there are videos to compare.

    Args:
      fv: the pipeline.
      samples: all videos.
      job: how they are generated.
      overwrite: whether a video of other settings or weights is generated again.

    Raises:
      UsageError: without `overwrite`: a file that is no such video. A folder where a video should be, in any case.
    """
    outputs = [sample.output for sample in samples]

    def read(output: StoragePath) -> GenerationMetadata:
        require(not output.is_dir(), f'{output}: is a folder', UsageError)
        return existing.read_mp4(output)

    def want(i: int, found: GenerationMetadata) -> GenerationMetadata:
        prompt, seed, _ = samples[i]
        second = found.enhance and found.enhance.weights
        enhance = job.enhance and EnhanceMetadata(seed, job.enhance, second or UNKNOWN_WEIGHTS)
        preview = PreviewMetadata(prompt, seed, job.preview, found.preview.weights)
        return dataclasses.replace(found, preview=preview, enhance=enhance, **job.mp4.to_floats())

    def want_weights(i: int, found: GenerationMetadata) -> GenerationMetadata:
        enhance = found.enhance and dataclasses.replace(found.enhance, weights=fv.stage2.weight_digests)
        preview = dataclasses.replace(found.preview, weights=fv.stage1.weight_digests)
        return dataclasses.replace(found, preview=preview, enhance=enhance)

    found = existing.find_existing(outputs, read, want, overwrite)
    return existing.keep_wanted(found, outputs, want_weights, overwrite)


def generate(fv: Pipeline, samples: Sequence[Sample], found: Collection[int], job: Job) -> ListProgress:
    """Generates the videos that do not exist and writes each as soon as it exists; creates their folder.

    Args:
      fv: the pipeline.
      samples: all videos.
      found: indices of those that exist.
      job: how the others are generated.

    Returns:
      What was made and what failed.
    """
    progress = ListProgress('video', [f'{sample.output}: seed {sample.seed}' for sample in samples], len(found))
    outputs, missing = [sample.output for sample in samples], [i for i in range(len(samples)) if i not in found]
    size = job.batch or batch.batch_size(fv.stage1.latent_spec, job.preview.frames, job.preview.size, fv.num_devices)
    size, step = min(size, len(samples)), size * math.ceil(GROUP / size)

    def sample(indices: list[int]) -> Iterator[list[Preview]]:
        texts, seeds = [samples[i].prompt for i in indices], [samples[i].seed for i in indices]
        return fv.preview_batches(texts, seeds, job.preview, batch_size=size)

    def save(i: int, preview: Preview) -> None:
        if distributed.is_first_process():
            preview.save(outputs[i], fps=job.mp4.fps, crf=job.mp4.crf)

    if distributed.is_first_process():
        make_folder(outputs[0].parent)
        remove_partial(outputs)
    for first in range(0, len(missing), step):
        group, previews = missing[first : first + step], dict[int, Preview]()
        write = save if job.enhance is None else previews.__setitem__
        sample_list(sample, write, group, size, progress, last=job.enhance is None)
        if job.enhance is not None:
            batch.enhance_previews(fv, previews, outputs, job.enhance, None, job.batch, job.mp4, progress)
    return progress
