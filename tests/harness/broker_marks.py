"""Marks for tests."""

import pytest

#: For what does not depend on the kind of broker: tried on the one that costs less time.
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
#: For what only AMQP has.
on_rabbitmq = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
