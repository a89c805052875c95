"""Every row of a batch with its own dial against the same row alone, over the causal architectures of transformers."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.edit import Translation
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import Layout, TensorBatch, repeat, tile
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from sliders.runtime.layers import weight_shape
from tests.architectures import architecture
from tests.backbones.contract import randomize, row
from tests.factory import lowrank

PROMPTS = ["a person is happy", "dog", "tell me about the dog and the day"]  # of different lengths
SAID = ["a happy dog", "the day was sad and long", "it was"]
DIALS = torch.tensor([1.0, -2.0, 0.5])
TABLE = Path(__file__).parents[2] / "docs" / "language_models.md"


@cache
def table() -> dict[str, list[str]]:
    """The rows of the table in the docs, by model type."""
    cells = [[c.strip() for c in line.strip("|\n").split("|")] for line in TABLE.read_text().splitlines()]
    return {c[0].strip("`"): c[1:] for c in cells if re.fullmatch(r"`[\w-]+`", c[0])}


WORK = [name for name, cells in table().items() if cells[0] == "works"]
REFUSED = [name for name, cells in table().items() if cells[0] != "works"]


def made(name: str) -> CausalLMBackbone:
    backbone, model = CausalLMBackbone(name, support=5, prompt_tokens=24), architecture(name)
    backbone.use(model.lm, model.tokenizer)
    return backbone


def everywhere(backbone: CausalLMBackbone) -> Slider:
    """A slider on every layer that can have one."""
    names = backbone.select_targets(["full"])
    return Slider(
        "s", Translation({n: lowrank(weight_shape(backbone, n), 2, k, torch.float32) for k, n in enumerate(names)})
    )


Turn = Callable[[Tensor], AbstractContextManager[None]]


def compared(
    run: Callable[[TensorBatch, TensorBatch], Tensor], turn: Turn, state: TensorBatch, asked: TensorBatch
) -> tuple[float, float]:
    """Of each row with its own dial: the least effect of a row's dial, and the greatest error against it alone."""
    with torch.no_grad():
        base = run(state, asked)
        with turn(DIALS):
            together = run(state, asked)
        effect, error = [], []
        for k in range(3):
            with turn(DIALS[k : k + 1]):
                alone = run(row(state, k), row(asked, k))
            said = state["mask"][k]
            effect.append(float((alone[0] - base[k])[said].abs().max()))
            error.append(float((alone[0] - together[k])[said].abs().max()))
    return min(effect), max(error)


def whole(backbone: CausalLMBackbone) -> Callable[[TensorBatch, TensorBatch], Tensor]:
    """Log-probabilities of the whole vocabulary."""
    return lambda state, asked: backbone.log_probabilities({n: state[n] for n in ("tokens", "mask")}, asked)


@contextmanager
def attached(backbone: CausalLMBackbone) -> Iterator[Turn]:
    with attach(backbone, [everywhere(backbone)]) as dials:
        yield lambda positions: dials.turned({"s": 0.2 * positions})


@contextmanager
def in_training(backbone: CausalLMBackbone) -> Iterator[Turn]:
    with Adapter(backbone, backbone.select_targets(["full"]), 2, 2.0) as adapter:
        randomize(adapter)
        yield adapter.dial


@pytest.mark.parametrize("name", WORK)
def test_every_row_is_what_it_is_alone(name: str) -> None:
    """In prediction and in generation, with a finished slider and one in training; and what the table says is so."""
    backbone = made(name)
    assert table()[name][1:] == described(backbone)
    state, asked = backbone.responses(SAID, 6), backbone.encode(PROMPTS)
    ids = torch.cat([asked["prefix"][2][asked["prefix_mask"][2]], state["tokens"][2][state["mask"][2]]])
    with torch.no_grad():
        said = backbone.network.able.run(backbone.lm, {"input_ids": ids[None]}, use_cache=False).logits[0]
        own = said[-int(state["mask"][2].sum()) - 1 : -1].log_softmax(-1)
        assert_close(whole(backbone)(state, asked)[2][state["mask"][2]], own, rtol=1e-4, atol=1e-4)
    for how in (attached, in_training):
        with how(backbone) as turn:
            effect, error = compared(whole(backbone), turn, state, asked)
            assert effect > 3e-3, how
            assert error < 1e-4 * max(effect, 0.3), how
            with turn(DIALS):
                together = backbone.respond(asked, [1, 2, 3], 5)
            for k in range(3):
                with turn(DIALS[k : k + 1]):
                    alone = backbone.respond(row(asked, k), [k + 1], 5)
                assert torch.equal(alone["tokens"][0], together["tokens"][k]), how
        base = backbone.respond(asked, [1, 2, 3], 5)
    again = repeat(row(asked, 1), 2)
    joined = {n: torch.cat([asked[n], again[n]]) for n in asked}
    assert torch.equal(backbone.respond(joined, [1, 2, 3, 4, 5], 5)["tokens"][:3], base["tokens"])


def described(backbone: CausalLMBackbone) -> list[str]:
    """The further cells of a row of the table."""
    able = backbone.network.able
    without = sorted({re.sub(r"^lm\..*?\.\d+\.", "", n) for n in backbone.unfit() if "conv" not in n})
    return [
        "together" if able.pads else "of one length at a time",
        "goes on from a cache" if able.cache else "reads all anew",
        ", ".join(backbone.target_groups()),
        ", ".join(f"`{n}`" for n in without),
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_known_before_the_work(name: str) -> None:
    with pytest.raises(SliderError, match=re.escape(name)) as caught:
        made(name)
    assert "\n" not in str(caught.value)
    assert table()[name][0] in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "mamba", "bart"])
def test_on_a_base_of_low_precision_too(name: str, dtype: torch.dtype) -> None:
    backbone, model = CausalLMBackbone(name, support=5, prompt_tokens=24), architecture(name)
    backbone.use(model.lm.to(dtype), model.tokenizer)
    state, asked = backbone.responses(SAID, 6), backbone.encode(PROMPTS)
    with attached(backbone) as turn:
        effect, error = compared(whole(backbone), lambda positions: turn(3 * positions), state, asked)
    assert error < 4 * torch.finfo(dtype).eps * effect
    assert effect > 0.05


def test_there_are_enough_of_every_kind() -> None:
    assert len(WORK) >= 25
    assert {"mamba", "mamba2", "jamba", "rwkv", "mixtral", "qwen2_moe", "deepseek_v3", "opt", "bloom", "gpt2"} <= {
        *WORK
    }


def by_divisibility(values: Tensor, shape: torch.Size, layout: Layout | None, layer: str, least: int = 2) -> Tensor:
    """How dials were spread before rows were declared."""
    return tile(values, shape[0])


@pytest.mark.parametrize("how", [attached, in_training])
def test_opt_by_divisibility_is_wrong_by_as_much_as_the_dial_does(
    how: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault that began it, and control that the sweep sees it: OPT's MLP sees ``[rows * tokens, d]``."""
    backbone = made("opt")
    state, asked = backbone.responses(SAID, 6), backbone.encode(PROMPTS)
    with how(backbone) as turn:
        effect, error = compared(whole(backbone), turn, state, asked)
        assert error < 1e-4 * effect
        for module in ("sliders.runtime.adapter", "sliders.runtime.layer_forward"):
            monkeypatch.setattr(sys.modules[module], "of_rows", by_divisibility)
        effect, error = compared(whole(backbone), turn, state, asked)
    assert error > 0.5 * effect
