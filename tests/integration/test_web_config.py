"""`--web.config.file`: TLS, client certificates, passwords, headers, and changes at run time.

No test needs a broker, so the broker URL is unreachable.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import bcrypt
import pytest
import trustme
from harness.exporter import Response, run_cli, send_request
from harness.servers import Prometheus
from harness.waiting import ANSWER_TIMEOUT, eventually, until_equal
from harness.web_config import WebConfigExporter, unreachable_url

PATHS = ("/", "/metrics", "/-/ready", "/health", "/nosuch", "/-/healthy/", "/-/")
PASSWORD = "p@ss/w0rd:secret"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
LOGIN = {"Authorization": "Basic " + base64.b64encode(f"prometheus:{PASSWORD}".encode()).decode()}
VERIFY = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "clients.pem"}
NOT_RELOADED = "; the old configuration stays in use"
HEADERS = {
    "X-Frame-Options": "deny",
    "X-Content-Type-Options": "nosniff",
    "Strict-Transport-Security": "max-age=9",
}


@pytest.fixture
def start(tmp_path, running):
    """`start(section={...}, ...)` runs an exporter with these sections in its file."""
    return lambda **sections: running(WebConfigExporter(tmp_path / "exporter", **sections))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return two running exporters for all tests: `shared["plain"]` and `shared["tls"]`.

    A test changes their configuration at run time.
    """
    with ExitStack() as stack:
        sections = {"plain": {}, "tls": {"tls_server_config": {}}}
        exporters = {
            name: WebConfigExporter(tmp_path_factory.mktemp(name), **section).start()
            for name, section in sections.items()
        }
        for exporter in exporters.values():
            stack.callback(exporter.kill)
            stack.callback(exporter.stop_cleanly)
            exporter.wait_ready()
        yield exporters


@pytest.fixture
def tls(shared):
    """`tls(...)` configures the shared exporter with this `tls_server_config`, and returns it."""

    def configure(**section):
        shared["tls"].configure(tls_server_config=section)
        return shared["tls"]

    return configure


# -- passwords -------------------------------------------------------------------------------------------


@pytest.fixture
def with_password(shared):
    shared["plain"].configure(basic_auth_users={"prometheus": HASH})
    return shared["plain"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_all_paths_but_healthy_require_the_password(with_password, method):
    for path in PATHS:
        refused = with_password.get(path, method=method)
        assert refused.status == 401, path
        assert refused.headers["www-authenticate"].startswith("Basic")
        accepted = with_password.get(path, LOGIN, method=method)
        assert accepted.status != 401, path
    assert with_password.get("/-/healthy").status == 200
    assert with_password.get("/-/%68ealthy").status == 200, "the same path, percent-encoded"
    assert with_password.get("/metrics", LOGIN).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"prometheus").decode(),
        "Basic " + base64.b64encode(b"prometheus:").decode(),
        "Basic " + base64.b64encode(b"prometheus:wrong").decode(),
        "Basic " + base64.b64encode(f"unknown:{PASSWORD}".encode()).decode(),
        "Basic " + base64.b64encode(f"prometheus:{HASH}".encode()).decode(),
        "Basic " + base64.b64encode(b"\xff\x00:\xff").decode(),
        "Bearer " + LOGIN["Authorization"][6:],
        "Basic " + "A" * 1_000,
    ],
)
def test_an_invalid_authorization_header_is_401(with_password, header):
    assert with_password.get("/metrics", {"Authorization": header}).status == 401


def test_the_scheme_may_be_in_any_case(with_password):
    assert (
        with_password.get("/metrics", {"Authorization": "basic" + LOGIN["Authorization"][5:]}).status == 200
    )


def test_changed_users_apply_to_open_connections(with_password):
    connection = with_password.connect()
    assert send_request(connection, "/metrics", LOGIN).status == 200
    with_password.configure(basic_auth_users={"other": HASH})
    assert send_request(connection, "/metrics", LOGIN).status == 401
    with_password.configure(basic_auth_users={"prometheus": HASH})
    assert send_request(connection, "/metrics", LOGIN).status == 200
    with_password.configure()
    assert send_request(connection, "/metrics", {}).status == 200
    connection.close()


def test_an_invalid_file_keeps_the_old_users_and_is_logged_once(with_password):
    assert with_password.get("/metrics").status == 401
    before = with_password.text().count(NOT_RELOADED)
    for text in ("", "basic_auth_users: {prometheus: hunter2}", "not: known"):
        with_password.file.write_text(text)
        assert [with_password.get("/metrics").status for _ in range(3)] == [401] * 3
        page = with_password.get("/metrics", LOGIN)
        assert page.status == 200
        assert "celery_exporter_web_config_up_to_date 0.0" in page.text
    assert with_password.text().count(NOT_RELOADED) - before == 3
    assert "hunter2" not in with_password.text()


def test_many_wrong_passwords_do_not_delay_a_scrape(start):
    """150 clients send wrong passwords for a slow hash. A password that was compared before is cached."""
    slow_hash = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(11)).decode()
    exporter = start(basic_auth_users={"prometheus": slow_hash})
    assert exporter.get("/metrics", LOGIN, timeout=ANSWER_TIMEOUT).status == 200
    stopping = threading.Event()
    statuses: list[int] = []
    scrapes = 20

    def guess(number: int) -> None:
        while not stopping.is_set():
            wrong = base64.b64encode(f"prometheus:{number}".encode()).decode()
            with suppress(TimeoutError):  # the request waited for too long
                statuses.append(
                    exporter.get(
                        "/metrics", {"Authorization": f"Basic {wrong}"}, timeout=ANSWER_TIMEOUT
                    ).status
                )
            stopping.wait(0.2)

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(150)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: statuses.count(429) > 100, 40)
        compared = statuses.count(401)
        for _ in range(scrapes):
            assert exporter.get("/metrics", LOGIN).status == 200
        compared = statuses.count(401) - compared
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert compared < scrapes, "a scrape that waits for a comparison sees at least one end"
    assert set(statuses) <= {401, 429}


# -- headers ---------------------------------------------------------------------------------------------


def test_headers_are_on_every_response(shared):
    exporter = shared["plain"]
    exporter.configure(http_server_config={"headers": HEADERS}, basic_auth_users={"prometheus": HASH})

    def missing(response: Response) -> set[str]:
        return {name for name, value in HEADERS.items() if response.headers.get(name.lower()) != value}

    for path in (*PATHS, "/-/healthy"):
        assert not missing(exporter.get(path)), path
        assert not missing(exporter.get(path, LOGIN)), path
    assert not missing(exporter.get("/metrics", LOGIN, method="POST"))
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=ANSWER_TIMEOUT) as client_socket:
        client_socket.sendall(b"GET\r\n\r\n")
        answer = client_socket.makefile().read()
    assert answer.startswith("HTTP/1.1 400 ")
    assert all(f"{name}: {value}" in answer for name, value in HEADERS.items()), answer


def test_changed_headers_apply_without_a_restart(shared):
    exporter = shared["plain"]
    exporter.configure(http_server_config={"headers": {"X-Frame-Options": "deny"}})
    assert exporter.get("/").headers["x-frame-options"] == "deny"
    exporter.configure(http_server_config={"headers": {"X-Frame-Options": "sameorigin"}})
    assert exporter.get("/").headers["x-frame-options"] == "sameorigin"


# -- TLS ------------------------------------------------------------------------------------------------


def test_a_tls_listener_accepts_only_trusting_tls_clients(tls):
    exporter = tls()
    assert exporter.get("/metrics").status == 200
    assert f"serves https://127.0.0.1:{exporter.port}/metrics" in exporter.text()
    with pytest.raises((OSError, http.client.HTTPException)):
        send_request(
            http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=ANSWER_TIMEOUT), "/metrics", {}
        )
    with pytest.raises(ssl.SSLCertVerificationError):
        send_request(exporter.connect(client=ssl.create_default_context()), "/metrics", {})
    assert exporter.get("/metrics").status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize(
    ("section", "accepted", "refused"),
    [
        ({}, ("TLSv1_2", "TLSv1_3"), ("TLSv1_1",)),
        ({"min_version": "TLS13"}, ("TLSv1_3",), ("TLSv1_2",)),
        ({"max_version": "TLS12"}, ("TLSv1_2",), ("TLSv1_3",)),
        ({"min_version": "TLS10"}, ("TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"), ()),
    ],
)
def test_min_version_and_max_version_limit_tls_versions(tls, section, accepted, refused):
    exporter = tls(**section)

    def connect(version: str) -> str | None:
        client = exporter.context()
        client.set_ciphers("DEFAULT:@SECLEVEL=0")  # so that the client supports old versions
        client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
        with (
            socket.create_connection(("127.0.0.1", exporter.port), timeout=ANSWER_TIMEOUT) as raw,
            client.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            return wrapped.version()

    for version in accepted:
        assert connect(version) == version.replace("_", ".")
    for version in refused:
        with pytest.raises(OSError):  # noqa: PT011  alerts and resets
            connect(version)


def test_a_new_certificate_is_used_without_a_restart(tls):
    exporter = tls()

    def serial() -> str:
        with (
            socket.create_connection(("127.0.0.1", exporter.port), timeout=ANSWER_TIMEOUT) as raw,
            exporter.context().wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            return wrapped.getpeercert()["serialNumber"]

    before = serial()
    assert serial() == before
    persistent = exporter.connect()
    assert send_request(persistent, "/metrics", {}).headers.get("connection") != "close"
    exporter.issue()
    assert serial() != before
    response = send_request(persistent, "/metrics", {})
    assert (response.status, response.headers["connection"]) == (200, "close"), "it has the old certificate"


def test_tls_is_not_disabled_without_a_restart(start):
    exporter = start(tls_server_config={})
    exporter.configure(basic_auth_users={"prometheus": HASH})
    assert exporter.get("/metrics").status == 401
    assert "turning TLS on or off requires a restart" in exporter.text()


# -- client certificates -----------------------------------------------------------------------------------


def status(exporter: WebConfigExporter, client: ssl.SSLContext, path: str = "/metrics") -> int | None:
    """Return the status of a request; None if the handshake fails."""
    connection = exporter.connect(client=client)
    try:
        return send_request(connection, path, {}).status
    except OSError:
        return None
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("policy", "no_certificate", "trusted", "untrusted"),
    [
        ("RequireAndVerifyClientCert", 403, 200, None),
        ("RequireAnyClientCert", 403, 200, None),
        ("VerifyClientCertIfGiven", 200, 200, None),
    ],
)
def test_client_auth_type_decides_about_client_certificates(tls, policy, no_certificate, trusted, untrusted):
    exporter = tls(client_auth_type=policy, client_ca_file="clients.pem")
    assert status(exporter, exporter.context()) == no_certificate
    assert status(exporter, exporter.context("prometheus.example")) == trusted
    assert status(exporter, exporter.context("prometheus.example", authority=trustme.CA())) == untrusted
    assert status(exporter, exporter.context(), "/-/healthy") == 200, "a liveness probe has no certificate"
    for path in PATHS:
        assert (status(exporter, exporter.context(), path) == 403) == (no_certificate == 403), path


def test_request_client_cert_accepts_any_certificate_and_none(tls):
    exporter = tls(client_auth_type="RequestClientCert")
    assert status(exporter, exporter.context()) == 200
    assert status(exporter, exporter.context("any.example", authority=trustme.CA())) == 200


@pytest.mark.parametrize(
    ("names", "is_allowed"),
    [
        (["prometheus.example"], True),
        (["other.example", "prometheus.example"], True),
        (["10.0.0.7"], True),
        (["::1"], True),
        (["ops@prometheus.example"], True),
        (["example", "*.example", "PROMETHEUS.example"], False),
        ([], False),
    ],
)
def test_client_allowed_sans_limits_the_names_in_certificates(tls, names, is_allowed):
    exporter = tls(**VERIFY, client_allowed_sans=names)
    client = exporter.context("prometheus.example", "10.0.0.7", "::1", "ops@prometheus.example")
    assert status(exporter, client) == (200 if is_allowed else 403)
    assert status(exporter, client, "/-/healthy") == 200


def test_a_new_client_ca_is_used_without_a_restart(tls):
    exporter = tls(**VERIFY)
    old_client = exporter.context("prometheus.example")
    assert status(exporter, old_client) == 200
    exporter.client_authority = trustme.CA()
    exporter.client_authority.cert_pem.write_to_path(exporter.file.parent / "clients.pem")
    assert status(exporter, old_client) is None
    assert status(exporter, exporter.context("prometheus.example")) == 200


def test_a_certificate_does_not_replace_the_password(start):
    exporter = start(
        tls_server_config=VERIFY,
        basic_auth_users={"prometheus": HASH},
    )
    assert status(exporter, exporter.context("prometheus.example")) == 401
    exporter.login = LOGIN
    assert exporter.get("/metrics").status == 403
    exporter.client = exporter.context("prometheus.example")
    assert exporter.get("/metrics").status == 200


# -- Prometheus and the start ------------------------------------------------------------------------------


class AuthenticatedPrometheus(Prometheus):
    """Scrapes with TLS, a client certificate and a password."""

    def __init__(self, folder: Path, exporter: WebConfigExporter, password: str = PASSWORD) -> None:
        super().__init__(folder, f"127.0.0.1:{exporter.port}")
        exporter.authority.cert_pem.write_to_path(folder / "ca.pem")
        certificate = exporter.client_authority.issue_cert("prometheus.example")
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
        path = folder / "prometheus.yml"
        configuration = json.loads(path.read_text())
        configuration["scrape_configs"][0] |= {
            "scheme": "https",
            "basic_auth": {"username": "prometheus", "password": password},
            "tls_config": {"ca_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.pem"},
        }
        path.write_text(json.dumps(configuration))

    def health(self) -> list[str]:
        return [target["health"] for target in self.targets()]


def test_prometheus_scrapes_with_tls_certificate_and_password_during_a_rotation(tmp_path, start, running):
    exporter = start(
        tls_server_config={**VERIFY, "client_allowed_sans": ["prometheus.example"], "min_version": "TLS13"},
        basic_auth_users={"prometheus": HASH},
        http_server_config={"headers": HEADERS},
    )
    prometheus = AuthenticatedPrometheus(tmp_path / "prometheus", exporter)
    unauthorized = AuthenticatedPrometheus(tmp_path / "unauthorized", exporter, "wrong")
    running(prometheus, unauthorized)
    until_equal(prometheus.health, ["up"], 20)
    until_equal(unauthorized.health, ["down"], 20)
    assert "401" in unauthorized.targets()[0]["lastError"]
    exporter.issue()
    eventually(lambda: len(prometheus.query("count_over_time(up[1m]) > 5")) == 1, 20)
    assert prometheus.query("min_over_time(up[1m])")[0]["value"][1] == "1"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "cannot read"),
        (
            "tls_server_config: {min_version: TLS14}",
            "min_version: got 'TLS14'; expected TLS10, TLS11, TLS12, TLS13",
        ),
        ("basic_auth_users: {alice: hunter2}", "no bcrypt hash for 'alice'"),
        ("tls_server_config: {cert_file: a.pem, key_file: b.pem}", "a.pem: No such file"),
    ],
)
def test_an_invalid_file_at_the_start_ends_with_one_line(tmp_path, text, error):
    path = tmp_path / "web.yml"
    if text is not None:
        path.write_text(text)
    command = run_cli("--broker-url", unreachable_url(), "--port", "0", "--web.config.file", str(path))
    assert command.returncode == 2
    assert command.stdout == ""
    (line,) = command.stderr.splitlines()
    assert line.startswith("celery-exporter: --web.config.file: ")
    assert str(path) in line
    assert error in line
    assert "hunter2" not in line


@pytest.mark.parametrize("variable", ["CE_WEB_CONFIG_FILE", "CELERY_EXPORTER_WEB_CONFIG_FILE"])
def test_a_variable_may_name_the_file(variable):
    command = run_cli("--broker-url", unreachable_url(), environment={variable: "none.yml"})
    assert (command.returncode, "--web.config.file: cannot read none.yml" in command.stderr) == (2, True)


def test_hashes_and_keys_are_on_no_page_and_not_in_the_log(start):
    exporter = start(tls_server_config={}, basic_auth_users={"prometheus": HASH})
    exporter.login = LOGIN
    pages = [exporter.get(path).text for path in (*PATHS, "/-/healthy")]
    exporter.login = {}
    pages += [exporter.get(path).text for path in PATHS]
    exporter.file.write_text(f"basic_auth_users: {{prometheus: {HASH}, prometheus: {HASH}}}")
    exporter.get("/metrics")
    assert "duplicate key" in exporter.text()
    key = (exporter.file.parent / "server.key").read_text().splitlines()[1]
    process = Path("/proc", str(exporter.pid))
    texts = [*pages, exporter.text(), (process / "cmdline").read_text(), (process / "environ").read_text()]
    for secret in (HASH[7:], PASSWORD, LOGIN["Authorization"][6:], key):
        assert not [text for text in texts if secret in text], secret


def test_a_pipe_is_read_once(tmp_path):
    """`--web.config.file <(sops -d web.yml)` leaves no copy of the file on the disk."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    exporter = WebConfigExporter(tmp_path / "exporter")
    exporter.arguments[exporter.arguments.index("--web.config.file") + 1] = str(pipe)
    exporter.start()
    pipe.write_text(f"basic_auth_users: {{prometheus: {HASH}}}")
    exporter.wait_ready()
    try:
        assert [exporter.get("/metrics", LOGIN).status for _ in range(3)] == [200] * 3
        assert exporter.get("/metrics").status == 401
    finally:
        exporter.stop_cleanly()
