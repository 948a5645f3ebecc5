"""Configuration: one frozen dataclass per part of a build, read from TOML or flags."""

from fdda_deploy.config.engine import EngineConfig
from fdda_deploy.config.reading import config_from, config_from_text
from fdda_deploy.config.sections import (
    BuildConfig,
    DataConfig,
    ModelConfig,
    Override,
    QuantizeConfig,
    RunConfig,
    SynthesisConfig,
)
from fdda_deploy.config.writing import to_dict, to_toml

__all__ = [
    "BuildConfig",
    "DataConfig",
    "EngineConfig",
    "ModelConfig",
    "Override",
    "QuantizeConfig",
    "RunConfig",
    "SynthesisConfig",
    "config_from",
    "config_from_text",
    "to_dict",
    "to_toml",
]
