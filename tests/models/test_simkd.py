"""SimKD's student: its parts, what trains, what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from disk_kd.errors import ConfigError, ModelError
from disk_kd.losses.simkd import simkd_loss
from disk_kd.models import multiply_adds
from disk_kd.models.simkd import SimKDStudent
from disk_kd.teacher import Teacher
from disk_kd.teacher.features import forward_with_features

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plain(name: str = "cifar_resnet10_xxs", classes: int = 5, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=classes, **options)


def simkd(student: nn.Module | None = None, teacher: nn.Module | None = None, factor: int = 2) -> SimKDStudent:
    return SimKDStudent(student or plain(), teacher or plain("cifar_resnet10_xs"), factor)


class Strided(nn.Module):
    """As little of a timm model as SimKD reads: one strided convolution."""

    def __init__(self, stride: int, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride, padding=1)
        self.fc: nn.Module = nn.Linear(channels, classes)
        self.num_features, self.num_classes = channels, classes
        self.feature_info = [{"num_chs": channels, "reduction": stride, "module": "conv"}]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.fc, self.num_classes = nn.Identity(), num_classes


def test_logits_are_the_teachers_classifier_of_the_averaged_projection() -> None:
    teacher = plain("cifar_resnet10_xs")
    model = simkd(teacher=teacher).eval()
    logits_BK, projected_BCHW = model.forward_with_projection(X)
    assert projected_BCHW.shape == (4, 32, 4, 4)
    assert (projected_BCHW >= 0).all()
    assert torch.equal(logits_BK, teacher.get_classifier()(projected_BCHW.mean((2, 3))))
    assert torch.equal(logits_BK, model(X))
    assert torch.equal(model.forward_head(projected_BCHW, pre_logits=True), projected_BCHW.mean((2, 3)))


def test_perfect_projection_gives_the_teachers_logits() -> None:
    """The paper's claim: aligned features make the student as good as the teacher."""
    teacher = plain("cifar_resnet10_xs").eval()
    model = simkd(teacher=teacher).eval()
    map_BCHW = teacher.forward_features(X)
    torch.testing.assert_close(model.forward_head(map_BCHW), teacher(X))
    assert simkd_loss(map_BCHW, map_BCHW) == 0


@pytest.mark.parametrize(("factor", "inner"), [(1, 32), (2, 16), (3, 10), (32, 1)])
def test_projector_is_the_papers_bottleneck(factor: int, inner: int) -> None:
    convolutions = [layer for layer in simkd(factor=factor).projector if isinstance(layer, nn.Conv2d)]
    shapes = [tuple(conv.weight.shape) for conv in convolutions]
    assert shapes == [(inner, 16, 1, 1), (inner, inner, 3, 3), (32, inner, 1, 1)]
    assert all(conv.bias is None for conv in convolutions)


def test_only_student_and_projector_train() -> None:
    teacher = plain("cifar_resnet10_xs")
    model = simkd(teacher=teacher).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    logits_BK, projected_BCHW = model.forward_with_projection(X)
    with torch.no_grad():
        map_BCHW = teacher.eval().forward_features(X)
    (simkd_loss(projected_BCHW, map_BCHW) + logits_BK.square().mean()).backward()
    optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("classifier."), name
    assert teacher.get_classifier().weight.requires_grad
    assert model.classifier.weight.data_ptr() != teacher.get_classifier().weight.data_ptr()


def test_steps_of_sgd_lower_the_loss() -> None:
    teacher = plain("cifar_resnet10_xs").eval()
    model = simkd(teacher=teacher).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(30):
        losses.append(simkd_loss(model.forward_features(X), teacher.forward_features(X)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_added_cost_is_that_of_the_parts() -> None:
    """Projector 1x1 16-16, 3x3 16-16, 1x1 16-32 at 4x4 places; classifier 32-5 for the student's own 16-5."""
    model = simkd()
    weights = 16 * 16 + 9 * 16 * 16 + 16 * 32
    norms = 2 * (16 + 16 + 32)
    assert model.added_cost() == {
        "parameters": weights + norms + (32 * 5 + 5) - (16 * 5 + 5),
        "multiply_adds": 16 * weights + 32 * 5 - 16 * 5,
    }
    assert model.added_cost((3, 64, 64))["multiply_adds"] == 64 * weights + 32 * 5 - 16 * 5


def test_added_cost_is_the_difference_to_the_plain_student() -> None:
    student, model = plain(), simkd()
    added = model.added_cost()
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, student)]
    costs = [multiply_adds(each, (3, 32, 32)) for each in (model, student)]
    assert added == {"parameters": sizes[0] - sizes[1], "multiply_adds": costs[0] - costs[1]}


def test_larger_student_map_is_averaged_down_and_smaller_one_left() -> None:
    large, small = Strided(4, 6), Strided(8, 7)
    assert simkd(large, Strided(8, 7)).forward_features(X).shape == (4, 7, 4, 4)
    assert simkd(small, Strided(4, 6)).forward_features(X).shape == (4, 6, 4, 4)
    model = simkd(Strided(4, 6), Strided(8, 7)).eval()
    map_BCHW = F.avg_pool2d(model.student.forward_features(X), 2)
    torch.testing.assert_close(model.forward_features(X), model.projector(map_BCHW))
    assert model.forward_features(X[:, :, :4, :4]).shape == (4, 7, 1, 1)


def test_is_a_timm_model_to_others() -> None:
    student = plain()
    cfg, channels = student.pretrained_cfg, [info["num_chs"] for info in student.feature_info]
    model = simkd(student).eval()
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (5, 32, 32)
    assert model.pretrained_cfg is cfg
    assert [info["num_chs"] for info in model.feature_info] == channels
    found = forward_with_features(model, X, ("logits", "map"))
    logits_BK = found["logits"]
    assert torch.equal(logits_BK, model(X))
    assert torch.equal(found["map"], model.student.forward_intermediates(X, [-2], intermediates_only=True)[0])
    outputs = Teacher.of(model, plain(), {"logits", "pooled"})(X)
    assert torch.equal(outputs["logits"], logits_BK)


def test_state_loads_into_one_built_anew() -> None:
    torch.manual_seed(1)
    trained, anew = simkd(), simkd(teacher=timm.create_model("cifar_resnet10_xs", num_classes=5))
    trained.train()(X)
    anew.load_state_dict(trained.state_dict())
    assert torch.equal(anew.eval()(X), trained.eval()(X))


def test_takes_the_students_type_and_leaves_the_teacher() -> None:
    teacher = plain("cifar_resnet10_xs").train()
    model = simkd(plain().double(), teacher)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model(X.double()).dtype == torch.float64
    assert teacher.training
    assert teacher.linear.weight.dtype == torch.float32


def test_timms_own_models_fit() -> None:
    model = simkd(plain("resnet10t"), plain("resnet18")).eval()
    assert model(X).shape == (4, 5)


def test_compiles_without_a_graph_break() -> None:
    model = simkd().eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.parametrize("factor", [0, 33])
def test_refuses_factor(factor: int) -> None:
    with pytest.raises(ConfigError, match=f"factor must be from 1 to the teacher's 32 channels, got {factor}"):
        simkd(factor=factor)


def test_refuses_other_classes() -> None:
    with pytest.raises(ModelError, match="teacher has 5 classes, the student 7"):
        simkd(plain(classes=7))
    with pytest.raises(ModelError, match="teacher has 5 classes, the student 0"):
        simkd(plain(classes=0))


def test_refuses_models_without_maps() -> None:
    with pytest.raises(ModelError, match="the student Sequential has no feature_info and no forward_features"):
        simkd(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    with pytest.raises(ModelError, match=r"of VisionTransformer must be \(B, 192, H, W\), got \(1, 5, 192\)"):
        simkd(plain("vit_tiny_patch16_224", img_size=32))(X[:1])


@pytest.mark.parametrize("options", [{"name": "cifar_resnet10_xs", "global_pool": "max"}, {"name": "convnext_atto"}])
def test_refuses_a_teacher_with_another_head(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="must be an average over the last map and a linear classifier"):
        simkd(teacher=plain(**options))
