"""Every error a user can meet, as one tree.

FddaDeployError
├── ConfigError          an option, a config key or a combination of them is wrong
├── ModelError           a network cannot be found, loaded, or traced
├── DataError            images, labels or class lists are missing or damaged
├── CalibrationError     ranges, centers or a calibration record do not fit
├── ExportError          a graph cannot be written, or breaks a TensorRT rule
├── WorkspaceError       the result folder is busy, full, or not writable
├── MemoryShortageError  a stage needs more memory than it may have
├── RankError            another process of the same run stopped
└── EngineError          building or running an engine failed
    ├── MissingBackendError   the library or the GPU that is needed is not there
    └── BuildError            the builder refused the graph

A message says what, where, got, wanted, and what to do next. Only ``cli.py`` catches them.
"""


class FddaDeployError(Exception):
    """Root of the tree: a failure that the user can act on."""


class ConfigError(FddaDeployError):
    """An option, a config key or a combination of them is wrong."""


class ModelError(FddaDeployError):
    """A network cannot be found, loaded, or traced."""


class DataError(FddaDeployError):
    """Images, labels or class lists are missing or damaged."""


class CalibrationError(FddaDeployError):
    """Ranges, centers or a calibration record do not fit."""


class ExportError(FddaDeployError):
    """A graph cannot be written, or breaks a TensorRT rule."""


class WorkspaceError(FddaDeployError):
    """The result folder is busy, full, or not writable."""


class MemoryShortageError(FddaDeployError):
    """A stage needs more memory than it may have; the message says what to lower."""


class RankError(FddaDeployError):
    """Another process of the same run stopped."""


class EngineError(FddaDeployError):
    """Building or running an engine failed."""


class MissingBackendError(EngineError):
    """The library or the GPU that is needed is not there; the message has the install line."""


class BuildError(EngineError):
    """The builder refused the graph."""
