"""What a broker says when it refuses → the command or setting that helps.

Commands are quoted, and have the address of this broker; no password is in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import kombu
import msgspec
from kombu.utils.url import url_to_parts
from msgspec import Struct

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import (
    connect,
    has_tls,
    is_amqp,
    is_redis,
)
from celery_exporter.quoting import shell_word

#: Commands that kombu has for Redis when it listens and when it asks workers, and the keys of that: bindings,
#: its own queue of events, those of answers, and what it keeps of messages (kombu/transport/redis.py).
_COMMANDS = (
    "ping llen del exists sadd srem smembers multi exec psubscribe punsubscribe publish brpop "
    "get set time zadd zrem zrange zrangebyscore zrevrangebyscore hget hset hdel eval evalsha script"
)


_KEYS = ("_kombu.binding*", "celeryev.*", "*.reply.{control_exchange}.pidbox*", "unacked*")


#: What Redis says, and what redis-py makes of it, where an ACL denies something; in a script, too.
DENIED = "NOPERM|[Nn]o permissions|ACL failure|The user executing the script"


READ_ONLY = "read only replica"


LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


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


def place_of(config: BrokerConfig, connection: kombu.Connection | None = None) -> BrokerAddress:
    """Return where an open connection leads, or else the first URL."""
    connection = connection or connect(config)
    scheme = config.broker_url.partition("://")[0]
    amqp = is_amqp(config)
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
        tls=has_tls(config),
        amqp=amqp,
        server=amqp or is_redis(config),
        network=(amqp or is_redis(config)) and not socket_path,
        sentinel=scheme == "sentinel",
    )


class Refusal(Struct, frozen=True):
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
            f"--broker-url {url_with(place, 'USER:PASSWORD')} with those that "
            "redis.conf has (requirepass, or its users); percent-encode what is special in them"
        )
    if place.user in (None, "guest") and place.host not in LOCAL:
        return (  # https://www.rabbitmq.com/docs/access-control, "loopback_users"
            "guest may log in from localhost only: rabbitmqctl add_user celery PASSWORD && rabbitmqctl "
            f"set_permissions -p {shell_word(place.vhost)} celery '.*' '.*' '.*'"
        )
    user = shell_word(place.user or "guest")
    return f"correct user and password in --broker-url, or: rabbitmqctl change_password {user} PASSWORD"


def url_with(place: BrokerAddress, login: str, database: str | None = None) -> str:
    """Return a URL of this Redis."""
    database = place.vhost if database is None else database
    if not place.network:
        return f"redis+socket://{login}@{place.host}{'' if database == '0' else f'?virtual_host={database}'}"
    return f"{'rediss' if place.tls else 'redis'}://{login}@{place.address}/{database}"


def authority(place: BrokerAddress) -> str:
    """Return the option that names a certificate authority."""
    option = "ca_certs" if place.amqp else "ssl_ca_certs"
    return f"--broker-ssl-option {option}=/path/of/ca.pem, of the authority that signed it"


REFUSALS = (
    Refusal(
        "master_name|No master found",
        "answer",
        lambda place: (
            "--broker-transport-option master_name=NAME, with a name that this lists: "
            f"redis-cli -h {shell_word(place.host)} -p {place.port} SENTINEL MASTERS"
        ),
    ),
    Refusal(
        "Hostname mismatch|IP address mismatch",
        "tls",
        lambda place: f"in --broker-url, the name that the certificate is for, instead of {place.host}",
    ),
    Refusal("certificate verify failed", "tls", authority),
    Refusal(
        "certificate required|handshake failure|bad certificate",
        "tls",
        lambda place: (
            "--broker-ssl-option certfile=… --broker-ssl-option keyfile=…"
            if place.amqp
            else "--broker-ssl-option ssl_certfile=… --broker-ssl-option ssl_keyfile=…"
        ),
    ),
    Refusal(r"SSL|TLS", "tls", authority),
    Refusal("access to (exchange|queue|topic) ", "login", _permit),
    Refusal(
        "Authentication required|username-password|NOAUTH|WRONGPASS|AUTH|Login was refused",
        "login",
        _password,
    ),
    Refusal(
        "vhost .* not found",
        "database",
        lambda place: f"rabbitmqctl add_vhost {shell_word(place.vhost)} && {_permit(place)}",
    ),
    Refusal("access to vhost|NOT_ALLOWED", "database", _permit),
    Refusal(
        "DB index is out of range|Database is int|SELECT is not allowed",
        "database",
        lambda place: (
            f"--broker-url {url_with(place, '…', '0')}, or the number that the workers use, below "
            "`databases` in redis.conf (16 unless set)"
        ),
    ),
    Refusal("ACCESS_REFUSED", "login", _password),
    Refusal(
        READ_ONLY,
        "database",
        lambda place: (
            "--broker-url with the address of the master, which the replica has as master_host: "
            f"{redis_cli(place)} INFO replication"
        ),
    ),
    Refusal(
        "Protocol error|closed by|closed connection|unpack|invalid method",
        "answer",
        lambda place: f"correct scheme and port in --broker-url: {place.address} is no such broker",
    ),
    Refusal(
        r"Error (2|13|111) connecting to /",
        "answer",
        lambda place: (
            f"unixsocket {place.host} and unixsocketperm 770 in redis.conf, and this user in the group of "
            "Redis; or the path that redis.conf has in --broker-url"
        ),
    ),
    Refusal(
        "",
        "answer",
        lambda place: (
            f"restart what listens on {place.address}, which takes connections and does not answer; "
            "or correct host and port in --broker-url"
        ),
    ),
)


def refusal(config: BrokerConfig, text: str) -> Refusal:
    """Return the row of the table that the text of a broker matches."""
    if re.search(DENIED, text):
        return Refusal(DENIED, "login", lambda place: grant(config, place, text))
    return next(row for row in REFUSALS if re.search(row.says, text))


def allow(config: BrokerConfig, place: BrokerAddress, text: str) -> str:
    """Return what lets the exporter subscribe; `text` is what the broker said of it."""
    if re.search(f"{DENIED}|{READ_ONLY}|ACCESS_REFUSED", text):
        return refusal(config, text).remedy(place)
    if "PRECONDITION_FAILED" in text:
        return (
            "--event-exchange with the event_exchange of the workers: there is another exchange of this name"
        )
    return to_ask(place)


def grant(config: BrokerConfig, place: BrokerAddress, text: str) -> str:
    """Return what adds the kind of right that was denied, and takes none.

    Nothing of another kind: Redis refuses a pattern for those who have all keys, or all channels.
    """
    prefix = config.broker_transport_option.get("global_keyprefix") or ""
    if re.search(r"(access|publish to) [\w ]*channel", text):
        # For PSUBSCRIBE the ACL has to hold the pattern itself (https://redis.io/docs/latest/operate/oss_and_stack/
        # management/security/acl/, "Pub/Sub channels"). The second channel is that of questions to workers.
        exchanges = (f"{config.event_exchange}/*", f"{config.control_exchange}.pidbox")
        return _set_user(place, *(f"&{prefix}/{place.vhost}.{exchange}" for exchange in exchanges))
    if re.search(r"access [\w ]*key", text):
        keys = (key.format(control_exchange=config.control_exchange) for key in _KEYS)
        return _set_user(place, *(f"~{prefix}{key}" for key in keys))
    denied = re.findall(r"run the '([\w|-]+)'", text)
    return _set_user(place, *(f"+{command}" for command in dict.fromkeys((*denied, *_COMMANDS.split()))))


def _set_user(place: BrokerAddress, *rights: str) -> str:
    """Return the command for somebody else: who is denied something may not give it to himself."""
    administrator = msgspec.structs.replace(place, user=None, secret=False)
    words = " ".join(map(shell_word, (place.user or "default", *rights)))
    return f"as an administrator: {redis_cli(administrator)} ACL SETUSER {words}"


def to_ask_workers(config: BrokerConfig, text: str) -> str:
    """Return what lets workers be asked; `text` is what the broker said of the question."""
    place = place_of(config)
    row = refusal(config, text)
    return row.remedy(place) if row.says and place.server else to_ask(place)


def to_measure(config: BrokerConfig, text: str) -> str:
    """Return what brings the lengths of queues; `text` is what the broker said of them, if anything."""
    place = place_of(config)
    if (text and not re.search(DENIED, text)) or not place.server:
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


def to_forget(config: BrokerConfig, queues: Iterable[str]) -> str:
    """Return the command by which queues are no more that are empty, and that nobody should consume."""
    place = place_of(config)
    if place.amqp:
        vhost = shell_word(place.vhost)
        return " && ".join(f"rabbitmqctl delete_queue -p {vhost} {shell_word(name)}" for name in queues)
    if not place.server:
        return "delete them where they are kept"
    # kombu knows a queue on Redis by the binding to its exchange (kombu/transport/redis.py).
    prefix = str(config.broker_transport_option.get("global_keyprefix", ""))
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
