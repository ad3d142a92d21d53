"""The parts of a run, built from its configuration: data, models, task and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.backbones import build_backbone, pooled_features
from disk_kd.config import RunConfig, find_hint, find_method, has_teacher
from disk_kd.data import AnySplit, Dataset, Loader, check_labels, load_dataset
from disk_kd.data.settings import DataSettings
from disk_kd.devices import inference_batch
from disk_kd.errors import CheckpointError, ConfigError, DataError, DiskKDError, ModelError
from disk_kd.hints import Context, Hint
from disk_kd.logits import class_count
from disk_kd.models import check_logits, create_model, set_normalisation, shipped_weights
from disk_kd.models.about import read_about
from disk_kd.models.foreign import check_file
from disk_kd.models.settings import ModelSettings, StudentSettings
from disk_kd.recipe import recipe_of_run
from disk_kd.support import UNLABELLED
from disk_kd.tasks import StudentTask
from disk_kd.teacher import (
    AnyStore,
    AnyTeacher,
    LabelMap,
    Teacher,
    class_names,
    feature_shapes,
    fixed_image_size,
    map_labels,
)
from disk_kd.teacher import normalisation as stated_normalisation
from disk_kd.teacher.settings import AnyTeacherSettings, EnsembleSettings, TeacherSettings
from disk_kd.trained import normalisation, recorded_options, take_usual, unknown_normalisation, with_recorded

LOGITS: frozenset[str] = frozenset({"logits"})
STUDENT = "student.safetensors"
"""The file of a run's student."""


def _settings(config: RunConfig, part: str) -> ModelSettings | None:
    """The settings of "student" or "teacher".

    Raises:
        ConfigError: there are several teachers, where one is expected.
    """
    settings: StudentSettings | AnyTeacherSettings | None = getattr(config, part)
    if isinstance(settings, EnsembleSettings):
        raise ConfigError(f"this takes one teacher, not the {len(settings.members)} of teacher.members; give one")
    return settings


def check_weights(config: RunConfig) -> None:
    """Check that the files of weights of the student and of all teachers exist.

    Raises:
        CheckpointError, ModelError: as for `find_weights`.
    """
    find_weights(config, "student")
    for one in config.each_teacher:
        find_weights(one, "teacher")


def find_weights(config: RunConfig, part: str) -> Path | None:
    """The file of weights that the config gives for "student" or "teacher"; None if it gives none, or timm's.

    Raises:
        CheckpointError: the file or run does not exist.
        ModelError: a teacher has no weights.
    """
    model = _settings(config, part)
    if model is None:
        return None
    check_file(model.name)
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

    A teacher with the option `classes` has its own classes: as many as its file of weights records, else as the model
    has by itself.

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
    model, weights = _settings(config, part), find_weights(config, part)
    assert model is not None
    about = {} if weights is None else read_about(weights)
    options = with_recorded(model.name, model.options, about)
    own_classes = isinstance(model, TeacherSettings) and model.classes is not None
    built: Any = create_model(
        model.name,
        num_classes=_own_count(about) if own_classes else dataset.num_classes,
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
    if part == "student":
        _check_trainable(built, model.name, image)
    if own_classes:
        return built
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    if part == "teacher" and weights is None:
        _check_pretrained_classes(built, model.name, dataset)
    return built


def recorded_in_files(config: RunConfig) -> RunConfig:
    """Give student and teacher the options that their files of weights record, unless the config sets others.

    `build_model` raises the error if a file cannot be read.
    """

    def completed(part: str, one: RunConfig) -> Any:
        model: Any = getattr(one, part)
        with suppress(DiskKDError):
            weights = find_weights(one, part)
            recorded = {} if weights is None else recorded_options(model.name, read_about(weights))
            if recorded.keys() - model.options.keys():
                return replace(model, options=recorded | model.options)
        return model

    teacher = config.teacher
    if teacher is not None:
        teacher = teacher.changed(lambda one: completed("teacher", replace(config, teacher=one)))
    return replace(config, student=completed("student", config), teacher=teacher)


def with_classes(config: RunConfig) -> RunConfig:
    """Give data without any label the classes that a teacher's file of weights records, unless the config has some."""
    if config.data.name != "none" or config.data.classes is not None:
        return config
    for one in config.each_teacher:
        with suppress(DiskKDError):
            weights = find_weights(one, "teacher")
            names = None if weights is None else read_about(weights).get("classes")
            if names and getattr(one.teacher, "classes", None) is None:
                return config.decided({"data.classes": tuple(names)})
    return config


def teacher_image_size(config: RunConfig, dataset: Dataset) -> int | None:
    """The side of the teacher's images: as in the config, else the size that it was trained with.

    None: the student's image size.
    """
    teacher = _settings(config, "teacher")
    assert isinstance(teacher, TeacherSettings)
    if teacher.image_size is not None:
        return teacher.image_size
    weights = find_weights(config, "teacher")
    size = None if weights is None else read_about(weights).get("image_size")
    return None if size == dataset.image_size else size


def _check_trainable(student: nn.Module, name: str, image: tuple[int, int, int]) -> None:
    """Refuse a student without weights to train, or one that takes images of another size only."""
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ModelError(f"the student {name} has no weights that can be trained; give it as --teacher.name")
    size = fixed_image_size(unwrap_model(student))
    if size is not None and size != image[1:]:
        raise ModelError(
            f"the student {name} takes images of {size[1]}x{size[0]} pixels, the data has {image[2]}x{image[1]}; give"
            f" --data.image_size {size[0]}"
        )


def _check_pretrained_classes(teacher: nn.Module, name: str, dataset: Dataset) -> None:
    """Refuse a pretrained model with another number of classes: timm would give it a new, random classifier.

    A thousand classes are taken as ImageNet's, in the order of their WordNet ids, unless the weights name others.
    """
    settings = unwrap_model(teacher).pretrained_cfg
    theirs = settings.get("num_classes")
    if theirs is None:  # a user's own model says nothing of its weights
        return
    if theirs != dataset.num_classes:
        raise ModelError(
            f"the teacher {name} has {theirs} classes, {dataset.name} has {dataset.num_classes}; "
            "map its classes with --teacher.classes auto, or train it on this dataset first and give --teacher.weights"
        )
    names = settings.get("label_names") or (ImageNetInfo("imagenet-1k").label_names() if theirs == 1000 else None)
    if names is not None and not _same_classes(tuple(names), dataset.class_names):
        label = next(i for i, (one, other) in enumerate(zip(names, dataset.class_names, strict=True)) if one != other)
        raise DataError(
            f"label {label} is {dataset.class_names[label]!r} in the dataset and {names[label]!r} for the pretrained "
            f"teacher {name}; name the class folders as it does, or map the classes with --teacher.classes"
        )


def _same_classes(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether the class names are the same. Readers that give numbers or ImageNet's words match every name."""
    if ours in (theirs, tuple(map(str, range(len(theirs))))):
        return True
    if len(theirs) != 1000:
        return False
    words = map(ImageNetInfo("imagenet-1k").index_to_description, range(1000))
    return [name.partition(",")[0] for name in ours] == [word.partition(",")[0] for word in words]


def _own_count(about: dict[str, Any]) -> int | None:
    """Number of classes that a file of weights records; None if it records none."""
    return len(about["classes"]) if "classes" in about else None


def teacher_label_map(config: RunConfig, model: nn.Module, dataset: Dataset) -> LabelMap | None:
    """The mapping from the teacher's classes to those of the data, as the option `teacher.classes` gives it.

    Args:
        config: configuration of a run with one teacher.
        model: the teacher's model.
        dataset: dataset of the run.

    Raises:
        ConfigError, DataError: as for `disk_kd.teacher.map_labels`.
    """
    teacher = _settings(config, "teacher")
    if not isinstance(teacher, TeacherSettings) or teacher.classes is None:
        return None
    weights, plain = find_weights(config, "teacher"), unwrap_model(model)
    about = {} if weights is None else read_about(weights)
    count = class_count(plain)
    if count is None:
        size = teacher_image_size(config, dataset) or dataset.image_size
        count = feature_shapes(model, {"logits"}, dataset.in_chans, size)["logits"][0]
    labels = about.get("classes") or plain.pretrained_cfg.get("label_names")
    return map_labels(teacher.classes, dataset.class_names, class_names(labels, count), count)


def frozen_member(
    config: RunConfig, model: nn.Module, dataset: Dataset, student: nn.Module, **settings: Any
) -> Teacher:
    """A teacher as the configuration describes it, for batches of a student.

    Args:
        config: configuration of a run with one teacher.
        model: the teacher's model, as `build_model` makes it.
        dataset: dataset of the run.
        student: the student.
        settings: further keywords of `Teacher.of`.

    Raises:
        ConfigError, DataError, ModelError: the model does not fit the data or the student.
    """
    image_size = teacher_image_size(config, dataset)
    mapped = teacher_label_map(config, model, dataset)
    return Teacher.of(model, student, image_size=image_size, label_map=mapped, **settings)


def build_teacher(
    config: RunConfig, dataset: Dataset, student: nn.Module, device: torch.device, layout: torch.memory_format
) -> AnyTeacher:
    """The teacher of a run, or its teachers as one, with folded batch norms.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError: as for `build_model` and `frozen_member`.
    """
    assert config.teacher is not None
    reads_classes = find_method(config.method).teacher_classes
    build, check, needs = (
        (_build_classifier, _check_classifier, LOGITS)
        if reads_classes
        else (_build_backbone, _check_backbone, frozenset())
    )
    members = []
    for one in config.each_teacher:
        model = build(one, dataset).to(device).to(memory_format=layout)
        precision = one.teacher.each[0].precision if one.teacher is not None else "auto"
        if precision == "auto":
            precision = "fp32" if device.type == "cpu" else "bf16"
        side = teacher_image_size(one, dataset) or (fixed_image_size(unwrap_model(model)) or (dataset.image_size,))[0]
        check(one, model.eval(), dataset, side)
        members.append(frozen_member(one, model, dataset, student, needs=needs, precision=precision, fold=True))
    return config.teacher.join(members)


def _build_classifier(config: RunConfig, dataset: Dataset) -> nn.Module:
    """The teacher with its classifier."""
    return build_model(config, "teacher", dataset)


def _check_classifier(config: RunConfig, model: nn.Module, dataset: Dataset, image_size: int) -> None:
    """Check that a teacher gives one logit for each of its classes."""
    mapped = teacher_label_map(config, model, dataset)
    count = dataset.num_classes if mapped is None else mapped.num_theirs
    check_logits(model, (dataset.in_chans, image_size, image_size), count)


def _build_backbone(config: RunConfig, dataset: Dataset) -> nn.Module:
    """The teacher without its classifier, for methods that do not read classes.

    Raises:
        ConfigError: the option `teacher.classes` is given.
    """
    teacher = _settings(config, "teacher")
    assert isinstance(teacher, TeacherSettings)
    if teacher.classes is not None:
        raise ConfigError(
            f"the method {config.method} reads the teacher's features, not its classes; leave out teacher.classes"
        )
    return build_backbone(teacher, find_weights(config, "teacher"), dataset, "teacher")


def _check_backbone(config: RunConfig, model: nn.Module, dataset: Dataset, image_size: int) -> None:
    """Check that a teacher gives pooled features."""
    pooled_features(model, dataset.in_chans, image_size)


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
        teacher = build_teacher(config, dataset, student, device, layout)
        if config.hint is not None:
            student = find_hint(config.hint).prepare(student, teacher.given, config.hint_options)
            student = student.to(device).to(memory_format=layout)
        task = (
            method(student, teacher, **config.method_options)
            if has_teacher(method)
            else method(student, **config.method_options)
        )
        if config.hint is not None:
            task.add_hint(build_hint(config, student, teacher, dataset), teacher)
    if dataset.train.unlabelled:
        _expect_unlabelled(config, task)
    elif task.needs_unlabelled:
        raise ConfigError(f"{config.method} needs images without labels; give --data.unlabelled, or use kd")
    _balance_labels(config, task, dataset)
    if config.data.mix.on and (not task.mixes or task.needs_ids):
        name = config.method if not task.mixes else config.hint
        raise ConfigError(f"{name} needs one label for each image, but data.mix mixes labels; give data.mix.mixup=0")
    if config.data.timm.repeats > 1 and task.needs_ids:
        raise ConfigError(
            f"{config.hint} needs each image at most once in a batch, but data.timm.repeats={config.data.timm.repeats}"
            " repeats images; give data.timm.repeats=1"
        )
    if config.data.sampling == "balanced" and task.needs_ids:
        raise ConfigError(
            f"{config.hint} needs each image at most once in a batch, but data.sampling=balanced repeats images; give"
            " data.sampling=shuffle"
        )
    if settings.ema_decay is not None:
        # The warm-up is 1 - 1 / (1 + t / 10) = t / (t + 10) after t updates.
        task.setup_ema(settings.ema_decay, use_warmup=settings.ema_warmup, warmup_gamma=10.0, warmup_power=1.0)
    return task


def _expect_unlabelled(config: RunConfig, task: StudentTask) -> None:
    """Prepare the task for images without labels.

    Raises:
        ConfigError: the method or the hint cannot use them.
    """
    task.expect_unlabelled()
    task.count_confident(config.data.unlabelled_confidence)
    if task.needs_ids and config.data.unlabelled_share != "auto":
        raise ConfigError(
            f"{config.hint} needs each image at most once in a batch, but data.unlabelled_share repeats images; give"
            " data.unlabelled_share=auto"
        )


def _balance_labels(config: RunConfig, task: StudentTask, dataset: Dataset) -> None:
    """Weigh the classes in the labels' cross-entropy by their labelled training images, as the options say.

    Raises:
        ConfigError: the options do not fit each other, the method or the data.
    """
    settings = config.train
    kind, tau = settings.class_weights, settings.logit_adjustment
    given = [f"train.class_weights={kind}"] * (kind != "none") + [f"train.logit_adjustment={tau:g}"] * (tau > 0)
    if not given:
        return
    if config.data.sampling == "balanced":
        raise ConfigError(
            f"data.sampling=balanced makes classes equally frequent, and {given[0]} would weigh them again; give one of"
            " the two"
        )
    if config.method_options.get("ce_weight") == 0:
        raise ConfigError(
            f"{given[0]} changes the cross-entropy on the labels, but method.ce_weight is 0; leave it out"
        )
    targets = dataset.train.targets
    counts = targets[targets != UNLABELLED].cpu().bincount(minlength=dataset.num_classes)
    task.balance_labels(counts, weights=kind, beta=settings.class_weights_beta, logit_adjustment=tau)


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


def build_hint(config: RunConfig, student: nn.Module, teacher: AnyTeacher, dataset: Dataset) -> Hint:
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
        teacher_image_size=teacher.members[0].image_size[0] if teacher.members[0].image_size else dataset.image_size,
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
        "balanced": config.data.sampling == "balanced",
        "unlabelled_share": None if config.data.unlabelled_share == "auto" else config.data.unlabelled_share,
        "channels_last": config.train.channels_last,
    }
    return Loader(split, mean=mean, std=std, device=task.device, **(options | changes))


def first_batches(
    config: RunConfig, task: StudentTask, split: AnySplit, store: AnyStore | None
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Images, labels and stored outputs of the first epoch, the same on all ranks, for `StudentTask.begin`."""
    loader = train_loader(config, task, split, batch_size=inference_batch(task.device), drop_last=False, mix=None)
    for batch in loader.batches(0):
        stored = {} if store is None else store.read(batch.ids, batch.view, task.device)
        yield batch.images, batch.targets, stored
