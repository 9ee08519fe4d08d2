"""A certificate authority for labs and tests: Ed25519 certificates for relays, written without any other program.

Just enough of X.509 for TLS clients to check host names and addresses against. Not for anything that is to last: keys
lie in files beside their certificates. Not here: certificates of peers, which have none (a NodeId is the key).
"""

from __future__ import annotations

import base64
import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from broker import _gossip_ext as ext

__all__ = ["Authority", "Issued", "issued_once"]

LIFE: Final = timedelta(days=30)
SLACK: Final = timedelta(days=1)
"""For clocks that differ."""

ED25519: Final = bytes.fromhex("06032b6570")
COMMON_NAME: Final = bytes.fromhex("0603550403")
BASIC_CONSTRAINTS: Final = bytes.fromhex("0603551d13")
KEY_USAGE: Final = bytes.fromhex("0603551d0f")
ALTERNATIVE_NAMES: Final = bytes.fromhex("0603551d11")
TRUE: Final = bytes.fromhex("0101ff")
SIGNS_CERTIFICATES: Final = bytes.fromhex("03020204")
SIGNS: Final = bytes.fromhex("03020780")
SEQUENCE, SET, OCTETS, BITS, INTEGER, UTF8, TIME = 0x30, 0x31, 0x04, 0x03, 0x02, 0x0C, 0x18
DNS_NAME, IP_ADDRESS = 0x82, 0x87


@dataclass(frozen=True, slots=True)
class Issued:
    """PEM files."""

    cert: Path
    key: Path


class Authority:
    """Makes ``ca.pem`` in a directory, and with :meth:`issue` certificates that it signs."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._secret = directory, ext.generate_secret()
        self._name = f"lab authority {ext.node_id(self._secret)[:10]}"
        directory.mkdir(parents=True, exist_ok=True)
        extensions = [
            _sequence(BASIC_CONSTRAINTS, TRUE, _tlv(OCTETS, _sequence(TRUE))),
            _sequence(KEY_USAGE, TRUE, _tlv(OCTETS, SIGNS_CERTIFICATES)),
        ]
        self.file = directory / "ca.pem"
        self.file.write_bytes(_pem("CERTIFICATE", self._certificate(self._secret, self._name, extensions, LIFE)))

    def issue(self, name: str, hosts: Sequence[str], *, life: timedelta = LIFE) -> Issued:
        """A certificate for these host names and addresses, in ``NAME.pem`` and ``NAME.key`` (mode 0600)."""
        secret = ext.generate_secret()
        names = _sequence(*map(_alternative, hosts))
        extensions = [
            _sequence(KEY_USAGE, TRUE, _tlv(OCTETS, SIGNS)),
            _sequence(ALTERNATIVE_NAMES, _tlv(OCTETS, names)),
        ]
        issued = Issued(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        issued.cert.write_bytes(_pem("CERTIFICATE", self._certificate(secret, name, extensions, life)))
        key = _sequence(_integer(0), _sequence(ED25519), _tlv(OCTETS, _tlv(OCTETS, secret)))
        with open(os.open(issued.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_pem("PRIVATE KEY", key))
        return issued

    def _certificate(self, secret: bytes, subject: str, extensions: list[bytes], life: timedelta) -> bytes:
        now = datetime.now(UTC)
        content = _sequence(
            _tlv(0xA0, _integer(2)),  # version 3
            _integer(secrets.randbits(120) | 1),
            _sequence(ED25519),
            _name(self._name),
            _sequence(_time(now - SLACK), _time(now + life)),
            _name(subject),
            _sequence(_sequence(ED25519), _bits(bytes.fromhex(ext.node_id(secret)))),
            _tlv(0xA3, _sequence(*extensions)),
        )
        return _sequence(content, _sequence(ED25519), _bits(ext.sign(self._secret, content)))


def issued_once(directory: Path, name: str, hosts: Sequence[str]) -> Issued:
    """A certificate for these hosts, by an authority of its own (``ca.pem``): what is there already, unless it is for
    others or half its life is over, so that who trusts that authority does so after a restart too."""
    issued, said = Issued(directory / f"{name}.pem", directory / f"{name}.key"), directory / f"{name}.hosts"
    wanted = "".join(f"{host}\n" for host in hosts)
    try:
        age = datetime.now(UTC) - datetime.fromtimestamp(issued.cert.stat().st_mtime, UTC)
        if said.read_text() == wanted and age < LIFE / 2:
            return issued
    except FileNotFoundError:
        pass
    issued = Authority(directory).issue(name, hosts)
    said.write_text(wanted)
    return issued


def _alternative(host: str) -> bytes:
    try:
        return _tlv(IP_ADDRESS, ipaddress.ip_address(host).packed)
    except ValueError:
        return _tlv(DNS_NAME, host.encode("ascii"))


def _name(text: str) -> bytes:
    return _sequence(_tlv(SET, _sequence(COMMON_NAME, _tlv(UTF8, text.encode()))))


def _time(when: datetime) -> bytes:
    # Up to 2049 the standard wants two digits for the year.
    kind, shape = (0x17, "%y%m%d%H%M%SZ") if when.year < 2050 else (TIME, "%Y%m%d%H%M%SZ")
    return _tlv(kind, when.strftime(shape).encode())


def _integer(value: int) -> bytes:
    return _tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _bits(content: bytes) -> bytes:
    return _tlv(BITS, b"\0" + content)


def _sequence(*parts: bytes) -> bytes:
    return _tlv(SEQUENCE, b"".join(parts))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _pem(what: str, der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {what}-----", *lines, f"-----END {what}-----", ""]).encode()
