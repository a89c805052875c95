"""The Python of the README runs as it stands, on tiny models where it names what is trained or fetched."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sliders.algebra.edit import Translation
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.cli.main import read
from sliders.errors import SliderError
from sliders.formats import diffusers, peft
from sliders.resources.shipped import DEFAULT_CONFIG, config_file
from tests import tiny, tiny_lm
from tests.commands import ROOT
from tests.factory import lowrank

README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line.replace("\\\n", " "), comments=True)[1:]
    for line in re.findall(r"^    (sliders (?:.*\\\n)*.*)$|`(sliders [a-z-]+ [^`]*)`", README, re.MULTILINE)
    for line in line
    if line
]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_its_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but of Lightning's command line; what they do is tested with the commands."""
    monkeypatch.chdir(ROOT)
    if words[0] == "train":
        config_file(words[words.index("--config") + 1] if "--config" in words else DEFAULT_CONFIG)
        return
    run, given = read(words)
    assert run.__name__.startswith(words[0].replace("-", "_")) or words[0] == "edit"
    assert given


def test_a_command_of_before_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    with pytest.raises(SliderError, match="--text is gone"):
        read(["generate", "a day", "--text", "true"])
    with pytest.raises(SystemExit):
        read(["generate", "a day", "--dialect", "1"])


def block(word: str) -> str:
    """The one that has a word."""
    (found,) = [code for code in BLOCKS if word in code]
    return found


def slider(name: str, module: str, shape: tuple[int, int]) -> Slider:
    """That does something to one layer."""
    return Slider(name, Translation({module: lowrank(shape, 1).to(torch.float32)}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a tiny model in place of the embedded one."""
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.stable_diffusion(), tmp_path / "data/avatars/model")
    return tmp_path


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The folder of a tiny language model, which the README has from a command."""
    return str(tiny.save(tiny_lm.language_model("llama", chat=tiny_lm.CHAT), tmp_path / "language"))


def test_there_is_no_other() -> None:
    assert len(BLOCKS) == 4


def test_a_pipeline_in_memory(here: Path) -> None:
    names: dict[str, Any] = {}
    exec(block("sliders.train(\n    pipe"), names)
    assert {file.name for file in here.iterdir()} == {"data", "smile.safetensors", "turned.png"}
    smile, pipe = names["smile"], names["pipe"]
    assert diffusers.load(here / "smile.safetensors").digest() == smile.digest()
    chance = torch.Generator().manual_seed(0)
    straight = pipe("a person", guidance_scale=4.0, num_inference_steps=25, generator=chance).images[0]
    assert straight.tobytes() != Image.open(here / "turned.png").tobytes(), "the dial was turned"


def test_a_language_model_in_memory(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"base": base}
    exec(block("sliders.train(\n    lm"), names)
    assert names["gloomy"].update.norm() > 0
    assert capsys.readouterr().out.strip()


def test_in_diffusers(here: Path) -> None:
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    diffusers.save(slider("smile", module, (16, 16)), here / "runs/smile/smile.safetensors")
    exec(block("load_lora_weights"), {})
    assert Image.open(here / "smile.png").size == (16, 16)


def test_in_peft(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = CausalLMBackbone(base)
    backbone.load()
    made = slider("sentiment", "lm.model.layers.0.mlp.up_proj", (24, 16))
    peft.save(made, tmp_path / "runs/sentiment/sentiment", base)
    names: dict[str, Any] = {"base": base}
    exec(block("PeftModel"), names)
    ids = torch.arange(5, 11)[None]
    dialled = names["model"](ids).logits
    for layer in names["model"].modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.0)
    assert torch.equal(names["model"](ids).logits, backbone.lm(ids).logits)
    assert not torch.equal(dialled, backbone.lm(ids).logits), "the block has turned the dial"
