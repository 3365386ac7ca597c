"""What `sample clip` enhances: videos, images, sequences of numbered images, and folders of them."""

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.data.folders import find_media, name_unread
from fv_jax.data.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, read_image, read_size
from fv_jax.data.video import decoding
from fv_jax.data.video.containers import OTHER_VIDEO_SUFFIXES, VIDEO_SUFFIXES
from fv_jax.sampling import clips
from fv_jax.sampling.clips import Clip

log = logging.getLogger(__name__)

SourceKind = Literal['video', 'image', 'sequence']
# How the images of a folder are taken: numbered ones of one size as the frames of a clip ('auto'), all in their order
# as frames, or each by itself.
ImageGrouping = Literal['auto', 'sequence', 'separate']
FPS = 24.0  # of sequences
_OTHERS = {*OTHER_VIDEO_SUFFIXES, *OTHER_IMAGE_SUFFIXES} - {*VIDEO_SUFFIXES}  # that are named where they are found
PATTERN = re.compile(r'%(?:0?(\d+))?d')  # of the number in a file's name, as in FFmpeg


@dataclasses.dataclass(frozen=True)
class ClipSource:
    """A video, an image or a sequence of images.

    Attributes:
      kind: what it is.
      path: of the file; of a sequence its folder, or its pattern such as frames_%04d.png.
      name: relative to the folder that is enhanced; else of the file, or that which an uploaded file had.
      images: of a sequence, in order.
      fps: of a sequence.
      unreadable: why it cannot be opened; '' where nothing is known against it.
    """

    kind: SourceKind
    path: StoragePath
    name: str
    images: tuple[StoragePath, ...] = ()
    fps: Fraction | None = None
    unreadable: str = ''

    def open(self) -> tuple[Clip, decoding.VideoInfo | None]:
        """Opens it; the information is that of a video file. Raises ValueError if it cannot be read."""
        require(not self.unreadable, f'{self.path}: {self.unreadable}')
        if self.kind == 'video':
            info = decoding.probe(self.path)
            return dataclasses.replace(clips.open_clip(self.path, info), name=as_path(self.name).name), info
        paths = self.images or (self.path,)

        def frames() -> Iterator[np.ndarray]:
            return map(read_image, paths)

        name = self.path.name if self.kind == 'sequence' else as_path(self.name).name
        return Clip(name, read_size(paths[0]), self.fps, frames), None


def find_sources(path: StoragePath, grouping: ImageGrouping, fps: float) -> list[ClipSource]:
    """Finds what a path names: one source, or those in a folder and its subfolders, in order.

    Args:
      path: a video, an image, a pattern of numbered images, or a folder.
      grouping: of the images in a folder.
      fps: of sequences.

    Raises:
      ValueError: it does not exist, or nothing in it can be enhanced.
    """
    rate = Fraction(fps).limit_denominator(1001)
    if PATTERN.search(path.name) and not path.exists():
        return [ClipSource('sequence', path, path.name, _match_pattern(path), rate)]
    if not path.is_dir():
        require(path.exists(), f'{path}: no such file')
        require(path.suffix.lower() not in _OTHERS, f'{path}: {name_unread(path.name)}')
        return [ClipSource('image' if path.suffix.lower() in IMAGE_SUFFIXES else 'video', path, path.name)]
    found = _find_in_folder(path, grouping, rate)
    suffixes = ', '.join(suffix[1:] for suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
    require(found, f'{path}: holds no videos or images ({suffixes})')
    return found


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """Orders frame2 before frame10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r'(\d+)', name)]


def _find_in_folder(folder: StoragePath, grouping: ImageGrouping, rate: Fraction) -> list[ClipSource]:
    media = find_media(folder, (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES), _OTHERS)
    found = [ClipSource('video', folder / name, name, unreadable=reason) for name, reason in media.skipped.items()]
    images: dict[StoragePath, list[StoragePath]] = {}
    with_videos = set()
    for name in media.files:
        path = folder / name
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found.append(ClipSource('video', path, name))
            with_videos.add(path.parent)
        else:
            images.setdefault(path.parent, []).append(path)
    for parent, paths in images.items():
        ordered = tuple(sorted(paths, key=lambda path: natural_order(path.name)))
        name = '' if parent == folder else parent.relative_to(folder).as_posix()
        if grouping == 'sequence' or (grouping == 'auto' and parent not in with_videos and _is_sequence(ordered)):
            found.append(ClipSource('sequence', parent, name, ordered, rate))
            if grouping == 'auto':
                log.info(
                    f'{parent}: {len(ordered)} numbered images of one size are taken for the frames of a clip; '
                    '--images=separate enhances each by itself'
                )
        else:
            found += [ClipSource('image', path, path.relative_to(folder).as_posix()) for path in ordered]
    return sorted(found, key=lambda source: natural_order(source.name))


def _is_sequence(images: Sequence[StoragePath]) -> bool:
    """Returns whether images of one size differ by the last number in their names alone."""
    names = {re.sub(r'\d+(?=\D*$)', '%d', path.name) for path in images}
    if len(images) < 2 or len(names) > 1 or '%d' not in names.pop():
        return False
    try:
        return len(set(files.map_paths(read_size, images))) == 1
    except ValueError:
        return True  # a frame that cannot be read, which is named when its turn comes


def _match_pattern(path: StoragePath) -> tuple[StoragePath, ...]:
    """Returns the images whose names match a pattern, in the order of their numbers; missing numbers are logged."""
    require(path.suffix.lower() in IMAGE_SUFFIXES, f'{path}: must end in {", ".join(IMAGE_SUFFIXES)}')
    before, width, after = PATTERN.split(path.name, maxsplit=1)
    digits = r'\d+' if width is None else rf'\d{{{int(width)},}}'
    match = re.compile(f'{re.escape(before)}({digits}){re.escape(after)}')
    numbers = {}
    for image in files.list_folder(path.parent):
        if matched := match.fullmatch(image.name):
            numbers[int(matched[1])] = image
    require(numbers, f'{path}: no such images')
    missing = max(numbers) - min(numbers) + 1 - len(numbers)
    if missing:
        log.info(f'{path}: {missing} number(s) between {min(numbers)} and {max(numbers)} are missing; frames follow on')
    return tuple(numbers[number] for number in sorted(numbers))
