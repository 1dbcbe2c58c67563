"""Labelled images, without torch: folders, lists, Parquet files, WebDataset's tar files."""

from lipdeploy.datasets.folder import check_test_classes, scan_folder
from lipdeploy.datasets.labelled import LabelledSources, check_same_classes
from lipdeploy.datasets.listing import scan_list
from lipdeploy.datasets.test_set import CIFAR_NAMES, scan_test_set, unknown_dataset

__all__ = [
    "CIFAR_NAMES",
    "LabelledSources",
    "check_same_classes",
    "check_test_classes",
    "scan_folder",
    "scan_list",
    "scan_test_set",
    "unknown_dataset",
]
