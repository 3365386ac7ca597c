"""TPU slices by Google's names: what each is made of, and names that there are not."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.planning import slices
from tests.launch.scripts import LAUNCH, bash, refused

READ = f"""
. {LAUNCH}/common.sh; . {LAUNCH}/slices.sh
for type in "$@"; do (
  read_slice "$type"
  echo "$type $generation $family-$size $topology $chips $hosts $chips_per_host"
); done
"""


def read(*types: str) -> list[str]:
    return bash('-c', READ, 'launch', *types).stdout.splitlines()


def test_slice_names_in_bash():
    rows = [
        # what is asked for, generation, Google's name, topology, chips, hosts, chips of a host
        'v4-8 v4 v4-8 2x2x1 4 1 4',
        'v4-4096 v4 v4-4096 8x16x16 2048 512 4',
        'v5e-1 v5e v5litepod-1 1x1 1 1 1',
        'v5e-4 v5e v5litepod-4 2x2 4 1 4',
        'v5litepod-8 v5e v5litepod-8 2x4 8 1 8',
        'v5e-16 v5e v5litepod-16 4x4 16 4 4',
        'v5e-256 v5e v5litepod-256 16x16 256 64 4',
        'v5p-8 v5p v5p-8 2x2x1 4 1 4',
        'v5p-16 v5p v5p-16 2x2x2 8 2 4',
        'v5p-64 v5p v5p-64 2x4x4 32 8 4',
        'v5p-384 v5p v5p-384 4x4x12 192 48 4',
        'v5p-512 v5p v5p-512 4x8x8 256 64 4',
        'v5p-2048 v5p v5p-2048 8x8x16 1024 256 4',
        'v5p-12288 v5p v5p-12288 16x16x24 6144 1536 4',
        'v6e-8 v6e v6e-8 2x4 8 1 8',
        'v6e-64 v6e v6e-64 8x8 64 16 4',
        'v7x-2 v7x tpu7x-2 1x1x1 1 1 1',
        'v7x-8 v7x tpu7x-8 2x2x1 4 1 4',
        'tpu7x-128 v7x tpu7x-128 4x4x4 64 16 4',
        # by topology
        'v5p:2x2x4 v5p v5p-32 2x2x4 16 4 4',
        'v5p:4x4x16 v5p v5p-512 4x4x16 256 64 4',
        'v6e:4x8 v6e v6e-32 4x8 32 8 4',
    ]
    assert read(*(row.split()[0] for row in rows)) == rows


@pytest.mark.parametrize('generation', ['v4', 'v5e', 'v5p', 'v6e', 'v7x'])
def test_slice_chips_and_hosts_agree(generation):
    """Of many numbers, those that name a slice: its topology, its hosts and its name agree."""
    rows = [row.split() for row in read(*(f'{generation}-{n}' for n in (*range(1, 34), *range(64, 1025, 64))))]
    assert len(rows) >= 8
    for asked, _, _, topology, chips, hosts, chips_per_host in rows:
        sides = [int(side) for side in topology.split('x')]
        cores = 1 if generation in ('v5e', 'v6e') else 2
        product = 1
        for side in sides:
            product *= side
        assert product == int(chips) == int(hosts) * int(chips_per_host) == int(asked.split('-')[1]) // cores
        assert len(sides) == (2 if cores == 1 else 3)


@pytest.mark.parametrize(
    'type_, part',
    [
        ('v5p-10', 'multiples of 128 to 12288'),
        ('v5p-4', 'two a chip: 8, 16'),
        ('v5p-9', 'TensorCores'),
        ('v5p-12416', 'to 12288'),
        ('v4-2', 'to 4096'),
        ('v5e-2', 'count chips: 1, 4, 8'),
        ('v6e-512', '128, 256'),
        ('v5p-08', 'no such TPU slice'),
        ('v5p', 'no such TPU slice'),
        ('v5p-', 'no such TPU slice'),
        ('v5p:4x4', 'v5p:4x4x8'),
        ('v5p:12x4x4', 'no such TPU slice'),
        ('v6e:8x4', 'v6e:4x8'),
        ('v5p:a[$(touch here)]', 'no such TPU slice'),
        ('v3-8', 'no such TPU generation'),
        ('h100-8', 'no such TPU generation'),
        ('', 'no such TPU generation'),
    ],
)
def test_unknown_slice_names_in_bash(tmp_path, type_, part):
    assert refused(bash('-c', READ, 'launch', type_, home=tmp_path), f'--type={type_}: ', part)
    assert not list(tmp_path.iterdir())


# Sizes that there are and that there are not; the same by shape; and what is no name at all.
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    32,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    640,
    1792,
    2048,
    4096,
    4224,
    8192,
    12288,
    18432,
)
SHAPES = (
    '1x1',
    '2x2',
    '2x4',
    '4x2',
    '4x4',
    '4x8',
    '8x8',
    '16x16',
    '32x32',
    '1x1x1',
    '2x2x1',
    '2x2x2',
    '2x2x4',
    '4x2x2',
)
CUBES = ('4x4x4', '4x4x12', '12x4x4', '4x8x8', '4x4x32', '16x16x24', '24x24x24', '4x4x260', '04x4x4', '4x4x', '3x4x4')
GENERATIONS = ('v4', 'v5e', 'v5litepod', 'v5p', 'v6e', 'v7x', 'tpu7x')


def by_plan(name: str) -> str | None:
    try:
        found = slices.parse(name)
    except ConfigError:
        return None
    return f'{found.generation} {"x".join(map(str, found.shape))} {found.chips}'


def test_plan_and_launch_accept_the_same_slices():
    """`fv_jax.planning.slices` reads the same names in another language."""
    names = [f'{generation}-{number}' for generation in GENERATIONS for number in NUMBERS]
    names += [f'{generation}:{shape}' for generation in GENERATIONS for shape in (*SHAPES, *CUBES)]
    names += ['v5p', 'v5p-', 'v5p:', 'v3-8', 'v5p-08', 'v5p-8x', 'v5lite-8', '-8', ':4x4x4']
    rows = [row.split() for row in read(*names)]
    by_launch = {asked: f'{generation} {topology} {chips}' for asked, generation, _, topology, chips, *_ in rows}
    assert {name: by_launch.get(name) for name in names} == {name: by_plan(name) for name in names}
    assert 60 < len(by_launch) < len(names) - 60
