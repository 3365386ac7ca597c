"""Builds a TFDS data set of a folder of videos with captions, without TensorFlow.

    VideoFolder(videos, config, data_dir=DATA).download_and_prepare()

extracts clips from the videos as `prepare` does and writes them to DATA/video_folder/1.0.0. `tfds.data_source`,
`tfds.builder`'s `as_data_source`, and our source `tfds:DATA/video_folder/1.0.0` read them: examples are records
(`records.py`), their video as H.264 bytes, their caption empty if there is none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fv_jax.data.folders import find_media
from fv_jax.data.record_sizes import RecordSizes
from fv_jax.data.shards.records import Record
from fv_jax.data.video import clips, containers, decoding
from fv_jax.data.video.captions import Captions
from fv_jax.data.video.clips import ClipsConfig

SPLIT = 'train'


class VideoFolder(tfds.core.GeneratorBasedBuilder):
    """The builder. A video that cannot be used is skipped.

    Attributes:
      skipped: name of a video -> why it gives no clips, or where it is damaged, after `download_and_prepare`.
    """

    VERSION = tfds.core.Version('1.0.0')
    code_path = None  # TFDS looks for checksums of downloads beside the code, and there are none

    def __init__(self, videos: str | Path, config: ClipsConfig, *, data_dir: str | Path):
        """Args:
        videos: a folder of videos, searched recursively.
        config: how clips are extracted.
        data_dir: where to write.
        """
        self._videos, self._clips = Path(videos), config
        self.skipped: dict[str, str] = {}
        super().__init__(data_dir=str(data_dir), file_format='array_record')

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    'video': tfds.features.Tensor(shape=(), dtype=np.object_),
                    'caption': tfds.features.Text(),
                    'source': tfds.features.Text(),
                    'fps': np.float64,
                    'frames': np.int64,
                    'height': np.int64,
                    'width': np.int64,
                    'start_frame': np.int64,
                }
            )
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Record]]]:
        del dl_manager
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, Record]]:
        captions = Captions(self._videos)
        media = find_media(self._videos, containers.VIDEO_SUFFIXES, containers.OTHER_VIDEO_SUFFIXES)
        self.skipped |= media.skipped
        for name in media.files:
            path = self._videos / name
            try:
                caption = captions.find(path) or ''
                info = decoding.probe(path, damaged=True, display=self._clips.display)
                selection = clips.scan_file(path, self._clips, info)
                for record in clips.extract_clips(path, selection, self._clips):
                    if record is not None:
                        yield f'{name}-{record["start_frame"]}', record | {'source': name, 'caption': caption}
            except ValueError as error:
                self.skipped[name] = str(error).removeprefix(f'{path}: ')
            else:
                if reason := selection.none or selection.damage:
                    self.skipped[name] = reason


class Examples:
    """The examples of a prepared TFDS data set, as records. Raises ValueError for a folder without one."""

    def __init__(self, folder: str):
        try:
            self._source = tfds.builder_from_directory(folder).as_data_source(split=SPLIT)
        except Exception as error:  # TFDS raises whatever the libraries below it raise
            raise ValueError(
                f'{folder}: not a TFDS data set with a split {SPLIT!r}: {str(error).splitlines()[0]}'
            ) from None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        example = {key: _to_python(value) for key, value in self._source[int(index)].items()}
        for key in ('caption', 'source'):
            if isinstance(example.get(key), bytes):
                example[key] = example[key].decode()  # what is not UTF-8 raises a ValueError of its own
        if not example.get('caption'):
            example.pop('caption', None)
        return example

    def sizes(self) -> RecordSizes:
        """Reads every example, as TFDS stores no index of sizes."""
        keys = ('frames', 'height', 'width')
        return RecordSizes.from_array(np.array([[self[i].get(key, 0) for key in keys] for i in range(len(self))]))


def _to_python(value: Any) -> Any:
    """Converts NumPy scalars and arrays of no dimension to Python numbers and strings."""
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return value
