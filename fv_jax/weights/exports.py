"""What `export` writes: the parameters of a stage or a VAE, and the formats of folders.

A format checks an export before anything is written, writes its files into a folder and its model card last, and
returns notes for the user. `FORMATS` lists them by name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from fv_jax.checkpoints import streaming
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import config as config_lib
from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.paths import StoragePath
from fv_jax.kernels.attention import PORTABLE
from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig
from fv_jax.stages import registry
from fv_jax.stages.protocol import ExportedFunction
from fv_jax.weights import (
    diffusers_pipeline,
    exported_functions,
    exported_network,
    model_card,
    open_vae,
    trained_runs,
)
from fv_jax.weights.fingerprints import params_fingerprint
from fv_jax.weights.layouts import diffusers_export, key_table, official_dit, peft_lora
from fv_jax.weights.parameters import Parameters

FORWARD = 'forward'  # the folder of the exported functions


@dataclasses.dataclass(frozen=True)
class Choices:
    """What of a checkpoint is exported, and how.

    Attributes:
      step: of the checkpoint; None for the newest.
      last: the parameters after the last step instead of their average.
      merge_lora: merges LoRA into the weights.
      add_lora: a file of LoRA to add.
      dtype: of the parameters; None for as stored.
      size: (frames, height, width) of a video; None for that of the run.
      platforms: of the exported functions; none for no functions.
      license, base_model: for the model card; '' for none.
    """

    step: int | None = None
    last: bool = False
    merge_lora: bool = False
    add_lora: StoragePath | None = None
    dtype: str | None = None
    size: tuple[int, int, int] | None = None
    platforms: tuple[str, ...] = ()
    license: str = ''
    base_model: str = ''


@dataclasses.dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
      checkpoint: the run, or what was exported of it.
      step: of the checkpoint.
      config: of the run, with the network as it is written.
      stage: the stage's part of the config.
      values: the parameters by name.
      digests: fingerprints of the VAE's encoder and the text encoder.
      about: source and parameters, for the model card.
      choices: the user's.
    """

    checkpoint: StoragePath
    step: int
    config: dict[str, Any]
    stage: registry.StageConfig
    values: Parameters
    digests: dict[str, str]
    about: dict[str, str]
    choices: Choices

    def run(self) -> dict[str, Any]:
        """Returns the metadata of the run."""
        return {'step': self.step, 'config': self.config, 'digests': self.digests}

    def located_stage(self) -> registry.StageConfig:
        """Returns the stage with the path at which its VAE was found. Raises as `trained_runs.read_stage_config`."""
        return trained_runs.read_stage_config(self.checkpoint, self.run())


def open_export(checkpoint: StoragePath, choices: Choices) -> Export:
    """Opens a checkpoint; parameters are read one at a time for their fingerprint.

    Raises:
      CheckpointError: no checkpoint, or none of the step.
      ConfigError, ValueError: it holds no stage, or LoRA that does not fit its network.
    """
    meta, values = trained_runs.open_stored(checkpoint, choices.step)
    wrong = f'--checkpoint={checkpoint}: holds no stage; use fv_jax.convert for a T5'
    require('stage' in meta['config'], wrong, ConfigError)
    stage = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    if choices.last:
        values |= _last_parameters(checkpoint, meta['step'])
    values, stage = _convert_params(values, stage, choices)
    about = {
        'source': str(checkpoint),
        'step': str(meta['step']),
        'parameters': _describe_params(meta['config'], choices.last),
        'hash': params_fingerprint(values),
        'license': choices.license or 'not stated',
    }
    config = meta['config'] | {'stage': config_lib.to_dict(stage), 'exported': about}
    digests = meta.get('digests', {})
    return Export(checkpoint, meta['step'], config, stage, values, digests, about, choices)


def _last_parameters(checkpoint: StoragePath, step: int) -> Parameters:
    if trained_runs.is_exported(checkpoint):
        raise CheckpointError(f'{checkpoint}: is an export, which has the parameters of one kind alone')
    return key_table.cast_parameters(streaming.CheckpointReader(checkpoint, step, streaming.STATE).arrays())


def _convert_params(
    values: Parameters, stage: registry.StageConfig, choices: Choices
) -> tuple[Parameters, registry.StageConfig]:
    if isinstance(config := stage.network, DiTConfig):
        if choices.add_lora is not None:
            # A network has LoRA of one rank.
            values, config = official_dit.merge_lora_parameters(values, config)
            values, config = peft_lora.add(choices.add_lora, values, config)
        if choices.merge_lora:
            values, config = official_dit.merge_lora_parameters(values, config)
        # float16 is a storage format only; a network never computes in it.
        if choices.dtype in ('float32', 'bfloat16'):
            config = dataclasses.replace(config, param_dtype=choices.dtype)
        stage = dataclasses.replace(stage, network=config)
    elif choices.add_lora is not None:
        raise ConfigError(f'--add-lora={choices.add_lora}: a VAE has no LoRA')
    if registry.is_distilled(stage):
        stage = registry.sampling_config(stage)
        names = {name for name, _ in exported_functions.parameter_names(registry.build(stage))}
        values = {name: value for name, value in values.items() if name in names}
    return key_table.cast_parameters(values, choices.dtype), stage


def _describe_params(config: dict[str, Any], last: bool) -> str:
    decay = config.get('optim', {}).get('ema_decay', 0)
    return f'EMA (decay {decay})' if decay and not last else 'of the last step'


# --- formats ---


class Format(NamedTuple):
    """A kind of folder.

    Attributes:
      check: raises ConfigError or ValueError for an export that it cannot hold.
      write: writes a folder that exists; returns notes for the user.
    """

    check: Callable[[Export], None]
    write: Callable[[StoragePath, Export], list[str]]


def write_file(path: StoragePath, export: Export) -> None:
    """Writes a file in float16. Raises ValueError for a value out of its range."""
    run = None if isinstance(export.stage.network, VAEConfig) else export.run()
    exported_network.write(path, export.values, export.stage.network, run)


def _check_own(export: Export) -> None:
    if export.choices.platforms:
        _functions(export)


def _write_own(folder: StoragePath, export: Export) -> list[str]:
    exported_network.write_folder(folder, export.values, export.stage.network, export.run())
    functions = _write_functions(folder / FORWARD, export) if export.choices.platforms else []
    card = model_card.render_own(folder.name, export.config, export.digests, _card(export), functions)
    files.write_text(folder / model_card.NAME, card)
    return []


def _functions(export: Export) -> list[ExportedFunction]:
    latent_spec = trained_runs.latent_spec(export.located_stage())
    stage = registry.build(export.stage)
    return exported_functions.list_functions(stage, latent_spec, export.choices.size, context=PORTABLE)


def _write_functions(folder: StoragePath, export: Export) -> list[str]:
    stage, platforms, functions = registry.build(export.stage), export.choices.platforms, _functions(export)
    files.make_folder(folder)
    for function in functions:
        artefact = exported_functions.export_stablehlo(function, stage, platforms)
        files.write_bytes(folder / f'{function.name}{exported_functions.SUFFIX}', artefact)
    wanted = exported_functions.parameter_names(stage)
    arrays = ((name, export.values[name].numpy().astype(dtype)) for name, dtype in wanted)
    with files.atomic_write(folder / exported_functions.PARAMETERS) as partial:
        exported_functions.write_parameters(partial, arrays)
    return [f'{function}, for {", ".join(platforms)}' for function in functions]


def _card(export: Export) -> model_card.Card:
    kind = registry.KINDS[export.stage.kind].stage
    return model_card.Card(
        stage=export.stage.kind,
        task=kind.pipeline_tag,
        license=export.choices.license,
        base_model=export.choices.base_model,
        about=export.about,
    )


def _check_diffusers(export: Export) -> None:
    if isinstance(export.stage.network, DiTConfig):
        _diffusers(export).check()


def _write_diffusers(folder: StoragePath, export: Export) -> list[str]:
    card = _card(export)
    if isinstance(export.stage.network, VAEConfig):
        diffusers_export.write_vae(folder, export.values, export.stage.network, 1.0)
        text, notes = model_card.render_diffusers(folder.name, card, diffusers_export.VAE_USAGE, []), []
    else:
        found = _diffusers(export)
        diffusers_pipeline.write_pipeline(folder, found)
        notes = found.notes()
        text = model_card.render_diffusers(folder.name, card, diffusers_pipeline.usage(found), notes)
    files.write_text(folder / model_card.NAME, text)
    return notes


def _diffusers(export: Export) -> diffusers_pipeline.DiffusersExport:
    vae_config, read_vae = open_vae(export.located_stage().vae)
    size, data = export.choices.size, export.config.get('data', {})
    if size is None:
        names = ('frames', 'height', 'width')
        wrong = f'--size: is needed, as {export.checkpoint} does not record the size of its clips'
        require(all(name in data for name in names), wrong, ConfigError)
        size = tuple(data[name] for name in names)
    return diffusers_pipeline.DiffusersExport(
        export.stage, export.values, vae_config, read_vae(), size, export.choices.dtype
    )


def _check_peft(export: Export) -> None:
    peft_lora.check(export.stage.network)


def _write_peft(folder: StoragePath, export: Export) -> list[str]:
    network = export.stage.network
    with files.atomic_write(folder / peft_lora.NAME) as partial:
        peft_lora.write(partial, export.values, network)
    text = model_card.render_peft(folder.name, _card(export), peft_lora.describe(network))
    files.write_text(folder / model_card.NAME, text)
    return []


FORMATS = {
    'fv_jax': Format(_check_own, _write_own),
    'diffusers': Format(_check_diffusers, _write_diffusers),
    'peft': Format(_check_peft, _write_peft),
}
