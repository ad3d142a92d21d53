from __future__ import annotations

import torch

from disk_kd.data.remap import remap


def test_reads_sources_and_fills_what_lies_outside():
    images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    rows = torch.tensor([[[0], [1], [2]], [[-1], [0], [3]]])
    columns = torch.tensor([[[3, 2, 1, 0]], [[0, 1, 2, 4]]])
    expected = torch.tensor(
        [
            [[[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]],
            [[[99, 99, 99, 99], [12, 13, 14, 99], [99, 99, 99, 99]]],
        ],
        dtype=torch.uint8,
    )
    assert torch.equal(remap(images, rows, columns, 99), expected)
