"""Makes the images that README shows, with the weights and the clips that ship:

    python launch/make_readme_images.py [--shots FOLDER]

.github/images/preview_and_video.webp    previews (enlarged) beside the videos enhanced from them, at half their size
.github/images/small_stage1.webp         previews of held-out captions of sprites
.github/images/small_stage2.webp         details of held-out videos: bicubic, enhanced, ground truth; only with --shots,
                                         the output of `python -m fv_jax.evaluate` (configs/README.md has the command)
.github/images/degradations.webp         held-out frames, degraded weakly and strongly (`python -m fv_jax.degrade`)
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import fv_jax
from fv_jax import degrade
from fv_jax.data import embedded
from fv_jax.data.numpy_resize import resize_uint8
from fv_jax.data.shards.shard_files import read_records
from fv_jax.data.synthetic.sprites import PREVIEW, SpriteClips
from fv_jax.data.video.contact_sheet import join_tiles, preview_sheet, stack_lines
from fv_jax.data.video.decoding import decode
from fv_jax.evaluation.strips import find_detail

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / '.github' / 'images'
PROMPTS = (
    'a ladybug moves from left to right over a beach',
    'a red car moves from right to left over a meadow',
)
FPS, SCALE, GAP, QUALITY = 8, 2, 8, 70
SHEET = 16  # previews on a sheet of two columns
DETAIL = 80, 150  # (height, width) of a detail, in pixels of the video
SHOWN = 'bicubic', '4_steps', 'ground_truth'  # names of videos of `evaluate`


def preview_and_video(path: Path, fv: fv_jax.FlashVideo) -> None:
    """Draws one row for each prompt: the preview on the left, its enhanced video on the right."""
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


def held_out_previews(path: Path, fv: fv_jax.FlashVideo) -> None:
    """Draws frames of the previews of the first held-out captions with the seeds of tests.benchmarks.small_weights."""
    clips = SpriteClips('heldout', SHEET, PREVIEW)
    batches = fv.preview_batches([clips.caption(i) for i in range(SHEET)], list(range(SHEET)), batch_size=SHEET)
    rows = [(preview.prompt, preview.frames) for batch in batches for preview in batch]
    columns = [np.asarray(preview_sheet(part)) for part in (rows[::2], rows[1::2])]
    Image.fromarray(join_tiles(columns)).save(path, quality=QUALITY, method=6)


def held_out_shots(path: Path, shots: Path) -> None:
    """Draws the detail with the most edges of each clip that `evaluate` wrote: middle frames at twice their size."""
    rows = []
    for folder in sorted((shots / 'clips').iterdir()):
        videos = [decode(folder / f'{name}.mp4').frames for name in SHOWN]
        middle = [video[len(video) // 2] for video in videos]
        top, left = find_detail(middle[-1], DETAIL)
        details = [frame[top : top + DETAIL[0], left : left + DETAIL[1]] for frame in middle]
        rows.append(join_tiles([detail.repeat(SCALE, axis=0).repeat(SCALE, axis=1) for detail in details]))
    stack_lines(rows).save(path, quality=QUALITY, method=6)


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


def main() -> None:
    parser = argparse.ArgumentParser(description='Makes the images that README and configs/README.md show.')
    parser.add_argument('--shots', type=Path, help='output of fv_jax.evaluate for the embedded held-out clips')
    arguments = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    fv = fv_jax.FlashVideo.from_checkpoint('embedded')
    preview_and_video(IMAGES / 'preview_and_video.webp', fv)
    held_out_previews(IMAGES / 'small_stage1.webp', fv)
    degradations(IMAGES / 'degradations.webp')
    if arguments.shots is not None:
        held_out_shots(IMAGES / 'small_stage2.webp', arguments.shots)


if __name__ == '__main__':
    main()
