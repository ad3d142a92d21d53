"""The same training with other tools: images are decoded and augmented one by one in worker processes; steps are eager.

All use our operations (crop, flip, AutoAugment, cutout) in torchvision's form, and plain SGD with momentum. Models are
contiguous and not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from disk_kd import ranks
from disk_kd.bench.cases import Run
from disk_kd.bench.measure import Case
from disk_kd.bench.workbench import Workbench
from disk_kd.data import Augment

SGD: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


class PILImages(Dataset[tuple[Any, int]]):
    """Images as in torchvision's CIFAR100: one array, from which each access makes a PIL image.

    Args:
        images_NCHW: uint8.
        targets: labels.
        transform: transform of a PIL image.
    """

    def __init__(self, images_NCHW: Tensor, targets: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        images = images_NCHW[:, 0] if images_NCHW.shape[1] == 1 else images_NCHW.permute(0, 2, 3, 1)
        self.data = images.contiguous().cpu().numpy()
        self.targets = targets.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


class Peers:
    """The cases of other tools.

    Args:
        bench: the workbench of our cases.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._loaders: list[DataLoader] = []
        dataset = PILImages(bench.split.images, bench.split.targets, self._transform())
        self._loader = DataLoader(dataset, shuffle=True, **self._loading())
        self._loaders.append(self._loader)
        self._dataset = dataset

    def cases(self) -> list[Case]:
        """Cross-entropy; then for each teacher timm's task with both kinds of loader, and torchdistill if installed."""
        cases = [Case("plain_ce", "plain PyTorch, CE, DataLoader", self._cross_entropy())]
        for name in self.bench.settings.teachers:
            cases.append(Case("timm", "timm LogitDistillationTask, DataLoader", self._timm(name, self._loader), name))
            ours = _PassesOfOurs(self.bench)
            cases.append(Case("timm_ours", "timm LogitDistillationTask, our loader", self._timm(name, ours), name))
            if torchdistill_installed():
                cases.append(Case("torchdistill", "torchdistill KDLoss, its loop", self._torchdistill(name), name))
        return cases

    def close(self) -> None:
        """End the worker processes."""
        for loader in self._loaders:
            close_workers(loader)

    def _transform(self) -> Callable[[Image.Image], Tensor]:
        return training_transform(self.bench.augment, self.bench.settings.image_size, self.bench.mean, self.bench.std)

    def _loading(self) -> dict[str, Any]:
        workers = self.bench.settings.workers
        workers = ranks.cores() if workers is None else workers
        return {
            "batch_size": self.bench.settings.batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self.bench.device.type != "cpu",
            "drop_last": True,
        }

    def _cross_entropy(self) -> Run:
        student = self.bench.student(channels_last=False)
        return self._passes(lambda x, y: F.cross_entropy(student(x), y), student, self._loader)

    def _timm(self, teacher: str, loader: Iterable[tuple[Tensor, Tensor]]) -> Run:
        student = self.bench.student(channels_last=False)
        plain = self.bench.plain_teacher(teacher)
        task = LogitDistillationTask(student, plain, temperature=2.0, device=self.bench.device, verbose=False).train()
        return self._passes(lambda x, y: task(x, y)["loss"], student, loader)

    def _passes(
        self, loss: Callable[[Tensor, Tensor], Tensor], student: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]
    ) -> Run:
        optimizer, device = torch.optim.SGD(student.parameters(), **SGD), self.bench.device

        def run() -> int:
            images = 0
            for x, y in loader:
                x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                optimizer.zero_grad()
                loss(x, y).backward()
                optimizer.step()
                images += len(y)
            return images

        return run

    def _torchdistill(self, teacher: str) -> Run:
        device = self.bench.device
        config = torchdistill_config(self._loading(), temperature=2.0, alpha=0.5, beta=0.5, epochs=1)
        student = self.bench.student(channels_last=False)
        box = torchdistill_box(self.bench.plain_teacher(teacher), student, self._dataset, config, device)
        self._loaders.append(box.train_data_loader)
        return lambda: torchdistill_epoch(box, device)


class _PassesOfOurs:
    """Our loader behind a DataLoader's face: each iteration is the next epoch."""

    def __init__(self, bench: Workbench) -> None:
        self._loader = bench.batches(channels_last=False)
        self._pass = 0

    def __iter__(self) -> Any:
        number, self._pass = self._pass, self._pass + 1
        return ((batch.images, batch.targets) for batch in self._loader.batches(number))


def geometric(augment: Augment, size: int) -> list[Callable[[Any], Any]]:
    """Our crop, flip and AutoAugment in torchvision's form, for PIL images. Every policy has torchvision's pixels."""
    steps: list[Callable[[Any], Any]] = []
    if augment.crop_padding:
        steps.append(transforms.RandomCrop(size, padding=augment.crop_padding, fill=augment.crop_fill))
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if augment.auto_augment != "none":
        steps.append(transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10))
    return steps


def training_transform(
    augment: Augment, size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """Our augmentation of an image in torchvision's form. The cutout square is always whole, in the mean colour."""
    share = (augment.cutout / size) ** 2
    erase = transforms.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0))
    return transforms.Compose(
        [
            *geometric(augment, size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
            *([erase] if augment.cutout else []),
        ]
    )


def close_workers(loader: DataLoader) -> None:
    """End the worker processes of a loader."""
    workers: Any = loader._iterator
    if workers is not None and loader.num_workers:
        workers._shutdown_workers()
        loader._iterator = None


def torchdistill_box(
    teacher: nn.Module, student: nn.Module, dataset: Dataset[Any], config: dict[str, Any], device: torch.device
) -> Any:
    """torchdistill's box with teacher, student and data, as configured."""
    from torchdistill.core.distillation import DistillationBox  # type: ignore[import, unused-ignore]

    return DistillationBox(
        teacher, student, {"train": dataset}, config, device, device_ids=None, distributed=False, lr_factor=1
    )


def torchdistill_epoch(box: Any, device: torch.device, before_step: Callable[[], None] = lambda: None) -> int:
    """An epoch as in torchdistill's image classification example, `train_one_epoch`. Returns the number of images."""
    from torchdistill.misc.log import MetricLogger, SmoothedValue  # type: ignore[import, unused-ignore]

    box.pre_epoch_process()
    log = MetricLogger(delimiter="  ")
    log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    images = 0
    for x, y, supplement in log.log_every(box.train_data_loader, 50):
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        before_step()
        loss = box.forward_process(x, y, supplement)
        box.post_forward_process(loss=loss)
        log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        images += len(y)
    box.post_epoch_process()
    return images


def torchdistill_config(
    loading: dict[str, Any], *, temperature: float, alpha: float, beta: float, epochs: int
) -> dict[str, Any]:
    """The content of a torchdistill YAML file: alpha CE + beta T^2 KL, with plain SGD."""
    place = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
    }
    weights = {"temperature": temperature, "alpha": alpha, "beta": beta, "reduction": "batchmean"}
    kd = {"key": "KDLoss", "kwargs": {**place, **weights}}
    return {
        "num_epochs": epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": dict(loading),
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }


def torchdistill_installed() -> bool:
    """Whether torchdistill is installed."""
    return find_spec("torchdistill") is not None
