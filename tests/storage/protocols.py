"""What tests need to know of two protocols of object storage: the JSON API of GCS, and S3."""

import json
import re
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Mapping
from typing import NamedTuple, Protocol

KINDS = 'list', 'read', 'stat', 'upload', 'copy', 'delete', 'batch', 'other'
WRITES = 'upload', 'copy', 'delete', 'batch'


class Call(NamedTuple):
    """What a request asks for: one of `KINDS`; bucket and object are empty where it names none."""

    kind: str
    bucket: str = ''
    name: str = ''


class Message(NamedTuple):
    """A request that tests make themselves."""

    method: str
    target: str
    body: bytes = b''
    headers: Mapping[str, str] = {}


class StorageProtocol(Protocol):
    scheme: str

    def environment(self, url: str) -> dict[str, str]:
        """Returns the variables with which a process finds the server at `url`."""

    def parse_call(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Call:
        """Args: headers: with names in lower case. body: its first bytes, where an upload may carry the name."""

    def set_url(self, url: str) -> Message | None:
        """Returns a request that lets the server refer to itself as `url`, as far as it needs one."""

    def make_bucket(self, bucket: str) -> Message: ...
    def upload(self, bucket: str, name: str, data: bytes) -> Message: ...
    def download(self, bucket: str, name: str) -> Message: ...
    def list_objects(self, bucket: str) -> Message: ...
    def parse_list(self, body: bytes) -> dict[str, int]:
        """Returns sizes by name."""

    def error(self, status: int) -> tuple[str, bytes]:
        """Returns content type and body of an error response."""


def _quote(name: str, safe: str = '') -> str:
    return urllib.parse.quote(name, safe=safe)


class GCS:
    """The JSON API: https://cloud.google.com/storage/docs/json_api."""

    scheme = 'gs'

    def environment(self, url: str) -> dict[str, str]:
        return {
            'STORAGE_EMULATOR_HOST': url,  # gcsfs
            'TENSORSTORE_GCS_HTTP_URL': url,
            'FSSPEC_GCS_TOKEN': 'anon',
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks Google for the bucket's layout first
        }

    def parse_call(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Call:
        path, _, query = target.partition('?')
        if path.startswith('/batch/'):
            return Call('batch')
        matched = re.fullmatch(r'(?:/(upload|download))?/storage/v1/b(?:/([^/]+)(?:/o(?:/(.*))?)?)?', path)
        if matched is None:
            return Call('other')
        prefix, bucket, name = matched[1], *(urllib.parse.unquote(part or '') for part in matched.group(2, 3))
        if prefix == 'upload':
            return Call('upload', bucket, self._uploaded_name(query, body))
        if matched[3] is None:
            return Call('list' if method == 'GET' and '/o' in path else 'other', bucket)
        if method == 'GET':
            is_read = prefix == 'download' or 'alt=media' in query.split('&')
            return Call('read' if is_read else 'stat', bucket, name)
        if method == 'POST':  # o/NAME/rewriteTo/b/BUCKET/o/TARGET, o/TARGET/compose
            return Call('copy', bucket, urllib.parse.unquote(path.removesuffix('/compose').rpartition('/o/')[2]))
        return Call('delete' if method == 'DELETE' else 'other', bucket, name)

    def _uploaded_name(self, query: str, body: bytes) -> str:
        # '+' is no space: the server's own `Location` has it in names.
        name = urllib.parse.parse_qs(query.replace('+', '%2B')).get('name', [''])[0]
        if not name and (matched := re.search(rb'"name":\s*("(?:[^"\\]|\\.)*")', body)):
            name = json.loads(matched[1])
        return name

    def set_url(self, url: str) -> Message:
        body = json.dumps({'externalUrl': url}).encode()  # in `mediaLink`; `Location` follows the header Host
        return Message('PUT', '/_internal/config', body, {'Content-Type': 'application/json'})

    def make_bucket(self, bucket: str) -> Message:
        body = json.dumps({'name': bucket}).encode()
        return Message('POST', '/storage/v1/b?project=test', body, {'Content-Type': 'application/json'})

    def upload(self, bucket: str, name: str, data: bytes) -> Message:
        return Message('POST', f'/upload/storage/v1/b/{bucket}/o?uploadType=media&name={_quote(name)}', data)

    def download(self, bucket: str, name: str) -> Message:
        return Message('GET', f'/storage/v1/b/{bucket}/o/{_quote(name)}?alt=media')

    def list_objects(self, bucket: str) -> Message:
        return Message('GET', f'/storage/v1/b/{bucket}/o?maxResults=1000000')

    def parse_list(self, body: bytes) -> dict[str, int]:
        return {item['name']: int(item['size']) for item in json.loads(body).get('items', [])}

    def error(self, status: int) -> tuple[str, bytes]:
        message = f'injected by tests/storage: {status}'
        return 'application/json', json.dumps({'error': {'code': status, 'message': message}}).encode()


class S3:
    """S3 with the bucket in the path: https://docs.aws.amazon.com/AmazonS3/latest/API."""

    scheme = 's3'
    SIGNED: Mapping[str, str] = {'Authorization': 'AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request'}

    def environment(self, url: str) -> dict[str, str]:
        return {
            'AWS_ENDPOINT_URL': url,
            'AWS_ACCESS_KEY_ID': 'test',
            'AWS_SECRET_ACCESS_KEY': 'test',
            'AWS_DEFAULT_REGION': 'us-east-1',
            'AWS_EC2_METADATA_DISABLED': 'true',
        }

    def parse_call(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Call:
        path, _, query = target.partition('?')
        bucket, _, name = urllib.parse.unquote(path).removeprefix('/').partition('/')
        if not name:
            is_batch = method == 'POST' and query.split('&')[0].startswith('delete')
            is_list = method == 'GET' and bucket and not query.startswith('location')
            return Call('batch' if is_batch else 'list' if is_list else 'other', bucket)
        if method == 'PUT' and 'x-amz-copy-source' in headers:
            return Call('copy', bucket, name)
        kinds = {'GET': 'read', 'HEAD': 'stat', 'PUT': 'upload', 'POST': 'upload', 'DELETE': 'delete'}
        return Call(kinds.get(method, 'other'), bucket, name)

    def set_url(self, url: str) -> None:
        return None

    def make_bucket(self, bucket: str) -> Message:
        return Message('PUT', f'/{bucket}', headers=self.SIGNED)

    def upload(self, bucket: str, name: str, data: bytes) -> Message:
        return Message('PUT', f'/{bucket}/{_quote(name, "/")}', data, self.SIGNED)

    def download(self, bucket: str, name: str) -> Message:
        return Message('GET', f'/{bucket}/{_quote(name, "/")}', headers=self.SIGNED)

    def list_objects(self, bucket: str) -> Message:
        return Message('GET', f'/{bucket}?list-type=2', headers=self.SIGNED)

    def parse_list(self, body: bytes) -> dict[str, int]:
        space = '{http://s3.amazonaws.com/doc/2006-03-01/}'
        contents = xml.etree.ElementTree.fromstring(body).iter(f'{space}Contents')
        return {item.findtext(f'{space}Key'): int(item.findtext(f'{space}Size')) for item in contents}

    def error(self, status: int) -> tuple[str, bytes]:
        code = {403: 'AccessDenied', 503: 'SlowDown'}.get(status, 'InternalError')
        message = f'injected by tests/storage: {status}'
        return 'application/xml', f'<Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
