"""A real PostgreSQL for sweeps on several machines."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg2
import pytest

_USER = "sweeper"
_INSTALL = "apt-get install postgresql"


class Server:
    """A PostgreSQL server of its own: a cluster in a new directory, on a free port, gone with the tests.

    Attributes:
        password: of its only user, with characters that URLs must escape.
        password_in_urls: with those escaped.
        port: on the loopback.
    """

    def __init__(self, programs: Path, directory: Path) -> None:
        self.password = f"p:{secrets.token_hex(8)}/@"
        self.password_in_urls = quote(self.password, safe="")
        self.port = _free_port()
        self._made: set[str] = set()
        self._programs, self._directory = programs, directory
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root, which is what tests in a container often are.
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}
        if self._as:
            account = pwd.getpwnam("postgres")
            os.chown(directory, account.pw_uid, account.pw_gid)
        file = directory / "password"
        file.write_text(self.password, encoding="utf-8")
        self._run("initdb", f"--username={_USER}", f"--pwfile={file}", "--auth=scram-sha-256", "--no-sync")

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql://{_USER}:{self.password_in_urls}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make a database; returns its address."""
        with contextlib.closing(self._connect()) as connection:
            connection.autocommit = True
            connection.cursor().execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def database(self, name: str) -> str:
        """A database's address; it is made if it is not there."""
        if name not in self._made:
            self._made.add(name)
            return self.create(name)
        return self.url(name)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self._directory / "data"),
                    *("-p", str(self.port), "-k", self._directory),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=16MB"),
                ],
                stdout=log,
                stderr=log,
                cwd="/",
                **self._as,
            )
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg2.OperationalError):
                self._connect().close()
                return
            if self._process.poll() is not None or time.monotonic() > until:
                pytest.fail((self._directory / "log").read_text("utf-8"))
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it as an administrator would who does not wait for its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=60)
            self._process = None

    def _connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user=_USER, password=self.password, dbname="postgres"
        )

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._programs / program, "-D", self._directory / "data", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **self._as, check=False)
        assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    """A port of the loopback on which nobody listens."""
    return _free_port()


@pytest.fixture(scope="session")
def postgresql(needs: Callable[[str, str], Path]) -> Iterator[Server]:
    """A PostgreSQL server that answers."""
    # Debian's packages keep the server's programs off PATH, one folder a version.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    initdb = versions[-1] if versions else needs("initdb", _INSTALL)
    # Not pytest's own directory: other users cannot enter that.
    with tempfile.TemporaryDirectory(prefix="trainer-postgresql-") as directory:
        server = Server(initdb.parent, Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture(autouse=True)
def _warm_processes(warm_processes: None) -> None:
    """Training runs in processes of their own, and trials, start without importing anything."""
