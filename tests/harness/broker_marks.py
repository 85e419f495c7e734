"""Marks that run a test on one kind of broker."""

import pytest

#: For tests that do not depend on the kind of broker. Redis starts faster.
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
#: For features of AMQP.
on_rabbitmq = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
