"""Identity files and the data directory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from broker import keys
from broker.errors import ConfigError, KeyFileError


def test_a_new_identity_is_private_and_lasts(tmp_path: Path) -> None:
    path = tmp_path / "k"
    secret = keys.create(path)
    assert path.read_bytes() == secret.hex().encode() + b"\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(secret) == 32
    assert keys.load(path) == secret == keys.load_or_create(path)


def test_an_identity_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys.create(tmp_path / "k")
        keys.create(tmp_path / "k", overwrite=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600


def test_an_identity_is_not_lost_by_accident(tmp_path: Path) -> None:
    secret = keys.create(tmp_path / "k")
    with pytest.raises(KeyFileError, match="exists and is kept"):
        keys.create(tmp_path / "k")
    assert keys.load(tmp_path / "k") == secret
    assert keys.create(tmp_path / "k", overwrite=True) != secret
    assert [entry.name for entry in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o610])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k"
    keys.create(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}.*\n.*chmod 600 {path}") as caught:
        keys.load(path)
    assert caught.value.exit_status == 2
    with pytest.raises(KeyFileError, match="chmod 600"):
        keys.load_or_create(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"\n", "empty"), (b"ab" * 31, "64 hex"), (b"zz" * 32, "64 hex"), (b"ab" * 2_000_000, "64 hex")],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "k"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=says):
        keys.load(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="broker key new"):
        keys.load(tmp_path / "none")
    with pytest.raises(KeyFileError, match="regular file"):
        keys.load(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(KeyFileError, match=r"loop cannot be read: .*symbolic links") as caught:
        keys.load(tmp_path / "loop")
    assert caught.value.exit_status == 2
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KeyFileError, match="regular file"):
        keys.load(tmp_path / "fifo")
    with pytest.raises(KeyFileError, match="cannot be made"):
        keys.load_or_create(tmp_path / "no" / "such" / "k")


def test_the_state_of_a_hub_lasts(tmp_path: Path) -> None:
    assert keys.read_state(tmp_path) == keys.HubState()
    keys.write_state(tmp_path, keys.HubState(port=4433))
    keys.write_state(tmp_path, keys.HubState(port=4434))
    assert keys.read_state(tmp_path).port == 4434
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"port": 0}', b'{"port": "1"}', b'{"port": true}', b'{"node_id": 1}']
)
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"state\.json: .*\nremove the file"):
        keys.read_state(tmp_path)


def test_a_place_that_cannot_be_a_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"data: .*/file/data cannot be used: Not a directory\n.*make it writable"),
        keys.claim_data_dir(tmp_path / "file" / "data"),
    ):
        pass


def test_a_later_version_may_add_to_the_state(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b'{"port": 5, "later": {}}')
    assert keys.read_state(tmp_path).port == 5


def test_a_data_directory_has_one_hub(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    with keys.claim_data_dir(directory) as claimed:
        assert claimed == directory
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        with (
            pytest.raises(ConfigError, match=rf"in use by another live hub \(process {os.getpid()}\)"),
            keys.claim_data_dir(directory),
        ):
            pass
    with keys.claim_data_dir(directory):
        pass


def test_a_killed_hub_lets_go_of_its_data_directory(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from broker import keys\n"
        "with keys.claim_data_dir(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=f"process {holder.pid}"), keys.claim_data_dir(tmp_path):
            pass
        holder.kill()
    with keys.claim_data_dir(tmp_path):
        pass


def test_a_data_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"), keys.claim_data_dir(tmp_path / "file"):
        pass


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "f", {b"a" * 50_000, b"b" * 50_000}
    keys.write_atomically(path, b"a" * 50_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for content in contents:
                keys.write_atomically(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= contents
