"""The rungs between a URL and an event subscription, each of which hangs on the one before."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import kombu
import msgspec
from kombu.utils.url import url_to_parts
from msgspec import Struct

from celery_exporter.broker.connection import (
    CONNECT_TIMEOUT,
    BrokerError,
    broker_errors,
    check,
    close_quietly,
    connect,
    has_tls,
    is_amqp,
    is_redis,
    open_,
    why_no_events,
)
from celery_exporter.broker.consumers import consumer_for
from celery_exporter.broker.source import SettingsSource
from celery_exporter.broker.url import UnusableURLError, masked, parts
from celery_exporter.config.loader import Settings
from celery_exporter.quoting import shell_word
from celery_exporter.status.checks import NO_EVENTS_REMEDY
from celery_exporter.status.finding import Finding

#: Seconds for a name to resolve: the system's resolver tries its servers for longer.
RESOLVE_TIMEOUT = 5.0

#: Commands that kombu has for Redis when it listens and when it asks workers, and the keys of that: bindings,
#: its own queue of events, those of answers, and what it keeps of messages (kombu/transport/redis.py).
_COMMANDS = (
    "ping llen del exists sadd srem smembers multi exec psubscribe punsubscribe publish brpop "
    "get set time zadd zrem zrange zrangebyscore zrevrangebyscore hget hset hdel eval evalsha script"
)
_KEYS = ("_kombu.binding*", "celeryev.*", "*.reply.{control_exchange}.pidbox*", "unacked*")
#: What Redis says, and what redis-py makes of it, where an ACL denies something; in a script, too.
_DENIED = "NOPERM|[Nn]o permissions|ACL failure|The user executing the script"
_READ_ONLY = "read only replica"
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
#: What is tried when a connection is opened, in this order: what comes before the one that fails went well.
_AFTER_THE_PORT = ("answer", "tls", "login", "database")


class BrokerAddress(Struct, frozen=True):
    """Where a URL leads, without its password."""

    host: str
    port: int
    user: str | None
    secret: bool  # there is a password
    vhost: str  # of Redis: the database
    tls: bool
    amqp: bool
    server: bool  # not a folder, nor a service that has no single address
    network: bool  # … nor a socket in the file system
    sentinel: bool

    @property
    def address(self) -> str:
        """Return host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place_of(settings: Settings, connection: kombu.Connection | None = None) -> BrokerAddress:
    """Return where an open connection leads, or else the first URL."""
    connection = connection or connect(settings)
    scheme = settings.broker_url.partition("://")[0]
    amqp = is_amqp(settings)
    user, password, vhost = connection.userid, connection.password, connection.virtual_host
    socket_path = ""
    if (connection.hostname or "").startswith("socket://"):  # which has all of the URL in it
        _, _, _, user, password, path, query = url_to_parts(connection.hostname)
        password, vhost = password or query.get("password"), query.get("virtual_host", vhost)
        socket_path = f"/{path or ''}"
    return BrokerAddress(
        host=socket_path or connection.hostname or "localhost",
        port=connection.port or connection.transport.default_port or 0,
        user=user,
        secret=bool(password),
        vhost=(vhost or "/") if amqp else str(vhost or "").removeprefix("/") or "0",
        tls=has_tls(settings),
        amqp=amqp,
        server=amqp or is_redis(settings),
        network=(amqp or is_redis(settings)) and not socket_path,
        sentinel=scheme == "sentinel",
    )


def check_connectivity(settings: Settings, say: Callable[[str], None]) -> Iterator[Finding]:
    """Yield what is found on the way up; nothing is a failure if one of several URLs leads to the top."""
    try:
        check(settings)
    except UnusableURLError as error:
        found, _, remedy = str(error).partition("; ")
        yield Finding("url", "critical", found.removeprefix("--broker-url: "), f"--broker-url: {remedy}")
        return
    yield Finding("url", "ok", masked(settings.broker_url))
    if no_events := why_no_events(settings):
        yield Finding("transport", "critical", no_events, NO_EVENTS_REMEDY)
        return
    urls = parts(settings.broker_url)
    if len(urls) == 1:
        yield from _rungs(settings, say)
        return
    ways = [list(_rungs(msgspec.structs.replace(settings, broker_url=url), say)) for url in urls]
    leads = any(all(finding.severity != "critical" for finding in way) for way in ways)
    for way in ways:
        for finding in way:
            spared = leads and finding.severity == "critical"
            yield msgspec.structs.replace(finding, severity="warning") if spared else finding


def _rungs(settings: Settings, say: Callable[[str], None]) -> Iterator[Finding]:
    place = place_of(settings)
    for rung, doing in ((_resolve, "looking for"), (_reach, "connecting to")) if place.network else ():
        say(f"{doing} {place.address}")
        finding = rung(place)
        yield finding
        if finding.severity == "critical":
            return
    say("logging in")
    yield from (login := _log_in(settings, place))
    if all(finding.severity != "critical" for finding in login):
        say("subscribing")
        yield from _subscribe(settings, place)


def _resolve(place: BrokerAddress) -> Finding:
    """In a thread: nothing bounds the system's resolver."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(sorted({info[4][0] for info in socket.getaddrinfo(place.host, place.port)}))
        except (OSError, UnicodeError) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVE_TIMEOUT)
    asked = shell_word(place.host)
    remedy = f"correct the host in --broker-url; what the system knows of it: getent hosts {asked}"
    if not answer:
        return Finding(
            "host", "critical", f"no answer in {RESOLVE_TIMEOUT:.0f} s what {place.host} is", remedy
        )
    if isinstance(answer[0], Exception):
        why = getattr(answer[0], "strerror", None) or "it cannot be a host's name"
        return Finding("host", "critical", f"{place.host} does not resolve: {why}", remedy)
    return Finding("host", "ok", f"{place.host} resolves to {', '.join(answer[0][:3])}")


def _reach(place: BrokerAddress) -> Finding:
    try:
        socket.create_connection((place.host, place.port), CONNECT_TIMEOUT).close()
    except TimeoutError:
        remedy = f"a firewall, or a wrong host; try it with: nc -vz {shell_word(place.host)} {place.port}"
        return Finding(
            "port", "critical", f"no answer from {place.address} in {CONNECT_TIMEOUT:.0f} s", remedy
        )
    except OSError as error:
        remedy = "start the broker, or correct host and port in --broker-url"
        if place.host in _LOCAL:
            remedy += " (in a container, 127.0.0.1 is the container itself)"
        return Finding("port", "critical", f"{place.address}: {error.strerror}", remedy)
    return Finding("port", "ok", f"{place.address} takes connections")


# -- what opening a connection says ---------------------------------------------------------------------


class _Row(Struct, frozen=True):
    """What a broker says, on which rung that is, and what mends it."""

    says: str
    rung: str
    remedy: Callable[[BrokerAddress], str]


def _permit(place: BrokerAddress) -> str:
    user = shell_word(place.user or "guest")
    return f"rabbitmqctl set_permissions -p {shell_word(place.vhost)} {user} '.*' '.*' '.*'"


def _password(place: BrokerAddress) -> str:
    if not place.amqp:
        return (
            f"--broker-url {_url(place, 'USER:PASSWORD')} with those that "
            "redis.conf has (requirepass, or its users); percent-encode what is special in them"
        )
    if place.user in (None, "guest") and place.host not in _LOCAL:
        return (  # https://www.rabbitmq.com/docs/access-control, "loopback_users"
            "guest may log in from localhost only: rabbitmqctl add_user celery PASSWORD && rabbitmqctl "
            f"set_permissions -p {shell_word(place.vhost)} celery '.*' '.*' '.*'"
        )
    user = shell_word(place.user or "guest")
    return f"correct user and password in --broker-url, or: rabbitmqctl change_password {user} PASSWORD"


def _url(place: BrokerAddress, login: str, database: str | None = None) -> str:
    """Return a URL of this Redis."""
    database = place.vhost if database is None else database
    if not place.network:
        return f"redis+socket://{login}@{place.host}{'' if database == '0' else f'?virtual_host={database}'}"
    return f"{'rediss' if place.tls else 'redis'}://{login}@{place.address}/{database}"


def _authority(place: BrokerAddress) -> str:
    option = "ca_certs" if place.amqp else "ssl_ca_certs"
    return f"--broker-ssl-option {option}=/path/of/ca.pem, of the authority that signed it"


_ROWS = (
    _Row(
        "master_name|No master found",
        "answer",
        lambda place: (
            "--broker-transport-option master_name=NAME, with a name that this lists: "
            f"redis-cli -h {shell_word(place.host)} -p {place.port} SENTINEL MASTERS"
        ),
    ),
    _Row(
        "Hostname mismatch|IP address mismatch",
        "tls",
        lambda place: f"in --broker-url, the name that the certificate is for, instead of {place.host}",
    ),
    _Row("certificate verify failed", "tls", _authority),
    _Row(
        "certificate required|handshake failure|bad certificate",
        "tls",
        lambda place: (
            "--broker-ssl-option certfile=… --broker-ssl-option keyfile=…"
            if place.amqp
            else "--broker-ssl-option ssl_certfile=… --broker-ssl-option ssl_keyfile=…"
        ),
    ),
    _Row(r"SSL|TLS", "tls", _authority),
    _Row("access to (exchange|queue|topic) ", "login", _permit),
    _Row(
        "Authentication required|username-password|NOAUTH|WRONGPASS|AUTH|Login was refused",
        "login",
        _password,
    ),
    _Row(
        "vhost .* not found",
        "database",
        lambda place: f"rabbitmqctl add_vhost {shell_word(place.vhost)} && {_permit(place)}",
    ),
    _Row("access to vhost|NOT_ALLOWED", "database", _permit),
    _Row(
        "DB index is out of range|Database is int|SELECT is not allowed",
        "database",
        lambda place: (
            f"--broker-url {_url(place, '…', '0')}, or the number that the workers use, below "
            "`databases` in redis.conf (16 unless set)"
        ),
    ),
    _Row("ACCESS_REFUSED", "login", _password),
    _Row(
        _READ_ONLY,
        "database",
        lambda place: (
            "--broker-url with the address of the master, which the replica has as master_host: "
            f"{redis_cli(place)} INFO replication"
        ),
    ),
    _Row(
        "Protocol error|closed by|closed connection|unpack|invalid method",
        "answer",
        lambda place: f"correct scheme and port in --broker-url: {place.address} is no such broker",
    ),
    _Row(
        r"Error (2|13|111) connecting to /",
        "answer",
        lambda place: (
            f"unixsocket {place.host} and unixsocketperm 770 in redis.conf, and this user in the group of "
            "Redis; or the path that redis.conf has in --broker-url"
        ),
    ),
    _Row(
        "",
        "answer",
        lambda place: (
            f"restart what listens on {place.address}, which takes connections and does not answer; "
            "or correct host and port in --broker-url"
        ),
    ),
)


def _log_in(settings: Settings, place: BrokerAddress) -> list[Finding]:
    connection = connect(settings)
    try:
        with broker_errors(connection):
            open_(connection)
    except (BrokerError, ValueError) as error:  # ValueError: a Redis database that is no number
        return _refused(settings, place, str(error))
    finally:
        close_quietly(connection)
    return _well(place)


def _well(place: BrokerAddress, until: str | None = None) -> list[Finding]:
    texts = {
        "answer": "the broker answers",
        "tls": "the broker's certificate is taken" if place.tls else "no TLS is asked for",
        "login": f"logged in as {place.user or ('guest' if place.amqp else 'the default user')}",
        "database": f"{'virtual host' if place.amqp else 'database'} {place.vhost} is there",
    }
    rungs: tuple[str, ...] = _AFTER_THE_PORT if place.server else _AFTER_THE_PORT[:1]
    rungs = rungs if until is None else rungs[: _AFTER_THE_PORT.index(until)]
    return [Finding(_named(rung, place), "ok", texts[rung]) for rung in rungs]


def _refused(settings: Settings, place: BrokerAddress, text: str) -> list[Finding]:
    row = _row(settings, text)
    mismatch = _tls_mismatch(place) if row.rung in ("answer", "tls") else None
    if mismatch is not None:
        return [mismatch]
    return [*_well(place, row.rung), Finding(_named(row.rung, place), "critical", text, row.remedy(place))]


def _row(settings: Settings, text: str) -> _Row:
    if re.search(_DENIED, text):
        return _Row(_DENIED, "login", lambda place: _grant(settings, place, text))
    return next(row for row in _ROWS if re.search(row.says, text))


def _named(rung: str, place: BrokerAddress) -> str:
    return "virtual-host" if rung == "database" and place.amqp else rung


def _tls_mismatch(place: BrokerAddress) -> Finding | None:
    """Tell when one side speaks TLS and the other does not, of which neither says anything useful."""
    if not place.network:
        return None
    schemes = ("amqp", "amqps") if place.amqp else ("redis", "rediss")
    if not place.tls and _speaks_tls(place):
        return Finding(
            "tls",
            "critical",
            f"{place.address} speaks TLS, and the URL does not",
            f"--broker-url {schemes[1]}://…",
        )
    if place.tls and _speaks_plainly(place):
        return Finding(
            "tls",
            "critical",
            f"the URL asks for TLS, which {place.address} does not speak",
            f"--broker-url {schemes[0]}://…, or the port on which the broker has TLS",
        )
    return None


def _speaks_tls(place: BrokerAddress) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said to it
    with suppress(OSError), socket.create_connection((place.host, place.port), CONNECT_TIMEOUT) as sock:
        try:
            context.wrap_socket(sock, server_hostname=place.host).close()
        except ssl.SSLError as error:  # it may want a certificate of ours
            return "ALERT" in (error.reason or "")
        return True
    return False


def _speaks_plainly(place: BrokerAddress) -> bool:
    """Ask a word that a broker answers to in its protocol (AMQP: any word), not in a TLS alert."""
    with suppress(OSError), socket.create_connection((place.host, place.port), CONNECT_TIMEOUT) as sock:
        sock.sendall(b"PING\r\n" + b" " * 2)
        return sock.recv(8)[:1] in (b"+", b"-", b"A")
    return False


# -- the subscription -------------------------------------------------------------------------------------


def _subscribe(settings: Settings, place: BrokerAddress) -> list[Finding]:
    """Try it; that it is open is told later, after a while of listening."""
    reader = consumer_for(SettingsSource(settings))
    try:
        reader.open()
    except BrokerError as error:
        text = str(error)
        return [Finding("subscription", "critical", text, _allow(settings, place, text))]
    finally:
        reader.close()
    return []


def _allow(settings: Settings, place: BrokerAddress, text: str) -> str:
    if re.search(f"{_DENIED}|{_READ_ONLY}|ACCESS_REFUSED", text):
        return _row(settings, text).remedy(place)
    if "PRECONDITION_FAILED" in text:
        return (
            "--event-exchange with the event_exchange of the workers: there is another exchange of this name"
        )
    return to_ask(place)


def _grant(settings: Settings, place: BrokerAddress, text: str) -> str:
    """Return what adds the kind of right that was denied, and takes none.

    Nothing of another kind: Redis refuses a pattern for those who have all keys, or all channels.
    """
    prefix = settings.broker_transport_options.get("global_keyprefix") or ""
    if re.search(r"(access|publish to) [\w ]*channel", text):
        # For PSUBSCRIBE the ACL has to hold the pattern itself (https://redis.io/docs/latest/operate/oss_and_stack/
        # management/security/acl/, "Pub/Sub channels"). The second channel is that of questions to workers.
        exchanges = (f"{settings.event_exchange}/*", f"{settings.control_exchange}.pidbox")
        return _set_user(place, *(f"&{prefix}/{place.vhost}.{exchange}" for exchange in exchanges))
    if re.search(r"access [\w ]*key", text):
        keys = (key.format(control_exchange=settings.control_exchange) for key in _KEYS)
        return _set_user(place, *(f"~{prefix}{key}" for key in keys))
    denied = re.findall(r"run the '([\w|-]+)'", text)
    return _set_user(place, *(f"+{command}" for command in dict.fromkeys((*denied, *_COMMANDS.split()))))


def _set_user(place: BrokerAddress, *rights: str) -> str:
    """Return the command for somebody else: who is denied something may not give it to himself."""
    administrator = msgspec.structs.replace(place, user=None, secret=False)
    words = " ".join(map(shell_word, (place.user or "default", *rights)))
    return f"as an administrator: {redis_cli(administrator)} ACL SETUSER {words}"


def to_ask_workers(settings: Settings, text: str) -> str:
    """Return what lets workers be asked; `text` is what the broker said of the question."""
    place = place_of(settings)
    row = _row(settings, text)
    return row.remedy(place) if row.says and place.server else to_ask(place)


def to_measure(settings: Settings, text: str) -> str:
    """Return what brings the lengths of queues; `text` is what the broker said of them, if anything."""
    place = place_of(settings)
    if (text and not re.search(_DENIED, text)) or not place.server:
        return to_ask(place)
    if place.amqp:  # which tells everybody of all queues but those; from 4.3 on, not everybody
        return (
            "exclusive=False where the queue is declared; or, if it is gone, start its workers anew: "
            f"rabbitmqctl list_queues -p {shell_word(place.vhost)} name exclusive consumers; "
            f"or, from RabbitMQ 4.3 on, if this user may do nothing with the queue: {_permit(place)}"
        )
    # What `queue_stats` asks, and Celery's clients may do all of (kombu/transport/redis.py).
    return _set_user(place, "~*", "+exists", "+llen", "+lindex", "+hlen")


def to_ask(place: BrokerAddress) -> str:
    """Return the command by which a broker tells itself what is the matter with it."""
    if place.amqp:
        return "rabbitmq-diagnostics log_tail, on the broker's host"
    if place.server:
        return (
            f"{redis_cli(place)} INFO, where connected_clients have to be below maxclients, and used_memory "
            "below maxmemory"
        )
    return "--broker-url and --broker-transport-option that are the workers' broker_url and its options"


def to_forget(settings: Settings, queues: Iterable[str]) -> str:
    """Return the command by which queues are no more that are empty, and that nobody should consume."""
    place = place_of(settings)
    if place.amqp:
        vhost = shell_word(place.vhost)
        return " && ".join(f"rabbitmqctl delete_queue -p {vhost} {shell_word(name)}" for name in queues)
    if not place.server:
        return "delete them where they are kept"
    # kombu knows a queue on Redis by the binding to its exchange (kombu/transport/redis.py).
    prefix = str(settings.broker_transport_options.get("global_keyprefix", ""))
    kinds = ("_kombu.binding", "_kombu.binding_permanent")
    keys = [f"{prefix}{kind}.{name}" for name in queues for kind in kinds]
    return f"{redis_cli(place)} DEL {' '.join(map(shell_word, keys))}"


def redis_cli(place: BrokerAddress) -> str:
    """Return how redis-cli is called for this Redis; it asks for the password by itself."""
    login = f" --user {shell_word(place.user)}" if place.user else ""
    login += " --askpass" if place.secret else ""
    if not place.network:
        return f"redis-cli -s {shell_word(place.host)}{login}"
    if place.sentinel:
        return "redis-cli -h MASTER"
    return f"redis-cli -h {shell_word(place.host)} -p {place.port}{' --tls' if place.tls else ''}{login}"
