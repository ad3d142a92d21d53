"""The parts of a run, built from its configuration: data, models, task and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.config import RunConfig, find_hint, find_method, has_teacher
from disk_kd.data import AnySplit, Dataset, Loader, check_labels, load_dataset
from disk_kd.data.settings import DataSettings
from disk_kd.devices import inference_batch
from disk_kd.errors import CheckpointError, ConfigError, DataError, DiskKDError, ModelError
from disk_kd.hints import Context, Hint
from disk_kd.models import check_logits, create_model, set_normalisation, shipped_weights
from disk_kd.models.about import read_about
from disk_kd.models.settings import ModelSettings
from disk_kd.recipe import recipe_of_run
from disk_kd.tasks import StudentTask
from disk_kd.teacher import Teacher, TeacherStore, fixed_image_size
from disk_kd.teacher import normalisation as stated_normalisation
from disk_kd.trained import normalisation, recorded_options, take_usual, unknown_normalisation, with_recorded

STUDENT = "student.safetensors"
"""The file of a run's student."""


def find_weights(config: RunConfig, part: str) -> Path | None:
    """The file of weights that the config gives for "student" or "teacher"; None if it gives none, or timm's.

    Raises:
        CheckpointError: the file or run does not exist.
        ModelError: a teacher has no weights.
    """
    model: ModelSettings | None = getattr(config, part)
    if model is None:
        return None
    if model.weights is None:
        if part == "teacher" and not model.pretrained:
            raise ModelError(
                "the teacher has no weights: give --teacher.weights FILE_OR_RUN, or --teacher.pretrained true"
            )
        return shipped_weights(model.name) if part == "teacher" else None
    resolved = Path(model.weights)
    path = resolved / STUDENT if resolved.is_dir() else resolved
    if path.is_file():
        return path
    recipe = recipe_of_run(resolved, config.runs)
    make = (
        f"make it with: disk-kd train {recipe}"
        if recipe
        else f"give --{part}.weights a file or a finished run directory"
    )
    raise CheckpointError(f"no {part} weights at {resolved}; {make}")


def load_data(data: DataSettings) -> Dataset:
    """The dataset of the settings."""
    return load_dataset(data)


def build_model(config: RunConfig, part: str, dataset: Dataset, say: Callable[[str], None] | None = None) -> nn.Module:
    """The student or the teacher, with its weights, for the classes and channels of the data.

    The normalisation of its images comes from the first of these that states it: the options `mean` and `std`; the file
    of its weights; the dataset (for this package's models, if fresh or with weights of another program); the model. A
    fresh model without any of these takes mean 0.5 and std 0.5.

    Args:
        config: configuration of the run.
        part: "student" or "teacher".
        dataset: dataset of the run.
        say: function that gets a message about such a model.

    Raises:
        ConfigError, ModelError, CheckpointError: the name is unknown, or the weights do not fit the model or the data.
        DataError: the weights were trained with other classes, or in another order.
        ModelError: the normalisation of a trained model is not known.
    """
    model: ModelSettings = getattr(config, part)
    weights = find_weights(config, part)
    about = {} if weights is None else read_about(weights)
    options = with_recorded(model.name, model.options, about)
    built: Any = create_model(
        model.name,
        num_classes=dataset.num_classes,
        in_chans=dataset.in_chans,
        weights=weights,
        pretrained=model.pretrained and (weights is None or model.weights is not None),
        **options,
    )
    if "mean" not in options and not model.pretrained and "model" not in about:
        take_usual(built, dataset.normalisation)
    if stated_normalisation(built) is None:
        if weights is not None or model.pretrained:
            raise unknown_normalisation(model.name, f"--{part}.options")
        mean, std = dataset.normalisation or ((0.5,) * dataset.in_chans,) * 2
        set_normalisation(built, mean, std)
        if say is not None:
            say(
                f"{model.name} does not say how its images are normalised: it learns with mean {list(mean)} and std"
                f" {list(std)}, which its file of weights records; set others with mean and std in {part}.options"
            )
    image = (dataset.in_chans, dataset.image_size, dataset.image_size)
    built.pretrained_cfg = {"input_size": image} | built.pretrained_cfg
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    if part == "teacher" and weights is None:
        _check_pretrained_classes(built, dataset)
    return built


def recorded_in_files(config: RunConfig) -> RunConfig:
    """Give student and teacher the options that their files of weights record, unless the config sets others.

    `build_model` raises the error if a file cannot be read.
    """
    decisions = {}
    for part in ("student", "teacher"):
        with suppress(DiskKDError):
            weights, model = find_weights(config, part), getattr(config, part)
            recorded = {} if weights is None else recorded_options(model.name, read_about(weights))
            if recorded and recorded.keys() - model.options.keys():
                decisions[f"{part}.options"] = recorded | model.options
    return config.decided(decisions)


def teacher_image_size(config: RunConfig, dataset: Dataset) -> int | None:
    """The side of the teacher's images: as in the config, else the size that it was trained with.

    None: the student's image size.
    """
    assert config.teacher is not None
    if config.teacher.image_size is not None:
        return config.teacher.image_size
    weights = find_weights(config, "teacher")
    size = None if weights is None else read_about(weights).get("image_size")
    return None if size == dataset.image_size else size


def _check_pretrained_classes(teacher: nn.Module, dataset: Dataset) -> None:
    """Refuse a pretrained timm model with another number of classes: timm would give it a new, random classifier.

    A thousand classes are taken as ImageNet's, in the order of their WordNet ids, unless the weights name others.
    """
    settings = unwrap_model(teacher).pretrained_cfg
    theirs = settings.get("num_classes")
    if theirs is None:  # a user's own model says nothing of its weights
        return
    if theirs != dataset.num_classes:
        raise ModelError(
            f"the pretrained teacher has {theirs} classes, {dataset.name} has {dataset.num_classes}; "
            "train it on this dataset first and give --teacher.weights"
        )
    names = settings.get("label_names") or (ImageNetInfo("imagenet-1k").label_names() if theirs == 1000 else None)
    if names is not None and not _same_classes(tuple(names), dataset.class_names):
        label = next(i for i, (one, other) in enumerate(zip(names, dataset.class_names, strict=True)) if one != other)
        raise DataError(
            f"label {label} is {dataset.class_names[label]!r} in the dataset and {names[label]!r} for the pretrained "
            "teacher; name the class folders as it does, or give --teacher.weights of a teacher of this dataset"
        )


def _same_classes(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether the class names are the same. Readers that give numbers or ImageNet's words match every name."""
    if ours in (theirs, tuple(map(str, range(len(theirs))))):
        return True
    if len(theirs) != 1000:
        return False
    words = map(ImageNetInfo("imagenet-1k").index_to_description, range(1000))
    return [name.partition(",")[0] for name in ours] == [word.partition(",")[0] for word in words]


def build_task(
    config: RunConfig, dataset: Dataset, device: torch.device, say: Callable[[str], None] | None = None
) -> StudentTask:
    """The method with its student and teacher on the device; `say` as for `build_model`."""
    settings = config.train
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    student = build_model(config, "student", dataset, say).to(device).to(memory_format=layout)
    if settings.grad_checkpointing:
        recompute_activations(student)
    check_logits(student, (dataset.in_chans, dataset.image_size, dataset.image_size), dataset.num_classes)
    method = find_method(config.method)
    if config.teacher is None:
        task = method(student, **config.method_options)
    else:
        model = build_model(config, "teacher", dataset).to(device).to(memory_format=layout)
        image_size = teacher_image_size(config, dataset)
        side = image_size or (fixed_image_size(unwrap_model(model)) or (dataset.image_size,))[0]
        check_logits(model.eval(), (dataset.in_chans, side, side), dataset.num_classes)
        if config.hint is not None:
            student = find_hint(config.hint).prepare(student, model, config.hint_options)
            student = student.to(device).to(memory_format=layout)
        precision = config.teacher.precision
        if precision == "auto":
            precision = "fp32" if device.type == "cpu" else "bf16"
        teacher = Teacher.of(model, student, image_size=image_size, precision=precision, fold=True)
        task = (
            method(student, teacher, **config.method_options)
            if has_teacher(method)
            else method(student, **config.method_options)
        )
        if config.hint is not None:
            task.add_hint(build_hint(config, student, teacher, dataset), teacher)
    if config.data.mix.on and (not task.mixes or task.needs_ids):
        name = config.method if not task.mixes else config.hint
        raise ConfigError(f"{name} needs one label for each image, but data.mix mixes labels; give data.mix.mixup=0")
    if config.data.timm.repeats > 1 and task.needs_ids:
        raise ConfigError(
            f"{config.hint} needs each image at most once in a batch, but data.timm.repeats={config.data.timm.repeats}"
            " repeats images; give data.timm.repeats=1"
        )
    if settings.ema_decay is not None:
        # The warm-up is 1 - 1 / (1 + t / 10) = t / (t + 10) after t updates.
        task.setup_ema(settings.ema_decay, use_warmup=settings.ema_warmup, warmup_gamma=10.0, warmup_power=1.0)
    return task


def recompute_activations(student: nn.Module) -> None:
    """Recompute the student's activations in the backward pass, to save memory.

    Raises:
        ModelError: the model does not support it.
    """
    plain: Any = unwrap_model(student)
    try:
        plain.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError):
        raise ModelError(
            f"{type(plain).__name__} cannot recompute its activations; give --train.grad_checkpointing false"
        ) from None


def build_hint(config: RunConfig, student: nn.Module, teacher: Teacher, dataset: Dataset) -> Hint:
    """The feature method of the config, for these models.

    Raises:
        ConfigError, ModelError: its layers do not fit the models.
    """
    assert config.hint is not None
    train = dataset.train
    targets = train.targets.new_full((int(train.ids.max()) + 1,), -1).scatter(0, train.ids, train.targets)
    context = Context(
        student=student,
        teacher=teacher.model,
        in_chans=dataset.in_chans,
        image_size=dataset.image_size,
        teacher_image_size=teacher.image_size[0] if teacher.image_size else dataset.image_size,
        targets=targets,
    )
    # Each hint has keywords of its own, which the base class does not know.
    hint: Any = find_hint(config.hint)
    return hint(context, **config.hint_options)


def train_loader(config: RunConfig, task: StudentTask, split: AnySplit, **changes: Any) -> Loader:
    """Batches for training: augmented, and normalised for the student."""
    mean, std = normalisation(task.student)
    options: dict[str, Any] = {
        "batch_size": config.train.batch_size,
        "augment": config.data.augment,
        "mix": config.data.mix,
        "seed": config.train.seed,
        "augment_seed": config.train.seed if config.data.views is None else config.data.view_seed,
        "views": config.data.views,
        "channels_last": config.train.channels_last,
    }
    return Loader(split, mean=mean, std=std, device=task.device, **(options | changes))


def first_batches(
    config: RunConfig, task: StudentTask, split: AnySplit, store: TeacherStore | None
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Images, labels and stored outputs of the first epoch, the same on all ranks, for `StudentTask.begin`."""
    loader = train_loader(config, task, split, batch_size=inference_batch(task.device), drop_last=False, mix=None)
    for batch in loader.batches(0):
        stored = {} if store is None else store.read(batch.ids, batch.view, task.device)
        yield batch.images, batch.targets, stored
