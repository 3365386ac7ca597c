"""Weights on the Hugging Face Hub: hf://USER/NAME[@REVISION][/PATH], wherever weights are read.

    hf://user/model                    the folder of a model
    hf://user/model@v1.0               of a tag, a branch or a commit; a slash in a name is %2F
    hf://user/model/vae                a folder or a file in it: nothing else is downloaded

Files are downloaded to the cache of huggingface_hub (HF_HOME), which other programs share, and opened there. With
HF_HUB_OFFLINE=1, or where the Hub cannot be reached, they are those that the cache has. A private model needs
`hf auth login` or HF_TOKEN. The extra `hub` installs the library.
"""

import dataclasses
import importlib.util
import pathlib
import urllib.parse

from fv_jax.core.checks import one_line, require
from fv_jax.core.paths import HUB_URL, StoragePath, as_path, expand_path, is_hub

# What nothing here reads: the same weights for other libraries, pickles that hold more than tensors.
IGNORED = ('*.bin', '*.h5', '*.msgpack', '*.onnx', '*.onnx_data', '*.gguf', '*.ot', '*.ckpt', '*.pth', '*.mp4', '*.gif')
_ERROR_CHARS = 200  # of a message of the library, some of which have paragraphs


@dataclasses.dataclass(frozen=True)
class HubPath:
    """A model on the Hub, or something in it.

    Attributes:
      repo: USER/NAME.
      revision: a branch, a tag or a commit; None is the default branch.
      inside: the path of a folder or a file in it; '' is the whole model.
    """

    repo: str
    revision: str | None = None
    inside: str = ''


def parse(url: str) -> HubPath:
    """Parses hf://USER/NAME[@REVISION][/PATH]. Raises ValueError."""
    repo, revision, inside = HUB_URL.fullmatch(expand_path(url)).groups()
    parts = [part for part in (inside or '').split('/') if part]
    return HubPath(repo, revision and urllib.parse.unquote(revision), '/'.join(parts))


def check_installed(what: str) -> None:
    """Raises ValueError where huggingface_hub is not installed; `what` begins the message."""
    missing = f"{what}: needs huggingface_hub; install it: pip install 'fv_jax[hub]'"
    require(importlib.util.find_spec('huggingface_hub') is not None, missing)


def weights_path(name: str | StoragePath) -> StoragePath:
    """Returns the path of weights, which a user may name on the Hub too.

    Args:
      name: a local path, a URL of object storage, or hf://USER/NAME[@REVISION][/PATH].

    Returns:
      The path. Of weights on the Hub, that of a local copy, which is downloaded unless it exists.

    Raises:
      ValueError: an invalid name, or huggingface_hub is not installed.
      OSError: no such model, revision or file, or no access to it; or the Hub cannot be reached, and the local cache
        does not have it.
    """
    return _download(name) if isinstance(name, str) and is_hub(name) else as_path(name)


def _download(url: str) -> pathlib.Path:
    there = parse(url)
    check_installed(url)
    from huggingface_hub import errors, snapshot_download

    patterns = [there.inside, f'{there.inside}/*'] if there.inside else None
    try:
        folder = snapshot_download(
            there.repo,
            revision=there.revision,
            allow_patterns=patterns,
            # A file that is named is downloaded whatever it is.
            ignore_patterns=[pattern for pattern in IGNORED if not there.inside.endswith(pattern[1:])],
        )
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f'{url}: {there.repo} has no revision {there.revision}') from None
    except errors.RepositoryNotFoundError:
        fix = 'log in with `hf auth login` or set HF_TOKEN if it is private or gated'
        raise FileNotFoundError(f'{url}: no model {there.repo} on the Hub; {fix}') from None
    except errors.LocalEntryNotFoundError as error:
        offline = 'HF_HUB_OFFLINE is set' if _is_offline() else f'the Hub cannot be reached ({_short(error)})'
        raise FileNotFoundError(f'{url}: is not in the local cache (HF_HOME), and {offline}') from None
    except (OSError, ValueError, errors.HTTPError) as error:
        raise OSError(f'{url}: cannot be downloaded: {_short(error)}') from None
    found = pathlib.Path(folder) / there.inside
    require(found.exists(), f'{url}: {there.repo} has no {there.inside}', FileNotFoundError)
    return found


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _short(error: Exception) -> str:
    return one_line(error, _ERROR_CHARS)
