"""Runs the command: `python -m fv_jax.sample`."""

import sys

from fv_jax.sample import main

if __name__ == '__main__':
    sys.exit(main())
