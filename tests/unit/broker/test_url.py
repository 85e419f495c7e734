"""Broker URLs that are refused before connecting: those that no transport can use."""

from __future__ import annotations

import re
from importlib.metadata import metadata

import pytest
from kombu.transport import TRANSPORT_ALIASES

from celery_exporter.broker.url import UnusableURLError, check_text, not_installed

#: Schemes whose packages are requirements of the exporter or of Python.
INSTALLED = {"amqp", "amqps", "pyamqp", "redis", "rediss", "sentinel", "memory", "filesystem"}


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h/",
        "redis://h//0",
        "redis://h:6379/15",
        "redis://[::1]:6379/0",
        "redis://:p%40ss%2Fword@h:6379/0?ssl_cert_reqs=none",
        "redis+socket:///run/redis/redis.sock?virtual_host=3",
        "sentinel://h1:26379/0;sentinel://h2:26379/0",
        "sentinel://h1:26379;h2:26379/0",
        "sentinel://h1:26379/0;h2:26379",
        "amqp://",
        "amqp://u:p@h1:5672;h2:5672",
        "amqp://u:p@h1:5672//;h2",
        "amqps://u:p@h/my%2Fhost?heartbeat=3",
        "sqs://key:secret@",
        "sqla+postgresql://u:p@h:port/database",
        "celery.contrib.testing.mocks:Transport://",
    ],
)
def test_a_url_that_kombu_accepts_is_accepted(url):
    check_text(url)


@pytest.mark.parametrize(
    "url", ["redis://h/0/", "redis://h/-1", "redis://h/prod", "rediss://h/0x1", "sentinel://h/a"]
)
def test_a_database_of_redis_is_a_number(url):
    with pytest.raises(UnusableURLError, match="the database is not a number"):
        check_text(url)


@pytest.mark.parametrize("port", ["0", "65536", "637900", "9" * 5_000])
def test_a_port_is_in_its_range(port):
    with pytest.raises(UnusableURLError, match="the port is not between 1 and 65535") as error:
        check_text(f"amqp://guest:{port}")
    assert port not in str(error.value).replace("65535", "").split()


@pytest.mark.parametrize("scheme", sorted(TRANSPORT_ALIASES.keys() - INSTALLED - {"etcd"}))
def test_a_missing_package_is_installed_by_an_extra_of_kombu(scheme):
    (extra,) = re.findall(r"kombu\[(\w+)\]", str(not_installed(f"{scheme}+x", ImportError())))
    assert extra in metadata("kombu").get_all("Provides-Extra")
