"""docker-compose.yml is valid for its tools, and each service follows the rules of this project."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import yaml
from harness import compose
from harness.processes import ROOT, need

import celery_exporter
from celery_exporter.config.loader import load
from celery_exporter.config.options import OPTIONS
from celery_exporter.config.schema import Settings
from celery_exporter.sinks.factory import sinks_for

STACK = compose.load()
SERVICES = STACK["services"]
CORE = {"redis", "exporter", "worker", "client"}
PROFILES = {
    "rabbitmq": {"rabbitmq", "exporter-rabbitmq", "worker-rabbitmq", "client-rabbitmq"},
    "monitoring": {
        *("prometheus", "alertmanager", "grafana", "loki", "alloy"),
        *("node-exporter", "redis-exporter", "postgres", "postgres-exporter", "worker-postgres"),
    },
    "influxdb": {"influxdb"},
    "tracing": {"tempo"},
    "with-flower": {"flower"},
}
PORTS = {9808, 9809, 9090, 9093, 3000, 3100, 8086, 3200, 9121, 9187, 5555}
#: Variables of .env that send records of tasks to services of the stack.
RECORDS = {
    "LOKI_URL": "http://loki:3100",
    "INFLUX_URL": "http://influxdb:8086",
    "INFLUX_ORG": "celery",
    "INFLUX_BUCKET": "celery",
    "INFLUX_TOKEN_FILE": "/run/secrets/influxdb_token",
    "OTLP_ENDPOINT": "http://tempo:4318",
}
#: Services that only send tasks.
NO_HEALTH_CHECK = {"client", "client-rabbitmq"}
#: Folders of the host that a service may mount.
HOST_FOLDERS = {
    "alloy": {"/var/lib/docker/containers"},
    "node-exporter": {"/proc", "/sys"},
}
every_service = pytest.mark.parametrize("name", SERVICES)


def texts(value) -> list[str]:
    """Return all strings in a value."""
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [str(value)]


def environment(service) -> dict[str, str]:
    """Return the environment of a service."""
    return service.get("environment", {})


def run(*command, **more):
    """Run a command, with these variables in addition to the environment."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE", "CELERY"))
    }
    return subprocess.run(
        command, cwd=ROOT, env=inherited | more, capture_output=True, text=True, check=False
    )


def test_it_follows_the_compose_specification():
    schema = "--builtin-schema=vendor.compose-spec"
    result = run(need("check-jsonschema"), schema, "docker-compose.yml")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_docker_compose_accepts_it(profile):
    arguments = ["--profile", profile] if profile else []
    result = run(need("docker-compose"), *arguments, "config")
    assert (result.stderr, result.returncode) == ("", 0)
    assert yaml.safe_load(result.stdout)["services"].keys() == SERVICES.keys()


def test_profiles():
    services: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for profile in service.get("profiles", [""]):
            services.setdefault(profile, set()).add(name)
    assert services == {"": CORE, **PROFILES}


@every_service
def test_its_image_has_a_version(name):
    image = SERVICES[name]["image"]
    parts = 2 if name == "postgres" else 3  # versions of PostgreSQL have two parts
    assert re.fullmatch(rf"[\w./-]+:v?\d+(\.\d+){{{parts - 1}}}(-alpine)?", image), image
    if "build" in SERVICES[name]:
        assert image.endswith(f":{celery_exporter.__version__}")
    else:
        assert re.match(r"docker\.io/\w+/", image), "podman has no default registry"


def test_grafana_supports_the_dashboards():
    assert int(SERVICES["grafana"]["image"].rpartition(":")[2].partition(".")[0]) >= 12


@every_service
def test_its_limits(name):
    service = SERVICES[name]
    assert 0 < service["cpus"] <= 1
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert 0 < service["pids_limit"] <= 512
    # Podman refuses other options, such as tag, of the driver json-file.
    assert service["logging"]["options"].keys() == {"max-size", "max-file", "labels"}


@every_service
def test_its_privileges(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "devices", "network_mode", "ipc", "env_file"}
    assert (service.get("user") == "root") == (name == "alloy"), "root owns the log files"
    assert ("pid" in service) == (name == "node-exporter"), "it measures the processes of the host"


@every_service
def test_it_has_a_health_check(name):
    check = SERVICES[name].get("healthcheck")
    assert (check is None) == (name in NO_HEALTH_CHECK)
    if check:
        assert check["test"][0] in {"CMD", "CMD-SHELL"}
        assert check.keys() == {"test", "interval", "timeout", "retries", "start_period"}


@every_service
def test_it_waits_until_its_dependencies_are_healthy(name):
    service = SERVICES[name]
    for other, condition in service.get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]
        assert other in CORE or SERVICES[other]["profiles"] == service["profiles"], "otherwise it may not run"


@every_service
def test_its_ports_are_local_by_default(name):
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
        assert compose.load(BIND="10.0.0.1")["services"][name]["ports"][0].startswith("10.0.0.1:")


def test_ports():
    assert {
        int(port.split(":")[1]) for service in SERVICES.values() for port in service.get("ports", [])
    } == (PORTS)


@every_service
def test_its_volumes(name):
    for source, target, mode in compose.volumes(SERVICES[name]):
        assert target.startswith("/")
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
            assert mode == "ro"
        elif source.startswith("/"):
            assert source in HOST_FOLDERS.get(name, set())
            assert mode == "ro"
        else:
            assert source in STACK["volumes"]
        assert "docker.sock" not in source


def test_every_volume_and_secret_is_used():
    mounted = {source for service in SERVICES.values() for source, _, _ in compose.volumes(service)}
    assert set(STACK["volumes"]) <= mounted
    assert set(STACK["secrets"]) == {
        name for service in SERVICES.values() for name in compose.secrets(service)
    }


@every_service
def test_its_passwords_are_in_files_only(name):
    service = compose.load(**RECORDS)["services"][name]
    for key, value in environment(service).items():
        if re.search("PASS|SECRET|TOKEN|AUTH|KEY|BROKER|BACKEND", key):
            assert key.endswith("_FILE")
            assert value.startswith("/run/secrets/")
    for text in texts(service):
        assert not re.search(r"://[^/\s]*:[^/\s]*@", text), "a URL with a password"
        assert not re.search(
            r"(?i)(pass(word)?|token|auth)=(?!\"?(/run/secrets/|\$\$\(cat /run/secrets/))", text
        )
    used = set(re.findall(r"/run/secrets/([\w.]+)", " ".join(texts(service))))
    mounted = {
        secret for secret, path in compose.secrets(service).items() if path.startswith("/run/secrets/")
    }
    assert used == mounted


def test_secrets_are_not_in_the_repository_and_in_images():
    assert {"deploy/secrets/", ".env"} <= set((ROOT / ".gitignore").read_text().split())
    for secret in STACK["secrets"].values():
        assert secret["file"].startswith("deploy/secrets/")
    context = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert context[0] == "*", "it excludes everything, and names what the build needs"
    assert [line for line in context if line.startswith(("!deploy", "!.env"))] == []


def test_every_variable_has_its_default_in_the_example():
    used = dict(compose.VARIABLE.findall(compose.FILE.read_text()))
    example = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert {name: example.pop(name) for name in RECORDS} == RECORDS
    assert {name: used.pop(name) for name in RECORDS} == dict.fromkeys(RECORDS, ""), "off by default"
    assert example.pop("COMPOSE_PROFILES") in PROFILES
    assert (ROOT / f"deploy/prometheus/targets/{example.pop('CELERY_TARGETS')}.yml").exists()
    assert used.pop("CELERY_TARGETS") == "celery"
    assert example == used


def test_built_images_have_stages_in_the_dockerfile():
    stages = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    builds = [service["build"] for service in SERVICES.values() if "build" in service]
    assert {build["target"] for build in builds if isinstance(build, dict)} == {"demo"} <= set(stages)
    assert [build for build in builds if not isinstance(build, dict)] == [".", "."], (
        "the last stage: exporters"
    )


def test_exporters_are_started_with_options_that_exist():
    flags = {f"--{option.name}" for option in OPTIONS}
    variables = {option.variables[0] for option in OPTIONS}
    for name in ("exporter", "exporter-rabbitmq"):
        assert {word.partition("=")[0] for word in SERVICES[name]["command"]} <= flags
        assert environment(SERVICES[name]).keys() <= variables


def settings(name, **variables) -> Settings:
    """Return the settings of an exporter of the stack, with these variables in .env."""
    service = compose.load(**variables)["services"][name]
    return load({"broker_url": "memory://"}, environment(service))


@pytest.mark.parametrize("name", ["exporter", "exporter-rabbitmq"])
def test_records_of_tasks_go_nowhere_by_default(name):
    assert sinks_for(settings(name).sinks) == []


@pytest.mark.parametrize("name", ["exporter", "exporter-rabbitmq"])
def test_records_of_tasks_go_to_services_of_profiles(name):
    sinks = settings(name, **RECORDS).sinks
    assert [sinks.loki.loki_url, sinks.influx.influx_url] == [RECORDS["LOKI_URL"], RECORDS["INFLUX_URL"]]
    assert sinks.otlp.otlp_endpoint.startswith(RECORDS["OTLP_ENDPOINT"])
    assert {"loki", "influxdb"} <= {sink.name for sink in sinks_for(sinks)}
    database = environment(SERVICES["influxdb"])
    assert sinks.influx.influx_version == 2
    assert sinks.influx.influx_org == database["DOCKER_INFLUXDB_INIT_ORG"]
    assert sinks.influx.influx_bucket == database["DOCKER_INFLUXDB_INIT_BUCKET"]
    assert str(sinks.influx.influx_token_file) == database["DOCKER_INFLUXDB_INIT_ADMIN_TOKEN_FILE"]


@pytest.mark.parametrize("name", ["exporter", "exporter-rabbitmq"])
def test_graphs_link_to_tasks(name):
    assert settings(name).monitor.metrics.exemplars
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]


def test_the_health_check_of_a_worker_has_its_node_name():
    for name, service in SERVICES.items():
        if name.startswith("worker"):
            node = re.search(r"-n (\S+)", service["command"])
            assert node
            assert service["healthcheck"]["test"][-1] == node[1]


PRINT_URLS = """
from celery_exporter.demo.tasks import app, outcome_store
print(app.conf.broker_url, app.conf.result_backend, app.conf.task_ignore_result)
print(outcome_store()._redis.connection_pool.connection_kwargs["host"])
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("worker", "redis://:pw@redis/0 None True redis"),
        ("worker-rabbitmq", "amqp://pw@rabbitmq// None True redis"),
        ("worker-postgres", "redis://:pw@redis/0 db+postgresql+psycopg://pw@postgres/celery False redis"),
    ],
)
def test_the_demo_reads_its_urls_from_the_files(name, expected, tmp_path):
    urls = {
        "redis_url": "redis://:pw@redis/0",
        "rabbitmq_url": "amqp://pw@rabbitmq//",
        "postgres_url": "db+postgresql+psycopg://pw@postgres/celery",
    }
    for secret, url in urls.items():
        (tmp_path / secret).write_text(url + "\n")
    files = {
        variable: path.replace("/run/secrets", str(tmp_path))
        for variable, path in SERVICES[name]["environment"].items()
    }
    assert run(sys.executable, "-c", PRINT_URLS, **files).stdout.split() == expected.split()
