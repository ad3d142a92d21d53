"""Settings of DiSK: what each variant starts from, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from disk_kd.errors import ConfigError, nearest
from disk_kd.helpers import HELPERS
from disk_kd.tasks.checks import non_negative, positive
from disk_kd.tasks.schedule import Cosine


@dataclass(frozen=True)
class DiSKSettings:
    """What a variant of DiSK starts from; the fields are keywords of `DiSKTask`."""

    helper: float | str
    top_k: int
    student_temperature: float
    teacher_temperature: float
    kd_weight: float
    ce_weight: float
    budget: float | Cosine
    price: float | Cosine
    price_rate: float | Literal["relative"]
    max_ce: float


NETWORK_PRICE_RATE = 0.5
"""The normalised form's `price_rate` where a network, which follows the price slowly, gives the help."""

VARIANTS = {
    "normalised": DiSKSettings(
        helper="exact",
        top_k=10,
        student_temperature=2.0,
        teacher_temperature=2.0,
        kd_weight=0.9,
        ce_weight=0.1,
        budget=0.003,
        price=0.0,
        price_rate="relative",
        max_ce=5.0,
    ),
    "paper": DiSKSettings(
        helper="teacher-map",
        top_k=10,
        student_temperature=3.5,
        teacher_temperature=4.0,
        kd_weight=0.9,
        ce_weight=0.1,
        budget=Cosine(0.6, 0.4, period=60),
        price=Cosine(1.0, 5.0, period=150),
        price_rate=0.0,
        max_ce=5.0,
    ),
    "imagenet": DiSKSettings(
        helper="teacher-pooled-deep",
        top_k=20,
        student_temperature=1.0,
        teacher_temperature=1.0,
        kd_weight=0.5,
        ce_weight=0.5,
        budget=0.2,
        price=Cosine(0.1, 0.5, period=30),
        price_rate=0.0,
        max_ce=2.0,
    ),
}
"""This project's form, and the release's for CIFAR and for ImageNet. Periods are in student epochs."""


def disk_settings(variant: str, classes: int | None, **given: Any) -> DiSKSettings:
    """The variant's settings with the given ones in their place, checked.

    Args:
        variant: a key of `VARIANTS`.
        classes: how many there are; None where neither model says, and the losses check `top_k` later.
        given: settings by name; None stands for the variant's own. A `top_k` above the classes means all of them.

    Raises:
        ConfigError: as `DiSKTask`.
    """
    start = _start(variant, given["helper"])
    settings = replace(start, **{name: value for name, value in given.items() if value is not None})
    if classes is not None:
        settings = replace(settings, top_k=min(settings.top_k, classes))
    least = 0 if variant == "normalised" else 1
    if settings.top_k < least:
        raise ConfigError(f"top_k must be at least {least}, not {settings.top_k}")
    for name in ("student_temperature", "teacher_temperature", "max_ce"):
        positive(name, getattr(settings, name))
    for name in ("kd_weight", "ce_weight"):
        non_negative(name, getattr(settings, name))
    for name in ("budget", "price"):
        value = getattr(settings, name)
        for end in (value.start, value.end) if isinstance(value, Cosine) else (value,):
            non_negative(name, end)
    _check_helper(settings.helper, variant)
    _check_price_rate(settings)
    return settings


def variant_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """The variant's values of the settings that `options`, of a task or of one that derives from it, leave at None.

    `top_k` may stay None, and `price_rate` too in a task that has no option to say its helper.
    """
    start = _start(options.get("variant", "normalised"), options.get("helper"))
    names = {field.name for field in fields(start)} - {"top_k"}
    if "helper" not in options:
        names.remove("price_rate")
    return {name: getattr(start, name) for name in names & options.keys() if options[name] is None}


def _start(variant: str, helper: float | str | None) -> DiSKSettings:
    if variant not in VARIANTS:
        raise ConfigError(f"unknown variant {variant!r} of DiSK; {nearest(variant, VARIANTS)}")
    start = VARIANTS[variant]
    if variant == "normalised" and helper in HELPERS:
        return replace(start, price_rate=NETWORK_PRICE_RATE)
    return start


def _check_price_rate(settings: DiSKSettings) -> None:
    if settings.price_rate == "relative":
        if settings.helper in HELPERS:
            raise ConfigError(
                f"price_rate relative is of the exact helper; the network {settings.helper} takes a number"
            )
    elif isinstance(settings.price_rate, str):
        raise ConfigError(f"price_rate must be a number not below 0, or relative, not {settings.price_rate!r}")
    else:
        non_negative("price_rate", settings.price_rate)


def _check_helper(helper: float | str, variant: str) -> None:
    if isinstance(helper, str):
        if helper not in {"exact", *HELPERS}:
            valid = nearest(helper, ["exact", *HELPERS])
            raise ConfigError(f"unknown helper {helper!r}: give a constant from 0 to 1, or a name; {valid}")
        if helper == "exact" and variant != "normalised":
            raise ConfigError(
                f"the exact helper solves the normalised form; variant {variant!r} takes a network or a constant"
            )
    elif not 0 <= helper <= 1:
        raise ConfigError(f"a constant helper must be from 0 to 1, not {helper}")
