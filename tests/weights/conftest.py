"""Files as torch.save writes them, made without torch."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

STORAGES = {'float32': 'FloatStorage', 'float16': 'HalfStorage', 'bfloat16': 'BFloat16Storage', 'int64': 'LongStorage'}


class Assembler:
    """The few opcodes that describe a dict of tensors."""

    def __init__(self):
        self.out = io.BytesIO(b'')
        self.out.write(pickle.PROTO + b'\x02')

    def name(self, module, name):
        self.out.write(pickle.GLOBAL + f'{module}\n{name}\n'.encode())

    def text(self, text):
        raw = text.encode()
        self.out.write(pickle.BINUNICODE + struct.pack('<I', len(raw)) + raw)

    def number(self, number):
        self.out.write(pickle.INT + f'{number}\n'.encode())

    def numbers(self, numbers):
        self.out.write(pickle.MARK)
        for number in numbers:
            self.number(number)
        self.out.write(pickle.TUPLE)

    def tensor(self, key, view):
        self.name('torch._utils', '_rebuild_tensor_v2')
        self.out.write(pickle.MARK * 2)
        self.text('storage')
        self.name('torch', STORAGES[str(view.storage.dtype)])
        self.text(key)
        self.text('cpu')
        self.number(view.storage.size)
        self.out.write(pickle.TUPLE + pickle.BINPERSID)
        self.number(view.offset)
        self.numbers(view.shape)
        self.numbers(view.strides)
        self.out.write(pickle.NEWFALSE)
        self.name('collections', 'OrderedDict')
        self.out.write(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)

    def tensors(self, keys, views):
        self.out.write(pickle.EMPTY_DICT + pickle.MARK)
        for i, (key, view) in enumerate(zip(keys, views, strict=True)):
            self.text(key)
            self.tensor(str(i), view)
        self.out.write(pickle.SETITEMS)

    def finish(self):
        self.out.write(pickle.STOP)
        return self.out.getvalue()


class View:
    """A tensor as a shape, strides and offset (in elements) on a flat storage."""

    def __init__(self, storage, shape, strides, offset=0):
        self.storage, self.shape, self.strides, self.offset = storage, shape, strides, offset

    @classmethod
    def from_array(cls, array):
        strides = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
        return cls(np.ascontiguousarray(array).reshape(-1), array.shape, strides)


class TorchFiles:
    """Writes such files into a test's folder."""

    View = View
    Assembler = Assembler

    def __init__(self, folder):
        self.folder = folder

    def archive(self, members, compression=zipfile.ZIP_STORED, name='weights.pt'):
        path = self.folder / name
        with zipfile.ZipFile(path, 'w', compression) as file:
            for member, content in members.items():
                info = zipfile.ZipInfo(member)
                info.compress_type = compression
                # torch aligns storages by an extra field of padding
                info.extra = b'FB' + struct.pack('<H', len(member) % 7) + b'Z' * (len(member) % 7)
                file.writestr(info, content)
        return path

    def members(self, outer, tensors):
        """{outer: {key: tensor}} as archive members; a tensor is an array or a View."""
        views = [x if isinstance(x, View) else View.from_array(x) for x in tensors.values()]
        pickled = Assembler()
        pickled.out.write(pickle.EMPTY_DICT)
        pickled.text(outer)
        pickled.tensors(tensors, views)
        pickled.out.write(pickle.SETITEM)
        members = {'weights/data.pkl': pickled.finish(), 'weights/byteorder': b'little'}
        return members | {f'weights/data/{i}': view.storage.tobytes() for i, view in enumerate(views)}

    def save(self, outer, tensors, **kwargs):
        return self.archive(self.members(outer, tensors), **kwargs)


@pytest.fixture
def torch_files(tmp_path):
    return TorchFiles(tmp_path)
