"""Checks prompts and seeds, one per example of a batch."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.core.files import read_text
from fv_jax.core.paths import StoragePath
from fv_jax.text.encoder import check_text

MAX_SEED = 2**32 - 1
_MAX_QUOTED = 40  # characters of a prompt in a message


def quote_prompt(prompt: str) -> str:
    """Quotes a prompt for a message, on one line of limited length."""
    line = ' '.join(prompt.split())
    return repr(line if len(line) <= _MAX_QUOTED else f'{line[:_MAX_QUOTED]}...')


def is_sequence(value: Any) -> bool:
    """Returns whether the value is a sequence or an array of at least one dimension; a string is not."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes) and np.ndim(value) > 0


def check_prompt(prompt: Any, where: str = 'prompt') -> str:
    """Strips a prompt, as the official code does.

    Args:
      prompt: the text.
      where: names the prompt in messages.

    Raises:
      ValueError: not a string, not valid Unicode, or empty.
    """
    require(isinstance(prompt, str), f'{where}={prompt!r}: must be a string, not a {type(prompt).__name__}')
    with error_context(f'{where}: '):
        check_text(prompt)
    require(prompt.strip(), f'{where}={prompt!r}: is empty; describe what the video shows')
    return prompt.strip()


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Strips and checks prompts as `check_prompt`; messages number them from 0.

    Raises:
      ValueError: no prompts, or one that is not valid.
    """
    require(len(prompts), 'prompts: must not be empty; give at least one')
    return [check_prompt(prompt, f'prompt {i}') for i, prompt in enumerate(prompts)]


def check_seed(seed: Any, where: str = 'seed') -> int:
    """Converts a seed to int. Raises ValueError unless it is an integer from 0 to 2^32 - 1."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = None
    if value is None or isinstance(seed, bool) or not 0 <= value <= MAX_SEED:
        raise ValueError(f'{where}={seed!r}: must be an integer from 0 to {MAX_SEED}')
    return value


def check_seeds(seed: Any, count: int) -> list[int]:
    """Returns one seed per prompt: a sequence of `count` seeds is checked, an integer s becomes s, s + 1, ...

    Raises:
      ValueError: another number of seeds, or a value that is not a seed.
    """
    if not is_sequence(seed):
        first = check_seed(seed)
        return [check_seed(first + i) for i in range(count)]
    require(len(seed) == count, f'seed: {len(seed)} seeds for {count} prompt(s); give one for each, or an integer')
    return [check_seed(s, f'seed {i}') for i, s in enumerate(seed)]


def read_prompts(path: StoragePath) -> list[str]:
    """Reads one prompt from each line of a UTF-8 text file that is not blank.

    Raises:
      ValueError: the file cannot be read, is not UTF-8, or has no such line; the message names the file.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(f'{path}: {error.strerror or error}') from None
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: is not UTF-8 (byte {error.start}); save it as UTF-8') from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    require(len(prompts), f'{path}: contains no prompts; write one per line')
    return prompts
