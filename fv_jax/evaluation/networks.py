"""Opens the networks of an evaluation: checkpoints, each with several settings of its sampler."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fv_jax.core import config as config_lib
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import UsageError, check_reachable, override
from fv_jax.core.hub import weights_path
from fv_jax.core.paths import StoragePath
from fv_jax.evaluation.methods import Method, network, round_trip
from fv_jax.sampling.enhancer import Enhancer
from fv_jax.sampling.programs import LoadedStage
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.sampling.windows import Windows
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.stages.sampler_configs import EnhancementSamplerConfig
from fv_jax.weights import trained_runs
from fv_jax.weights.trained_runs import Run

log = logging.getLogger(__name__)

OVERLAP = 'overlap'
# What has an effect on clips, which have no text: guidance and prompts have none.
FIELDS = ('num_steps', 'sampler', 'shift', 'noise_augmentation_timestep', 'numerics')


class Comparand(NamedTuple):
    """An item of --compare: a checkpoint (None for that of --checkpoint), and settings by field, as text."""

    checkpoint: StoragePath | None
    settings: dict[str, str]

    def __str__(self) -> str:
        settings = [f'{field}={text}' for field, text in self.settings.items()]
        return ','.join([*([str(self.checkpoint)] if self.checkpoint else []), *settings])


def parse_comparand(text: str) -> Comparand:
    """Parses 'PATH', 'FIELD=VALUE,...' or 'PATH,FIELD=VALUE,...'.

    Raises:
      UsageError: no such path, or a field that does not exist.
    """
    with error_context(f'--compare {text}: ', error=UsageError):
        path = weights_path(text)
    check_reachable(path, f'--compare {text}')
    if path.exists():
        return Comparand(path, {})
    first, *rest = text.split(',')
    settings = text.split(',') if '=' in first else rest
    checkpoint = None if '=' in first else weights_path(first)
    if checkpoint is not None and first != trained_runs.EMBEDDED:
        require(checkpoint.exists(), f'--compare {text}: {first} does not exist', UsageError)
    found = {}
    for setting in settings:
        field, equals, value = setting.partition('=')
        require(equals, f'--compare {text}: {setting!r}; give FIELD=VALUE', UsageError)
        known = (*FIELDS, OVERLAP)
        fix = config_lib.did_you_mean(field, known)
        require(field in known, f'--compare {text}: unknown field {field!r}; {fix}', UsageError)
        found[field] = value
    return Comparand(checkpoint, found)


@dataclasses.dataclass(frozen=True)
class Network:
    """A checkpoint, opened.

    Attributes:
      label: its name in tables; '' where there is one checkpoint only.
      path: of the checkpoint.
      run: the opened run.
      loaded: its stage.
    """

    label: str
    path: StoragePath
    run: Run
    loaded: LoadedStage[EnhancementStage]

    @property
    def own_steps(self) -> int:
        """The sampler steps of its configuration."""
        return self.run.stage.sampler_config().num_steps

    def windows(self, overlap: int | None = None) -> Windows:
        """Returns windows of the length of the run's clips."""
        frames = self.run.config['data']['frames']
        return Windows.create(frames, overlap, self.run.vae.config.latent_spec)

    def round_trip(self) -> Method:
        """Returns the round trip of the ground truth through its VAE."""
        return round_trip(Enhancer.create(self.loaded, self.run.vae), self.windows())

    def method(self, settings: Mapping[str, str]) -> Method:
        """Returns the network with its own sampler settings and these.

        Args:
          settings: field -> text of its value, of `FIELDS` and 'overlap'.

        Raises:
          ConfigError, UsageError: a value that the field cannot have.
        """
        own = self.run.stage.sampler_config()
        values = dataclasses.asdict(own)
        for field, text in settings.items():
            if field != OVERLAP:
                override(type(own), values, field, text, root='--compare')
        with error_context(f'--compare: {_show(settings)}: ', error=UsageError):
            stage = self.run.stage.with_sampler_config(config_lib.build(type(own), values, '--compare'))
            overlap = int(settings[OVERLAP]) if OVERLAP in settings else None
            windows = self.windows(overlap)
        name, details = self._name(stage.sampler_config(), settings), self._describe(stage, windows)
        return network(name, Enhancer.create(self.loaded.with_stage(stage), self.run.vae), windows, details)

    def _name(self, sampler: EnhancementSamplerConfig, settings: Mapping[str, str]) -> str:
        steps = f'{sampler.num_steps} step{"s" if sampler.num_steps > 1 else ""}'
        others = {field: text for field, text in settings.items() if field != 'num_steps'}
        return ', '.join(filter(None, [self.label, steps, _show(others)]))

    def _describe(self, stage: EnhancementStage, windows: Windows) -> dict[str, Any]:
        sampler = stage.sampler_config()
        return {
            'checkpoint': str(self.path),
            'step': self.run.step,
            'num_steps': sampler.num_steps,
            'nfe': stage.without_guidance().num_function_evaluations(),
            'settings': {field: getattr(sampler, field) for field in FIELDS}
            | {'window': windows.frames, OVERLAP: windows.overlap},
        }


def _show(settings: Mapping[str, str]) -> str:
    return ' '.join(f'{field}={text}' for field, text in settings.items())


def open_networks(paths: Sequence[StoragePath], mesh: SamplingMesh) -> list[Network]:
    """Opens checkpoints, each once, with labels that tell them apart. mesh: what they are sampled on.

    Raises:
      UsageError: one holds another stage.
      CheckpointError, ValueError, FileNotFoundError: as `trained_runs.open_run`.
    """
    paths = list(dict.fromkeys(paths))
    names = [path.name for path in paths]
    labels = names if len(set(names)) == len(names) else [str(path) for path in paths]
    if len(paths) == 1:
        labels = ['']
    return [_open(label, path, mesh) for label, path in zip(labels, paths, strict=True)]


def _open(label: str, path: StoragePath, mesh: SamplingMesh) -> Network:
    is_embedded = str(path) == trained_runs.EMBEDDED
    found = trained_runs.embedded_stage(registry.find_kinds(EnhancementStage)) if is_embedded else path
    run = trained_runs.open_run(found, None, mesh.network_partitioner, mesh.frames_partitioner)
    for note in run.notes:
        log.info(f'note: {note}')
    if not isinstance(run.stage, EnhancementStage):
        known, kind = ', '.join(registry.find_kinds(EnhancementStage)), run.config['stage']['kind']
        raise UsageError(f'{path}: holds stage {kind!r}; only {known} can be evaluated')
    return Network(label, path, run, LoadedStage.create(run.stage, lambda _: run.network.model(**run.params), mesh))


def make_methods(networks: Sequence[Network], steps: Sequence[int], compared: Sequence[Comparand]) -> list[Method]:
    """Returns the methods of an evaluation's networks, the first of them with its own settings.

    Args:
      networks: opened; the first is that of --checkpoint, if it is given.
      steps: numbers of steps of the first network; () for its own number, half, twice, and 1.
      compared: the items of --compare.
    """
    if not networks:
        return []
    main, own = networks[0], networks[0].own_steps
    counts = steps or sorted({1, max(1, own // 2), own, 2 * own})
    chosen = [(main, {'num_steps': str(count)}) for count in sorted(counts, key=lambda count: count != own)]
    by_path = {opened.path: opened for opened in networks}
    chosen += [(main if item.checkpoint is None else by_path[item.checkpoint], item.settings) for item in compared]
    methods = {}
    for method in (opened.method(settings) for opened, settings in chosen):
        same = method.details['checkpoint'], repr(method.details['settings'])
        methods.setdefault(same, method)
    return [main.round_trip(), *methods.values()]
