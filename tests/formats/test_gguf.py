"""GGUF files of sliders, read back by `gguf` and by transformers' own inverse of llama.cpp's order."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.errors import SliderError
from sliders.formats import gguf

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDTHS = {"self_attn.q_proj": 32, "self_attn.k_proj": 16, "self_attn.v_proj": 16, "mlp.down_proj": 24}


def slider(rank: int = 3) -> Slider:
    """Updates of a grouped-query layer; ranks differ."""
    torch.manual_seed(0)
    updates = {
        f"lm.model.layers.1.{name}": LowRank(torch.randn(width, rank + k), torch.randn(rank + k, 32), (width, 32))
        for k, (name, width) in enumerate(WIDTHS.items())
    }
    return Slider("mood", Translation(updates), {"sliders.eta": "1.5"})


def test_llama_cpp_finds_the_update_in_its_own_names_and_order(tmp_path: Path) -> None:
    made = slider()
    gguf.save(made, tmp_path / "mood.gguf", LLAMA)
    reader = GGUFReader(tmp_path / "mood.gguf")
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    named = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    named["ffn_down"] = "mlp.down_proj"
    assert tensors.keys() == {f"blk.1.{name}.weight.lora_{part}" for name in named for part in "ab"}
    back = LlamaTensorProcessor(config=dict(LLAMA))
    for theirs, ours in named.items():
        name = f"blk.1.{theirs}.weight"
        weight = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        wanted = made.update[f"lm.model.layers.1.{ours}"].dense()
        restored = torch.from_numpy(back.process(weight.numpy(), name).weights)
        torch.testing.assert_close(restored, wanted)
        assert torch.equal(restored, weight) == (theirs not in ("attn_q", "attn_k")), "only queries and keys move"
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 0, "taken as it is: mixed ranks have no one alpha"
    assert fields["sliders.eta"] == "1.5"


def test_other_architectures_keep_their_order(tmp_path: Path) -> None:
    made = slider()
    gguf.save(made, tmp_path / "mood.gguf", {**LLAMA, "model_type": "qwen2"})
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "mood.gguf").tensors}
    wanted = made.update["lm.model.layers.1.self_attn.q_proj"]
    assert (tensors["blk.1.attn_q.weight.lora_b"] == wanted.B.numpy()).all()


def test_what_llama_cpp_does_not_have_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(SliderError, match=r"no GGUF for a model of type 'mamba'; there are llama"):
        gguf.save(slider(), tmp_path / "mood.gguf", {**LLAMA, "model_type": "mamba"})
    strange = Slider("odd", Translation({"lm.model.odd": LowRank(torch.ones(2, 1), torch.ones(1, 2), (2, 2))}))
    with pytest.raises(SliderError, match=r"changes 'lm\.model\.odd'"):
        gguf.save(strange, tmp_path / "mood.gguf", LLAMA)
    assert list(tmp_path.iterdir()) == []
