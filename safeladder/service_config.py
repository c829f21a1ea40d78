"""How a verifier behind gRPC is reached, and what proves who speaks.

Both sides read this part: a run as the client, ``safeladder serve-verifier`` as the service. Each
names its own files; a side that lacks one refuses to start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from safeladder.config_section import Flag, HostPort, NonNegativeFloat, PositiveInt, Section


class TlsConfig(Section):
    """Encryption of a service, and who is at the other end. Files are PEM."""

    ca_file: Path | None = None
    """Authorities that may have signed the other side's certificate. A client needs it; a service
    that has it serves only clients with a certificate (mTLS)."""
    cert_file: Path | None = None
    """Certificate chain that this side shows. A service needs it."""
    key_file: Path | None = None
    """Private key of ``cert_file``."""
    server_name: str | None = None
    """Name that the service's certificate must carry; the host of ``address`` if not given."""
    allowed_names: tuple[str, ...] = ()
    """Alternative names (SAN) of the client certificates that are served. A service with
    ``ca_file`` needs at least one."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("`cert_file` and `key_file` go together: give both or neither")
        return self


class ServiceConfig(Section):
    """A verifier behind gRPC."""

    address: HostPort | None = None
    """``host:port`` of a running ``safeladder serve-verifier``."""
    spawn: Flag = False
    """Start the service beside the run on a free loopback port, and end it with the run."""
    token_file: Path | None = None
    """File whose content is sent as bearer token."""
    tls: TlsConfig | None = None
    """Encrypted traffic; without it the service is for this machine only."""
    insecure: Flag = False
    """Allow plain text to and from other machines. Whoever is on the way reads and changes
    verdicts."""
    max_batch: PositiveInt = 1
    """Samples of several calls that the service gives to the verifier together; 1 asks call by
    call. Worth it for a judge that runs a model."""
    max_wait_ms: NonNegativeFloat = 5.0
    """Longest wait of a call for others to share a batch with."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.address is None) == (not self.spawn):
            raise ValueError("give either `address: host:port` or `spawn: true`")
        return self
