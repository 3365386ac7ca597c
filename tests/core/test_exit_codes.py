"""Exit codes: what the launch scripts restart on is what a preempted run ends with."""

import re
from pathlib import Path

from fv_jax.core import exit_codes

COMMON = Path(__file__).parents[2] / 'launch' / 'common.sh'


def test_exit_code_of_preemption_is_that_of_the_launch_scripts():
    (code,) = re.findall(r'^readonly PREEMPTED=(\d+)$', COMMON.read_text(), re.MULTILINE)
    assert int(code) == exit_codes.PREEMPTED
