"""The files that a host of pages expects."""

import runpy
from pathlib import Path

import pytest
import yaml

from sliders.cli import demo as cli_demo
from tests.commands import ROOT


def test_the_entry_opens_the_page_where_the_host_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(cli_demo, "demo", lambda **given: asked.update(given))
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7861")
    runpy.run_path(str(ROOT / "demo" / "app.py"), run_name="__main__")
    assert asked == {"host": "0.0.0.0", "port": 7861}


def test_the_card_names_files_that_are_there() -> None:
    folder = ROOT / "demo"
    card = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (folder / card["app_file"]).is_file()
    assert card["sdk"] == "gradio"
    assert (folder / "requirements.txt").read_text().split() == ["concept-sliders[demo]"]
    assert {file.name for file in folder.glob("*") if file.is_file()} == {"README.md", "app.py", "requirements.txt"}
    assert not Path(folder / "__init__.py").exists()
