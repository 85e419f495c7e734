"""Runs the instructions of a Dockerfile in a folder, without a container engine and a base image.

The folder is the root of the image: it precedes the image's absolute paths in each instruction. A Python
with pip, available as `python` and `pip`, replaces the base image.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Folders that are inside the image. All other absolute paths are those of the machine.
IMAGE_FOLDERS = ("/build", "/opt/", "/var/lib/celery-exporter")


@dataclass(frozen=True)
class Step:
    """One instruction: its name, such as `RUN`, and its arguments."""

    name: str
    text: str

    @property
    def flags(self) -> dict[str, str]:
        return dict(re.findall(r"--([a-z-]+)=(\S+)", self.text.split("CMD")[0]))

    @property
    def words(self) -> list[str]:
        """Return the arguments without flags; an exec form as its list."""
        bare = re.sub(r"^(--[a-z-]+=\S+\s+)+", "", self.text)
        if bare.startswith("["):
            words: list[str] = json.loads(bare)
            return words
        return shlex.split(bare)


@dataclass
class Stage:
    """A build stage, with the results of its instructions."""

    base: str
    name: str
    root: Path
    args: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)  # of the targets of COPY --chown


def steps(path: Path) -> list[Step]:
    """Return the instructions of a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    instructions = [line.split(None, 1) for line in whole.splitlines() if line.strip()]
    return [Step(name.upper(), re.sub(r"\s+", " ", text).strip()) for name, text in instructions]


def context(source: Path, folder: Path) -> Path:
    """Copy the build context to a folder, and return that. .dockerignore must exclude all but some names."""
    lines = [line for line in (source / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", ".dockerignore excludes everything, and names what is included"
    included = [line[1:] for line in lines if line.startswith("!")]
    excluded = [line for line in lines[1:] if not line.startswith("!")]
    assert all(re.fullmatch(r"\*\*/\w+", line) for line in excluded), excluded
    ignore = shutil.ignore_patterns(*(line.removeprefix("**/") for line in excluded))
    folder.mkdir()
    for name in included:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, ignore=ignore)
        else:
            shutil.copy(source / name, folder / name)
    return folder


class Build:
    """Runs the instructions of a Dockerfile; `image` is the last stage."""

    def __init__(self, file: Path, sources: Path, folder: Path, python: Path) -> None:
        self.sources, self.folder, self.python = sources, folder, python
        self.stages: dict[str, Stage] = {}
        self.globals: dict[str, str] = {}
        self.root = folder / "image"  # of the current stage; a virtual environment cannot be moved
        self.image: Stage | None = None
        for step in steps(file):
            self._run_step(step)
        assert self.image is not None

    def on_machine(self, text: str) -> str:
        """Return a text with the image's paths replaced by those on this machine."""
        folders = "|".join(map(re.escape, IMAGE_FOLDERS))
        return re.sub(rf"(?<![\w./-])({folders})", rf"{self.root}\1", text)

    def environment(self, stage: Stage) -> dict[str, str]:
        """Return the environment in the image: the machine's, for the package index, and the stage's."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))
        }
        return {**inherited, **{name: self.on_machine(value) for name, value in stage.env.items()}}

    def _run_step(self, step: Step) -> None:
        if step.name == "FROM":
            self._from(step)
        elif self.image is None:
            assert step.name == "ARG", f"{step.name} before FROM"
            name, _, value = step.text.partition("=")
            self.globals[name] = value
        else:
            getattr(self, f"_{step.name.lower()}")(step, self.image)

    def _from(self, step: Step) -> None:
        if self.image is not None:
            finished = self.folder / f"stage-{self.image.name}"
            self.root.rename(finished)
            self.image.root = finished
        base, _, name = _expand(step.text, self.globals).partition(" AS ")
        self.image = Stage(base, name or "last", self.root)
        self.stages[name] = self.image
        if base in self.stages:
            parent = self.stages[base]
            shutil.copytree(parent.root, self.root, symlinks=True)
            self.image.env, self.image.workdir = dict(parent.env), parent.workdir
        else:
            self.image.env["PATH"] = f"{self._python(name or 'last')}:/usr/local/bin:/usr/bin:/bin"
            self.root.mkdir()

    def _python(self, stage: str) -> Path:
        """Create the Python of the base image for a stage, with pip alone; return its folder."""
        base = self.folder / f"python-{stage}"
        subprocess.run([self.python, "-m", "venv", base], check=True)
        return base / "bin"

    def _arg(self, step: Step, stage: Stage) -> None:
        name, separator, value = step.text.partition("=")
        stage.args[name] = value if separator else self.globals[name]

    def _env(self, step: Step, stage: Stage) -> None:
        stage.env.update(self._pairs(step, stage))

    def _label(self, step: Step, stage: Stage) -> None:
        stage.labels.update(self._pairs(step, stage))

    def _pairs(self, step: Step, stage: Stage) -> dict[str, str]:
        variables = {**stage.args, **stage.env}
        return {
            name: _expand(value, variables) for name, _, value in (word.partition("=") for word in step.words)
        }

    def _workdir(self, step: Step, stage: Stage) -> None:
        stage.workdir = step.text
        Path(self.on_machine(step.text)).mkdir(parents=True, exist_ok=True)

    def _copy(self, step: Step, stage: Stage) -> None:
        *names, to = step.words
        origin = step.flags.get("from")
        target = Path(self.on_machine(to) if to.startswith("/") else f"{self.on_machine(stage.workdir)}/{to}")
        for name in names:
            source = self.stages[origin].root / name.lstrip("/") if origin else self.sources / name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy(source, target / name if to.endswith("/") else target)
        if "chown" in step.flags:
            stage.owners[to] = step.flags["chown"]

    def _run(self, step: Step, stage: Stage) -> None:
        environment = {**self.environment(stage), **stage.args}
        command = ["/bin/sh", "-c", self.on_machine(step.text)]
        process = subprocess.run(
            command,
            cwd=self.on_machine(stage.workdir),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, f"RUN {step.text}\n{process.stdout[-2000:]}{process.stderr[-2000:]}"

    def _user(self, step: Step, stage: Stage) -> None:
        stage.user = step.text

    def _entrypoint(self, step: Step, stage: Stage) -> None:
        assert step.text.startswith("["), "a shell would not pass the engine's signals on to the exporter"
        stage.entrypoint = step.words

    def _healthcheck(self, step: Step, stage: Stage) -> None:
        stage.healthcheck = Step("CMD", step.text.partition(" CMD ")[2]).words

    def _expose(self, step: Step, stage: Stage) -> None:
        """Do nothing: EXPOSE is documentation."""


def _expand(text: str, values: dict[str, str]) -> str:
    """Return a text with its variables replaced; an unknown one is empty, as for Docker."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)


def installed(site_packages: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and versions of the distributions in a folder."""
    for folder in site_packages.glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        yield re.sub(r"[-_.]+", "-", name).lower(), version
