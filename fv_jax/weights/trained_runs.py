"""Opens trained runs for use: a checkpoint's stage, its parameters, its VAE and its text encoder.

A checkpoint identifies its VAE and its text encoder by digest, a hash of the parameters of both encoders
(`weights/fingerprints.py` and `weights/t5_text.py`). Both are searched at the configured path, in the run's folder and
beside it; others are rejected.
"""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any, Protocol

from flax import nnx

from fv_jax import weights
from fv_jax.checkpoints import streaming
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core import files, hub, paths
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.models.vae import set_compute_dtype
from fv_jax.parallel.arrays import put_sharded
from fv_jax.parallel.rules import Partitioner
from fv_jax.parallel.sharding import parameter_shardings
from fv_jax.stages import registry
from fv_jax.stages.frozen_vae import JittedVAE, jit_vae
from fv_jax.stages.protocol import Stage
from fv_jax.text.encoder import TextConfig, TextEncoder
from fv_jax.training.state import ModelDef, Params, split_params
from fv_jax.weights import embedded, exported_network, text_encoders
from fv_jax.weights.layouts import key_table
from fv_jax.weights.parameters import Parameters

EMBEDDED = 'embedded'  # the small VAE and the small stages in the package


class ParamsReader(Protocol):
    """Reads the parameters of a checkpoint, {'trainable', 'frozen'}, given its stage and network.

    With a partitioner each device receives its part of them; None is one device.
    """

    def __call__(self, stage: Stage, network: ModelDef, partitioner: Partitioner | None = None) -> Params: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint's stage with its parameters for sampling.

    Attributes:
      config: of the run, as a nested dict.
      stage: the stage.
      network: its network without parameters.
      params: for `network.model(**params)`.
      vae: the frozen VAE of the stage's latents; None for a stage without one.
      step: of the checkpoint.
      folder: where the run was found.
      text: the stage's text encoder, which `open_run_text_encoder` opens.
      digests: fingerprints of the VAE's encoder and of the text encoder that the checkpoint records.
      notes: notes for the user, a line each.
    """

    config: dict[str, Any]
    stage: Stage
    network: ModelDef
    params: Params
    vae: JittedVAE | None
    step: int
    folder: StoragePath
    text: TextConfig
    digests: dict[str, str]
    notes: tuple[str, ...]


def latent_spec(config: registry.StageConfig) -> LatentSpec:
    """Reads the geometry of the latents that a stage works on, without parameters. Raises as `weights.load_vae`."""
    return registry.latent_spec(config, weights.vae_config(config.vae) if registry.needs_vae(config) else None)


def load_frozen_vae(config: registry.StageConfig, partitioner: Partitioner | None = None) -> JittedVAE | None:
    """Loads the VAE whose latents a stage works on; None for a stage without one.

    Args:
      config: of the stage.
      partitioner: of a mesh to decode and encode on; None for one device.

    Raises:
      ConfigError: its latents do not match the stage's network.
      FileNotFoundError, ValueError: as `weights.load_vae`.
    """
    if not registry.needs_vae(config):
        return None
    vae = set_compute_dtype(weights.load_vae(config.vae), config.vae_dtype)
    there, wanted = vae.config.latent_channels, config.network.latent_channels
    require(
        there == wanted,
        f'config.stage.vae={config.vae}: its latents have {there} channels, but '
        f'config.stage.network.latent_channels={wanted}; set that to {there} or name another VAE',
        ConfigError,
    )
    return jit_vae(vae, partitioner)


def open_run(
    folder: str | StoragePath,
    step: int | None = None,
    partitioner_of: Callable[[Stage], Partitioner] | None = None,
    vae_partitioner: Partitioner | None = None,
) -> Run:
    """Opens a run for sampling.

    Args:
      folder: a work directory or an exported folder, or an exported file; also on the Hub, hf://USER/NAME.
      step: of the checkpoint; None is the newest.
      partitioner_of: returns the partitioner that places the parameters of the stage; None for one device.
      vae_partitioner: as in `load_frozen_vae`.

    Raises:
      CheckpointError: no checkpoint, or a corrupted one.
      ConfigError, ValueError, FileNotFoundError: its configuration, or the VAE that it names, cannot be used; or the
        VAE does not exist, or is another one.
    """
    folder = files.resolve_weights(folder)
    meta, params_of = open_checkpoint(folder, step)
    stage_config, digests = read_stage_config(folder, meta), meta.get('digests', {})
    vae = load_frozen_vae(stage_config, vae_partitioner)
    stage = registry.build(stage_config, encoder=vae.encode if vae else None)
    network = ModelDef.from_stage(stage)
    notes = tuple(list_unverified(stage_config, digests))
    params = params_of(stage, network, partitioner_of and partitioner_of(stage))
    return Run(meta['config'], stage, network, params, vae, meta['step'], folder, stage_config.text, digests, notes)


def open_checkpoint(run: StoragePath, step: int | None) -> tuple[dict[str, Any], ParamsReader]:
    """Opens a run or what was exported of it; returns its metadata and a function that reads its parameters."""
    return _open_exported(run, step) if is_exported(run) else _open_checkpoint_folder(run, step)


def read_stage_config(run: StoragePath, meta: dict[str, Any]) -> registry.StageConfig:
    """Reads the stage configuration of a checkpoint, with the path at which its VAE was found.

    Args:
      run: the folder of the run.
      meta: the metadata of the checkpoint.

    Raises:
      ConfigError: an invalid configuration.
      FileNotFoundError: the VAE was not found.
      ValueError: only VAEs with other fingerprints were found.
    """
    config = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    if not registry.needs_vae(config):
        return config
    found = _locate('VAE', config.vae, run, meta.get('digests', {}).get('vae'), weights.encoder_fingerprint, {EMBEDDED})
    return dataclasses.replace(config, vae=found)


def _open_checkpoint_folder(folder: StoragePath, step: int | None) -> tuple[dict[str, Any], ParamsReader]:
    checkpoints = Checkpoints(folder, read_only=True)
    meta = _check_metadata(folder, checkpoints.meta(step))

    def params(stage: Stage, network: ModelDef, partitioner: Partitioner | None = None) -> Params:
        del stage
        abstract = {}
        for part, variables in (('trainable', network.trainable), ('frozen', network.frozen)):
            abstract[part] = nnx.to_pure_dict(variables)
            if partitioner is not None:
                abstract[part] = put_sharded(abstract[part], parameter_shardings(partitioner, variables))
        return checkpoints.restore({'params': abstract}, meta['step'])['params']

    return meta, params


def _open_exported(path: StoragePath, step: int | None) -> tuple[dict[str, Any], ParamsReader]:
    meta = _exported_meta(path, step)

    def params(stage: Stage, network: ModelDef, partitioner: Partitioner | None = None) -> Params:
        del network
        trainable, frozen = split_params(stage, exported_network.load(path, partitioner))
        return {'trainable': trainable, 'frozen': frozen}

    return meta, params


def open_stored(run: StoragePath, step: int | None) -> tuple[dict[str, Any], Parameters]:
    """Opens a run or what was exported of it; returns its metadata, and its parameters, each read when it is used.

    Raises:
      CheckpointError: no checkpoint, or none of this step.
      ValueError: a file that is no exported run.
    """
    if is_exported(run):
        return _exported_meta(run, step), exported_network.read_parameters(run)
    stored = streaming.CheckpointReader(run, step)
    return stored.meta, key_table.cast_parameters(stored.arrays())


def embedded_stage(kinds: Collection[str]) -> StoragePath:
    """Returns the file of the small stage in the package that is of one of these kinds.

    Raises:
      FileNotFoundError: there is none.
    """
    for path in map(as_path, embedded.stages()):
        if _exported_meta(path, None)['config']['stage']['kind'] in kinds:
            return path
    raise FileNotFoundError(f'{EMBEDDED}: the package has no stage of kind {" or ".join(kinds)}')


def is_exported(run: StoragePath) -> bool:
    """Returns whether this is a file or a folder of `export`, as opposed to the work directory of a run."""
    return run.is_file() or exported_network.is_folder(run)


def _exported_meta(path: StoragePath, step: int | None) -> dict[str, Any]:
    if exported_network.read_kind(path) is None or (meta := exported_run(path)) is None:
        raise ValueError(f'{path}: is not an exported run, as `python -m fv_jax.export` writes')
    if step not in (None, meta['step']):
        raise CheckpointError(f'{path}: has no step {step}, only {meta["step"]}')
    return meta


def exported_run(path: StoragePath) -> dict[str, Any] | None:
    """Reads the run of an exported network: {'step', 'config', 'digests'}; None for a network without any.

    Raises:
      ValueError: invalid metadata.
    """
    if (meta := exported_network.read_run(path)) is None:
        return None
    if not isinstance(meta, dict) or not isinstance(meta.get('step'), int):
        raise ValueError(f'{path}: unreadable run metadata; export it again')
    _check_metadata(path, meta)
    return meta


def _check_metadata(run: StoragePath, meta: dict[str, Any]) -> dict[str, Any]:
    """Returns the metadata. Raises ValueError if its stage or its digests are missing or invalid."""
    config, digests = meta.get('config'), meta.get('digests', {})
    stage = config.get('stage') if isinstance(config, dict) else None
    if not isinstance(stage, dict) or not isinstance(stage.get('kind'), str) or not isinstance(digests, dict):
        raise ValueError(f'{run}: its configuration has no stage')
    return meta


def open_run_text_encoder(run: Run) -> TextEncoder:
    """Opens the text encoder that a run's stage was trained with.

    Raises:
      ConfigError: it was trained without text.
      FileNotFoundError: the encoder's folder was not found.
      ValueError: the encoder that was found is another one, or incomplete.
    """
    if not run.text.encoder:
        raise ConfigError(f'{run.folder}: config.stage.text names no encoder; the stage was trained without text')

    return text_encoders.open_text_encoder(find_text_encoder(run.folder, run.text, run.digests.get('text')))


def find_text_encoder(run: StoragePath, config: TextConfig, wanted: str | None) -> TextConfig:
    """Finds the text encoder of a run by its digest.

    Args:
      run: the folder of the run.
      config: of the text encoder, in the run's configuration.
      wanted: the digest; None accepts the first that exists.

    Returns:
      `config` with the path at which the encoder was found.

    Raises:
      FileNotFoundError: it was not found.
      ValueError: only encoders with other digests were found.
    """

    def named(name: str) -> TextConfig:
        return dataclasses.replace(config, encoder=name)

    def digest(name: str) -> str:
        return text_encoders.text_fingerprint(named(name)).digest

    return named(_locate('text encoder', config.encoder, run, wanted, digest, text_encoders.NAMED))


def _locate(
    what: str, name: str, run: StoragePath, wanted: str | None, digest: Callable[[str], str], no_files: Collection[str]
) -> str:
    """Finds a network by name and digest, at its path, in the folder of the run or beside it.

    Args:
      what: for messages.
      name: in the configuration.
      run: the folder of the run.
      wanted: the digest; None accepts the first that exists.
      digest: computes the digest of a network by name.
      no_files: names that are not paths.
    """
    if name in no_files:
        there = [name]
    else:
        file = PurePosixPath(name).name
        near = [str(run / file), str(paths.absolute(run).parent / file)]
        # The bucket of a URL may be out of reach from here.
        places = list(dict.fromkeys([*near, name] if paths.is_url(name) else [str(as_path(name)), *near]))
        there = [place for place in places if hub.weights_path(place).exists()]
        require(there, f'{run}: its {what} does not exist; searched {", ".join(places)}', FileNotFoundError)
    if wanted is None:
        return there[0]
    others = {}
    for place in there:
        others[place] = digest(place)
        if others[place] == wanted:
            return place
    listed = ', '.join(f'{place} is {found}' for place, found in others.items())
    raise ValueError(f'{run}: was trained with the {what} {wanted}, but {listed}; put {wanted} in one of these places')


def list_unverified(config: registry.StageConfig, digests: dict[str, str]) -> list[str]:
    """Returns a note for each component whose fingerprint the checkpoint does not record."""
    named = {'vae': ('VAE', config.vae), 'text': ('text encoder', config.text.encoder)}
    return [
        f'the checkpoint does not record the fingerprint of its {what}; assuming {name}'
        for key, (what, name) in named.items()
        if name and key not in digests
    ]
