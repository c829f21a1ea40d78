"""Verifier services that a run starts beside itself: one child process for each principle with
``service.spawn: true``, restarted on its own port when it dies or hangs, ended with the run.

The child asks the kernel to die with its parent, so that nothing is left after a ``kill -9``.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

from cluster.placement import child_environment
from cluster.verifier_probe import HealthProbe
from safeladder.config import Config, ServiceConfig
from safeladder.errors import VerifierUnavailableError

log = logging.getLogger(__name__)

START_DEADLINE_S = 90.0
MAX_RESTARTS = 10
RESTART_WINDOW_S = 600.0
STOP_DEADLINE_S = 6.0
"""Longer than a service takes to end by itself."""


class VerifierService:
    """One ``safeladder serve-verifier`` process."""

    def __init__(
        self, principle: str, service: ServiceConfig, config_file: Path, folder: Path
    ) -> None:
        self.principle = principle
        self.address = ""
        self._service = service
        self._config_file = config_file
        self._ready_file = folder / f"{principle}.address"
        self._log_file = folder / f"{principle}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts: deque[float] = deque()
        self._probe: HealthProbe | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process; it binds a free loopback port, or its old one after a restart."""
        self._ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "cluster", "serve-verifier"]
        command += ["--config", str(self._config_file), "--principle", self.principle]
        command += ["--bind", self.address or "127.0.0.1:0"]
        command += ["--ready-file", str(self._ready_file), "--die-with-parent"]
        with self._log_file.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment(),
            )

    def wait_until_ready(self) -> None:
        """Block until it serves. Raises ``VerifierUnavailableError`` with its last words."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._ready_file.exists():
            if self.pid is None or time.monotonic() > deadline:
                words = self._log_file.read_text(errors="replace").strip().splitlines()[-3:]
                self.stop()
                raise VerifierUnavailableError(
                    f"the service of principle {self.principle!r} did not come up: "
                    f"{' '.join(words) or 'no output'}; its log is {self._log_file}"
                )
            time.sleep(0.05)
        self.address = self._ready_file.read_text().strip()
        where = f"principles.{self.principle}.service"
        self._probe = HealthProbe(self.address, self._service, where)

    def supervise(self) -> None:
        """Restart the process if it died or does not answer, within a budget; never waits for an
        answer. Clients reconnect by themselves."""
        if self.pid is not None and (self._probe is None or self._probe.is_well()):
            return
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - RESTART_WINDOW_S:
            self._restarts.popleft()
        if len(self._restarts) < MAX_RESTARTS:
            self._restarts.append(now)
            what = "died" if self.pid is None else "does not answer"
            log.warning("verifier service %s %s; restarting it", self.principle, what)
            self._kill()
            self.start()
            if self._probe is not None:
                self._probe.restart()

    def stop(self) -> None:
        """Ask it to end, then insist."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=STOP_DEADLINE_S)


class VerifierServices:
    """All services of one run."""

    def __init__(self, config: Config, config_file: Path, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._services = _services(config, config.principles, config_file, folder)

    def start(self) -> Config:
        """Start all and wait; returns the config with their addresses filled in."""
        return self._start(self._config, self._services)

    def add(self, config: Config, principles: Collection[str], config_file: Path) -> Config:
        """Start further services, those of ``principles`` in another configuration, and wait.

        Returns that configuration with their addresses. Raises ``VerifierUnavailableError``.
        """
        folder = self._folder / config_file.stem
        added = _services(config, principles, config_file, folder)
        resolved = self._start(config, added)
        self._services += added
        return resolved

    @staticmethod
    def _start(config: Config, services: Sequence[VerifierService]) -> Config:
        for service in services:
            service.start()
        principles = dict(config.principles)
        for service in services:
            service.wait_until_ready()
            principle = principles[service.principle]
            asked = principle.service or ServiceConfig(spawn=True)
            resolved = asked.model_copy(update={"address": service.address, "spawn": False})
            principles[service.principle] = principle.model_copy(update={"service": resolved})
        return config.model_copy(update={"principles": principles})

    def supervise(self) -> None:
        """Restart what died or hangs."""
        for service in self._services:
            service.supervise()

    def close(self) -> None:
        """End all."""
        for service in self._services:
            service.stop()


def _services(
    config: Config, principles: Collection[str], config_file: Path, folder: Path
) -> list[VerifierService]:
    """One for each of the principles that asks for a service of the run's own."""
    services = [
        VerifierService(name, service, config_file, folder)
        for name in sorted(principles)
        if (service := config.principles[name].service) is not None and service.spawn
    ]
    if services:
        folder.mkdir(parents=True, exist_ok=True)
    return services
