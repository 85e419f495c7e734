"""What a broker answers when it refuses something → the command or setting that helps.

Commands are quoted for a shell and have the address of this broker. None contains a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import kombu
import msgspec
from kombu.utils.url import url_to_parts
from msgspec import Struct

from celery_exporter.broker.config import BrokerConfig
from celery_exporter.broker.connection import connect, has_tls, is_amqp, is_redis
from celery_exporter.quoting import shell_word

#: What kombu does on Redis to receive events and to inspect workers: commands, and keys
#: (kombu/transport/redis.py): bindings, its own event queue, reply queues, and unacknowledged messages.
_COMMANDS = (
    "ping llen del exists sadd srem smembers multi exec psubscribe punsubscribe publish brpop "
    "get set time zadd zrem zrange zrangebyscore zrevrangebyscore hget hset hdel eval evalsha script"
)
_KEYS = ("_kombu.binding*", "celeryev.*", "*.reply.{control_exchange}.pidbox*", "unacked*")

#: What Redis answers, or redis-py makes of it, where an ACL denies something, in a script too.
_DENIED = "NOPERM|[Nn]o permissions|ACL failure|The user executing the script"
_READ_ONLY = "read only replica"

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class BrokerAddress(Struct, frozen=True):
    """Where a URL leads, without its password."""

    host: str  # or the path of a socket
    port: int
    user: str | None
    has_password: bool
    vhost: str  # of Redis: the database
    tls: bool
    amqp: bool
    server: bool  # not a folder, nor a service without a single address
    network: bool  # a server that is not a socket in the file system
    sentinel: bool

    @property
    def address(self) -> str:
        """Return host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def broker_address(config: BrokerConfig, connection: kombu.Connection | None = None) -> BrokerAddress:
    """Return the address of an open connection, or else that of the first URL."""
    connection = connection or connect(config)
    amqp = is_amqp(config)
    user, password, vhost = connection.userid, connection.password, connection.virtual_host
    socket_path = ""
    if (connection.hostname or "").startswith("socket://"):  # the whole URL
        _, _, _, user, password, path, query = url_to_parts(connection.hostname)
        password, vhost = password or query.get("password"), query.get("virtual_host", vhost)
        socket_path = f"/{path or ''}"
    return BrokerAddress(
        host=socket_path or connection.hostname or "localhost",
        port=connection.port or connection.transport.default_port or 0,
        user=user,
        has_password=bool(password),
        vhost=(vhost or "/") if amqp else str(vhost or "").removeprefix("/") or "0",
        tls=has_tls(config),
        amqp=amqp,
        server=amqp or is_redis(config),
        network=(amqp or is_redis(config)) and not socket_path,
        sentinel=config.broker_url.startswith("sentinel://"),
    )


# -- refusals --------------------------------------------------------------------------------------------


class Refusal(Struct, frozen=True):
    """What a broker answers, as a regular expression; the check that it fails; and what helps."""

    pattern: str
    check: str
    remedy: Callable[[BrokerAddress], str]


def _set_permissions(broker: BrokerAddress) -> str:
    user = shell_word(broker.user or "guest")
    return f"rabbitmqctl set_permissions -p {shell_word(broker.vhost)} {user} '.*' '.*' '.*'"


def _correct_password(broker: BrokerAddress) -> str:
    if not broker.amqp:
        return (
            f"--broker-url {_redis_url(broker, 'USER:PASSWORD')} with those of redis.conf (requirepass, or "
            f"its users); percent-encode special characters"
        )
    if broker.user in (None, "guest") and broker.host not in LOCAL_HOSTS:
        return (  # https://www.rabbitmq.com/docs/access-control, "loopback_users"
            "guest may log in from localhost only: rabbitmqctl add_user celery PASSWORD && rabbitmqctl "
            f"set_permissions -p {shell_word(broker.vhost)} celery '.*' '.*' '.*'"
        )
    user = shell_word(broker.user or "guest")
    return f"correct user and password in --broker-url, or: rabbitmqctl change_password {user} PASSWORD"


def _redis_url(broker: BrokerAddress, login: str, database: str | None = None) -> str:
    database = broker.vhost if database is None else database
    if not broker.network:
        return f"redis+socket://{login}@{broker.host}{'' if database == '0' else f'?virtual_host={database}'}"
    return f"{'rediss' if broker.tls else 'redis'}://{login}@{broker.address}/{database}"


def _trust_authority(broker: BrokerAddress) -> str:
    option = "ca_certs" if broker.amqp else "ssl_ca_certs"
    return f"--broker-ssl-option {option}=/path/of/ca.pem, of the authority that signed the certificate"


def _client_certificate(broker: BrokerAddress) -> str:
    prefix = "" if broker.amqp else "ssl_"
    return f"--broker-ssl-option {prefix}certfile=… --broker-ssl-option {prefix}keyfile=…"


#: The first row that matches counts.
REFUSALS = (
    Refusal(
        "master_name|No master found",
        "answer",
        lambda broker: (
            "--broker-transport-option master_name=NAME, with a name that this lists: "
            f"redis-cli -h {shell_word(broker.host)} -p {broker.port} SENTINEL MASTERS"
        ),
    ),
    Refusal(
        "Hostname mismatch|IP address mismatch",
        "tls",
        lambda broker: f"in --broker-url, the name that the certificate is for, instead of {broker.host}",
    ),
    Refusal("certificate verify failed", "tls", _trust_authority),
    Refusal("certificate required|handshake failure|bad certificate", "tls", _client_certificate),
    Refusal(r"SSL|TLS", "tls", _trust_authority),
    Refusal("access to (exchange|queue|topic) ", "login", _set_permissions),
    Refusal(
        "Authentication required|username-password|NOAUTH|WRONGPASS|AUTH|Login was refused",
        "login",
        _correct_password,
    ),
    Refusal(
        "vhost .* not found",
        "database",
        lambda broker: f"rabbitmqctl add_vhost {shell_word(broker.vhost)} && {_set_permissions(broker)}",
    ),
    Refusal("access to vhost|NOT_ALLOWED", "database", _set_permissions),
    Refusal(
        "DB index is out of range|Database is int|SELECT is not allowed",
        "database",
        lambda broker: (
            f"--broker-url {_redis_url(broker, '…', '0')}, or the number that the workers use, below "
            "`databases` in redis.conf (16 unless set)"
        ),
    ),
    Refusal("ACCESS_REFUSED", "login", _correct_password),
    Refusal(
        _READ_ONLY,
        "database",
        lambda broker: (
            "--broker-url with the address of the master, which the replica has as master_host: "
            f"{redis_cli(broker)} INFO replication"
        ),
    ),
    Refusal(
        "Protocol error|closed by|closed connection|unpack|invalid method",
        "answer",
        lambda broker: f"correct scheme and port in --broker-url: {broker.address} is another kind of server",
    ),
    Refusal(
        r"Error (2|13|111) connecting to /",
        "answer",
        lambda broker: (
            f"unixsocket {broker.host} and unixsocketperm 770 in redis.conf, and this user in the group of "
            "Redis; or the path of redis.conf in --broker-url"
        ),
    ),
    Refusal(
        "",
        "answer",
        lambda broker: (
            f"restart what listens on {broker.address}, which accepts connections and does not answer; "
            "or correct host and port in --broker-url"
        ),
    ),
)


def refusal(config: BrokerConfig, error: str) -> Refusal:
    """Return the row of the table that matches the error of a broker."""
    if re.search(_DENIED, error):
        return Refusal(_DENIED, "login", lambda broker: acl_command(config, broker, error))
    return next(row for row in REFUSALS if re.search(row.pattern, error))


def subscription_remedy(config: BrokerConfig, broker: BrokerAddress, error: str) -> str:
    """Return what lets the exporter subscribe; `error` is what the broker answered."""
    if re.search(f"{_DENIED}|{_READ_ONLY}|ACCESS_REFUSED", error):
        return refusal(config, error).remedy(broker)
    if "PRECONDITION_FAILED" in error:
        return "--event-exchange with the event_exchange of the workers: another exchange has this name"
    return diagnose_command(broker)


def inspection_remedy(config: BrokerConfig, error: str) -> str:
    """Return what lets the exporter inspect workers; `error` is what the broker answered."""
    broker = broker_address(config)
    row = refusal(config, error)
    return row.remedy(broker) if row.pattern and broker.server else diagnose_command(broker)


def queue_lengths_remedy(config: BrokerConfig, error: str) -> str:
    """Return what makes queue lengths readable; `error` is what the broker answered, empty if nothing."""
    broker = broker_address(config)
    if (error and not re.search(_DENIED, error)) or not broker.server:
        return diagnose_command(broker)
    if (
        broker.amqp
    ):  # any user may read the length of a queue, unless it is exclusive; from 4.3 on, not any user
        return (
            "exclusive=False where the queue is declared; or, if the queue is gone, restart its workers: "
            f"rabbitmqctl list_queues -p {shell_word(broker.vhost)} name exclusive consumers; "
            f"or, from RabbitMQ 4.3 on, if this user has no permission on the queue: "
            f"{_set_permissions(broker)}"
        )
    # The commands of broker/queues/. Those of the second line are for unacknowledged messages by queue.
    commands = "+exists", "+llen", "+lindex", "+hlen"
    unacked = "+hkeys", "+hstrlen", "+hmget", "+scard", "+smembers"
    return _set_user(broker, "~*", *commands, *unacked)


# -- commands --------------------------------------------------------------------------------------------


def acl_command(config: BrokerConfig, broker: BrokerAddress, error: str) -> str:
    """Return the command that grants the kind of right that was denied, and revokes none.

    It grants no other kind: Redis rejects a pattern for a user who has all keys, or all channels.
    """
    prefix = config.broker_transport_option.get("global_keyprefix") or ""
    if re.search(r"(access|publish to) [\w ]*channel", error):
        # For PSUBSCRIBE the ACL has to hold the pattern itself
        # (https://redis.io/docs/latest/operate/oss_and_stack/ management/security/acl/, "Pub/Sub channels").
        # The second channel is that of worker inspection.
        exchanges = (f"{config.event_exchange}/*", f"{config.control_exchange}.pidbox")
        return _set_user(broker, *(f"&{prefix}/{broker.vhost}.{exchange}" for exchange in exchanges))
    if re.search(r"access [\w ]*key", error):
        keys = (key.format(control_exchange=config.control_exchange) for key in _KEYS)
        return _set_user(broker, *(f"~{prefix}{key}" for key in keys))
    denied = re.findall(r"run the '([\w|-]+)'", error)
    return _set_user(broker, *(f"+{command}" for command in dict.fromkeys((*denied, *_COMMANDS.split()))))


def _set_user(broker: BrokerAddress, *rights: str) -> str:
    """Return the command for an administrator: a user may not grant rights to itself."""
    administrator = msgspec.structs.replace(broker, user=None, has_password=False)
    words = " ".join(map(shell_word, (broker.user or "default", *rights)))
    return f"as an administrator: {redis_cli(administrator)} ACL SETUSER {words}"


def diagnose_command(broker: BrokerAddress) -> str:
    """Return the command that shows the state of a broker."""
    if broker.amqp:
        return "rabbitmq-diagnostics log_tail, on the broker's host"
    if broker.server:
        return (
            f"{redis_cli(broker)} INFO, where connected_clients has to be below maxclients, and used_memory "
            "below maxmemory"
        )
    return (
        "--broker-url and --broker-transport-option with the workers' broker_url and broker_transport_options"
    )


def delete_queues_command(config: BrokerConfig, broker: BrokerAddress, queues: Iterable[str]) -> str:
    """Return the command that deletes queues, which have to be empty."""
    if broker.amqp:
        vhost = shell_word(broker.vhost)
        return " && ".join(f"rabbitmqctl delete_queue -p {vhost} {shell_word(name)}" for name in queues)
    if not broker.server:
        return "delete them where they are stored"
    # A queue on Redis exists by the binding to its exchange (kombu/transport/redis.py).
    prefix = str(config.broker_transport_option.get("global_keyprefix", ""))
    kinds = ("_kombu.binding", "_kombu.binding_permanent")
    keys = [f"{prefix}{kind}.{name}" for name in queues for kind in kinds]
    return f"{redis_cli(broker)} DEL {' '.join(map(shell_word, keys))}"


def redis_cli(broker: BrokerAddress) -> str:
    """Return how to call redis-cli for this Redis; it asks for the password."""
    login = f" --user {shell_word(broker.user)}" if broker.user else ""
    login += " --askpass" if broker.has_password else ""
    if not broker.network:
        return f"redis-cli -s {shell_word(broker.host)}{login}"
    if broker.sentinel:
        return "redis-cli -h MASTER"
    tls = " --tls" if broker.tls else ""
    return f"redis-cli -h {shell_word(broker.host)} -p {broker.port}{tls}{login}"
