"""docs/protocol.md says what the code does: its tables against the constants."""

from __future__ import annotations

import re
from pathlib import Path

from broker.errors import call_error
from broker.protocol.routing import is_reserved
from broker.protocol.wire import ALPN, CloseCode

PROTOCOL = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_table_of_close_codes_is_the_enum() -> None:
    rows = {int(code): name for code, name in re.findall(r"^\| (\d+) \| ([A-Z0-9_]+) \|", PROTOCOL, re.MULTILINE)}
    assert rows == {code.value: code.name for code in CloseCode}


def test_the_call_codes_are_classes() -> None:
    sentence = PROTOCOL[PROTOCOL.index("Codes: ") : PROTOCOL.index("+ `details")]
    codes = re.findall(r"`([A-Z_]+)`", sentence)
    assert len(codes) == 7
    assert all(call_error(code, "").code == code for code in codes)


def test_reserved_prefixes_are_reserved() -> None:
    for prefix in ("call.", "hub.", "topic.", "__"):
        assert f"`{prefix}`" in PROTOCOL
        assert is_reserved(prefix + "x")
    assert f"`{ALPN}`" in PROTOCOL
