"""Does the loader's memory grow? Resident memory over many batches of the embedded video, with weak and strong
degradations.

    python tests/benchmarks/loader_memory.py [--batches 2000] [--size 128x240] [--train embedded]

Reported every tenth of the way: MiB of this process. The first tenth does not count: threads start, libraries take
their pools. Growth is the slope of a straight line through the others.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from configs import degradations as published
from fv_jax.core.config import build
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.models.vae import OFFICIAL


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The loader's memory over many batches.")
    parser.add_argument('--batches', type=int, default=2000)
    parser.add_argument('--size', default='128x240', help='HEIGHTxWIDTH of a clip')
    parser.add_argument('--train', default='embedded', help='a source, as in data.train')
    arguments = parser.parse_args(argv)
    height, width = map(int, arguments.size.split('x'))
    loader = {'batch_size': 1, 'num_threads': 1, 'prefetch_batches': 2}
    fields = {'train': arguments.train, 'frames': 17, 'height': height, 'width': width, 'fit': 'resize'}
    config = build(DataConfig, fields | {'loader': loader} | published.weak_and_strong())
    bad = BadRecords(config.bad_records)
    groups = pipeline.group_by_bucket(pipeline.training_sources(config, bad), config, OFFICIAL.latent_spec)
    drawn = pipeline.make_streams(groups, config, low_res=True)
    found = []
    for i, _ in enumerate(pipeline.train_batches(drawn, config, bad, start_step=0, process=(0, 1))):
        if i % max(arguments.batches // 10, 1) == 0:
            found.append((i, _resident_mib()))
            print(f'batch {i:5d}: {found[-1][1]:7.1f} MiB', flush=True)
        if i == arguments.batches:
            break
    steps, sizes = np.array(found[1:]).T
    slope = np.polyfit(steps, sizes, 1)[0]
    print(f'growth: {1000 * slope:+.1f} MiB in 1,000 batches; {sizes.min():.0f} to {sizes.max():.0f} MiB')
    return 0


def _resident_mib() -> float:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) / 1024
    raise RuntimeError('/proc/self/status has no VmRSS')


if __name__ == '__main__':
    sys.exit(main())
