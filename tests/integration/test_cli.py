"""The command line: what it refuses and how, where options come from, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from harness.exporter import Exporter, run_cli
from harness.processes import free_port, missing
from harness.waiting import eventually, stays

NOBODY = "redis://127.0.0.1:1/0"  # nobody listens on port 1
WRONG = [
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
    ("--static-label", "queue_name=1"),  # one of ours
    ("--broker-transport-option", "noequals"),
    ("--broker-ssl-option", "noequals"),
    ("--accept-content", "nosuch"),
    ("--broker-url-file", "/no/such/file"),
]


MAY_HOLD_SECRETS = {"--broker-transport-option", "--broker-ssl-option"}  # their values aren't repeated


def one_line(result):
    """Return stderr, which has to be a single line without a traceback."""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr.strip()


@pytest.fixture(scope="module")
def refusals():
    """Return what came of each wrong value; two at a time, for starting Python is what takes the time."""

    def run(case):
        option, value = case
        url = () if option == "--broker-url-file" else ("--broker-url", NOBODY)
        try:
            return run_cli(*url, option, value)
        except AssertionError:  # it did not end
            return None  # it took the value, and runs

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(WRONG, pool.map(run, WRONG), strict=True))


@pytest.mark.parametrize(("option", "value"), WRONG, ids=lambda text: text)
def test_invalid_value_exits_with_code_2_and_one_line(refusals, option, value):
    """The line names the option and what it got, and says what it takes."""
    result = refusals[option, value]
    assert result, f"{option} {value} was accepted"
    line = one_line(result)
    assert result.returncode == 2, line
    assert option in line
    assert value in line or option in MAY_HOLD_SECRETS
    rest = line.replace(option, "").replace(value, "")
    assert len(rest.split()) >= 4, f"it doesn't say what {option} takes: {line}"


@pytest.mark.parametrize("name", ["CELERY_EXPORTER_PORT", "CE_PORT", "PROMETHEUS_PORT"])
def test_invalid_variable_exits_with_code_2_and_one_line(name):
    result = run_cli("--broker-url", NOBODY, environment={name: "abc"})
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
def test_invalid_value_of_a_command_exits_with_code_2_and_one_line(arguments):
    result = run_cli(*arguments, "--broker-url", NOBODY)
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert "s3cret" not in result.stderr


def test_unknown_option_is_rejected():
    result = run_cli("--broker-url", NOBODY, "--nosuch")
    assert result.returncode == 2
    assert "--nosuch" in result.stderr


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nosuch://user:s3cret@127.0.0.1/0", "unknown scheme 'nosuch'; use redis://"),
        ("http://s3cret", "unknown scheme 'http'; use redis://"),
        ("user:s3cret@host", "takes"),  # not a URL at all
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
def test_invalid_broker_url_exits_with_one_line(url, what):
    """It says what is wrong. In no case a word of the password."""
    result = run_cli("--broker-url", url)
    line = one_line(result)
    assert result.returncode == 2, line
    assert "--broker-url" in line
    assert what in line
    assert not re.search("s3cret|20241130", line)


@pytest.mark.parametrize(
    "argv", [["record", "u:s3cret@h"], ["replay", "redis://:s3cret@h/0"], ["u:s3cret@h"]]
)
def test_a_password_in_the_wrong_place_is_not_shown(argv):
    result = run_cli(*argv, "--broker-url", NOBODY) if len(argv) > 1 else run_cli(*argv)
    assert result.returncode == 2
    assert "s3cret" not in one_line(result)


def test_url_may_end_with_a_newline(running, tmp_path, redis_broker):
    """As a secret does that was written by echo."""
    environment = {"CELERY_BROKER_URL": f"{redis_broker.url}\n"}
    running(Exporter(tmp_path, None, environment=environment)).connected()


@pytest.mark.parametrize("argv", [[], ["doctor"], ["record", "file"]])
def test_error_for_a_url_without_an_option_names_the_option(argv):
    result = run_cli(*argv, "redis://:s3cret@127.0.0.1/0")
    assert result.returncode == 2
    line = one_line(result)
    assert "--broker-url URL" in line
    assert "s3cret" not in line


def subscription_error(log: str) -> str | None:
    return next((line for line in log.splitlines() if "no event subscription" in line), None)


@pytest.mark.parametrize("scheme", ["rediss", "amqps"])
def test_tls_error_in_the_log_names_doctor(running, tmp_path, scheme):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        url = f"{scheme}://127.0.0.1:{plain.getsockname()[1]}/0"
        app = running(Exporter(tmp_path, url))
        # A periodic job may ask the same a moment earlier, in a line of its own.
        line = eventually(lambda: subscription_error(app.text()), 60)
    assert "does this port speak TLS?" in line
    assert url in line
    assert "celery-exporter doctor" in line


def test_a_missing_transport_package_ends_with_code_2_and_one_line():
    """kombu knows the scheme, the package that it needs isn't installed: the line says so."""
    result = run_cli("--broker-url", "confluentkafka://127.0.0.1")
    assert result.returncode == 2
    assert "kafka" in one_line(result)


def test_port_in_use_ends_with_code_1_and_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_cli("--broker-url", NOBODY, "--host", "127.0.0.1", "--port", port)
    assert result.returncode == 1
    assert port in one_line(result)


def test_version_and_help():
    version = run_cli("--version")
    assert version.returncode == 0
    assert any(character.isdigit() for character in version.stdout)
    usage = run_cli("--help")
    assert usage.returncode == 0
    for option in {option for option, _ in WRONG} | {"--broker-url", "--host", "--queues", "-Q", "--version"}:
        assert option in usage.stdout
    for option in ("--enable-events", "--event-exchange", "--event-queue-durable"):
        assert option in usage.stdout


# where options come from

URL_NAMES = ["CELERY_EXPORTER_BROKER_URL", "CE_BROKER_URL", "CELERY_BROKER_URL"]


@pytest.mark.parametrize("name", URL_NAMES)
def test_the_broker_url_comes_from_the_environment(running, tmp_path, redis_broker, name):
    running(Exporter(tmp_path, None, environment={name: redis_broker.url})).connected()


def test_option_takes_precedence_over_the_environment(running, tmp_path, redis_broker):
    wrong = {**dict.fromkeys(URL_NAMES, NOBODY), "PROMETHEUS_PORT": "1", "CELERY_EXPORTER_HOST": "192.0.2.1"}
    running(Exporter(tmp_path, redis_broker.url, environment=wrong)).connected()


def test_own_variable_takes_precedence_over_those_of_other_exporters(running, tmp_path, redis_broker):
    """CELERY_EXPORTER_…, then CE_…, then what Celery itself reads."""
    names = {URL_NAMES[0]: redis_broker.url, URL_NAMES[1]: NOBODY, URL_NAMES[2]: NOBODY}
    running(Exporter(tmp_path, None, environment=names)).connected()


def test_the_broker_url_comes_from_a_file(running, tmp_path, redis_broker):
    """As a mounted secret is: with a newline at its end."""
    file = tmp_path / "url"
    file.write_text(redis_broker.url + "\n")
    running(Exporter(tmp_path / "exporter", None, "--broker-url-file", str(file))).connected()


def test_port_and_interval_come_from_the_environment(running, tmp_path, redis_broker):
    """PROMETHEUS_PORT and METRICS_UPDATE_INTERVAL, as people have them set for other exporters."""
    port = free_port()
    names = {"PROMETHEUS_PORT": str(port), "METRICS_UPDATE_INTERVAL": "1"}
    app = Exporter(tmp_path, redis_broker.url, port=None, update_interval=None, environment=names)
    app.port = port
    running(app).connected()
    stamps = set()

    def updated_thrice():
        name = "celery_exporter_collector_last_success_timestamp_seconds"
        stamps.update(app.samples().matching(name).values())
        collectors = app.samples().label_values("collector", name)
        return len(stamps) >= 3 * len(collectors) > 0

    eventually(updated_thrice)


def test_log_formats(running, tmp_path, redis_broker):
    """One line is one record: JSON objects, or logfmt."""
    app = running(Exporter(tmp_path / "json", redis_broker.url, "--log-format", "json")).connected()
    assert app.stop() == 0
    records = [json.loads(line) for line in app.text().splitlines()]
    assert records
    assert all(isinstance(record, dict) for record in records)
    app = running(Exporter(tmp_path / "logfmt", redis_broker.url, "--log-format", "logfmt")).connected()
    assert app.stop() == 0
    assert all("=" in line for line in app.text().splitlines())


# how it ends


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT], ids=str)
def test_signal_stops_the_exporter(running, exporter, sig):
    """Within two seconds, with code 0, while it hears events."""
    running(exporter()).connected().stop_cleanly(sig)


def test_closed_terminal_does_not_stop_it_under_nohup(tmp_path, running):
    app = running(Exporter(tmp_path, NOBODY, wrapper=("nohup",)))
    os.kill(app.pid, signal.SIGHUP)
    eventually(lambda: app.value("celery_broker_up") == 0)
    assert app.get("/-/healthy").status == 200
    app.stop_cleanly()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("url", [NOBODY, "amqp://127.0.0.1:1//", "redis://{silent}/0", "amqp://{silent}//"])
def test_signal_stops_it_without_a_broker(running, tmp_path, url, sig):
    """Refused, or never answered, it must not wait for the broker to end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = running(
            Exporter(tmp_path, url.format(silent=f"127.0.0.1:{silent.getsockname()[1]}"), "-Q", "celery")
        )
        eventually(lambda: app.value("celery_broker_up") == 0)
        app.stop_cleanly(sig)


def test_an_early_signal_is_not_lost(tmp_path):
    """It may come while the program is still importing: it waits, and ends it in good order."""
    app = Exporter(tmp_path, NOBODY).start()

    def waits_for_signals():
        status = Path(f"/proc/{app.pid}/status").read_text()
        (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
        return int(blocked, 16) >> (signal.SIGTERM - 1) & 1

    eventually(waits_for_signals, every=0.001)
    os.kill(app.pid, signal.SIGTERM)
    assert app.wait(app.deadline) == 0, "which takes as long as starting does"
    assert "Traceback" not in app.text()


#: As sitecustomize.py: presses Ctrl-C in a finalizer, while the broker's library is imported.
IN_A_FINALIZER = """
import os, signal, sys

class Interrupts:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, [])  # by the next instruction it has come

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "kombu.transport.redis":
            sys.meta_path.remove(self)
            Interrupts()

sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_ends_a_command_at_any_time(tmp_path):
    """Python drops an exception that is raised in a finalizer, of which an import has many."""
    (tmp_path / "sitecustomize.py").write_text(IN_A_FINALIZER)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        done = run_cli("doctor", "--broker-url", url, environment={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr


def test_exporter_continues_after_sigstop(running, exporter):
    """SIGSTOP and SIGCONT, as `docker pause` and debuggers send them."""
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
def test_signal_stops_it_as_pid_1(running, tmp_path, redis_broker, sig):
    """PID 1 has no default handlers: in a container without an init it has to end all the same."""
    wrapper = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        subprocess.run([*wrapper, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        missing("unshare --pid, as root,")
    app = running(Exporter(tmp_path, redis_broker.url, wrapper=wrapper)).connected()
    (inner,) = psutil.Process(app.pid).children()
    app.stop_cleanly(sig, inner.pid)
