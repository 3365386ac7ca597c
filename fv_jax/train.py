"""Trains a stage: `python -m fv_jax.train --config=configs/stage2.py --workdir=DIR`.

Any field of the config can be given: `--config.optim.learning_rate=3e-4`. The same command again goes on where
the run stopped. In the work directory: config.json, metrics.jsonl, tensorboard/, checkpoints/.

Exit codes: 0 the run is complete; 2 wrong usage; 1 it stopped (the message says why; what was saved stays).
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fv_jax import api, weights
from fv_jax.checkpoints.manager import FOLDER, CheckpointError, Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, one_line, quiet_libraries, read_config
from fv_jax.core.config import ConfigError
from fv_jax.data import pipeline
from fv_jax.data.transforms import Latents, chain, keep_arrays, to_uint8
from fv_jax.inference import latent_cache
from fv_jax.inference.jitted import JittedVAE
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.stages import registry
from fv_jax.stages.base import Batch, Stage
from fv_jax.training import loop, optim, state
from fv_jax.training.metrics import MetricWriter

CONFIG = 'config.json'


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run.

    init_from: what its parameters start from: the folder of another run (its newest checkpoint), or a file or folder
      that `fv_jax.weights` reads, such as stage1.pt. None: new ones.
    """

    stage: registry.StageConfig
    data: pipeline.DataConfig
    optim: optim.OptimConfig
    loop: loop.LoopConfig
    seed: int = 0
    init_from: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except (UsageError, ConfigError) as error:
        return _fail(error, 2)
    except (CheckpointError, FloatingPointError, OSError, ValueError, jax.errors.JaxRuntimeError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail('interrupted; run the same command again to go on from the last checkpoint', 130)


def _fail(error: object, code: int) -> int:
    print(f'train: {one_line(error)}', file=sys.stderr)
    return code


def _say(line: str) -> None:
    print(line, flush=True)


def _main(argv: Sequence[str]) -> int:
    quiet_libraries()
    parser = Parser('python -m fv_jax.train', 'Trains a stage of FlashVideo.', OVERRIDES)
    parser.add_argument('--config', required=True, help='a config program and variant, configs/stage2.py:tiny')
    parser.add_argument('--workdir', type=Path, required=True, help='where the run is kept; made if it is not there')
    arguments, overrides = parser.parse(argv)
    config = read_config(RunConfig, arguments.config, overrides)
    _check_folder(arguments.workdir, config)
    _say(f'{config.stage.kind}: {arguments.config} in {arguments.workdir}')
    run(config, arguments.workdir)
    return 0


# --- the work directory ---


def _check_folder(workdir: Path, config: RunConfig) -> None:
    """Refuses a folder that holds another run. Everything but `loop` must be the same."""
    path = workdir / CONFIG
    if not path.exists():
        return
    try:
        old = config_lib.to_dict(config_lib.build(RunConfig, json.loads(path.read_text())))
    except ValueError as error:
        raise UsageError(f'{path}: cannot be read ({one_line(error)}); choose another --workdir') from None
    different = [d for d in _differences(old, config_lib.to_dict(config)) if not d.startswith('loop.')]
    if different:
        more = f' and {len(different) - 1} more' if len(different) > 1 else ''
        raise UsageError(f'{workdir}: holds another run: {different[0]}{more}; choose another --workdir')


def _differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f'{path}.{key}' if path else key)
    elif old != new:
        yield f'{path} is {old!r} there and {new!r} here'


def _claim_folder(workdir: Path, config: RunConfig) -> Checkpoints:
    """Makes the folder this run's."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(config_lib.to_dict(config), indent=1) + '\n')
    os.replace(partial, path)
    return Checkpoints(workdir, keep=config.loop.keep)


# --- the run ---


def run(config: RunConfig, workdir: Path) -> None:
    """Wires a run together and trains it to the end. What can be wrong is found before anything is written."""
    vae = api.frozen_vae(config.stage)
    stage = registry.build(config.stage, encoder=vae.latents if vae else None)
    network = state.Network.of(stage)
    sources = _sources(config)
    train_state = _starting_state(config, workdir, stage, network)
    start = int(train_state.step)
    _introduce(config, train_state)
    if start >= config.loop.num_steps:
        _say('complete: nothing to do; --config.loop.num_steps=N goes on to step N')
        return
    checkpoints = _claim_folder(workdir, config)
    train, heldout = _data(config, sources, workdir, vae, start)
    validation = _validation(stage, vae, heldout) if heldout else None
    _say('compiling the training step')
    with MetricWriter(workdir, start_step=start, line=_say) as writer:
        training = loop.Loop(
            stage=stage,
            network=network,
            optim=config.optim,
            config=config.loop,
            rules=SINGLE_DEVICE,
            key=jax.random.fold_in(jax.random.key(config.seed), 1),
            writer=writer,
            save=functools.partial(_save, checkpoints, config_lib.to_dict(config)),
            validation=validation,
        )
        training.run(train_state, train)
    _say(f'done: {config.loop.num_steps} steps, checkpoints in {checkpoints.folder}')


def _introduce(config: RunConfig, train_state: state.TrainState) -> None:
    step, devices = int(train_state.step), jax.devices()
    _say(
        f'{_count(train_state.trainable):,} trainable parameters on {len(devices)} {devices[0].platform} device(s), '
        f'batch {config.data.loader.batch_size}'
    )
    _say(f'{"going on from" if step else "starting at"} step {step} of {config.loop.num_steps}')


def _validation(stage: Stage, vae: JittedVAE | None, heldout: list[Batch]) -> loop.Validation:
    _say(f'{len(heldout)} held-out clip(s)')
    return loop.Validation([stage.encode(batch) for batch in heldout], functools.partial(_videos, vae))


def _save(checkpoints: Checkpoints, values: dict[str, Any], step: int, train_state: state.TrainState) -> None:
    checkpoints.save(step, state.to_items(train_state), values)
    _say(f'saved step {step}')


def _starting_state(config: RunConfig, workdir: Path, stage: Stage, network: state.Network) -> state.TrainState:
    """The newest checkpoint of this run, or the parameters of another, or new ones."""
    tx = optim.optimizer(config.optim, config.loop.num_steps)
    ema, key = config.optim.ema_decay > 0, jax.random.key(config.seed)
    # Placed alike in all three cases, so that the step is one program: a resumed run's numbers are those of the first.
    placed = functools.partial(jax.jit, out_shardings=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    create = functools.partial(state.new_state, network, stage, tx, ema=ema)
    abstract = state.to_items(jax.eval_shape(create, key))
    if (workdir / FOLDER).is_dir() and (own := Checkpoints(workdir, read_only=True)).latest_step is not None:
        return state.from_items(own.restore(abstract), ema=ema)
    if config.init_from is not None:
        numbers = _given_numbers(config, config.init_from, stage, abstract['params'])
        _say(f'with the parameters of {config.init_from}')
        return placed(functools.partial(state.state_of, tx=tx, ema=ema))(*numbers)
    return placed(create)(key)


def _given_numbers(config: RunConfig, name: str, stage: Stage, abstract: Any) -> tuple[Any, Any]:
    """The parameters that `init_from` names: (trainable, frozen)."""
    if not weights.is_weights(name):
        params = Checkpoints(name, read_only=True).restore({'params': abstract})['params']
        return params['trainable'], params['frozen']
    if config.stage.dit is not None:
        network = weights.starting_dit(name, config.stage.dit, jax.random.key(config.seed))
    else:
        network = weights.load_vae(name)
        there, wanted = (
            dataclasses.replace(c, dtype='float32') for c in (network.config, config.stage.autoencoder_net)
        )
        if there != wanted:
            raise ConfigError(f'config.init_from={name}: is a VAE of other sizes, {there}; this run has {wanted}')
    return state.numbers_of(stage, network)


# --- its data ---


def _sources(config: RunConfig) -> tuple[pipeline.Source, pipeline.Source | None]:
    """The records to train on and, if any are evaluated, the held-out ones."""
    data = config.data
    heldout = pipeline.source(data.heldout, data, heldout=True) if data.heldout and config.loop.eval_every else None
    return pipeline.source(data.train, data, heldout=False), heldout


def _data(
    config: RunConfig,
    sources: tuple[pipeline.Source, pipeline.Source | None],
    workdir: Path,
    vae: JittedVAE | None,
    start: int,
) -> tuple[Iterator[Batch], list[Batch]]:
    """Training batches from step `start` on, and the held-out ones."""
    data, (records, heldout), low_res = config.data, sources, registry.needs_low_res(config.stage)
    if vae is not None and data.cache is not None:
        digest = latent_cache.file_digest(weights.vae_path(config.stage.vae))
        transform = pipeline.pixels(data, low_res=False, training=True)
        folder = workdir / latent_cache.FOLDER
        records = latent_cache.cached_latents(folder, records, transform, vae, data, digest, progress=_say)
        transform = chain(Latents(data.cache.crop), keep_arrays)
    else:
        transform = pipeline.pixels(data, low_res=low_res, training=True)
    process = jax.process_index(), jax.process_count()
    train = pipeline.train_batches(records, transform, data, start_step=start, process=process)
    if heldout is None:
        return train, []
    transform = pipeline.pixels(data, low_res=low_res, training=False)
    return train, pipeline.heldout_batches(heldout, transform, data)


def _videos(vae: JittedVAE | None, samples: dict[str, jax.Array]) -> list[tuple[str, np.ndarray]]:
    """The first clip of every array of `Stage.sample`, as uint8; latents are decoded."""
    out = []
    for name, value in samples.items():
        video = vae.video(value[:1]) if name.startswith('z_') else value[:1]
        out.append((name.removeprefix('z_').removesuffix('_BFHWC'), to_uint8(np.asarray(video[0], np.float32))))
    return out


def _count(params: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


if __name__ == '__main__':
    sys.exit(main())
