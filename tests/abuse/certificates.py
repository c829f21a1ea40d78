"""A small authority of its own for each test: certificates as files, as a config names them."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme

from safeladder.config import TlsConfig

SERVER = "verifier.test"
CLIENT = "run.test"
LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)


class Authority:
    """Signs what it is asked to, below ``folder``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self._ca = trustme.CA()
        self.ca_file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)

    def pair(self, *names: str, expired: bool = False) -> dict[str, Path]:
        """``cert_file`` and ``key_file`` of a certificate for ``names``."""
        end = {"not_before": LONG_AGO, "not_after": LONG_AGO + datetime.timedelta(days=1)}
        issued = self._ca.issue_cert(*names, **(end if expired else {}))
        stem = f"{self._name}-{'-'.join(names)}{'-expired' * expired}"
        cert_file, key_file = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        cert_file.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key_file)
        return {"cert_file": cert_file, "key_file": key_file}

    def server(self, *, expired: bool = False, name: str = SERVER) -> TlsConfig:
        """A service that wants certificates of its clients."""
        pair = self.pair(name, expired=expired)
        return TlsConfig(ca_file=self.ca_file, allowed_names=(CLIENT,), **pair)

    def client(self, *, name: str = CLIENT, server_name: str = SERVER) -> TlsConfig:
        """A client that it would serve."""
        return TlsConfig(ca_file=self.ca_file, server_name=server_name, **self.pair(name))
