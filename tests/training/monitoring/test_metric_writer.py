"""What a run writes down: rows, lines, TensorBoard."""

import io
import json
import resource
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from fv_jax.training.monitoring import metric_writer
from fv_jax.training.monitoring.metric_writer import (
    JSONL,
    MetricWriter,
    format_duration,
    format_eval_line,
    format_train_line,
)

VALUES = {'loss': 0.5, 'grad_norm': 2.0, 'update_norm': 0.1, 'learning_rate': 1e-3}


def read_lines(folder):
    return [json.loads(line) for line in (folder / JSONL).read_text().splitlines()]


def run(folder, steps, start_step=0):
    writer = MetricWriter(folder, start_step=start_step)
    for step in steps:
        writer.scalars(step, {'loss': step / 10}, f'line {step}')
    writer.close()


def events(folder):
    """The events of a folder's files: each is a length, a checksum, the message and another checksum."""
    found = []
    for path in sorted((folder / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            found.append(event)
            data = data[16 + length :]
    return found


def test_writer_writes_jsonl_tensorboard_and_log(tmp_path, log_lines):
    run(tmp_path, [1, 2])
    assert log_lines == ['line 1', 'line 2']
    assert read_lines(tmp_path) == [{'step': 1, 'loss': 0.1}, {'step': 2, 'loss': 0.2}]
    scalars = {
        (e.step, v.tag): v.simple_value for e in events(tmp_path) for v in e.summary.value if v.HasField('simple_value')
    }
    assert scalars == {(1, 'loss'): np.float32(0.1), (2, 'loss'): np.float32(0.2)}


def test_writer_stores_non_finite_values_as_text(tmp_path):
    writer = MetricWriter(tmp_path, start_step=0)
    writer.scalars(1, {'loss': float('nan'), 'psnr': float('inf')}, '')
    writer.close()

    def refuse(name):
        raise AssertionError(name)

    row = json.loads((tmp_path / JSONL).read_text(), parse_constant=refuse)
    assert row == {'step': 1, 'loss': 'nan', 'psnr': 'inf'}


def test_writer_lines_are_on_disk_at_once(tmp_path):
    writer = MetricWriter(tmp_path, start_step=0)
    writer.scalars(1, {'loss': 1.0}, '')
    assert read_lines(tmp_path) == [{'step': 1, 'loss': 1.0}]
    writer.close()


def test_writer_of_a_resumed_run_drops_lines_it_repeats(tmp_path):
    run(tmp_path, [1, 2, 3, 4])
    run(tmp_path, [3], start_step=2)
    assert [row['step'] for row in read_lines(tmp_path)] == [1, 2, 3]
    run(tmp_path, [1])
    assert [row['step'] for row in read_lines(tmp_path)] == [1]
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize(('cut', 'kept'), [(1, [1, 2, 3]), (2, [1, 2]), (5, [1, 2]), (14, [1, 2])])
def test_writer_drops_an_incomplete_last_line(tmp_path, cut, kept):
    """Without its newline a row is whole; without more it is dropped. Either way the next one has a line of its own."""
    run(tmp_path, [1, 2, 3])
    path = tmp_path / JSONL
    path.write_text(path.read_text()[:-cut])
    run(tmp_path, [4], start_step=3)
    assert [row['step'] for row in read_lines(tmp_path)] == [*kept, 4]


def test_writer_stores_video_as_animated_gif(tmp_path):
    video = np.zeros((3, 8, 12, 3), np.uint8)
    video[:, :, :, 0] = np.array([0, 120, 240])[:, None, None]
    writer = MetricWriter(tmp_path, start_step=0)
    writer.video(7, 'sample', video, 10.0)
    writer.close()
    ((event, value),) = [(e, v) for e in events(tmp_path) for v in e.summary.value]
    assert (event.step, value.tag) == (7, 'sample')
    assert (value.image.height, value.image.width) == (8, 12)
    gif = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert gif.format == 'GIF' and gif.n_frames == 3 and gif.info['duration'] == 100
    for i in range(3):
        gif.seek(i)
        np.testing.assert_allclose(np.asarray(gif.convert('RGB')), video[i], atol=8)


def test_train_line():
    line = format_train_line(9, 100, VALUES | {'steps_per_s': 0.5, 'clips_per_s': 1.0})
    for part in ('step   9/100', 'loss 0.5000', 'grad 2 ', 'lr 0.001', '0.50 steps/s', '1.00 clips/s', 'ETA 3:02'):
        assert part in line
    rates = {'steps_per_s': 0.5, 'clips_per_s': 1.0, 'tokens_per_s': 9.0, 'tflops_per_chip': 1.25}
    assert '1.00 clips/s  1.25 TFLOP/s  ETA' in format_train_line(9, 100, VALUES | rates)
    assert '1.00 clips/s  MFU 31.2%  ETA' in format_train_line(
        9, 100, VALUES | rates | {'mfu': 0.312, 'roofline_utilization': 0.6}
    )
    assert 'ETA' not in format_train_line(1, 100, VALUES) and 'loss 0.5000' in format_train_line(1, 100, VALUES)


def test_eval_line():
    assert format_eval_line(8, {'eval/loss': 0.25, 'eval/psnr': 30.0}) == 'eval at step 8: loss 0.2500  psnr 30.0000'


@pytest.mark.parametrize(('seconds', 'text'), [(0, '0:00'), (59.6, '1:00'), (125, '2:05'), (3723, '1:02:03')])
def test_duration_format(seconds, text):
    assert format_duration(seconds) == text


def test_writer_keeps_lines_that_a_full_disk_refuses(tmp_path, log_lines):
    """An incomplete line is overwritten, so that no line is cut or doubled."""
    writer = MetricWriter(tmp_path, start_step=0)
    writer.scalars(1, {'loss': 1.0}, '1')
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / JSONL).stat().st_size + 5, limit[1]))
    try:
        writer.scalars(2, {'loss': 2.0}, '2')
        writer.scalars(3, {'loss': 3.0}, '3')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    warnings = [line for line in log_lines if line.startswith('WARNING') and JSONL in line]
    assert len(warnings) == 2 and 'cannot be written' in warnings[0] and '50 bytes are kept in memory' in warnings[1]
    writer.scalars(4, {'loss': 4.0}, '4')
    writer.close()
    assert read_lines(tmp_path) == [{'step': i, 'loss': float(i)} for i in (1, 2, 3, 4)]


def test_writer_rewind_drops_lines_of_a_rollback(tmp_path, log_lines):
    writer = MetricWriter(tmp_path, start_step=0)
    for step in (1, 2, 3):
        writer.scalars(step, {'loss': 1.0}, '')
    writer.rewind(1)
    writer.log('said')
    writer.scalars(2, {'loss': 5.0}, '')
    writer.close()
    assert read_lines(tmp_path) == [{'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 5.0}] and log_lines[3] == 'said'
    assert len(list((tmp_path / 'tensorboard').iterdir())) == 2


def test_writer_marks_in_tensorboard_where_a_run_resumes(tmp_path):
    """Otherwise it would show what an earlier start wrote after that step as well."""
    run(tmp_path, [1, 2, 3])
    assert not [e for e in events(tmp_path) if e.HasField('session_log')]
    run(tmp_path, [3], start_step=2)
    (inputs,) = [e for e in events(tmp_path) if e.HasField('session_log')]
    assert inputs.step == 3 and inputs.session_log.status == SessionLog.START


def test_writer_ignores_tensorboard_write_errors(tmp_path, monkeypatch):
    def refuse(self, **fields):
        raise OSError('no space left')

    writer = MetricWriter(tmp_path, start_step=0)
    monkeypatch.setattr('fv_jax.training.monitoring.metric_writer._TensorBoardWriter._write', refuse)
    writer.scalars(1, {'loss': 1.0}, '')
    writer.close()
    assert read_lines(tmp_path) == [{'step': 1, 'loss': 1.0}]


def test_writer_starts_another_event_file_when_one_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_writer, 'MAX_EVENT_BYTES', 200)
    run(tmp_path, range(1, 20))
    names = [path.name for path in sorted((tmp_path / 'tensorboard').iterdir())]
    assert len(names) > 3 and [name.removeprefix(names[0]) for name in names] == [
        '',
        *(f'.{i:03d}' for i in range(1, len(names))),
    ]
    assert [e.step for e in events(tmp_path) if e.HasField('summary')] == list(range(1, 20))
    assert sum(e.file_version != '' for e in events(tmp_path)) == len(names)


def test_writer_writes_events_as_tensorboardx_reads_them(tmp_path):
    run(tmp_path, [1])
    (path,) = (tmp_path / 'tensorboard').iterdir()
    written = path.read_bytes()
    writer = RecordWriter(str(tmp_path / 'expected'))
    for event in events(tmp_path):
        writer.write(event.SerializeToString())
    writer.close()
    assert written == (tmp_path / 'expected').read_bytes()
