"""The files that docker-compose.yml mounts are valid for the programs that read them."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from urllib.parse import urlsplit

import pytest
import redis
import yaml
from harness import compose
from harness.processes import ROOT, need
from harness.servers import Alertmanager, RedisServer
from harness.waiting import ANSWER_TIMEOUT, eventually
from harness.webhook import Webhook
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_exporter.doctor.problems import NOT_SCRAPED

SERVICES = compose.load()["services"]
#: Services of other profiles, which Prometheus does not scrape: a target that is down would be an alert.
NOT_SCRAPED_HERE = {"influxdb": "influxdb", "tempo": "tracing"}
#: Ports of the services that others connect to.
PORTS = {
    "exporter": 9808,
    "exporter-rabbitmq": 9808,
    "prometheus": 9090,
    "alertmanager": 9093,
    "grafana": 3000,
    "loki": 3100,
    "influxdb": 8086,
    "tempo": 3200,
    "node-exporter": 9100,
    "redis-exporter": 9121,
    "postgres-exporter": 9187,
}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """Return a folder with secrets."""
    folder = tmp_path_factory.mktemp("stack") / "secrets"
    subprocess.run([ROOT / "deploy/secrets.sh", folder], check=True)
    return folder


@pytest.fixture
def mounted(secrets, tmp_path):
    """Return a function that returns a folder with the mounted files of a service."""
    return lambda name, **environment: compose.mount(name, tmp_path / name, secrets, **environment)


def run(*command, cwd):
    """Run a command in a folder."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def option(name, flag):
    """Return the value of a flag in the command of a service."""
    (value,) = [word.partition("=")[2] for word in SERVICES[name]["command"] if word.startswith(f"{flag}=")]
    return value


def service_of(url, *, profile="monitoring"):
    """Return the host of an address, which must be a service of this profile with this port."""
    host, port = urlsplit(url if "//" in url else f"//{url}").netloc.split(":")
    assert PORTS[host] == int(port)
    assert SERVICES[host].get("profiles", [profile]) == [profile]
    return host


# -- Prometheus


@pytest.mark.parametrize("targets", ["celery", "celery-rabbitmq"])
def test_promtool_accepts_the_configuration(mounted, targets):
    folder = mounted("prometheus", CELERY_TARGETS=targets)
    config = folder / option("prometheus", "--config.file").lstrip("/")
    result = run(need("promtool"), "check", "config", config, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stdout, "a file with targets is missing"
    assert re.search(r"[1-9]\d* rules found", result.stdout)


@pytest.mark.parametrize(("targets", "clusters"), [("celery", 1), ("celery-rabbitmq", 2)])
def test_prometheus_scrapes_all_services_with_metrics(mounted, targets, clusters):
    folder = mounted("prometheus", CELERY_TARGETS=targets) / "etc/prometheus"
    groups = [group for file in folder.glob("targets/*.yml") for group in yaml.safe_load(file.read_text())]
    services = {}
    for group in groups:
        (address,) = group["targets"]
        job = group.get("labels", {}).get("job", "celery")
        assert job not in services
        if address == "127.0.0.1:9090":
            services[job] = "prometheus"
        else:
            services[job] = service_of(address, profile="rabbitmq" if "rabbitmq" in job else "monitoring")
    expected = PORTS.keys() - NOT_SCRAPED_HERE.keys() - ({"exporter-rabbitmq"} if clusters == 1 else set())
    assert sorted(services.values()) == sorted(expected)
    assert len([job for job in services if re.fullmatch(".*celery.*", job)]) == clusters, "a job for each"


# -- Alertmanager


@pytest.fixture
def alertmanager_yml(mounted):
    folder = mounted("alertmanager") / SERVICES["alertmanager"]["working_dir"].lstrip("/")
    return folder / option("alertmanager", "--config.file")


def test_amtool_accepts_the_configuration(alertmanager_yml):
    result = run(need("amtool"), "check-config", alertmanager_yml, cwd=alertmanager_yml.parent)
    assert result.returncode == 0, result.stderr
    count = len(yaml.safe_load(alertmanager_yml.read_text())["inhibit_rules"])
    assert {f"{count} inhibit rules", "3 receivers"} <= set(re.findall(r"\d+ [a-z ]+(?=\n)", result.stdout))


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=CeleryExporterDown", "severity=critical"), "page"),
        (("alertname=CeleryWorkerDown", "severity=warning"), "chat"),
        (("alertname=CeleryWorkerPoolFull", "severity=info"), "mail"),
        (("alertname=Unrelated",), "mail"),
    ],
)
def test_receivers(alertmanager_yml, labels, receiver):
    arguments = (
        "config",
        "routes",
        "test",
        f"--config.file={alertmanager_yml}",
        f"--verify.receivers={receiver}",
    )
    result = run(need("amtool"), *arguments, *labels, cwd=alertmanager_yml.parent)
    assert result.returncode == 0, result.stdout + result.stderr


def test_severities_of_the_alerts():
    groups = yaml.safe_load((ROOT / "alerts/celery.rules.yml").read_text())["groups"]
    severities = {
        rule["labels"]["severity"] for group in groups for rule in group["rules"] if "alert" in rule
    }
    assert severities == {"critical", "warning", "info"}


def test_receivers_read_their_secrets_from_mounted_files(alertmanager_yml):
    config = alertmanager_yml.read_text()
    files = re.findall(r"_file: (\S+)", config)
    assert len(files) == 3
    assert [file for file in files if not (alertmanager_yml.parent / file).exists()] == []
    assert not re.search(r"(?<!_file)(password|_key|api_url|token): ", config)


@pytest.fixture
def manager(alertmanager_yml, running):
    """Yield an Alertmanager with this configuration, without group_wait, that notifies `manager.pager`."""
    with Webhook() as pager:
        config = yaml.safe_load(re.sub(r"group_wait: \S+", "group_wait: 0s", alertmanager_yml.read_text()))
        config["global"]["pagerduty_url"] = pager.url
        secrets = alertmanager_yml.parent / "secrets"
        (secrets / "slack_url").write_text(pager.url)
        (secrets / "pagerduty_key").write_text("k" * 32)
        manager = Alertmanager(alertmanager_yml.parent, pager.url)
        alertmanager_yml.write_text(yaml.safe_dump(config))
        manager.pager = pager
        yield running(manager)


def url(manager):
    """Return the URL of the alerts API."""
    return f"http://{manager.address}/api/v2/alerts"


def fire(manager, *alerts):
    """Send alerts to an Alertmanager."""
    body = json.dumps(
        [{"labels": {"job": "celery", **alert}, "annotations": {"summary": "Look"}} for alert in alerts]
    )
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(url(manager), body.encode(), headers), timeout=ANSWER_TIMEOUT
    ).close()


def test_notifications_use_the_secrets_from_the_files(manager):
    fire(manager, {"alertname": "CeleryExporterDown", "severity": "critical"})
    bodies = eventually(lambda: len(manager.pager.bodies) == 2 and manager.pager.bodies)
    chat, page = sorted(bodies, key=lambda body: "routing_key" in body)
    assert page["routing_key"] == "k" * 32
    assert page["payload"]["summary"] == "Look"
    assert "CeleryExporterDown: Look" in chat["attachments"][0]["title"]


# -- Redis


class Configured(RedisServer):
    """Redis with the command of the stack, on another port."""

    def command(self):
        return [
            self.program,
            *SERVICES["redis"]["command"][1:],
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
        ]


def test_redis_accepts_the_configuration_and_requires_the_password(mounted, secrets, running):
    folder = mounted("redis") / SERVICES["redis"]["working_dir"].lstrip("/")
    server = Configured(folder, password=(secrets / "redis_password").read_text().strip())
    client = running(server).client()
    settings = client.config_get("maxmemory", "maxmemory-policy", "appendonly", "save")
    assert settings == {
        "maxmemory": str(192 << 20),
        "maxmemory-policy": "noeviction",
        "appendonly": "no",
        "save": "",
    }
    limit = SERVICES["redis"]["mem_limit"]
    assert int(limit.removesuffix("m")) > 192
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)).ping()


# -- Grafana, Loki and Alloy: without their programs, the tests check that the named files and services exist


def test_grafana_is_provisioned_with_the_mounted_files(mounted):
    folder = mounted("grafana")
    provisioning = folder / "etc/grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/celery.yml").read_text())["providers"]
    boards = sorted((folder / provider["options"]["path"].lstrip("/")).glob("*.json"))
    assert [path.stem for path in boards] == [
        *("celery-exporter", "celery-objectives", "celery-overview", "celery-points"),
        *("celery-task-log", "celery-tasks", "celery-workers"),
    ]
    sources = yaml.safe_load((provisioning / "datasources/stack.yml").read_text())["datasources"]
    for source in sources:
        profile = NOT_SCRAPED_HERE.get(source["uid"], "monitoring")
        assert service_of(source["url"], profile=profile) == source["type"] == source["uid"]
    (default,) = [source for source in sources if source.get("isDefault")]
    assert default["type"] == "prometheus"
    types = {
        variable["query"]
        for path in boards
        for variable in json.loads(path.read_text())["templating"]["list"]
        if variable["type"] == "datasource"
    }
    assert types == {source["type"] for source in sources} - {"alertmanager"}
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert default["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def as_grafana_reads(value, folder):
    """Return a value with the content of files for $__file{…}, and $ for $$. No other $ may be in it."""
    if isinstance(value, dict):
        return {name: as_grafana_reads(item, folder) for name, item in value.items()}
    if isinstance(value, list):
        return [as_grafana_reads(item, folder) for item in value]
    if not isinstance(value, str):
        return value

    def content(match):
        return (folder / match[1].lstrip("/")).read_text().strip()

    parts = [re.sub(r"\$__file\{(.*?)\}", content, part) for part in value.split("$$")]
    assert not any("$" in part for part in parts), value
    return "$".join(parts)


@pytest.fixture
def sources(mounted):
    """Return the data sources by uid, as Grafana reads them."""
    folder = mounted("grafana")
    file = folder / "etc/grafana/provisioning/datasources/stack.yml"
    content = as_grafana_reads(yaml.safe_load(file.read_text()), folder)
    return {source["uid"]: source for source in content["datasources"]}


def test_grafana_reads_influxdb_with_the_token_of_the_stack(sources, secrets):
    source, service = sources["influxdb"], SERVICES["influxdb"]["environment"]
    token = (secrets / "influxdb_token").read_text().strip()
    header = source["jsonData"]["httpHeaderName1"], source["secureJsonData"]["httpHeaderValue1"]
    assert header == ("Authorization", f"Token {token}")
    assert source["jsonData"]["dbName"] == service["DOCKER_INFLUXDB_INIT_BUCKET"]
    assert token not in (ROOT / "deploy/grafana/provisioning/datasources/stack.yml").read_text()


def test_links_lead_to_existing_data_sources_and_dashboards(sources):
    text = json.dumps(sources)
    assert set(re.findall(r'"datasourceUid": "(\w+)"', text)) == {"tempo", "loki"} <= sources.keys()
    assert set(re.findall(r"/d/([\w-]+)\?", text)) == {"celery-task-log"}
    assert (ROOT / "dashboards/provisioning/celery-task-log.json").exists()
    destinations = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert [destination["name"] for destination in destinations] == ["trace_id", "task_id"]
    trace, log = sources["loki"]["jsonData"]["derivedFields"]
    assert (trace["matcherRegex"], log["matcherRegex"]) == ("^uuid$", "^uuid$")
    assert trace["url"] == '{ span.messaging.message.id = "${__value.raw}" }'
    assert log["url"].endswith("?var-uuid=${__value.raw}")
    logs = sources["tempo"]["jsonData"]["tracesToLogsV2"]
    assert logs["tags"] == [{"key": "service.name", "value": "service"}]
    assert logs["query"] == ('{${__tags}, state=~".+"} | uuid="${__span.tags["messaging.message.id"]}"')


INTERVAL = "15s"


def test_all_scrape_intervals_are_equal():
    """The rules depend on it: it is the step of the subquery in CeleryWorkerDown."""
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    monitor = yaml.safe_load((ROOT / "deploy/kubernetes/servicemonitor.yaml").read_text())
    rules = (ROOT / "alerts/celery.rules.yml").read_text()
    intervals = {
        *(prometheus["global"][f"{name}_interval"] for name in ("scrape", "evaluation")),
        *(endpoint["interval"] for endpoint in monitor["spec"]["endpoints"]),
        *re.findall(r"\[\d+m:(\w+)\]", rules),
        *re.findall(r"scrape_interval: (\w+)", NOT_SCRAPED.remedy),
    }
    assert intervals == {INTERVAL}


def test_alloy_sends_container_logs_to_loki(mounted):
    *_, path = SERVICES["alloy"]["command"]
    config = (mounted("alloy") / path.lstrip("/")).read_text()
    targets = {target: mode for _, target, mode in compose.volumes(SERVICES["alloy"])}
    assert targets[option("alloy", "--storage.path")] == "rw"  # the positions in the log files
    assert targets[path] == "ro"
    assert service_of(re.findall(r'url = "(.*)"', config)[0]) == "loki"
    assert targets[re.findall(r'"__path__" = "(.*?)/\*', config)[0]] == "ro"
    port = option("alloy", "--server.http.listen-addr").rpartition(":")[2]
    assert f"/{port}" in SERVICES["alloy"]["healthcheck"]["test"][-1]
    # Each referenced component is defined.
    defined = {f"{kind}.{name}" for kind, name in re.findall(r'^([a-z._]+) "(\w+)" {', config, re.MULTILINE)}
    used = set(re.findall(r"\b((?:local|loki)\.[a-z_]+\.\w+)\.(?:targets|receiver)", config))
    assert used == defined - {"loki.source.file.containers"}
    assert {service["logging"]["driver"] for service in SERVICES.values()} == {"json-file"}
    (label,) = {service["logging"]["options"]["labels"] for service in SERVICES.values()}
    assert f'{{"container" = "\\"{label}\\""}}' in config


def test_loki_writes_to_its_volume(mounted):
    config = yaml.safe_load((mounted("loki") / "etc/loki/loki.yml").read_text())
    (volume,) = [target for _, target, mode in compose.volumes(SERVICES["loki"]) if mode == "rw"]
    folders = (config["common"]["path_prefix"], config["compactor"]["working_directory"])
    assert all(
        path.startswith(volume) for path in (*folders, *config["common"]["storage"]["filesystem"].values())
    )
    assert config["server"]["http_listen_port"] == PORTS["loki"]


def test_tempo_receives_spans_and_writes_to_its_volume(mounted):
    config = yaml.safe_load((mounted("tempo") / "etc/tempo/tempo.yml").read_text())
    (volume,) = [target for _, target, mode in compose.volumes(SERVICES["tempo"]) if mode == "rw"]
    storage = config["storage"]["trace"]
    assert storage["wal"]["path"].startswith(volume)
    assert storage["local"]["path"].startswith(volume)
    assert config["server"]["http_listen_port"] == PORTS["tempo"]
    protocols = config["distributor"]["receivers"]["otlp"]["protocols"]
    assert protocols == {"http": {"endpoint": "0.0.0.0:4318"}}  # the port of OTLP_ENDPOINT in .env.example


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "loki", "tempo"])
def test_a_program_reads_its_mounted_file(name):
    flag = "--config.file" if name in {"prometheus", "alertmanager"} else "-config.file"
    path = option(name, flag)
    folder = SERVICES[name].get("working_dir", "")
    assert f"{folder}/{path}".replace("//", "/") in {
        target for _, target, _ in compose.volumes(SERVICES[name])
    }
