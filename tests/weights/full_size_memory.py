"""Measures the memory of converting a full-size stage 1 of random weights to a run and back, from outside.

    python tests/weights/full_size_memory.py --folder /somewhere/large
    python tests/weights/full_size_memory.py --folder /somewhere --layers 10        # a quarter
    python tests/weights/full_size_memory.py --folder /tmp --layers 2 --width 128   # to try it

Writes FOLDER/stage1.pt (bfloat16, 11.8 GB at full size; kept for the next time), converts it to FOLDER/run and that to
FOLDER/back.pt (both removed again), and compares the two files tensor by tensor. Beside each conversion it writes
FOLDER/memory_*.csv: seconds, resident memory and the part of it that is the process's own, in bytes. The rest is the
mapped file, which the system takes back when it likes. Exit code 1: over the limit, or not equal.
"""

import argparse
import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from fv_jax.models.dit import STAGE1, DiTConfig
from fv_jax.models.lora import LoRAConfig
from fv_jax.weights.formats import torch_zip
from fv_jax.weights.formats.torch_zip import TensorSpec
from fv_jax.weights.layouts import official_dit
from fv_jax.weights.layouts.key_table import KeyTable

POOL = 2**26  # random numbers; every tensor is a piece of them
INTERVAL_S = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--layers', type=int, default=STAGE1.num_layers)
    parser.add_argument('--width', type=int, default=STAGE1.embed_dim, help='a multiple of 64')
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of the checkpoint')
    parser.add_argument('--limit-gb', type=float, default=16.0)
    arguments = parser.parse_args()
    width = arguments.width
    sizes = {'num_layers': arguments.layers, 'embed_dim': width, 'num_heads': width // 64, 'mlp_dim': 4 * width}
    config = dataclasses.replace(STAGE1, **sizes, lora=LoRAConfig())
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file, run, back = (arguments.folder / name for name in ('stage1.pt', 'run', 'back.pt'))
    if not file.exists():
        make(file, config)
    peaks = []
    try:
        for name, source, target, dtype in (('there', file, run, arguments.dtype), ('back', run, back, 'bfloat16')):
            peaks.append(watch_memory(arguments.folder / f'memory_{name}.csv', source, target, dtype))
        same = assert_equal(file, back)
    finally:
        shutil.rmtree(run, ignore_errors=True)
        back.unlink(missing_ok=True)
    print(f'equal: {same}; peak {max(peaks) / 1e9:.2f} GB, limit {arguments.limit_gb} GB')
    return 0 if same and max(peaks) < arguments.limit_gb * 1e9 else 1


def make(path: Path, config: DiTConfig) -> None:
    """A file with every official key, of random numbers."""
    dtype = np.dtype(ml_dtypes.bfloat16)
    keys = KeyTable(official_dit.table(config), config.num_layers).keys()
    keys |= {key: x.shape for key, x in official_dit.position_table(config, dtype).items()}
    specs = {key: TensorSpec(shape, dtype) for key, shape in keys.items()}
    rng = np.random.default_rng(0)
    pool = (0.02 * rng.standard_normal(POOL, np.float32)).astype(dtype)

    def tensors():
        for key, spec in specs.items():
            start = rng.integers(0, POOL - spec.size)
            yield key, pool[start : start + spec.size].reshape(spec.shape)

    print(f'{path}: {sum(spec.size for spec in specs.values()):,} numbers in {len(specs):,} tensors')
    partial = path.with_suffix('.partial')
    torch_zip.write(partial, 'module', specs, tensors())
    partial.rename(path)


def watch_memory(curve: Path, source: Path, target: Path, dtype: str) -> int:
    """Runs a conversion and returns the most memory it had resident, file pages included."""
    command = [sys.executable, '-m', 'fv_jax.convert', '--input', source, '--output', target, f'--dtype={dtype}']
    started, rows = time.monotonic(), []
    process = subprocess.Popen([*map(str, command), '--overwrite'])
    while process.poll() is None:
        if memory := resident(process.pid):
            rows.append((time.monotonic() - started, *memory))
        time.sleep(INTERVAL_S)
    curve.write_text('seconds,resident,own\n' + ''.join(f'{s:.1f},{a},{b}\n' for s, a, b in rows))
    peak, own = (max(row[i] for row in rows) for i in (1, 2))
    print(f'{target.name}: {rows[-1][0]:.0f} s, peak {peak / 1e9:.2f} GB resident, {own / 1e9:.2f} GB its own')
    if process.returncode:
        raise SystemExit(f'the conversion failed with exit code {process.returncode}')
    return peak


def resident(pid: int) -> tuple[int, int] | None:
    """Bytes resident, and bytes of them that are the process's own; None when it has ended."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = {line.split(':')[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(('VmRSS', 'RssAnon'))}
    return (found['VmRSS'], found['RssAnon']) if len(found) == 2 else None


def assert_equal(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors."""
    a, b = (torch_zip.read(path)['module'] for path in (first, second))
    if a.keys() != b.keys():
        return False
    for key in a:
        if a[key].dtype != b[key].dtype or not np.array_equal(a[key].numpy().view('u2'), b[key].numpy().view('u2')):
            return False
        for tensor in (a[key], b[key]):
            tensor.drop_pages()
    return True


if __name__ == '__main__':
    sys.exit(main())
