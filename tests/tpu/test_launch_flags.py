"""libtpu knows the flags that `launch/env.sh` gives each TPU generation, and compiles with them, with no TPU at hand.

Needs libtpu (the extra tpu). libtpu reads its flags once in a process, and ends it at one that it does not know.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('libtpu')

ENV = Path(__file__).parents[2] / 'launch' / 'env.sh'

# A layer whose weights are gathered, and whose gradients are summed, over the chips.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(topologies.get_topology_desc(platform='tpu', topology_name=sys.argv[1]).devices, ('d',))
rows = NamedSharding(mesh, P('d'))
w, x = (jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=rows) for _ in range(2))
jax.jit(jax.grad(lambda w, x: jnp.tanh(x @ w).astype(jnp.float32).sum()), out_shardings=rows).lower(w, x).compile()
"""


def compile_with(topology: str, flags: str) -> subprocess.CompletedProcess:
    env = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'TPU_SKIP_MDS_QUERY': '1',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
        'LIBTPU_INIT_ARGS': flags,
    }
    return subprocess.run([sys.executable, '-c', PROGRAM, topology], env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    'chip, topology', [('v4', '2x2x1'), ('v5e', '2x4'), ('v5p', '2x2x1'), ('v6e', '2x4'), ('v7x', '2x2x1')]
)
def test_libtpu_compiles_with_the_flags(chip, topology):
    output = subprocess.run(['bash', ENV, chip, '2'], env={'PATH': os.environ['PATH']}, capture_output=True, text=True)
    exports = dict(
        shlex.split(line)[1].split('=', 1) for line in output.stdout.splitlines() if line.startswith('export ')
    )
    generation = 'tpu7x' if chip == 'v7x' else chip
    result = compile_with(f'{generation}:{topology}', exports['LIBTPU_INIT_ARGS'])
    assert result.returncode == 0, result.stderr[-2000:]


def test_libtpu_ends_at_a_flag_that_it_does_not_know():
    result = compile_with('v5e:2x4', '--xla_tpu_no_such_flag=true')
    assert result.returncode != 0 and 'xla_tpu_no_such_flag' in result.stderr
