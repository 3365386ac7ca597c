"""Command lines that cannot be meant, drawn from a generator: one mistake in a line that is otherwise right."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs import degradations, prepare, stage1, stage2, vae
from fv_jax.core.config import build, to_dict
from fv_jax.data.degradation.degradations import Degradation
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.training.run.setup import TrainConfig
from tests import runs
from tests.fuzz.world import command_mistakes

CONFIGS = runs.ROOT / 'configs'
PROGRAMS = {
    'vae': (TrainConfig, vae),
    'stage1': (TrainConfig, stage1),
    'stage2': (TrainConfig, stage2),
    'prepare': (ClipsConfig, prepare),
    'degradations': (Degradation, degradations),
}
VARIANTS = {
    'vae': ('smoke', 'tiny', 'tiny_crops'),
    'stage1': ('smoke', 'tiny', '', 'full_ft'),
    'stage2': ('smoke', 'tiny', 'tiny_mixed', 'phase1,tiny=true', ''),
    'prepare': ('smoke', 'tiny', ''),
    'degradations': ('', 'weak'),
}
WEIGHTS = {'train': 9, 'plan': 3, 'prepare': 4, 'degrade': 2, 'sample': 5, 'convert': 3, 'export': 2, 'evaluate': 2,
           'inspect': 2, 'cache': 1}  # fmt: skip
OWN = 0.45  # the share of a command's own mistakes, as long as there are any
BELOW_ZERO = ('max_psnr_deficit', 'angle')  # numbers that may be negative


@dataclasses.dataclass(frozen=True)
class Mistake:
    """arguments: of the command. named: words of which the message must have one: the field, the flag, the file."""

    command: str
    arguments: tuple[str, ...]
    named: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.command} {" ".join(self.arguments)}'


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags of a command.

    Attributes:
      right: a valid command line, flag -> value, None for switches.
      config: flags of configuration programs.
      there: flags of a file or folder that must exist.
      integers: flags of integers.
      chosen: flags with choices.
      own: mistakes of this command, (flags that replace those of `right`, words that the message must have one of).
    """

    right: dict[str, str | None]
    config: tuple[str, ...] = ()
    there: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    own: tuple[tuple[dict[str, str | None], tuple[str, ...]], ...] = ()


def draw(world: Path, rng: np.random.Generator, *, parsed_only: bool = False) -> Iterator[Mistake]:
    """Endless, no two alike. world: a folder that `world.make` made. parsed_only: those that are found before a file is
    read, which need `world.make_programs` alone.
    """
    known = _commands(world)
    if parsed_only:
        known = {name: dataclasses.replace(flags, integers=(), chosen=(), own=()) for name, flags in known.items()}
    values = {(name, v): _values(name, v) for name, variants in VARIANTS.items() for v in variants}
    names, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()))
    own = [
        Mistake(name, _line(flags.right | given), words) for name, flags in known.items() for given, words in flags.own
    ]
    own = [own[i] for i in rng.permutation(len(own))]
    seen = set(own)
    while True:
        if own and rng.random() < OWN:
            yield own.pop()
            continue
        name = str(rng.choice(names, p=weights / weights.sum()))
        mistake = _draw_value(name, known[name], values, world, rng)
        if mistake not in seen:
            seen.add(mistake)
            yield mistake


def _draw_value(name: str, flags: Flags, values: dict, world: Path, rng: np.random.Generator) -> Mistake:
    kinds: list[Callable] = [_unknown_flag]
    kinds += [_field] * 8 + [_program] if flags.config else []
    kinds += (
        [_missing_file] * bool(flags.there)
        + [_no_integer] * 2 * bool(flags.integers)
        + [_no_choice] * bool(flags.chosen)
    )
    given, words = kinds[rng.integers(len(kinds))](flags, values, world, rng)
    return Mistake(name, _line(given), words)


def _line(flags: dict[str, str | None]) -> tuple[str, ...]:
    """Makes the arguments. A flag that starts with a blank is positional and comes first; a blank value omits one."""
    output = {name: value for name, value in flags.items() if value != ' '}
    output = dict(sorted(output.items(), key=lambda item: not item[0].startswith(' ')))
    return tuple(name.strip() if value is None else f'{name}={value}' for name, value in output.items())


# --- flags ---


def _misspell(word: str, rng: np.random.Generator) -> str:
    """With a letter more; no name of ours is another's with one."""
    place = rng.integers(1, len(word) + 1)
    return f'{word[:place]}q{word[place:]}'


def _unknown_flag(flags: Flags, values: dict, world: Path, rng: np.random.Generator) -> tuple[dict, tuple[str, ...]]:
    known = [*flags.right, *flags.integers, *flags.chosen, '--help']
    name = '--' + _misspell(str(rng.choice([flag for flag in known if flag.startswith('--')]))[2:], rng)
    return flags.right | {name: rng.choice(['1', 'x', None])}, (name,)


def _missing_file(flags: Flags, values: dict, world: Path, rng: np.random.Generator) -> tuple[dict, tuple[str, ...]]:
    flag = str(rng.choice(flags.there))
    file = world / f'not_there_{rng.integers(1000)}{rng.choice(["", ".pt", ".mp4", "/deeper"])}'
    return _place(flags, flag, str(file)), (str(file), flag)


def _no_integer(flags: Flags, values: dict, world: Path, rng: np.random.Generator) -> tuple[dict, tuple[str, ...]]:
    flag = str(rng.choice(flags.integers))
    text = str(rng.choice(['many', '1.5', '', '-3', '0x1', '1e3', '[1]', 'None', '-1000']))
    return _place(flags, flag, text), (flag, f'{flag[2:]} {text}')


def _no_choice(flags: Flags, values: dict, world: Path, rng: np.random.Generator) -> tuple[dict, tuple[str, ...]]:
    flag = str(rng.choice(flags.chosen))
    return _place(flags, flag, str(rng.choice(['none of them', '', 'FLOAT32', 'float64', '1']))), (flag,)


def _place(flags: Flags, flag: str, value: str) -> dict[str, str | None]:
    return {name: v for name, v in flags.right.items() if flag.startswith('--') or name.startswith('--')} | (
        {flag: value} if flag.startswith('--') else {f' {value}': None}
    )


# --- configurations ---


def _values(name: str, variant: str) -> list[tuple[str, Any]]:
    cls, program = PROGRAMS[name]
    return list(_leaves(to_dict(build(cls, program.get_config(variant).to_dict()))))


def _leaves(values: dict[str, Any], path: str = '') -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of every field that is not a group."""
    for name, value in values.items():
        where = f'{path}.{name}' if path else name
        yield from _leaves(value, where) if isinstance(value, dict) else [(where, value)]


def _program(flags: Flags, values: dict, world: Path, rng: np.random.Generator) -> tuple[dict, tuple[str, ...]]:
    name = str(rng.choice(flags.config))
    path, variant = CONFIGS / f'{name}.py', str(rng.choice([v for v in VARIANTS[name] if v] or ['x']))
    program, word = [
        (f'{path}:{_misspell(variant.partition(",")[0], rng)}', path.name),
        (f'{path}:smoke,smoke', path.name),
        (f'{path}:,{_misspell("batch", rng)}=8', path.name),
        (f'{path}:smoke,tiny={rng.choice(["maybe", "", "3"])}', path.name),
        (str(world / 'programs' / rng.choice(PROGRAMS_AT_FAULT)), 'programs'),
        (f'{world}/{_misspell(name, rng)}.py', f'{world}'),
    ][rng.integers(6)]
    return flags.right | {'--config': program}, (word, 'config.')


PROGRAMS_AT_FAULT = (
    'syntax.py',
    'raises.py',
    'imports.py',
    'nothing.py',
    'number.py',
    'bytes.py',
    'fields.py',
    'text.txt',
)


def _field(flags: Flags, values: dict, world: Path, rng: np.random.Generator) -> tuple[dict, tuple[str, ...]]:
    """Draws a field that does not exist, or a value that a field cannot have."""
    name = str(rng.choice(flags.config))
    variant = str(rng.choice(VARIANTS[name]))
    leaves = values[name, variant]
    path, value = leaves[rng.integers(len(leaves))]
    field, text, word = _wrong(path, value, rng)
    program = f'{CONFIGS / name}.py' + (f':{variant}' if variant else '')
    given = flags.right | {'--config': program}
    return given | ({f'--config.{field}': text} if text is not None else {f'--config.{field} ': None}), (word,)


def _wrong(path: str, value: Any, rng: np.random.Generator) -> tuple[str, str | None, str]:
    """(field, its value's text or None, what the message must name)."""
    groups, last = path.split('.'), path.rpartition('.')[2]
    kind = rng.integers(7)
    if kind == 0:
        place = rng.integers(len(groups))
        groups[place] = _misspell(groups[place], rng)
        return '.'.join(groups), str(rng.choice(['1', 'x', 'none', '[1]'])), groups[place]
    if kind == 1 and len(groups) > 1:
        group = '.'.join(groups[: rng.integers(1, len(groups))])
        return group, str(rng.choice(['1', 'x', '{}', '(1, 2)'])), group
    if kind == 2:
        return f'{path}.{rng.choice(["deeper", "x.y", ""])}', '1', last
    if kind == 3 and rng.integers(4) == 0:
        return path, None, path
    if isinstance(value, bool | int | float | list | tuple) and (kind < 5 or isinstance(value, bool | list | tuple)):
        return path, _change_type(value, rng), path
    if isinstance(value, int | float):
        low = ['-7', '-7.5', '-1e30'] if last not in BELOW_ZERO else []
        return path, str(rng.choice([*low, '1e999', '-1e999', '9' * 400, '-' + '9' * 30])), last
    groups[-1] = _misspell(last, rng)
    return '.'.join(groups), '1', groups[-1]


def _change_type(value: Any, rng: np.random.Generator) -> str:
    texts = ['many', 'nan', 'inf', '[', '{}', '{[]: 1}', '1e', 'nan()', '()' * 3, '(' * 300, '"1"', '1,5,', '']
    if isinstance(value, bool):
        texts += ['0', '1', 'yes', '1.0', '[True]']
    elif isinstance(value, list | tuple):
        texts = ['many', '3', 'true', '{}', '("a", "b")', '(1, "x")', '[[], []]', '(None,)', '1.5']
    else:
        texts += ['[1]', '(1,)', 'true', '1j', '1 + x'] + ['1.5', '1e3'] * isinstance(value, int)
    return str(rng.choice(texts))


# --- the commands ---


def _commands(world: Path) -> dict[str, Flags]:
    smoke = {name: f'{CONFIGS / name}.py:smoke' for name in ('vae', 'stage1', 'stage2', 'prepare')}
    out = str(world / 'out')
    run, video, pt = world / 'run', world / 'video.mp4', runs.ROOT / 'tests/parity/official_dev/stage2.pt'
    own = command_mistakes(world)
    return {
        'train': Flags(
            {'--config': smoke['stage2'], '--workdir': out}, ('vae', 'stage1', 'stage2'),
            there=('--replay', '--config'), integers=('--num-processes', '--process-id'), own=own['train'],
        ),
        'plan': Flags(
            {'--config': smoke['stage2'], '--topology': 'v5e-8'}, ('stage1', 'stage2'), there=('--config',),
            own=own['plan'],
        ),
        'prepare': Flags(
            {'--input': str(video), '--output': out}, ('prepare',), there=('--input', '--config'), own=own['prepare']
        ),
        'degrade': Flags(
            {'--input': str(video), '--output': f'{out}.png'}, ('degradations',), there=('--input', '--config'),
            integers=('--frames', '--height', '--width', '--num-samples', '--seed'), own=own['degrade'],
        ),
        'sample': Flags(
            {'--prompt': 'a bee', '--output': out}, there=('--official', '--checkpoint'),
            integers=('--seed', '--num-samples', '--batch-size'), chosen=('--dtype',), own=own['sample'],
        ),
        'convert': Flags(
            {'--input': str(pt), '--output': out}, there=('--input',), integers=('--step',),
            chosen=('--dtype', '--lora', '--target-stage'), own=own['convert'],
        ),
        'export': Flags(
            {'--checkpoint': str(run), '--output': out}, there=('--checkpoint',), integers=('--step',),
            chosen=('--dtype', '--lora', '--params', '--format', '--export-functions'), own=own['export'],
        ),
        'evaluate': Flags(
            {'--checkpoint': str(run), '--output': out}, there=('--checkpoint', '--degradation-config'),
            integers=('--num-clips', '--max-frames', '--vgg-frames', '--seed'), own=own['evaluate'],
        ),
        'inspect': Flags(
            {f' {run}': None}, there=('path',), integers=('--step', '--depth'), own=own['inspect'],
        ),
        'cache': Flags({'--trim-gb': '1'}, chosen=('--kind',), own=own['cache']),
    }  # fmt: skip
