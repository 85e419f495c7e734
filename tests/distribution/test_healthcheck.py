"""`celery-exporter healthcheck` exits with 0 or 1 and prints one line, with the settings of the exporter."""

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
    """Return the exit code and the printed line."""
    result = run_cli("healthcheck", *arguments, environment=environment, deadline=20)
    lines = (result.stdout + result.stderr).splitlines()
    assert len(lines) == 1, lines
    assert bool(result.stderr) is bool(result.returncode), "success is printed on stdout, failure on stderr"
    return result.returncode, lines[0]


@pytest.fixture
def app(tmp_path, running):
    """Run an exporter without a broker, which is healthy: a restart would not help."""
    return running(Exporter(tmp_path, unreachable_url()))


def test_a_healthy_exporter(app):
    line = f"healthy: http://127.0.0.1:{app.port}/-/healthy answered 200"
    assert check("--port", str(app.port)) == (0, line)
    assert check(CELERY_EXPORTER_PORT=str(app.port)) == (0, line)
    assert check(CE_PORT="1", CELERY_EXPORTER_PORT=str(app.port), CE_HOST="127.0.0.1") == (0, line)
    assert check(PROMETHEUS_PORT=str(app.port), CELERY_EXPORTER_HOST="::ffff:127.0.0.1")[0] == 0


def test_options_before_the_command_apply(app):
    result = run_cli("--port", str(app.port), "healthcheck")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("host", ["::", "::1", "localhost"])
def test_every_listen_address(tmp_path, host):
    app = Exporter(tmp_path, unreachable_url(), "--host", host)
    try:
        app.start()
        eventually(lambda: check("--host", host, "--port", str(app.port))[0] == 0, 20)
        app.stop_cleanly()
    finally:
        app.kill()


def test_no_listener():
    port = free_port()
    assert check("--port", str(port)) == (
        1,
        f"celery-exporter: unhealthy: http://127.0.0.1:{port}/-/healthy: Connection refused",
    )


def test_no_answer(app):
    app.pause()
    try:
        code, line = check("--port", str(app.port))
    finally:
        app.resume()
    assert (code, line.rpartition(": ")[2]) == (1, "no answer in 2 s")


def test_another_program_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(ANSWER_TIMEOUT)
        port = str(server.getsockname()[1])

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        code, line = check("--port", port)
        thread.join()
    assert (code, line.rpartition(": ")[2]) == (1, "220 mail.example ESMTP")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "x"), "--port: got 'x'"),
        (("--port", "0"), "--port: got 0"),
        (("--host", "a..b"), "unhealthy"),
        (("--host", "no such host"), "unhealthy"),
    ],
)
def test_an_invalid_setting_is_unhealthy(arguments, message):
    """Container engines support 0 and 1 only, so usage errors exit with 1."""
    code, line = check(*arguments)
    assert code == 1
    assert message in line


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
def test_with_a_web_config_file(tmp_path, running, section, scheme):
    """It needs no password or client certificate, and accepts any certificate of the exporter."""
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
    "content", ["nosuch: 1", '{"tls_server_config": {"cert": "x", "key": "x"}}', "{}", None]
)
def test_an_exporter_with_an_invalid_file_stays_healthy(tmp_path, running, section, content):
    """It uses the last valid configuration. A failed check would restart it, and the start would fail."""
    app = running(WebConfigExporter(tmp_path, **section))
    app.file.unlink() if content is None else app.file.write_text(content)
    assert check("--port", str(app.port), "--web.config.file", str(app.file))[0] == 0
