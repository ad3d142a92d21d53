"""A dataset by name, and batches of it already on the device."""

from disk_kd.data.augment import Augment, augment
from disk_kd.data.labels import check_labels
from disk_kd.data.loader import Batch, Loader
from disk_kd.data.seeds import sample_seeds
from disk_kd.data.sources import DATASETS, load_dataset
from disk_kd.data.split import Dataset, Split

__all__ = [
    "DATASETS",
    "Augment",
    "Batch",
    "Dataset",
    "Loader",
    "Split",
    "augment",
    "check_labels",
    "load_dataset",
    "sample_seeds",
]
