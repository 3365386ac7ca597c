"""Makes the images that README shows, with the weights and the clips that ship:

    python launch/make_readme_images.py

.github/images/preview_and_video.webp    previews (enlarged) beside the videos enhanced from them, at half their size
.github/images/degradations.webp         held-out frames, degraded weakly and strongly (`python -m fv_jax.degrade`)
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import fv_jax
from fv_jax import degrade
from fv_jax.data import embedded
from fv_jax.data.numpy_resize import resize_uint8
from fv_jax.data.shards.shard_files import read_records

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / '.github' / 'images'
PROMPTS = (
    'a ladybug moves from left to right over a beach',
    'a red car moves from right to left over a meadow',
)
FPS, SCALE, GAP, QUALITY = 8, 2, 8, 70


def preview_and_video(path: Path) -> None:
    """Draws one row for each prompt: the preview on the left, its enhanced video on the right."""
    fv = fv_jax.FlashVideo.from_checkpoint('embedded')
    previews = fv.preview(PROMPTS, seed=1)
    rows = []
    for preview, video in zip(previews, fv.enhance(previews), strict=True):
        size = video.frames.shape[1] // 2, video.frames.shape[2] // 2
        small = preview.frames.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        gap = np.full((*small.shape[:2], GAP, 3), 255, np.uint8)
        rows.append(np.concatenate([small, gap, resize_uint8(video.frames, size)], axis=2))
    gap = np.full((len(rows[0]), GAP, *rows[0].shape[2:]), 255, np.uint8)
    frames = np.concatenate([rows[0], *(part for row in rows[1:] for part in (gap, row))], axis=1)
    images = [Image.fromarray(frame) for frame in frames]
    duration = round(1000 / FPS)
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0, quality=QUALITY, method=6)


def degradations(path: Path) -> None:
    """Draws the sheet of `python -m fv_jax.degrade` for the first held-out clip."""
    with tempfile.TemporaryDirectory() as folder:
        clip, sheet = Path(folder) / 'clip.mp4', Path(folder) / 'sheet.png'
        record = next(read_records(embedded.heldout_shards()))
        clip.write_bytes(record['video'])
        arguments = [
            f'--config={ROOT}/configs/degradations.py',
            f'--input={clip}',
            f'--output={sheet}',
            '--num-samples=2',
        ]
        if code := degrade.main(arguments):
            raise RuntimeError(f'fv_jax.degrade ended with exit code {code}')
        image = Image.open(sheet).convert('RGB')
        image.thumbnail((1200, 1200))
        image.save(path, quality=QUALITY, method=6)


if __name__ == '__main__':
    IMAGES.mkdir(parents=True, exist_ok=True)
    preview_and_video(IMAGES / 'preview_and_video.webp')
    degradations(IMAGES / 'degradations.webp')
