"""Datasets by name, and their batches on the device."""

from disk_kd.data.augment import Augment, augment
from disk_kd.data.dataset import AnySplit, Dataset
from disk_kd.data.labels import check_labels
from disk_kd.data.loader import Batch, Loader
from disk_kd.data.mix import Mix
from disk_kd.data.seeds import sample_seeds
from disk_kd.data.sources import DATASETS, load_dataset
from disk_kd.data.split import Split
from disk_kd.data.stream import StreamedSplit, workers_watched
from disk_kd.data.timm_augment import TimmAugment

__all__ = [
    "DATASETS",
    "AnySplit",
    "Augment",
    "Batch",
    "Dataset",
    "Loader",
    "Mix",
    "Split",
    "StreamedSplit",
    "TimmAugment",
    "augment",
    "check_labels",
    "load_dataset",
    "sample_seeds",
    "workers_watched",
]
