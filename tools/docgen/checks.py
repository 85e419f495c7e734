"""A table of what the checks of the overview, the log and `doctor` can find, and what helps."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import ModuleType

from msgspec.structs import replace

from celery_exporter.broker.connection import why_no_events
from celery_exporter.broker.url import (
    UnusableURLError,
    check_files,
    check_text,
    not_installed,
    refused_query,
    unreadable,
)
from celery_exporter.config.loader import load
from celery_exporter.doctor import problems as doctor_problems
from celery_exporter.doctor.check_order import CHECKS_BY_SUBJECT
from celery_exporter.doctor.event_queue_checks import ACCESS_REFUSED
from celery_exporter.doctor.problems import CONTAINER_HINT, UNUSABLE_URL
from celery_exporter.doctor.prometheus_checks import ENABLE_NATIVE_HISTOGRAMS
from celery_exporter.doctor.remedies import (
    REFUSALS,
    BrokerAddress,
    broker_address,
    delete_queues_command,
    diagnose_command,
    redis_cli,
    refusal,
    subscription_remedy,
)
from celery_exporter.status import problems as status_problems
from celery_exporter.status.broker_checks import ALARM_REMEDIES
from celery_exporter.status.finding import Problem
from celery_exporter.status.problems import CORRECT_ADDRESS
from celery_exporter.status.queue_checks import start_worker_command
from tools.docgen import markdown

_URLS = {
    "RabbitMQ": "amqp://USER:PASSWORD@HOST/VHOST",
    "RabbitMQ as guest": "amqp://guest:guest@HOST/VHOST",
    "Redis": "redis://USER:PASSWORD@HOST/0",
}
_CONFIGS = {name: load({"broker_url": url}, {}).monitor.broker for name, url in _URLS.items()}
_BROKERS = {name: replace(broker_address(config), host="HOST") for name, config in _CONFIGS.items()}


def _without_port(text: str) -> str:
    return re.sub(r"\b(5672|6379)\b", "PORT", text)


class _Name(str):
    """The name of a field in capitals, whatever its format."""

    __slots__ = ()

    def __format__(self, _: str) -> str:
        return self


class _Values(dict[str, str]):
    """Values of fields for the table: an example, or else the name of the field."""

    def __missing__(self, field: str) -> str:
        return _Name(field.removeprefix("quoted_").upper())


_VALUES = _Values(
    address_remedy=f"{CORRECT_ADDRESS}; if that does not help, ",
    no_fanout=why_no_events(load({"broker_url": "memory://"}, {}).monitor.broker),
    alarm_remedies="; ".join(ALARM_REMEDIES.values()),
    container_hint=CONTAINER_HINT,
    delete_command=delete_queues_command(_CONFIGS["RabbitMQ"], _BROKERS["RabbitMQ"], ["QUEUE"]),
    diagnose_command="; ".join(
        _without_port(f"{name}: {diagnose_command(_BROKERS[name])}") for name in ("RabbitMQ", "Redis")
    ),
    enable=ENABLE_NATIVE_HISTOGRAMS,
    or_accept_content=", or --accept-content NAMES here",
    permit_command=refusal(_CONFIGS["RabbitMQ"], ACCESS_REFUSED).remedy(_BROKERS["RabbitMQ"]),
    redis_cli=_without_port(redis_cli(_BROKERS["Redis"])),
    start_worker=start_worker_command(["QUEUES"]),
)


def table() -> str:
    """Return a row for each problem, in the order in which `doctor` prints the checks."""
    order = [name for names in CHECKS_BY_SUBJECT.values() for name in names]
    rows = sorted(_rows(), key=lambda row: order.index(row.check))
    cells = [(row.check, row.severity, markdown.cell(row.message), markdown.cell(row.remedy)) for row in rows]
    return markdown.table(("check", "severity at most", "message", "remedy"), cells)


def problems(module: ModuleType) -> dict[str, Problem]:
    """Return the rows of a table of problems by the name of their constant."""
    return {name: row for name, row in vars(module).items() if isinstance(row, Problem)}


def _rows() -> Iterator[Problem]:
    yield from _unusable_urls()
    yield from _refusals()
    yield from _refused_subscriptions()
    for module in (status_problems, doctor_problems):
        for row in problems(module).values():
            if row is not UNUSABLE_URL:
                message, remedy = row.message.format_map(_VALUES), row.remedy.format_map(_VALUES)
                yield replace(row, message=message, remedy=remedy)


def _unusable_urls() -> Iterator[Problem]:
    """Yield an example of each error about a URL."""
    errors = [
        *map(_url_error, ("rediz://HOST", "redis://HOST:99999/0", "redis://HOST:6379/NAME")),
        _url_error("amqps://HOST//", ca_certs="/PATH"),
        unreadable("amqp"),
        not_installed("sqs", ImportError("No module named 'boto3'")),
        refused_query("redis", TypeError("unexpected keyword argument 'NAME'")),
    ]
    for error in errors:
        message, _, remedy = str(error).removeprefix("--broker-url: ").partition("; ")
        remedy = re.sub("(?<=kombu supports ).*", "…", remedy).replace(sys.executable, "PYTHON")
        yield replace(UNUSABLE_URL, message=message, remedy=UNUSABLE_URL.remedy.format(remedy=remedy))


def _url_error(url: str, **tls_options: str) -> UnusableURLError:
    try:
        check_text(url)
        check_files(tls_options)
    except UnusableURLError as error:
        return error
    raise AssertionError(url)


def _refusals() -> Iterator[Problem]:
    """Yield what brokers answer when a connection is opened."""
    on_socket = {"Redis": replace(_BROKERS["Redis"], host="/PATH", network=False)}
    for row in REFUSALS:
        brokers = on_socket if "/" in row.pattern else _BROKERS
        remedies = {name: _without_port(row.remedy(broker)) for name, broker in brokers.items()}
        remedies = {name: text for name, text in remedies.items() if _is_of(brokers[name], text)} or remedies
        if remedies.get("RabbitMQ as guest", "").replace("guest", "USER") == remedies.get("RabbitMQ"):
            remedies.pop("RabbitMQ as guest", None)
        check = "virtual-host" if row.check == "database" and "Redis" not in remedies else row.check
        texts = [f"{name}: {text}" for name, text in remedies.items()]
        remedy = "; ".join(texts) if len(set(remedies.values())) > 1 else next(iter(remedies.values()))
        yield Problem(check, "critical", _error_text(row.pattern), remedy)


def _error_text(pattern: str) -> str:
    """Return which errors a regular expression with alternatives matches, in words."""
    group = re.search(r"\((.*?)\)", pattern)
    texts = [pattern.replace(group[0], text) for text in group[1].split("|")] if group else pattern.split("|")
    *others, last = (f'"{text.strip()}"'.replace(".*", "…") for text in texts)
    alternatives = f"{', '.join(others)} or {last}" if others else last
    return f"error contains {alternatives}" if pattern else "any other error"


def _is_of(broker: BrokerAddress, remedy: str) -> bool:
    """Return whether a remedy does not name the tools of the other broker."""
    return ("redis" if broker.amqp else "rabbitmq") not in remedy


def _refused_subscriptions() -> Iterator[Problem]:
    """Yield what brokers answer to an event subscription."""
    for name, answer in (
        ("Redis", "this user has no permissions to run the 'psubscribe' command"),
        ("Redis", "this user has no permissions to access one of the channels"),
        ("Redis", "this user has no permissions to access one of the keys"),
        ("RabbitMQ", "PRECONDITION_FAILED"),
    ):
        remedy = _without_port(subscription_remedy(_CONFIGS[name], _BROKERS[name], answer))
        yield Problem("subscription", "critical", answer, remedy)
