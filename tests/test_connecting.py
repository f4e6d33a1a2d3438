"""What is done on a running cluster before anything runs there."""

from __future__ import annotations

import pytest

from ablations import cluster


def test_the_actor_that_stays_is_started_on_the_machine_of_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By whoever asks first: afterwards Ray Data finds it there, wherever it runs."""
    done: list[str] = []
    monkeypatch.setattr(cluster.ray, "init", lambda **_: done.append("connected"))
    monkeypatch.setattr(cluster, "get_or_create_stats_actor", lambda: done.append("actor"))
    cluster._connect("auto")
    assert done == ["connected", "actor"]
