"""run.json: a record of each start of a run: command, configuration, code revision, library versions, devices."""

import collections
import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import fv_jax
from fv_jax.core.files import parse_json, write_json
from fv_jax.core.paths import StoragePath

RUN = 'run.json'
PACKAGES = (
    'jax', 'jaxlib', 'libtpu', 'jax-cuda12-plugin', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'array_record',
    'numpy', 'av', 'opencv-python-headless',
)  # fmt: skip


def record_start(workdir: StoragePath, command: Sequence[str], config: dict[str, Any], mesh: Mesh, step: int) -> None:
    """Appends an entry for this start to run.json. A file that cannot be read is renamed to run.damaged."""
    path = workdir / RUN
    write_json(path, [*_entries(path), _entry(command, config, mesh, step)])


def _entries(path: StoragePath) -> list[dict[str, Any]]:
    try:
        entries = parse_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError:
        entries = None
    if not isinstance(entries, list):
        path.replace(path.with_suffix('.damaged'))
        return []
    return entries


def _entry(command: Sequence[str], config: dict[str, Any], mesh: Mesh, step: int) -> dict[str, Any]:
    return {
        'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': list(command),
        'step': step,
        'git': git_revision(Path(fv_jax.__file__)),
        'versions': {'fv_jax': fv_jax.__version__, 'python': platform.python_version(), **_versions()},
        'devices': dict(collections.Counter(device.device_kind for device in mesh.devices.flat)),
        'mesh': dict(mesh.shape),
        'processes': jax.process_count(),
        'config': config,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision(file: Path) -> str | None:
    """Returns the commit of a file's repository, with '+changes' if tracked files differ; None outside of one."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(file.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        git('ls-files', '--error-unmatch', file.name)  # fails for an installed package inside another repository
        changes = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + ('+changes' if changes else '')
    except (OSError, subprocess.SubprocessError):
        return None
