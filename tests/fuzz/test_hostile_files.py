"""Files made to do harm: to run something, to reach out of their folder, to fill the memory, to end with a trace."""

import io
import json
import pickle
import struct
import zipfile

import av
import msgpack
import numpy as np
import pytest
from PIL import Image

from fv_jax.core import files
from fv_jax.core.command_line import UsageError
from fv_jax.data import sources
from fv_jax.data.shards import records
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards
from fv_jax.data.video import decoding
from fv_jax.data.video.captions import Captions
from fv_jax.parallel import distributed
from fv_jax.training.run import bad_step_dumps
from fv_jax.weights import exported_network
from fv_jax.weights.formats import safetensors_file, torch_zip
from tests.data import sample_videos

DEEP = '[' * 100_000


class Exploit:
    """An object whose pickle executes code when it is read."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), 'w')


def torch_archive(path, pickled: bytes, storage: bytes = bytes(16)):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        for name, data in (('data.pkl', pickled), ('data/0', storage), ('byteorder', b'little')):
            archive.writestr(f'x/{name}', data)
    return path


def number(value) -> bytes:
    return (pickle.INT if isinstance(value, int | str) else pickle.FLOAT) + f'{value}\n'.encode()


def tensor_pickle(shape, strides=(1,), then: bytes = b'') -> bytes:
    """Makes a pickle of one tensor over a storage of four float32.

    Args:
      then: opcodes after it.
    """
    named = [
        pickle.GLOBAL + b'torch._utils\n_rebuild_tensor_v2\n', pickle.MARK, pickle.MARK,
        pickle.UNICODE + b'storage\n', pickle.GLOBAL + b'torch\nFloatStorage\n', pickle.UNICODE + b'0\n',
        pickle.UNICODE + b'cpu\n', pickle.INT + b'4\n', pickle.TUPLE, pickle.BINPERSID, pickle.INT + b'0\n',
    ]  # fmt: skip
    for numbers in (shape, strides):
        named += [pickle.MARK, *map(number, numbers), pickle.TUPLE]
    named += [pickle.NEWFALSE, pickle.EMPTY_DICT, pickle.TUPLE, pickle.REDUCE, then, pickle.STOP]
    return pickle.PROTO + b'\x02' + b''.join(named)


def test_pickle_cannot_execute_code(tmp_path):
    path = torch_archive(tmp_path / 'w.pt', pickle.dumps({'module': Exploit(tmp_path / 'harm')}, 2))
    with pytest.raises(ValueError, match='refusing to load'):
        torch_zip.read(path)
    assert not (tmp_path / 'harm').exists()


def test_pickle_cannot_change_a_checked_tensor(tmp_path):
    """Or the view would show memory that is not the file's."""
    state = pickle.dumps({'shape': (10**9,)}, 2)[2:-1]
    path = torch_archive(tmp_path / 'w.pt', tensor_pickle((4,), then=state + pickle.BUILD))
    assert torch_zip.read(torch_archive(tmp_path / 'good.pt', tensor_pickle((4,)))).shape == (4,)
    with pytest.raises(ValueError, match='pickle cannot be read'):
        torch_zip.read(path)


@pytest.mark.parametrize(
    ('shape', 'strides'), [((10**12,), (0,)), ((10**6, 10**6, 4), (0, 0, 1)), ((4.0,), (1,)), (('x',), (1,))]
)
def test_tensor_cannot_exceed_its_bytes(tmp_path, shape, strides):
    with pytest.raises(ValueError, match=r'does not fit|cannot be read'):
        torch_zip.read(torch_archive(tmp_path / 'w.pt', tensor_pickle(shape, strides)))


def test_pickle_without_end_is_refused(tmp_path):
    nested = pickle.PROTO + b'\x02' + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 10**4 + pickle.STOP
    assert torch_zip.read(torch_archive(tmp_path / 'deep.pt', nested)) is not None  # read without recursion
    claims = pickle.PROTO + b'\x02' + pickle.BINUNICODE8 + struct.pack('<Q', 2**62) + b'x' + pickle.STOP
    with pytest.raises(ValueError, match='cannot be read'):
        torch_zip.read(torch_archive(tmp_path / 'claims.pt', claims))


def safetensors(path, header, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(raw) if length is None else length) + raw + bytes(8))
    return path


ENTRY = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}


@pytest.mark.parametrize(
    'header',
    [
        {'a': 3}, {'a': {}}, {'a': ENTRY | {'dtype': ['F32']}},
        {'a': ENTRY | {'shape': [-1]}}, {'a': ENTRY | {'shape': 'x'}},
        {'a': ENTRY | {'shape': [1.0]}},
        {'a': ENTRY | {'shape': [True]}}, {'a': ENTRY | {'shape': [-1, -1]}},
        {'a': ENTRY | {'data_offsets': [-4, 0]}}, {'a': ENTRY | {'data_offsets': [0, 4, 8]}},
        {'a': ENTRY | {'shape': [2**62], 'data_offsets': [0, 2**64]}},
        {'__metadata__': 3}, {'__metadata__': {'a': [1]}},
        b'[1]', b'{"a": NaN}', b'\xff\xfe', DEEP.encode(),
    ],
)  # fmt: skip
def test_safetensors_header_with_wrong_offsets_is_refused(tmp_path, header):
    path = safetensors(tmp_path / 'x.safetensors', header)
    with pytest.raises(ValueError, match=r'x\.safetensors'):
        safetensors_file.read(path)


def test_safetensors_header_longer_than_its_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match='truncated'):
        safetensors_file.read(safetensors(tmp_path / 'x.safetensors', {}, length=2**63))


@pytest.mark.parametrize('name', ['../secret.safetensors', '/secret.safetensors', '..', '.', 'sub/x.safetensors', 3])
def test_safetensors_index_cannot_name_files_elsewhere(tmp_path, name):
    safetensors(tmp_path / 'secret.safetensors', {'a': ENTRY})
    (folder := tmp_path / 'model').mkdir()
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': name}}))
    with pytest.raises((ValueError, IsADirectoryError)):
        safetensors_file.read_folder(folder)


@pytest.mark.parametrize('text', ['[1]', '3', '{"x": 1}', '{"base_channels": "x"}', DEEP, '{'])
def test_network_config_with_invalid_sizes_is_refused(tmp_path, text):
    with pytest.raises(ValueError):
        exported_network.read_config(safetensors(tmp_path / 'x.safetensors', {'__metadata__': {'vae': text}}))


@pytest.mark.parametrize(
    'value',
    [
        {'dtype': 'uint8', 'shape': [-1], 'data': b'1234'}, {'dtype': 'object', 'shape': [1], 'data': bytes(8)},
        {'dtype': ['x'], 'shape': [1], 'data': b'1'}, {'dtype': 'uint8', 'shape': [2**62, 2**62], 'data': b'1'},
        {'dtype': 'uint8', 'shape': None, 'data': b'1'}, {'dtype': 'V9', 'shape': [0], 'data': b''}, [1, 2],
        {'nested': {}}, msgpack.ExtType(5, b'a'), msgpack.Timestamp(1),
    ],
)  # fmt: skip
def test_record_with_unsupported_types_is_refused(value):
    with pytest.raises(ValueError):
        records.decode_record(msgpack.packb({'x': value}))
    assert records.record_size({'z_high': b'no array'}) is None


@pytest.mark.parametrize(
    'index',
    [
        [1], {'sizes': 'abc'}, {'sizes': [[9]]}, {'sizes': [[9, 32, 32, -5]]}, {'shards': [1]}, {'shards': {'x': 'y'}},
        {'config': 3}, {'records': 'many'}, {'latents': 'x'}, {'text': {'digest': 3}}, {'text': 'x'}, DEEP,
    ],
)  # fmt: skip
def test_invalid_shard_index_is_refused(tmp_path, index):
    with pytest.raises(ValueError, match=r'clips\.json'):
        shards(tmp_path, index if isinstance(index, str) else json.dumps(index))


def test_shard_index_with_huge_counts_takes_no_memory(tmp_path):
    source = shards(
        tmp_path, json.dumps({'sizes': [[9, 32, 48, 10**12]], 'shards': {'clips-00000-of-00001.array_record': 1}})
    )
    np.testing.assert_array_equal(sources.read_sizes(source).to_array(), [[9, 32, 48]])


def shards(folder, index: str):
    with RecordWriter(folder, 'clips') as writer:
        writer.write({'frames': 1, 'height': 2, 'width': 3, 'video': b'x'})
    (folder / 'clips.json').write_text(index)
    (folder / 'clips.parquet').unlink()
    return Shards(list_shards(folder))


def test_deeply_nested_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match='nested too deeply'):
        files.parse_json(DEEP)
    (tmp_path / 'captions.json').write_text(DEEP)
    with pytest.raises(ValueError, match=r'captions\.json: nested'):
        Captions(tmp_path).find(tmp_path / 'video.mp4')


def test_playlist_cannot_open_other_files(tmp_path):
    """With the suffix of a video, it would make FFmpeg open the files and URLs that it names."""
    with av.open(str(tmp_path / 'secret.ts'), 'w', format='mpegts') as out:
        stream = out.add_stream('mpeg2video', rate=24)
        stream.height, stream.width = 64, 96
        for frame in sample_videos.pattern(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        out.mux(stream.encode())
    assert len(decoding.decode(tmp_path / 'secret.ts').frames) == 12
    hls = '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n'
    for text in (hls, 'ffconcat version 1.0\nfile secret.ts\n'):
        (tmp_path / 'video.mp4').write_text(text)
        for source in (tmp_path / 'video.mp4', text.encode()):
            with pytest.raises(ValueError, match='not a video that can be read'):
                decoding.probe(source)


def test_postscript_is_not_opened_as_an_image(tmp_path, monkeypatch):
    """PostScript with the suffix of an image would be run by another program."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, 'EPS')
    (tmp_path / 'x.png').write_bytes(buffer.getvalue())
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *_, **__: pytest.fail('run'))
    folder = sources.ImageFolder(tmp_path)
    with pytest.raises(ValueError, match='not an image'):
        folder[0]
    assert not folder.sizes().to_array()[:, 1:].any()


def test_bad_step_dump_cannot_execute_code_or_claim_memory(tmp_path):
    np.savez(tmp_path / 'a.npz', record=np.array([Exploit(tmp_path / 'harm')], object), key=np.zeros(2, np.uint32))
    claims = io.BytesIO()
    np.lib.format.write_array_header_1_0(claims, {'descr': '<f4', 'fortran_order': False, 'shape': (10**14,)})
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as archive:
        archive.writestr('batch/z.npy', claims.getvalue())
    np.savez(tmp_path / 'c.npz', record=np.array(DEEP), key=np.zeros(2, np.uint32))
    np.savez(tmp_path / 'd.npz', record=np.array('{"step": 3}'), key=np.zeros(2, np.uint32))
    for name in 'abcd':
        with pytest.raises(UsageError, match=f'--replay=.*{name}.npz: is not a bad-step dump'):
            bad_step_dumps.read(tmp_path / f'{name}.npz')
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize(
    ('coordinator', 'where'),
    [('localhost:9', 'localhost:9'), ('127.0.0.1:9', '127.0.0.1:9'), ('[::1]:9', '[::1]:9'), ('10.0.0.1:9', None)],
)
def test_processes_of_one_machine_listen_on_loopback_only(coordinator, where):
    assert distributed.bind_address(coordinator) == where
