"""The frozen teacher: what it sees, what it gives, what never changes in it."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disk_kd.errors import ConfigError, ModelError
from disk_kd.teacher import Teacher
from disk_kd.teacher.hashing import weights_hash

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

ALL = ("logits", "pooled", "map")


class Classifier(nn.Module):
    """A model that is not timm's: logits from the mean colour, which it keeps to be looked at."""

    def __init__(self, cfg: dict | None = None, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = 4
        self.conv = nn.Conv2d(in_chans, 4, 1)
        if cfg is not None:
            self.pretrained_cfg = cfg

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.conv(x).mean((2, 3))


def pixels(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor, mean: tuple, std: tuple) -> Tensor:
    return (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


@pytest.fixture
def model() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=5)


def test_it_stays_in_eval_mode_without_gradients(model: nn.Module) -> None:
    teacher = Teacher.of(model.train(), model, needs=ALL)
    task = nn.ModuleDict({"teacher": teacher, "other": nn.Dropout()}).train()
    assert task["other"].training
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = teacher(pixels(size=32).requires_grad_())
    assert not any(output.requires_grad or output.is_inference() for output in outputs.values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_gives_exactly_what_is_needed_in_one_epoch(model: nn.Module) -> None:
    epochs: list[int] = []
    model.conv1[0].register_forward_hook(lambda *_: epochs.append(1))
    images = pixels(size=32)
    teacher = Teacher.of(model, model, needs=ALL)
    outputs = teacher(images)
    assert len(epochs) == 1
    features = model.forward_features(images)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "logits": (2, 5),
        "pooled": (2, 96),
        "map": (2, 192, *outputs["map"].shape[2:]),
    }
    torch.testing.assert_close(outputs["logits"], model(images), rtol=0, atol=0)
    torch.testing.assert_close(outputs["pooled"], model.forward_head(features, pre_logits=True), rtol=0, atol=0)
    for needs in ({"logits"}, {"pooled"}, {"map"}, {"pooled", "map"}):
        alone = Teacher.of(model, model, needs=needs)(images)
        assert alone.keys() == needs
        for name in needs:
            torch.testing.assert_close(alone[name], outputs[name], rtol=0, atol=0)


def test_a_helper_can_learn_from_its_map(model: nn.Module) -> None:
    helper = nn.Conv2d(192, 1, 1)
    helper(Teacher.of(model, model, needs={"map"})(pixels(size=32))["map"]).sum().backward()
    assert helper.weight.grad.abs().sum() > 0


def test_it_sees_the_same_picture_in_its_own_normalisation() -> None:
    model = Classifier({"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)})
    student = Classifier({"mean": MEAN, "std": STD})
    image = pixels()
    Teacher.of(model, student)(normalised(image, MEAN, STD))
    torch.testing.assert_close(model.seen, normalised(image, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))


def test_equal_normalisation_leaves_the_images_alone() -> None:
    model = Classifier({"mean": MEAN, "std": STD})
    image = pixels()
    Teacher(model, input_mean=MEAN, input_std=STD)(image)
    assert model.seen is image


def test_grey_images_take_the_mean_of_three_channels() -> None:
    model = Classifier({"mean": (0.1, 0.2, 0.6), "std": (0.5, 0.6, 0.7)}, in_chans=1)
    image = pixels(channels=1)
    Teacher(model, input_mean=(0.5,), input_std=(0.25,))(normalised(image, (0.5,), (0.25,)))
    assert model.seen.shape == image.shape
    torch.testing.assert_close(model.seen, normalised(image, (0.3,), (0.6,)))


@pytest.mark.parametrize(("student_cfg", "teacher_cfg"), [(None, {"mean": MEAN, "std": STD}), (None, None)])
def test_without_a_students_word_images_come_as_the_teacher_wants(
    student_cfg: dict | None, teacher_cfg: dict | None
) -> None:
    model = Classifier(teacher_cfg)
    image = pixels()
    Teacher.of(model, Classifier(student_cfg))(image)
    assert model.seen is image


def test_without_a_teachers_word_the_students_normalisation_holds() -> None:
    model = Classifier()
    image = pixels()
    teacher = Teacher.of(model, Classifier({"mean": MEAN, "std": STD}))
    teacher(image)
    assert model.seen is image
    assert teacher.mean == MEAN


@pytest.mark.parametrize("size", [4, 16])
def test_it_sees_its_own_resolution(size: int) -> None:
    model = Classifier()
    image = pixels()
    Teacher.of(model, model, image_size=size)(image)
    expected = F.interpolate(image, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.seen, expected, rtol=0, atol=0)
    Teacher.of(model, model, image_size=8)(image)
    assert model.seen is image


def test_a_transformer_of_one_size_sees_that_size() -> None:
    vit = timm.create_model("test_vit", img_size=48, num_classes=5, dynamic_img_size=False)
    teacher = Teacher.of(vit, vit, needs=ALL)
    outputs = teacher(pixels(size=32))
    assert teacher.image_size == (48, 48)
    assert outputs["map"].shape == (2, 64, 3, 3)


def test_a_teacher_keeps_its_settings_when_it_meets_another_method(model: nn.Module) -> None:
    first = Teacher(model, input_mean=MEAN, input_std=STD, image_size=24)
    second = Teacher.of(first, model, needs={"logits", "map"})
    assert (second.input_mean, second.input_std, second.image_size) == (MEAN, STD, (24, 24))
    images = pixels(size=32)
    torch.testing.assert_close(second(images)["logits"], first(images)["logits"], rtol=0, atol=0)
    assert second(images).keys() == {"logits", "map"}
    assert second.model is model


def test_outputs_are_float32_whatever_the_model_computes_in(model: nn.Module) -> None:
    images = pixels(size=32)
    exact = Teacher.of(model, model)(images)["logits"]
    half = Teacher.of(copy.deepcopy(model).to(torch.bfloat16), model, needs=ALL)(images)
    assert {output.dtype for output in half.values()} == {torch.float32}
    torch.testing.assert_close(half["logits"], exact, rtol=0.1, atol=0.1)


def test_channels_last_stays(model: nn.Module) -> None:
    teacher = Teacher(Classifier({"mean": (0.0,) * 3, "std": (1.0,) * 3}), input_mean=MEAN, input_std=STD)
    teacher(pixels().to(memory_format=torch.channels_last))
    assert teacher.model.seen.is_contiguous(memory_format=torch.channels_last)


def test_a_copy_works_alone_and_buffers_stay_out_of_the_state(model: nn.Module) -> None:
    teacher = Teacher(model, input_mean=MEAN, input_std=STD, needs=ALL)
    images = pixels(size=32)
    torch.testing.assert_close(copy.deepcopy(teacher)(images), teacher(images), rtol=0, atol=0)
    assert teacher.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16", "fold": True}])
@pytest.mark.parametrize("needs", [{"logits"}, set(ALL)])
def test_it_compiles(model: nn.Module, needs: set[str], settings: dict) -> None:
    teacher = Teacher(model, input_mean=MEAN, input_std=STD, needs=needs, **settings)
    images = pixels(size=32)
    compiled = torch.compile(teacher, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), teacher(images), rtol=0, atol=0)


def test_teacher_and_student_must_have_the_same_classes(model: nn.Module) -> None:
    student = timm.create_model("test_resnet", num_classes=100)
    for teacher in (model, Teacher.of(model, model)):
        with pytest.raises(ModelError, match="teacher has 5 classes, the student 100"):
            Teacher.of(teacher, student)


@pytest.fixture
def trained(model: nn.Module) -> nn.Module:
    """The model with norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for norm in norms(model):
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return model.train()


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_folding_keeps_outputs_and_leaves_the_callers_model_alone(trained: nn.Module) -> None:
    state = copy.deepcopy(trained.state_dict())
    folded = Teacher.of(trained, trained, needs=ALL, fold=True)
    assert not norms(folded)
    assert not folded.model.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert trained.training
    assert len(norms(trained)) == 15
    assert all(p.requires_grad for p in trained.parameters())
    assert trained.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    images = pixels(size=32)
    expected = Teacher.of(copy.deepcopy(trained), trained, needs=ALL)(images)
    for name, output in folded(images).items():
        torch.testing.assert_close(output, expected[name], rtol=0, atol=1e-5 * float(expected[name].abs().max()))


def test_a_folded_teacher_knows_the_weights_it_was_given(trained: nn.Module) -> None:
    given = weights_hash(trained)
    assert Teacher.of(trained, trained).weights_sha256 == given
    folded = Teacher.of(trained, trained, fold=True)
    assert folded.weights_sha256 == given != weights_hash(folded.model)
    assert Teacher.of(torch.compile(trained, backend="eager"), trained, fold=True).weights_sha256 == given
    for fold in (False, True):
        again = Teacher.of(folded, trained, needs={"map"}, fold=fold)
        assert again.model is folded.model
        assert again.weights_sha256 == given


def test_an_existing_teacher_can_be_folded_later(trained: nn.Module) -> None:
    first = Teacher.of(trained, trained)
    later = Teacher.of(first, trained, fold=True)
    assert norms(first.model)
    assert not norms(later.model)
    assert later.weights_sha256 == first.weights_sha256


def test_a_folded_teacher_gives_what_modules_gave_before(trained: nn.Module) -> None:
    needs, images = {"logits", "conv1.0", "bn1", "layer2.0.conv2", "stage1"}, pixels(size=32)
    expected = Teacher.of(copy.deepcopy(trained), trained, needs=needs)(images)
    first = Teacher.of(trained, trained, fold=True)
    for folded in (Teacher.of(trained, trained, needs=needs, fold=True), Teacher.of(first, trained, needs=needs)):
        assert 0 < len(norms(folded)) < len(norms(trained))
        assert folded.weights_sha256 == first.weights_sha256
        for name, output in folded(images).items():
            torch.testing.assert_close(output, expected[name], rtol=0, atol=1e-5 * float(expected[name].abs().max()))


def test_a_teacher_made_of_a_folded_one_refuses_further_modules(trained: nn.Module) -> None:
    second = Teacher.of(Teacher.of(trained, trained, fold=True), trained, needs={"logits", "layer1"})
    assert Teacher.of(second, trained, needs={"layer1", "stage1"}).model is second.model
    with pytest.raises(ModelError, match="batch norms are folded, and layer2 may give another output then; give the"):
        Teacher.of(second, trained, needs={"layer1", "layer2"})


def test_folding_says_what_size_it_tried() -> None:
    vit_like = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    with pytest.raises(ModelError, match=r"Sequential cannot be run on images \(2, 3, 32, 32\) .* give image_size"):
        Teacher(vit_like, input_mean=MEAN, input_std=STD, fold=True)
    assert not norms(Teacher(vit_like, input_mean=MEAN, input_std=STD, fold=True, image_size=8))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_is_what_the_model_computes_in(precision: str, dtype: torch.dtype, model: nn.Module) -> None:
    computed = []
    model.conv1[0].register_forward_hook(lambda module, args, output: computed.append(output.dtype))
    images = pixels(size=32)
    exact = Teacher.of(model, model, needs=ALL)(images)
    teacher = Teacher.of(model, model, needs=ALL, precision=precision)
    outputs = teacher(images)
    assert computed == [torch.float32, dtype]
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert {output.dtype for output in outputs.values()} == {torch.float32}
    for name, output in outputs.items():
        torch.testing.assert_close(output, exact[name], rtol=0, atol=0.05 * float(exact[name].abs().max()))
    assert Teacher.of(teacher, model).precision == precision
    assert Teacher.of(teacher, model, precision="fp32").precision == "fp32"


def test_precision_holds_under_the_autocast_of_a_step(model: nn.Module) -> None:
    images = pixels(size=32)
    teacher = Teacher.of(model, model)
    with torch.autocast("cpu", torch.bfloat16):
        within = teacher(images)["logits"]
    torch.testing.assert_close(within, teacher(images)["logits"], rtol=0, atol=0)


def test_an_unknown_precision_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="unknown teacher precision 'fp23'; nearest: fp32"):
        Teacher.of(model, model, precision="fp23")


def test_an_unknown_output_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="ResNet has no output or module 'maps'; give pooled, last, map, stage0"):
        Teacher.of(model, model, needs={"maps"})


@pytest.mark.parametrize("need", ["pooled", "map"])
def test_a_model_that_cannot_give_an_output_is_refused_at_once(need: str) -> None:
    with pytest.raises(ModelError, match=f"Classifier has no forward_features .* its {need} output"):
        Teacher.of(Classifier(), Classifier(), needs={need})
