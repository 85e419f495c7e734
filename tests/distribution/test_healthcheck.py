"""`celery-exporter healthcheck`: 0 or 1, and one line, from the settings that the exporter itself has."""

from __future__ import annotations

import socket
import ssl
import threading

import bcrypt
import pytest
from harness.exporter import Exporter, run_cli
from harness.processes import free_port
from harness.waiting import ANSWER_TIMEOUT, eventually
from harness.web_config import WebConfigExporter, unreachable_url

LOGIN = {"basic_auth_users": {"someone": bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}}
MUTUAL = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "clients.pem"}


def check(*arguments: str, **environment: str) -> tuple[int, str]:
    """Return its exit code and its one line."""
    result = run_cli("healthcheck", *arguments, environment=environment, deadline=20)
    lines = (result.stdout + result.stderr).splitlines()
    assert len(lines) == 1, lines
    assert bool(result.stderr) is bool(result.returncode), "good news go to stdout, bad ones to stderr"
    return result.returncode, lines[0]


@pytest.fixture
def app(tmp_path, running):
    """Run an exporter whose broker is not there: that is no reason to restart it."""
    return running(Exporter(tmp_path, unreachable_url()))


def test_a_healthy_one(app):
    line = f"healthy: http://127.0.0.1:{app.port}/-/healthy answered 200"
    assert check("--port", str(app.port)) == (0, line)
    assert check(CELERY_EXPORTER_PORT=str(app.port)) == (0, line)
    assert check(CE_PORT="1", CELERY_EXPORTER_PORT=str(app.port), CE_HOST="127.0.0.1") == (0, line)
    assert check(PROMETHEUS_PORT=str(app.port), CELERY_EXPORTER_HOST="::ffff:127.0.0.1")[0] == 0


def test_options_before_the_command_count_too(app):
    result = run_cli("--port", str(app.port), "healthcheck")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("host", ["::", "::1", "localhost"])
def test_any_address_that_it_may_listen_on(tmp_path, host):
    app = Exporter(tmp_path, unreachable_url(), "--host", host)
    try:
        app.start()
        eventually(lambda: check("--host", host, "--port", str(app.port))[0] == 0, 20)
        app.stop_cleanly()
    finally:
        app.kill()


def test_nobody_listens():
    port = free_port()
    assert check("--port", str(port)) == (
        1,
        f"celery-exporter: unhealthy: http://127.0.0.1:{port}/-/healthy: Connection refused",
    )


def test_nobody_answers(app):
    app.pause()
    try:
        code, line = check("--port", str(app.port))
    finally:
        app.resume()
    assert (code, line.rpartition(": ")[2]) == (1, "no answer in 2 s")


def test_a_stranger_answers():
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(ANSWER_TIMEOUT)
        port = str(stranger.getsockname()[1])

        def answer() -> None:
            taken, _ = stranger.accept()
            with taken:
                taken.recv(4096)
                taken.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        code, line = check("--port", port)
        thread.join()
    assert (code, line.rpartition(": ")[2]) == (1, "220 mail.example ESMTP")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "x"), "--port: got 'x'"),
        (("--port", "0"), "--port: got 0"),
        (("--host", "a..b"), "unhealthy"),
        (("--host", "no such host"), "unhealthy"),
    ],
)
def test_a_wrong_setting_is_unhealthy(arguments, said):
    """Container engines know 0 and 1; what is 2 for the exporter is 1 here."""
    code, line = check(*arguments)
    assert code == 1
    assert said in line


@pytest.mark.parametrize(
    ("section", "scheme"),
    [
        ({}, "http"),
        (LOGIN, "http"),
        ({"tls_server_config": {}}, "https"),
        ({"tls_server_config": {"min_version": "TLS10", "max_version": "TLS10"}}, "https"),
        ({"tls_server_config": {"min_version": "TLS13"}, **LOGIN}, "https"),
        ({"tls_server_config": dict(MUTUAL)}, "https"),
    ],
    ids=["nothing", "password", "TLS", "old TLS", "new TLS and password", "client certificate"],
)
def test_behind_a_web_config_file(tmp_path, running, section, scheme):
    """It needs neither password nor certificate, and believes any certificate of its own listener."""
    app = WebConfigExporter(tmp_path, **section)
    if app.client:
        app.client.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        app.client.set_ciphers("ALL:@SECLEVEL=0")
    running(app)
    line = f"healthy: {scheme}://127.0.0.1:{app.port}/-/healthy answered 200"
    assert check("--port", str(app.port), "--web.config.file", str(app.file)) == (0, line)
    assert check("--port", str(app.port), CELERY_EXPORTER_WEB_CONFIG_FILE=str(app.file)) == (0, line)


@pytest.mark.parametrize("section", [{}, {"tls_server_config": {}}], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "spoilt", ["nosuch: 1", '{"tls_server_config": {"cert": "x", "key": "x"}}', "{}", None]
)
def test_a_file_that_was_spoilt_does_not_end_an_exporter_that_is_well(tmp_path, running, section, spoilt):
    """It holds on to what it read; a restart, which is what this check leads to, would be its end."""
    app = running(WebConfigExporter(tmp_path, **section))
    app.file.unlink() if spoilt is None else app.file.write_text(spoilt)
    assert check("--port", str(app.port), "--web.config.file", str(app.file))[0] == 0
