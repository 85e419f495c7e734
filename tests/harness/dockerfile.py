"""A Dockerfile, and its steps carried out in a folder: no engine, no base image, but the same commands.

`/` of the image is a folder, and where a step names an absolute path of the image's own, that folder is put
before it. The base image is a Python with pip, which stands there as `python` and `pip`.
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

#: Folders of the image that steps name; everything else is the machine's own.
OWN = ("/build", "/opt/", "/var/lib/celery-exporter")


@dataclass(frozen=True)
class Step:
    """One instruction: `RUN`, and what it takes."""

    name: str
    text: str

    @property
    def flags(self) -> dict[str, str]:
        return dict(re.findall(r"--([a-z-]+)=(\S+)", self.text.split("CMD")[0]))

    @property
    def words(self) -> list[str]:
        """Return it without flags, an exec form's list as it is."""
        bare = re.sub(r"^(--[a-z-]+=\S+\s+)+", "", self.text)
        if bare.startswith("["):
            words: list[str] = json.loads(bare)
            return words
        return shlex.split(bare)


@dataclass
class Stage:
    """What a FROM begins: its steps, and after they are done its environment and labels."""

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
    owners: dict[str, str] = field(default_factory=dict)  # of what COPY --chown made


def steps(path: Path) -> list[Step]:
    """Return the instructions of a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(None, 1) for line in whole.splitlines() if line.strip()]
    return [Step(name.upper(), re.sub(r"\s+", " ", text).strip()) for name, text in found]


def context(source: Path, folder: Path) -> Path:
    """Copy what .dockerignore lets through, which has to be of the form "nothing but"."""
    lines = [line for line in (source / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", "it names what is in, not what is out"
    kept = [line[1:] for line in lines if line.startswith("!")]
    dropped = [line for line in lines[1:] if not line.startswith("!")]
    assert all(re.fullmatch(r"\*\*/\w+", line) for line in dropped), dropped
    ignore = shutil.ignore_patterns(*(line.removeprefix("**/") for line in dropped))
    folder.mkdir()
    for name in kept:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, ignore=ignore)
        else:
            shutil.copy(source / name, folder / name)
    return folder


class Build:
    """Carries out the steps; `image` is the last stage's."""

    def __init__(self, file: Path, sources: Path, folder: Path, python: Path) -> None:
        self.sources, self.folder, self.python = sources, folder, python
        self.stages: dict[str, Stage] = {}
        self.globals: dict[str, str] = {}
        self.root = folder / "image"  # of the stage that is being made; a virtual environment cannot be moved
        self.image: Stage | None = None
        for step in steps(file):
            self._follow(step)
        assert self.image is not None

    def shown(self, text: str) -> str:
        """Return a text of the image with the paths that it has here."""
        ours = "|".join(map(re.escape, OWN))
        return re.sub(rf"(?<![\w./-])({ours})", rf"{self.root}\1", text)

    def environment(self, stage: Stage) -> dict[str, str]:
        """Return what a process in the image finds: the machine's way to the package index, and its own."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))
        }
        return {**kept, **{name: self.shown(value) for name, value in stage.env.items()}}

    def _follow(self, step: Step) -> None:
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
            done = self.folder / f"stage-{self.image.name}"
            self.root.rename(done)
            self.image.root = done
        base, _, name = _filled(step.text, self.globals).partition(" AS ")
        self.image = Stage(base, name or "last", self.root)
        self.stages[name] = self.image
        if base in self.stages:
            before = self.stages[base]
            shutil.copytree(before.root, self.root, symlinks=True)
            self.image.env, self.image.workdir = dict(before.env), before.workdir
        else:
            self.image.env["PATH"] = f"{self._python(name or 'last')}:/usr/local/bin:/usr/bin:/bin"
            self.root.mkdir()

    def _python(self, stage: str) -> Path:
        """Make the base image's Python, with a pip and nothing else, for a stage that begins with that."""
        base = self.folder / f"python-{stage}"
        subprocess.run([self.python, "-m", "venv", base], check=True)
        return base / "bin"

    def _arg(self, step: Step, stage: Stage) -> None:
        name, given, value = step.text.partition("=")
        stage.args[name] = value if given else self.globals[name]

    def _env(self, step: Step, stage: Stage) -> None:
        stage.env.update(self._pairs(step, stage))

    def _label(self, step: Step, stage: Stage) -> None:
        stage.labels.update(self._pairs(step, stage))

    def _pairs(self, step: Step, stage: Stage) -> dict[str, str]:
        known = {**stage.args, **stage.env}
        return {
            name: _filled(value, known) for name, _, value in (word.partition("=") for word in step.words)
        }

    def _workdir(self, step: Step, stage: Stage) -> None:
        stage.workdir = step.text
        Path(self.shown(step.text)).mkdir(parents=True, exist_ok=True)

    def _copy(self, step: Step, stage: Stage) -> None:
        *names, to = step.words
        origin = step.flags.get("from")
        target = Path(self.shown(to) if to.startswith("/") else f"{self.shown(stage.workdir)}/{to}")
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
        command = ["/bin/sh", "-c", self.shown(step.text)]
        done = subprocess.run(
            command,
            cwd=self.shown(stage.workdir),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {step.text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def _user(self, step: Step, stage: Stage) -> None:
        stage.user = step.text

    def _entrypoint(self, step: Step, stage: Stage) -> None:
        assert step.text.startswith("["), "a shell would stand between the engine's signals and the exporter"
        stage.entrypoint = step.words

    def _healthcheck(self, step: Step, stage: Stage) -> None:
        stage.healthcheck = Step("CMD", step.text.partition(" CMD ")[2]).words

    def _expose(self, step: Step, stage: Stage) -> None:
        """Nothing: it is a note for people."""


def _filled(text: str, values: dict[str, str]) -> str:
    """Put in what is known; what is not is empty, as it is there."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), text)


def installed(site_packages: Path) -> Iterator[tuple[str, str]]:
    """Yield names and versions of the distributions in a folder."""
    for folder in site_packages.glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        yield re.sub(r"[-_.]+", "-", name).lower(), version
