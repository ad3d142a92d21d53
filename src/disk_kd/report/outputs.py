"""What students and teachers say of a run's data, computed anew from the run's config and weights.

Shape letters: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from disk_kd.build import build_model, find_weights, load_data, teacher_image_size
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit, Dataset, Loader, check_labels
from disk_kd.devices import inference_batch, pick_device, place
from disk_kd.errors import CheckpointError, DataError, DiskKDError
from disk_kd.metrics import Metrics, evaluate, predict
from disk_kd.models import multiply_adds
from disk_kd.models.about import read_about
from disk_kd.recipe import named_in
from disk_kd.report.reading import Run
from disk_kd.teacher import Teacher
from disk_kd.trained import check_named, normalisation, trained_model

Value = TypeVar("Value")


class Outputs:
    """Data, models and their logits for several runs, each made once; what failed once fails again with its reason.

    Args:
        device: where the models run; "auto": the accelerator where there is one.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = pick_device(device)
        self._made: dict[Any, Any] = {}

    def dataset(self, config: RunConfig) -> Dataset:
        """The run's data, with its split, limit and label noise.

        Raises:
            DataError: it is not there.
        """
        return self._once(("data", *data_key(config)), lambda: load_data(config.data))

    def student(self, run: Run) -> nn.Module:
        """The run's student, with its final weights.

        Raises:
            CheckpointError: the run has none yet.
            DataError: the weights are of other classes than the data.
        """
        if not run.weights.is_file():
            raise CheckpointError(f"{run.folder} has no {run.weights.name} yet; finish the run with --resume")
        dataset, about = self.dataset(run.config), read_about(run.weights)
        if "classes" in about:
            check_labels(dataset.class_names, about["classes"])
        student, sizes = run.config.student, (dataset.num_classes, dataset.in_chans)
        check_named(about | {"model": student.name}, run.weights, named_in(run.tree))
        model = trained_model(student.name, student.options, run.weights, *sizes, about, dataset.normalisation)
        return model.to(self.device).eval()

    def teacher(self, config: RunConfig, student: nn.Module) -> Teacher:
        """The teacher that `config` names, for images normalised for `student`.

        Raises:
            DiskKDError: its weights are missing, or do not fit.
        """
        assert config.teacher is not None
        dataset = self.dataset(config)
        model = self._once(teacher_key(config), lambda: build_model(config, "teacher", dataset).to(self.device))
        return Teacher.of(model, student, image_size=teacher_image_size(config, dataset)).to(self.device)

    def student_logits(self, run: Run) -> tuple[Tensor, Tensor]:
        """Logits (N, C) of the run's student on its split, and targets (N,), on the host."""
        return self._once(("student", run.folder), lambda: self._logits(self.student(run), self.split(run)))

    def teacher_logits(self, config: RunConfig, run: Run) -> tuple[Tensor, Tensor]:
        """The same of the teacher that `config` names, on the split of `run`.

        Raises:
            DataError: teacher and run are of other classes.
        """
        key = (teacher_key(config), data_key(run.config), run.split)
        return self._once(key, lambda: self._teacher_logits(config, run))

    def _teacher_logits(self, config: RunConfig, run: Run) -> tuple[Tensor, Tensor]:
        check_labels(self.dataset(run.config).class_names, self.dataset(config).class_names)
        student = self.student(run)
        return self._logits(_Logits(self.teacher(config, student)), self.split(run), normalisation(student))

    def teacher_sizes(self, config: RunConfig, run: Run) -> tuple[int, int]:
        """Parameters and multiply-adds of the teacher that `config` names, for one image of the run's data."""
        dataset = self.dataset(run.config)
        teacher = self.teacher(config, self.student(run))
        height, width = teacher.image_size or (dataset.image_size, dataset.image_size)
        parameters = sum(parameter.numel() for parameter in teacher.model.parameters())
        return parameters, multiply_adds(teacher.model, (dataset.in_chans, height, width))

    def split(self, run: Run) -> AnySplit:
        """The split of the test results, on the device.

        Raises:
            DataError: the data has none.
        """
        split: AnySplit | None = getattr(self.dataset(run.config), run.split)
        if split is None:
            raise DataError(f"{run.config.data.name} has no {run.split} split")
        return place(split, self.device)

    def _logits(self, model: nn.Module, split: AnySplit, mean_std: Any = None) -> tuple[Tensor, Tensor]:
        mean, std = mean_std or normalisation(model)
        batch = inference_batch(self.device)
        loader = Loader(split, batch_size=batch, mean=mean, std=std, shuffle=False, drop_last=False, device=self.device)
        # All images of a batch may have been left out as unreadable.
        return predict(model, (batch for batch in loader.batches(0) if len(batch.targets)), device=self.device)

    def _once(self, key: Any, make: Callable[[], Value]) -> Value:
        if key not in self._made:
            try:
                self._made[key] = make()
            except (DiskKDError, OSError) as error:
                self._made[key] = error
        if isinstance(self._made[key], Exception):
            raise self._made[key]
        return self._made[key]


class _Logits(nn.Module):
    """A teacher as a model that gives logits alone."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher(images)["logits"]


def metrics_of(logits_NC: Tensor, targets_N: Tensor) -> Metrics:
    """The metrics of `evaluate`, of logits that are there already."""
    return evaluate(nn.Identity(), [(logits_NC, targets_N)], device="cpu", num_classes=logits_NC.shape[1])


def teacher_key(config: RunConfig) -> tuple[Any, ...]:
    """The same for configurations that name the same teacher.

    Raises:
        CheckpointError: its weights are not there.
    """
    assert config.teacher is not None
    teacher, weights = config.teacher, find_weights(config, "teacher")
    where = None if weights is None else weights.resolve()
    return ("teacher", teacher.name, where, repr(teacher.options), teacher.image_size)


def data_key(config: RunConfig) -> tuple[Any, ...]:
    """The same for configurations with the same samples and labels in each split."""
    data = config.data
    noise = (data.label_noise, data.limit_train, data.limit_test, data.split_seed)
    reading = (data.crop_pct, data.grey_bits, data.skip_unreadable, data.timm)
    return (data.name, data.root, data.image_size, data.validation, *noise, *reading)
