"""A second process on the same shapes takes every program from the compilation cache; a first one compiles ahead."""

import json
import subprocess
import sys

from tests import runs
from tests.sampling import tiny

PROGRAM = """
import collections, json, sys, threading
import jax
from fv_jax import sample
events = collections.Counter()
def listen(event, **_):
    name = event.rpartition('/')[2]
    events.update([name, f'{threading.current_thread().name}: {name}'])
jax.monitoring.register_event_listener(listen)
code = sample.main(sys.argv[1:])
print(json.dumps(events))
sys.exit(code)
"""


def test_second_process_compiles_nothing(tmp_path):
    tiny.save_pipeline_and_vae(tmp_path)
    environment = {name: value for name, value in runs.environment().items() if not name.startswith('JAX_COMPILATION')}
    environment |= {'FV_JAX_CACHE': str(tmp_path / 'cache')}

    def count(output: str) -> dict[str, int]:
        flags = [f'--checkpoint={tmp_path}', f'--output={tmp_path}/{output}', '--prompt=a dog', '--enhance-all']
        found = subprocess.run(
            [sys.executable, '-c', PROGRAM, *flags], cwd=runs.ROOT, env=environment, check=True, capture_output=True
        )
        return json.loads(found.stdout.splitlines()[-1])

    first, second = count('first'), count('second')
    assert first['cache_misses'] > 10
    # Each program once; a step of each stage while its weights are read.
    assert first['cache_misses'] == first['compile_requests_use_cache'] and first['compile: cache_misses'] == 2
    assert 'cache_misses' not in second
    assert second['cache_hits'] == second['compile_requests_use_cache'] == first['compile_requests_use_cache']
