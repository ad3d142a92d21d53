from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disk_kd.data.sources import load_dataset
from disk_kd.errors import DataError, shown


def write_images(root: Path, *classes: bytes) -> Path:
    for name in classes:
        folder = os.path.join(os.fsencode(root / "train"), name)
        os.makedirs(folder)
        for number in range(4):
            with open(os.path.join(folder, b"f\xe9%d.png" % number), "wb") as file:
                Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(file, "PNG")
    return root


def test_a_name_is_shown_in_printable_characters():
    assert shown("café … 猫") == "café … 猫"
    assert shown("a\x1b]0;b\x07\nc\udce9\u202e") == r"a\x1b]0;b\x07\nc\udce9\u202e"


def test_an_error_is_one_printable_line(tmp_path: Path):
    write_images(tmp_path, b"a")
    (tmp_path / "train" / "x\x1b]0;owned\x07\n").mkdir()
    with pytest.raises(DataError, match=r"class folder x\\x1b\]0;owned\\x07\\n holds no images; fill or remove it$"):
        load_dataset("folder", root=tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_names_that_are_no_utf8_can_be_written(tmp_path: Path, stream: bool):
    write_images(tmp_path, b"a", b"d\xf6g\x1b")
    split = load_dataset("folder", root=tmp_path, image_size=4, stream=stream).train
    assert os.fsencode(split.class_names[1]) == b"d\xf6g\x1b"
    assert split.shown_names == ("a", r"d\udcf6g\x1b")
    assert split.paths is not None
    "\n".join([*split.shown_names, *split.paths, split.fingerprint()]).encode()
    assert split.paths[-1].endswith(r"d\udcf6g\x1b/f\udce93.png")
