"""Any pipeline of diffusers that makes pictures or videos from text: its own call says what it asks of its denoiser."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sliders.algebra.slider import Slider
from sliders.backbones import schedulers
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.guidance import Predictor
from sliders.backbones.origin import Origin
from sliders.backbones.pipelines import read_pipeline, usage, whole_pipeline
from sliders.backbones.placement import Placement
from sliders.backbones.precision import Precision
from sliders.backbones.reading import warn_unread
from sliders.backbones.rehearsed.call import FILLER, Answer, Ask, Rehearsal, replaced
from sliders.backbones.rehearsed.layers import PATTERNS, LayerUse, groups, watched
from sliders.backbones.rehearsed.rehearsals import Protocol, Rehearsals
from sliders.backbones.rehearsed.self_check import check_loop, check_rows, sensitive
from sliders.backbones.targets import TargetGroup
from sliders.batch import TensorBatch, join, rows_of, take
from sliders.errors import SliderError
from sliders.formats.pretrained import save_pipeline
from sliders.resources.paths import Source
from sliders.resources.shipped import CALLS
from sliders.runtime.attach import is_attached
from sliders.runtime.layers import editable_modules

DENOISERS = ("transformer", "transformer_2", "unet")
"""What pipelines call the parts that predict."""

_RECIPES = {
    "FluxPipeline": "flux1/dev",
    "Flux2KleinPipeline": "flux2/klein",
    "QwenImagePipeline": "qwen/age",
    "ZImagePipeline": "zimage/age",
    "SanaPipeline": "sana/age",
    "WanPipeline": "wan/age",
}
"""Configs of pipelines in memory; any other has Stable Diffusion 3.5's."""
_TOGETHER = 16  # prompts that are encoded in one call
_KEPT = 256  # of the prompts that were encoded last
_OURS = {"prompt", "height", "width", "num_inference_steps", "generator", "output_type", "return_dict", "latents"}


class PipelineBackbone(DiffusionBackbone):
    """A pipeline of diffusers with a transformer or a UNet, of whichever family.

    Nothing here knows a family.  The pipeline's own call is rehearsed with stand-ins for its denoiser and for its
    scheduler's step; from what the denoiser would have been asked come the conditioning and the state, from where the
    scheduler would have stepped the start and the schedule, and from what the call makes of finished latents the
    picture.  The first use compares the loop here with the call, on two steps of a stand-in, and refuses a pipeline of
    which they differ.

    A state holds ``latents`` ``[n, ...]``, which the scheduler steps on (packed where the family packs them), ``time``
    ``[n]``, the scheduler's, which falls, ``expert`` int64 ``[n]``, the denoiser that is asked, ``size`` int64
    ``[n, 2]`` in pixels, and whatever else of the denoiser's arguments changes from step to step, under its own name.
    Predictions are in the space that the scheduler steps in, a velocity as a rule.

    Two guidances are to be told apart.  What a concept is trained with, `guided`, is the formula of the papers,
    ``y(empty) + guidance (y(prompt) - y(empty))``.  `pictures` runs the pipeline's own call, whose ``guidance_scale``
    means what it means there: the same in most families, one less than the formula's in Z-Image, rescaled in
    Qwen-Image and Lumina, an input of the transformer in FLUX.1-dev, and nothing in models that were distilled to a few
    steps.

    Args:
        model: folder or hub name of a diffusers pipeline, or the name of one that comes with the package.
        height: of pictures in pixels, in training and where sampling does not say otherwise; the call's own if None.
        width: likewise.
        call: further arguments that every call of the pipeline gets, such as ``{num_frames: 17}`` or
            ``{max_sequence_length: 256}``.
        words: how many words the longest prompt may have: all prompts are padded to this many where the family pads
            to the longest.
        scheduler: class of diffusers to sample with instead of the pipeline's own.
        checkpointing: compute the denoiser's blocks again in the backward pass instead of keeping what they computed.
        compile: compile the denoiser's blocks with `torch.compile`.
        device: where it runs; see `UNetBackbone`.
        dtype: precision of the weights; ``auto`` is float32 on the CPU, and elsewhere that of the denoiser's file.
        revision: of a hub model: a branch, a tag or a commit.
        variant: of the files that are read, such as ``fp16``, where the model has several.
    """

    def __init__(
        self, model: Source | str, height: int | None = None, width: int | None = None,
        call: dict[str, Any] | None = None, words: int = 64, scheduler: str | None = None,
        checkpointing: bool = False, compile: bool = False, device: str = "auto", dtype: Precision = "auto",
        revision: str | None = None, variant: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.revision, self.variant = str(model), revision, variant
        self.placement = Placement(device, dtype)
        self.height, self.width, self.words = height, width, words
        self.given = _call(call)
        self.scheduler_name, self.checkpointing, self.compiled = scheduler, checkpointing, compile
        self.pipeline: Any = None
        self._protocol: Protocol | None = None
        self._layers: dict[str, str] | None = None
        self._of_one_row: dict[tuple[int, int], Ask] = {}  # what the denoiser is asked, by the size of pictures
        self._encoded: dict[tuple[str, tuple[int, int]], TensorBatch] = {}

    @property
    def base_model(self) -> str:
        return self.model

    @property
    def settings(self) -> dict[str, Any]:
        said = {"height": self.height, "width": self.width, "call": self.given, "words": self.words}
        usual = inspect.signature(type(self)).parameters
        return {name: value for name, value in said.items() if value and value != usual[name].default}

    @property
    def recipe(self) -> str:
        if self.model == "avatars-flow":
            return "flow/smile"
        return _RECIPES.get(type(self.pipeline).__name__, "sd35/age")

    # Loading

    def load(self) -> None:
        if self.pipeline is not None:
            return
        read = read_pipeline(self.model, self.placement, DENOISERS, self.revision, self.variant)
        self.use(read.pipeline)
        self.origin = read.origin

    def use(self, pipeline: Any) -> None:
        """Take a pipeline that is already in memory, where it is and in its precision; its modules are frozen.

        Args:
            pipeline: of diffusers.

        Raises:
            SliderError: it has no denoiser, or no such scheduler can be made for it.
        """
        experts = [name for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)]
        if not experts:
            raise SliderError(f"{self.model} is a {type(pipeline).__name__}, which has no {' or '.join(DENOISERS)}")
        if self.scheduler_name:
            kind = getattr(diffusers, self.scheduler_name, None)
            if kind is None or not hasattr(kind, "from_config"):
                raise SliderError(f"scheduler is {self.scheduler_name!r}, which diffusers has not")
            pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
        self.predicting_modules = tuple(experts)
        self.origin = Origin()
        self.requires_grad_(False).eval()
        self._experts = [getattr(self, name) for name in experts]
        self.takes_guidance = any(getattr(one.config, "guidance_embeds", False) for one in self._experts)
        options, side = {**CALLS.get(self.model, {}), **self.given}, (self.height, self.width)
        self._rehearsals = Rehearsals(pipeline, self._experts, options, self.model, self.words, side)
        for block in (block for expert in self._experts for block in _blocks(expert)):
            if self.compiled:
                block.compile()
            if self.checkpointing:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def _known(self) -> Protocol:
        """What the call asks of the denoiser, read off when it is first needed, and compared with the loop here."""
        if self._protocol is None:
            self._protocol = self._rehearsals.protocol()
            try:
                self._check(self._protocol)
            except SliderError:
                self._protocol = None
                raise
        return self._protocol

    @torch.no_grad()
    def _check(self, known: Protocol) -> None:
        """Two steps of two prompts, with a stand-in that answers to every number that it is given."""
        prompts, seeds, size = self._rehearsals.beside, [0, 1], self.size()
        answer = partial(sensitive, doubled=known.doubled)
        called = self._rehearsals.rehearse(prompts, size, steps=2, answer=answer, stepping=True)
        conditioning, start = self.encode(prompts), self.start(seeds)
        said: list[Tensor] = []

        def predict(state: TensorBatch) -> Tensor:
            said.append(self.predict(state, conditioning))
            return said[-1]

        with self._answering(answer):
            *states, finished = self.trajectory(predict, start, 2, seeds)
        check_loop(called, [state["latents"] for state in states], said, finished["latents"], self.model)

    @contextmanager
    def _answering(self, answer: Answer) -> Iterator[None]:
        """With a stand-in for every denoiser."""
        with ExitStack() as stack:
            for expert in self._experts:
                said = partial(_said, answer, expert)
                stack.enter_context(replaced(expert, "forward", said))
            yield

    # Conditioning and prediction

    def unread(self, prompts: Sequence[str]) -> dict[str, str]:
        return self._rehearsals.unread(prompts)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        """See `AbstractBackbone.encode`; what was encoded lately is kept, but for what a slider on an encoder makes."""
        warn_unread(self, [prompt for prompt in prompts if prompt not in self._rehearsals.beside])
        turned = any(is_attached(part) for name, part in self.named_children() if name not in self.predicting_modules)
        kept = {} if turned else dict(self._encoded)
        new = [prompt for prompt in dict.fromkeys(prompts) if (prompt, self.size()) not in kept]
        for start in range(0, len(new), _TOGETHER):
            part = new[start : start + _TOGETHER]
            made = self._rehearsals.encode(part, self._known().arguments)
            kept |= {(prompt, self.size()): take(made, torch.tensor([k])) for k, prompt in enumerate(part)}
        encoded = join([kept[prompt, self.size()] for prompt in prompts])
        if not turned:
            self._encoded = dict(list(kept.items())[-_KEPT:])
        return encoded

    def predict(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        known, latents, size = self._known(), state["latents"], _size_of(state)
        if size not in self._of_one_row:
            self._of_one_row[size] = known.arguments.of_one_row(self._rehearsals.example(size))
        given = known.arguments.given(self._of_one_row[size], latents, state, conditioning)
        experts = state["expert"]
        said = {expert: self._ask(expert, given, latents) for expert in sorted(set(experts.tolist()))}
        if len(said) == 1:
            return next(iter(said.values()))
        which = experts.to(latents.device).view(-1, *[1] * (latents.dim() - 1))
        return sum(
            (torch.where(which == expert, value, 0) for expert, value in said.items()), torch.zeros_like(latents)
        )

    def _ask(self, expert: int, given: dict[str, Any], latents: Tensor) -> Tensor:
        with rows_of(len(latents)):
            said = self._experts[expert](**given, return_dict=False)[0]
        said = torch.stack(said).view(latents.shape) if isinstance(said, list) else said
        if self._known().doubled:  # a variance beside the mean
            said = said.chunk(2, 1)[0]
        return self._known().sign * said

    # Trajectories

    def size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        return self._rehearsals.size(height, width)

    def start(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        size = self.size(height, width)
        started = [self._rehearsals.rehearse([FILLER], size, seed).samples[0] for seed in seeds]
        return torch.cat(started) / getattr(self.pipeline.scheduler, "init_noise_sigma", 1.0)

    def calls(self, steps: int) -> int:
        return len(self._walked(steps, self.size()).asked)

    def _walked(self, steps: int, size: tuple[int, int]) -> Rehearsal:
        """A rehearsal of one row and so many steps, after which the pipeline's scheduler is set to them."""
        self._check_steps(steps)
        return self._rehearsals.rehearse([FILLER], size, steps=steps)

    def _check_steps(self, steps: int) -> None:
        if steps < 1:
            raise SliderError(f"{type(self.pipeline.scheduler).__name__} cannot make {steps} steps; give at least 1")

    def trajectory(
        self, predict: Predictor, start: Tensor, steps: int, seeds: Sequence[int],
        height: int | None = None, width: int | None = None,
    ) -> Iterator[TensorBatch]:  # fmt: skip
        """See `DiffusionBackbone.trajectory`; between two states everything is float32."""
        size, count, layout = self.size(height, width), len(start), self._known().arguments
        walked = self._walked(steps, size)
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        options = schedulers.options(scheduler, seeds, start.shape[1:], 0.0)
        latents = start.float() * getattr(scheduler, "init_noise_sigma", 1.0)
        sizes = torch.tensor(size).expand(count, 2)  # on the CPU, as the expert, which says what is run
        state: TensorBatch = {}
        for k, t in enumerate(scheduler.timesteps):
            asked = walked.asked[k]
            scaled = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
            state = {
                "latents": scaled.to(start.dtype),
                "time": t.float().to(start.device).expand(count),
                "expert": torch.full([count], asked.expert),
                "size": sizes,
                **layout.state(asked, count),
            }
            yield state
            latents = scheduler.step(predict(state).float(), t, latents, return_dict=False, **options)[0]
        yield {**state, "latents": latents.to(start.dtype), "time": torch.zeros_like(state["time"])}

    @torch.no_grad()
    def pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
        height: int | None = None, width: int | None = None,
    ) -> Tensor:  # fmt: skip
        """The pipeline's own call, whatever is attached to its denoiser; see `DiffusionBackbone.pictures`."""
        high, wide = self.size(height, width)
        self._check_steps(steps)
        with self._counted(), self._rehearsals.said_in_a_line("run"):
            made = self._rehearsals.caller.pictures(prompts, seeds, steps, guidance, height=high, width=wide)
        return torch.as_tensor(made).float() * 2 - 1

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """With every denoiser saying how many rows it is run on, to dials that differ by row."""
        with ExitStack() as stack:
            for expert in self._experts:
                stack.enter_context(replaced(expert, "forward", partial(_in_rows, expert.forward)))
            yield

    @torch.no_grad()
    def decode(self, finished: TensorBatch) -> Tensor:
        size = _size_of(finished)
        made = [self._rehearsals.rehearse([FILLER], size, finished=row[None]).made for row in finished["latents"]]
        return (torch.cat([torch.as_tensor(one) for one in made]).float() * 2 - 1).clamp(-1, 1)

    # Layers

    def target_groups(self) -> dict[str, TargetGroup]:
        if self.pipeline is None:
            return dict(PATTERNS)
        return groups([name for name in editable_modules(self) if self.reaches(name)])

    def reaches(self, layer: str) -> bool:
        return super().reaches(layer) and layer not in self._unlike()

    def unfit(self) -> dict[str, str]:
        return {**super().unfit(), **self._unlike()}

    @torch.no_grad()
    def _unlike(self) -> dict[str, str]:
        """Layers that a dial for every row cannot be on, with why: found on three states of every denoiser.

        Raises:
            SliderError: what is predicted of a row depends on the rows beside it.
        """
        if self._layers is None:
            names = [name for name in editable_modules(self) if name.split(".")[0] in self.predicting_modules]
            conditioning = self.encode(["", *self._rehearsals.beside])
            paths = [self.trajectory(_nothing, self.start([seed]), 3, [seed]) for seed in range(3)]
            state = join([next(islice(path, depth, None)) for depth, path in enumerate(paths)])
            seen: list[LayerUse] = []
            for expert in range(len(self._experts)):
                asked = {**state, "expert": torch.full_like(state["expert"], expert)}
                with watched(self, names, 3) as use:
                    together = self.predict(asked, conditioning)
                seen.append(use)
                index = [torch.tensor([k]) for k in range(3)]
                alone = torch.cat([self.predict(take(asked, k), take(conditioning, k)) for k in index])
                check_rows(together, alone, self.model)
            rowless = {name: why for use in seen for name, why in use.rowless.items()}
            idle = set(names).difference(*(use.ran for use in seen))
            self._layers = {**rowless, **dict.fromkeys(idle, "no prediction runs it")}
        return self._layers

    # Files

    def usage(self, slider: Slider, saved: Path) -> list[str]:
        return usage(self.pipeline, slider, saved)

    def write(self, folder: Path) -> None:
        encoders = [n for n, part in self.pipeline.components.items() if isinstance(part, PreTrainedModel)]
        save_pipeline(self.pipeline, folder, encoders)

    def _whole(self, folder: Path) -> Path:
        return whole_pipeline(self.model, folder, self.revision, self.variant)


def _call(given: Any) -> dict[str, Any]:
    """Further arguments of a call, which a slider's file may have named.

    Raises:
        SliderError: they are no plain values by name, or are said by other means.
    """
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(value, bool | int | float | str) for value in given.values()):
        raise SliderError(f"call is {given!r:.80}; give numbers, words or truth values by the names of the call")
    if known := sorted(_OURS & given.keys()):
        raise SliderError(f"call says {known[0]}, which sampling says, or height and width of the backbone")
    return dict(given)


def _said(answer: Answer, expert: nn.Module, **arguments: Any) -> tuple[Any]:
    return (answer(expert, {name: value for name, value in arguments.items() if name != "return_dict"}),)


def _in_rows(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A forward whose rows are those of its first argument."""
    first = args[0] if args else next(iter(kwargs.values()))
    with rows_of(len(first)):
        return forward(*args, **kwargs)


def _nothing(state: TensorBatch) -> Tensor:
    """Predicts nothing: the states of its trajectory are at their times."""
    return torch.zeros_like(state["latents"])


def _size_of(state: TensorBatch) -> tuple[int, int]:
    sizes = {(int(high), int(wide)) for high, wide in state["size"].tolist()}
    if len(sizes) > 1:
        raise SliderError("states of pictures of several sizes are asked about together; ask about each size alone")
    return sizes.pop()


def _blocks(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a denoiser: what its lists of modules hold."""
    for child in denoiser.children():
        if isinstance(child, nn.ModuleList):
            yield from child
