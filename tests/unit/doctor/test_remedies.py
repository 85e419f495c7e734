"""What a broker answers → what helps. That the commands help is tested on real brokers: test_doctor.py."""

from __future__ import annotations

import shlex

import pytest
from harness.configs import broker_config as config

from celery_exporter.doctor.remedies import (
    REFUSALS,
    acl_command,
    broker_address,
    delete_queues_command,
    diagnose_command,
    inspection_remedy,
    queue_lengths_remedy,
    redis_cli,
    refusal,
    subscription_remedy,
)

AMQP = "amqp://celery:s3cret@rabbit:5672/shop"
REDIS = "redis://celery:s3cret@cache:6379/2"


def remedy(url: str, error: str) -> str:
    return refusal(config(url), error).remedy(broker_address(config(url)))


@pytest.mark.parametrize(
    ("url", "error", "check", "text"),
    [
        (REDIS, "No master found for 'mymaster'", "answer", "SENTINEL MASTERS"),
        (REDIS, "certificate verify failed: Hostname mismatch", "tls", "instead of cache"),
        (REDIS, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "tls", "ssl_ca_certs="),
        (AMQP, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "tls", "option ca_certs="),
        (AMQP, "tlsv13 alert certificate required", "tls", "option certfile="),
        (REDIS, "handshake failure", "tls", "option ssl_certfile="),
        (
            AMQP,
            "(403) ACCESS_REFUSED - access to exchange 'x' refused",
            "login",
            "set_permissions -p shop celery",
        ),
        (AMQP, "(403) ACCESS_REFUSED - Login was refused", "login", "change_password celery PASSWORD"),
        (REDIS, "NOAUTH Authentication required.", "login", "redis://USER:PASSWORD@cache:6379/2"),
        (AMQP, "(530) NOT_ALLOWED - vhost shop not found", "database", "rabbitmqctl add_vhost shop &&"),
        (AMQP, "(530) NOT_ALLOWED - access to vhost 'shop' refused", "database", "set_permissions"),
        (REDIS, "DB index is out of range", "database", "redis://…@cache:6379/0"),
        (REDIS, "You can't write against a read only replica.", "database", "INFO replication"),
        (REDIS, "Connection closed by server.", "answer", "cache:6379 is another kind of server"),
        (REDIS, "timed out", "answer", "restart what listens on cache:6379"),
        (
            REDIS,
            "NOPERM this user has no permissions to run the 'ping' command",
            "login",
            "ACL SETUSER celery +ping",
        ),
    ],
)
def test_an_error_fails_its_check_and_has_its_remedy(url, error, check, text):
    assert refusal(config(url), error).check == check
    assert text in remedy(url, error)


def test_the_last_row_matches_every_error():
    assert REFUSALS[-1].pattern == ""
    assert refusal(config(REDIS), "") is REFUSALS[-1]


def test_guest_may_log_in_from_localhost_only():
    error = "(403) ACCESS_REFUSED - Login was refused"
    assert "localhost only" in remedy("amqp://guest:guest@rabbit//", error)
    assert "change_password guest" in remedy("amqp://guest:guest@127.0.0.1//", error)


@pytest.mark.parametrize(
    "url", [AMQP, REDIS, "rediss://:s3cret@cache:6379/0", "redis+socket://:s3cret@/run/redis.sock"]
)
def test_no_remedy_contains_the_password(url):
    broker = broker_address(config(url))
    texts = [row.remedy(broker) for row in REFUSALS]
    texts += [
        diagnose_command(broker),
        redis_cli(broker),
        repr(broker),
        acl_command(config(url), broker, ""),
    ]
    texts += [queue_lengths_remedy(config(url), ""), inspection_remedy(config(url), "NOAUTH")]
    assert not [text for text in texts if "s3cret" in text]
    assert broker.has_password


@pytest.mark.parametrize(
    ("url", "command"),
    [
        (REDIS, "redis-cli -h cache -p 6379 --user celery --askpass"),
        ("redis://cache", "redis-cli -h cache -p 6379"),
        ("rediss://:x@cache:7000/0", "redis-cli -h cache -p 7000 --tls --askpass"),
        ("redis+socket:///run/redis.sock", "redis-cli -s /run/redis.sock"),
        ("sentinel://cache:26379/0", "redis-cli -h MASTER"),
    ],
)
def test_redis_cli_is_called_for_this_server(url, command):
    assert redis_cli(broker_address(config(url))) == command


def test_an_ipv6_address_is_in_brackets():
    assert broker_address(config("redis://[::1]:6379/0")).address == "[::1]:6379"


def test_the_acl_command_grants_the_kind_of_right_that_was_denied():
    options = config(REDIS, event_exchange="mine", broker_transport_option=["global_keyprefix={shop}"])
    broker = broker_address(options)

    def rights(error: str) -> list[str]:
        words = shlex.split(acl_command(options, broker, error))
        return words[words.index("SETUSER") + 2 :]

    assert rights("no permissions to access one of the channels") == [
        "&{shop}/2.mine/*",
        "&{shop}/2.celery.pidbox",
    ]
    assert rights("no permissions to access one of the keys")[0] == "~{shop}_kombu.binding*"
    assert rights("no permissions to run the 'xadd' command")[:2] == ["+xadd", "+ping"]


def test_the_acl_command_is_for_an_administrator():
    command = acl_command(config(REDIS), broker_address(config(REDIS)), "access a key")
    assert command.startswith("as an administrator: redis-cli -h cache -p 6379 ACL SETUSER celery ")


def test_what_lets_the_exporter_subscribe():
    broker = broker_address(config(AMQP))
    refused = "(403) ACCESS_REFUSED - access to queue 'celeryev.x' refused"
    assert "set_permissions" in subscription_remedy(config(AMQP), broker, refused)
    other_kind = "(406) PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'celeryev'"
    assert subscription_remedy(config(AMQP), broker, other_kind).startswith("--event-exchange ")
    assert subscription_remedy(config(AMQP), broker, "timed out") == diagnose_command(broker)


def test_what_makes_queue_lengths_readable():
    assert "rabbitmqctl list_queues -p shop" in queue_lengths_remedy(config(AMQP), "")
    assert queue_lengths_remedy(config(REDIS), "NOPERM").endswith(
        "celery '~*' +exists +llen +lindex +hlen +hkeys +hstrlen +hmget +scard +smembers"
    )
    assert " INFO, " in queue_lengths_remedy(config(REDIS), "timed out")
    assert queue_lengths_remedy(config("memory://"), "").startswith("--broker-url ")


def test_queues_are_deleted_by_a_command_of_the_broker():
    def command(url: str, **options) -> str:
        return delete_queues_command(
            config(url, **options), broker_address(config(url, **options)), ["a", "b c"]
        )

    delete = "rabbitmqctl delete_queue -p shop"
    assert command(AMQP) == f"{delete} a && {delete} 'b c'"
    keys = shlex.split(command(REDIS, broker_transport_option=["global_keyprefix=x:"]).partition(" DEL ")[2])
    assert keys == [
        f"x:{kind}.{name}" for name in ("a", "b c") for kind in ("_kombu.binding", "_kombu.binding_permanent")
    ]
    assert command("memory://") == "delete them where they are stored"
