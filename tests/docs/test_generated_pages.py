"""The generated pages of the manual say what the code says."""

from __future__ import annotations

import pytest
from generated_pages import DOCS, PAGES, cli_page, schemes_page

from fdda_deploy.quant.scheme import PRESETS


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_is_what_the_code_generates(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run python tests/docs/generated_pages.py"


def test_every_preset_has_its_row() -> None:
    page = schemes_page()
    for preset in PRESETS:
        assert f"| `{preset}` |" in page


def test_options_of_a_network_stand_once() -> None:
    assert cli_page().count("`--calib-data PATH`") == 1


def test_a_command_lists_what_it_alone_takes() -> None:
    section = cli_page().split("## `fdda-deploy verify`")[1].split("\n## ")[0]
    assert "`FOLDER`" in section
    assert "`--json`" in section
