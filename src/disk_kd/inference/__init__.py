"""Predictions of a trained model, in any format, for image files."""

from __future__ import annotations

from disk_kd.inference.images import ImageFile, check_output, check_paths, image_files, listed_files
from disk_kd.inference.model import Classifier, TrainedClassifier, open_classifier
from disk_kd.inference.output import FORMATS, calibration_text, counted, lines
from disk_kd.inference.run import Prediction, predict_files

__all__ = [
    "FORMATS",
    "Classifier",
    "ImageFile",
    "Prediction",
    "TrainedClassifier",
    "calibration_text",
    "check_output",
    "check_paths",
    "counted",
    "image_files",
    "lines",
    "listed_files",
    "open_classifier",
    "predict_files",
]
