"""The frozen teacher.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.utils import unwrap_model
from torch import Tensor, nn

from disk_kd.errors import ConfigError, ModelError, nearest
from disk_kd.logits import class_count, logits_of, place_of
from disk_kd.teacher.features import (
    check_features,
    feature_sizes,
    fixed_image_size,
    forward_with_features,
    input_channels,
    is_path,
    normalisation,
    of_classes,
    usual_image_size,
)
from disk_kd.teacher.fold import fold_batch_norms
from disk_kd.teacher.hashing import structure_hash, weights_hash
from disk_kd.teacher.label_map import LabelMap

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(nn.Module):
    """Frozen teacher: eval mode, no gradients. It has its own normalisation and image size.

    It gets the student's batch, with the same crops and colours, and normalises and resizes it for its own model. The
    given model is frozen in place. With `fold` a copy is used and the given model stays unchanged.

    Args:
        model: a trained model, plain or compiled.
        input_mean: mean of each channel in the student's normalisation. For images of one channel, three values are
            averaged.
        input_std: standard deviation of each channel in the student's normalisation.
        needs: outputs to compute, named as in `disk_kd.teacher.features`.
        image_size: height and width of the teacher's images, if not those of the batch. None: the only size that the
            model accepts, else the batch's size.
        fold: fold batch norms into convolutions (`fold_batch_norms`) in a plain copy of the model. The outputs in
            `needs` stay the same up to rounding; the names in the copy's state change.
        precision: precision of the model, independent of any autocast around it. fp32 uses the type of the weights;
            bf16 and fp16 run under autocast and keep the weights.
        label_map: maps the model's classes to those of the data (`LabelMap`); None: they are the same.

    Raises:
        ConfigError: `precision` is unknown.
        ModelError: the model cannot compute the outputs in `needs`, or cannot run for folding.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        input_mean: Sequence[float],
        input_std: Sequence[float],
        needs: Collection[str] = frozenset({"logits"}),
        image_size: int | tuple[int, int] | None = None,
        fold: bool = False,
        precision: Precision = "fp32",
        label_map: LabelMap | None = None,
    ) -> None:
        super().__init__()
        self.needs = frozenset(needs)
        self.precision = _checked_precision(precision)
        plain = unwrap_model(model)
        for need in self.needs:
            check_features(plain, need)
        self.image_size = fixed_image_size(plain) if image_size is None else to_2tuple(image_size)
        self._given_hashes = (weights_hash(plain), structure_hash(plain)) if fold else None
        # In a tuple, which is no part of the module's state.
        self._given = (plain,) if fold else ()
        self.model = (_folded(plain, self.image_size, self._paths) if fold else model).requires_grad_(False).eval()
        self.input_mean, self.input_std = tuple(input_mean), tuple(input_std)
        self.mean, self.std = normalisation(plain) or (self.input_mean, self.input_std)
        channels = input_channels(plain)
        mean, std, own_mean, own_std = (
            _per_channel(values, channels) for values in (self.input_mean, self.input_std, self.mean, self.std)
        )
        self.renormalises = not (torch.equal(mean, own_mean) and torch.equal(std, own_std))
        # ((x std + mean) - own_mean) / own_std, as one multiplication and one addition.
        device, _ = place_of(model)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (std / own_std).to(device, torch.float32), persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std).to(device, torch.float32), persistent=False)
        self.label_map = None if label_map is None else label_map.to(device)

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        student: nn.Module,
        needs: Collection[str] = frozenset({"logits"}),
        image_size: int | tuple[int, int] | None = None,
        fold: bool = False,
        precision: Precision | None = None,
        label_map: LabelMap | None = None,
    ) -> Teacher:
        """The teacher for batches of a student.

        Args:
            teacher: a timm model or a `Teacher`. A `Teacher` keeps its settings, except `needs` and the settings given
                below. A folded one stays folded; it is folded again if `needs` names modules that it was not folded
                for.
            student: a timm model. Its `pretrained_cfg` gives the normalisation of the images; without one, the images
                are taken as normalised for the teacher.
            needs, image_size, fold: as for `Teacher`.
            precision: as for `Teacher`; None: fp32.
            label_map: as for `Teacher`.

        Raises:
            ConfigError, ModelError: as for `Teacher`; or teacher and student have different numbers of classes; or
                `needs` names modules of a teacher that was made from a folded one and has no unfolded copy.
        """
        if isinstance(teacher, Teacher):
            mean, std, model = teacher.input_mean, teacher.input_std, teacher.model
            image_size = image_size or teacher.image_size
            precision = precision or teacher.precision
            label_map = label_map or teacher.label_map
            given_hashes = teacher._given_hashes
            unknown = [need for need in needs if is_path(need) and need not in teacher.needs]
            if given_hashes is not None and unknown:
                model, given_hashes, fold = teacher._as_given(unknown), None, True
        else:
            model, given_hashes = teacher, None
            as_they_come = (0.0,), (1.0,)
            mean, std = normalisation(unwrap_model(student)) or normalisation(unwrap_model(teacher)) or as_they_come
        if any(map(of_classes, needs)):
            _check_classes(_class_count(model, label_map), unwrap_model(student))
        made = cls(
            model,
            input_mean=mean,
            input_std=std,
            needs=needs,
            image_size=image_size,
            fold=fold and given_hashes is None,
            precision=precision or "fp32",
            label_map=label_map,
        )
        made._given_hashes = given_hashes or made._given_hashes
        if isinstance(teacher, Teacher) and teacher._given_hashes is not None:
            made._given = ()  # else a task would hold the teacher's weights twice
        return made

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers with a store of their own: this one alone."""
        return (self,)

    @property
    def num_classes(self) -> int | None:
        """Number of logits; None if the model does not say."""
        return _class_count(self.model, self.label_map)

    @property
    def given(self) -> nn.Module:
        """The model as it was given, if this teacher still has it; else the folded model."""
        return self._given[0] if self._given else self.model

    def asked(self, student: nn.Module, needs: Collection[str]) -> Teacher:
        """The same teacher for the outputs `needs` of a task with this student, as `Teacher.of` makes it."""
        return Teacher.of(self, student, needs)

    def joined(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The outputs of the teacher for those of its only member."""
        return outputs[0]

    @property
    def _paths(self) -> list[str]:
        return sorted(need for need in self.needs if is_path(need))

    def _as_given(self, modules: Collection[str]) -> nn.Module:
        """The model before folding, for reading the outputs of `modules`."""
        if not self._given:
            raise ModelError(
                f"the teacher's batch norms are folded, and {', '.join(sorted(modules))} may give another output then;"
                " give the model that was folded, or a Teacher with fold=False"
            )
        return self._given[0]

    @property
    def weights_sha256(self) -> str:
        """`weights_hash` of the given model. Folding does not change it."""
        return self._given_hashes[0] if self._given_hashes else weights_hash(self.model)

    @property
    def structure_sha256(self) -> str:
        """`structure_hash` of the given model."""
        return self._given_hashes[1] if self._given_hashes else structure_hash(self.model)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, also when a module around it is set to train mode."""
        return super().train(False)

    # Not inference_mode: its tensors cannot be saved for the backward pass of a helper that reads them.
    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """The teacher's outputs for a batch, float32, without gradients.

        Args:
            images_BCHW: (B, C, H, W), normalised with `input_mean` and `input_std`.

        Returns:
            By name, what `needs` asks for.
        """
        images_BCHW = self._as_own(images_BCHW)
        dtype = _AUTOCAST.get(self.precision)
        with torch.autocast(images_BCHW.device.type, dtype, enabled=dtype is not None):
            outputs = self._outputs(images_BCHW)
        return self._mapped({name: output.float() for name, output in outputs.items()})

    def _mapped(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, with logits for the classes of the data."""
        label_map = self.label_map
        if label_map is None:
            return dict(outputs)
        return {name: label_map(output) if of_classes(name) else output for name, output in outputs.items()}

    def _outputs(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """The outputs in `needs`, in one forward pass of the model."""
        if self.needs <= {"logits"}:
            return {"logits": logits_of(self.model(images_BCHW), self.model)}
        return forward_with_features(self.model, images_BCHW, sorted(self.needs))

    def sizes(self, in_chans: int | None = None, image_size: int | None = None) -> dict[str, int]:
        """Sizes of all outputs, as `feature_sizes` gives them."""
        return feature_sizes(self.model, in_chans, image_size)

    def _as_own(self, images_BCHW: Tensor) -> Tensor:
        """The same images in the teacher's normalisation, size and precision."""
        if self.renormalises:
            images_BCHW = torch.addcmul(self.shift, images_BCHW, self.scale)
        if self.image_size not in (None, tuple(images_BCHW.shape[-2:])):
            images_BCHW = F.interpolate(images_BCHW, self.image_size, mode="bilinear", antialias=True)
        return images_BCHW.to(place_of(self.model)[1])


def _checked_precision(precision: Precision) -> Precision:
    if precision not in get_args(Precision):
        raise ConfigError(f"unknown teacher precision {precision!r}; {nearest(precision, get_args(Precision))}")
    return precision


def _folded(model: nn.Module, image_size: tuple[int, int] | None, names: Collection[str]) -> nn.Module:
    """A copy of a plain model with folded batch norms, except those whose folding would change the outputs of `names`.

    Raises:
        ModelError: the model accepts neither images of that size nor of its usual size, or a module gives no output.
    """
    height, width = image_size or (usual_image_size(model),) * 2
    size = (2, input_channels(model), height, width)
    noise_BCHW = torch.randn(size, generator=torch.Generator().manual_seed(0))
    folded = copy.deepcopy(model).eval()
    try:
        fold_batch_norms(folded, noise_BCHW, names)
    except ModelError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be run on images {size} to fold its batch norms ({error}); "
            "give image_size, or fold=False"
        ) from error
    return folded


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """One value for each channel, as (1, C, 1, 1) in float64. They are averaged for images of one channel."""
    per_channel = torch.tensor(values, dtype=torch.float64)
    if channels == 1:
        per_channel = per_channel.mean().reshape(1)
    return per_channel.view(1, -1, 1, 1)


def _class_count(model: nn.Module, label_map: LabelMap | None) -> int | None:
    return class_count(unwrap_model(model)) if label_map is None else len(label_map.groups)


def _check_classes(theirs: int | None, student: nn.Module) -> None:
    ours = class_count(student)
    if ours is not None and theirs is not None and ours != theirs:
        raise ModelError(
            f"teacher has {theirs} classes, the student {ours}; make both for the same dataset (num_classes)"
        )
