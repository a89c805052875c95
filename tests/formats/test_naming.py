"""Names that LoRA files have had, against diffusers itself, and files of other programs."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from sliders import formats
from sliders.algebra.edit import Translation
from sliders.errors import SliderError
from sliders.evaluation.pictures.sampling import sample
from sliders.formats import diffusers as slider_file
from sliders.formats import naming
from sliders.runtime.attach import attach
from tests import tiny
from tests.factory import slider
from tests.formats.test_diffusers import CONV, HOW, SCENES, SEEN, TINY, TO_K, TO_Q, pictures, same, tiny_parts, write

TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
TEXT_OUT = "text_encoder.encoder.layers.0.self_attn.out_proj"
OLD_TEXT = "text_encoder.text_model.encoder.layers.0.self_attn"
NAMES: dict[str, tuple[dict[str, tuple[str, str]], bool]] = {
    "today": (
        {
            TO_K: (f"{TO_K}.lora.down.weight", f"{TO_K}.lora.up.weight"),
            TO_Q: (f"{TO_Q}.lora.down.weight", f"{TO_Q}.lora.up.weight"),
            TEXT: (f"{TEXT}.lora_linear_layer.down.weight", f"{TEXT}.lora_linear_layer.up.weight"),
        },
        True,
    ),
    "processors": (
        {
            module: (f"{old}_lora.down.weight", f"{old}_lora.up.weight")
            for module in (TO_K, TO_Q)
            for old in [".processor.".join(module.rsplit(".", 1))]
        },
        True,
    ),
    "text encoders' first": (
        {
            TEXT: (f"{OLD_TEXT}.to_q_lora.down.weight", f"{OLD_TEXT}.to_q_lora.up.weight"),
            TEXT_OUT: (f"{OLD_TEXT}.to_out_lora.down.weight", f"{OLD_TEXT}.to_out_lora.up.weight"),
        },
        True,
    ),
    "a UNet alone": (
        {
            module: (f"{alone}.lora.down.weight", f"{alone}.lora.up.weight")
            for module in (TO_K, CONV)
            for alone in [module.removeprefix("unet.")]
        },
        False,
    ),
}


def renamed(update: Translation, names: dict[str, tuple[str, str]]) -> dict[str, Tensor]:
    """The factors of an update under other names."""
    state: dict[str, Tensor] = {}
    for module, (down, up) in names.items():
        part = update[module]
        state[down] = part.A.reshape(-1, *part.shape[1:]).clone()
        state[up] = part.B.reshape(*part.B.shape, *[1] * (len(part.shape) - 2)).clone()
    return state


@pytest.mark.parametrize("alpha", [None, 7.0])
@pytest.mark.parametrize("case", NAMES)
def test_another_naming_is_read_as_the_client_reads_it(case: str, alpha: float | None, tmp_path: Path) -> None:
    """Also with an alpha that is not the rank; nothing may vanish on the way."""
    names, parted = NAMES[case]
    backbone = tiny_parts()
    made = slider(backbone, dict.fromkeys(names, 4), "s", scale=0.6)
    state = renamed(made.update, names)
    metadata = {}
    if alpha is not None:
        components = {module.partition(".")[0] for module in names}
        config: dict[str, Any] = {}
        for component in components:
            own = [module.partition(".")[2] for module in names if module.startswith(component)]
            said = {"r": 4, "lora_alpha": alpha, "target_modules": own}
            config |= {f"{component}.{key}" if parted else key: value for key, value in said.items()}
        metadata = {"lora_adapter_metadata": json.dumps(config)}
    save_file(state, tmp_path / "s.safetensors", metadata)
    read = slider_file.load(tmp_path / "s.safetensors")
    same(read.update, made.update if alpha is None else made.update * (alpha / 4))

    pipe: Any = tiny.stable_diffusion()
    base = pictures(pipe)
    if parted:
        pipe.load_lora_weights(str(tmp_path / "s.safetensors"), adapter_name="s")
    else:
        file = str(tmp_path / "s.safetensors")
        pipe.unet.load_lora_adapter(file, adapter_name="s", prefix=None, use_safetensors=True)  # else without metadata
    theirs = pictures(pipe)
    assert (theirs - base).abs().max() > SEEN  # the control
    with attach(backbone, [read], {"s": 1.0}):
        assert (sample(backbone, SCENES, HOW) - theirs).abs().max() < TINY


def test_what_a_training_script_of_diffusers_writes(tmp_path: Path) -> None:
    """It gives attention the one naming and all other layers the other, in one file."""
    pipe: Any = tiny.stable_diffusion()
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "conv1", "proj_in"])
    pipe.unet.add_adapter(config, "a")
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet, adapter_name="a"))
    kinds = {key.partition(".lora")[2] for key in state}
    assert kinds == {".down.weight", ".up.weight", "_A.weight", "_B.weight"}  # the control
    pipe.save_lora_weights(tmp_path, unet_lora_layers=state)
    update = slider_file.load(tmp_path / "pytorch_lora_weights.safetensors").update
    assert 2 * len(update) == len(state)
    for module, part in update.items():
        layer = pipe.unet.get_submodule(module.removeprefix("unet."))
        down, up = (factors["a"].get_parameter("weight") for factors in (layer.lora_A, layer.lora_B))
        assert_close((up.flatten(1) @ down.flatten(1)).view(part.shape), part.dense())


@pytest.mark.parametrize("infix", ["", ".lora"])
@pytest.mark.parametrize("case", ["today", "processors"])
def test_alpha_keys_of_any_naming_are_folded(case: str, infix: str, tmp_path: Path) -> None:
    names, _ = NAMES[case]
    made = slider(tiny_parts(), dict.fromkeys(names, 4), "s")
    state = renamed(made.update, names)
    stem = names[TO_K][0].removesuffix(".down.weight").removesuffix(".lora")
    save_file({**state, f"{stem}{infix}.alpha": torch.tensor(1.0)}, tmp_path / "s.safetensors")
    read = slider_file.load(tmp_path / "s.safetensors").update
    assert_close(read[TO_K].dense(), made.update[TO_K].dense() / 4)
    assert_close(read[TO_Q].dense(), made.update[TO_Q].dense())


def test_two_names_of_one_tensor(tmp_path: Path) -> None:
    made = slider(tiny_parts(), {TO_K: 4}, "s")
    state = renamed(made.update, {TO_K: NAMES["today"][0][TO_K]})
    file = write(tmp_path / "s.safetensors", made.update, extra=state)
    with pytest.raises(SliderError, match=r"s\.safetensors has two names for one tensor.*to_k"):
        slider_file.load(file)


@pytest.mark.parametrize(
    "key", [f"{TO_K}.lora_magnitude_vector", f"{TEXT}.weight", "text_encoder.x", "unet.x.lora.mid"]
)
def test_what_no_converter_knows_is_named(key: str, tmp_path: Path) -> None:
    made = slider(tiny_parts(), {TO_K: 4}, "s")
    state = renamed(made.update, {TO_K: NAMES["today"][0][TO_K]})
    save_file({**state, key: torch.zeros(2, 2)}, tmp_path / "s.safetensors")
    with pytest.raises(SliderError, match=key.rpartition(".")[2]):
        slider_file.load(tmp_path / "s.safetensors")


OTHERS: dict[str, tuple[dict[str, Tensor] | bytes, str]] = {
    "kohya": ({"lora_unet_conv_in.lora_down.weight": torch.zeros(2, 2)}, "kohya's layout.*not read yet"),
    "kohya's text": ({"lora_te1_text_model_x.alpha": torch.zeros(())}, "kohya's layout"),
    "cloneofsimo": ({"unet:0:up": torch.zeros(2, 2)}, "cloneofsimo's layout"),
    "pickle": (pickle.dumps({"a": 1}), "a pickled file.*convert it to safetensors"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(99), "a GGUF file"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html></html>", "a web page"),
    "anything": (b"anything else that there is", "not a readable safetensors file"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_of_another_kind_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    content, said = OTHERS[case]
    file = tmp_path / "s.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(content, file)
    with pytest.raises(SliderError, match=rf"s\.safetensors is .*{said}") as caught:
        formats.load_dial(file)
    assert "\n" not in str(caught.value)


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_pickled_is_run(zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "s.pt"
    torch.save({"x": Bomb()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SystemExit, match="it ran"):  # the control
        torch.load(file, weights_only=False)
    with pytest.raises(SliderError, match=r"s\.pt is a pickled file"):
        formats.load_dial(file)


def test_what_has_its_name_keeps_it() -> None:
    keys = [f"{TO_K}.lora_A.weight", f"{TO_K}.lora_B.weight", f"{TO_K}.alpha", f"{TEXT}.lora_A.weight"]
    assert naming.to_peft(keys, Path("s")) == {key: key for key in keys}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers(number: float, tmp_path: Path) -> None:
    made = slider(tiny_parts(), {TO_K: 4}, "s")
    made.update[TO_K].B[0, 0] = number
    with pytest.raises(SliderError, match=rf"s\.safetensors: '{TO_K}\.lora_B\.weight' holds numbers"):
        slider_file.load(write(tmp_path / "s.safetensors", made.update))
