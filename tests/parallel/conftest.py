"""These tests need eight devices, and their number is fixed when a process first asks for one: they run in processes of
their own, with the flag below, as launch/check.sh does it. Anywhere else they are skipped, but for those that start all
of their processes themselves.
"""

import os

import jax
import pytest

FLAG = '--xla_force_host_platform_device_count=8'
STARTERS = ('full_processes.py', 'full_preparing.py', 'full_evaluation.py')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if FLAG in os.environ.get('XLA_FLAGS', ''):
        assert jax.device_count() == 8
        return
    for item in items:
        if 'tests/parallel/' in item.nodeid and item.path.name not in STARTERS:
            item.add_marker(pytest.mark.skip(reason=f'needs XLA_FLAGS={FLAG}, in a process of its own'))
