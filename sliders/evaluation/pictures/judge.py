"""A classifier that says what a picture shows: one head per attribute, each with its closed list of values."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sliders.errors import SliderError, one_line
from sliders.files import replacing
from sliders.resources.shipped import JUDGES, judge_file


class _Block(nn.Module):
    """Two 3 x 3 convolutions with a skip; the first halves the picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        return torch.relu(x + self.norm2(self.second(x)))


class AttributeJudge(nn.Module):
    """Pictures ``[n, 3, h, w]`` in [-1, 1] to log-probabilities of each attribute's values.

    The same weights read every picture of a slider's evaluation; nothing of it takes part in training a slider.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], width: int = 32) -> None:
        super().__init__()
        self.values = {name: tuple(v) for name, v in values.items()}
        self.width = width
        self.body = nn.Sequential(
            _Block(3, width), _Block(width, 2 * width), _Block(2 * width, 4 * width), _Block(4 * width, 4 * width)
        )
        for name in self.values:
            self.register_buffer(f"where_{name}", torch.zeros(64, 64))
        self.heads = nn.ModuleDict({name: nn.Linear(4 * width * 16, len(v)) for name, v in self.values.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Log-probabilities ``{attribute: [n, values]}`` of pictures of 64 x 64 (others are resized)."""
        if images.shape[-2:] != (64, 64):
            images = nn.functional.interpolate(images, size=(64, 64), mode="area")
        features = self.body(images).flatten(1)
        return {name: head(features).log_softmax(-1) for name, head in self.heads.items()}

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int = 256) -> dict[str, Tensor]:
        """Probabilities ``{attribute: [n, values]}``, in batches, without gradients; of videos the mean over frames."""
        if images.dim() == 5:
            read = self.probabilities(images.flatten(0, 1), batch)
            return {name: values.unflatten(0, images.shape[:2]).mean(1) for name, values in read.items()}
        parts = [self(x.float()) for x in images.split(batch)]
        return {name: torch.cat([p[name] for p in parts]).exp() for name in self.values}

    def where(self, attribute: str) -> Tensor:
        """Where in a picture the attribute can show: bool ``[64, 64]``."""
        return self.get_buffer(f"where_{attribute}") > 0

    def column(self, attribute: str, value: str) -> int:
        """The index of a value in its head; an error names what there is."""
        if attribute not in self.values:
            raise SliderError(f"the judge has no attribute {attribute!r}; it has {', '.join(self.values)}")
        if value not in self.values[attribute]:
            raise SliderError(f"{attribute!r} has no value {value!r}; it has {', '.join(self.values[attribute])}")
        return self.values[attribute].index(value)

    def save(self, file: Path) -> None:
        """Write weights (float16) and values into one safetensors file."""
        state = {k: v.detach().half().contiguous() for k, v in self.state_dict().items()}
        with replacing(file) as new:
            save_file(state, new, {"values": json.dumps(self.values), "width": str(self.width)})

    @classmethod
    def load(cls, judge: Path | str) -> "AttributeJudge":
        """Read a file that `save` wrote, or the one of a name."""
        file = judge_file(judge)
        if not file.is_file():
            raise SliderError(f"no judge at {file}; give the file of one, or a name: {', '.join(JUDGES)}")
        try:
            with safe_open(file, "pt") as f:
                metadata = f.metadata() or {}
                state = {key: f.get_tensor(key).float() for key in f.keys()}  # noqa: SIM118  (a safe_open is not iterable)
            made = cls(json.loads(metadata["values"]), int(metadata["width"]))
            made.load_state_dict(state)
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise SliderError(f"{file} is not a judge's file: {one_line(error)}") from error
        return made.eval().requires_grad_(False)
