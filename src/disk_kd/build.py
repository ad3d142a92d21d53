"""The parts of a run, built from its configuration: data, models, task, stored teacher outputs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.data import ImageNetInfo
from timm.models import get_arch_name
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    find_hint,
    find_method,
    has_teacher,
    recipe_of,
    resolve_weights,
    settle,
)
from disk_kd.data import AnySplit, Dataset, Loader, Split, check_labels, load_dataset
from disk_kd.errors import CheckpointError, ConfigError, DataError, DiskKDError, ModelError, one_line
from disk_kd.hints import Context, Hint
from disk_kd.models import (
    ResNet,
    StagedNet,
    check_logits,
    create_model,
    load_weights,
    set_normalisation,
    shipped_weights,
)
from disk_kd.models.about import METADATA, read_about
from disk_kd.plugins import find_own, is_own
from disk_kd.tasks import StudentTask
from disk_kd.teacher import Teacher, TeacherStore, fixed_image_size, store_bytes, teacher_facts
from disk_kd.teacher import normalisation as stated_normalisation
from disk_kd.train import Display

STUDENT = "student.safetensors"
AFFORDABLE_BYTES = 2**30
"""Most bytes of stored teacher outputs that one run makes unasked."""


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # what random states and waits are about, where no device is named
    except Exception as error:  # a device that torch knows and has not fails in many ways
        said = one_line(error).partition(". ")[0]
        raise ConfigError(f"no device {name!r} here ({said}); give cpu, cuda or auto") from None
    return device


def place(split: AnySplit, device: torch.device) -> AnySplit:
    """The split on the device; on the host where it is streamed, or would take over half of the free device memory."""
    if not isinstance(split, Split) or device.type != "cuda":
        return split.to(device)
    return split if split.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2 else split.to(device)


def inference_batch(device: torch.device) -> int:
    """Images at a time where no gradients are kept: a CPU is as fast with few, and activations are large."""
    return 200 if device.type == "cpu" else 1000


def find_weights(config: RunConfig, part: str) -> Path | None:
    """The file of weights that the config names for "student" or "teacher"; None where it names none, or timm's.

    Raises:
        CheckpointError: it names a file or run that does not exist.
        ModelError: a teacher without weights.
    """
    model: ModelConfig | None = getattr(config, part)
    if model is None:
        return None
    if model.weights is None:
        if part == "teacher" and not model.pretrained:
            raise ModelError(
                "the teacher has no weights: give --teacher.weights FILE_OR_RUN, or --teacher.pretrained true"
            )
        return shipped_weights(model.name) if part == "teacher" else None
    resolved = resolve_weights(model.weights, part, config.runs, config.train.seed)
    path = Path(resolved)
    path = path / STUDENT if path.is_dir() else path
    if path.is_file():
        return path
    recipe = recipe_of(model.weights)
    make = (
        f"make it with: disk-kd train {recipe}"
        if recipe
        else f"give --{part}.weights a file or a finished run directory"
    )
    raise CheckpointError(f"no {part} weights at {resolved}; {make}")


def load_data(data: DataConfig) -> Dataset:
    """The dataset that the config names."""
    return load_dataset(
        data.name,
        root=data.root,
        image_size=data.image_size,
        download=data.download,
        validation=data.validation,
        seed=data.split_seed,
        limit_train=data.limit_train,
        limit_test=data.limit_test,
        label_noise=data.label_noise,
        crop_pct=data.crop_pct,
        grey_bits=data.grey_bits,
        skip_unreadable=data.skip_unreadable,
        stream=data.stream,
        timm=data.timm,
        workers=data.workers,
    )


def build_model(config: RunConfig, part: str, dataset: Dataset, say: Callable[[str], None] | None = None) -> nn.Module:
    """The student or the teacher, with its weights, for the classes and channels of the data.

    How its images are normalised is told by the first of these that tells it: the options `mean` and `std`; the file of
    its weights; for this package's models, fresh or with weights of another program, the dataset; the model. A fresh
    model that no one tells it of takes mean 0.5 and std 0.5.

    Args:
        config: of the run.
        part: "student" or "teacher".
        dataset: of the run.
        say: is told of such a model.

    Raises:
        ConfigError, ModelError, CheckpointError: the name is unknown, or the weights do not fit it or the data.
        DataError: the weights were trained with other classes, or in another order.
        ModelError: nothing tells how the images of a trained model are normalised.
    """
    model: ModelConfig = getattr(config, part)
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
        _take_usual(built, dataset.normalisation)
    if stated_normalisation(built) is None:
        if weights is not None or model.pretrained:
            raise _untold(model.name, f"--{part}.options")
        mean, std = dataset.normalisation or ((0.5,) * dataset.in_chans,) * 2
        set_normalisation(built, mean, std)
        if say is not None:
            say(
                f"{model.name} does not say how its images are normalised: it learns with mean {list(mean)} and std"
                f" {list(std)}, which its weights will say; {part}.options may give others, as mean and std"
            )
    image = (dataset.in_chans, dataset.image_size, dataset.image_size)
    built.pretrained_cfg = {"input_size": image} | built.pretrained_cfg
    if "classes" in about:
        check_labels(dataset.class_names, about["classes"])
    if part == "teacher" and weights is None:
        _check_pretrained_classes(built, dataset)
    return built


def settle_options(config: RunConfig) -> RunConfig:
    """Give student and teacher the options that the files of their weights record, unless the config has others.

    A file that cannot be read is left to `build_model`, which says so.
    """
    decisions = {}
    for part in ("student", "teacher"):
        with suppress(DiskKDError):
            weights, model = find_weights(config, part), getattr(config, part)
            recorded = {} if weights is None else recorded_options(model.name, read_about(weights))
            if recorded and recorded.keys() - model.options.keys():
                decisions[f"{part}.options"] = recorded | model.options
    return settle(config, decisions)


def recorded_options(name: str, about: dict[str, Any]) -> dict[str, Any]:
    """The options that a file of weights records, if it is of the model of this name.

    Args:
        name: of the model that the weights are loaded into.
        about: what `read_about` says of the file.
    """
    said = about.get("model", "")
    same = said == name or (not is_own(said + name) and get_arch_name(said) == get_arch_name(name))
    return about.get("options", {}) if same else {}


def teacher_image_size(config: RunConfig, dataset: Dataset) -> int | None:
    """The side of the images that the teacher sees: as the config says, else of those that it learned from.

    None: the student's images as they are.
    """
    assert config.teacher is not None
    if config.teacher.image_size is not None:
        return config.teacher.image_size
    weights = find_weights(config, "teacher")
    size = None if weights is None else read_about(weights).get("image_size")
    return None if size == dataset.image_size else size


def with_recorded(name: str, options: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Options of a model, with those, and the mean and std, that the file of its weights says, unless they have others.

    Args:
        name: of the model.
        options: as a user gives them; timm's `pretrained_cfg_overlay` may hold a mean and std too.
        about: what `read_about` says of the file.
    """
    overlay = options.get("pretrained_cfg_overlay") or {}
    told = next((source for source in (overlay, about) if {"mean", "std"} <= source.keys()), {})
    told = {key: told[key] for key in ("mean", "std") if key in told}
    return recorded_options(name, about) | told | options


def _take_usual(model: nn.Module, usual: tuple[tuple[float, ...], tuple[float, ...]] | None) -> None:
    """Normalise the images of one of this package's models as is usual for the data, where that is known."""
    if usual is not None and isinstance(unwrap_model(model), ResNet | StagedNet):
        set_normalisation(model, *usual)


def _untold(name: str, option: str) -> ModelError:
    """The error for a trained model whose images may be normalised in any way."""
    return ModelError(
        f"neither {name} nor its weights say how its images were normalised in training; give {option}"
        " '{mean: [...], std: [...]}', for pixels in [0, 1] and one number a channel"
    )


def _check_pretrained_classes(teacher: nn.Module, dataset: Dataset) -> None:
    """timm gives a pretrained model a new, random classifier when asked for other classes: no teacher.

    A thousand classes are ImageNet's, in the order of their WordNet ids, unless the weights name others.
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
    """Whether the names are the same, as far as the dataset tells: a reader may give numbers, or ImageNet's words."""
    if ours in (theirs, tuple(map(str, range(len(theirs))))):
        return True
    if len(theirs) != 1000:
        return False
    words = map(ImageNetInfo("imagenet-1k").index_to_description, range(1000))
    return [name.partition(",")[0] for name in ours] == [word.partition(",")[0] for word in words]


def build_task(
    config: RunConfig, dataset: Dataset, device: torch.device, say: Callable[[str], None] | None = None
) -> StudentTask:
    """The method with its student and teacher on the device, as the settings want them; `say` as of `build_model`."""
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
        raise ConfigError(f"{name} needs one label an image, which data.mix does not leave; give data.mix.mixup=0")
    if config.data.timm.repeats > 1 and task.needs_ids:
        raise ConfigError(
            f"{config.hint} remembers each image once a batch, data.timm.repeats={config.data.timm.repeats} repeats"
            " them; give data.timm.repeats=1"
        )
    if settings.ema_decay is not None:
        # The warm-up is 1 - 1 / (1 + t / 10) = t / (t + 10) after t updates.
        task.setup_ema(settings.ema_decay, use_warmup=settings.ema_warmup, warmup_gamma=10.0, warmup_power=1.0)
    return task


def recompute_activations(student: nn.Module) -> None:
    """Let the student's backward pass compute activations again, so that fewer are kept.

    Raises:
        ModelError: the model does not know how.
    """
    plain: Any = unwrap_model(student)
    try:
        plain.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError):
        raise ModelError(
            f"{type(plain).__name__} cannot compute its activations again; give --train.grad_checkpointing false"
        ) from None


def build_hint(config: RunConfig, student: nn.Module, teacher: Teacher, dataset: Dataset) -> Hint:
    """The config's feature method, for these models.

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


def settle_views(config: RunConfig) -> RunConfig:
    """Give a run of a comparison, where `data.views` is left open, one view for each of its student passes.

    Each pass still meets a new augmentation. It is the same one in all runs of as many passes, so that rows with
    and without a stored teacher see the same images, and can share the teacher's outputs.
    """
    if not config.shares_views or config.data.views is not None or _new_each_step(config):
        return config
    return settle(config, {"data.views": config.train.passes})


def settle_store(config: RunConfig, task: StudentTask, split: AnySplit, passes: int, console: Console) -> RunConfig:
    """Decide whether to store the teacher's outputs, where the config leaves it open.

    The decision never changes the images of a run. Without `data.views` each pass has a new view, stored or not: the
    outputs are then stored if all passes take at most `AFFORDABLE_BYTES`. With it, they are stored if views are met
    again, or were stored before. A comparison shares them among its runs, so there they are stored if they take at
    most a quarter of the free disk. Half of the free disk is the limit in each case.

    Args:
        config: of the run.
        task: says which outputs are needed.
        split: the training samples.
        passes: of the run, in the phase that has the most.
        console: is told why, where storing would not pay.

    Raises:
        ConfigError: outputs are to be stored of images that never come back, or more than the disk holds.
    """
    if config.teacher is None or task.teacher is None or config.teacher.store is False:
        return config
    if new_each_step := _new_each_step(config):
        if config.teacher.store is True:
            raise ConfigError(f"{new_each_step}, whose teacher outputs cannot be stored; give teacher.store=false")
        return settle(config, {"teacher.store": False})
    views = config.data.views or passes
    if config.teacher.store is True:
        _check_room(config, task, split, views)
        return settle(config, {"data.views": views})
    size, free = views * view_bytes(config, task, split), _free_bytes(config.runs)
    there = config.data.views is not None and TeacherStore.holds(store_folder(config, task, split), task.needs, views)
    if config.data.views is None:
        stored = size <= AFFORDABLE_BYTES
    else:
        stored = views < passes or there or (config.shares_views and size <= free // 4)
    if stored and not there and size > free // 2:
        stored = False
        console.print(
            f"The teacher runs at each step: the disk has no room for {views} views of its outputs,"
            f" {size / 2**30:.1f} GiB",
            soft_wrap=True,
        )
    return settle(config, {"teacher.store": stored} | ({"data.views": views} if stored else {}))


def _check_room(config: RunConfig, task: StudentTask, split: AnySplit, views: int) -> None:
    """Refuse to store more views than the disk holds, beside those that are stored already.

    Raises:
        ConfigError: the disk has no room for them.
    """
    assert task.teacher is not None
    needs, free = task.teacher.needs, _free_bytes(config.runs)
    share = TeacherStore.missing(store_folder(config, task, split), needs, views) / len(needs)
    size = share * view_bytes(config, task, split)
    if size > free:
        raise ConfigError(
            f"{views:,} views of the teacher's outputs take {size / 2**30:,.1f} GiB more, the disk of {config.runs} has"
            f" {free / 2**30:,.1f} GiB free; give fewer --views, or --runs on another disk"
        )


def _new_each_step(config: RunConfig) -> str | None:
    """Why no image comes back; None where images do."""
    if config.data.mix.on:
        return "data.mix makes new images at each step"
    if config.data.timm.repeats > 1:
        return "data.timm.repeats makes new views at each step"
    return None


def open_store(config: RunConfig, task: StudentTask, split: AnySplit, console: Console) -> TeacherStore | None:
    """The teacher's stored outputs, made where there are none yet; None where the teacher is to run at each step.

    Raises:
        ConfigError: fewer logits are kept than the method tells apart.
        CheckpointError, RunError: as `TeacherStore.build`.
    """
    if config.teacher is None or task.teacher is None or config.teacher.store is not True:
        return None
    views, top_k = config.data.views or 1, config.teacher.store_top_k
    if top_k is not None and top_k < task.top_logits:
        raise ConfigError(
            f"the method tells the teacher's {task.top_logits} largest logits apart, teacher.store_top_k keeps {top_k};"
            " raise it, or leave it out to keep all"
        )
    folder = store_folder(config, task, split)
    loader = train_loader(
        config, task, split, batch_size=inference_batch(task.device), shuffle=False, drop_last=False, mix=None
    )
    display = Display(views * loader.steps_per_pass, title=f"teacher's outputs, {views} views", console=console)
    size = views * view_bytes(config, task, split) / 2**20
    how = "made once, then shared; --teacher.store false runs the teacher at each step instead"
    display.line(f"Stored teacher outputs: {folder} ({views} views of {len(split):,} samples, {size:,.0f} MiB; {how})")
    with display:
        store = TeacherStore.build(
            folder,
            task.teacher,
            loader,
            views=views,
            samples=int(split.ids.max()) + 1,
            manifest=store_facts(config, split),
            top_k=top_k,
            progress=lambda done, total: display.step(done),
        )
    store.preload(task.device)
    return store


def store_facts(config: RunConfig, split: AnySplit) -> dict[str, Any]:
    """What stored outputs depend on beside the teacher."""
    return {
        "data_sha256": split.fingerprint(),
        "augment": config.data.augment.facts(),
        "view_seed": config.data.view_seed,
    } | ({"timm": asdict(config.data.timm)} if config.data.timm.enabled else {})


def store_folder(config: RunConfig, task: StudentTask, split: AnySplit) -> Path:
    """The folder of the outputs of this teacher, for these samples and augmentations: one for all runs."""
    assert config.teacher is not None
    assert task.teacher is not None
    facts = {**store_facts(config, split), **teacher_facts(task.teacher), "top_k": config.teacher.store_top_k}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return config.runs / "teacher-store" / key


def view_bytes(config: RunConfig, task: StudentTask, split: AnySplit) -> int:
    """Bytes of one view of the stored outputs that the task needs."""
    assert config.teacher is not None
    assert task.teacher is not None
    image = torch.zeros(1, *split.shape, device=task.device)
    numbers = {need: output.numel() for need, output in task.teacher(image).items()}
    logits = numbers.pop("logits", 0)
    return store_bytes(
        samples=int(split.ids.max()) + 1,
        views=1,
        num_classes=logits,
        map_size=sum(numbers.values()),  # of all other outputs, which are stored as maps are
        top_k=config.teacher.store_top_k,
    )


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder` is on, or will be on."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def train_loader(config: RunConfig, task: StudentTask, split: AnySplit, **changes: Any) -> Loader:
    """Batches for training, augmented, and normalised for the student."""
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
    """Images, labels and stored outputs of the first epoch, alike for all ranks, as `StudentTask.begin` reads them."""
    loader = train_loader(config, task, split, batch_size=inference_batch(task.device), drop_last=False, mix=None)
    for batch in loader.batches(0):
        stored = {} if store is None else store.read(batch.ids, batch.view, task.device)
        yield batch.images, batch.targets, stored


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a model's inputs, for values in [0, 1].

    Raises:
        ModelError: its `pretrained_cfg` does not say.
    """
    stated = stated_normalisation(unwrap_model(model))
    if stated is None:
        raise ModelError(
            f"{type(unwrap_model(model)).__name__} does not say how its images are normalised; give it mean and std"
        )
    return stated


def student_metadata(config: RunConfig, dataset: Dataset, student: nn.Module) -> dict[str, str]:
    """What a file of weights says of itself: enough to build the model, to feed it and to read its outputs.

    One entry, because the order of several in a safetensors file differs from write to write.
    """
    return {
        METADATA: json.dumps(
            {
                "model": config.student.name,
                "options": {key: value for key, value in config.student.options.items() if key not in ("mean", "std")},
                "in_chans": dataset.in_chans,
                "image_size": dataset.image_size,
                "crop_pct": config.data.crop_pct,
                **dict(zip(("mean", "std"), normalisation(student), strict=True)),
                "classes": dataset.class_names,
                **_grafted(config),
            }
        )
    }


def _grafted(config: RunConfig) -> dict[str, Any]:
    """How the trained model is made of student and teacher, where a hint makes another model of the student."""
    if config.hint is None or config.teacher is None or find_hint(config.hint).keeps_student():
        return {}
    teacher = {"name": config.teacher.name, "options": config.teacher.options}
    return {"hint": {"name": config.hint, "options": config.hint_options, "teacher": teacher}}


def trained_model(
    name: str,
    options: dict[str, Any],
    weights: Path,
    num_classes: int,
    in_chans: int,
    about: dict[str, Any],
    usual: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> nn.Module:
    """The model that a file of weights is for.

    Args:
        name, options: of the student.
        weights: the file.
        num_classes, in_chans: of the data.
        about: what `read_about` says of it: of the normalisation, and of a hint that made another model of the student.
        usual: `Dataset.normalisation` of the data, for this package's models where another program wrote the file.

    Raises:
        ConfigError, ModelError, CheckpointError: the name is unknown, or the weights do not fit.
        ModelError: nothing tells how its images are normalised.
    """
    sizes: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    options, hint = with_recorded(name, options, about), about.get("hint")
    if hint is None:
        model = create_model(name, weights=weights, **sizes, **options)
    else:
        teacher = create_model(hint["teacher"]["name"], **sizes, **hint["teacher"]["options"])
        model = find_hint(hint["name"]).prepare(create_model(name, **sizes, **options), teacher, hint["options"])
        load_weights(model, weights)
    if "mean" not in options and "model" not in about:
        _take_usual(model, usual)
    if stated_normalisation(model) is None:
        raise _untold(name, "--model.options")
    return model


def check_named(about: dict[str, Any], weights: Path, named: Collection[str]) -> None:
    """Refuse a file of weights that says it is of a model or hint by my_module:name which the user did not name.

    Importing a module runs it, and a file may come from anywhere.

    Args:
        about: what `read_about` says of the file.
        weights: the file.
        named: what the user, or the run's own configuration, named: my_module:name, or a module, of which what it
            defines itself is allowed and what it imported is not.

    Raises:
        ModelError: the file names another.
    """
    hint = about.get("hint") or {}
    said = (about.get("model"), hint.get("name"), hint.get("teacher", {}).get("name"))
    for name in (name for name in map(str, said) if is_own(name) and name not in named):
        module = name.partition(":")[0]
        if module not in named or getattr(find_own(name, "model"), "__module__", None) != module:
            raise ModelError(
                f"{weights} says that it is of {name}, and a module is not imported because a file names it; if you"
                f" know it, give --import {name}"
            )
