"""Where draws wait and are kept in memory."""

import numpy as np
import pytest

from pushforward.infer.run import columns
from pushforward.infer.run.columns import MemorySink


def block(begin: int, end: int) -> dict[str, np.ndarray]:
    draws = np.arange(begin, end, dtype=float)
    return {"x": np.stack([draws, -draws]), "theta": np.stack([draws, draws])[..., None] * np.ones(3)}


@pytest.mark.parametrize("expected", [0, 5, 20, 1000])
@pytest.mark.parametrize("room", [1, 2**28])
def test_a_sink_keeps_what_is_appended(expected: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever room was made, for too few draws, too many, or none."""
    monkeypatch.setattr(columns, "ROOM_BYTES", room)
    sink = MemorySink()
    sink.expect(expected)
    for begin, end in [(0, 3), (3, 4), (4, 12), (12, 20)]:
        sink.append("posterior", block(begin, end))
        for name, value in block(0, end).items():
            np.testing.assert_array_equal(sink.arrays("posterior")[name], value)
    assert sink.arrays("sample_stats") == {}


def test_copies_go_their_own_ways() -> None:
    sink = MemorySink()
    sink.expect(100)
    sink.append("posterior", block(0, 5))
    before, twin = sink.arrays("posterior"), sink.copy()
    twin.append("posterior", block(70, 72))
    sink.append("posterior", block(5, 8))
    for name, value in block(0, 5).items():
        np.testing.assert_array_equal(before[name], value)
        np.testing.assert_array_equal(sink.arrays("posterior")[name], block(0, 8)[name])
        expected = np.concatenate([value, block(70, 72)[name]], axis=1)
        np.testing.assert_array_equal(twin.arrays("posterior")[name], expected)
