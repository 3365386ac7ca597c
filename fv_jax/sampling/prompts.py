"""What a user asks for, checked: prompts and seeds, one for each row of a batch."""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.text.encoder import check_text

MAX_SEED = 2**32 - 1
_SHOWN = 40  # characters of a prompt in a message


def shown(prompt: str) -> str:
    """A prompt as a message quotes it: one line, not long."""
    line = ' '.join(prompt.split())
    return repr(line if len(line) <= _SHOWN else f'{line[:_SHOWN]}...')


def several(value: Any) -> bool:
    """Whether this is a sequence of things, and not one thing: a text is one."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes) and np.ndim(value) > 0


def check_prompt(prompt: Any, where: str = 'prompt') -> str:
    """The prompt without the white space around it, as the official code takes it.

    Raises ValueError: it is not a text, not Unicode, or there is nothing in it.
    """
    require(isinstance(prompt, str), f'{where}={prompt!r}: must be a text, not a {type(prompt).__name__}')
    with error_context(f'{where}: '):
        check_text(prompt)
    require(prompt.strip(), f'{where}={prompt!r}: is empty; say what is to be seen')
    return prompt.strip()


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Several, at least one. A message numbers the prompts from 0."""
    require(len(prompts), 'no prompts: give at least one')
    return [check_prompt(prompt, f'prompt {i}') for i, prompt in enumerate(prompts)]


def check_seed(seed: Any, where: str = 'seed') -> int:
    """The seed as an int. Raises ValueError: it is not a whole number from 0 to 2^32 - 1."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = None
    if value is None or isinstance(seed, bool) or not 0 <= value <= MAX_SEED:
        raise ValueError(f'{where}={seed!r}: must be a whole number from 0 to {MAX_SEED}')
    return value


def check_seeds(seed: Any, rows: int) -> list[int]:
    """A seed for each of `rows` prompts: a sequence of as many, or s, s + 1, ... from a number s.

    Raises ValueError for another number of seeds, or one that is none.
    """
    if not several(seed):
        first = check_seed(seed)
        return [check_seed(first + i) for i in range(rows)]
    require(len(seed) == rows, f'seed: {len(seed)} seeds for {rows} prompt(s); give one for each, or a number')
    return [check_seed(s, f'seed {i}') for i, s in enumerate(seed)]


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank.

    Raises ValueError, naming the file: it is not there, not UTF-8, or has no such line.
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise ValueError(f'{path}: {error.strerror or error}') from None
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: is not UTF-8 (byte {error.start}); save it as UTF-8') from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    require(len(prompts), f'{path}: holds no prompts; write one on each line')
    return prompts
