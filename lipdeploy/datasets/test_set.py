"""Which kind of test set somebody means."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lipdeploy.built import SUFFIXES as SUFFIXES_OF_BUILT
from lipdeploy.choices import suggestion
from lipdeploy.datasets.folder import scan_folder
from lipdeploy.datasets.labelled import LabelledSources
from lipdeploy.datasets.listing import scan_list
from lipdeploy.datasets.parquet import scan_parquet
from lipdeploy.datasets.shards import PARQUET, check_not_compressed, find_shards
from lipdeploy.datasets.webdataset import scan_webdataset
from lipdeploy.errors import DatasetError
from lipdeploy.images import SUFFIXES

CIFAR_NAMES = ("cifar10", "cifar100")
LIST_SUFFIX = ".csv"
EVALUATED = "a folder, a .csv list, .parquet or .tar files"

ARCHIVES, TABLES = (".zip", ".7z", ".rar"), (".txt", ".tsv", ".xls", ".xlsx", ".json", ".jsonl")
MODELS = (".onnx", ".pt", *SUFFIXES_OF_BUILT)
ADVICE: dict[Collection[str], str] = {
    SUFFIXES: "an image; to classify it type 'lipdeploy predict {name}'",
    MODELS: "a model; the test set comes last, as in 'lipdeploy evaluate MODEL TESTSET'",
    ARCHIVES: "an archive; unpack it and give the folder",
    TABLES: "a table of another kind; save it as a .csv file with the columns path,label",
}
"""What to say of files that are often taken for a test set, by their suffixes."""


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
    for suffixes, advice in ADVICE.items():
        if path.is_file() and path.suffix.lower() in suffixes:
            raise DatasetError(f"{dataset}: {advice.format(name=dataset)}")
    raise unknown_dataset(dataset, EVALUATED)


def unknown_dataset(name: str, others: str = "a folder") -> DatasetError:
    """The error for what is not one of `others`, nor a dataset that has a name."""
    hint = suggestion(name, CIFAR_NAMES)
    found = "a file of another kind" if Path(name).exists() else "no such file or folder"
    expected = f"{others}, or one of {', '.join(CIFAR_NAMES)}"
    return DatasetError(f"{name}: {found}; expected {expected}{hint}")
