"""What is read off rehearsals of a pipeline's call: its protocol, its size, its prompts."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sliders.backbones.pipelines import check_side
from sliders.backbones.reading import short
from sliders.backbones.rehearsed.arguments import Arguments
from sliders.backbones.rehearsed.call import FILLER, Ask, Caller, Rehearsal, replaced
from sliders.batch import TensorBatch
from sliders.errors import SliderError, one_line


@dataclass(frozen=True)
class Protocol:
    """What was read off the rehearsals of a pipeline.

    Args:
        arguments: of its denoisers.
        sign: of a prediction: what the call makes of what the denoiser says, before it steps.
        doubled: whether the denoiser says a variance beside the prediction, in as many channels more.
    """

    arguments: Arguments
    sign: float
    doubled: bool


class Rehearsals:
    """A pipeline that is rehearsed.

    Args:
        pipeline: of diffusers.
        denoisers: its experts.
        options: arguments that every call is given.
        model: what messages call it.
        words: of the longest prompt.
        side: height and width of its pictures where nothing else is said; the call's own where None.
    """

    def __init__(
        self, pipeline: Any, denoisers: Sequence[nn.Module], options: Mapping[str, Any], model: str, words: int,
        side: tuple[int | None, int | None],
    ) -> None:  # fmt: skip
        self.pipeline, self.model, self.words, self.side = pipeline, model, words, side
        self.caller = Caller(pipeline, denoisers, options)
        self._examples: dict[tuple[int, int], Ask] = {}  # what is asked of two rows, by the size of pictures
        self._own: tuple[int, int] | None = None
        self._cut: dict[str, str] = {}  # what is not read of a prompt

    def rehearse(self, prompts: Sequence[str], size: tuple[int, int], seed: int = 0, **how: Any) -> Rehearsal:
        """Run the call without its denoiser; see `Caller.rehearse`.

        Args:
            prompts: one a row.
            size: height and width of the pictures.
            seed: of the first row; the others' follow.
            how: as `Caller.rehearse` has it.

        Raises:
            SliderError: the call cannot be run so.
        """
        height, width = size
        steps = how.pop("steps", 2)  # some schedules are of two at least
        seeds = [seed + k for k in range(len(prompts))]
        with self.said_in_a_line("rehearsed"):
            return self.caller.rehearse(prompts, seeds, steps, height=height, width=width, **how)

    @contextmanager
    def said_in_a_line(self, what: str) -> Iterator[None]:
        """What goes wrong in the pipeline's own code is said in a line."""
        try:
            yield
        except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
            whose = f"the call of {self.model}, a {type(self.pipeline).__name__},"
            raise SliderError(f"{whose} cannot be {what}: {one_line(error)}") from error

    @property
    def beside(self) -> list[str]:
        """What every prompt is encoded beside: a short prompt, so that families that mask what they pad do so, and the
        longest, so that all are padded alike."""
        return [FILLER, " ".join([FILLER] * self.words)]

    def protocol(self) -> Protocol:
        """What the call asks of the denoiser.

        Raises:
            SliderError: it asks or steps otherwise than a trajectory of states does.
        """
        size, (short_one, filler) = self.size(), self.beside
        two = self.rehearse([short_one, filler], size, steps=2)
        three = self.rehearse([short_one, short_one, filler], size)
        others = [self.rehearse([prompt, filler], size).asked[0] for prompt in ("", " ".join([FILLER] * 5))]
        if len(two.asked) != len(two.samples):
            raise SliderError(
                f"{self.model} asks its denoiser {len(two.asked)} times in {len(two.samples)} steps, though "
                "guidance is off; give call the argument that makes it one a step"
            )
        first, said = next(iter(two.asked[0].arguments.values())), two.said[0]
        first = torch.stack(first).reshape(two.samples[0].shape) if isinstance(first, list) else first
        sign = _sign(said, first)
        if sign is None:
            raise SliderError(
                f"what the call of {self.model} gives its scheduler is neither the denoiser's prediction nor its "
                "negative, so that predictions cannot be compared"
            )
        return Protocol(Arguments.of(two.asked, three.asked, others), sign, said.shape[1] != first.shape[1])

    def size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width of pictures; see `DiffusionBackbone.size`."""
        asked = (self.side[0] if height is None else height, self.side[1] if width is None else width)
        own = self._own_size() if None in asked else (0, 0)
        high, wide = (own[k] if side is None else side for k, side in enumerate(asked))
        for name, pixels in (("height", high), ("width", wide)):
            check_side(self.pipeline, name, pixels, self.model)
        return high, wide

    def _own_size(self) -> tuple[int, int]:
        """The size that the call has where none is given."""
        if self._own is None:
            seen: list[tuple[int, int]] = []
            prepare = getattr(type(self.pipeline), "prepare_latents", None)
            if prepare is None or not {"height", "width"} <= inspect.signature(prepare).parameters.keys():
                raise SliderError(f"{self.model} does not say how large its pictures are; give the backbone their size")

            def note(*args: Any, **kwargs: Any) -> Any:
                bound = inspect.signature(prepare).bind(self.pipeline, *args, **kwargs).arguments
                seen.append((int(bound["height"]), int(bound["width"])))
                return prepare(self.pipeline, *args, **kwargs)

            with replaced(self.pipeline, "prepare_latents", note):
                self.caller.rehearse([FILLER], [0], 2)
            self._own = seen[0]
        return self._own

    def example(self, size: tuple[int, int]) -> Ask:
        """What the denoiser is asked for two pictures of this size, of the prompts in `beside`."""
        if size not in self._examples:
            self._examples[size] = self.rehearse(self.beside, size).asked[0]
        return self._examples[size]

    def unread(self, prompts: Sequence[str]) -> dict[str, str]:
        """Which prompts are not read to their end, and what the call says that it leaves out."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._cut:
                left_out = [part for part in self.rehearse([prompt], self.size()).cut if part.strip()]
                said = f"is longer than a text encoder of {self.model} reads, which leaves out {left_out[:1]}"
                self._cut[prompt] = said if left_out else ""
        return {prompt: said for prompt in prompts if (said := self._cut[prompt])}

    def encode(self, prompts: Sequence[str], layout: Arguments) -> TensorBatch:
        """The conditioning of prompts.

        Each stands beside the shortest and the longest, so that a family which pads to the longest pads all prompts
        alike, and masks what it pads as it does in its call.

        Raises:
            SliderError: one is longer than the longest.
        """
        size = self.size()
        encoded = layout.conditioning(self.rehearse([*prompts, *self.beside], size).asked[0], len(prompts))
        padded = layout.conditioning(self.example(size), 2)
        if any(encoded[name].shape[1:] != padded[name].shape[1:] for name in padded):
            longest = short(max(prompts, key=len))
            raise SliderError(
                f"prompts of {self.model} are padded to {self.words} words, and {longest} is longer as it is read; "
                "shorten it, or give the backbone more words"
            )
        return encoded


def _sign(said: Tensor, state: Tensor) -> float | None:
    """Whether what a call steps with is the denoiser's answer or its negative, of a stand-in that says its state."""
    limit = 8 * max(torch.finfo(state.dtype).eps, torch.finfo(said.dtype).eps) * float(state.abs().max())
    state, said = state[:, : said.shape[1]].float(), said.float()
    for sign in (1.0, -1.0):
        if float((said - sign * state).abs().max()) <= limit:
            return sign
    return None
