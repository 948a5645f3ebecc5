"""The configuration: flags win over TOML, nothing unknown passes, and it survives a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fdda_deploy.config import (
    BuildConfig,
    ModelConfig,
    SynthesisConfig,
    config_from,
    config_from_text,
    to_dict,
    to_toml,
)
from fdda_deploy.config.reading import MAX_TOML_BYTES
from fdda_deploy.errors import ConfigError

DIGITS = {"model": "digits"}


def test_no_file_and_only_a_model_give_the_documented_defaults() -> None:
    config = config_from(None, DIGITS)
    assert config == BuildConfig(ModelConfig("digits"))
    assert config.quantize.scheme.name == "w4a8"
    assert config.out_folder == Path("out/digits-w4a8")


def test_flags_win_over_the_file_and_none_means_not_given(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[model]\nname = 'resnet18'\n[run]\nseed = 7\nbatch_size = 8\n")
    config = config_from(file, {"batch_size": 16, "seed": None, "model": None})
    assert (config.model.name, config.run.seed, config.run.batch_size) == ("resnet18", 7, 16)


@pytest.mark.parametrize(
    ("toml", "flags", "want"),
    [
        ("", {"bits": 4}, "w4a8"),
        ("", {"bits": 8}, "w8a8"),
        ("", {"bits": 2, "act_bits": 4}, "w2a4"),
        ("", {"bits": 4, "scheme": "w4a4"}, "w4a4"),
        ("", {"scheme": "w4a16"}, "w4a16"),
        ("", {"scheme": "w4a8", "weight_bits": 4}, "w4a8"),
        ("", {"act_bits": 5}, "w4a5"),
        ("bits = 3", {}, "w3a8"),
        ("scheme = 'w5a5'", {}, "w5a5"),
        ("weight_bits = 6", {}, "w6a8"),
        ("scheme = 'w5a5'", {"act_bits": 8}, "w5a8"),
        ("weight_bits = 4\nact_bits = 4", {"bits": 8}, "w8a8"),
        ("weight_bits = 4\nact_bits = 4", {"scheme": "w8a8"}, "w8a8"),
    ],
)
def test_widths_are_resolved_and_flags_replace_those_of_the_file(
    toml: str, flags: dict[str, object], want: str
) -> None:
    config = config_from_text(f"[quantize]\n{toml}\n", DIGITS | flags)
    assert config.quantize.scheme.name == want


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"bits": 4, "scheme": "w8a8"},
            "--bits (4) and --scheme (8) name different weight bits: give one of them.",
        ),
        (
            {"bits": 4, "weight_bits": 5},
            "--bits (4) and --weight-bits (5) name different weight bits: give one of them.",
        ),
        (
            {"scheme": "w4a8", "act_bits": 4},
            "--scheme (8) and --act-bits (4) name different act bits: give one of them.",
        ),
        ({"bits": 9}, "--bits 9: want 2 to 8."),
        ({"bits": "four"}, "--bits: got 'four', wanted an integer from 2 to 8."),
        (
            {"scheme": "int4"},
            "--scheme int4: want wNaM, for instance w8a8, w4a8, w4a16, w8a16; fp8 or fp16.",
        ),
        ({"scheme": 4}, "--scheme: got 4, wanted a string such as 'w4a8'."),
        ({"act_bits": 12}, "--act-bits 12: activations take 2 to 8 bits, or 16."),
    ],
)
def test_widths_that_contradict_or_do_not_exist_are_refused(
    flags: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from(None, DIGITS | flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "[quantise]\n",
            (
                "a.toml: unknown table [quantise]. Did you mean 'quantize'? Known: [model], "
                "[data], [synthesis], [quantize], [engine], [run]."
            ),
        ),
        ("run = 3\n", "a.toml: run is a value; want a table headed [run]."),
        (
            "[run]\nbatchsize = 3\n",
            (
                "a.toml: [run] batchsize: unknown key. Did you mean 'batch_size'? Known: device, "
                "seed, out, batch_size, no_cache, threads."
            ),
        ),
        (
            "[run]\nobserver = 'mse'\n",
            "a.toml: [run] observer: unknown key. It belongs under [quantize].",
        ),
        ("[run]\nbits = 4\n", "a.toml: [run] bits: unknown key. It belongs under [quantize]."),
        ("[run]\nseed = '1'\n", "a.toml: [run] seed: got the string '1', wanted an integer."),
        ("[run]\nseed = true\n", "a.toml: [run] seed: got True, wanted an integer."),
        ("[run]\nno_cache = 1\n", "a.toml: [run] no_cache: got 1, wanted true or false."),
        ("[run]\nseed = -1\n", "a.toml: [run] seed: got -1, wanted 0 or more."),
        (
            "[run]\ndevice = 'gpu'\n",
            "a.toml: [run] device: got the string 'gpu', wanted auto, cpu, cuda or cuda:N.",
        ),
        (
            "[quantize]\nobserver = 'mesa'\n",
            (
                "a.toml: [quantize] observer: unknown 'mesa'. Did you mean 'mse'? "
                "Known: mse, lp, minmax, percentile, entropy."
            ),
        ),
        (
            "[quantize]\nweight_bits = [4]\n",
            "a.toml: [quantize] weight_bits: got the list [4], wanted an integer.",
        ),
        (
            "[quantize]\nbits = 4\nscheme = 'w8a8'\n",
            (
                "a.toml: [quantize] bits (4) and a.toml: [quantize] scheme (8) name different "
                "weight bits: give one of them."
            ),
        ),
        (
            "[model]\nstd = [0.2, 'x']\n",
            "a.toml: [model] std: got the list [0.2, 'x'], wanted a list of finite numbers.",
        ),
        (
            "[model]\ninput_size = [1, 2, 3]\n",
            (
                "a.toml: [model] input_size: got the list [1, 2, 3], wanted a size: 224, or "
                "224x320 as height x width ([224, 320] in TOML)."
            ),
        ),
        ("[model]\nresize = 1e3\n", "a.toml: [model] resize: got 1000.0, wanted an integer."),
        (
            "[model]\nmean = [nan]\n",
            "a.toml: [model] mean: got the list [nan], wanted a list of finite numbers.",
        ),
        (
            '[data]\nclasses = "a\\u0000b"\n',
            r"a.toml: [data] classes: got the string 'a\x00b', wanted a string.",
        ),
        (
            "[synthesis.overrides]\na.b = 1\n",
            (
                "a.toml: [synthesis] overrides: got the table {'a': {'b': 1}}, wanted a flat table "
                "of numbers, strings, booleans and lists of them."
            ),
        ),
        (
            "[synthesis]\noverrides = 3\n",
            (
                "a.toml: [synthesis] overrides: got 3, wanted a flat table of "
                "numbers, strings, booleans and lists of them."
            ),
        ),
        ("[run]\nseed = 2026-01-01\n", "wanted an integer."),
        ('[run]\n"a\\nb" = 1', r"a.toml: [run] 'a\nb': unknown key."),
        ("[run]\nout_of_%s = 1" % ("x" * 999), "a.toml: [run] 'out_of_xxxxx"),
        ("[quantize]\nobserver = '%s'" % ("x" * 999), "[quantize] observer: unknown 'xxxxx"),
        ("[run\n", "a.toml: not valid TOML: "),
        ("[run]\nseed = " + "1" * 5000, "a.toml: not valid TOML: "),
        ("[run]\nseed = " + "[" * 5000, "a.toml: not valid TOML: "),
    ],
)
def test_the_file_refuses_what_it_does_not_know_in_one_line(toml: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_text(toml, DIGITS, "a.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"recipe": "fda"}, "--recipe: unknown 'fda'. Did you mean 'fdda'?"),
        ({"target": "rtxx"}, "--target: unknown 'rtxx'. Did you mean 'rtx'?"),
        ({"backend": "tensor-rt"}, "--backend: unknown 'tensor-rt'. Did you mean 'tensorrt'?"),
        ({"batch_size": 0}, "--batch-size: got 0, wanted 1 or more."),
        ({"input_size": "9000"}, "--input-size: got 9000, wanted 8192 or less."),
        ({"input_size": "224x"}, "--input-size: got the string '224x', wanted a size: 224, or"),
        ({"sm": "86;89"}, "--sm: got the string '86;89', wanted a list of integers."),
        ({"std": "0,1,1"}, "--std: got 0.0, wanted 1e-06 or more."),
        ({"mean": "0,0", "std": "1"}, "[model] mean has 2 values and std 1"),
        ({"mean": ()}, "[model] mean: got an empty list, wanted one number a channel."),
        ({"out": ""}, "--out: got the string '', wanted a folder."),
        ({"model": "  "}, "MODEL: got the string '  ', wanted the name of a model."),
        ({"weights": "a\udcff.pth"}, r"--weights: 'a\udcff.pth' is not UTF-8. Rename the file"),
        ({"batchsize": 3}, "--batchsize: unknown option. Did you mean 'batch_size'?"),
    ],
)
def test_flags_are_refused_by_the_name_the_user_typed(
    flags: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from(None, DIGITS | flags)
    assert str(caught.value).startswith(message)


def test_a_build_without_a_model_says_where_to_name_one() -> None:
    with pytest.raises(ConfigError, match="no model named: give MODEL on the command line"):
        config_from(None, {})


def test_text_of_flags_becomes_numbers() -> None:
    flags = {"input_size": "224x320", "mean": "0.5,0.25,1", "std": "1,1,1", "sm": "86,89"}
    config = config_from(None, DIGITS | flags)
    assert config.model.input_size == (224, 320)
    assert config.model.mean == (0.5, 0.25, 1.0)
    assert config.engine.sm == (86, 89)
    assert config_from_text("[model]\ninput_size = 32\n", DIGITS).model.input_size == (32, 32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory. Want a TOML file."),
        (b"\xff", "not UTF-8 text at byte 0."),
        (b"#" * (MAX_TOML_BYTES + 1), "larger than 1 MiB; that is no configuration."),
    ],
    ids=["missing", "binary", "huge"],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "a.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config_from(file, DIGITS)
    assert str(caught.value) == f"--config {file}: {message}"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("nets/mine.py:small", "mine.py-small-w4a8"),
        ("timm:resnet18.a1_in1k", "timm-resnet18.a1_in1k-w4a8"),
        ("../..", "model-w4a8"),
        ("x" * 500, "x" * 80 + "-w4a8"),
    ],
)
def test_the_default_folder_is_one_plain_name_under_out(name: str, folder: str) -> None:
    assert BuildConfig(ModelConfig(name)).out_folder == Path("out") / folder


def test_the_file_round_trip_works_through_the_disk(tmp_path: Path) -> None:
    config = config_from(None, DIGITS | {"scheme": "w4a4", "calib_data": 'a "b"\r\n\\c\x7f\u2028'})
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert config_from(tmp_path / "config.toml", {}) == config


def test_the_dict_is_plain_json_with_every_setting() -> None:
    config = BuildConfig(
        ModelConfig("a", mean=(0.5,)), synthesis=SynthesisConfig(overrides={"x": (1,)})
    )
    plain = to_dict(config)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["quantize"]["first_last_bits"] == 8  # type: ignore[index] # nested dicts of JSON
