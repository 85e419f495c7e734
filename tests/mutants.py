"""Run mutation tests (make mutants): each mutant is one change in the core, and a test should fail.

mutmut writes the mutants. Pytest imports and collects once, and notes which tests run which lines. For each
mutant, a fork runs tests of the changed lines, the fastest first, until one fails.

    tests/mutants.py [--processes N] [--tests PATH] [PATTERN ...]    such as "tasks.*", "tasks.Task.expand:1"
"""

from __future__ import annotations

import argparse
import difflib
import gc
import inspect
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice, zip_longest
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import hypothesis
import pytest
from _pytest.runner import runtestprotocol
from mutmut.mutation import trampoline
from mutmut.mutation.file_mutation import mutate_file_contents

ROOT = Path(__file__).parents[1]
SOURCES = ("celery_exporter/core/*.py", "celery_exporter/persistence/state.py")
TESTS = ("tests/unit/core", "tests/unit/persistence/test_state.py")
#: Tests that take half a second or more: they measure memory, read megabytes, or are many by hypothesis.
LEFT_OUT = (
    *("ten_megabytes", "large_body", "less_than_400_bytes", "take_no_memory"),
    *("a_restart_after_any_events", "every_event_is_counted", "batch_of_anything", "any_bytes"),
    *("records_add_up_to_the_sums", "observed_completely", "usual_transitions_and_those_with_history"),
)
#: Functions that run at import, before a fork changes them.
AT_IMPORT = {"events._without_measured_fields"}
#: Of a hundred mutants, how many have to be noticed: of all, and of each module.
GOAL, MODULE_GOAL = 90.0, 85.0
#: Tests of other files that run for a mutant, and how long one of them may take. Of 100 mutants that any of
#: 1,900 tests notices, 94 are noticed by the fastest 50.
MAX_OTHER_TESTS, MAX_OTHER_SECONDS = 300, 0.2
#: A mutant is noticed if its tests take more CPU time than this many times that on the original, and seconds.
CPU_FACTOR, CPU_SECONDS = 5, 5
MEMORY_BYTES = 4 << 30

NOTICED, SURVIVED, NOT_RUN = "noticed", "no test failed", "no test runs it"


@dataclass(frozen=True)
class Mutant:
    """One change in a function."""

    name: str  # "tasks.TaskTable.find:3"
    function: FunctionType
    changed: FunctionType
    lines: list[int]  # of `function`, in its file: those that the change replaces
    all_lines: range
    difference: list[str]

    @property
    def module(self) -> str:
        return self.name.partition(".")[0]

    def apply(self) -> None:
        """Change the function wherever it was imported to."""
        self.function.__code__ = self.changed.__code__
        self.function.__defaults__ = self.changed.__defaults__
        self.function.__kwdefaults__ = self.changed.__kwdefaults__


Register = Callable[[FunctionType], FunctionType]


def collect_functions(functions: list[tuple[FunctionType, dict[str, Any]]]) -> Callable[..., Register]:
    """Return a decorator for mutmut's own, which would choose the mutant in each call."""

    def decorator(mutants: dict[str, Any], **_: bool) -> Register:
        def register(function: FunctionType) -> FunctionType:
            functions.append((function, mutants))
            return function

        return register

    return decorator


def mutants_of(function: FunctionType, by_name: dict[str, Any]) -> Iterator[Mutant]:
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
    if name in AT_IMPORT:
        return
    start, before = source(function)
    for number, changed in enumerate(list(by_name.values())[1:], 1):
        changed_function = getattr(changed, "__func__", changed)  # a class method has the function in it
        _, after = source(changed_function)
        after[0] = after[0].replace(changed_function.__name__, function.__name__)
        lines = [
            start + line
            for kind, first, last, *_ in difflib.SequenceMatcher(None, before, after).get_opcodes()
            if kind != "equal"
            for line in range(first, max(last, first + 1))
        ]
        difference = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
        all_lines = range(start, start + len(before))
        yield Mutant(f"{name}:{number}", function, changed_function, lines, all_lines, difference)


def source(function: FunctionType) -> tuple[int, list[str]]:
    """Return the line number of `def`, and the lines from there."""
    lines, start = inspect.getsourcelines(function)
    decorators = next(index for index, line in enumerate(lines) if line.lstrip().startswith("def "))
    return start + decorators, [line.rstrip() for line in lines[decorators:]]


def passes(item: pytest.Item) -> bool:
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


@dataclass
class Tests:
    """Which tests run which lines, and how long they take."""

    seconds: dict[pytest.Item, float]
    by_line: dict[tuple[str, int], set[pytest.Item]]

    @classmethod
    def measure(cls, items: list[pytest.Item], files: set[str]) -> Tests:
        """Run the tests on the original functions."""
        lines: set[tuple[str, int]] = set()

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                lines.add((frame.f_code.co_filename, frame.f_lineno))
            return trace

        tests = cls({}, defaultdict(set))
        for item in items:
            lines.clear()
            start = time.process_time()
            sys.settrace(trace)
            passed = passes(item)
            sys.settrace(None)
            tests.seconds[item] = time.process_time() - start
            if not passed:
                raise pytest.UsageError(f"{item.nodeid} fails without a change")
            for line in lines:
                tests.by_line[line].add(item)
        return tests

    def of(self, mutant: Mutant) -> list[pytest.Item]:
        """Return tests that run the changed lines, the fastest first.

        Those are all of the module's own file, and others: of each test function one, and so on. Some lines
        have no event of their own, such as constant arguments: then tests of the function.
        """
        file = mutant.function.__code__.co_filename
        candidates = (
            {test for line in lines for test in self.by_line.get((file, line), ())}
            for lines in (mutant.lines, mutant.all_lines)
        )
        own: list[pytest.Item] = []
        others: dict[str, list[pytest.Item]] = defaultdict(list)
        for test in sorted(next(filter(None, candidates), ()), key=self.seconds.__getitem__):
            if test.path.name == f"test_{mutant.module}.py":
                own.append(test)
            elif self.seconds[test] <= MAX_OTHER_SECONDS:
                others[test.nodeid.partition("[")[0]].append(test)
        in_turn = (test for tests in zip_longest(*others.values()) for test in tests if test is not None)
        return sorted([*own, *islice(in_turn, MAX_OTHER_TESTS)], key=self.seconds.__getitem__)


def fork(mutant: Mutant, tests: list[pytest.Item], cpu_seconds: int) -> int:
    """Return the process that runs the tests on the mutant; it exits with 0 if all pass."""
    if pid := os.fork():
        return pid
    try:
        limit = int(time.process_time()) + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        mutant.apply()
        survived = all(passes(test) for test in tests)
    except BaseException:  # noqa: BLE001 - also KeyboardInterrupt: nothing may leave the fork
        survived = False
    os._exit(0 if survived else 1)


def run(mutants: list[Mutant], tests: Tests, processes: int) -> dict[str, str]:
    """Return what became of each mutant, by its name; print those that survived."""
    results: dict[str, str] = {}
    running: dict[int, Mutant] = {}

    def add(mutant: Mutant, result: str) -> None:
        results[mutant.name] = result
        if result != NOTICED:
            print(f"\n{mutant.name}: {result}", *mutant.difference, sep="\n  ", flush=True)
        if len(results) % 100 == 0:
            log(f"{len(results)} of {len(mutants)} mutants")

    def wait() -> None:
        pid, status = os.wait()
        add(running.pop(pid), NOTICED if status else SURVIVED)

    gc.freeze()
    for mutant in mutants:
        if selected := tests.of(mutant):
            if len(running) == processes:
                wait()
            seconds = sum(tests.seconds[test] for test in selected)
            running[fork(mutant, selected, int(CPU_FACTOR * seconds) + CPU_SECONDS)] = mutant
        else:
            add(mutant, NOT_RUN)
    while running:
        wait()
    return results


def report(mutants: list[Mutant], results: dict[str, str]) -> bool:
    """Print the score of each module, and return whether the goals are reached."""
    rows: dict[str, Counter[bool]] = defaultdict(Counter)
    for mutant in mutants:
        rows[mutant.module][results[mutant.name] == NOTICED] += 1
    rows["all"] = sum(rows.values(), Counter())
    scores = {name: 100 * row[True] / row.total() for name, row in rows.items()}
    print("\nmodule           mutants  survived   noticed")
    for name, row in rows.items():
        print(f"{name:16} {row.total():7} {row[False]:9} {scores[name]:7.1f} %")
    return scores["all"] >= GOAL and min(scores.values()) >= MODULE_GOAL


def log(text: str) -> None:
    print(text, file=sys.__stderr__, flush=True)


class MutationTests:
    """Plugin of pytest that runs the mutants in place of the collected tests."""

    def __init__(self, patterns: list[str], processes: int) -> None:
        self._patterns, self._processes = patterns, processes
        self._functions: list[tuple[FunctionType, dict[str, Any]]] = []
        trampoline.wrap_in_trampoline = collect_functions(self._functions)

    def pytest_sessionstart(self) -> None:
        """Let hypothesis use the same examples for each mutant, and end with the first that fails."""
        phases = hypothesis.Phase.explicit, hypothesis.Phase.generate
        hypothesis.settings.register_profile(
            "mutants",
            deadline=None,
            derandomize=True,
            database=None,
            phases=phases,
            report_multiple_bugs=False,
        )
        hypothesis.settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        files = {function.__code__.co_filename for function, _ in self._functions}
        mutants = [
            mutant
            for function, by_name in self._functions
            for mutant in mutants_of(function, by_name)
            if any(fnmatch(mutant.name, pattern) for pattern in self._patterns)
        ]
        if not mutants:
            raise pytest.UsageError(f"no mutant has a name like {' or '.join(self._patterns)}")
        start = time.monotonic()
        tests = Tests.measure(session.items, files)
        log(f"{len(session.items)} tests of the original took {time.monotonic() - start:.0f} s")
        results = run(mutants, tests, self._processes)
        log(f"{len(mutants)} mutants took {time.monotonic() - start:.0f} s")
        session.testsfailed = not report(mutants, results)
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Run mutation tests of the core.")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", default=["*"])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--tests", action="append", metavar="PATH", help="in place of all tests of the core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as copy:
        for name in ("celery_exporter", "tests"):
            shutil.copytree(ROOT / name, Path(copy, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        os.chdir(copy)
        modules = [pattern.partition(".")[0] for pattern in options.patterns]
        paths = [path for pattern in SOURCES for path in Path().glob(pattern)]
        for path in (path for path in paths if any(fnmatch(path.stem, module) for module in modules)):
            path.write_text(mutate_file_contents(str(path), path.read_text()).code)
        sys.path.insert(0, copy)
        selection = " and ".join(f"not {name}" for name in LEFT_OUT)
        arguments = [
            "-q",
            "-s",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            "-k",
            selection,
            *(options.tests or TESTS),
        ]
        return int(pytest.main(arguments, plugins=[MutationTests(options.patterns, options.processes)]))


if __name__ == "__main__":
    sys.exit(main())
