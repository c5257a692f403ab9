"""A whole federation on this machine: certificates, node keys, SuperLink, SuperNodes, a run; all of it ends together.

What is started are Flower's own commands, over TLS and with authenticated nodes, as between machines. It is for a first
look and for tests; the README of ``examples/flower`` has the same commands for an operator.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cosmosfl.flower.session import FederationError

HOST, CONNECTION = "127.0.0.1", "loopback"
DAYS = 30
"""How long the certificates are good for."""
PAUSE = 0.2
"""Seconds between two looks at the processes."""


@dataclass
class Loopback:
    """SuperLink and SuperNodes of one directory, in a ``with`` statement: at its end no process is left.

    Attributes
    ----------
    directory
        Certificates, keys, Flower's own files, databases and logs.
    port
        Of the SuperLink.
    nodes
        Name -> number, of those that were registered.
    """

    directory: Path
    port: int = 0
    nodes: dict[str, int] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.directory = self.directory.resolve()
        for part in ("home", "keys", "logs"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        write_certificates(self.directory)
        self.port = self.port or free_port()
        try:
            self.start_superlink()
        except BaseException:
            self.stop("superlink")  # there is no end of a statement that did not begin
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(
            *(name for name in self._processes if name != "superlink")
        )  # the nodes first: they say good-bye to it
        self.stop("superlink")

    # --- processes ----------------------------------------------------------------------------------------------------

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers.

        Raises
        ------
        FederationError
            If it does not.
        """
        self._start(
            "superlink",
            "flower-superlink",
            f"--host={HOST}",
            f"--port={self.port}",
            f"--ssl-certfile={self.directory / 'server.pem'}",
            f"--ssl-keyfile={self.directory / 'server.key'}",
            f"--ssl-ca-certfile={self.directory / 'ca.pem'}",
            "--enable-supernode-auth",
            f"--database={self.directory / 'superlink.db'}",
            "--disable-runtime-dependency-installation",
        )
        connection = {"address": f"{HOST}:{self.port}", "root-certificates": str(self.directory / "ca.pem")}
        config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        (self.directory / "home" / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
        context = ssl.create_default_context(cafile=self.directory / "ca.pem")
        end = time.monotonic() + 120
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((HOST, self.port), timeout=2) as plain,
                context.wrap_socket(plain, server_hostname=HOST),
            ):
                return
            if not self.is_running("superlink") or time.monotonic() > end:
                raise FederationError(f"the SuperLink does not answer; {self.log_of('superlink')}")
            time.sleep(PAUSE)

    def register(self, name: str) -> int:
        """Make a key for a node, let the SuperLink know it, and return the node's number."""
        write_node_key(self.directory / "keys" / name)
        answer = self._flwr("supernode", "register", str(self.directory / "keys" / f"{name}.pub"), CONNECTION)
        self.nodes[name] = int(answer["node-id"])
        return self.nodes[name]

    def start_node(
        self,
        name: str,
        config: Mapping[str, str],
        *,
        key: bool = True,
        command: Sequence[str] = ("flower-supernode",),
    ) -> None:
        """Start a SuperNode.

        Parameters
        ----------
        config
            The node's configuration: what its app finds in ``context.node_config``.
        key
            Whether it shows its key; without one it is refused.
        command
            What starts a SuperNode.
        """
        pairs = {"name": name, "state-dir": str(self.directory / "states" / name), **config}
        own = [f"--auth-supernode-private-key={self.directory / 'keys' / name}"] if key else []
        self._start(
            name,
            *command,
            f"--superlink={HOST}:{self.port}",
            f"--root-certificates={self.directory / 'ca.pem'}",
            f"--port={free_port()}",
            "--node-config=" + " ".join(f'{name}="{value}"' for name, value in pairs.items()),
            *own,
        )

    def stop(self, *names: str, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stop processes, and what they have started, and wait for their end."""
        processes = [self._processes.pop(name) for name in names if name in self._processes]
        running = processes
        for attempt in (sign, signal.SIGKILL):
            for process in running:
                _signal_group(process, attempt)
            end = time.monotonic() + 10
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0, end - time.monotonic()))
            running = [process for process in running if process.poll() is None]
        for process in processes:
            _signal_group(process, signal.SIGKILL)  # an app that outlived what had started it

    def is_running(self, name: str) -> bool:
        """Say whether a process is there."""
        return name in self._processes and self._processes[name].poll() is None

    def log_of(self, name: str) -> str:
        """Return the last lines that a process wrote."""
        path = self.directory / "logs" / f"{name}.log"
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    # --- runs ---------------------------------------------------------------------------------------------------------

    def submit(self, app: Path, config: Mapping[str, Any]) -> int:
        """Submit an app, with its run configuration, and return the number of the run."""
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        return int(self._flwr("run", str(app), CONNECTION, "--run-config", pairs)["run-id"])

    def status(self, run: int) -> str:
        """Return how a run stands, as Flower says it: ``finished:completed`` at the end, if all went well."""
        answer = self._flwr("list", CONNECTION, "--run-id", str(run))
        return str(answer["runs"][0]["status"])

    def wait(self, run: int, timeout: float = 600) -> str:
        """Wait for the end of a run, and return its status.

        Raises
        ------
        FederationError
            If it does not end in time, or a process ends before it.
        """
        end = time.monotonic() + timeout
        follower = f"run-{run}"
        while True:
            self._start(follower, "flwr", "log", str(run), CONNECTION, "--stream")  # ends with the run
            try:
                while self.is_running(follower):
                    if ended := [name for name in self._processes if not self.is_running(name) and name != follower]:
                        raise FederationError(f"{ended[0]} has ended before the run; {self.log_of(ended[0])}")
                    if time.monotonic() > end:
                        raise FederationError(f"run {run} goes on after {timeout:.0f} s; {self.log_of(follower)}")
                    time.sleep(PAUSE)
            finally:
                self.stop(follower)
            if (status := self.status(run)).startswith("finished"):
                return status

    # --- details ------------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "FLWR_HOME": str(self.directory / "home"), "FLWR_TELEMETRY_ENABLED": "0"}

    def _start(self, name: str, *command: str) -> None:
        with (self.directory / "logs" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [_found(command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment(),
                cwd=self.directory,
                start_new_session=True,
            )

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        command: Sequence[str] = [_found("flwr"), *arguments, "--format", "json"]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        start = done.stdout.find("{")
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
        if done.returncode or not answer.get("success"):
            said = " ".join(str(answer.get("error-message") or f"{done.stdout} {done.stderr}").split())
            raise FederationError(f"flwr {' '.join(arguments[:2])}: {said}")
        return answer


def _signal_group(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)


def _found(command: str) -> str:
    beside = Path(sys.executable).parent / command
    found = str(beside) if beside.is_file() else shutil.which(command)
    if found is None:
        raise FederationError(f"no command {command}; it comes with Flower: pip install 'cosmosfl[flower]'")
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def write_certificates(directory: Path, names: Sequence[str] = ("localhost",)) -> None:
    """Write ``ca.pem``, and ``server.pem`` with ``server.key`` for this machine, unless they are there."""
    if (directory / "server.pem").is_file():
        return
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cosmosfl loopback authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    key_usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    root = (
        _certificate(issuer, issuer, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    hosts = [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address(HOST))]
    leaf = (
        _certificate(subject, issuer, server.public_key())
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    _write_secret(directory / "server.key", _pem(server, serialization.PrivateFormat.PKCS8))
    (directory / "server.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def write_node_key(path: Path) -> None:
    """Write a SuperNode's private key, and its public one in ``.pub`` beside it, as ``ssh-keygen -t ecdsa -b 384``."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(path, _pem(key, serialization.PrivateFormat.OpenSSH))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_name(f"{path.name}.pub").write_bytes(public + b"\n")


def _pem(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
