"""Which kind of test set somebody means."""

from pathlib import Path
from typing import Any

from lipdeploy.choices import suggestion
from lipdeploy.datasets.folder import scan_folder
from lipdeploy.datasets.labelled import LabelledSources
from lipdeploy.datasets.listing import scan_list
from lipdeploy.datasets.parquet import scan_parquet
from lipdeploy.datasets.shards import PARQUET, check_not_compressed, find_shards
from lipdeploy.datasets.webdataset import scan_webdataset
from lipdeploy.errors import DatasetError

CIFAR_NAMES = ("cifar10", "cifar100")
LIST_SUFFIX = ".csv"
EVALUATED = "neither a folder, a .csv list, .parquet or .tar files,"


def scan_test_set(dataset: str) -> LabelledSources[Any]:
    """The test part of a folder, or the images of a list, or of Parquet or tar files.

    Raises:
        DatasetError: if it is none of these, or not laid out as expected.
    """
    path = Path(dataset)
    if files := find_shards(dataset):
        is_parquet = files[0].suffix.lower() == PARQUET
        return (scan_parquet if is_parquet else scan_webdataset)(dataset, files)
    if path.is_dir():
        return scan_folder(path, "test")
    if path.suffix.lower() == LIST_SUFFIX:
        return scan_list(path)
    check_not_compressed(path)
    raise unknown_dataset(dataset, EVALUATED)


def unknown_dataset(name: str, others: str = "neither a folder") -> DatasetError:
    """The error for what is not one of `others` either, nor a dataset that has a name."""
    hint = suggestion(name, CIFAR_NAMES)
    return DatasetError(f"{name}: {others} nor one of {', '.join(CIFAR_NAMES)}{hint}")
