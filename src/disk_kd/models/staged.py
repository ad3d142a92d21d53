"""A network as a chain of named stages, with the interface of a timm model: what the families of the benchmark share.

A family builds its stages under the names its checkpoints have; `StagedNet` runs them in order, reads their
maps, and puts pooling and a linear classifier behind them.

Shapes: B batch, C channels of the image, D channels of a map, H and W its height and width, R its reduction,
K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg
from torch import Tensor, nn
from torch.nn import functional as F

from disk_kd.errors import ModelError

CIFAR100_MEAN = (129.3 / 255, 124.1 / 255, 112.4 / 255)
CIFAR100_STD = (68.2 / 255, 65.4 / 255, 70.4 / 255)


@dataclass(frozen=True)
class Stage:
    """A part of the chain, whose last module gives a map that others may read.

    Args:
        modules: by name, in the order they run; a dot in a name leads into an `nn.Sequential`.
        num_chs: D, channels of the map.
        reduction: R, how many times smaller than the image the map is.
    """

    modules: dict[str, nn.Module]
    num_chs: int
    reduction: int


def he_normal(model: nn.Module) -> None:
    """Draw convolutions from He's normal (fan out), biases zero; BatchNorm and classifier keep torch's defaults."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class StagedNet(nn.Module):
    """A chain of stages and a linear classifier, with the interface of a timm model.

    Args:
        stages: the chain, in order; `feature_info` tells their maps.
        classifier: name of the linear layer, as a name in `Stage.modules`.
        final: run after the stages, to widen the map that is pooled; no map for others, as timm's ``conv_head``.
        num_classes: K; 0 leaves the classifier out, so the model returns pooled features.
        in_chans: C, channels of the image, for which the stages were built.
        global_pool: timm's pooling name (``avg``, ``max``, ``avgmax``, ``catavgmax``); empty for none.
        drop_rate: dropout before the classifier.
        init: draws the weights of the whole model; None: they stay as torch drew them.
    """

    map_output = "last"
    """The output that helpers read as the map: the released helpers of these networks read the last one."""

    def __init__(
        self,
        stages: Sequence[Stage],
        classifier: str,
        final: Stage | None = None,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        init: Callable[[nn.Module], None] | None = he_normal,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        chain = [*stages, final] if final else [*stages]
        for stage in chain:
            for name, module in stage.modules.items():
                _put(self, name, module)
        # Names, not modules: a module may be replaced, as folding does with batch norms.
        self._chain = [list(stage.modules) for stage in chain]
        self._classifier = classifier
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": stage.num_chs, "reduction": stage.reduction, "module": list(stage.modules)[-1]}
            for stage in stages
        ]
        self.num_features = chain[-1].num_chs
        self._new_head(global_pool)
        if init is not None:
            init(self)

    def _new_head(self, global_pool: str, **place: Any) -> None:
        self.global_pool, classifier = create_classifier(
            self.num_features, self.num_classes, pool_type=global_pool, **place
        )
        _put(self, self._classifier, classifier)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def _forward_maps(
        self, x: Tensor, taken: Collection[int] = (), last: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the map of stage `last` (None: after the whole chain), and those of the stages in `taken`."""
        maps = []
        for index, names in enumerate(self._chain if last is None else self._chain[: last + 1]):
            for name in names:
                x = self._run(self.get_submodule(name), x)
            if index in taken:
                maps.append(x)
        return x, maps

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = module(x)
        return output

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to the map (B, D, H / R, W / R) that is pooled."""
        return self._forward_maps(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map that map to logits (B, K), or with `pre_logits` to pooled features (B, D)."""
        x = self.global_pool(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return what `forward_features` gives and the maps at `indices` of `feature_info` (timm's protocol).

        Args:
            x: images (B, C, H, W).
            indices: an int takes the last maps, a list picks them, None takes all.
            norm: without effect, there is no final norm.
            stop_early: leave out what comes after the last map asked for, and return that map in its place.
            output_fmt: ``NCHW``, the only layout there is.
            intermediates_only: return the list of maps alone.

        Raises:
            ModelError: another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"output_fmt must be 'NCHW' for a {type(self).__name__}, not {output_fmt!r}")
        every = range(len(self.feature_info))
        if indices is None or isinstance(indices, int):
            indices = list(every[-(indices or len(every)) :])
        taken = {every[index] for index in indices}
        x, maps = self._forward_maps(x, taken, last=max(taken) if stop_early else None)
        return maps if intermediates_only else (x, maps)

    def get_classifier(self) -> nn.Module:
        """Return the classifier: a linear layer, or the identity when `num_classes` is 0."""
        return self.get_submodule(self._classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new classifier of `num_classes` (0: none); `global_pool` None keeps the pooling."""
        self.num_classes = num_classes
        self._new_head(self.global_pool.pool_type if global_pool is None else global_pool, **get_device_dtype(self))
        self.global_pool.train(self.training)
        self.get_classifier().train(self.training)


def build(
    name: str, pretrained: bool, stages: Sequence[Stage], classifier: str, in_chans: int, **kwargs: Any
) -> StagedNet:
    """Build a registered model of these stages, made for `in_chans`; `kwargs` are those of `StagedNet` and timm's."""
    # Without flattening, timm's feature lists know children alone, not the "blocks.0" of a Sequential.
    nested = any("." in list(stage.modules)[-1] for stage in stages)
    feature_cfg = {"out_indices": tuple(range(len(stages))), "flatten_sequential": nested}
    return build_model_with_cfg(
        StagedNet,
        name,
        pretrained,
        feature_cfg=feature_cfg,
        stages=stages,
        classifier=classifier,
        in_chans=in_chans,
        **kwargs,
    )


def cifar_cfg(first_conv: str, classifier: str, map_size: int, paper: str) -> dict[str, Any]:
    """Return timm's configuration of a model for CIFAR-100's images, whose last map is `map_size` high and wide.

    It has no url and no hub id: with ``pretrained=True`` timm raises instead of leaving weights random.
    """
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (map_size, map_size),
        "crop_pct": 1.0,
        "mean": CIFAR100_MEAN,
        "std": CIFAR100_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        "paper_ids": paper,
    }


def conv(in_chs: int, out_chs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution before a BatchNorm: no bias, and padded so that only the stride makes the map smaller."""
    return nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)


def _put(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Add or replace a module; those on the way to it that are missing become an `nn.Sequential`."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(owner, parent):
            owner.add_module(parent, nn.Sequential())
        owner = owner.get_submodule(parent)
    owner.add_module(last, module)
