"""Uploads an exported folder to the Hugging Face Hub, after checks that need no network."""

import dataclasses
import fnmatch
from collections.abc import Sequence

from fv_jax.core import files
from fv_jax.core.checks import one_line, require
from fv_jax.core.config import ConfigError
from fv_jax.core.hub import HubPath, check_installed, parse
from fv_jax.core.paths import StoragePath, is_hub
from fv_jax.weights import model_card
from fv_jax.weights.formats import safetensors_file

PICKLES = ('*.pt', '*.pth', '*.bin', '*.ckpt', '*.pkl', '*.pickle', '*.npy')  # what may execute code when it is opened


@dataclasses.dataclass(frozen=True)
class Push:
    """A folder to upload.

    Attributes:
      target: the model on the Hub, and the branch.
      private: whether a new model is private.
    """

    target: HubPath
    private: bool = False

    @classmethod
    def from_flag(cls, text: str, private: bool) -> 'Push':
        """Parses hf://USER/NAME[@BRANCH].

        Raises:
          ValueError: another text, or huggingface_hub is not installed.
        """
        require(is_hub(text), f'--push={text}: expected hf://USER/NAME or hf://USER/NAME@BRANCH')
        target = parse(text)
        require(not target.inside, f'--push={text}: names a folder in a model; a whole model is pushed')
        check_installed(f'--push={text}')
        return cls(target, private)


def check_folder(folder: StoragePath, push: Push) -> list[str]:
    """Checks a folder as the Hub would, with the checks of huggingface_hub that run locally.

    Args:
      folder: local.
      push: where it is to be uploaded.

    Returns:
      The names of its files.

    Raises:
      ConfigError, ValueError: a name that the Hub does not take, a model card that it cannot read, a pickle, or
        safetensors that are incomplete.
    """
    from huggingface_hub import CommitOperationAdd, ModelCard
    from huggingface_hub.utils import validate_repo_id

    local = f'{folder}: is in object storage; only a local folder can be pushed'
    require(not files.is_remote(folder), local, ConfigError)
    validate_repo_id(push.target.repo)
    names = list(files.list_files(folder))
    for name in names:
        CommitOperationAdd(name, str(folder / name))
        pickle = any(fnmatch.fnmatchcase(name, pattern) for pattern in PICKLES)
        require(not pickle, f'{folder / name}: may hold a pickle, which is not uploaded')
    card = ModelCard.load(folder / model_card.NAME)
    described = card.data.to_dict().get('library_name')
    require(described, f'{folder / model_card.NAME}: its front matter names no library')
    for parent in sorted({(folder / name).parent for name in names if name.endswith(safetensors_file.SUFFIX)}):
        safetensors_file.read_folder(parent)
    return names


def upload(folder: StoragePath, push: Push, message: str) -> str:
    """Uploads a folder in one commit; the model is created if it does not exist.

    Args:
      folder: local.
      push: where to.
      message: of the commit.

    Returns:
      The address of the commit.

    Raises:
      OSError: it cannot be uploaded.
    """
    from huggingface_hub import HfApi, errors

    api, target = HfApi(library_name='fv_jax'), push.target
    try:
        api.create_repo(target.repo, private=push.private or None, exist_ok=True)
        if target.revision:
            api.create_branch(target.repo, branch=target.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=target.repo, folder_path=folder, revision=target.revision, commit_message=message
        )
    except (OSError, ValueError, errors.HTTPError) as error:
        fix = f'`hf upload {target.repo} {folder}` uploads it later'
        raise OSError(f'{folder}: is complete, but was not uploaded: {one_line(error, 200)}; {fix}') from None
    return commit.commit_url


def describe(names: Sequence[str], folder: StoragePath, push: Push) -> str:
    """Returns a line on what is uploaded."""
    size = sum(info.size for info in files.list_files(folder).values())
    where = push.target.repo + (f'@{push.target.revision}' if push.target.revision else '')
    return f'{where}: {len(names)} files, {files.format_bytes(size)}: {", ".join(names)}'
