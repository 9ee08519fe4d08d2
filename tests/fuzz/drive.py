"""One target under atheris: ``python -m tests.fuzz.drive TARGET [libFuzzer's flags and folders]``.

The only file here that needs atheris (the dependency group ``fuzz``). ``python -m tests.fuzz`` starts it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main() -> None:
    atheris: Any = importlib.import_module("atheris")
    name, *flags = sys.argv[1:]
    # Coverage of what is tested, and not of the tests.
    with atheris.instrument_imports(include=["broker.protocol", "broker.hub"]):
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    # To merge, libFuzzer starts this again, by what stands first here.
    atheris.Setup([f"{sys.executable} -m tests.fuzz.drive {name}", *flags], targets[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
