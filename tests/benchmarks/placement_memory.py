"""Measures the memory of the host and of the devices while a full-size stage 1 is placed over simulated devices.

    python tests/benchmarks/placement_memory.py --folder /somewhere/large
    python tests/benchmarks/placement_memory.py --folder /somewhere --layers 10 --mesh data=8   # a quarter, replicated
    python tests/benchmarks/placement_memory.py --folder /tmp --layers 2 --width 512               # to try it

Writes FOLDER/stage1.pt (random, bfloat16, with LoRA, in the official layout; 11.8 GB at full size, kept for the next
time), places it with its LoRA merged, as `FlashVideo.from_official` does, and prints the curve: seconds, resident
memory, bytes of the parameters on all devices, and the rest.

Devices are simulated on the CPU, so that what a device would hold is resident too: the rest is an upper bound of what
the host holds, with the layer that is being placed and the float32 arrays in which its LoRA is merged. NumPy's part is
traced and printed by itself. FOLDER/placement_memory.csv has all samples, and the part of the resident memory that is
the process's own, without pages of the mapped file. Exit code 1: over the limit.
"""

import argparse
import contextlib
import csv
import dataclasses
import math
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
from flax import nnx

from fv_jax.models.dit import STAGE1
from fv_jax.models.lora import LoRAConfig
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.weights import reader
from fv_jax.weights.layouts import key_table, official_dit
from tests.weights import full_size_memory

DEVICES = 8
INTERVAL_S = 0.05
ROWS = 24  # of the printed curve
GB = 1e9
COLUMNS = ('seconds', 'resident', 'own', 'shards')
Sample = tuple[float, int, int, int]  # of COLUMNS, in seconds and bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--layers', type=int, default=STAGE1.num_layers)
    parser.add_argument('--width', type=int, default=STAGE1.embed_dim, help='a multiple of 512')
    parser.add_argument('--mesh', default=f'fsdp={DEVICES}', help=f'axis=size,..., {DEVICES} devices in all')
    parser.add_argument('--limit-gb', type=float, default=1.0, help='of host memory beside the shards')
    arguments = parser.parse_args()
    width = arguments.width
    sizes = {'num_layers': arguments.layers, 'embed_dim': width, 'num_heads': width // 64, 'mlp_dim': 4 * width}
    config = dataclasses.replace(STAGE1, **sizes, lora=LoRAConfig())
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.folder / 'stage1.pt'
    if not file.exists():
        full_size_memory.make(file, config)
    axes = {'data': 1} | {name: int(size) for name, _, size in (x.partition('=') for x in arguments.mesh.split(','))}
    partitioner = Partitioner(make_mesh(ParallelConfig(**axes)), 'fsdp')

    source = reader.open_weights(file, param_dtype='bfloat16')
    largest = max(tensor.storage.values.nbytes for tensor in source.tensors.values())
    values, merged = official_dit.merge_lora_parameters(source.parameters(), source.config)
    shapes = reader.abstract_network(merged)
    parameters = {leaf.shape for _, leaf in nnx.to_flat_state(nnx.state(shapes))}
    samples = [_sample(0.0, parameters)]
    start = samples[0]
    tracemalloc.start()
    with _sampling(samples, parameters):
        network = key_table.build_module(shapes, values, partitioner)
        jax.block_until_ready(nnx.state(network))
    _, traced = tracemalloc.get_traced_memory()
    write_curve(arguments.folder / 'placement_memory.csv', samples)
    peak = max(resident - shards for _, resident, _, shards in samples) - start[1]
    own = max(own - shards for _, _, own, shards in samples) - start[2]
    print(
        f'{arguments.mesh}: placed {samples[-1][3] / GB:.2f} GB in {samples[-1][0]:.0f} s; resident '
        f'{start[1] / GB:.2f} GB before, {max(row[1] for row in samples) / GB:.2f} GB at most\n'
        f'beside the shards: {peak / GB:.3f} GB at most, {own / GB:.3f} GB without pages of the file; NumPy and Python '
        f'{traced / GB:.3f} GB; largest tensor of the file {largest / GB:.3f} GB'
    )
    return 0 if peak < arguments.limit_gb * GB else 1


@contextlib.contextmanager
def _sampling(samples: list[Sample], parameters: set[tuple[int, ...]]) -> Iterator[None]:
    """Appends samples from another thread until it exits."""
    done, started = threading.Event(), time.monotonic()

    def append() -> None:
        seconds, resident, own, shards = _sample(time.monotonic() - started, parameters)
        # A buffer that is donated is for a moment no live array.
        samples.append((seconds, resident, own, max(shards, samples[-1][3])))

    def run() -> None:
        while not done.wait(INTERVAL_S):
            append()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    done.set()
    thread.join()
    append()


def _sample(seconds: float, parameters: set[tuple[int, ...]]) -> Sample:
    """Takes a sample. parameters: shapes of the arrays that count as shards."""
    shards = sum(_bytes(array) for array in jax.live_arrays() if array.shape in parameters)
    return seconds, *full_size_memory.resident(os.getpid()), shards


def _bytes(array: jax.Array) -> int:
    """Returns the bytes of an array on all devices."""
    shape = array.sharding.shard_shape(array.shape)
    return len(array.sharding.device_set) * math.prod(shape) * array.dtype.itemsize


def write_curve(path: Path, samples: list[Sample]) -> None:
    """Writes all samples to a file, and prints the one with the largest rest of each of ROWS intervals."""
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([COLUMNS, *samples])
    print(f'{"seconds":>8} {"resident":>9} {"shards":>9} {"rest":>9}  GB')
    for i in range(ROWS):
        within = samples[i * len(samples) // ROWS : (i + 1) * len(samples) // ROWS]
        if within:
            seconds, resident, _, shards = max(within, key=lambda row: row[1] - row[3])
            bar = '#' * round(4 * shards / GB) + '+' * round(4 * (resident - shards) / GB)
            print(f'{seconds:8.1f} {resident / GB:9.2f} {shards / GB:9.2f} {(resident - shards) / GB:9.2f}  {bar}')


if __name__ == '__main__':
    sys.exit(main())
