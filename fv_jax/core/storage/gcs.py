"""Google Cloud Storage by gcsfs, see `filesystems`. Emulators: STORAGE_EMULATOR_HOST, with FSSPEC_GCS_TOKEN=anon."""

import functools
import inspect
import json
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

import aiohttp
import fsspec.asyn
import gcsfs.core
import gcsfs.retry
import google.auth.exceptions

from fv_jax.core.checks import one_line
from fv_jax.core.storage.filesystems import StoreFileSystem

# Without gcsfs's own repetitions, which end after half a minute and are not counted.
_request = inspect.unwrap(gcsfs.core.GCSFileSystem._request)
_DENIED = {401, 403}
_BUCKET = re.compile('/b/([^/?]+)/')
_NAME = re.compile('(?:/o/|[?&]name=)([^?&]+)')
_NAME_IN_BODY = re.compile(rb'^{"name": ("(?:[^"\\\\]|\\\\.)*")', re.MULTILINE)  # of an upload in one request
_ERRORS = (
    OSError, ValueError, gcsfs.retry.HttpError, aiohttp.ClientError, google.auth.exceptions.GoogleAuthError,
)  # fmt: skip


class GcsFileSystem(StoreFileSystem, gcsfs.core.GCSFileSystem):
    """gcsfs with `Retries`. Every error of the store is an OSError whose text names the object."""

    protocol = ('gs', 'gcs')

    async def _request(self, method: str, path: str, *args: str, **options: Any) -> Any:
        request = functools.partial(_request, self, method, path, *args, **options)
        try:
            return await self.retries_of_requests.run(request, _is_transient)
        except FileNotFoundError:
            raise FileNotFoundError(f'{_url(path, args, options)}: does not exist') from None
        except FileExistsError:
            raise FileExistsError(f'{_url(path, args, options)}: exists') from None
        except _ERRORS as error:
            kind = PermissionError if _is_denied(error) else OSError
            raise kind(f'{_url(path, args, options)}: {_reason(error)}') from error

    async def _write_version(self, path: str, data: bytes, version: str) -> str:
        """Writes an object of this generation, '' if it must not exist; returns the new one. Raises FileExistsError."""
        bucket, name, _ = self.split_path(path)
        address = f'{self._location}/upload/storage/v1/b/{urllib.parse.quote(bucket)}/o'
        condition = {'uploadType': 'media', 'name': name, 'ifGenerationMatch': version or '0'}
        written = await self._call('POST', address, data=data, json_out=True, **condition)
        return str(written['generation'])

    write_version = fsspec.asyn.sync_wrapper(_write_version)

    async def _info(self, path: str, generation: str | None = None, **options: Any) -> dict[str, Any]:
        """Asks for an object, and where there is none for a folder; gcsfs asks for both, and twice for a folder."""
        bucket, name, version = self.split_path(path.rstrip('/'))
        if not name or generation or version:
            return await super()._info(path, generation=generation, **options)
        try:
            return await self._get_object(f'{bucket}/{name}')
        except FileNotFoundError:
            folder = {'prefix': f'{name}/', 'maxResults': 1, 'fields': 'items(name)'}
            if not (await self._call('GET', 'b/{}/o', bucket, json_out=True, **folder)).get('items'):
                raise
        return {
            'bucket': bucket,
            'name': f'{bucket}/{name}',
            'size': 0,
            'storageClass': 'DIRECTORY',
            'type': 'directory',
        }


def _url(path: str, args: tuple[str, ...], options: Mapping[str, Any]) -> str:
    """Formats the bucket and the name that a request is about; they are arguments, or in its address or its body."""
    if named := '/'.join(part for part in args if part):
        return f'gs://{named}'
    bucket, name = _BUCKET.search(path), _NAME.search(path)
    parts = [urllib.parse.unquote(found[1]) for found in (bucket, name) if found]
    body = options.get('data')
    if not name and isinstance(body, bytes) and (found := _NAME_IN_BODY.search(body, 0, 4096)):
        parts.append(json.loads(found[1]))
    return f'gs://{"/".join(parts)}'


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, google.auth.exceptions.DefaultCredentialsError):
        return False
    passes = TimeoutError, google.auth.exceptions.TransportError
    return gcsfs.retry.is_retriable(error) or isinstance(error, passes)


def _is_denied(error: BaseException) -> bool:
    return getattr(error, 'code', None) in _DENIED or str(error).startswith('Forbidden')


def _reason(error: BaseException) -> str:
    if _is_denied(error):
        return 'permission denied; check the credentials and the roles of this account'
    return one_line(error, 300)
