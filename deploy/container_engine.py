"""Docker, or buildah and podman: what builds an image and runs it, by whichever works here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
READY_LIMIT_S = 180
#: As compose.yaml has it. Without a writable /tmp too: podman would add one.
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
LIMITS = ("--memory", "4g", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")


class ImpossibleError(Exception):
    """No engine works here, or it lacks the base image."""


class Engine:
    """Docker, or buildah and podman."""

    def __init__(self) -> None:
        if _works("docker", "info"):
            self._run, self._build = ["docker"], ["docker", "build"]
            self._flags: tuple[str, ...] = ()
        elif _works("buildah", "info") and _works("podman", "info"):
            runtime = ["--runtime", "runc"] if shutil.which("runc") else []
            self._run = ["podman", *runtime]
            # In the other format there is no health check.
            self._build = [
                "buildah",
                "bud",
                "--format",
                "docker",
                "--isolation",
                "chroot",
                "--layers",
            ]
            self._flags = ("--read-only-tmpfs=false",)
        else:
            raise ImpossibleError("neither docker nor buildah with podman works here")

    def has(self, image: str) -> bool:
        return _works(*self._run, "image", "inspect", image)

    def build(self, tag: str, limit_s: int | None) -> None:
        """Build as this machine's pip would install. What it prints is shown: it takes minutes.

        Raises:
            ImpossibleError: it took longer than ``limit_s``.
        """
        with tempfile.TemporaryDirectory() as folder:
            conf = Path(folder, "pip.conf")
            settings = pip_settings()
            conf.write_text("\n".join(["[global]", *(f"{k} = {v}" for k, v in settings.items())]))
            flags = ["--secret", f"id=pipconf,src={conf}"]
            if self._build[0] == "buildah":
                for place in (settings.get("cert", ""), *settings.get("find-links", "").split()):
                    path = Path(place) if Path(place).is_dir() else Path(place).parent
                    if place.startswith("/") and path.is_dir():
                        flags += ["--volume", f"{path}:{path}:ro"]
            # Unlike ours, the tool's timeout ends what the build has started too.
            bounded = ["timeout", str(limit_s)] if limit_s else []
            done = subprocess.run([*bounded, *self._build, *flags, "-t", tag, str(ROOT)])
        if limit_s and done.returncode == 124:
            raise ImpossibleError(f"the build took longer than {limit_s} s")
        assert done.returncode == 0, "the build failed"

    def call(self, *arguments: str) -> str:
        done = subprocess.run([*self._run, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def logs(self, name: str) -> str:
        """What a container has said so far."""
        done = subprocess.run([*self._run, "logs", name], capture_output=True, text=True)
        return done.stdout + done.stderr

    def healthy(self, name: str) -> bool:
        """What the image's own health check says; only Docker runs it by itself."""
        if self._run[0] == "podman":
            return _works(*self._run, "healthcheck", "run", name)
        return self.call("inspect", "--format", "{{.State.Health.Status}}", name) == "healthy"

    def wait_healthy(self, name: str) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        while not self.healthy(name):
            assert time.monotonic() < deadline, self.logs(name)
            time.sleep(0.5)

    def start(self, name: str, image: str, *flags: str) -> None:
        self.call("run", "-d", "--name", name, *self._flags, *HARDENED, *LIMITS, *flags, image)


def pip_settings() -> dict[str, str]:
    """How this machine's pip is set up, but for indexes that are folders of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    found = {name.rpartition(".")[2]: value.strip("'") for name, _, value in pairs}
    return {name: value for name, value in found.items() if name and "file:" not in value}


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False
