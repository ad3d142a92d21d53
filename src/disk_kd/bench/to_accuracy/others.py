"""The other tools' contestants: their own loops, eager float32 steps, images augmented singly in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import create_loader
from timm.data.transforms import ToNumpy
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from disk_kd.bench.peers import (
    PILImages,
    close_workers,
    geometric,
    torchdistill_box,
    torchdistill_config,
    torchdistill_epoch,
    training_transform,
)
from disk_kd.build import build_model, recorded_in_files, teacher_image_size
from disk_kd.config import RunConfig
from disk_kd.data import Dataset, Split
from disk_kd.errors import ConfigError, DataError
from disk_kd.tasks import Phase
from disk_kd.trained import normalisation
from disk_kd.training import make_optimizer
from disk_kd.training.optim import load_optimizer, make_schedule


class OtherTraining:
    """Student, optimiser and schedule of the run, in the loop of another tool.

    Args:
        config: configuration of the run.
        dataset: dataset of the run, in memory.
        device: device of the training.
        workers: number of worker processes of the loader.

    Raises:
        DataError: the images are streamed.
        ConfigError: the teacher takes images of another size than the student.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device, workers: int) -> None:
        self.config, self.dataset, self.device, self.workers = recorded_in_files(config), dataset, device, workers
        if not isinstance(dataset.train, Split):
            raise DataError("the other tools' loaders need the images in memory; give --data.stream false")
        self.split = dataset.train
        torch.manual_seed(config.train.seed)
        self._student = build_model(self.config, "student", dataset).to(device).train()
        self.stated = normalisation(self._student)
        self.mean, self.std = (self._per_channel(values) for values in self.stated)
        self.loaders: list[DataLoader] = []
        self.prepare()
        steps = len(self.split) // config.train.batch_size
        self.set_rate = make_schedule(self.optimizer, config.train, Phase("student"), config.train.epochs, steps)
        self.updates = 0

    def _per_channel(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """One value for each channel. Grey images take the mean of three, as our loader does."""
        return values if len(values) == self.split.shape[0] else (sum(values) / len(values),)

    def prepare(self) -> None:
        """Create loader, loss and optimiser."""
        raise NotImplementedError

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser whose learning rates the schedule sets."""
        raise NotImplementedError

    @property
    def student(self) -> nn.Module:
        """The plain model."""
        return self._student

    def epoch(self, number: int) -> int:
        """One epoch. Its random draws depend only on the run's seed and the epoch."""
        torch.manual_seed(1_000_003 * (self.config.train.seed + 1) + number)
        return self.one_epoch()

    def one_epoch(self) -> int:
        """Train on all batches of the loader."""
        raise NotImplementedError

    def next_rate(self) -> None:
        """Set the learning rate of the next update."""
        self.set_rate(self.updates)
        self.updates += 1

    def teacher(self) -> nn.Module:
        """The teacher in evaluation mode, frozen."""
        teacher = build_model(self.config, "teacher", self.dataset).to(self.device).eval().requires_grad_(False)
        if teacher_image_size(self.config, self.dataset) or normalisation(teacher) != self.stated:
            raise ConfigError("the other tools' loops show teacher and student the same images; take a teacher of such")
        return teacher

    def loading(self) -> dict[str, Any]:
        """Options of a DataLoader as an experienced user sets them."""
        return {
            "batch_size": self.config.train.batch_size,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": self.device.type != "cpu",
            "drop_last": True,
        }

    def images(self) -> PILImages:
        """The training images, cropped, flipped, augmented and normalised one by one."""
        return PILImages(
            self.split.images,
            self.split.targets,
            training_transform(self.config.data.augment, self.split.shape[1], self.mean, self.std),
        )

    def state(self) -> dict[str, Any]:
        """Weights, optimiser and position."""
        return {
            "student": self._student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self._student.load_state_dict(state["student"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.updates = state["updates"]

    def close(self) -> None:
        """End the worker processes."""
        for loader in self.loaders:
            close_workers(loader)


class PlainTraining(OtherTraining):
    """Cross-entropy in a plain PyTorch loop over a DataLoader with torchvision's transforms."""

    def prepare(self) -> None:
        self.batches: Iterable[tuple[Tensor, Tensor]] = self.loader()
        self.loss = self.make_loss()
        self._optimizer = make_optimizer(self._student, self.config.train)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of images and labels."""
        loader = DataLoader(self.images(), shuffle=True, **self.loading())
        self.loaders.append(loader)
        return loader

    def make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of a batch."""
        return lambda x, y: F.cross_entropy(self._student(x), y)

    def one_epoch(self) -> int:
        images = 0
        for x, y in self.batches:
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            self.next_rate()
            self._optimizer.zero_grad()
            self.loss(x, y).backward()
            self._optimizer.step()
            images += len(y)
        return images


class TimmTraining(PlainTraining):
    """timm's logit distillation task with timm's loader, which normalises whole batches of bytes."""

    def loader(self) -> Iterable[tuple[Tensor, Tensor]]:
        augment = self.config.data.augment
        prefetcher = not augment.cutout  # its random erasing paints no square of a given size
        images: Any = self.images()
        loader = create_loader(
            images,
            input_size=self.split.shape,
            batch_size=self.config.train.batch_size,
            is_training=True,
            mean=self.mean,
            std=self.std,
            num_workers=self.workers,
            pin_memory=self.device.type != "cpu",
            device=self.device,
            use_prefetcher=prefetcher,
        )
        if prefetcher:
            images.transform = transforms.Compose([*geometric(augment, self.split.shape[1]), ToNumpy()])
        else:
            images.transform = self.images().transform
        self.loaders.append(loader.loader if prefetcher else loader)
        return loader

    def make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        options = self.config.method_options
        task = LogitDistillationTask(
            self._student,
            self.teacher(),
            task_loss_weight=options["ce_weight"],
            distill_loss_weight=options["kd_weight"],
            temperature=options["temperature"],
            device=self.device,
            verbose=False,
        ).train()
        return lambda x, y: task(x, y)["loss"]


class TorchdistillTraining(OtherTraining):
    """torchdistill's KD loss in the loop of its example of image classification."""

    def prepare(self) -> None:
        options, settings = self.config.method_options, self.config.train
        config = torchdistill_config(
            self.loading(),
            temperature=options["temperature"],
            alpha=options["ce_weight"],
            beta=options["kd_weight"],
            epochs=settings.epochs,
        )
        self.box = torchdistill_box(self.teacher(), self._student, self.images(), config, self.device)
        self.box.optimizer = make_optimizer(self._student, settings)
        self.loaders.append(self.box.train_data_loader)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.box.optimizer
        return optimizer

    def one_epoch(self) -> int:
        return torchdistill_epoch(self.box, self.device, before_step=self.next_rate)


KINDS: dict[str, type[OtherTraining]] = {
    "plain": PlainTraining,
    "timm": TimmTraining,
    "torchdistill": TorchdistillTraining,
}
