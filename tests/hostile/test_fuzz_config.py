"""Settings and class lists that somebody damaged: read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import SEEDS, damaged_bytes, fuzz, outcome

from fdda_deploy.config import config_from_text, to_toml
from fdda_deploy.config.reading import MAX_KEY_PARTS
from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.class_labels import read_classes

MODEL = {"model": "digits"}
SOUND = to_toml(config_from_text("[synthesis.overrides]\nlr = [0.1, 2]\nname = 'x'\n", MODEL))
CLASSES = "n01440764\nn01443537\ntench, fish\nÄpfel\nb\n".encode()


@fuzz(1500, SEEDS)
def test_damaged_settings_are_read_or_refused(seed: int) -> None:
    text = damaged_bytes(SOUND.encode(), seed).decode("utf-8", errors="replace")
    outcome(lambda: to_toml(config_from_text(text, MODEL)))


@fuzz(500, SEEDS)
def test_a_damaged_class_list_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(damaged_bytes(CLASSES, seed))
    outcome(lambda: read_classes(path))


PARTS = {
    "bare": ["a"] * 20_000,
    "spaced": ["a "] * 20_000,
    "quoted": ['"a"'] * 20_000,
    "quotes inside": ['"\\""'] * 20_000,
    "literal": ["'a'"] * 20_000,
    "of each kind": ['"."', "'.'", "a", "1"] * 5_000,
}


@pytest.mark.parametrize("where", ["{}=1", "[{}]\n", "[[{}]]\n", "[run]\nx={{{}=1}}"])
@pytest.mark.parametrize("kind", PARTS)
def test_a_key_of_thousands_of_parts_is_refused_at_once(kind: str, where: str) -> None:
    text = where.format(".".join(PARTS[kind]))  # tomllib would take minutes
    with pytest.raises(ConfigError, match=f"has more than {MAX_KEY_PARTS} parts"):
        config_from_text(text, MODEL)


def test_dots_that_are_no_key_are_let_pass() -> None:
    text = "[run]\nout = 'runs/1.2.3.4.5.6/a. b. c'\n[model]\nmean = [0.1, 0.2, 0.3]\n"
    assert config_from_text(text, MODEL).run.out == "runs/1.2.3.4.5.6/a. b. c"


@pytest.mark.parametrize(
    "line", ["[run]\nseed", "[run]\nbatch_size", "[model]\ninput_size", "[synthesis.overrides]\nx"]
)
@pytest.mark.parametrize("bits", [129, 100_000])
def test_an_integer_that_no_setting_has_is_refused(line: str, bits: int) -> None:
    with pytest.raises(ConfigError, match="wanted"):
        config_from_text(f"{line} = {hex(2**bits)}", MODEL)


@pytest.mark.parametrize("key", ["bits", "scheme"])
def test_a_width_of_thousands_of_digits_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="got a number of thousands of digits, wanted"):
        config_from_text(f"[quantize]\n{key} = 0x{'f' * 9000}", MODEL)
