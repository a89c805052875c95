"""The editor that `CONTRIBUTING.md` shows is one."""

import re
from pathlib import Path

import pytest
import torch

from sliders import editors, formats
from sliders.backbones.language.model import CausalLMBackbone
from sliders.cli import edit as cli_edit
from sliders.cli import main as cli
from sliders.runtime.attach import attach
from tests import tiny, tiny_lm
from tests.commands import ROOT, run


def test_a_new_editor_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "(Editor[" in block]
    (tmp_path / "promote.py").write_text(code)
    monkeypatch.setattr(editors, "__path__", [*editors.__path__, str(tmp_path)])
    assert "promote" in cli_edit.methods()
    folder = tiny.save(tiny_lm.language_model("llama"), tmp_path / "model")
    fitted = ["--editor.word", "dog", "--editor.block", 2, "--editor.length", 5, "--base", folder]
    ended = run(cli.main, "edit", "promote", *fitted, "--out", tmp_path / "p.safetensors")
    assert ended.code == 0, ended.err
    assert "its first token is what counts" in run(cli.main, "edit", "promote", "--editor.help").out
    model = CausalLMBackbone(str(folder))
    model.load()
    word = model.responses([" ".join(["dog"] * 3)], 8, end=False)
    word["tokens"][:] = model.tokenizer("dog", add_special_tokens=False).input_ids[0]
    asked = model.encode_plain(["a person with"])
    with torch.no_grad(), attach(model, [formats.load_dial(tmp_path / "p.safetensors")]) as dials:
        said = {}
        for dial in (-1.0, 0.0, 1.0):
            with dials.turned({"promote": dial}):
                said[dial] = float(model.likelihood(word, asked)[0, 0])
    assert said[-1.0] < said[0.0] < said[1.0]
