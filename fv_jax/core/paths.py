"""Local paths that users name: what every flag and every field of a configuration that is a path goes through.

Data sources take URLs as well (`data/sources.py`); their local folders come here too.
"""

import os
import re
from typing import NewType

from fv_jax.core.checks import require

# Types of configuration fields; `config.build` expands and checks their values.
LocalPath = NewType('LocalPath', str)
LocalPathOrEmpty = NewType('LocalPathOrEmpty', str)  # '' is none

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*://')


def is_url(text: str) -> bool:
    """Returns whether a text starts with a scheme, as gs://BUCKET does."""
    return _URL.match(text) is not None


def expand_path(text: str) -> str:
    """Expands `~` and `~USER` at the start of a local path.

    Raises:
      ValueError: the path is empty or a URL, its user does not exist, or its name cannot be stored here.
    """
    require(text, 'must be the path of a file or folder, and is empty (is a shell variable unset?)')
    require(not is_url(text), f'{text}: object storage and URLs are not supported here yet; give a local path')
    _check_encoding(text)
    expanded = os.path.expanduser(text)
    user = text.partition('/')[0]
    require(not expanded.startswith('~'), f'{text}: {user} has no home folder; write ./{text} for a file of that name')
    return expanded


def _check_encoding(text: str) -> None:
    """Raises ValueError for a path that no library can be given: Orbax takes UTF-8, the system what its locale has."""
    require('\0' not in text, f'{text!a}: must not hold a null character')
    try:
        text.encode()
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(
            f'{text!a}: cannot be encoded as {error.encoding}; rename it in ASCII, or run in a UTF-8 locale '
            '(LC_ALL=C.UTF-8)'
        ) from None
