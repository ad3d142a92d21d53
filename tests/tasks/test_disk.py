from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from disk_kd import Cosine, DiSKTask, KDTask
from disk_kd.errors import ConfigError, ModelError
from disk_kd.helpers import HELPERS, exact_helper
from disk_kd.hints import Context, FitNetHint
from disk_kd.losses import budget_penalty, kd_loss, scaffolded_kl, scaffolded_nll, standardise
from disk_kd.models.staged import he_normal
from disk_kd.tasks import VARIANTS, HelpsExamples, Phase, StudentTask, StudentWrapper
from disk_kd.tasks.disk_help import ExactHelp

CLASSES = 12


def model(name: str = "cifar_resnet10_xxs", seed: int = 0) -> nn.Module:
    """A fresh model with weights so large that its outputs differ from image to image."""
    torch.manual_seed(seed)
    made = timm.create_model(name, num_classes=CLASSES)
    he_normal(made)
    return made


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(CLASSES, (size,), generator=generator)


def task(**settings: object) -> DiSKTask:
    return DiSKTask(model(), model("cifar_resnet10_xs", 1), **settings)


class Fixed(nn.Module):
    """A classifier that says the same of every batch."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.num_classes = logits.shape[1]
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def terms(t: DiSKTask) -> dict[str, float]:
    s = t.settings
    return {
        "top_k": s.top_k,
        "student_temperature": s.student_temperature,
        "teacher_temperature": s.teacher_temperature,
    }


def moved(module: nn.Module | None) -> bool:
    assert module is not None
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_three_lines_of_anyones_loop_lower_the_loss() -> None:
    t = task()
    optimizer = torch.optim.SGD(t.student.parameters(), lr=0.05)
    x, y = batch()
    losses = []
    for _ in range(15):
        loss = t(x, y)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_normalised_loss_is_its_formula() -> None:
    t = task(helper=0.3, student_temperature=2.0, teacher_temperature=3.0)
    x, y = batch()
    result = t(x, y)
    logits, teacher = result["output"], t.teacher(x)["logits"]
    scaffold = 6.0 * scaffolded_kl(logits, teacher, y, torch.full((16,), 0.3), **terms(t))
    assert torch.allclose(result["loss"], 0.1 * nn.functional.cross_entropy(logits, y) + 0.9 * scaffold)


def test_no_help_is_kd() -> None:
    t = task(helper=0.0, ce_weight=0.0, kd_weight=1.0)
    x, y = batch()
    result = t(x, y)
    kd = kd_loss(result["output"], t.teacher(x)["logits"], student_temperature=2.0, teacher_temperature=2.0)
    assert torch.allclose(result["loss"], kd, rtol=1e-5)


@pytest.mark.parametrize("variant", ["normalised", "paper"])
def test_standardised_logits_are_scaffolded_and_plain_ones_priced(variant: str) -> None:
    t = task(variant=variant, helper=0.3, standardise=True)
    x, y = batch()
    result = t(x, y)
    plain = (result["output"], t.teacher(x)["logits"])
    help_B = torch.full((16,), 0.3)
    if variant == "normalised":
        expected = 4.0 * scaffolded_kl(*map(standardise, plain), y, help_B, **terms(t))
        used = (help_B * nn.functional.cross_entropy(plain[0], y, reduction="none").clamp(max=5.0)).mean()
        assert torch.allclose(result["budget_used"], used)
    else:
        expected = scaffolded_nll(*map(standardise, plain), y, help_B, **terms(t))
    assert torch.allclose(result["scaffold_loss"], expected)


def test_the_exact_helper_of_standardised_logits_pays_the_plain_cross_entropy() -> None:
    y = batch()[1]
    logits, teacher = 5 * torch.randn(16, CLASSES), 5 * torch.randn(16, CLASSES)
    pair = (standardise(logits), standardise(teacher))
    about = terms(task())
    found = exact_helper(*pair, y, price=0.1, max_ce=5.0, priced_logits=logits, **about)
    cost_B = 0.1 * nn.functional.cross_entropy(logits, y, reduction="none").clamp(max=5.0)
    for index in range(16):
        row = [tensor[index : index + 1] for tensor in (*pair, y)]
        grid = torch.linspace(0, 1, 2001)
        values = [scaffolded_kl(*row, g[None], **about) + cost_B[index] * g for g in grid]
        assert abs(grid[torch.stack(values).argmin()] - found[index]) <= 1e-3
    assert (found != exact_helper(*pair, y, price=0.1, max_ce=5.0, **about)).any()


def test_paper_losses_are_their_formulas_phase_by_phase() -> None:
    t = task(variant="paper", budget=0.5, price=2.0)
    x, y = batch()
    t.set_phase("student")
    result = t(x, y)
    logits, outputs = result["output"], t.teacher(x)
    g = t.helper({"teacher_map": outputs["map"]}).detach()
    nll = scaffolded_nll(logits, outputs["logits"], y, g, weight=0.9, **terms(t))
    assert torch.allclose(result["loss"], 0.1 * nn.functional.cross_entropy(logits, y) + nll)

    t.set_phase("helper")
    result = t(x, y)
    logits = result["output"]
    g = t.helper({"teacher_map": outputs["map"]})
    penalty = budget_penalty(
        logits, outputs["logits"], y, g, budget=0.5, price=2.0, max_ce=5.0, top_k=t.settings.top_k, weight=0.9
    )
    nll = scaffolded_nll(logits, outputs["logits"], y, g, weight=0.9, **terms(t))
    assert torch.allclose(result["loss"], penalty + nll)


@pytest.mark.parametrize("helper", sorted(HELPERS))
@pytest.mark.parametrize("variant", ["normalised", "paper"])
def test_each_phase_trains_its_own_part(helper: str, variant: str) -> None:
    t = task(helper=helper, variant=variant, price=1.0, budget=0.0)
    x, y = batch()
    for phase, student, network in (("student", True, False), ("helper", False, True), (None, True, True)):
        t.set_phase(phase)
        t.zero_grad()
        t(x, y)["loss"].backward()
        assert (moved(t.student), moved(t.helper)) == (student, network), phase
        assert (t.student.training, t.helper.training) == (student, network), phase
        assert not t.teacher.training
        assert not moved(t.teacher)


def test_both_at_once_is_each_by_its_own_loss() -> None:
    x, y = batch()
    grads = {}
    for phase in ("student", "helper", None):
        torch.manual_seed(0)
        t = task(helper="teacher-pooled", price=1.0, price_rate=0.0)
        t.set_phase(phase)
        for module in t.modules():  # batch norm would differ by its mode between the phases
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        t(x, y)["loss"].backward()
        grads[phase] = ([p.grad for p in t.student.parameters()], [p.grad for p in t.helper.parameters()])
    for own, joint in zip(grads["student"][0], grads[None][0], strict=True):
        assert torch.allclose(own, joint, atol=1e-6)
    for own, joint in zip(grads["helper"][1], grads[None][1], strict=True):
        assert torch.allclose(own, joint, atol=1e-6)


def test_imagenet_form_moves_both_by_one_loss() -> None:
    t = task(variant="imagenet")
    assert [phase.name for phase in t.phases] == ["joint"]
    t.set_phase("joint")
    x, y = batch()
    t(x, y)["loss"].backward()
    assert moved(t.student)
    assert moved(t.helper)


def test_price_climbs_while_the_budget_is_exceeded_and_falls_to_zero_below_it() -> None:
    x, y = batch()
    over, under = task(budget=0.0, price_rate=0.5), task(budget=5.0, price_rate=0.5, price=1.0)
    first = over(x, y)
    assert over.price.item() == pytest.approx(0.5 * first["budget_used"].item())
    assert first["price"].item() == 0
    for _ in range(3):
        under(x, y)
    assert under.price.item() == 0


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_budget_is_met(share: float) -> None:
    x, y = batch(64)
    free = task(price_rate=0.0)
    free.student.eval()
    budget = share * free(x, y)["budget_used"].item()
    t = task(budget=budget)
    t.student.load_state_dict(free.student.state_dict())
    t.student.eval()
    for _ in range(300):
        used = t(x, y)["budget_used"].item()
    assert used == pytest.approx(budget, rel=0.01)


def test_the_relative_ascent_as_written_out() -> None:
    x, y = batch()
    over, under, none = task(budget=0.01), task(budget=1e3, price=1.0), task(budget=0.0, price=2.0)
    assert over(x, y)["budget_used"] > 0.11
    assert over.price.item() == pytest.approx(0.02 * 10)
    used = under(x, y)["budget_used"].item()
    assert under.price.item() == pytest.approx(1 + 0.02 * 2 * (used - 1e3) / 1e3)
    for _ in range(300):
        none(x, y)
    assert none.price.item() <= 1e6
    assert none(x, y)["budget_used"].item() == pytest.approx(0, abs=1e-6)


def test_a_batch_that_is_not_finite_moves_no_price() -> None:
    t = task(price=1.0, price_rate=0.5, budget=0.0)
    _, y = batch()
    t(torch.full((16, 3, 8, 8), torch.nan), y)
    assert t.price.item() == 1.0


def test_a_network_takes_the_plain_ascent() -> None:
    assert task(helper="teacher-pooled").settings.price_rate == 0.5
    assert task().settings.price_rate == "relative"
    with pytest.raises(ConfigError, match="price_rate relative is of the exact helper; the network teacher-pooled"):
        task(helper="teacher-pooled", price_rate="relative")
    with pytest.raises(ConfigError, match="price_rate must be a number not below 0, or relative, not 'quick'"):
        task(price_rate="quick")


def test_evaluation_moves_no_state() -> None:
    t = task(budget=0.0)
    x, y = batch()
    t.eval()
    t(x, y)
    t.train()
    with torch.no_grad():
        t(x, y)
    assert t.step.item() == 0
    assert t.price.item() == 0


@pytest.mark.parametrize("student_epochs", [1, 2, 3])
def test_an_alternation_keeps_the_schedules_of_the_round_s_beginning(student_epochs: int) -> None:
    t = task(helper="teacher-pooled", budget=Cosine(0.6, 0.4, 12), student_epochs=student_epochs, steps_per_epoch=2)
    x, y = batch()
    a_round = ["student"] * 2 * student_epochs + ["helper"] * 2
    times, seen = [0] * 3, []
    for phase in ["helper"] * 3 + a_round * 2 + ["student"] * 2:
        t.set_phase(phase)
        seen.append(t(x, y)["budget"].item())
    for number in (0, 1):
        times += [number * student_epochs] * len(a_round)
    times += [2 * student_epochs] * 2
    assert seen == pytest.approx([Cosine(0.6, 0.4, 12).at(torch.tensor(float(n))).item() for n in times])


@pytest.mark.parametrize(
    ("settings", "phase"),
    [
        ({"helper": "teacher-pooled"}, None),
        ({"variant": "imagenet"}, "joint"),
        ({"variant": "paper", "helper": 1.0}, "student"),
        ({}, "student"),
    ],
)
def test_without_an_alternation_the_schedules_go_on_by_the_step(settings: dict[str, Any], phase: str | None) -> None:
    t = task(budget=Cosine(0.6, 0.4, 4), steps_per_epoch=2, **settings)
    t.set_phase(phase)
    x, y = batch()
    seen = [t(x, y)["budget"].item() for _ in range(4)]
    assert seen == pytest.approx([Cosine(0.6, 0.4, 4).at(torch.tensor(n / 2)).item() for n in range(4)])


def test_state_is_in_the_state_dict_and_the_student_is_plain() -> None:
    t = task(helper="both-maps")
    assert {"step", "price"} <= t.state_dict().keys()
    assert list(t.student.state_dict()) == list(model().state_dict())


def test_stored_outputs_stand_in_for_the_teacher() -> None:
    x, y = batch()
    t = task()
    stored = t.teacher(x)
    t.train(False)
    online = t(x, y)["loss"]
    t.teacher = None
    assert torch.equal(t(x, y, stored)["loss"], online)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": -1}, "top_k must be at least 0, not -1"),
        ({"top_k": 0, "variant": "paper"}, "top_k must be at least 1, not 0"),
        ({"student_temperature": 0.0}, "student_temperature must be a positive number, not 0.0"),
        ({"teacher_temperature": float("nan")}, "teacher_temperature must be a positive number"),
        ({"helper": 1.5}, "a constant helper must be from 0 to 1, not 1.5"),
        ({"helper": "teacher-mop"}, "unknown helper 'teacher-mop'.*nearest: teacher-map"),
        ({"variant": "papers"}, "unknown variant 'papers' of DiSK; nearest: paper"),
        ({"variant": "paper", "helper": "exact"}, "the exact helper solves the normalised form"),
        ({"kd_weight": -1.0}, "kd_weight must be a number not below 0"),
        ({"budget": Cosine(0.5, -0.1, 3)}, "budget must be a number not below 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**settings)


def test_class_counts_must_agree() -> None:
    with pytest.raises(ModelError, match="teacher has 7 classes, the student 12"):
        DiSKTask(model(), timm.create_model("cifar_resnet10_xs", num_classes=7))


def test_a_student_is_not_its_own_teacher() -> None:
    same = model()
    with pytest.raises(ModelError, match="student and teacher are one model, which would be frozen"):
        DiSKTask(same, same)


def test_models_that_are_not_timms_do_for_logits() -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 20))

    t = DiSKTask(plain(), plain())
    x, y = batch()
    t(x, y)["loss"].backward()
    assert moved(t.student)
    with pytest.raises(ModelError, match="Sequential has no forward_features"):
        DiSKTask(plain(), plain(), helper="teacher-map")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_top_k_above_the_classes_means_all_of_them(variant: str) -> None:
    few = {"num_classes": 3}
    student, teacher = (timm.create_model(f"cifar_resnet10_{size}", **few) for size in ("xxs", "xs"))
    assert DiSKTask(student, teacher, variant=variant).settings.top_k == 3 < VARIANTS[variant].top_k
    found, whole = (task(variant=variant, top_k=k, helper=0.3) for k in (20, CLASSES))
    x, y = batch()
    assert torch.equal(found(x, y)["loss"], whole(x, y)["loss"])


def test_all_classes_as_support_take_any_top_k_that_means_them() -> None:
    assert task(support="all", top_k=20).settings.top_k == task(support="all").settings.top_k == CLASSES


@pytest.mark.parametrize(
    ("unit", "support"),
    [
        ("help", {}),
        ("examples", {}),
        ("ce", {"support": "outside-student"}),
        ("ce", {"support": "all"}),
        ("ce", {"support_mass": 0.8}),
        ("examples", {"top_k": 0}),
    ],
)
def test_the_budget_is_met_in_every_unit_and_support(unit: str, support: dict[str, Any]) -> None:
    budget = {"ce": 0.05, "help": 0.01, "examples": 0.3}[unit]
    t = task(budget=budget, budget_unit=unit, **support)
    x, y = batch(64)
    used = []
    t.train().student.eval()
    for _ in range(300):
        used.append(t(x, y)["budget_used"].item())
    free = task(budget=budget, budget_unit=unit, price_rate=0.0, **support)
    free.student.load_state_dict(t.student.state_dict())
    free.student.eval()
    assert free(x, y)["budget_used"] > budget
    assert sum(used[-100:]) / 100 == pytest.approx(budget, rel=0.05)


def test_a_little_help_on_many_classes_counts_as_a_helped_example() -> None:
    """On a thousand classes g = .001 halves every probability; it must not pass below a threshold unseen."""
    classes = 1000
    sure, half = torch.full((4, classes), -12.0), torch.full((4, classes), -12.0)
    sure[:, 0], half[:, 0] = 12.0, 7.0
    wanted = {"support": "all", "budget_unit": "examples", "budget": 0.1}
    t = DiSKTask(Fixed(sure), Fixed(half), top_k=classes, **wanted, student_temperature=1.0, teacher_temperature=1.0)
    first = t(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    assert 0 < first["helper_mean"] < 1e-3
    assert first["budget_used"] == 1


def test_the_released_fill_asks_for_whole_rows_of_the_teacher() -> None:
    assert task(variant="paper").top_logits == CLASSES
    assert task(variant="paper", fill="zero").top_logits == 10
    assert task().top_logits == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"support": "student"}, "unknown support 'student'; nearest"),
        ({"fill": "zero"}, "fill and against are of the released forms"),
        ({"support": "all", "top_k": 5}, "support all takes all 12 classes, not 5"),
        ({"support": "all", "variant": "paper"}, "are of the normalised form, not of paper"),
        ({"support": "outside-student", "support_mass": 0.5}, "support_mass applies to the teacher's top K"),
        ({"support_mass": 0.0}, "support_mass must be above 0 and at most 1, not 0"),
        ({"budget_unit": "nats"}, "unknown budget_unit 'nats'; valid: ce, help, examples"),
        ({"variant": "paper", "budget_unit": "help"}, "are of the normalised form, not of paper"),
        ({"helper": "teacher-pooled", "budget_unit": "examples"}, "a helper network has no gradient"),
    ],
)
def test_bad_supports_and_units_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**settings)


def test_a_task_that_derives_from_it_may_have_fewer_options() -> None:
    assert DiSKTask.with_defaults({"helper": None, "mine": None}) == {"helper": "exact", "mine": None}
    assert DiSKTask.with_defaults({"variant": "paper", "budget": 0.3})["budget"] == 0.3


class Half(DiSKTask):
    """Half of the help, and a price that does not move."""

    def adjust_help(self, helper_B: Tensor, logits_BC: Tensor, target: Tensor, teacher: Mapping[str, Tensor]) -> Tensor:
        assert logits_BC.shape == teacher["logits"].shape == (len(target), CLASSES)
        return helper_B / 2

    def update_price(self, used: Tensor, budget: Tensor) -> None:
        self.overspent = bool(used > budget)


def test_a_subclass_changes_the_help_and_the_price() -> None:
    x, y = batch()
    plain, half = task(), Half(model(), model("cifar_resnet10_xs", 1))
    ours, theirs = plain(x, y), half(x, y)
    assert ours["helper_mean"] > 0
    assert torch.allclose(theirs["helper_mean"], ours["helper_mean"] / 2)
    assert theirs["scaffold_loss"] > ours["scaffold_loss"]
    assert half.overspent
    assert (half.price, plain.price > 0) == (0, True)


@pytest.mark.parametrize("unit", ["ce", "help", "examples"])
def test_all_that_is_logged_beside_losses_is_declared(unit: str) -> None:
    result = task(budget_unit=unit)(*batch())
    declared = {quantity.name: quantity for quantity in DiSKTask.quantities({"budget_unit": unit})}
    assert declared.keys() == {name for name in result if not name.endswith("loss")} - {"output"}
    assert declared["budget"].unit == declared["budget_used"].unit
    assert len({DiSKTask.quantities({"budget_unit": each})[0].unit for each in ("ce", "help", "examples")}) == 3


def test_a_constant_helper_has_no_budget_to_meet() -> None:
    declared = {quantity.name: quantity for quantity in DiSKTask.quantities({"helper": 0.1})}
    assert "budget" not in declared
    assert declared["budget_used"].limit is None
    assert DiSKTask.quantities({"helper": "exact"})[1].limit == "budget"


def test_the_help_of_examples_has_the_settings_of_the_task() -> None:
    assert isinstance(task(), HelpsExamples)
    assert not issubclass(KDTask, HelpsExamples)
    t = task(top_k=3, budget_unit="help", support_mass=0.9, standardise=True, student_temperature=3.0)
    found = t.example_help({"price": 0.5})
    assert found == ExactHelp(3, 3.0, 2.0, 5.0, price=0.5, unit="help", mass=0.9, standardise=True)
    assert t.example_help({"price": 0.5}, price=0.1).price == 0.1
    assert task(support="all").example_help({"price": None}).top_k == CLASSES  # type: ignore[dict-item]
    assert task(helper=0.5).example_help({"price": 0.5}).price == 0
    x, y = batch()
    t = task(price=0.02, price_rate=0.0)
    with torch.no_grad():
        student_BC, teacher_BC = t.student(x), t.teacher_outputs(x, None)["logits"]
    helper_B = t.example_help({"price": 0.02})(student_BC, teacher_BC, y)
    assert torch.allclose(helper_B.mean(), t(x, y)["helper_mean"])


class Extra(StudentWrapper):
    """A method's own module beside the student."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student, self.extra = student, nn.Linear(2, 2)

    def forward(self, *inputs: Any) -> Any:
        return self.student(*inputs)


def test_the_plain_student_is_found_in_any_wrapper() -> None:
    t = KDTask(model(), model("cifar_resnet10_xs", 1))
    student = t.student
    t.trainable_module = Extra(Extra(student))
    assert t.student is t.learner is t.get_eval_model() is student
    context = Context(student, t.teacher.model, 3, 8, 8)  # type: ignore[union-attr]
    t.add_hint(FitNetHint(context))
    assert t.student is student
    assert t.learner is t.trainable_module.student.student
    assert t.hint is not None
    assert t(*batch())["hint_loss"] > 0


def test_a_phase_that_fixes_the_student_is_declared() -> None:
    class Alternating(StudentTask):
        def __init__(self, student: nn.Module) -> None:
            super().__init__(student, phases=(Phase("student"), Phase("other", "student", trains_student=False)))

    with pytest.raises(ConfigError, match="the phase other leaves the student fixed; add its name to fixed_student_ph"):
        Alternating(model())
    Alternating.fixed_student_phases = frozenset({"other"})
    assert Alternating(model()).phases[1].name == "other"
