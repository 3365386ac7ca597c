"""Makes a cache in the layout of huggingface_hub, as a download leaves it."""

import hashlib
import pathlib
from collections.abc import Mapping

COMMIT = 'a' * 40


def make_cache(cache: pathlib.Path, repo: str, contents: Mapping[str, str | bytes], **refs: str) -> pathlib.Path:
    """Adds a model: files are links to blobs that are named by their hashes.

    Args:
      cache: the folder of the cache.
      repo: USER/NAME.
      contents: of the files, by name.
      refs: branch or tag -> commit.

    Returns:
      The folder of the snapshot.
    """
    model = cache / f'models--{repo.replace("/", "--")}'
    snapshot = model / 'snapshots' / COMMIT
    for folder in (model / 'blobs', model / 'refs', snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        blob = model / 'blobs' / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    for name, commit in refs.items():
        (model / 'refs' / name).write_text(commit)
    return snapshot
