"""Where `sample clip` writes an enhanced clip: an mp4, an image, or a sequence of images."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data import image_files
from fv_jax.data.images import IMAGE_SUFFIXES
from fv_jax.data.transforms import to_uint8
from fv_jax.data.video import containers, decoding, encoding
from fv_jax.data.video.encoding import Codec
from fv_jax.sampling import metadata
from fv_jax.sampling.clip_sources import PATTERN, ClipSource, natural_order
from fv_jax.sampling.clip_writer import write_clip
from fv_jax.sampling.clips import Clip
from fv_jax.sampling.metadata import GenerationMetadata

VIDEO, NUMBERED = '.mp4', '%05d'
OutputKind = Literal['mp4', 'image', 'folder', 'pattern']


@dataclasses.dataclass(frozen=True)
class ClipOutput:
    """The files of an enhanced clip.

    Attributes:
      kind: 'folder' holds a sequence of images with the names of the input's; 'pattern' numbers them by its %d.
      path: the file, the folder or the pattern.
    """

    kind: OutputKind
    path: StoragePath

    def read_metadata(self) -> GenerationMetadata:
        """Reads the metadata of an output that exists. Raises ValueError if it has none."""
        if self.kind == 'mp4':
            return metadata.from_json(containers.read_comment(self.path))
        image = self.path
        if self.kind == 'folder':
            image = next(iter(sorted(path for path in self.path.iterdir() if path.suffix in IMAGE_SUFFIXES)), None)
            require(image is not None, f'{self.path}: contains no images')
        return metadata.from_json(image_files.read_comment(image))

    def find_existing(self) -> StoragePath | None:
        """Returns the output, or a file of it, that exists; None if there is none."""
        if self.kind != 'pattern':
            return self.path if self.path.exists() else None
        before, _, after = PATTERN.split(self.path.name, maxsplit=1)
        in_folder = files.list_folder(self.path.parent)
        matching = (path for path in in_folder if path.name.startswith(before) and path.name.endswith(after))
        return next((path for path in matching if path.name[len(before) : -len(after)].isdecimal()), None)


def choose_output(path: StoragePath, source: ClipSource) -> ClipOutput:
    """Chooses what is written for one source by the suffix of the path. Raises ValueError for one that does not fit."""
    suffix = path.suffix.lower()
    if suffix == VIDEO:
        return ClipOutput('mp4', path)
    if suffix in IMAGE_SUFFIXES and PATTERN.search(path.name):
        return ClipOutput('pattern', path)
    if suffix in IMAGE_SUFFIXES and source.kind == 'image':
        return ClipOutput('image', path)
    if source.kind == 'sequence' and not suffix:
        return ClipOutput('folder', path)
    images = ', '.join(IMAGE_SUFFIXES)
    fixes = {
        'video': f'must end in {VIDEO}, or name images such as frames_{NUMBERED}.png',
        'image': f'must end in {images} or {VIDEO}',
        'sequence': f'must end in {VIDEO}, name a folder, or images such as frames_{NUMBERED}.png',
    }
    raise ValueError(f'{path}: {fixes[source.kind]}')


def outputs_in_folder(folder: StoragePath, sources: Sequence[ClipSource]) -> list[ClipOutput]:
    """Returns the output of each source, under its name in the folder.

    A video becomes an mp4, an image an image of its format, a sequence a folder. Where two would have one name, they
    keep the suffix of the source: a.mov and a.avi become a.mov.mp4 and a.avi.mp4.

    Raises:
      ValueError: two sources have the same name.
    """

    def make(source: ClipSource, keep_suffix: bool) -> ClipOutput:
        if source.kind != 'video':
            return ClipOutput('folder' if source.kind == 'sequence' else 'image', folder / source.name)
        path = folder / source.name
        return ClipOutput('mp4', path.with_name(path.name + VIDEO) if keep_suffix else path.with_suffix(VIDEO))

    outputs = [make(source, keep_suffix=False) for source in sources]
    paths = [output.path for output in outputs]
    outputs = [
        make(source, keep_suffix=True) if paths.count(output.path) > 1 else output
        for source, output in zip(sources, outputs, strict=True)
    ]
    seen: dict[StoragePath, ClipSource] = {}
    for source, output in zip(sources, outputs, strict=True):
        other = seen.setdefault(output.path, source)
        require(other is source, f'{source.path}: has the name of {other.path}; enhance them into different folders')
    return outputs


def write_output(
    output: ClipOutput,
    blocks: Iterable[np.ndarray],
    source: ClipSource,
    info: decoding.VideoInfo | None,
    clip: Clip,
    *,
    codec: Codec,
    crf: float,
    comment: str,
) -> int:
    """Writes an enhanced clip; returns its number of frames.

    Args:
      output: what to write; what exists is replaced when it is complete, of a pattern file by file.
      blocks: float32 FHWC in [-1, 1], read lazily.
      source, info, clip: what was enhanced, as `ClipSource.open` returns it.
      codec, crf: of an mp4.
      comment: of the mp4, and of every image.
    """
    files.make_folder(output.path.parent)
    if output.kind == 'mp4' and info is not None:
        return write_clip(output.path, blocks, source.path, info, codec=codec, crf=crf, comment=comment)
    counted = _Counted(frame for block in blocks for frame in (block if codec == 'hevc10' else to_uint8(block)))
    if output.kind == 'mp4':
        encoding.encode(output.path, counted, clip.fps or metadata.FPS, crf=crf, comment=comment, codec=codec)
    elif output.kind == 'folder':
        with files.atomic_write(output.path) as partial:
            partial.mkdir()
            _write_images((partial / image.name for image in source.images), counted, comment)
    elif output.kind == 'image':
        _write_images([output.path], counted, comment)
    else:
        _write_images(_numbered(output.path, source), counted, comment)
    return counted.count


class _Counted:
    """Frames, and how many of them were read."""

    def __init__(self, frames: Iterator[np.ndarray]):
        self._frames, self.count = frames, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            self.count += 1
            yield frame


def _write_images(paths: Iterable[StoragePath], frames: Iterable[np.ndarray], comment: str) -> None:
    for frame, path in zip(frames, paths, strict=False):  # in this order, all frames are read
        image_files.write_image(path, frame if frame.dtype == np.uint8 else to_uint8(frame), comment)


def _numbered(pattern: StoragePath, source: ClipSource) -> Iterator[StoragePath]:
    """Yields the paths of numbered images: with the numbers of the input's images, or from 1 on."""
    numbers = [_last_number(image.name) for image in source.images]
    distinct = numbers and None not in numbers and len(set(numbers)) == len(numbers)
    found = numbers if distinct else itertools.count(1)
    before, width, after = PATTERN.split(pattern.name, maxsplit=1)
    return (pattern.with_name(f'{before}{number:0{width or 1}}{after}') for number in found)


def _last_number(name: str) -> int | None:
    return next((part for kind, part in reversed(natural_order(name)) if kind == 0), None)
