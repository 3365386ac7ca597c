"""Trained runs, ready to use: a checkpoint's stage, its parameters, its VAE and its text encoder.

A checkpoint names its VAE and its text encoder by digest, a hash of their parameters (`weights/fingerprints.py` and
`weights/t5_text.py`). Both are looked for where the configuration says, in the run's folder and beside it;
another one is never taken.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax

from fv_jax import weights
from fv_jax.checkpoints.manager import CheckpointError, Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.files import parse_json
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.paths import expand_path
from fv_jax.models.vae import set_compute_dtype
from fv_jax.parallel.rules import Partitioner
from fv_jax.stages import registry
from fv_jax.stages.frozen_vae import JittedVAE, jit_vae
from fv_jax.stages.protocol import Stage
from fv_jax.text.encoder import TextConfig, TextEncoder
from fv_jax.training.state import ModelDef, Params, split_params
from fv_jax.weights import single_file, text_encoders

EMBEDDED = 'embedded'  # what comes with the package: the small VAE, the small stages

ParamsOf = Callable[[Stage, ModelDef], Params]  # read when the stage is known


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint's stage with its parameters for sampling.

    Attributes:
      config: the whole configuration of the run, as a nested dict.
      stage: the stage.
      network: its network without parameters.
      params: for `network.model(**params)`.
      vae: the frozen VAE of the stage's latents; None where the stage has none.
      step: of the checkpoint.
      folder: where the run was found.
      text: the stage's text encoder, which `open_run_text_encoder` opens.
      digests: fingerprints of the VAE and of the text encoder that the checkpoint records.
      notes: what a user should know of the run, a line each.
    """

    config: dict[str, Any]
    stage: Stage
    network: ModelDef
    params: Params
    vae: JittedVAE | None
    step: int
    folder: Path
    text: TextConfig
    digests: dict[str, str]
    notes: tuple[str, ...]


def latent_spec(config: registry.StageConfig) -> LatentSpec:
    """The latents that the stage works on. Of its frozen VAE no parameters are read. Raises as `weights.load_vae`."""
    return registry.latent_spec(config, weights.vae_config(config.vae) if registry.needs_vae(config) else None)


def frozen_vae(config: registry.StageConfig, partitioner: Partitioner | None = None) -> JittedVAE | None:
    """The VAE whose latents the stage works on, on a mesh if one is given; None where the stage needs none.

    Raises ConfigError when its latents do not fit the stage's network, and what `weights.load_vae` raises.
    """
    if not registry.needs_vae(config):
        return None
    vae = set_compute_dtype(weights.load_vae(config.vae), config.vae_dtype)
    there, wanted = vae.config.latent_channels, config.network.latent_channels
    require(
        there == wanted,
        f'config.stage.vae={config.vae}: its latents have {there} channels, and '
        f'config.stage.network.latent_channels={wanted}; set that to {there} or name another VAE',
        ConfigError,
    )
    return jit_vae(vae, partitioner)


def open_run(folder: Path | str, step: int | None = None) -> Run:
    """The newest checkpoint of a work directory or an exported folder, or the one of `step`; or a run in one file.

    Raises:
      CheckpointError: none there, or damaged.
      ConfigError, ValueError, FileNotFoundError: its configuration, or the VAE that it names, cannot be used; or the
        VAE is not there, or is another one.
    """
    folder = Path(expand_path(str(folder)))
    meta, params_of = open_checkpoint(folder, step)
    stage_config, digests = stage_config_of(folder, meta), meta.get('digests', {})
    vae = frozen_vae(stage_config)
    stage = registry.build(stage_config, encoder=vae.encode if vae else None)
    network = ModelDef.from_stage(stage)
    notes = tuple(unverified(stage_config, digests))
    params = params_of(stage, network)
    return Run(meta['config'], stage, network, params, vae, meta['step'], folder, stage_config.text, digests, notes)


def open_checkpoint(run: Path, step: int | None) -> tuple[dict[str, Any], ParamsOf]:
    """Opens a run, in a folder or in one file: returns its metadata and a function that reads its parameters."""
    return _open_single_file(run, step) if run.is_file() else _open_checkpoint_folder(run, step)


def stage_config_of(run: Path, meta: dict[str, Any]) -> registry.StageConfig:
    """A checkpoint's, with the VAE where it was found."""
    config = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    if not registry.needs_vae(config):
        return config
    found = _locate('VAE', config.vae, run, meta.get('digests', {}).get('vae'), weights.vae_fingerprint, {EMBEDDED})
    return dataclasses.replace(config, vae=found)


def _open_checkpoint_folder(folder: Path, step: int | None) -> tuple[dict[str, Any], ParamsOf]:
    checkpoints = Checkpoints(folder, read_only=True)
    meta = _check_metadata(folder, checkpoints.meta(step))

    def params(stage: Stage, network: ModelDef) -> Params:
        trainable, frozen = jax.eval_shape(functools.partial(network.init, stage), jax.random.key(0))
        abstract = {'params': {'trainable': trainable, 'frozen': frozen}}
        return checkpoints.restore(abstract, meta['step'])['params']

    return meta, params


def _open_single_file(path: Path, step: int | None) -> tuple[dict[str, Any], ParamsOf]:
    if single_file.kind_of(path) is None or (meta := single_file_run(path)) is None:
        raise ValueError(f'{path}: is no run in one file, as `python -m fv_jax.export` writes a stage')
    if step not in (None, meta['step']):
        raise CheckpointError(f'{path}: has no step {step}; it has {meta["step"]}')

    def params(stage: Stage, network: ModelDef) -> Params:
        del network
        trainable, frozen = split_params(stage, single_file.load(path))
        return {'trainable': trainable, 'frozen': frozen}

    return meta, params


def single_file_run(path: Path) -> dict[str, Any] | None:
    """Reads the run metadata of a single file: {'step', 'config', 'digests'}; None where the file has none.

    Raises ValueError for what `export` cannot have written.
    """
    if (run := single_file.metadata(path).get(single_file.RUN)) is None:
        return None
    meta = parse_json(run)
    if not isinstance(meta, dict) or not isinstance(meta.get('step'), int):
        raise ValueError(f'{path}: what it says of its run cannot be read; export it again')
    _check_metadata(path, meta)
    return meta


def _check_metadata(run: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Returns the metadata, or raises ValueError where its stage or its digests are missing or invalid."""
    config, digests = meta.get('config'), meta.get('digests', {})
    stage = config.get('stage') if isinstance(config, dict) else None
    if not isinstance(stage, dict) or not isinstance(stage.get('kind'), str) or not isinstance(digests, dict):
        raise ValueError(f'{run}: its configuration holds no stage')
    return meta


def open_run_text_encoder(run: Run) -> TextEncoder:
    """The text encoder that a run's stage was trained with.

    Raises:
      ConfigError: it was trained without texts.
      FileNotFoundError: the encoder's folder is nowhere.
      ValueError: what is there is another one, or not whole.
    """
    if not run.text.encoder:
        raise ConfigError(f'{run.folder}: config.stage.text names no encoder; the stage was trained without texts')

    return text_encoders.open_text_encoder(find_text_encoder(run.folder, run.text, run.digests.get('text')))


def find_text_encoder(run: Path, config: TextConfig, wanted: str | None) -> TextConfig:
    """The text encoder that a run's configuration names, where it was found."""

    def named(name: str) -> TextConfig:
        return dataclasses.replace(config, encoder=name)

    def digest(name: str) -> str:
        return text_encoders.text_fingerprint(named(name)).digest

    return named(_locate('text encoder', config.encoder, run, wanted, digest, text_encoders.NAMED))


def _locate(
    what: str, name: str, run: Path, wanted: str | None, digest: Callable[[str], str], no_files: Collection[str]
) -> str:
    """Where the network of this name and digest is. wanted: None takes the first that exists. no_files: names that are
    not of files.
    """
    if name in no_files:
        there = [name]
    else:
        places = [Path(name), run / Path(name).name, run.absolute().parent / Path(name).name]
        there = [str(place) for place in dict.fromkeys(places) if place.exists()]
        if not there:
            looked = ', '.join(map(str, dict.fromkeys(places)))
            raise FileNotFoundError(f'{run}: its {what} is not there; looked for {looked}')
    if wanted is None:
        return there[0]
    others = {}
    for place in there:
        others[place] = digest(place)
        if others[place] == wanted:
            return place
    listed = ', '.join(f'{place} is {found}' for place, found in others.items())
    raise ValueError(f'{run}: was made with the {what} {wanted}, and {listed}; put {wanted} in one of these places')


def unverified(config: registry.StageConfig, digests: dict[str, str]) -> list[str]:
    """Returns a note for each component whose fingerprint the checkpoint does not record."""
    named = {'vae': ('VAE', config.vae), 'text': ('text encoder', config.text.encoder)}
    return [
        f'the checkpoint does not record the fingerprint of its {what}; assuming {name}'
        for key, (what, name) in named.items()
        if name and key not in digests
    ]
