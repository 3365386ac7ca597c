"""Times our data pipeline beside a plain PyTorch one that does the same, in one run on one machine.

    bash launch/benchmark.sh --data [--clips 12] [--frames 17] [--cores N] [--json FILE]

Both decode H.264 clips, mirror half of them and make weak, or weak and strong, degraded variants, at 270x480 and
1080x1920. `plain_torch_data.py` is a Dataset with a DataLoader. In turns, after one clip of each that does not count.
Reported: frames a second and core. On one core (the default) both run in this process and CPU seconds are counted, so
that whatever else runs does not matter; on more, ours are threads, theirs worker processes, and the clock counts.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from configs import degradations as published
from fv_jax.core.config import build
from fv_jax.data.degradation.degradations import Degradation, Degrade
from fv_jax.data.loader import LoaderConfig, load_batches
from fv_jax.data.transforms import Flip, compose, decode_video, keep_arrays, normalize_video
from fv_jax.data.video import encoding
from tests.benchmarks import plain_torch_data

SIZES = {'270p': (256, 480), '1080p': (1072, 1920)}  # cut to multiples of 16, as they are trained on


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Times the data pipeline beside a plain PyTorch one.')
    parser.add_argument('--clips', type=int, default=12, help='timed, of each kind, at 270p; a third at 1080p')
    parser.add_argument('--frames', type=int, default=17, help='of a clip')
    parser.add_argument('--cores', type=int, default=1)
    parser.add_argument('--json', default=None, help='where to write the figures too')
    arguments = parser.parse_args(argv)
    rows = []
    for (name, size), degraded in itertools.product(SIZES.items(), ('weak', 'weak+strong')):
        clips = arguments.clips if name == '270p' else max(arguments.clips // 3, 2)
        row = compare(name, size, degraded, clips, arguments.frames, arguments.cores)
        rows.append(row)
        print(
            '{size:>6} {degraded:<12} ours {ours:7.1f}  torch {torch:7.1f} frames/s a core   x{ratio:.2f}'.format(**row)
        )
    if arguments.json:
        with open(arguments.json, 'w', encoding='utf-8') as file:
            json.dump(rows, file, indent=1)
    return 0


def compare(name: str, size: tuple[int, int], degraded: str, clips: int, frames: int, cores: int) -> dict:
    """One row: frames a second and core of both, the medians of three turns each."""
    videos = [_write_videos(frames, size, seed) for seed in range(4)]
    strong = published.strong() if degraded == 'weak+strong' else None
    found: dict[str, list[float]] = {'ours': [], 'torch': []}
    torch.set_num_threads(1)  # as DataLoader's workers have it
    cv2.setNumThreads(1)
    for _ in range(3):
        found['ours'].append(_rate(_ours(videos, strong, cores), clips, frames, cores) / cores)
        theirs = plain_torch_data.loader(videos, strong, length=clips + 1 + cores, workers=cores if cores > 1 else 0)
        found['torch'].append(_rate(iter(theirs), clips, frames, cores) / cores)
    rates = {side: float(np.median(values)) for side, values in found.items()}
    return {'size': name, 'degraded': degraded, **rates, 'ratio': rates['ours'] / rates['torch'], 'cores': cores}


def _rate(iterator: Iterator, clips: int, frames: int, cores: int) -> float:
    """Frames a second of all cores."""
    clock = time.process_time if cores == 1 else time.perf_counter
    next(iterator)
    began = clock()
    for _ in range(clips):
        next(iterator)
    return clips * frames / (clock() - began)


def _ours(videos: list[bytes], strong: dict | None, cores: int) -> Iterator:
    probability = published.STRONG_PROBABILITY if strong else 0.0
    values = {'weak': published.WEAK, 'strong': strong, 'strong_probability': probability}
    degraded = Degrade(build(Degradation, values))
    transform = compose(decode_video, Flip(), normalize_video, degraded, keep_arrays)
    config = LoaderConfig(batch_size=1, num_threads=cores if cores > 1 else 0, prefetch_batches=2 * cores)
    return load_batches([{'video': video} for video in videos], transform, config)


def _write_videos(frames: int, size: tuple[int, int], seed: int) -> bytes:
    """Writes a video with moving texture as mp4."""
    rng = np.random.default_rng(seed)
    canvas = rng.integers(0, 255, (size[0] // 4 + 8, size[1] // 4 + frames + 8, 3), dtype=np.uint8)
    canvas = np.kron(canvas, np.ones((4, 4, 1), np.uint8))
    source_video = [canvas[4 : 4 + size[0], 4 + 2 * f : 4 + 2 * f + size[1]] for f in range(frames)]
    return encoding.encode_bytes(source_video, 24, crf=20, preset='veryfast')


if __name__ == '__main__':
    sys.exit(main())
