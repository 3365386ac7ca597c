"""Contact sheets: frames of several videos of a clip, and sheets of previews."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fv_jax.data.even_indices import even_indices

_LABEL = 22  # pixels: height of a label
_GAP = 4
_ASPECT = 9 / 16  # of thumbnails
_SHEET_WIDTH = 800  # pixels: the approximate minimum width of a sheet of previews


def add_label(frame_HWC: np.ndarray, label: str) -> np.ndarray:
    """Adds a strip with a label above a uint8 image."""
    height, width, _ = frame_HWC.shape
    image = Image.new('RGB', (width, height + _LABEL), 'black')
    image.paste(Image.fromarray(frame_HWC), (0, _LABEL))
    ImageDraw.Draw(image).text((6, 3), label, fill='white', font=ImageFont.load_default(14))
    return np.asarray(image)


def contact_sheet(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]], zoom: int = 2) -> Image.Image:
    """Draws a contact sheet, one row for each clip.

    A row has the middle frame of every video, and below it the same part of each, `zoom` times larger.

    Args:
      rows: (caption, {name: uint8 FHWC}); all videos of one size.
      zoom: of the enlarged part.
    """
    lines = []
    for caption, videos in rows:
        middle = {name: clip[len(clip) // 2] for name, clip in videos.items()}
        whole = [
            add_label(frame, f'{name}: {caption}' if i == 0 else name) for i, (name, frame) in enumerate(middle.items())
        ]
        lines += [join_tiles(whole), join_tiles([_zoom_center(frame, zoom) for frame in middle.values()])]
    return stack_lines(lines)


def preview_sheet(rows: Iterable[tuple[str, np.ndarray]], columns: int = 4, *, shrink: bool = False) -> Image.Image:
    """Draws a contact sheet of previews, one row of evenly spaced frames for each; small frames are enlarged.

    Args:
      rows: (caption, uint8 FHWC), all of one size.
      columns: the number of frames.
      shrink: whether large frames are shrunk, by a whole number, to about the width of enlarged ones.
    """
    lines = []
    for caption, video_FHWC in rows:
        zoom = max(1, _SHEET_WIDTH // (columns * video_FHWC.shape[2]))
        chosen = even_indices(len(video_FHWC), columns)
        stride = max(1, columns * video_FHWC.shape[2] // _SHEET_WIDTH) if shrink else 1
        tiles = [video_FHWC[i, ::stride, ::stride].repeat(zoom, axis=0).repeat(zoom, axis=1) for i in chosen]
        lines.append(add_label(join_tiles(tiles), ' '.join(caption.split())))
    return stack_lines(lines)


def thumbnail_sheet(tiles: Sequence[tuple[str, np.ndarray]], columns: int = 4, width: int = 320) -> Image.Image:
    """Draws a contact sheet of single frames with labels, row by row, on white.

    Args:
      tiles: (label, uint8 HWC); at least one. Each is fitted into `width` x 9/16 `width`.
      columns: tiles of a row.
      width: of a tile, in pixels.
    """
    height, font = round(width * _ASPECT), ImageFont.load_default(13)
    rows = -(-len(tiles) // columns)
    columns = min(columns, len(tiles))
    sheet = Image.new('RGB', (columns * (width + _GAP) - _GAP, rows * (height + _LABEL + _GAP) - _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, (label, frame_HWC) in enumerate(tiles):
        top, left = number // columns * (height + _LABEL + _GAP), number % columns * (width + _GAP)
        image = Image.fromarray(frame_HWC)
        image.thumbnail((width, height), Image.Resampling.BOX)
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        while draw.textlength(label, font) > width and len(label) > 1:
            label = f'{label[:-2]}…'
        draw.text((left, top + height + 2), label, 'black', font)
    return sheet


def stack_lines(lines: Sequence[np.ndarray]) -> Image.Image:
    """Stacks images of one width below each other."""
    width, height = lines[0].shape[1], sum(line.shape[0] + _GAP for line in lines)
    sheet = Image.new('RGB', (width, height), 'white')
    top = 0
    for line in lines:
        sheet.paste(Image.fromarray(line), (0, top))
        top += line.shape[0] + _GAP
    return sheet


def join_tiles(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Joins uint8 images of one height side by side, with a white gap."""
    gap = np.full((tiles[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def _zoom_center(frame_HWC: np.ndarray, zoom: int) -> np.ndarray:
    height, width, _ = frame_HWC.shape
    h, w = height // zoom, width // zoom
    top, left = (height - h) // 2, (width - w) // 2
    part = frame_HWC[top : top + h, left : left + w]
    return np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST))
