"""Predictions of students and teachers, computed from a run's config and weights.

Shape letters: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from disk_kd.build import build_model, find_weights, frozen_member, load_data
from disk_kd.config import RunConfig
from disk_kd.data import AnySplit, Dataset, Loader, check_labels
from disk_kd.devices import inference_batch, pick_device, place
from disk_kd.errors import CheckpointError, DataError, DiskKDError
from disk_kd.measure import TeacherLogits
from disk_kd.metrics import predict
from disk_kd.models import multiply_adds
from disk_kd.models.about import read_about
from disk_kd.recipe import named_in
from disk_kd.report.reading import Run
from disk_kd.teacher import AnyTeacher, Teacher
from disk_kd.trained import check_named, normalisation, trained_model

Value = TypeVar("Value")


class Outputs:
    """Data, models and their logits for several runs, each computed once. A failure is remembered with its reason.

    Args:
        device: device of the models; "auto": the accelerator if there is one.
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

    def teacher(self, config: RunConfig, student: nn.Module) -> AnyTeacher:
        """The teacher that `config` names, for images normalised for `student`.

        Raises:
            DiskKDError: its weights are missing, or do not fit.
        """
        assert config.teacher is not None
        return config.teacher.join([self._member(one, student) for one in config.each_teacher])

    def _member(self, config: RunConfig, student: nn.Module) -> Teacher:
        """One of the teachers, which `config` names alone."""
        dataset = self.dataset(config)
        made = ("member", *teacher_key(config))
        model = self._once(made, lambda: build_model(config, "teacher", dataset).to(self.device))
        return frozen_member(config, model, dataset, student).to(self.device)

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
        return self._logits(TeacherLogits(self.teacher(config, student)), self.split(run), normalisation(student))

    def teacher_sizes(self, config: RunConfig, run: Run) -> tuple[int, int]:
        """Parameters and multiply-adds of the teacher that `config` names, for one image of the run's data.

        0 stands for a number that is not known, because a model runs outside torch.
        """
        dataset = self.dataset(run.config)
        teacher = self.teacher(config, self.student(run))
        counts = []
        for member in teacher.members:
            height, width = member.image_size or (dataset.image_size, dataset.image_size)
            parameters = sum(parameter.numel() for parameter in member.parameters())
            counts.append((parameters, multiply_adds(member.model, (dataset.in_chans, height, width))))
        parameters, operations = (sum(each) if all(each) else 0 for each in zip(*counts, strict=True))
        return parameters, operations

    def label_maps(self, config: RunConfig, run: Run) -> list[tuple[str, tuple[tuple[str, ...], ...]]]:
        """The teachers with other classes than the data, each with its classes for each class of the data."""
        assert config.teacher is not None
        members = zip(config.teacher.each, self.teacher(config, self.student(run)).members, strict=True)
        return [(one.name, member.label_map.names) for one, member in members if member.label_map is not None]

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


def teacher_key(config: RunConfig) -> tuple[Any, ...]:
    """The same for configurations that name the same teacher.

    Raises:
        CheckpointError: its weights are not there.
    """
    assert config.teacher is not None
    found: list[Any] = [*config.teacher.average]
    for one, settings in zip(config.each_teacher, config.teacher.each, strict=True):
        weights = find_weights(one, "teacher")
        where = None if weights is None else weights.resolve()
        found.append((settings.name, where, repr(settings.options), settings.image_size, repr(settings.classes)))
    return ("teacher", *found)


def data_key(config: RunConfig) -> tuple[Any, ...]:
    """The same for configurations with the same samples and labels in each split."""
    data = config.data
    noise = (data.label_noise, data.limit_train, data.limit_test, data.split_seed)
    reading = (data.crop_pct, data.grey_bits, data.skip_unreadable, data.timm)
    return (data.name, data.root, data.image_size, data.validation, *noise, *reading)
