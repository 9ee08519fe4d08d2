"""What a program keeps in files: its identity, and a hub's data directory.

An identity file is 32 secret bytes as 64 hex digits and a newline, mode 0600. One that others can read is refused, for
whoever reads it *is* that NodeId. A data directory holds ``hub.key``, ``admin.key``, ``state.json`` and
``admissions.json`` (hub/admission.py), and belongs to one live hub.
Not here: what the secret signs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from broker.errors import ConfigError, KeyFileError

__all__ = [
    "HubState",
    "admin_key_path",
    "claim_data_dir",
    "create",
    "key_path",
    "load",
    "load_or_create",
    "read_state",
    "save",
    "write_atomically",
    "write_state",
]

SECRET_BYTES: Final = 32
KEY_FILE: Final = "hub.key"
ADMIN_KEY_FILE: Final = "admin.key"
STATE_FILE: Final = "state.json"
LOCK_FILE: Final = "lock"
MOST_BYTES: Final = 1_024
"""Far above the 65 of a good file: a wrong path to something large is seen without reading it."""


def load(path: Path) -> bytes:
    """The secret of an identity file. Raises :class:`KeyFileError`."""
    try:
        # O_NONBLOCK: a FIFO would block here before it can be refused.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyFileError(f"no identity file at {path}\nmake one with `broker key new {path}`") from None
    except OSError as error:
        raise KeyFileError(f"the identity file {path} cannot be read: {error.strerror}") from None
    try:
        _check_mode(path, os.fstat(fd).st_mode)
        return _parse(path, os.read(fd, MOST_BYTES))
    finally:
        os.close(fd)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise KeyFileError(f"the identity file {path} is not a regular file")
    if mode & 0o077:
        raise KeyFileError(
            f"others can use the identity in {path} (mode {stat.S_IMODE(mode):04o}), so it is refused\n"
            f"close it with `chmod 600 {path}`; if somebody may have read it, make a new one"
        )


def _parse(path: Path, content: bytes) -> bytes:
    text = content.strip()
    if not text:
        raise KeyFileError(f"the identity file {path} is empty\nmake a new one with `broker key new --force {path}`")
    if not re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        raise KeyFileError(f"{path} is not an identity file, which is one line of 64 hex digits")
    return bytes.fromhex(text.decode())


def create(path: Path, overwrite: bool = False) -> bytes:
    """Makes an identity file. An existing one is kept, with :class:`KeyFileError`, unless ``overwrite``."""
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        if overwrite:
            write_atomically(path, _text(secret), mode=0o600)
        else:
            _create_exclusively(path, _text(secret))
    except FileExistsError:
        raise KeyFileError(f"{path} exists and is kept\nreplace it, and lose that NodeId, with --force") from None
    except OSError as error:
        raise KeyFileError(f"the identity file {path} cannot be made: {error.strerror}") from None
    return secret


def load_or_create(path: Path) -> bytes:
    """The identity at ``path``; a new one when there is none."""
    try:
        return create(path)
    except KeyFileError:
        if not path.exists():
            raise
    return load(path)


def save(path: Path, secret: bytes) -> None:
    """Keeps a secret that somebody else has made, in place of what is there."""
    try:
        write_atomically(path, _text(secret), mode=0o600)
    except OSError as error:
        raise KeyFileError(f"the identity file {path} cannot be made: {error.strerror}") from None


def _text(secret: bytes) -> bytes:
    return secret.hex().encode() + b"\n"


def _create_exclusively(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            _write_through(file.fileno(), content)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()  # a disk that is full must not leave half an identity behind
        raise


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """A reader of ``path`` sees the old content or the new one, never a part, and so does a machine that lost power."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            _write_through(file.fileno(), content)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_directory(directory: Path) -> None:
    """A name that was changed is on the disk only after this."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_through(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.fsync(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubState:
    """What makes a ticket outlive the hub that wrote it."""

    port: int | None = None
    """The UDP port that was bound."""
    node_id: str | None = None
    """Who the hub was."""


@contextmanager
def claim_data_dir(directory: Path) -> Iterator[Path]:
    """Makes ``directory`` (mode 0700) and holds it against other hubs until the process ends, however it ends."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the data directory {directory} cannot be used: {error.strerror}\n"
            "the hub writes its identity and who is admitted there: make it writable for this user, or give another",
            key="data",
        ) from None
    try:
        _lock(fd, directory)
        yield directory
    finally:
        os.close(fd)


def _lock(fd: int, directory: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        raise ConfigError(
            f"{directory} is in use by another live hub (process {holder or 'unknown'})\n"
            "stop that one, or give this hub a directory of its own with --data",
            key="data",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def key_path(directory: Path) -> Path:
    """Where a data directory has its hub's identity."""
    return directory / KEY_FILE


def admin_key_path(directory: Path) -> Path:
    """Where a data directory has the identity of its administrator."""
    return directory / ADMIN_KEY_FILE


def read_state(directory: Path) -> HubState:
    """What the last hub on this directory left; an empty one when there was none."""
    path = directory / STATE_FILE
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return HubState()
    except (OSError, orjson.JSONDecodeError) as error:
        raise _bad_state(path, str(error)) from None
    port, node_id = (value.get("port"), value.get("node_id")) if isinstance(value, dict) else (None, None)
    if not isinstance(value, dict) or not (port is None or (type(port) is int and 0 < port < 65_536)):
        raise _bad_state(path, "it needs an object with a port")
    if not (node_id is None or isinstance(node_id, str)):
        raise _bad_state(path, "its node_id is no text")
    return HubState(port=port, node_id=node_id)


def _bad_state(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the hub's state cannot be read ({why})\nremove the file to go on; the hub may then take another port, "
        "and tickets from before stop working",
        file=str(path),
    )


def write_state(directory: Path, state: HubState) -> None:
    """Replaces what the next hub on this directory will read."""
    try:
        write_atomically(directory / STATE_FILE, orjson.dumps(asdict(state)) + b"\n", mode=0o600)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}", key="data") from None
