"""Moves pixels: the kernel of crop, flip, shift, shear and rotation.

Shapes: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from torch import Tensor


def remap(images_BCHW: Tensor, rows: Tensor, columns: Tensor, fill: int) -> Tensor:
    """Reads each output pixel from its source pixel; `fill` if the source lies outside the image.

    Args:
        images_BCHW: any dtype.
        rows, columns: int64, broadcastable to (B, H, W): the source of each output pixel.
        fill: value of pixels outside the image.

    Returns:
        A new tensor of the same type and shape.
    """
    batch, channels, height, width = images_BCHW.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    source = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = source.expand(batch, height, width).reshape(batch, 1, height * width).expand(-1, channels, -1)
    moved = images_BCHW.reshape(batch, channels, -1).gather(2, index).view_as(images_BCHW)
    keep = inside.unsqueeze(1).to(images_BCHW.dtype)
    return moved.mul_(keep).add_((1 - keep) * fill)
