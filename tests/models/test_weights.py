"""Files of weights: what is read and written, every error, and that no code in a file runs."""

from __future__ import annotations

import argparse
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from disk_kd.errors import CheckpointError
from disk_kd.models import convert, load_state_dict, load_weights, read_metadata, save_state_dict


class Calls:
    """Unpickles by calling a function: what a malicious checkpoint does."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def small(seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model("cifar_resnet10_xxs", **options).eval()


def released_checkpoint(model):
    """A checkpoint of the released kind: weights among settings, results and optimiser state."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "epoch": np.int64(7),
        "args": argparse.Namespace(lr=0.1, delta=np.float64(0.5), steps=[1, 2]),
        "best_acc": np.float64(52.16),
        "history": np.arange(4.0),
        "optimizer": optimizer.state_dict(),
        "state_dict": {"other.weight": torch.zeros(1)},
        "base_state_dict": model.state_dict(),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["best.pth.tar", "best.pth", "best.pt", "best.bin"])
def test_released_checkpoint_is_read(tmp_path, name, zipped):
    model = small()
    torch.save(released_checkpoint(model), tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_same(load_state_dict(tmp_path / name), model.state_dict())


def test_names_of_numpy_1_are_read(tmp_path):
    path = tmp_path / "w.pth"
    weights = {"a": torch.ones(2)}
    torch.save({"acc": np.float64(1), "model": weights}, path, _use_new_zipfile_serialization=False)
    older = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\nscalar" in older
    path.write_bytes(older)
    assert_same(load_state_dict(path), weights)


@pytest.mark.parametrize(
    "key", ["base_state_dict", "state_dict_ema", "state_dict", "model", "net", "student", "anything", None]
)
def test_weights_are_found_under_each_key(tmp_path, key):
    weights = {"a.weight": torch.ones(2), "b.bias": torch.zeros(1)}
    torch.save(weights if key is None else {"epoch": 1, key: weights}, tmp_path / "w.pth")
    assert_same(load_state_dict(tmp_path / "w.pth"), weights)


def test_of_two_dicts_under_other_names_none_is_chosen(tmp_path):
    torch.save({"one": {"a": torch.ones(1)}, "two": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"holds no weights: .* found 'one', 'two'; save"):
        load_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["model.", "lit.net."])
def test_a_name_before_every_key_is_taken_off(tmp_path, prefix):
    source, model = small(), small(seed=1)
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in source.state_dict().items()}}, tmp_path / "w")
    load_weights(model, tmp_path / "w")
    assert_same(model.state_dict(), source.state_dict())


def test_a_name_before_the_models_keys_alone_is_told(tmp_path):
    weights = {f"model.{key}": value for key, value in small().state_dict().items()}
    torch.save({**weights, "criterion.weight": torch.ones(3)}, tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"keys start with 'model.' in the file, but other keys do not"):
        load_weights(small(), tmp_path / "w")


def test_an_entry_that_is_no_tensor_is_named(tmp_path):
    torch.save({**small().state_dict(), "epoch": 5}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w.pth holds 'epoch' among its weights, which is not a tensor; save"):
        load_state_dict(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w.pt is a TorchScript archive, which holds code"):
        load_state_dict(tmp_path / "w.pt")


def test_batch_norms_that_count_nothing_are_loaded(tmp_path):
    source, model = small(), small(seed=1)
    weights = {key: value for key, value in source.state_dict().items() if "num_batches" not in key}
    torch.save(weights, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    torch.save({**weights, "linear.weight": torch.ones(7, 16)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="the weights have 7 classes"):
        load_weights(model, tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to_sparse(), "linear.weight in .* is sparse, a model takes dense real numbers"),
        (lambda w: w.to("meta"), "is without numbers"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "is quantised"),
        (lambda w: w.to(torch.complex64), "is complex"),
        (lambda w: w.to(torch.int8), "other types: 'linear.weight' is torch.int8; give"),
        (lambda w: torch.tensor(3.0), r"other shapes: 'linear.weight' is \[\], not \[100, 16\]"),
        (lambda w: w[:, :3].clone(), r"other shapes: 'linear.weight' is \[100, 3\], not \[100, 16\]"),
    ],
)
def test_tensors_that_no_model_takes_are_named(tmp_path, change, message):
    model = small()
    torch.save({**model.state_dict(), "linear.weight": change(model.linear.weight.detach())}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, tmp_path / "w.pth")


def test_an_empty_ema_is_passed_over(tmp_path):
    torch.save({"state_dict_ema": None, "state_dict": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    assert list(load_state_dict(tmp_path / "w.pth")) == ["a"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(tmp_path, prefix):
    torch.save({f"{prefix}a": torch.ones(1), f"{prefix}b.module.c": torch.ones(1)}, tmp_path / "w.pth")
    assert list(load_state_dict(tmp_path / "w.pth")) == ["a", "b.module.c"]


def test_a_submodule_named_module_keeps_its_name(tmp_path):
    torch.save({"module.a": torch.ones(1), "head.b": torch.ones(1)}, tmp_path / "w.pth")
    assert list(load_state_dict(tmp_path / "w.pth")) == ["module.a", "head.b"]


def test_parameters_come_back_as_plain_tensors(tmp_path):
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "w.pth")
    assert not any(value.requires_grad for value in load_state_dict(tmp_path / "w.pth").values())


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2))])
@pytest.mark.parametrize("kind", ["shell", "eval", "exec"])
def test_code_in_a_file_does_not_run(tmp_path, kind, write):
    marker = tmp_path / "ran"
    payload = {
        "shell": Calls(os.system, f"touch '{marker}'"),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w').close()"),
        "exec": Calls(exec, f"open({str(marker)!r}, 'w').close()"),
    }[kind]
    pickle.loads(pickle.dumps(payload))
    assert marker.exists(), "the payload must be live for this test to mean anything"
    marker.unlink()

    path = tmp_path / "evil.pth.tar"
    write({"base_state_dict": {"a": torch.ones(1)}, "args": payload}, path)
    with pytest.raises(CheckpointError, match=r"evil.pth.tar holds '\S+', code that would run .* save model"):
        load_state_dict(path)
    assert not marker.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds 'torch.nn.modules.linear.Linear', code .* save model.state"):
        load_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "noise", "text"])
def test_damaged_files(tmp_path, suffix, damage):
    path = tmp_path / f"w{suffix}"
    weights = {"a": torch.arange(1000.0)}
    torch.save(weights, path) if suffix == ".pth" else safetensors.torch.save_file(weights, path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "noise": bytes((7 * i * i + 3) % 256 for i in range(500)),
            "text": b"version https://git-lfs.github.com/spec/v1\n",
        }[damage]
    )
    message = rf"w\{suffix} is not a .* file or is damaged .*copy or download"
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load_state_dict, read_metadata])
def test_missing_file_and_folder(tmp_path, read):
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file; give a \.safetensors file"):
        read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder; give the file of weights in it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "lr": 0.1}, "'epoch', 'lr'"),
        ({"state_dict": {}}, "'state_dict'"),
        ({}, "a dict"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_no_weights_in_the_file(tmp_path, content, found):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w.pth holds no weights: .*base_state_dict.* found {found}; save"):
        load_state_dict(tmp_path / "w.pth")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "w.pth").touch(mode=0o000)
    with pytest.raises(CheckpointError, match=r"cannot be read .*; check its permissions"):
        load_state_dict(tmp_path / "w.pth")


def test_save_and_load_into_another_model(tmp_path):
    source, target = small(seed=1), small(seed=2)
    save_state_dict(tmp_path / "w.safetensors", source.state_dict())
    load_weights(target, tmp_path / "w.safetensors")
    assert_same(target.state_dict(), source.state_dict())


def test_timm_loads_what_is_saved(tmp_path):
    model = small()
    save_state_dict(tmp_path / "w.safetensors", model.state_dict(), {"by": "test"})
    found = timm.create_model("cifar_resnet10_xxs", checkpoint_path=str(tmp_path / "w.safetensors"))
    assert_same(found.state_dict(), model.state_dict())


def test_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    save_state_dict(path, {"a": torch.ones(1)}, {"epoch": "3", "top1": "52.16"})
    assert read_metadata(path) == {"epoch": "3", "top1": "52.16"}
    save_state_dict(path, {"a": torch.ones(1)})
    assert read_metadata(path) == {}
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth is not a safetensors file or is damaged"):
        read_metadata(tmp_path / "w.pth")


def test_odd_tensors_are_saved(tmp_path):
    base = torch.arange(24.0)
    weights = {
        "tied": base,
        "tied_again": base,
        "slice": base[4:9],
        "transposed": base.view(4, 6).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
        "none": torch.empty(0),
        "none_again": torch.empty(0),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    save_state_dict(tmp_path / "w.safetensors", weights)
    found = load_state_dict(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


def test_saving_replaces_whole_files_with_ordinary_permissions(tmp_path):
    path = tmp_path / "w.safetensors"
    plain = tmp_path / "plain"
    plain.touch()
    for value in (1.0, 2.0):
        save_state_dict(path, {"a": torch.tensor([value])})
    assert load_state_dict(path)["a"].item() == 2
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "w.safetensors"]


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"none/w.safetensors cannot be written \(No such file"):
        save_state_dict(tmp_path / "none" / "w.safetensors", {"a": torch.ones(1)})
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder is a folder, which is not replaced"):
        save_state_dict(tmp_path / "folder", {"a": torch.ones(1)})
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("strict", [True, False])
def test_another_number_of_classes_is_said_so(tmp_path, strict):
    torch.save(small(num_classes=100).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="the weights have 100 classes, the model 10; create it with num_cl"):
        load_weights(small(num_classes=10), tmp_path / "w.pth", strict=strict)


def test_weights_of_another_width_name_the_first_shape(tmp_path):
    torch.save(small(num_classes=10).state_dict(), tmp_path / "w.pth")
    model = timm.create_model("cifar_resnet10_s", num_classes=100)
    with pytest.raises(
        CheckpointError,
        match=r"'layer2.0.conv1.weight' is \[8, 8, 3, 3\], not \[16, 8, 3.*these weights are for cifar_resnet10_xxs$",
    ):
        load_weights(model, tmp_path / "w.pth")


def test_missing_and_unknown_keys(tmp_path):
    model = small()
    weights = model.state_dict()
    del weights["bn1.bias"], weights["bn1.weight"]
    weights["extra.weight"] = torch.ones(1)
    torch.save(weights, tmp_path / "w.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = "w.pth does not fit ResNet: missing in the file: 'bn1.weight' and 1 more; unknown to the model: 'extra"
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, tmp_path / "w.pth")
    assert_same(model.state_dict(), before)


def test_not_strict_loads_what_both_have(tmp_path):
    source, model = small(seed=1, num_classes=10), small(seed=2, num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth", strict=False)
    assert torch.equal(model.layer4[0].conv2.weight, source.layer4[0].conv2.weight)
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing in the file: 'conv1.weight' and .* unknown .* 'other'; give"):
        load_weights(model, tmp_path / "other.pth", strict=False)


def test_convert(tmp_path):
    model = small()
    torch.save(released_checkpoint(model), tmp_path / "best.pth.tar")
    counts = convert(tmp_path / "best.pth.tar", tmp_path / "best.safetensors")
    assert counts == {"tensors": 74, "parameters": 13020}
    found = timm.create_model("cifar_resnet10_xxs", checkpoint_path=str(tmp_path / "best.safetensors")).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(found(x), model.eval()(x))


def test_convert_refuses_to_overwrite_and_other_names(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    (tmp_path / "old.safetensors").write_text("mine")
    with pytest.raises(CheckpointError, match=r"old.safetensors exists already; remove it or give another name"):
        convert(tmp_path / "w.pth", tmp_path / "old.safetensors")
    assert (tmp_path / "old.safetensors").read_text() == "mine"
    with pytest.raises(CheckpointError, match=r"new.pth: expected a name that ends in .safetensors"):
        convert(tmp_path / "w.pth", tmp_path / "new.pth")
