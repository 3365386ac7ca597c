"""Golden values: what this code computes, recorded before a change and compared after it.

    python -m tests.golden.measure --output before.json     before a change
    python -m tests.golden.measure --compare before.json    after it, on the same machine and jax: the same bits
    python -m tests.golden.measure --record                 rewrites tests/golden/golden.json and parameters.txt

`test_golden.py`, `tests/test_train.py` (stage 1) and `tests/e2e/test_autoencoder.py` (the VAE) compare with the
recorded values within a tolerance, on any machine and version. Record them again only for a change that is meant to
compute something else, and state that in its commit.
"""

import argparse
import dataclasses
import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import fv_jax
from fv_jax import train
from fv_jax.core.abstract_module import abstract_module
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig
from fv_jax.models.t5 import T5, T5Config
from fv_jax.models.vae import VAE, VAEConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN, PARAMETERS = HERE / 'golden.json', HERE / 'parameters.txt'
# By config, with changes. The VAE of `vae.py:smoke` takes a minute to compile and this one, as deep, seconds.
CONFIGS = {
    'stage1': (),
    'stage2': (),
    'vae': ('base_channels=4', 'multipliers=(1, 1, 1, 1)', 'num_res_blocks=1', 'latent_channels=4'),
}
NUM_STEPS = 3
ADVICE = (
    'If this change is meant to compute something else, record it by `python -m tests.golden.measure --record` and '
    'state it in the commit; else find what changed (bit for bit on one machine: --output before, --compare after)'
)
PROMPT, SEED = 'a ladybug moves from left to right over a beach', 1
OFFICIAL_STAGE1 = DiTConfig(
    embed_dim=3072, num_layers=42, num_heads=48, mlp_dim=12288, cond_dim=512, text_dim=4096, lora=LoRAConfig()
)
OFFICIAL_STAGE2 = DiTConfig(
    embed_dim=1920,
    num_layers=30,
    num_heads=30,
    mlp_dim=7680,
    cond_dim=512,
    text_dim=4096,
    embed_num_frames=True,
    embed_noise_augmentation_timestep=True,
)


def training_steps(config: str, workdir: Path) -> list[dict[str, str]]:
    """Loss and gradient norm of the first steps of `configs/CONFIG.py:smoke`, as hexadecimal floats."""
    arguments = [f'--config={ROOT}/configs/{config}.py:smoke', f'--workdir={workdir}']
    loop = [f'--config.loop.num_steps={NUM_STEPS}', '--config.loop.log_every=1', '--config.loop.eval_every=0']
    network = [f'--config.stage.network.{change}' for change in CONFIGS[config]]
    if code := train.main([*arguments, *network, *loop]):
        raise RuntimeError(f'{config}: the training command ended with {code}')
    return read_steps(workdir)


def read_steps(workdir: Path) -> list[dict[str, str]]:
    """Loss and gradient norm of the steps of a run, as hexadecimal floats."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{name: row[name].hex() for name in ('loss', 'grad_norm')} for row in rows if 'loss' in row]


def assert_golden_steps(config: str, found: list[dict[str, str]]) -> None:
    """Loss and gradient norm of the first steps: 1e-5 relative (jax 0.10 and 0.12 agree to 1e-6)."""
    golden = json.loads(GOLDEN.read_text())['steps'][config]
    assert len(found) == NUM_STEPS
    for step, (before, now) in enumerate(zip(golden, found, strict=True), 1):
        for name in before:
            expected, value = float.fromhex(before[name]), float.fromhex(now[name])
            assert abs(value / expected - 1) < 1e-5, (
                f'{config} step {step}: {name} {value}, golden {expected}. {ADVICE}'
            )


def samples() -> dict[str, Any]:
    """Generates a preview and its video with the shipped weights. Returns SHA-256 and statistics of their values."""
    fv = fv_jax.FlashVideo.from_checkpoint('embedded')
    preview = fv.preview(PROMPT, seed=SEED)
    video = fv.enhance(preview, settings=dataclasses.replace(fv.enhance_settings, size=(256, 384)))
    return {
        'preview latents': _summary(preview.latents),
        'preview frames': _summary(preview.frames),
        'enhanced frames': _summary(video.frames),
    }


def _summary(x: np.ndarray) -> dict[str, Any]:
    """statistics: mean and standard deviation of each channel of (F, H, W, C)."""
    means, stds = (f(x.astype(np.float64), axis=(0, 1, 2)) for f in (np.mean, np.std))
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
    return {'shape': list(x.shape), 'sha256': digest, 'mean': means.tolist(), 'std': stds.tolist()}


def parameter_lines() -> list[str]:
    """'NETWORK PATH SHAPE' of every parameter of the official networks, sorted."""
    networks = {
        'stage1': lambda: DiT(OFFICIAL_STAGE1, rngs=nnx.Rngs(0)),
        'stage2': lambda: DiT(OFFICIAL_STAGE2, rngs=nnx.Rngs(0)),
        'vae': lambda: VAE(VAEConfig(), rngs=nnx.Rngs(0)),
        't5': lambda: T5(T5Config(), rngs=nnx.Rngs(0)),
    }
    lines = []
    for name, make in networks.items():
        leaves = nnx.to_flat_state(nnx.state(abstract_module(lambda rngs, make=make: make())))
        lines += [f'{name} {"/".join(map(str, path))} {leaf.shape}' for path, leaf in leaves]
    return sorted(lines)


def measure() -> dict[str, Any]:
    """All golden values of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {config: training_steps(config, Path(folder) / config) for config in CONFIGS}
    return {
        'machine': {'jax': jax.__version__, 'processor': platform.processor() or platform.machine()},
        'steps': steps,
        'samples': samples(),
        'parameters': parameter_lines(),
    }


def differences(before: Any, after: Any, path: str = '') -> list[str]:
    """Lists the values that differ, with their paths."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in differences(before.get(key), after.get(key), f'{path}/{key}')]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for i, (old, new) in pairs for line in differences(old, new, f'{path}/{i}')]
    return [] if before == after else [f'{path}: {before!r} before, {after!r} after']


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument('--output', type=Path, metavar='FILE', help='write the values there')
    group.add_argument('--compare', type=Path, metavar='FILE', help='compare with the values there, bit for bit')
    group.add_argument('--record', action='store_true', help='write those that the tests are held to')
    arguments = parser.parse_args()
    found = measure()
    if arguments.compare:
        wrong = differences(json.loads(arguments.compare.read_text()), found)
        print('\n'.join(wrong) or 'the same to the last bit')
        return int(bool(wrong))
    if arguments.record:
        PARAMETERS.write_text('\n'.join(found.pop('parameters')) + '\n')
    (arguments.output or GOLDEN).write_text(json.dumps(found, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
