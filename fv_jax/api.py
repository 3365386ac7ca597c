"""The Python front door: from a prompt to a preview to a video, and a trained run ready to use.

A checkpoint names its VAE and its text encoder by digest, a hash of their numbers (`weights/digests.py`,
`weights/text.py`). Both are looked for where the configuration says, in the run's folder and beside it; another one is
never taken.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from fv_jax import weights
from fv_jax.checkpoints.manager import FOLDER, CheckpointError, Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.config import ConfigError
from fv_jax.core.files import parse_json
from fv_jax.core.rules import Rules
from fv_jax.data.text import BYTES, TextConfig, TextEncoder
from fv_jax.diffusion.times import Numerics
from fv_jax.inference.flash_video import Pipeline
from fv_jax.inference.jitted import JittedVAE, jit_vae
from fv_jax.inference.parts import Part, TextPart, VAEPart
from fv_jax.inference.record import Origin
from fv_jax.inference.settings import EnhanceSettings, PreviewSettings
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import compute_in
from fv_jax.parallel.rules import Placement
from fv_jax.stages import registry, superres
from fv_jax.stages.base import Stage
from fv_jax.stages.lowres import LowRes, LowResConfig
from fv_jax.stages.superres import SuperRes
from fv_jax.training.state import Network, Params, numbers_of
from fv_jax.weights import compact, embedded, official_folder
from fv_jax.weights.text import open_text_encoder, text_stamp

EMBEDDED = 'embedded'  # what comes with the package: the small VAE, the small stages
STAGES, SUFFIX = ('stage1', 'stage2'), '.safetensors'  # the runs in a folder that holds a whole pipeline

VAEKey = tuple[str, DtypeName, int]  # its name, what it computes in, the channels that its stage expects
ParamsOf = Callable[[Stage, Network], Params]  # read when the stage is known


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint's stage with its parameters for sampling.

    config: the whole configuration, as a nested dict. params: for `network.model(**params)`. vae: the frozen one that
    the stage's latents come from; None where the stage has none. step: of the checkpoint. text: the encoder of the
    stage's texts, where it was found (`open_texts`). digests: of the VAE and the text encoder, as the checkpoint has
    them. notes: what a user should know of it, a line each.
    """

    config: dict[str, Any]
    stage: Stage
    network: Network
    params: Params
    vae: JittedVAE | None
    step: int
    folder: Path
    text: TextConfig
    digests: dict[str, str]
    notes: tuple[str, ...]


def frozen_vae(config: registry.StageConfig, placement: Placement | None = None) -> JittedVAE | None:
    """The VAE whose latents the stage works on, on a mesh if one is given; None where the stage needs none.

    Raises ConfigError when its latents do not fit the stage's network, and what `weights.load_vae` raises.
    """
    if not registry.needs_vae(config):
        return None
    vae = compute_in(weights.load_vae(config.vae), config.vae_dtype)
    there, wanted = vae.config.latent_channels, config.dit.latent_channels
    if there != wanted:
        raise ConfigError(
            f'config.stage.vae={config.vae}: its latents have {there} channels, and config.stage.dit.latent_channels='
            f'{wanted}; set that to {there} or name another VAE'
        )
    return jit_vae(vae, placement)


def open_run(folder: Path | str, step: int | None = None) -> Run:
    """The newest checkpoint of a work directory or an exported folder, or the one of `step`; or a run in one file.

    Raises:
      CheckpointError: none there, or damaged.
      ConfigError, ValueError, FileNotFoundError: its configuration, or the VAE that it names, cannot be used; or the
        VAE is not there, or is another one.
    """
    folder = Path(folder)
    meta, params_of = _opened(folder, step)
    stage_config, digests = _stage_config(folder, meta), meta.get('digests', {})
    vae = frozen_vae(stage_config)
    stage = registry.build(stage_config, encoder=vae.latents if vae else None)
    network = Network.of(stage)
    notes = tuple(_trusted(stage_config, digests))
    params = params_of(stage, network)
    return Run(meta['config'], stage, network, params, vae, meta['step'], folder, stage_config.text, digests, notes)


def _opened(run: Path, step: int | None) -> tuple[dict[str, Any], ParamsOf]:
    """What a run, in a folder or in one file, says of itself, and what reads its parameters."""
    return _compact(run, step) if run.is_file() else _checkpoint(run, step)


def _stage_config(run: Path, meta: dict[str, Any]) -> registry.StageConfig:
    """A checkpoint's, with the VAE where it was found."""
    config = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    if not registry.needs_vae(config):
        return config
    found = _found('VAE', config.vae, run, meta.get('digests', {}).get('vae'), weights.vae_digest)
    return dataclasses.replace(config, vae=found)


def _checkpoint(folder: Path, step: int | None) -> tuple[dict[str, Any], ParamsOf]:
    checkpoints = Checkpoints(folder, read_only=True)
    meta = _checked(folder, checkpoints.meta(step))

    def params(stage: Stage, network: Network) -> Params:
        trainable, frozen = jax.eval_shape(functools.partial(network.init, stage), jax.random.key(0))
        abstract = {'params': {'trainable': trainable, 'frozen': frozen}}
        return checkpoints.restore(abstract, meta['step'])['params']

    return meta, params


def _compact(path: Path, step: int | None) -> tuple[dict[str, Any], ParamsOf]:
    if compact.kind_of(path) is None or (meta := compact_run(path)) is None:
        raise ValueError(f'{path}: is no run in one file, as `python -m fv_jax.export` writes a stage')
    if step not in (None, meta['step']):
        raise CheckpointError(f'{path}: has no step {step}; it has {meta["step"]}')

    def params(stage: Stage, network: Network) -> Params:
        del network
        trainable, frozen = numbers_of(stage, compact.load(path))
        return {'trainable': trainable, 'frozen': frozen}

    return meta, params


def compact_run(path: Path) -> dict[str, Any] | None:
    """What a small file says of its run: {'step', 'config', 'digests'}; None of one that says nothing.

    Raises ValueError for what `export` cannot have written.
    """
    if (run := compact.metadata(path).get(compact.RUN)) is None:
        return None
    meta = parse_json(run)
    if not isinstance(meta, dict) or not isinstance(meta.get('step'), int):
        raise ValueError(f'{path}: what it says of its run cannot be read; export it again')
    _checked(path, meta)
    return meta


def _checked(run: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """The same. Raises ValueError where it has no stage, or no digests as they should be."""
    config, digests = meta.get('config'), meta.get('digests', {})
    stage = config.get('stage') if isinstance(config, dict) else None
    if not isinstance(stage, dict) or not isinstance(stage.get('kind'), str) or not isinstance(digests, dict):
        raise ValueError(f'{run}: its configuration holds no stage')
    return meta


def open_texts(run: Run) -> TextEncoder:
    """The text encoder that a run's stage was trained with.

    Raises:
      ConfigError: it was trained without texts.
      FileNotFoundError: the encoder's folder is nowhere.
      ValueError: what is there is another one, or not whole.
    """
    if not run.text.encoder:
        raise ConfigError(f'{run.folder}: config.stage.text names no encoder; the stage was trained without texts')

    return open_text_encoder(_found_text(run.folder, run.text, run.digests.get('text')))


def _found_text(run: Path, config: TextConfig, wanted: str | None) -> TextConfig:
    """The text encoder that a run's configuration names, where it was found."""

    def named(name: str) -> TextConfig:
        return dataclasses.replace(config, encoder=name)

    def digest(name: str) -> str:
        return text_stamp(named(name)).digest

    return named(_found('text encoder', config.encoder, run, wanted, digest))


def _found(what: str, name: str, run: Path, wanted: str | None, digest: Callable[[str], str]) -> str:
    """Where the network of this name and digest is. wanted: None takes the first that is there."""
    if name in (EMBEDDED, BYTES):
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


def _trusted(config: registry.StageConfig, digests: dict[str, str]) -> list[str]:
    """What has to be believed of a checkpoint that has no digests."""
    named = {'vae': ('VAE', config.vae), 'text': ('text encoder', config.text.encoder)}
    return [
        f'the checkpoint does not say by hash which {what} it was made with; {name} is taken to be it'
        for key, (what, name) in named.items()
        if name and key not in digests
    ]


class FlashVideo(Pipeline):
    """FlashVideo, ready to use:

        fv = fv_jax.FlashVideo.from_official('checkpoints')
        preview = fv.preview('a ladybug moves from left to right over a beach', seed=1)
        preview.save('preview.mp4')
        video = fv.enhance(preview)
        video.save('video.mp4')

    Opening looks at every file and reads no network; a network is read when it is first used. `preview_settings` and
    `enhance_settings` are what a call uses where it gives no others.
    """

    @classmethod
    def from_official(
        cls,
        folder: str | Path,
        *,
        numerics: Numerics = 'exact',
        dtype: DtypeName = 'bfloat16',
        text: TextConfig | None = None,
        rules: Rules = SINGLE_DEVICE,
    ) -> 'FlashVideo':
        """The official release, with the official settings.

        Args:
          folder: with stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl in it.
          numerics: of stage 2, see `EnhanceSettings`; a default, like all settings.
          dtype: what both DiTs and T5 keep their weights in and compute in; the VAE is float32. bfloat16 is official.
          text: a text encoder in place of t5-v1_1-xxl, or that one run otherwise.
          rules: where activations live and who computes attention.

        Raises:
          FileNotFoundError: no such folder, or something is missing from it; all that is missing is named.
          ValueError: a file is damaged, is another one, or does not fit the others.
        """
        there = official_folder.open_folder(Path(folder), dtype, text)
        name = str(there.vae)
        vae = VAEPart(lambda: jit_vae(weights.load_vae(name)), lambda: weights.vae_digest(name))
        encoder = TextPart(there.text.encoder, lambda: open_text_encoder(there.text))
        stages = (
            (official_folder.STAGE1, lambda dit: LowRes(LowResConfig(), dit)),
            (official_folder.STAGE2, lambda dit: SuperRes(superres.OFFICIAL, dit)),
        )
        first, second = (
            Part(f'{folder}/{name}', make(there.configs[name]), there.read[name], vae, encoder) for name, make in stages
        )
        origin = Origin(official=str(folder), dtype=dtype, text=text)
        return cls(first, second, origin, PreviewSettings(), EnhanceSettings(numerics=numerics), rules)

    @classmethod
    def from_origin(cls, origin: Origin, *, rules: Rules = SINGLE_DEVICE) -> 'FlashVideo':
        """What a record says that a video was made with. Raises what the other two do."""
        if origin.official is not None:
            return cls.from_official(origin.official, dtype=origin.dtype, text=origin.text, rules=rules)
        return cls.from_checkpoint(*origin.checkpoints, steps=origin.steps or None, text=origin.text, rules=rules)

    @classmethod
    def from_checkpoint(
        cls,
        *folders: str | Path,
        steps: Sequence[int] | None = None,
        numerics: Numerics | None = None,
        text: TextConfig | None = None,
        rules: Rules = SINGLE_DEVICE,
    ) -> 'FlashVideo':
        """Trained, converted or exported stages, with the settings of their configurations.

        Args:
          folders: runs, which are work directories, exported folders or exported files; or one folder with two such in
            it, called stage1 and stage2; or 'embedded', the small ones in the package. With one stage alone, the
            other's method raises ValueError.
          steps: which checkpoint of each run, in their order; None takes the newest.
          numerics, rules: as in `from_official`; None is the configuration's.
          text: the text encoder, where the first stage names none, or in place of the one that is named. A second stage
            that names none was trained without, and gets none.

        Raises:
          CheckpointError: no checkpoint there, or a damaged one.
          ConfigError, ValueError: not a stage of a pipeline, twice the same, or one that names no text encoder.
          FileNotFoundError: the VAE or the text encoder that a checkpoint names is not there.
        """
        runs = [run for folder in folders for run in _runs(folder)]
        if steps is not None and len(steps) != len(runs):
            raise ValueError(f'steps: {len(steps)} for {len(runs)} run(s), {", ".join(map(str, runs))}')
        vaes: dict[VAEKey, VAEPart] = {}
        opened = [_open_part(*run, text, vaes) for run in zip(runs, steps or [None] * len(runs), strict=True)]
        parts, preview, enhance = {}, PreviewSettings(), EnhanceSettings()
        for _, part, data, _ in opened:
            kind = type(part.stage)
            if kind in parts:
                raise ValueError(f'{parts[kind].name} and {part.name}: hold the same stage; give one of each')
            parts[kind] = part
            if kind is LowRes:
                preview = PreviewSettings.of(part.stage.config, data)
            else:
                enhance = EnhanceSettings.of(part.stage.config, data)
        enhance = dataclasses.replace(enhance, numerics=numerics or enhance.numerics)
        origin = Origin(checkpoints=tuple(map(str, folders)), steps=tuple(step for step, *_ in opened), text=text)
        notes = tuple(f'{part.name}: {note}' for _, part, _, notes in opened for note in notes)
        return cls(parts.get(LowRes), parts.get(SuperRes), origin, preview, enhance, rules, notes)


def _runs(folder: str | Path) -> list[Path]:
    """The runs that this is or holds, in folders or in files."""
    if str(folder) == EMBEDDED:
        return embedded.stages()
    path = Path(folder)
    if path.is_file() or (path / FOLDER).is_dir():
        return [path]
    found = [path / name for name in STAGES if (path / name / FOLDER).is_dir()]
    found += [path / f'{name}{SUFFIX}' for name in STAGES if (path / f'{name}{SUFFIX}').is_file()]
    if not found:
        raise CheckpointError(
            f'{folder}: holds no checkpoints (expected {FOLDER!r} in it, or runs called {" and ".join(STAGES)}, as '
            f'folders or {SUFFIX} files)'
        )
    return found


def _open_part(
    run: Path, step: int | None, text: TextConfig | None, vaes: dict[VAEKey, VAEPart]
) -> tuple[int, Part, dict[str, Any], list[str]]:
    """A run's checkpoint: its step, its stage, its clips' configuration, and notes. Of arrays nothing is read yet.

    vaes: those of other stages, which this one may share.
    """
    meta, params_of = _opened(run, step)
    kind, digests = meta['config'].get('stage', {}).get('kind'), meta.get('digests', {})
    if kind not in ('lowres', 'superres'):
        raise ConfigError(f'{run}: holds stage {kind!r}; a pipeline is made of lowres and superres')
    config = _stage_config(run, meta)
    stage = registry.build(config)
    vae = VAEPart(lambda: frozen_vae(config), lambda: digests.get('vae') or weights.vae_digest(config.vae))
    vae = vaes.setdefault((config.vae, config.vae_dtype, config.dit.latent_channels), vae)
    notes = _trusted(config, digests)
    if text is not None and (kind == 'lowres' or config.text.encoder):
        encoder = TextPart(text.encoder, lambda: open_text_encoder(text))
    elif config.text.encoder:
        found = _found_text(run, config.text, digests.get('text'))
        encoder = TextPart(found.encoder, lambda: open_text_encoder(found))
    elif kind == 'lowres':
        raise ConfigError(f"{run}: was trained without texts, or names no encoder; name one, 'bytes' or a T5 folder")
    else:
        encoder = None

    def read() -> Any:
        network = Network.of(stage)
        return network.model(**params_of(stage, network))

    return meta['step'], Part(str(run), stage, read, vae, encoder), meta['config'].get('data', {}), notes
