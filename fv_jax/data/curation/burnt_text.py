"""Burnt-in text: subtitles, captions and watermarks that stay where they are while the video moves.

  1. strokes: the top-hat and the black-hat of the luma (bright and dark strokes thinner than a few percent of the
     height), the minimum over some frames of the clip, so that what moves fades and what is burnt in stays
  2. characters: connected components of strong strokes, with the height, the width and the filling of a character
  3. lines: at least 5 characters of similar height and level, side by side

The score is the share of the frame inside the boxes of such lines. It is a simple detector: README states how much of
planted text it finds, and how often it finds text in clips without. Text in the scene that does not move counts too;
handwriting, vertical text, and letters that touch each other are not found.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage

_HEIGHT = 540  # rows at which text is searched
_STROKE = 0.025  # of the height: the thickest stroke
_CONTRAST = 48  # levels, of a stroke against what is around it
_NEARBY, _RELATIVE = 7, 0.5  # pixels around a stroke; of the strongest stroke there
_SMALLEST, _LARGEST = 0.013, 0.12  # of the height: that of a character
_WIDEST = 1.6  # width / height of a character
_FILLING = (0.15, 0.9)  # of a character's box that is stroke
_SIMILAR = 1.7  # ratio of the heights of two neighbours
_OVERLAP = 0.5  # of the smaller one's height, that two neighbours share
_GAP = 1.0  # of the larger one's height, between two neighbours
_LENGTH = 5  # characters of a line
_SAME_LEVEL = 16  # levels: between neighbours
_ALIGNED = 0.2  # of their height: mean deviation of the middles of a line's characters


@dataclasses.dataclass(frozen=True)
class Box:
    """A box in pixels, the ends of which are exclusive, and the level of the character in it."""

    top: int
    bottom: int
    left: int
    right: int
    level: int

    @property
    def height(self) -> int:
        return self.bottom - self.top


def text_share(frames_FHW: np.ndarray) -> float:
    """Computes the share of the frame that is inside lines of burnt-in text.

    Args:
      frames_FHW: luma, uint8; a few frames of the clip, apart in time.
    """
    _, height, width = frames_FHW.shape
    scale = min(_HEIGHT / height, 1.0)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    frames = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames_FHW]
    mask = np.zeros(size[::-1], bool)
    for line in find_lines(frames):
        mask[line.top : line.bottom, line.left : line.right] = True
    return float(mask.mean())


def find_lines(frames: Sequence[np.ndarray]) -> list[Box]:
    """Finds lines of text in frames (H, W) of one size, uint8, about 540 rows high."""
    reach = 2 * round(_STROKE * frames[0].shape[0] / 2) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    found = []
    for shown in (frames, [255 - frame for frame in frames]):  # bright strokes, then dark ones
        strokes = np.minimum.reduce([cv2.morphologyEx(frame, cv2.MORPH_TOPHAT, kernel) for frame in shown])
        found += _group_lines(_find_characters(strokes, shown[0]))
    return found


def _find_characters(strokes_HW: np.ndarray, frame_HW: np.ndarray) -> list[Box]:
    """Finds the characters in the strokes of a clip; frame_HW: one of its frames, in which strokes are bright."""
    height = strokes_HW.shape[0]
    # Relative to the strongest stroke nearby, so that the narrow gaps between letters are not joined to them.
    nearby = cv2.dilate(strokes_HW, np.ones((_NEARBY, _NEARBY), np.uint8))
    mask = (strokes_HW > np.maximum(_CONTRAST, _RELATIVE * nearby)).astype(np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    left, top, w, h, area = statistics[1:].T
    filling = area / np.maximum(w * h, 1)
    fits = (h >= _SMALLEST * height) & (h <= _LARGEST * height) & (w <= _WIDEST * h)
    fits &= (filling >= _FILLING[0]) & (filling <= _FILLING[1])
    # Of a thin stroke only the middle has its level; the rest is mixed with what is around.
    levels = ndimage.maximum(frame_HW, labels, np.arange(1, count)) if count > 1 else np.zeros(0)
    columns = (top, top + h, left, left + w, levels)
    return [Box(*map(int, values)) for values in zip(*(column[fits] for column in columns), strict=True)]


def _group_lines(characters: Sequence[Box]) -> list[Box]:
    """Groups neighbours into lines, from left to right; returns the boxes of those that are long enough."""
    lines: list[list[Box]] = []
    for box in sorted(characters, key=lambda box: box.left):
        near = [line for line in lines if _are_neighbours(line[-1], box)]
        if near:
            max(near, key=lambda line: line[-1].right).append(box)
        else:
            lines.append([box])
    return [_surround(line) for line in lines if len(line) >= _LENGTH and _is_aligned(line)]


def _are_neighbours(a: Box, b: Box) -> bool:
    small, large = sorted((a.height, b.height))
    shared = min(a.bottom, b.bottom) - max(a.top, b.top)
    gap = b.left - a.right
    if abs(a.level - b.level) > _SAME_LEVEL:
        return False
    return large <= _SIMILAR * small and shared >= _OVERLAP * small and -0.3 * large <= gap <= _GAP * large


def _is_aligned(line: Sequence[Box]) -> bool:
    """Whether the characters have common lower or upper ends, or middles."""
    height = np.median([box.height for box in line])
    ends = np.array([[box.bottom, box.top, (box.top + box.bottom) / 2] for box in line])
    return bool(np.abs(ends - np.median(ends, axis=0)).mean(axis=0).min() <= _ALIGNED * height)


def _surround(line: Sequence[Box]) -> Box:
    tops, bottoms = (box.top for box in line), (box.bottom for box in line)
    left, right = min(box.left for box in line), max(box.right for box in line)
    return Box(min(tops), max(bottoms), left, right, line[0].level)
