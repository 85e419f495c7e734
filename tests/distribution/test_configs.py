"""What docker-compose.yml mounts, laid out as it mounts it: each checked by the program that reads it."""

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
from harness.waiting import ANSWER_TIMEOUT, eventually, until_equal
from harness.webhook import Webhook
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_exporter.doctor.problems import NOT_SCRAPED

SERVICES = compose.load()["services"]
#: Where each service listens, as far as others look for it.
LISTENING = {
    "exporter": 9808,
    "exporter-rabbitmq": 9808,
    "prometheus": 9090,
    "alertmanager": 9093,
    "grafana": 3000,
    "loki": 3100,
    "node-exporter": 9100,
    "redis-exporter": 9121,
    "postgres-exporter": 9187,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "secrets"
    subprocess.run([ROOT / "deploy/secrets.sh", folder], check=True)
    return folder


@pytest.fixture
def mounted(made, tmp_path):
    """`mounted(service)` is a folder with what that service has mounted."""
    return lambda name, **environment: compose.mount(name, tmp_path / name, made, **environment)


def run(*command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def option(name, flag):
    """Return the value of a flag in a service's command."""
    (value,) = [word.partition("=")[2] for word in SERVICES[name]["command"] if word.startswith(f"{flag}=")]
    return value


def service_of(url, *, profile="monitoring"):
    """Return the host of an address, which has to be a service that listens there and is up, too."""
    host, port = urlsplit(url if "//" in url else f"//{url}").netloc.split(":")
    assert LISTENING[host] == int(port)
    assert SERVICES[host].get("profiles", [profile]) == [profile]
    return host


# Prometheus


@pytest.mark.parametrize("targets", ["celery", "celery-rabbitmq"])
def test_promtool_takes_the_configuration(mounted, targets):
    folder = mounted("prometheus", CELERY_TARGETS=targets)
    config = folder / option("prometheus", "--config.file").lstrip("/")
    done = run(need("promtool"), "check", "config", config, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout, "a file with targets that is not there"
    assert re.search(r"[1-9]\d* rules found", done.stdout)


@pytest.mark.parametrize(("targets", "clusters"), [("celery", 1), ("celery-rabbitmq", 2)])
def test_prometheus_watches_all_that_can_be_watched(mounted, targets, clusters):
    folder = mounted("prometheus", CELERY_TARGETS=targets) / "etc/prometheus"
    groups = [group for file in folder.glob("targets/*.yml") for group in yaml.safe_load(file.read_text())]
    found = {}
    for group in groups:
        (address,) = group["targets"]
        job = group.get("labels", {}).get("job", "celery")
        assert job not in found
        if address == "127.0.0.1:9090":
            found[job] = "prometheus"
        else:
            found[job] = service_of(address, profile="rabbitmq" if "rabbitmq" in job else "monitoring")
    wanted = LISTENING.keys() - ({"exporter-rabbitmq"} if clusters == 1 else set())
    assert sorted(found.values()) == sorted(wanted)
    assert len([job for job in found if re.fullmatch(".*celery.*", job)]) == clusters, "as alerts find them"


# Alertmanager


@pytest.fixture
def alertmanager_yml(mounted):
    folder = mounted("alertmanager") / SERVICES["alertmanager"]["working_dir"].lstrip("/")
    return folder / option("alertmanager", "--config.file")


def test_amtool_takes_the_configuration(alertmanager_yml):
    done = run(need("amtool"), "check-config", alertmanager_yml, cwd=alertmanager_yml.parent)
    assert done.returncode == 0, done.stderr
    assert {"2 inhibit rules", "3 receivers"} <= set(re.findall(r"\d+ [a-z ]+(?=\n)", done.stdout))


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=CeleryExporterDown", "severity=critical"), "page"),
        (("alertname=CeleryWorkerDown", "severity=warning"), "chat"),
        (("alertname=CeleryWorkerPoolFull", "severity=info"), "mail"),
        (("alertname=OfSomebodyElse",), "mail"),
    ],
)
def test_who_is_told(alertmanager_yml, labels, receiver):
    arguments = (
        "config",
        "routes",
        "test",
        f"--config.file={alertmanager_yml}",
        f"--verify.receivers={receiver}",
    )
    done = run(need("amtool"), *arguments, *labels, cwd=alertmanager_yml.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_severity_of_the_alerts_is_known():
    groups = yaml.safe_load((ROOT / "alerts/celery.rules.yml").read_text())["groups"]
    found = {rule["labels"]["severity"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert found == {"critical", "warning", "info"}


def test_receivers_take_their_secrets_from_the_files_mounted(alertmanager_yml):
    config = alertmanager_yml.read_text()
    files = re.findall(r"_file: (\S+)", config)
    assert len(files) == 3
    assert [file for file in files if not (alertmanager_yml.parent / file).exists()] == []
    assert not re.search(r"(?<!_file)(password|_key|api_url|token): ", config)


@pytest.fixture
def manager(alertmanager_yml, running):
    """Return an Alertmanager so configured, but for its patience, and for whom it tells: `manager.pager`."""
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
    return f"http://{manager.address}/api/v2/alerts"


def fire(manager, *alerts):
    body = json.dumps(
        [{"labels": {"job": "celery", **alert}, "annotations": {"summary": "Look"}} for alert in alerts]
    )
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(url(manager), body.encode(), headers), timeout=ANSWER_TIMEOUT
    ).close()


def states(manager):
    """Return which alerts it passes on ("active"), and which it keeps to itself ("suppressed")."""
    with urllib.request.urlopen(url(manager), timeout=ANSWER_TIMEOUT) as answer:
        return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in json.load(answer)}


def test_messages_go_out_with_the_secrets_from_the_files(manager):
    fire(manager, {"alertname": "CeleryExporterDown", "severity": "critical"})
    bodies = eventually(lambda: len(manager.pager.bodies) == 2 and manager.pager.bodies)
    chat, page = sorted(bodies, key=lambda body: "routing_key" in body)
    assert page["routing_key"] == "k" * 32
    assert page["payload"]["summary"] == "Look"
    assert "CeleryExporterDown: Look" in chat["attachments"][0]["title"]


def test_a_critical_silences_the_warnings_that_follow_from_it(manager):
    warnings = [
        {"alertname": "CeleryWorkerDown", "severity": "warning", "worker": "a@b"},
        {"alertname": "CeleryHighQueueDepth", "severity": "warning", "queue_name": "emails"},
        {"alertname": "CeleryQueueWaitHigh", "severity": "warning", "queue_name": "reports"},
        {"alertname": "CeleryEventsMissed", "severity": "warning", "job": "celery-rabbitmq"},
        {"alertname": "OfSomebodyElse", "severity": "warning"},
    ]
    expected = dict.fromkeys((alert["alertname"] for alert in warnings), "active")

    def follows(critical, *silenced):
        fire(manager, critical)
        expected.update({critical["alertname"]: "active"} | dict.fromkeys(silenced, "suppressed"))
        until_equal(lambda: states(manager), expected)

    fire(manager, *warnings)
    until_equal(lambda: states(manager), expected)
    follows(
        {"alertname": "CeleryQueueWithoutConsumers", "severity": "critical", "queue_name": "emails"},
        "CeleryHighQueueDepth",
    )
    follows(
        {"alertname": "CeleryNoWorkersOnline", "severity": "critical"},
        "CeleryWorkerDown",
        "CeleryQueueWaitHigh",
    )


# Redis


class Configured(RedisServer):
    """As in the stack, on a port of its own."""

    def command(self):
        return [
            self.program,
            *SERVICES["redis"]["command"][1:],
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
        ]


def test_redis_takes_the_configuration_and_asks_for_the_password(mounted, made, running):
    folder = mounted("redis") / SERVICES["redis"]["working_dir"].lstrip("/")
    server = Configured(folder, password=(made / "redis_password").read_text().strip())
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


# Grafana, Loki and Alloy have no tool here: what they name has to be there.


def test_grafana_is_provisioned_with_what_is_mounted(mounted):
    folder = mounted("grafana")
    provisioning = folder / "etc/grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/celery.yml").read_text())["providers"]
    boards = sorted((folder / provider["options"]["path"].lstrip("/")).glob("*.json"))
    assert [path.stem for path in boards] == [
        *("celery-exporter", "celery-overview", "celery-tasks", "celery-workers"),
    ]
    sources = yaml.safe_load((provisioning / "datasources/stack.yml").read_text())["datasources"]
    for source in sources:
        assert service_of(source["url"]) == source["type"] == source["uid"]
    (default,) = [source for source in sources if source.get("isDefault")]
    wanted = {
        variable["query"]
        for path in boards
        for variable in json.loads(path.read_text())["templating"]["list"]
        if variable["type"] == "datasource"
    }
    assert wanted == {default["type"]}
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert default["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


INTERVAL = "15s"


def test_whatever_scrapes_does_so_in_one_interval():
    """The rules are made for it: the subquery of CeleryWorkerDown has it as its step."""
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    monitor = yaml.safe_load((ROOT / "deploy/kubernetes/servicemonitor.yaml").read_text())
    rules = (ROOT / "alerts/celery.rules.yml").read_text()
    intervals = {
        *(prometheus["global"][f"{each}_interval"] for each in ("scrape", "evaluation")),
        *(endpoint["interval"] for endpoint in monitor["spec"]["endpoints"]),
        *re.findall(r"\[\d+m:(\w+)\]", rules),
        *re.findall(r"scrape_interval: (\w+)", NOT_SCRAPED.remedy),
    }
    assert intervals == {INTERVAL}


def test_logs_go_from_the_engine_to_loki(mounted):
    *_, path = SERVICES["alloy"]["command"]
    config = (mounted("alloy") / path.lstrip("/")).read_text()
    targets = {target: mode for _, target, mode in compose.volumes(SERVICES["alloy"])}
    assert targets[option("alloy", "--storage.path")] == "rw"  # where it has read up to
    assert targets[path] == "ro"
    assert service_of(re.findall(r'url = "(.*)"', config)[0]) == "loki"
    assert targets[re.findall(r'"__path__" = "(.*?)/\*', config)[0]] == "ro"
    port = option("alloy", "--server.http.listen-addr").rpartition(":")[2]
    assert f"/{port}" in SERVICES["alloy"]["healthcheck"]["test"][-1]
    # Each component that another one names is there, and of that kind.
    made = {f"{kind}.{name}" for kind, name in re.findall(r'^([a-z._]+) "(\w+)" {', config, re.MULTILINE)}
    used = set(re.findall(r"\b((?:local|loki)\.[a-z_]+\.\w+)\.(?:targets|receiver)", config))
    assert used == made - {"loki.source.file.containers"}
    assert {service["logging"]["driver"] for service in SERVICES.values()} == {"json-file"}
    assert {service["logging"]["options"]["tag"] for service in SERVICES.values()} == {"{{.Name}}"}


def test_loki_writes_where_it_has_a_volume(mounted):
    config = yaml.safe_load((mounted("loki") / "etc/loki/loki.yml").read_text())
    (volume,) = [target for _, target, mode in compose.volumes(SERVICES["loki"]) if mode == "rw"]
    places = (config["common"]["path_prefix"], config["compactor"]["working_directory"])
    assert all(
        place.startswith(volume) for place in (*places, *config["common"]["storage"]["filesystem"].values())
    )
    assert config["server"]["http_listen_port"] == LISTENING["loki"]


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "loki"])
def test_a_program_reads_the_file_that_is_mounted(name):
    flag = "--config.file" if name in {"prometheus", "alertmanager"} else "-config.file"
    path = option(name, flag)
    folder = SERVICES[name].get("working_dir", "")
    assert f"{folder}/{path}".replace("//", "/") in {
        target for _, target, _ in compose.volumes(SERVICES[name])
    }
