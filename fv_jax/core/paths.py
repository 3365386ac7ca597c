"""Paths that users name: what every flag and every field of a configuration that is a path goes through.

A local path is a `pathlib.Path`; a URL of object storage (gs://BUCKET/NAME, s3://BUCKET/NAME) is an `epath.Path`, which
has the same methods. What differs between the two is in `core/storage`.
"""

import os
import pathlib
import re
from typing import NewType

from etils import epath

from fv_jax.core.checks import require
from fv_jax.core.storage import filesystems

StoragePath = pathlib.Path | epath.Path

# Types of configuration fields; `config.build` expands and checks their values.
PathText = NewType('PathText', str)
PathTextOrEmpty = NewType('PathTextOrEmpty', str)  # '' is none

HUB_SCHEME = 'hf://'  # weights on the Hugging Face Hub, which `core/hub` resolves
_NAME = r'[A-Za-z0-9][A-Za-z0-9._-]*'
HUB_URL = re.compile(rf'{HUB_SCHEME}({_NAME}/{_NAME})(?:@([^/@]+))?(?:/(.*))?')  # (USER/NAME, REVISION, PATH)

_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://')
# 'gs:/bucket' is what pathlib makes of 'gs://bucket', and no folder that anybody names.
_BROKEN_URL = re.compile(r'(gs|gcs|s3|s3a|hf|az|abfs|file|https?):/(?!/)', re.IGNORECASE)
_REFUSED = re.compile(r'[*?\[\]#\x00-\x1f\x7f]|/\.\.?(/|$)')  # patterns, generations and parents are none of a name


def is_url(text: str) -> bool:
    """Returns whether a text starts with a scheme, as gs://BUCKET does."""
    return _URL.match(text) is not None


def is_hub(text: str) -> bool:
    """Returns whether a text names weights on the Hugging Face Hub (hf://USER/NAME)."""
    return text.startswith(HUB_SCHEME)


def as_path(text: str | os.PathLike[str]) -> StoragePath:
    """Returns the path that a text names: `pathlib.Path` where it is local, `epath.Path` where it is a URL.

    Raises:
      ValueError: see `expand_path`; or a name on the Hub, which is none of a file: `hub.weights_path` resolves it.
    """
    only = f'{text}: {HUB_SCHEME} names weights, which are read; name a local path, gs:// or s3:// here'
    require(not is_hub(os.fspath(text)), only)
    if is_url(os.fspath(text)) and not isinstance(text, str):
        filesystems.register(os.fspath(text).partition('://')[0], os.fspath(text))
        return epath.Path(text)
    expanded = expand_path(os.fspath(text))
    return epath.Path(expanded) if is_url(expanded) else pathlib.Path(expanded)


def holds_checkpoints(path: StoragePath) -> bool:
    """Returns whether Orbax has a backend for the storage of a path: local folders and gs://."""
    return not is_url(str(path)) or str(path).startswith('gs://')


def absolute(path: StoragePath) -> StoragePath:
    """Returns a path that does not depend on the working directory."""
    return path.absolute() if isinstance(path, pathlib.Path) else path


def real_path(path: StoragePath) -> StoragePath:
    """Returns an absolute path without links."""
    return path.resolve() if isinstance(path, pathlib.Path) else path


def relative_path(path: StoragePath, folder: StoragePath) -> str:
    """Returns the path of a file from a folder of the same kind, with slashes: '../images/a.png'."""
    return pathlib.PurePath(os.path.relpath(path, folder)).as_posix()


def expand_path(text: str) -> str:
    """Checks a path, and expands `~` and `~USER` at the start of a local one.

    Raises:
      ValueError: the path is empty, a name on the Hub is invalid, a scheme is unknown or needs an extra that is not
        installed, the user does not exist, or the name cannot be stored there.
    """
    require(text, 'must be the path of a file or folder, and is empty (is a shell variable unset?)')
    _check_encoding(text)
    if is_hub(text):
        return _check_hub(text)
    if is_url(text):
        return _check_url(text)
    broken = _BROKEN_URL.match(text)
    if broken:
        name = 'USER/NAME' if broken[1].lower() == 'hf' else 'BUCKET/NAME'
        raise ValueError(f'{text}: write {broken[1].lower()}://{name}, or ./{text} for a local path')
    expanded = os.path.expanduser(text)
    user = text.partition('/')[0]
    require(not expanded.startswith('~'), f'{text}: {user} has no home folder; write ./{text} for a file of that name')
    return expanded


def _check_hub(text: str) -> str:
    match = HUB_URL.fullmatch(text)
    inside = (match[3] or '').split('/') if match else ['..']
    if {'.', '..'}.intersection(inside) or _REFUSED.search(text):
        raise ValueError(f'{text}: expected hf://USER/NAME, hf://USER/NAME@REVISION, or one of them with /PATH')
    return text.rstrip('/')


def _check_url(text: str) -> str:
    scheme, rest = text.split('://', 1)
    filesystems.register(scheme, text)
    bucket, _, name = rest.partition('/')
    require(re.fullmatch(r'[a-z0-9][a-z0-9._-]*', bucket), f'{text}: expected {scheme}://BUCKET/NAME')
    if found := _REFUSED.search(f'/{name}'):
        raise ValueError(f'{text}: a name in object storage must not hold {found.group()!r}')
    return f'{scheme}://' + '/'.join(part for part in rest.split('/') if part)


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
