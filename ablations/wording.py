"""Words of messages."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 trial``, ``2 trials``.

    Args:
        plural: where an s at the end is not enough, such as ``trials have`` for ``trial has``.
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
