"""Errors of the drivers that kombu does not list are errors of the broker, too."""

from __future__ import annotations

import kombu
import psycopg
import pytest

from celery_exporter.broker.connection import BrokerError, broker_errors


def test_an_error_of_a_driver_is_an_error_of_the_broker():
    """kombu lists no error of psycopg, which its pgmq transport uses."""
    with (
        pytest.raises(BrokerError, match=r'^extension "pgmq" is not available$'),
        broker_errors(kombu.Connection("memory://")),
    ):
        raise psycopg.errors.FeatureNotSupported('extension "pgmq"\nis not available')


@pytest.mark.parametrize("url", ["memory://", "redis://h", "amqp://h"])
def test_an_error_of_the_code_is_none_of_the_broker(url):
    with pytest.raises(LookupError), broker_errors(kombu.Connection(url)):
        raise LookupError("a bug")


@pytest.mark.parametrize("url", ["redis://h", "amqp://h"])
def test_kombu_lists_the_errors_of_redis_and_rabbitmq(url):
    with pytest.raises(psycopg.Error), broker_errors(kombu.Connection(url)):
        raise psycopg.errors.FeatureNotSupported("of no driver of this broker")
