"""The command line: errors for invalid values, sources of options, and shutdown."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from harness.exporter import Exporter, run_cli
from harness.processes import free_port, missing
from harness.waiting import eventually, stays

UNREACHABLE_URL = "redis://127.0.0.1:1/0"
INVALID_VALUES = [
    ("--port", "abc"),
    ("--port", "70000"),
    ("--port", "-1"),
    ("--buckets", "x"),
    ("--buckets", "1,,x"),
    ("--queue-wait-buckets", "nan"),
    ("--reorder-window", "-1"),
    ("--reorder-window", "soon"),
    ("--update-interval", "0"),
    ("--update-interval", "often"),
    ("--worker-timeout", "-5"),
    ("--purge-offline-worker-metrics", "never"),
    ("--retry-interval", "x"),
    ("--max-tasks", "many"),
    ("--max-tasks", "0"),
    ("--task-ttl", "x"),
    ("--task-labels", "nosuch"),
    ("--profile", "nosuch"),
    ("--log-level", "loud"),
    ("--log-format", "xml"),
    ("--metric-prefix", "9-bad"),
    ("--static-label", "noequals"),
    ("--static-label", "9x=1"),
    ("--static-label", "queue_name=1"),  # a label of the exporter
    ("--broker-transport-option", "noequals"),
    ("--broker-ssl-option", "noequals"),
    ("--accept-content", "nosuch"),
    ("--broker-url-file", "/no/such/file"),
]


#: Options whose values may contain secrets, so error messages do not repeat them.
SECRET_OPTIONS = {"--broker-transport-option", "--broker-ssl-option"}


def one_line(result):
    """Return stderr, which must be a single line without a traceback."""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr.strip()


@pytest.fixture(scope="module")
def results():
    """Return the result for each invalid value. Two processes run at a time."""

    def run(case):
        option, value = case
        url = () if option == "--broker-url-file" else ("--broker-url", UNREACHABLE_URL)
        try:
            return run_cli(*url, option, value)
        except AssertionError:  # it accepts the value, and keeps running
            return None

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(INVALID_VALUES, pool.map(run, INVALID_VALUES), strict=True))


@pytest.mark.parametrize(("option", "value"), INVALID_VALUES, ids=lambda text: text)
def test_an_invalid_value_ends_with_code_2_and_one_line(results, option, value):
    """The line has the option, the value, and the accepted values."""
    result = results[option, value]
    assert result, f"{option} {value} was accepted"
    line = one_line(result)
    assert result.returncode == 2, line
    assert option in line
    assert value in line or option in SECRET_OPTIONS
    rest = line.replace(option, "").replace(value, "")
    assert len(rest.split()) >= 4, f"no accepted values of {option}: {line}"


@pytest.mark.parametrize("name", ["CELERY_EXPORTER_PORT", "CE_PORT", "PROMETHEUS_PORT"])
def test_an_invalid_value_in_the_environment_ends_with_code_2_and_one_line(name):
    result = run_cli("--broker-url", UNREACHABLE_URL, environment={name: "abc"})
    line = one_line(result)
    assert result.returncode == 2
    assert "--port" in line or name in line
    assert "abc" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor", "--seconds", "nan"),
        ("record", "f", "--seconds", "nan"),
        ("doctor", "--prometheus", "http://[::1"),
        ("doctor", "--prometheus", "user:s3cret@h:9090"),
        ("doctor", "--management", "http://user:s3cret@h:15672"),
    ],
    ids=" ".join,
)
def test_an_invalid_value_of_a_command_ends_with_code_2_and_one_line(arguments):
    result = run_cli(*arguments, "--broker-url", UNREACHABLE_URL)
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert "s3cret" not in result.stderr


def test_unknown_options_are_refused():
    result = run_cli("--broker-url", UNREACHABLE_URL, "--nosuch")
    assert result.returncode == 2
    assert "--nosuch" in result.stderr


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nosuch://user:s3cret@127.0.0.1/0", "unknown scheme 'nosuch'; use redis://"),
        ("http://s3cret", "unknown scheme 'http'; use redis://"),
        ("user:s3cret@host", "takes"),  # no URL
        ("://s3cret", "takes"),
        ("redis://:s3cret/x@127.0.0.1/0", "percent-encode"),
        ("redis://u:s3cret#x@127.0.0.1/0", "percent-encode"),
        ("amqp://u:s3cret", "percent-encode"),
        ("redis://:s3cret@127.0.0.1/prod", "database is not a number"),
        ("rediss://:s3cret@127.0.0.1:6379/0?ssl_ca_certs=/nosuch.pem", "ssl_ca_certs is '/nosuch.pem'"),
        ("redis://:s3cret@127.0.0.1:637900/0", "port is not between 1 and 65535"),
        ("redis://:s3cret@127.0.0.1:0/0", "port is not between 1 and 65535"),
        (f"amqp://u:s3cret@127.0.0.1:{'9' * 5000}/v", "port is not between 1 and 65535"),
        (
            "redis://:s3cret@127.0.0.1/0?socket_timeout=s3cret",
            "--broker-transport-option socket_timeout=VALUE",
        ),
        ("amqp://guest:20241130", "port is not between 1 and 65535"),
        ("redis://hunter2/s3cret", "database is not a number"),
        ("redis://127.0.0.1/0;redis://:s3cret@127.0.0.2:99999/0", "port is not between 1 and 65535"),
    ],
)
def test_an_invalid_broker_url_ends_with_one_line(url, error):
    """The line has the reason, and no part of the password."""
    result = run_cli("--broker-url", url)
    line = one_line(result)
    assert result.returncode == 2, line
    assert "--broker-url" in line
    assert error in line
    assert not re.search("s3cret|20241130", line)


@pytest.mark.parametrize(
    "argv", [["record", "u:s3cret@h"], ["replay", "redis://:s3cret@h/0"], ["u:s3cret@h"]]
)
def test_a_password_in_a_misplaced_url_is_not_printed(argv):
    result = run_cli(*argv, "--broker-url", UNREACHABLE_URL) if len(argv) > 1 else run_cli(*argv)
    assert result.returncode == 2
    assert "s3cret" not in one_line(result)


def test_a_newline_at_the_end_of_a_url_is_ignored(running, tmp_path, redis_broker):
    """A secret that was written by echo ends with one."""
    environment = {"CELERY_BROKER_URL": f"{redis_broker.url}\n"}
    running(Exporter(tmp_path, None, environment=environment)).connected()


@pytest.mark.parametrize("argv", [[], ["doctor"], ["record", "file"]])
def test_the_error_for_a_url_without_an_option_names_the_option(argv):
    result = run_cli(*argv, "redis://:s3cret@127.0.0.1/0")
    assert result.returncode == 2
    line = one_line(result)
    assert "--broker-url URL" in line
    assert "s3cret" not in line


def subscription_error(log: str) -> str | None:
    return next((line for line in log.splitlines() if "no event subscription" in line), None)


@pytest.mark.parametrize("scheme", ["rediss", "amqps"])
def test_the_log_suggests_tls_and_doctor_for_a_port_without_tls(running, tmp_path, scheme):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/0"
        app = running(Exporter(tmp_path, url))
        # A periodic job may log the same question earlier, in another line.
        line = eventually(lambda: subscription_error(app.text()), 60)
    assert "does this port speak TLS?" in line
    assert url in line
    assert "celery-exporter doctor" in line


def test_a_missing_transport_package_ends_with_code_2_and_one_line():
    """kombu supports the scheme, but the package that it needs is not installed."""
    result = run_cli("--broker-url", "confluentkafka://127.0.0.1")
    assert result.returncode == 2
    assert "kafka" in one_line(result)


def test_a_port_in_use_ends_with_code_1_and_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = run_cli("--broker-url", UNREACHABLE_URL, "--host", "127.0.0.1", "--port", port)
    assert result.returncode == 1
    assert port in one_line(result)


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        (">/dev/full", 1, "celery-exporter: cannot write to stdout: No space left on device\n"),
        (">&-", 0, ""),
        ("2>&- >&-", 0, ""),
    ],
    ids=["full", "closed", "both closed"],
)
def test_an_output_that_takes_nothing_is_one_line_at_most(redirection, code, error):
    command = f'exec "$0" -m celery_exporter --version {redirection}'
    bash = ["bash", "-c", command, sys.executable]
    result = subprocess.run(bash, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (code, error)


def test_version_and_help_are_printed():
    version = run_cli("--version")
    assert version.returncode == 0
    assert any(character.isdigit() for character in version.stdout)
    usage = run_cli("--help")
    assert usage.returncode == 0
    for option in {option for option, _ in INVALID_VALUES} | {
        "--broker-url",
        "--host",
        "--queues",
        "-Q",
        "--version",
    }:
        assert option in usage.stdout
    for option in ("--enable-events", "--event-exchange", "--event-queue-durable"):
        assert option in usage.stdout


# -- sources of options ----------------------------------------------------------------------------------

URL_VARIABLES = ["CELERY_EXPORTER_BROKER_URL", "CE_BROKER_URL", "CELERY_BROKER_URL"]


@pytest.mark.parametrize("name", URL_VARIABLES)
def test_the_broker_url_comes_from_the_environment(running, tmp_path, redis_broker, name):
    running(Exporter(tmp_path, None, environment={name: redis_broker.url})).connected()


def test_an_option_has_precedence_over_the_environment(running, tmp_path, redis_broker):
    variables = {
        **dict.fromkeys(URL_VARIABLES, UNREACHABLE_URL),
        "PROMETHEUS_PORT": "1",
        "CELERY_EXPORTER_HOST": "192.0.2.1",
    }
    running(Exporter(tmp_path, redis_broker.url, environment=variables)).connected()


def test_the_variable_of_the_exporter_has_precedence_over_others(running, tmp_path, redis_broker):
    """CELERY_EXPORTER_…, then CE_…, then the variable of Celery."""
    variables = {
        URL_VARIABLES[0]: redis_broker.url,
        URL_VARIABLES[1]: UNREACHABLE_URL,
        URL_VARIABLES[2]: UNREACHABLE_URL,
    }
    running(Exporter(tmp_path, None, environment=variables)).connected()


def test_the_broker_url_comes_from_a_file(running, tmp_path, redis_broker):
    """The file ends with a newline, as a mounted secret may."""
    file = tmp_path / "url"
    file.write_text(redis_broker.url + "\n")
    running(Exporter(tmp_path / "exporter", None, "--broker-url-file", str(file))).connected()


def test_port_and_interval_come_from_the_environment(running, tmp_path, redis_broker):
    """PROMETHEUS_PORT and METRICS_UPDATE_INTERVAL are also variables of other exporters."""
    port = free_port()
    variables = {"PROMETHEUS_PORT": str(port), "METRICS_UPDATE_INTERVAL": "1"}
    app = Exporter(tmp_path, redis_broker.url, port=None, update_interval=None, environment=variables)
    app.port = port
    running(app).connected()
    stamps = set()

    def has_updated_three_times():
        name = "celery_exporter_collector_last_success_timestamp_seconds"
        stamps.update(app.samples().matching(name).values())
        collectors = app.samples().label_values("collector", name)
        return len(stamps) >= 3 * len(collectors) > 0

    eventually(has_updated_three_times)


def test_each_log_line_is_one_record(running, tmp_path, redis_broker):
    """A JSON object, or logfmt."""
    app = running(Exporter(tmp_path / "json", redis_broker.url, "--log-format", "json")).connected()
    assert app.stop() == 0
    records = [json.loads(line) for line in app.text().splitlines()]
    assert records
    assert all(isinstance(record, dict) for record in records)
    app = running(Exporter(tmp_path / "logfmt", redis_broker.url, "--log-format", "logfmt")).connected()
    assert app.stop() == 0
    assert all("=" in line for line in app.text().splitlines())


# -- shutdown --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT], ids=str)
def test_a_signal_ends_the_exporter_cleanly(running, exporter, sig):
    """Within two seconds, with code 0, while it is subscribed to events."""
    running(exporter()).connected().stop_cleanly(sig)


def test_sighup_does_not_end_the_exporter_under_nohup(tmp_path, running):
    app = running(Exporter(tmp_path, UNREACHABLE_URL, wrapper=("nohup",)))
    os.kill(app.pid, signal.SIGHUP)
    eventually(lambda: app.value("celery_broker_up") == 0)
    assert app.get("/-/healthy").status == 200
    app.stop_cleanly()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "url", [UNREACHABLE_URL, "amqp://127.0.0.1:1//", "redis://{listener}/0", "amqp://{listener}//"]
)
def test_a_signal_ends_the_exporter_while_the_broker_is_down(running, tmp_path, url, sig):
    """The broker refuses connections, or does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = running(
            Exporter(tmp_path, url.format(listener=f"127.0.0.1:{listener.getsockname()[1]}"), "-Q", "celery")
        )
        eventually(lambda: app.value("celery_broker_up") == 0)
        app.stop_cleanly(sig)


def test_a_signal_during_start_ends_the_exporter_cleanly(tmp_path):
    """While modules are imported, signals are blocked and stay pending."""
    app = Exporter(tmp_path, UNREACHABLE_URL).start()

    def blocks_sigterm():
        status = Path(f"/proc/{app.pid}/status").read_text()
        (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
        return int(blocked, 16) >> (signal.SIGTERM - 1) & 1

    eventually(blocks_sigterm, every=0.001)
    os.kill(app.pid, signal.SIGTERM)
    assert app.wait(app.deadline) == 0  # as long as a start may take
    assert "Traceback" not in app.text()


#: A sitecustomize.py that sends SIGINT from a finalizer during the import of the transport.
IN_A_FINALIZER = """
import os, signal, sys

class Interrupts:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, [])  # delivers the signal

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "kombu.transport.redis":
            sys.meta_path.remove(self)
            Interrupts()

sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_during_a_finalizer_ends_a_command(tmp_path):
    """Python ignores exceptions that are raised in finalizers, which also run during imports."""
    (tmp_path / "sitecustomize.py").write_text(IN_A_FINALIZER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        command = run_cli("doctor", "--broker-url", url, environment={"PYTHONPATH": str(tmp_path)})
    assert (command.returncode, "Traceback" in command.stderr) == (130, False), command.stderr


def test_the_exporter_continues_after_sigstop_and_sigcont(running, exporter):
    """Debuggers send them, and `docker pause` has the same effect."""
    app = running(exporter()).connected()
    app.pause()
    try:
        eventually(lambda: psutil.Process(app.pid).status() == psutil.STATUS_STOPPED)
        stays(lambda: psutil.Process(app.pid).status() == psutil.STATUS_STOPPED, 2.5)
    finally:
        app.resume()
    stays(app.alive, 2.5)
    app.connected()
    app.stop_cleanly(signal.SIGTERM)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_exporter_as_pid_1(running, tmp_path, redis_broker, sig):
    """PID 1, as in a container without an init, has no default signal handlers."""
    wrapper = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        subprocess.run([*wrapper, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        missing("unshare --pid, as root,")
    app = running(Exporter(tmp_path, redis_broker.url, wrapper=wrapper)).connected()
    (inner,) = psutil.Process(app.pid).children()
    app.stop_cleanly(sig, inner.pid)
