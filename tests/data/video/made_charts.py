"""The colour chart of the case files, and how an image of it is compared with it."""

import pathlib

import numpy as np

CASES = pathlib.Path(__file__).parent / 'cases'
CHART = np.array(
    [
        *[(200, 30, 30), (30, 160, 40), (30, 50, 200), (230, 210, 40)],
        *[(40, 190, 200), (190, 50, 180), (230, 150, 120), (120, 80, 50)],
        *[(16, 16, 16), (64, 64, 64), (128, 128, 128), (192, 192, 192)],
        *[(235, 235, 235), (90, 110, 60), (60, 90, 140), (250, 250, 250)],
    ],
    np.uint8,
).reshape(2, 8, 3)


def draw_chart(height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): two rows of eight equal patches."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 8 // width
    return CHART[rows][:, columns]


def read_patches(image: np.ndarray) -> np.ndarray:
    """Computes the mean colours (2, 8, 3) of the patches' inner parts."""
    height, width = image.shape[:2]
    rows = [slice(round((r + 0.25) * height / 2), round((r + 0.75) * height / 2)) for r in range(2)]
    columns = [slice(round((c + 0.25) * width / 8), round((c + 0.75) * width / 8)) for c in range(8)]
    return np.array([[image[row, column].mean((0, 1)) for column in columns] for row in rows])


def chart_error(image: np.ndarray) -> float:
    """Computes the mean distance of an image of the chart from it, in levels of 255."""
    return float(np.abs(read_patches(image) - CHART).mean())


def find_mark(image: np.ndarray) -> tuple[str, str]:
    """Finds the white mark in an image: ('upper' or 'lower', 'left' or 'right')."""
    rows, columns = np.nonzero(image.min(-1) > 252)
    assert len(rows), 'no white mark'
    height, width = image.shape[:2]
    return ('upper' if rows.mean() < height / 2 else 'lower'), ('left' if columns.mean() < width / 2 else 'right')
