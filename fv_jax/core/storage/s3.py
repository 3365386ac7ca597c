"""S3 by s3fs, see `filesystems`. Other stores than Amazon's, and emulators: AWS_ENDPOINT_URL."""

import functools
from typing import Any

import aiohttp
import botocore.exceptions
import fsspec.asyn
import s3fs

from fv_jax.core.checks import one_line
from fv_jax.core.storage.filesystems import StoreFileSystem

_CONNECTION = (
    aiohttp.ClientError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)
_ONE_ATTEMPT = {'retries': {'total_max_attempts': 1}}  # botocore's own repetitions


class S3FileSystem(StoreFileSystem, s3fs.S3FileSystem):
    """s3fs with `Retries`. Every error of the store is an OSError whose text names the object."""

    protocol = ('s3', 's3a')
    retries = 1  # s3fs's own, which are not counted

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{'config_kwargs': _ONE_ATTEMPT, **options})

    async def _call_s3(self, method: str, *groups: Any, **options: Any) -> Any:
        request = functools.partial(super()._call_s3, method, *groups, **options)
        try:
            return await self.retries_of_requests.run(request, _is_transient)
        except (FileNotFoundError, FileExistsError):
            raise
        except (OSError, *_CONNECTION, botocore.exceptions.BotoCoreError) as error:
            given = {**{key: value for group in groups for key, value in group.items()}, **options}
            name = '/'.join(str(given[key]) for key in ('Bucket', 'Key') if given.get(key))
            if _status(error) == 412 and method != 'get_object':  # a precondition
                raise FileExistsError(f's3://{name}: exists') from None
            kind = PermissionError if _is_denied(error) else OSError
            raise kind(f's3://{name}: {_reason(error)}') from error

    async def _cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        """Reads an object. The connection can break after the call that `_call_s3` repeats."""
        request = functools.partial(super()._cat_file, path, *args, **options)
        try:
            return await self.retries_of_requests.run(request, _is_transient)
        except (*_CONNECTION, botocore.exceptions.BotoCoreError) as error:
            raise OSError(f's3://{path.removeprefix("s3://")}: {_reason(error)}') from error

    async def _write_version(self, path: str, data: bytes, version: str) -> str:
        """Writes an object of this ETag, '' if it must not exist; returns the new one. Raises FileExistsError."""
        bucket, name, _ = self.split_path(path)
        condition = {'IfMatch': f'"{version}"'} if version else {'IfNoneMatch': '*'}
        written = await self._call_s3('put_object', Bucket=bucket, Key=name, Body=data, **condition)
        return written['ETag'].strip('"')

    write_version = fsspec.asyn.sync_wrapper(_write_version)


def _status(error: BaseException) -> int:
    response = getattr(error.__cause__ or error, 'response', None)
    return response.get('ResponseMetadata', {}).get('HTTPStatusCode', 0) if isinstance(response, dict) else 0


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, _CONNECTION) or _status(error) in (408, 429) or _status(error) >= 500


def _is_denied(error: BaseException) -> bool:
    credentials = botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError
    return isinstance(error, (PermissionError, *credentials)) or _status(error) in (401, 403)


def _reason(error: BaseException) -> str:
    if _status(error) == 412:
        return 'was replaced while it was read'
    if _is_denied(error):
        return 'permission denied; check the credentials and the policy of this account'
    return one_line(error, 300)
