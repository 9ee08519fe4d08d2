"""A certificate authority for one run of a lab, and what it signs. By openssl; the keys are in the lab's directory.

Not here: who believes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.lab.network import do

__all__ = ["Authority", "Certificate"]

KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
DAYS: Final = "2"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Two PEM files."""

    cert: Path
    key: Path

    def options(self) -> Sequence[str]:
        """As `broker relay` takes it."""
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)


class Authority:
    """Signs in ``folder``, which is there; ``ca`` is its own certificate."""

    def __init__(self, folder: Path, name: str = "lab") -> None:
        self._own = Certificate(folder / f"{name}-ca.pem", folder / f"{name}-ca.key")
        self.ca = self._own.cert
        _make(self._own, f"/CN={name} authority", "-addext", "keyUsage=critical,keyCertSign")

    def sign(self, name: str, address: str) -> Certificate:
        """For a server at an IP address."""
        made = Certificate(self.ca.with_name(f"{name}.pem"), self.ca.with_name(f"{name}.key"))
        _make(made, f"/CN={name}", "-CA", str(self._own.cert), "-CAkey", str(self._own.key),
              "-addext", f"subjectAltName=IP:{address}", "-addext", "basicConstraints=critical,CA:FALSE")  # fmt: skip
        return made


def _make(made: Certificate, subject: str, *more: str) -> None:
    do("openssl", "req", "-x509", *KEY, "-days", DAYS, "-subj", subject, "-keyout", str(made.key),
       "-out", str(made.cert), *more)  # fmt: skip
    made.key.chmod(0o600)
