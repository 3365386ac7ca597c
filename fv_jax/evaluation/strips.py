"""Strips: the middle frames of several videos of one scene, and the same detail of each, enlarged."""

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from fv_jax.core.checks import require
from fv_jax.data.video.contact_sheet import add_label, join_tiles, stack_lines

TRUTH = 'ground truth'
_COLUMNS = 4
_TILE_WIDTH = 2000 // _COLUMNS  # pixels: larger frames are reduced to it
_ZOOM = 4


def strip(videos: Mapping[str, np.ndarray]) -> Image.Image:
    """Draws the middle frame of each video, and below it an enlarged crop of the same place in each.

    The place is the one with the most gradient energy in the video named 'ground truth', or else in the first. The
    crop has the pixels of the video, enlarged four times; a line has up to four videos.

    Args:
      videos: label -> uint8 FHWC, all of one size.

    Raises:
      ValueError: videos of different sizes.
    """
    assert videos
    middle = {name: video[len(video) // 2] for name, video in videos.items()}
    shapes = {name: frame.shape for name, frame in middle.items()}
    require(len(set(shapes.values())) == 1, f'videos of one size are needed, got {shapes}')
    height, width, _ = next(iter(shapes.values()))
    tile_width = min(width, _TILE_WIDTH)
    tile_height = round(height * tile_width / width)
    size = max(tile_height // _ZOOM, 1), max(tile_width // _ZOOM, 1)
    top, left = find_detail(middle.get(TRUTH, next(iter(middle.values()))), size)
    tiles = []
    for name, frame in middle.items():
        whole = _outline(_resize(frame, (tile_height, tile_width), Image.Resampling.LANCZOS), frame, top, left, size)
        crop = frame[top : top + size[0], left : left + size[1]]
        tiles.append((add_label(whole, name), _resize(crop, (tile_height, tile_width), Image.Resampling.NEAREST)))
    columns = math.ceil(len(tiles) / math.ceil(len(tiles) / _COLUMNS))  # lines of about one length
    tiles += [tuple(np.full_like(part, 255) for part in tiles[0])] * (-len(tiles) % columns)
    lines = []
    for start in range(0, len(tiles), columns):
        lines += [join_tiles(parts) for parts in zip(*tiles[start : start + columns], strict=True)]
    return stack_lines(lines)


def find_detail(frame_HWC: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Finds the window with the most gradient energy.

    Args:
      frame_HWC: uint8.
      size: (height, width) of the window, at most those of the frame.

    Returns:
      The row and column of its upper left corner.
    """
    grey = frame_HWC.astype(np.float64).mean(-1)
    energy = np.zeros_like(grey)
    energy[1:] += np.diff(grey, axis=0) ** 2
    energy[:, 1:] += np.diff(grey, axis=1) ** 2
    sums = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = size
    windows = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    row, column = np.unravel_index(windows.argmax(), windows.shape)
    return int(row), int(column)


def _resize(frame_HWC: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(frame_HWC).resize(size[::-1], resampling))


def _outline(shown: np.ndarray, frame: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Draws the outline of a window of `frame` on the resized frame `shown`: white within black, seen on any ground."""
    scale = shown.shape[1] / frame.shape[1]
    box = [round(scale * value) for value in (left, top, left + size[1], top + size[0])]
    image = Image.fromarray(shown)
    draw = ImageDraw.Draw(image)
    draw.rectangle((box[0] - 1, box[1] - 1, box[2], box[3]), outline='black')
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline='white')
    return np.asarray(image)
