"""Slices by the names that Google gives them, and GPUs: how many chips, in which shape.

v4-8, v5p-8     counted in TensorCores, two a chip: 4 chips
v7x-8           the same; JAX counts each core as a device, so 8 devices
v5e-8, v6e-8    counted in chips
v5p:4x8x8       the shape itself
h100-8          GPUs, joined by NVLink

`launch/slices.sh` reads the same names of TPUs; a test holds the two together.
"""

import dataclasses
import difflib
import math
import re

from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import CHIPS, Chip

_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBE = 64  # chips: 4x4x4, joined at will
_LONGEST = 256  # side, in chips
_SMALL = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}


def _of_cubes(chips: int) -> tuple[int, ...]:
    """Of the ways to join cubes to so many chips, the one nearest to a cube, its sides in rising order."""
    cubes = chips // _CUBE
    sides = [(a, b, cubes // (a * b)) for a in range(1, cubes + 1) for b in range(a, cubes // a + 1)]
    ways = [(a, b, c) for a, b, c in sides if a * b * c == cubes and b <= c]
    return tuple(4 * side for side in min(ways, key=lambda way: (way[2], -way[0])))


_CUBES = _SMALL | {_CUBE * 2**i: _of_cubes(_CUBE * 2**i) for i in range(7)}


@dataclasses.dataclass(frozen=True)
class _Generation:
    """shapes: by chips, those that are offered; where they are of three sides, names count all multiples of a cube.
    largest: chips. cores: a chip's, by which names count. devices: a chip's, as JAX sees them. compiler: what libtpu
    calls it; None for GPUs. aliases: other names of it. chip_config: libtpu's name of how a chip's cores are used,
    where its own choice is not JAX's.
    """

    shapes: dict[int, tuple[int, ...]]
    largest: int
    cores: int
    devices: int
    compiler: str | None
    aliases: tuple[str, ...] = ()
    chip_config: str | None = None

    def shape_of(self, chips: int) -> tuple[int, ...] | None:
        """What a name without a shape means; None where there is no such slice."""
        joined = _CUBE in self.shapes and len(self.shapes[_CUBE]) == 3 and chips % _CUBE == 0
        return _of_cubes(chips) if joined and 0 < chips <= self.largest else self.shapes.get(chips)


_GPUS = {n: (n,) for n in (1, 2, 4, 8)}
_GENERATIONS = {
    'v4': _Generation({n: s for n, s in _CUBES.items() if n <= 2048}, 2048, 2, 1, 'v4', chip_config='megacore'),
    'v5e': _Generation(_FLAT, 256, 1, 1, 'v5e', ('v5litepod',)),
    'v5p': _Generation(_CUBES, 6144, 2, 1, 'v5p'),
    'v6e': _Generation(_FLAT, 256, 1, 1, 'v6e'),
    'v7x': _Generation({1: (1, 1, 1)} | _CUBES, 9216, 2, 2, 'tpu7x', ('tpu7x',)),
    'h100': _Generation(_GPUS, 8, 1, 1, None),
    'h200': _Generation(_GPUS, 8, 1, 1, None),
}
_NAMES = {name: known for known, g in _GENERATIONS.items() for name in (known, *g.aliases)}


@dataclasses.dataclass(frozen=True)
class Slice:
    """generation: of `core.chips.CHIPS`. shape: chips along each direction of their own network."""

    generation: str
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """As JAX counts: a v7x is two. All figures are per device."""
        return self.chips * _GENERATIONS[self.generation].devices

    @property
    def chip(self) -> Chip:
        """Of one device."""
        return CHIPS[self.generation]

    @property
    def topology(self) -> str | None:
        """Its name for libtpu, which can compile for it; None where nothing here can."""
        compiler = _GENERATIONS[self.generation].compiler
        return None if compiler is None else f'{compiler}:{"x".join(map(str, self.shape))}'

    @property
    def chip_config(self) -> str | None:
        """libtpu's name of how a chip's cores are used, where it has to be said."""
        return _GENERATIONS[self.generation].chip_config

    @property
    def one(self) -> 'Slice':
        """One chip of it."""
        return Slice(self.generation, (1,) * len(self.shape))

    def __str__(self) -> str:
        count = self.chips * _GENERATIONS[self.generation].cores
        if _GENERATIONS[self.generation].shape_of(self.chips) == self.shape:
            return f'{self.generation}-{count}'
        return f'{self.generation}:{"x".join(map(str, self.shape))}'


def parse(name: str) -> Slice:
    """'v5p-8', 'v5p:2x2x1', 'h100-8' -> the slice. Raises ConfigError for what does not exist."""
    shaped = ':' in name
    generation, _, size = name.partition(':' if shaped else '-')
    generation = parse_generation(generation, name)
    known = _GENERATIONS[generation]
    if shaped:
        return Slice(generation, _shape(name, generation, size))
    chips, rest = divmod(int(size), known.cores) if re.fullmatch('[1-9][0-9]{0,4}', size) else (0, 0)
    shape = None if rest else known.shape_of(chips)
    if shape is None:
        sizes = ', '.join(str(n * known.cores) for n in known.shapes)
        if known.largest > max(known.shapes):
            sizes += f', and other multiples of {_CUBE * known.cores} to {known.largest * known.cores}'
        cores = f' ({known.cores} TensorCores a chip are counted)' if known.cores > 1 else ''
        example = f'{generation}:{"x".join(map(str, known.shapes[4]))}'
        other = '' if known.compiler is None else f', or a shape as in {example}'
        raise ConfigError(f'--topology={name}: {generation} comes in {sizes}{cores}{other}')
    return Slice(generation, shape)


def parse_generation(name: str, whole: str | None = None) -> str:
    """'v5litepod' -> 'v5e'. whole: what was given, for the message. Raises ConfigError for an unknown one."""
    if name in _NAMES:
        return _NAMES[name]
    close = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.6)
    hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(_GENERATIONS)}'
    raise ConfigError(f'--topology={whole or name}: {name or "nothing"} is no known generation; {hint}')


def sizes(generation: str) -> list[Slice]:
    """All slices that a name without a shape can mean, from the smallest."""
    return [Slice(generation, shape) for shape in _GENERATIONS[generation].shapes.values()]


def _shape(name: str, generation: str, text: str) -> tuple[int, ...]:
    known = _GENERATIONS[generation]
    parts = text.split('x')
    rank = len(next(iter(known.shapes.values())))
    if known.compiler is None or len(parts) != rank or not all(re.fullmatch('[1-9][0-9]{0,2}', part) for part in parts):
        example = f'{generation}:{"x".join(map(str, known.shapes[8]))}' if known.compiler else f'{generation}-8'
        raise ConfigError(f'--topology={name}: is no shape of {generation}; give one as in {example}')
    shape = tuple(map(int, parts))
    cubes = rank == 3 and all(size % 4 == 0 for size in shape) and list(shape) == sorted(shape)
    joined = cubes and math.prod(shape) <= known.largest and shape[-1] <= _LONGEST
    if not joined and shape not in known.shapes.values():
        listed = ', '.join('x'.join(map(str, each)) for each in known.shapes.values())
        more = f', and multiples of 4 in rising order, to {known.largest} chips' if rank == 3 else ''
        raise ConfigError(f'--topology={name}: there is no such slice; shapes of {generation}: {listed}{more}')
    return shape
