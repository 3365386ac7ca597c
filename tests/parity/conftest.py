"""Where the official inputs and outputs are: tests/parity/official_dev, or the folder that the environment names."""

import os
import pathlib

import pytest


@pytest.fixture(scope='session')
def official() -> pathlib.Path:
    folder = pathlib.Path(os.environ.get('FV_JAX_OFFICIAL_FIXTURES') or pathlib.Path(__file__).parent / 'official_dev')
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: FV_JAX_OFFICIAL_FIXTURES does not name a folder')
    return folder
