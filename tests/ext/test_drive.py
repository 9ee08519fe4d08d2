"""The runtime on the event loop's own thread. In processes of their own: start_thread (other tests) is for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRELUDE = """
import asyncio, os, selectors, signal, socket, sys, threading, time
from broker import _gossip_ext as ext
from broker.loop import DrivingLoop

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with it ignored

def pair():
    hub = ext.Endpoint.bind(ext.generate_secret(), accept=True, open=True)
    spoke = ext.Endpoint.bind(ext.generate_secret())
    return hub, spoke

def run(main):
    with asyncio.Runner(loop_factory=DrivingLoop) as runner:
        return runner.run(asyncio.wait_for(main, 20))

class Items:
    def __init__(self, endpoint):
        self.endpoint, self.queue = endpoint, asyncio.Queue()
        asyncio.get_running_loop().add_reader(endpoint.fileno(), self.wake)

    def wake(self):
        for item in self.endpoint.drain():
            self.queue.put_nowait(item)

    async def wait(self, kind):
        while (item := await self.queue.get())[0] != kind:
            pass
        return item
"""


def runs(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_calls_and_answers_with_one_thread() -> None:
    runs("""
async def main():
    hub, spoke = pair()
    at_hub, at_spoke = Items(hub), Items(spoke)
    spoke.dial(1, hub.node_id, hub.addrs())
    near = (await at_spoke.wait(ext.OPENED))[1]
    for number in range(200):
        assert spoke.send(near, b"%d" % number)
        _, far, frames = await at_hub.wait(ext.FRAMES)
        assert frames == [b"%d" % number]
        hub.send(far, frames)
        assert (await at_spoke.wait(ext.FRAMES))[2] == frames
    hub.close(); spoke.close()
run(main())
assert threading.active_count() == 1
assert not any("broker-net" in open(f"/proc/self/task/{tid}/comm").read() for tid in os.listdir("/proc/self/task"))
""")


def test_wakes_on_a_descriptor_on_a_timer_and_from_a_thread() -> None:
    runs("""
async def main():
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    here.setblocking(False)
    for number in range(100):
        loop.call_soon(there.send, b"x")
        assert await loop.sock_recv(here, 1) == b"x"
    # Sent while the loop is parked in the runtime.
    for number in range(20):
        threading.Timer(0.01, there.send, [b"y"]).start()
        assert await loop.sock_recv(here, 1) == b"y"
    before = time.monotonic()
    await asyncio.sleep(0.2)
    assert 0.19 < time.monotonic() - before < 5
    assert await asyncio.to_thread(lambda: 42) == 42
run(main())
""")


def test_an_idle_loop_does_not_spin() -> None:
    runs("""
async def main():
    hub, spoke = pair()
    at_spoke = Items(spoke)
    spoke.dial(1, hub.node_id, hub.addrs())
    near = (await at_spoke.wait(ext.OPENED))[1]
    spoke.send(near, b"nobody drains the hub's inbox")
    await asyncio.sleep(0.2)
    assert hub.pending()
    before = time.process_time()
    await asyncio.sleep(1.0)
    assert time.process_time() - before < 0.3
    hub.close(); spoke.close()
run(main())
""")


def test_one_turn_reads_the_sockets() -> None:
    runs("""
hub, spoke = pair()
hub.fileno(), spoke.fileno()
epoll = selectors.EpollSelector()
spoke.dial(1, hub.node_id, hub.addrs())
turns, opened = 0, False
deadline = time.monotonic() + 20
while not opened:
    ext.drive(epoll.fileno(), 0)
    opened = any(item[0] == ext.OPENED for item in spoke.drain())
    assert time.monotonic() < deadline
""")


@pytest.mark.parametrize("busy", [False, True])
def test_control_c(busy: bool) -> None:
    out = runs(f"""
busy = {busy}
async def main():
    hub, spoke = pair()
    at_hub, at_spoke = Items(hub), Items(spoke)
    spoke.dial(1, hub.node_id, hub.addrs())
    near = (await at_spoke.wait(ext.OPENED))[1]
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    while True:
        if busy:
            spoke.send(near, b"x")
            await at_hub.wait(ext.FRAMES)
        else:
            await asyncio.sleep(3600)
try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
""")
    assert out == "interrupted\n"


def test_control_c_after_asyncio_gave_its_signal_handlers_back() -> None:
    out = runs("""
async def main():
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, heard.set)
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR1]).start()
    await heard.wait()
    loop.remove_signal_handler(signal.SIGUSR1)
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    await asyncio.sleep(3600)
try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
""")
    assert out == "interrupted\n"


def test_a_second_loop_in_the_same_process() -> None:
    runs("""
async def main():
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    here.setblocking(False)
    threading.Timer(0.02, there.send, [b"y"]).start()
    assert await loop.sock_recv(here, 1) == b"y"
for _ in range(3):
    run(main())
""")


def test_two_threads_cannot_drive_at_once() -> None:
    runs("""
epoll = selectors.EpollSelector()
threading.Thread(target=ext.drive, args=(epoll.fileno(), 1.0)).start()
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    try:
        ext.drive(epoll.fileno(), 0)
    except RuntimeError as error:
        assert "another thread" in str(error)
        break
else:
    sys.exit("no error")
""")


def test_a_kept_descriptor_is_told_as_long_as_something_is_unread_and_again_when_more_comes() -> None:
    runs("""
epoll = selectors.EpollSelector()
here, there = socket.socketpair()
epoll.register(here, selectors.EVENT_READ)
def readable(timeout=0):
    return ext.drive(epoll.fileno(), timeout, True)
for _ in range(3):
    assert not readable()
    there.send(b"ab")
    assert readable(10) and readable(10)
    here.recv(1)
    assert readable(10)
    here.recv(1)
    readable()  # it may look once more: what was readable is watched anew
""")


def test_a_kept_descriptor_that_was_forgotten_may_come_again_as_another() -> None:
    runs("""
for _ in range(3):
    epoll = selectors.EpollSelector()
    here, there = socket.socketpair()
    epoll.register(here, selectors.EVENT_READ)
    assert not ext.drive(epoll.fileno(), 0, True)
    there.send(b"a")
    deadline = time.monotonic() + 10
    while not ext.drive(epoll.fileno(), 1, True):
        assert time.monotonic() < deadline
    here.recv(1)
    ext.drive(epoll.fileno(), 0, True)
    ext.forget(epoll.fileno())
    epoll.close()
""")


def test_what_is_ready_is_seen_after_a_long_quiet_time() -> None:
    runs("""
async def main():
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    here.setblocking(False)
    for pause in (0.0, 0.0001, 0.01) * 40:  # within the time in which it stays awake, and beyond it
        timer = loop.call_later(pause, there.send, b"x")
        assert await loop.sock_recv(here, 1) == b"x"
        await asyncio.sleep(pause)
run(main())
""")


def test_arguments() -> None:
    runs("""
for fd, timeout, error in [(-1, 0.1, OSError), (0, float("inf"), ValueError), (0, float("nan"), ValueError)]:
    try:
        ext.drive(fd, timeout)
    except error:
        pass
    else:
        sys.exit(f"{fd} {timeout}")
""")


def test_swarms_with_one_thread_and_pauses() -> None:
    runs("""
import json

def event(author, seq):
    meta = {"author": author, "epoch": "0" * 16, "seq": seq}
    return json.dumps({"type": "t", "detail": 1, "meta": meta}, separators=(",", ":")).encode()

async def main():
    a, b = (ext.Endpoint.bind(ext.generate_secret(), accept=True, gossip_message_bytes=4096) for _ in range(2))
    a.admit_peers([b.node_id])
    b.admit_peers([a.node_id])
    b.learn(a.node_id, a.addrs())
    at_a, at_b = Items(a), Items(b)
    first, second = a.join("t", bytes(32), []), b.join("t", bytes(32), [a.node_id])
    await at_a.wait(ext.NEIGHBOUR)
    await at_b.wait(ext.NEIGHBOUR)
    for seq in range(1, 201):
        assert first.publish("0" * 16, seq, [event(a.node_id, seq)])
        assert (await at_b.wait(ext.BATCH))[2:] == (a.node_id, "0" * 16, seq, [event(a.node_id, seq)])
    time.sleep(4)  # nobody runs the runtime, and that is not the neighbour's fault
    assert first.publish("0" * 16, 201, [event(a.node_id, 201)])
    assert (await at_b.wait(ext.BATCH))[4] == 201
    await asyncio.sleep(1)
    assert a.counters()["gossip_stalled"] + b.counters()["gossip_stalled"] == 0
    second.leave()
    assert (await at_a.wait(ext.NEIGHBOUR))[2:] == (b.node_id, False)

run(main())
""")
