"""Makes fv_jax/data/embedded/sprites.png from the source of its art, Google's Noto Emoji (Apache-2.0).

    npm pack @iconify-json/noto@1.2.9 && tar xzf iconify-json-noto-1.2.9.tgz package/icons.json
    pip install resvg-py==0.5.0
    python launch/make_sprites.py package/icons.json

One cell a named object, in the order of `fv_jax.data.synthetic.sprites.OBJECTS`, scaled so that the larger side of what
is not transparent fills the cell but for a margin of a pixel; 256 colours in all.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fv_jax.data.synthetic.sprite_drawing import CELL, COLUMNS, SHEET
from fv_jax.data.synthetic.sprites import OBJECTS

MARGIN, LARGE = 1, 4  # pixels around a sprite; how much larger it is drawn before it is cut out and scaled


def main(icons_path: str) -> None:
    """Draws the sheet."""
    icons = json.loads(Path(icons_path).read_text(encoding='utf-8'))
    rows = -(-len(OBJECTS) // COLUMNS)
    sheet = Image.new('RGBA', (COLUMNS * CELL, rows * CELL))
    for i, name in enumerate(OBJECTS.values()):
        sheet.paste(cell(icons, name), (i % COLUMNS * CELL, i // COLUMNS * CELL))
    sheet.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(SHEET, optimize=True)
    print(f'{SHEET}: {len(OBJECTS)} sprites, {SHEET.stat().st_size:,} bytes')


def cell(icons: dict, name: str) -> Image.Image:
    """Cuts out the icon of this name and scales it to fill a cell."""
    icon = icons['icons'][name]
    width, height = icon.get('width', icons['width']), icon.get('height', icons['height'])
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
        f'width="{CELL * LARGE}" height="{CELL * LARGE}">{icon["body"]}</svg>'
    )
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert('RGBA')
    drawn = drawn.crop(Image.fromarray(np.asarray(drawn)[..., 3] > 8).getbbox())
    scale = (CELL - 2 * MARGIN) / max(drawn.size)
    drawn = drawn.resize([max(1, round(side * scale)) for side in drawn.size], Image.Resampling.LANCZOS)
    out = Image.new('RGBA', (CELL, CELL))
    out.paste(drawn, tuple((CELL - side) // 2 for side in drawn.size))
    return out


if __name__ == '__main__':
    main(sys.argv[1])
