"""A compact plan that was asked for where there can be none is refused; left open, it is silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fdda_deploy.cli.options import Options, UsageFaultError
from fdda_deploy.config import config_from_text
from fdda_deploy.engines.doctor import BackendChoice
from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline import run

W8A8: dict[str, Any] = {"scheme": "w8a8", "target": "rtx"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "4-bit weights": ({"scheme": "w4a8"}, "for w8a8 with 8 bits throughout, got w4a8."),
    "the default scheme": ({"scheme": None}, "for w8a8 with 8 bits throughout, got w4a8."),
    "4-bit activations": ({"scheme": "w8a4"}, "for w8a8 with 8 bits throughout, got w8a4."),
    "narrow ends": ({"first_last_bits": 4}, "got w8a8 with --first-last-bits 4."),
    "fp8": ({"scheme": "fp8"}, "for w8a8 with 8 bits throughout, got fp8."),
    "searched scales": ({"scale_search": "easyquant"}, "but --scale-search sets each channel's."),
    "scaled gradients": ({"psg": True}, "but --psg sets each channel's."),
    "clipped weights": ({"scale_clip": 2.5}, "but --scale-clip sets each channel's."),
    "the published recipe": ({"recipe": "fdda-paper"}, "not in the published recipe."),
    "TensorRT": ({"target": "trt"}, "for TensorRT-RTX alone, got target trt. Take --target rtx"),
    "a CPU": ({"target": "ort-cpu"}, "for TensorRT-RTX alone, got target ort-cpu."),
    "TensorRT by backend": ({"target": None, "backend": "tensorrt"}, "got target trt."),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_asked_for_where_it_cannot_be_it_is_a_usage_fault(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageFaultError) as caught:
        Options("digits", compact_plan=True, **{**W8A8, **changes}).build_config()
    message = str(caught.value)
    assert message.startswith("--compact-plan: ")
    assert words in message
    assert message.endswith("or leave --compact-plan out.")


@pytest.mark.parametrize("asked", [None, False], ids=["left open", "told not to"])
@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_otherwise_nothing_is_refused(
    changes: dict[str, Any], words: str, asked: bool | None
) -> None:
    del words
    config = Options("digits", compact_plan=asked, **{**W8A8, **changes}).build_config()
    assert config.quantize.compact_plan is asked


@pytest.mark.parametrize("changes", [{}, {"target": None}, {"target": None, "backend": "rtx"}])
def test_where_it_can_be_it_is_taken(changes: dict[str, Any]) -> None:
    config = Options("digits", compact_plan=True, **{**W8A8, **changes}).build_config()
    assert config.quantize.compact_plan


def test_a_recipe_that_quantizes_everything_bears_it() -> None:
    toml = "[synthesis.overrides]\nquantize_everything = true\n"
    flags = {"model": "digits", "recipe": "fdda-paper", "compact_plan": True, **W8A8}
    assert config_from_text(toml, flags, "a.toml").quantize.compact_plan


def test_the_key_in_a_file_is_refused_alike() -> None:
    toml = "[quantize]\ncompact_plan = true\nweight_bits = 4\n"
    with pytest.raises(ConfigError, match=r"--compact-plan: for w8a8 .* got w4a8"):
        config_from_text(toml, {"model": "digits"}, "a.toml")


def test_a_backend_that_is_found_to_be_another_refuses_before_any_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = BackendChoice("ort-cpu", "TensorRT-RTX is not installed.")
    monkeypatch.setattr(run, "choose_backend", lambda *_: other)
    flags = {"model": "digits", "scheme": "w8a8", "compact_plan": True, "out": str(tmp_path / "o")}
    config = config_from_text("", flags, "a.toml")
    with pytest.raises(ConfigError, match="for TensorRT-RTX alone, got target ort-cpu"):
        run.build(config)
    assert not (tmp_path / "o").exists()
