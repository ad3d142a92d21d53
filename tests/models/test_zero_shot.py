"""Zero-shot teachers against the probabilities that transformers and open_clip compute themselves."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_folders import LENGTH, SIDE, save_clip, save_open_clip, save_siglip
from PIL import Image

from disk_kd.build import STUDENT
from disk_kd.cli import main
from disk_kd.data import load_dataset
from disk_kd.errors import CheckpointError, DataError, ModelError
from disk_kd.models.about import read_about
from disk_kd.models.zero_shot import ZeroShotClassifier, load_clip
from disk_kd.models.zero_shot.classifier import class_embeddings
from disk_kd.trained import trained_model
from disk_kd.zeroshot.words import class_words

WORDS = ("tench", "church")
IDS = ("n01440764", "n03028079")
TEMPLATE = "a photo of a {}."


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders named by WordNet ids."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 10), ("test", 6)):
        for label, name in enumerate(IDS):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(number).integers(0, 100, (36, 36, 3)) + 80 * label
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny")


def prompts() -> list[str]:
    return [TEMPLATE.replace("{}", word) for word in WORDS]


@pytest.mark.parametrize(
    ("save", "padding", "probabilities"),
    [(save_clip, True, torch.softmax), (save_siglip, "max_length", lambda logits, dim: logits.sigmoid())],
)
def test_gives_transformers_own_probabilities(
    tmp_path: Path, save: Callable[[Path], Path], padding: bool | str, probabilities: Callable[..., torch.Tensor]
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(tmp_path / "tiny")
    read = load_clip(f"transformers:{folder}")
    ours = ZeroShotClassifier.of(read, class_embeddings(read, WORDS, [TEMPLATE]))
    assert read.sigmoid == (save is save_siglip)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        prompts(), padding=padding, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    images = processor(images=[Image.fromarray(image) for image in pixels], return_tensors="pt").pixel_values
    inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    mean, std = (torch.tensor(values)[:, None, None] for values in (read.mean, read.std))
    for image, plain in zip(images, pixels, strict=True):
        normalised = (torch.from_numpy(plain).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            expected = probabilities(model(pixel_values=image[None], **inputs).logits_per_image, dim=1)
            got = probabilities(ours(normalised[None]), dim=1)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_gives_open_clips_own_probabilities(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    folder = save_open_clip(tmp_path / "tiny")
    read = load_clip(f"open_clip:{folder}")
    ours = ZeroShotClassifier.of(read, class_embeddings(read, WORDS, [TEMPLATE]))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(prompts())
    mean, std = (torch.tensor(values)[:, None, None] for values in (read.mean, read.std))
    for pixels in np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8):
        normalised = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            expected = model.get_logits(preprocess(Image.fromarray(pixels))[None], tokens)[0].softmax(1)
            torch.testing.assert_close(ours(normalised[None]).softmax(1), expected, atol=1e-5, rtol=1e-4)


def test_prompts_are_averaged_as_unit_vectors(clip: Path) -> None:
    read = load_clip(f"transformers:{clip}")
    templates = [TEMPLATE, "a picture that shows a {}."]
    rows = torch.stack([torch.nn.functional.normalize(read.embed([t.replace("{}", "dog") for t in templates]), dim=1)])
    expected = rows.mean(1) / rows.mean(1).norm()
    torch.testing.assert_close(class_embeddings(read, ["dog"], templates), expected)


def test_command_writes_a_teacher_without_the_text_side(
    photos: Path, clip: Path, tmp_path: Path, tiny: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "teacher"
    data = ["--data.name=folder", f"--data.root={photos}", "--data.image_size=32"]
    arguments = ["zeroshot", f"transformers:{clip}", *data]
    assert main([*arguments, f"--output={folder}"]) == 0
    assert "2 classes (tench, church), 7 prompts each" in capsys.readouterr().out
    about = read_about(folder / STUDENT)
    assert (about["classes"], about["image_size"]) == (list(IDS), SIDE)
    loaded = trained_model(about["model"], about["options"], folder / STUDENT, 2, 3, about).eval()
    read = load_clip(f"transformers:{clip}")
    summary = json.loads((folder / "zeroshot.json").read_text())["summary"]
    whole = ZeroShotClassifier.of(read, class_embeddings(read, WORDS, summary["templates"]))
    images = torch.rand(3, 3, SIDE, SIDE)
    torch.testing.assert_close(loaded(images), whole(images))
    assert not any("text_model" in name for name, _ in loaded.named_modules())
    assert main(["evaluate", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 12
    data = [*data, "--data.limit_train=16"]
    options = [option for option in tiny if "limit_train" not in option and "batch_size" not in option]
    for store in ("true", "false"):
        run = [*options, "--train.batch_size=8", f"--teacher.weights={folder}", f"--teacher.store={store}"]
        assert main(["distill", *run, *data, f"--output={tmp_path / store}", f"--runs={tmp_path}"]) == 0
    capsys.readouterr()
    assert main([*arguments, f"--output={folder}"]) == 0
    assert "made before" in capsys.readouterr().out


def test_mistakes_are_told_in_one_line(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.name=folder", f"--data.root={photos}", "--data.image_size=32", f"--output={tmp_path / 'out'}"]
    names = tmp_path / "names.txt"
    names.write_text("tench\n")

    def says(arguments: Sequence[str], message: str) -> None:
        capsys.readouterr()
        assert main(["zeroshot", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert re.search(message, error), error

    says(data, "zeroshot needs exactly one model: transformers:FOLDER_OR_NAME or open_clip")
    says([f"keras:{clip}", *data], "is no model with an image and a text tower")
    says([f"transformers:{tmp_path / 'no'}", *data], "there is no folder .*; give one, or --pretrained true")
    says([f"open_clip:{tmp_path / 'no'}", *data], "there is no folder .*; give one, or --pretrained true")
    says([f"open_clip:{clip}", *data], "open_clip_config.json cannot be read")
    says([f"transformers:{photos}", *data], "cannot be read .*; give a folder with config.json")
    says([f"transformers:{clip}", "--templates=['a photo']", *data], r"the template 'a photo' has no \{\} for the word")
    says([f"transformers:{clip}", f"--names={names}", *data], "has 1 names, the dataset has 2 classes")
    says([f"transformers:{clip}", "--data=digits"], "takes colour images of 3 channels, those of digits have 1")
    assert not (tmp_path / "out").exists()


def test_words_of_classes(photos: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = load_dataset("folder", root=photos, image_size=8)
    assert class_words(dataset) == WORDS
    names = tmp_path / "names.yaml"
    names.write_text("n03028079: chapel\nn01440764: fish\n")
    assert class_words(dataset, names) == ("fish", "chapel")
    names.write_text("n03028079: chapel\nn01440765: fish\n")
    with pytest.raises(DataError, match="names 'n01440765', which is no class of the dataset; nearest: n01440764"):
        class_words(dataset, names)
    names.write_text("n03028079: chapel\n")
    with pytest.raises(DataError, match="has no word for the class 'n01440764'; add one"):
        class_words(dataset, names)
    names.write_text("n03028079: fish\nn01440764: fish\n")
    with pytest.raises(DataError, match="have the same word, 'fish'; give --names FILE"):
        class_words(dataset, names)
    assert class_words(load_dataset("digits"))[3] == "3"


def test_refuses_other_models(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_clip(f"transformers:{tmp_path}")
    with pytest.raises(ModelError, match="there is no model zeroshot:keras; "):
        trained_model("zeroshot:keras", {"features": 2, "config": {}}, tmp_path, 2, 3, {})
