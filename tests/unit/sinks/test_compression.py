"""Bodies are compressed with or without ISA-L, which does not exist for all processors."""

from __future__ import annotations

import gzip
import sys

import pytest

from celery_exporter.sinks import compression


@pytest.mark.parametrize("has_isal", [True, False])
@pytest.mark.parametrize("body", [b"", b"x" * 1_000_000])
def test_a_body_is_compressed(monkeypatch, has_isal, body):
    if not has_isal:
        monkeypatch.setitem(sys.modules, "isal", None)  # an import raises ImportError
    compressed = compression._compressor()(body)
    assert gzip.decompress(compressed) == body
    assert len(compressed) < len(body) / 100 + 30
