"""Runs one part, and writes its table into docs/reference/compatibility.md.

    PYTHONPATH=tests .venv/bin/python -m compatibility pythons [3.13 ...]
    PYTHONPATH=tests .venv/bin/python -m compatibility lowest
    PYTHONPATH=tests .venv/bin/python -m compatibility latest
    PYTHONPATH=tests .venv/bin/python -m compatibility celery-versions [5.4 ...]

With versions, it runs only these, and does not change the page. The exit code is 1 if a test failed.
"""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence

from harness.processes import ROOT

from compatibility import celery_versions, environments, interpreters, page, wheel_tests
from compatibility.environments import Environment, InstallError
from compatibility.interpreters import Interpreter, NotFoundError
from compatibility.page import Row
from tools.docgen.marks import filled

PAGE = ROOT / "docs" / "reference" / "compatibility.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")
#: The Python of `make lowest` and `make celery-versions`: old versions have wheels for it.
OLDEST = PYTHONS[0]
CLASSIFIER = "Programming Language :: Python :: "
SHOWN = ("celery", "kombu", "redis", "uvicorn", "starlette", "msgspec")


def pythons(*versions: str) -> int:
    """Test the wheel on each Python, with the versions of requirements.lock.

    A Python that is not found, or has no classifier in pyproject.toml, fails only if it was asked for.
    """
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    rows, code = [], 0
    for version in versions or PYTHONS:
        row = _python(version)
        rows.append(row)
        is_required = version in versions or (CLASSIFIER + version in classifiers and row.versions)
        code |= 1 if is_required and not row.is_good else 0
        print(f"{version}: {row.problem or f'{row.unit}; {row.integration}'}", flush=True)
    text = page.of_rows(["Python", "found in"], rows)
    _write(
        "pythons", f"On {_today()}, with the versions of `requirements.lock`:", text, is_complete=not versions
    )
    return code


def _python(version: str) -> Row:
    try:
        interpreter = interpreters.find(version)
    except NotFoundError as error:
        return Row(version, problem=f"not found: {error}")
    return _tested(
        version, lambda _: interpreter.origin, f"python-{version}", interpreter, "-c", str(environments.LOCK)
    )


def lowest() -> int:
    """Test the wheel with the lowest versions that pyproject.toml permits, on the oldest Python."""
    return _resolved("lowest", "--resolution", "lowest-direct")


def latest() -> int:
    """Test the wheel with the newest versions, on the Python of this process."""
    return _resolved("latest", "--upgrade")


def _resolved(name: str, *options: str) -> int:
    version = OLDEST if name == "lowest" else "{}.{}".format(*sys.version_info)
    constraints = environments.resolve(name, version, *options)
    row = _tested(name, _packages, name, interpreters.find(version), "-c", str(constraints))
    text = page.of_rows(["dependencies", "versions"], [row])
    _write(name, f"On {_today()}, with Python {version}:", text, is_complete=True)
    return 0 if row.is_good else 1


def _packages(environment: Environment) -> str:
    versions = environment.versions()
    return ", ".join(f"{name} {versions[name]}" for name in SHOWN)


def _tested(
    title: str,
    describe: Callable[[Environment], str],
    name: str,
    interpreter: Interpreter,
    *options: str,
) -> Row:
    """Install the wheel into a new environment, and run the tests there."""
    wheel = f"{environments.build_wheel(name)}[{','.join(environments.EXTRAS)}]"
    try:
        environment = environments.create(name, interpreter, wheel, "--group", "test", *options)
    except InstallError as error:
        return Row(title, interpreter.origin, problem=str(error))
    tree = environments.copy_tests(name)
    unit = wheel_tests.run(environment, tree, "unit", wheel_tests.UNIT)
    integration = wheel_tests.run(environment, tree, "integration", wheel_tests.INTEGRATION)
    if name.startswith("python-"):
        title = environment.versions()["python"]
    return Row(title, describe(environment), unit, integration)


def celery(*versions: str) -> int:
    """Run workers of each version of Celery against the exporter of the wheel, on each broker."""
    for version in set(versions) - set(celery_versions.VERSIONS):
        sys.exit(f"no Celery {version}. Choose from {', '.join(celery_versions.VERSIONS)}")
    interpreter, name = interpreters.find(OLDEST), "celery-versions/exporter"
    wheel = environments.build_wheel(name)
    exporter = environments.create(name, interpreter, wheel, "-c", environments.LOCK)
    matrix: dict[str, page.Column] = {}
    servers: dict[str, str] = {}
    for version in versions or celery_versions.VERSIONS:
        name = f"celery-versions/{version}"
        environment = environments.create(name, interpreter, *celery_versions.VERSIONS[version])
        results = {}
        for broker, make_server in celery_versions.BROKERS.items():
            folder = environments.FOLDER / name / broker
            shutil.rmtree(folder, ignore_errors=True)
            with make_server(folder / "broker") as server:
                results[broker] = celery_versions.run(folder, environment, exporter, server.url)
                servers[broker] = celery_versions.server_version(server)
            print(f"Celery {version}, {broker}: {_differences(results[broker]) or 'passed'}", flush=True)
        matrix[version] = page.Column(environment.versions(), results)
    own = exporter.versions()
    brokers = " and ".join(f"{broker} {version}" for broker, version in servers.items())
    heading = (
        f"On {_today()}, with Python {own['python']}, {brokers}. The exporter has Celery {own['celery']}:"
    )
    _write("celery versions", heading, page.of_celery(matrix), is_complete=not versions)
    columns = matrix.values()
    return 1 if any(_differences(result) for column in columns for result in column.results.values()) else 0


def _differences(results: Mapping[str, celery_versions.Result]) -> dict[str, str]:
    expected = {None, celery_versions.NOT_IN_VERSION}
    return {check: result for check, result in results.items() if result and result not in expected}


def _write(name: str, heading: str, text: str, *, is_complete: bool) -> None:
    """Print a table; write it into the page if it is complete."""
    part = f"{heading}\n\n{text}"
    print(part, flush=True)
    if is_complete:
        PAGE.write_text(filled(PAGE.read_text(), {name: part}))


def _today() -> str:
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"


#: Name on the command line → what it runs.
PARTS: Mapping[str, Callable[..., int]] = {
    "pythons": pythons,
    "lowest": lowest,
    "latest": latest,
    "celery-versions": celery,
}


def main(arguments: Sequence[str]) -> int:
    """Run the part of this name with the versions after it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers end, too
    name, *versions = arguments
    return PARTS[name](*versions)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
