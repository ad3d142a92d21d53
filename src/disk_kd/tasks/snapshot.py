"""`snapshot`, for methods: the value of a buffer that the same forward pass goes on to change."""

from disk_kd.support import snapshot

__all__ = ["snapshot"]
