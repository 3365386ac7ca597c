"""Seconds per training step and per sampler step of our DiT, beside the same network written plainly in PyTorch.

    python tests/benchmarks/dit_vs_torch.py [--rounds 7] [--json FILE]

By default 8 layers, 512 wide, 8 heads of 64, 1,500 tokens, batch 1, float32, on the CPU. Both networks get the same
weights; before anything is timed their outputs must agree within 1e-4. Runs are interleaved, so that whatever else the
machine does falls on both, and medians are reported. A training step is forward, backward and an AdamW update, a
sampler step a forward pass.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from plain_torch_dit import TorchDiT

from fv_jax.models.dit import DiT, DiTConfig

TOLERANCE = 1e-4
LEARNING_RATE = 1e-4
CONFIG = DiTConfig(embed_dim=512, num_layers=8, num_heads=8, mlp_dim=2048, cond_dim=256, text_dim=256)
LATENTS = (1, 5, 32, 36)  # batch, frames, height, width: 1,440 video tokens
TEXT_TOKENS = 60


def random_params(config: DiTConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The network with every parameter moved off its initial value: zero gates would make the comparison empty."""
    graphdef, params = nnx.split(DiT(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + 0.02 * rng.standard_normal(x.shape), x.dtype), params)
    return graphdef, noisy


def random_inputs(config: DiTConfig) -> list[np.ndarray]:
    """Latents, timestep, text, noise-augmentation timestep and target."""
    rng = np.random.default_rng(1)
    shape = (*LATENTS, config.latent_channels)
    text = rng.standard_normal((LATENTS[0], TEXT_TOKENS, config.text_dim))
    times = np.full(LATENTS[0], 632.5), np.full(LATENTS[0], 675.0)
    arrays = [rng.standard_normal(shape), times[0], text, times[1], rng.standard_normal(shape)]
    return [array.astype(np.float32) for array in arrays]


def torch_state(params: nnx.State) -> dict[str, torch.Tensor]:
    """Our parameters under the names and in the layouts of `TorchDiT`."""
    state = {}
    for path, leaf in nnx.to_flat_state(params):
        *module, name = map(str, path)
        array = np.asarray(leaf[...])
        layers = enumerate(array) if module[0] == 'blocks' else [(None, array)]
        for i, x in layers:
            names = [module[0], str(i), *module[1:]] if i is not None else module
            if name == 'kernel':
                x = x.reshape(x.shape[0], -1).T
            key = '.'.join([*names, 'bias' if name == 'bias' else 'weight'])
            state[key] = torch.tensor(np.ascontiguousarray(x if name == 'kernel' else x.reshape(-1)))
    return state


def jax_steps(graphdef: nnx.GraphDef, params: nnx.State, inputs: list[np.ndarray]) -> tuple[Callable, Callable]:
    """(sampler step, training step), each run to the end when it returns."""
    *arguments, target = map(jnp.asarray, inputs)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=0.01)

    @jax.jit
    def forward(params, *arguments):
        return nnx.merge(graphdef, params)(*arguments)

    def loss(params):
        return jnp.mean(jnp.square(nnx.merge(graphdef, params)(*arguments) - target))

    def update(params, opt_state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    update = jax.jit(update, donate_argnums=(0, 1))
    state = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def train() -> float:
        *state[:], value = update(*state)
        return float(jax.block_until_ready(value))

    return lambda: np.asarray(forward(params, *arguments)), train


def torch_steps(model: TorchDiT, inputs: list[np.ndarray]) -> tuple[Callable, Callable]:
    """The same two steps in PyTorch."""
    *arguments, target = map(torch.tensor, inputs)
    trained = TorchDiT(model.config)
    trained.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LEARNING_RATE, weight_decay=0.01)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return model(*arguments).numpy()

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = (trained(*arguments) - target).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return forward, train


def interleave(steps: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, after one that is not counted."""
    seconds = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='timed rounds of each step')
    parser.add_argument('--json', help='also write the figures here')
    options = parser.parse_args()

    graphdef, params = random_params(CONFIG)
    inputs = random_inputs(CONFIG)
    model = TorchDiT(CONFIG)
    model.load_state_dict(torch_state(params))
    (jax_forward, jax_train), (torch_forward, torch_train) = (
        jax_steps(graphdef, params, inputs),
        torch_steps(model, inputs),
    )

    difference = float(np.abs(jax_forward() - torch_forward()).max())
    losses = [(jax_train(), torch_train()) for _ in range(2)]
    if difference > TOLERANCE or max(abs(a - b) for a, b in losses) > TOLERANCE:
        raise SystemExit(f'the two networks differ: outputs by {difference:.1e}, losses (jax, torch) {losses}')

    cores = len(os.sched_getaffinity(0))  # those that this process may use
    figures = {
        'config': dataclasses.asdict(CONFIG),
        'tokens': TEXT_TOKENS + LATENTS[1] * LATENTS[2] * LATENTS[3] // CONFIG.patch_size**2,
        'difference': difference,
        'cores': cores,
        'versions': {'jax': jax.__version__, 'torch': torch.__version__, 'python': platform.python_version()},
    }
    versions = f'jax {jax.__version__}, torch {torch.__version__}'
    print(f'{figures["tokens"]} tokens, outputs differ by {difference:.1e}; {versions}, {cores} cores')
    print(f'{"seconds a step (median)":28}{"jax":>8}{"torch":>8}{"ratio":>8}')
    for name, steps in (
        ('training', {'jax': jax_train, 'torch': torch_train}),
        ('sampler', {'jax': jax_forward, 'torch': torch_forward}),
    ):
        seconds = interleave(steps, options.rounds)
        medians = {library: statistics.median(values) for library, values in seconds.items()}
        ratio = medians['jax'] / medians['torch']
        figures[name] = {'seconds': seconds, 'median': medians, 'ratio': ratio}
        print(f'{name:28}{medians["jax"]:8.3f}{medians["torch"]:8.3f}{ratio:8.2f}')
    if options.json:
        with open(options.json, 'w', encoding='utf-8') as file:
            json.dump(figures, file, indent=2)


if __name__ == '__main__':
    main()
