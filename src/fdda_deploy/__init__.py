"""fdda-deploy: from a trained vision network and few or no real images to a low-bit engine.

The verbs below are loaded when they are first asked for, so that importing this package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdda_deploy.api import (
        BuildResult,
        CheckResult,
        build,
        check,
        export,
        quantize,
        synthesize,
    )
    from fdda_deploy.errors import FddaDeployError

__version__ = "0.1.0"

__all__ = [
    "BuildResult",
    "CheckResult",
    "FddaDeployError",
    "__version__",
    "build",
    "check",
    "export",
    "quantize",
    "synthesize",
]


def __getattr__(name: str) -> object:
    if name == "__version__" or name not in __all__:
        raise AttributeError(f"module 'fdda_deploy' has no attribute {name!r}", name=name)
    home = "fdda_deploy.errors" if name == "FddaDeployError" else "fdda_deploy.api"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
