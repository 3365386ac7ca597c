"""Renders the moving sprites: the art, six landscapes, and a sprite that moves over one of them.

Lengths are in image heights: y runs from 0 (top) to 1, x from 0 (left) to width / height. A pixel of an image drawn
at height h is the mean of the scene over a square of side 1 / h, so a preview drawn small is the final image
averaged (to rounding): the landscape is painted at k h >= 256 rows and averaged over k x k, the sprite is moved on a
grid as fine as the art and averaged likewise.

Art: (160, 160, 4) float32, RGBA in [0, 1], the colours multiplied by the alpha; the centre of the sprite is that of the
art.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SHEET = Path(__file__).parents[1] / 'embedded' / 'sprites.png'
CELL, COLUMNS = 160, 5  # of the sheet: pixels of a cell's side, cells in a row

_FINE = 256  # rows that a landscape is painted with at least
_SHIFT = 4  # fractional bits of OpenCV's coordinates

Colour = tuple[float, float, float]


def load_art(count: int) -> np.ndarray:
    """Loads the first `count` cells of the sheet: art (count, 160, 160, 4), see above."""
    with Image.open(SHEET) as sheet:
        pixels = np.asarray(sheet.convert('RGBA'), np.float32) / 255
    rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    cells = pixels.reshape(rows, CELL, columns, CELL, 4).swapaxes(1, 2).reshape(-1, CELL, CELL, 4)[:count].copy()
    cells[..., :3] *= cells[..., 3:]
    return cells


def draw_moving_sprite(backdrop_HWC: np.ndarray, art: np.ndarray, centres_F2: np.ndarray, size: float) -> np.ndarray:
    """Draws a sprite that moves over a landscape.

    Args:
      backdrop_HWC: uint8.
      art: of one sprite.
      centres_F2: the centre of the sprite in every frame, (y, x) in image heights; it may leave the image.
      size: side of the art, in image heights.

    Returns:
      uint8 FHWC.
    """
    frames = np.repeat(backdrop_HWC[None], len(centres_F2), axis=0)
    for frame, centre in zip(frames, centres_F2, strict=True):
        paste_sprite(frame, art, centre * len(backdrop_HWC), size * len(backdrop_HWC))
    return frames


def resample_art(art: np.ndarray, centre: Sequence[float], size: float, side: int) -> np.ndarray:
    """Scales art to `size` pixels, centred at `centre` (y, x) of a side x side square: float32 RGBA."""
    fine = max(1, math.ceil(len(art) / size))
    scale = size * fine / len(art)
    # OpenCV's pixel centres are whole numbers; ours lie half a pixel further.
    offset = [c * fine - size * fine / 2 + scale / 2 - 0.5 for c in centre]
    to_square = np.array([[scale, 0, offset[1]], [0, scale, offset[0]]])
    square = cv2.warpAffine(art, to_square, (side * fine, side * fine), flags=cv2.INTER_LINEAR)
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def paste_sprite(frame_HWC: np.ndarray, art: np.ndarray, centre: np.ndarray, size: float) -> None:
    """Draws art of `size` pixels into uint8 HWC, in place, centred at (y, x); parts outside the frame are cut off."""
    side = math.ceil(size) + 2
    top, left = (math.floor(c - side / 2) for c in centre)
    square = resample_art(art, (centre[0] - top, centre[1] - left), size, side)
    rows = slice(max(top, 0), max(min(top + side, frame_HWC.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + side, frame_HWC.shape[1]), 0))
    square = square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    part = frame_HWC[rows, columns]
    part[...] = np.rint(part * (1 - square[..., 3:]) + 255 * square[..., :3])


# --- landscapes ---


def draw_landscape(name: str, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draws the landscape of this name, with details from `rng`, as uint8 HWC of `size` = (height, width)."""
    fine = max(1, math.ceil(_FINE / size[0]))
    canvas = _Canvas((size[0] * fine, size[1] * fine))
    LANDSCAPES[name](canvas, rng)
    light = np.float32(rng.uniform(0.95, 1.04))
    small = cv2.resize(canvas.pixels, size[::-1], interpolation=cv2.INTER_AREA)
    return np.rint(np.minimum(small * light, 255)).astype(np.uint8)


class _Canvas:
    """Paints with sharp, antialiased edges; coordinates in image heights, colours RGB from 0 to 255."""

    def __init__(self, size: tuple[int, int]):
        self.pixels = np.empty((*size, 3), np.uint8)
        self.width = size[1] / size[0]

    def sky(self, top: Colour, bottom: Colour) -> None:
        """Fills everything with a gradient from `top` to `bottom`, reached at 0.6."""
        share = np.minimum(np.linspace(0, 1 / 0.6, len(self.pixels)), 1)[:, None]
        self.pixels[:] = np.rint((1 - share) * top + share * bottom)[:, None]

    def ground(self, profile: Callable[[np.ndarray], np.ndarray], colour: Colour) -> None:
        """Fills the area below y = profile(x)."""
        x = np.linspace(-0.02, self.width + 0.02, 97)
        line = np.stack([x, profile(x)], axis=1)
        self.polygon([*line, (self.width + 0.02, 1.02), (-0.02, 1.02)], colour)

    def band(self, profile: Callable[[np.ndarray], np.ndarray], thickness: float, colour: Colour) -> None:
        """Fills the area from y = profile(x) to `thickness` below it."""
        x = np.linspace(-0.02, self.width + 0.02, 97)
        upper, lower = np.stack([x, profile(x)], axis=1), np.stack([x, profile(x) + thickness], axis=1)
        self.polygon([*upper, *lower[::-1]], colour)

    def polygon(self, points_xy: Sequence[Sequence[float]], colour: Colour) -> None:
        points = np.rint((np.asarray(points_xy) * len(self.pixels) - 0.5) * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(self.pixels, [points], colour, cv2.LINE_AA, _SHIFT)

    def rectangle(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour)

    def ellipse(self, x: float, y: float, across: float, down: float, colour: Colour) -> None:
        """Fills an ellipse with half axes `across` and `down`."""
        unit = len(self.pixels) * 2**_SHIFT
        middle = [round(c * unit - 2 ** (_SHIFT - 1)) for c in (x, y)]
        axes = [max(1, round(c * unit)) for c in (across, down)]
        cv2.ellipse(self.pixels, middle, axes, 0, 0, 360, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)

    def cloud(self, x: float, y: float, size: float, colour: Colour) -> None:
        for shift, rise, radius in ((-0.9, 0, 0.45), (-0.3, 0.3, 0.6), (0.4, 0.15, 0.5), (1.0, 0, 0.35)):
            self.ellipse(x + shift * size, y - rise * size, radius * size, radius * size * 0.8, colour)


def _waves(rng: np.random.Generator, height: float, swell: float, length: float) -> Callable[[np.ndarray], np.ndarray]:
    """Draws a profile around `height`: two sines of about this amplitude and wavelength, with random phases."""
    phases, stretch = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.85, 1.15)

    def profile(x: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * x / (length * stretch)
        return height + swell * (0.7 * np.sin(angle + phases[0]) + 0.3 * np.sin(2.3 * angle + phases[1]))

    return profile


def _beach(canvas: _Canvas, rng: np.random.Generator) -> None:
    shore = 0.56 + rng.uniform(-0.04, 0.04)
    canvas.sky((176, 220, 246), (232, 245, 250))
    canvas.cloud(rng.uniform(0, canvas.width), rng.uniform(0.08, 0.16), 0.08, (250, 253, 255))
    canvas.ground(lambda x: np.full_like(x, shore - 0.2), (92, 176, 206))
    for i in range(3):
        canvas.band(_waves(rng, shore - 0.16 + 0.05 * i, 0.006, 0.25), 0.012, (140, 205, 226))
    line = _waves(rng, shore, 0.018, 0.9)
    canvas.ground(line, (250, 252, 250))
    canvas.ground(lambda x: line(x) + 0.022, (214, 192, 146))
    canvas.ground(lambda x: line(x) + 0.06, (240, 220, 172))
    for x, y in rng.uniform((0, shore + 0.12), (canvas.width, 0.98), (14, 2)):
        canvas.ellipse(x, y, 0.014, 0.007, (216, 188, 138))


def _meadow(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.sky((170, 216, 244), (226, 243, 250))
    for x in rng.uniform(0, canvas.width, 2):
        canvas.cloud(x, rng.uniform(0.1, 0.25), rng.uniform(0.07, 0.1), (250, 253, 255))
    canvas.ground(_waves(rng, 0.46, 0.06, 1.3), (176, 214, 142))
    canvas.ground(_waves(rng, 0.58, 0.05, 1.0), (152, 200, 116))
    near = _waves(rng, 0.76, 0.03, 1.2)
    canvas.ground(near, (128, 184, 92))
    for x in np.arange(0.02, canvas.width, 0.05) + rng.uniform(-0.015, 0.015):
        foot = float(near(x)) + rng.uniform(0.05, 0.2)
        canvas.polygon([(x - 0.012, foot), (x, foot - 0.05), (x + 0.012, foot)], (104, 162, 74))
    for x, y in rng.uniform((0, 0.84), (canvas.width, 0.98), (9, 2)):
        canvas.ellipse(x, y, 0.014, 0.014, (252, 250, 244))
        canvas.ellipse(x, y, 0.006, 0.006, (240, 200, 80))


def _town(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.sky((18, 26, 66), (58, 66, 124))
    for x, y in rng.uniform((0, 0.02), (canvas.width, 0.55), (26, 2)):
        canvas.ellipse(x, y, 0.006, 0.006, (226, 230, 250))
    x, y = rng.uniform((0.15, 0.12), (canvas.width - 0.15, 0.2))
    canvas.ellipse(x, y, 0.07, 0.07, (238, 236, 214))
    canvas.ellipse(x - 0.02, y + 0.015, 0.014, 0.014, (216, 212, 190))
    left = -0.05
    while left < canvas.width:
        width, top = rng.uniform(0.11, 0.19), rng.uniform(0.58, 0.8)
        canvas.rectangle(left, top, width - 0.012, 0.45, (34, 36, 62))
        for row in np.arange(top + 0.035, 0.98, 0.065):
            for column in np.arange(left + 0.02, left + width - 0.045, 0.042):
                if rng.random() < 0.55:
                    canvas.rectangle(column, row, 0.022, 0.032, (214, 178, 92))
        left += width


def _sea(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.sky((186, 226, 246), (236, 246, 250))
    canvas.cloud(rng.uniform(0, canvas.width), rng.uniform(0.1, 0.15), 0.09, (252, 254, 255))
    shades = ((120, 186, 222), (96, 168, 212), (76, 148, 200), (58, 128, 186), (44, 108, 170))
    for i, shade in enumerate(shades):
        crest = _waves(rng, 0.3 + 0.145 * i, 0.012 + 0.005 * i, 0.26 + 0.08 * i)
        canvas.ground(crest, tuple(min(c + 44, 255) for c in shade))
        canvas.ground(lambda x, crest=crest, i=i: crest(x) + 0.01 + 0.003 * i, shade)


def _desert(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.sky((246, 214, 160), (252, 238, 206))
    canvas.ellipse(rng.uniform(0.2, canvas.width - 0.2), rng.uniform(0.12, 0.2), 0.075, 0.075, (255, 248, 226))
    for i, (light, shade) in enumerate(
        (((228, 178, 122), (206, 152, 100)), ((220, 164, 106), (194, 136, 84)), ((208, 148, 92), (182, 122, 72)))
    ):
        foot = 0.62 + 0.16 * i
        canvas.ground(_waves(rng, foot - 0.06, 0.02, 1.6), light)
        for x in rng.uniform(-0.1, 0.4) + 0.62 * np.arange(3):
            top, reach = foot - rng.uniform(0.14, 0.2), rng.uniform(0.3, 0.4)
            canvas.polygon([(x, top), (x - reach, foot), (x + reach, foot)], light)
            canvas.polygon([(x, top), (x + 0.06, foot - 0.06), (x + 0.02, foot), (x + reach, foot)], shade)
        canvas.ground(_waves(rng, foot - 0.02, 0.01, 0.9), light)
    for x, y in rng.uniform((0, 0.95), (canvas.width, 0.99), (10, 2)):
        canvas.ellipse(x, y, 0.03, 0.005, (182, 122, 72))


def _mountains(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.sky((158, 190, 226), (222, 232, 244))
    for x in rng.uniform(-0.1, 0.2) + 0.42 * np.arange(5):
        top, reach = rng.uniform(0.18, 0.34), rng.uniform(0.34, 0.42)
        slope = (0.72 - top) / reach
        canvas.polygon([(x, top), (x - reach, 0.72), (x + reach, 0.72)], (128, 142, 170))
        canvas.polygon([(x, top), (x + 0.05, 0.72), (x + reach, 0.72)], (104, 118, 150))
        snow = [(x, top), (x + 0.14, top + 0.14 * slope), (x + 0.05, top + 0.11), (x, top + 0.17)]
        snow += [(x - 0.05, top + 0.11), (x - 0.12, top + 0.12 * slope)]
        canvas.polygon(snow, (246, 249, 253))
    line = _waves(rng, 0.68, 0.025, 1.1)
    canvas.ground(line, (216, 226, 240))
    canvas.ground(_waves(rng, 0.84, 0.02, 1.4), (236, 241, 248))
    for x in np.arange(0.08, canvas.width, 0.21) + rng.uniform(-0.07, 0.07, len(np.arange(0.08, canvas.width, 0.21))):
        foot, height = float(line(x)) + rng.uniform(0.08, 0.14), rng.uniform(0.12, 0.17)
        for part in (0.0, 0.3):
            top = foot - height * (1 - part)
            canvas.polygon([(x - 0.045, top + 0.7 * height), (x, top), (x + 0.045, top + 0.7 * height)], (66, 108, 104))


LANDSCAPES: dict[str, Callable[[_Canvas, np.random.Generator], None]] = {
    'beach': _beach,
    'meadow': _meadow,
    'town': _town,
    'sea': _sea,
    'desert': _desert,
    'mountains': _mountains,
}
