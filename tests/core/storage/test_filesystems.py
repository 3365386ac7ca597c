"""The file systems of object stores that fsspec opens are those that repeat requests."""

import fsspec
import pytest

from fv_jax.core.paths import as_path
from fv_jax.core.storage.filesystems import StoreFileSystem


@pytest.mark.parametrize(
    ('scheme', 'package', 'original'), [('gs', 'gcsfs', 'GCSFileSystem'), ('s3', 's3fs', 'S3FileSystem')]
)
def test_file_system_that_another_library_used_before_is_replaced(scheme, package, original):
    module = pytest.importorskip(package)
    fsspec.register_implementation(scheme, getattr(module, original), clobber=True)
    as_path(f'{scheme}://bucket/a')
    assert issubclass(fsspec.get_filesystem_class(scheme), StoreFileSystem)
