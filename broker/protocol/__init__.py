"""The pure core: what hub and spoke say to each other and what each message does, as machines without IO.

Each machine is a plain object: a message, a time or a departure goes in, a list of effects comes out. Time is float
seconds of any monotonic clock, given as ``now``; Unix milliseconds are given as ``now_ms`` where the wire has them;
ids and randomness are given too. What a peer sends is arbitrary JSON: the answer is an effect or one FrameError, whose
close code ends that peer's connection, and never another exception.

Not here: sockets, asyncio, clocks, random, logging, metrics, the extension; tests/protocol/test_purity.py holds us to
it. Import from the modules; nothing is re-exported.
"""
