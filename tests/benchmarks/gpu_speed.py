"""Speed on one GPU: attention compared with torch's, the training step and the sampler of stage 2 at full width.

    bash launch/benchmark.sh --gpu [--tokens 16384,32768,104746] [--size 49x544x960] [--json gpu_speed.json]

Attention: one example of 30 heads of 64 in bfloat16, ours, tokamax's kernel for Hopper and torch's
scaled_dot_product_attention (cuDNN and FlashAttention), alternating in the same process. TFLOP/s are of the formula,
4 M^2 D forward and 12 M^2 D forward and backward, without what a kernel recomputes. Exactness is the distance of the
output, and of the worst gradient, to the float32 reference over 2,048 tokens, relative to its norm. The training step
and the sampler (5 evaluations, guided) take one clip's latents of the size; MFU is of the model FLOPs
(`fv_jax.planning.flops`). Medians; the first run of each, which compiles, is not counted. torch is the extra [torch],
tokamax a package of that name for GPUs; without them, or for a kernel that fails, the file has the reason.

The file holds the command, the device and the versions. On a CPU everything runs too, at sizes that fit one.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# torch needs room on the same GPU.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core import throughput
from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.command_line import format_error, read_config
from fv_jax.kernels import reference
from fv_jax.kernels.attention import attention
from fv_jax.parallel.mesh import make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import planner, step_cost
from fv_jax.sampling import programs
from fv_jax.sampling.noise import SeededNoise
from fv_jax.sampling.programs import LoadedStage
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.training.run.setup import TrainConfig, TrainSetup, make_partitioner, make_train_setup
from fv_jax.training.step import train_step

Run = Callable[[], Any]  # dispatches one run, and returns what to wait for
FORWARD, BOTH = 4, 12  # products of M x M x D, twice each
EXACT_TOKENS = 2048


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Attention, training step and sampler of stage 2 on one device.')
    parser.add_argument('--tokens', default='16384,32768,104746', help="of attention; '' leaves it out")
    parser.add_argument('--size', default='49x544x960', help="FRAMESxHEIGHTxWIDTH of the clip; '' leaves networks out")
    parser.add_argument('--config', default='configs/stage2.py')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', type=Path, default=Path('gpu_speed.json'))
    options = parser.parse_args(argv)
    device = jax.devices()[0]
    found: dict[str, Any] = {
        'command': shlex.join(['python', 'tests/benchmarks/gpu_speed.py', *(sys.argv[1:] if argv is None else argv)]),
        'device': device.device_kind,
        'versions': {name: _version(name) for name in ('jax', 'torch', 'tokamax')},
    }
    config = read_config(TrainConfig, options.config, ())
    if options.tokens:
        heads = config.stage.network.num_heads, config.stage.network.head_dim
        rows = [_attention(int(n), heads, options.rounds) for n in options.tokens.split(',')]
        found['attention'] = rows
        found['exactness'] = _exactness(heads)
    if options.size:
        setup = _train_setup(options.config, tuple(int(side) for side in options.size.split('x')))
        found['networks'] = {'size': options.size} | _networks(setup, options.rounds)
    options.json.write_text(json.dumps(found, indent=1) + '\n')
    print(f'{options.json}: written')
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'not installed'


def seconds(run: Run, wait: Callable[[Any], Any], rounds: int) -> float:
    """Median of a run; the first is not counted."""
    wait(run())
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        wait(run())
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


# --- attention ---


def _attention(tokens: int, heads: tuple[int, int], rounds: int) -> dict[str, Any]:
    """One length: TFLOP/s by kernel, forwards and both ways."""
    rng = np.random.default_rng(0)
    qkv = [rng.standard_normal((1, tokens, *heads), np.float32) for _ in range(3)]
    kernels = {name: _jax_attention(kernel, qkv) for name, kernel in _jax_kernels().items()}
    if importlib.util.find_spec('torch') is not None:
        kernels |= _torch_attention(qkv)
    row: dict[str, Any] = {'tokens': tokens}
    for name, (forward, both, wait) in kernels.items():
        row[name] = {}
        for way, run, products in (('forward', forward, FORWARD), ('both', both, BOTH)):
            flops = products * tokens**2 * heads[0] * heads[1]
            try:
                row[name][way] = flops / seconds(run, wait, rounds) / 1e12
            except (RuntimeError, ValueError, TypeError) as error:  # no kernel for this device or length, or no memory
                row[name][way] = f'refused: {format_error(error)[:200]}'
        print(f'attention, {tokens} tokens, {name}: {_format_times(row[name])}', flush=True)
    return row


def _format_times(ways: dict[str, float | str]) -> str:
    return ', '.join(f'{way} {x if isinstance(x, str) else f"{x:.4g} TFLOP/s"}' for way, x in ways.items())


def _jax_kernels() -> dict[str, Callable]:
    kernels: dict[str, Callable] = {'fv_jax': attention}
    if jax.default_backend() == 'gpu' and importlib.util.find_spec('tokamax') is not None:
        import tokamax

        kernels['tokamax'] = functools.partial(tokamax.dot_product_attention, implementation='mosaic')
    return kernels


def _exactness(heads: tuple[int, int]) -> dict[str, dict[str, float | str]]:
    """Relative distance to the reference in float32, which gets the same rounded numbers."""
    rng = np.random.default_rng(1)
    shape = 1, EXACT_TOKENS, *heads
    *qkv, probe = (jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16) for _ in range(4))

    def run(kernel: Callable, inputs: list[jax.Array], cotangent: jax.Array) -> list[np.ndarray]:
        def both(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> tuple[jax.Array, ...]:
            out, pull = jax.vjp(kernel, q, k, v)
            return out, *pull(do)

        return [np.asarray(x, np.float64) for x in jax.jit(both)(*inputs, cotangent)]

    expected = run(reference.attention, [x.astype(jnp.float32) for x in qkv], probe.astype(jnp.float32))
    rows: dict[str, dict[str, float | str]] = {}
    for name, kernel in _jax_kernels().items():
        try:
            actual = run(kernel, qkv, probe)
        except (RuntimeError, ValueError, TypeError) as error:
            rows[name] = {'refused': format_error(error)[:200]}
            continue
        out, *gradients = (np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(actual, expected, strict=True))
        rows[name] = {'output': float(out), 'gradients': float(max(gradients))}
    print(f'exactness: {rows}', flush=True)
    return rows


def _jax_attention(kernel: Callable, qkv: list[np.ndarray]) -> tuple[Run, Run, Callable]:
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in qkv)
    forward = jax.jit(kernel)
    both = jax.jit(jax.grad(lambda *qkv: kernel(*qkv).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
    return lambda: forward(q, k, v), lambda: both(q, k, v), jax.block_until_ready


def _torch_attention(qkv: list[np.ndarray]) -> dict[str, tuple[Run, Run, Callable]]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    where = 'cuda' if torch.cuda.is_available() else 'cpu'
    tensors = [torch.tensor(x, dtype=torch.bfloat16, device=where).transpose(1, 2).contiguous() for x in qkv]
    backends = {'torch flash': SDPBackend.FLASH_ATTENTION}
    if where == 'cuda':
        backends['torch cudnn'] = SDPBackend.CUDNN_ATTENTION

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*tensors)

    def wait(result: object) -> None:
        if where == 'cuda':
            torch.cuda.synchronize()

    def of(backend: SDPBackend) -> tuple[Run, Run, Callable]:
        def forward() -> torch.Tensor:
            with sdpa_kernel([backend]), torch.inference_mode():
                return attend()

        def both() -> tuple[torch.Tensor, ...]:
            for tensor in tensors:
                tensor.requires_grad_(True)
            with sdpa_kernel([backend]):
                return torch.autograd.grad(attend().float().sum(), tensors)

        return forward, both, wait

    return {name: of(backend) for name, backend in backends.items()}


# --- networks ---


def _train_setup(program: str, size: tuple[int, int, int]) -> TrainSetup:
    sides = zip(('frames', 'height', 'width'), size, strict=True)
    overrides = [(f'data.{name}', str(value)) for name, value in sides]
    config = read_config(TrainConfig, program, [*overrides, ('data.loader.batch_size', '1')])
    latent_spec = planner.latent_spec(config)
    partitioner = make_partitioner(config, make_mesh(config.parallel, jax.devices()[:1]), latent_spec)
    return make_train_setup(config, partitioner, latent_spec)


def _networks(setup: TrainSetup, rounds: int) -> dict[str, Any]:
    data, dit = setup.config.data, setup.config.stage.network
    latents = setup.latent_spec.latent_size(data.frames, data.height, data.width)
    key = jax.random.key(0)
    z = [jax.random.normal(jax.random.fold_in(key, i), (1, *latents, dit.latent_channels)) for i in range(2)]
    text_BLD = jax.random.normal(key, (1, setup.stage.config.text_length, dit.text_dim))
    batch = {'z_high_BFHWC': z[0], 'z_low_BFHWC': z[1], 'text_BLD': text_BLD}
    sampler = _sampler(setup, z[1], text_BLD)
    done = {
        'sampler': step_cost.sampler_cost(setup.stage, latents, 1),
        'training step': step_cost.train_step_cost(setup, None)(batch),
    }
    out = {'sampler': _figures('sampler', done['sampler'], seconds(sampler, jax.block_until_ready, rounds))}
    del sampler  # its weights
    step = _training(setup, batch, key)
    name = 'training step'
    return out | {name: _figures(name, done[name], seconds(step, jax.block_until_ready, rounds))}


def _figures(name: str, done: throughput.StepCost, taken: float) -> dict[str, float]:
    values = throughput.throughput_metrics(done, taken) | throughput.peak_memory()
    print(f'{name}: {taken:.4g} s, {throughput.format_metrics(values)}', flush=True)
    return {'seconds': taken} | values


def _training(setup: TrainSetup, batch: dict[str, jax.Array], key: jax.Array) -> Run:
    config = setup.config
    state = [jax.jit(setup.init_train_state, out_shardings=setup.shardings)(key)]
    step = train_step(
        setup.stage, setup.network, setup.tx, config.optim, config.loop.num_steps, setup.context, setup.shardings
    )

    def run() -> Any:
        state[0], metrics = step(state[0], batch, key)
        return metrics

    return run


def _sampler(setup: TrainSetup, z_low: jax.Array, text_BLD: jax.Array) -> Run:
    """As an official file is opened: the weights in the compute dtype."""
    dit = dataclasses.replace(setup.config.stage.network, param_dtype=setup.config.stage.network.dtype)
    stage = dataclasses.replace(setup.stage, network=dit)

    def load(partitioner: Partitioner) -> nnx.Module:
        del partitioner  # of one device
        graphdef, _ = nnx.split(abstract_module(stage.init))
        return nnx.merge(graphdef, jax.jit(lambda: nnx.split(stage.init(nnx.Rngs(0)))[1])())

    loaded = LoadedStage.create(stage, load, SamplingMesh.create(devices=jax.devices()[:1]))
    return lambda: programs.enhance_latents(loaded, z_low, text_BLD, SeededNoise.from_seeds([0]))


if __name__ == '__main__':
    sys.exit(main())
