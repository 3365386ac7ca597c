"""Skips tests where the extra `evaluation` is not installed."""

import pytest

from fv_jax.evaluation import weight_files


def needs(package: str, distribution: str) -> None:
    """Skips the test where a package is not installed."""
    try:
        weight_files.package_folder(package, distribution)
    except weight_files.MissingPackageError as error:
        pytest.skip(str(error))


def needs_file(file: weight_files.WeightFile) -> None:
    """Skips the test where the package of a file of weights is not installed."""
    needs(file.package, file.distribution)
