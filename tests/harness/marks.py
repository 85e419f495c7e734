"""Marks for tests."""

import pytest

#: For what does not depend on the kind of broker: tried on the one that costs less time.
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
