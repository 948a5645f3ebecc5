"""The process of a command: ``fdda-deploy`` and ``python -m fdda_deploy``."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from fdda_deploy.cli import main


def run() -> NoReturn:
    """Runs the command of ``sys.argv`` and ends the process with its exit code.

    Python would take the modules apart first, one object at a time: 2 seconds where torch has
    traced a network. All files are closed by now, and what others want done at the end is done.
    """
    code = main()
    if "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
