"""The command line for files that nobody should trust."""

from __future__ import annotations

import pytest
from payloads import Command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)
