"""Where a model's weights are put, and in which precision they are read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open

from sliders.backbones.precision import Precision
from sliders.errors import SliderError
from sliders.formats.stored import variants

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_STORED = {"F32": torch.float32, "F64": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def present() -> list[str]:
    """The devices of this machine, the best first."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


@dataclass(frozen=True)
class Placement:
    """What is wanted of a model's device and precision.  Making one asks nothing of this machine.

    Args:
        device: ``cpu``, ``cuda``, one such as ``cuda:1``, or ``mps``; ``auto`` is the best there is.
        dtype: precision of the weights; ``auto`` is float32 on the CPU, and elsewhere that of the model's files.

    Raises:
        SliderError: there are no such devices or precisions anywhere.
    """

    device: str = "auto"
    dtype: Precision = "auto"

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise SliderError(f"device is {self.device!r}; give auto, cpu, cuda, one of several as cuda:1, or mps")
        if self.dtype not in (known := get_args(Precision)):
            raise SliderError(f"dtype is {self.dtype!r}; give {', '.join(known[:-1])} or {known[-1]}")

    def but(self, device: str | None = None, dtype: Precision | None = None) -> "Placement":
        """The same, but for what is given."""
        return Placement(self.device if device is None else device, self.dtype if dtype is None else dtype)

    def found(self) -> torch.device:
        """The device, which is there.

        Raises:
            SliderError: it is not.
        """
        there = present()
        wanted = there[0] if self.device == "auto" else "cuda:0" if self.device == "cuda" else self.device
        if wanted not in there:
            raise SliderError(f"device is {self.device}, but this machine has {', '.join(there)}; give one, or auto")
        return torch.device(wanted)

    def precision(self, device: torch.device, files: Iterable[Path]) -> torch.dtype:
        """The precision of the weights on a device.

        Args:
            device: that they are put on.
            files: of the model in safetensors, the first of which says what ``auto`` is; float32 if there is none.

        Raises:
            SliderError: ``auto`` is asked for, and the file does not say it.
        """
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        first = next(iter(files), None) if device.type != "cpu" else None
        return torch.float32 if first is None else stored(first)

    def arguments(self) -> list[str]:
        """What a training run is told on its command line, to train there."""
        kind, _, index = self.device.partition(":")
        told = ["--trainer.accelerator", kind, "--model.backbone.init_args.device", self.device]
        told += ["--trainer.devices", f"[{index}]"] if index else []
        return [*told, "--model.backbone.init_args.dtype", self.dtype]

    def on_trainers(self, device: torch.device) -> "Placement":
        """The same on the device of a trainer, which moves the model there whatever it was placed on.

        Raises:
            SliderError: another one was asked for by name.
        """
        if self.device not in ("auto", device.type, str(device)):
            more = f" or --trainer.devices '[{self.device[5:]}]'" if self.device.startswith("cuda:") else ""
            kind = {"cpu": "cpu", "mps": "mps"}.get(self.device, "cuda")
            raise SliderError(
                f"backbone.device is {self.device}, but the trainer's is {device}; leave the backbone's out, or give "
                f"--trainer.accelerator {kind}{more}"
            )
        return replace(self, device="mps" if device.type == "mps" else str(device))


def stored(file: Path) -> torch.dtype:
    """The precision of most numbers in a safetensors file.

    Raises:
        SliderError: it is corrupt, or in a precision that no model is run in here.
    """
    counts: dict[str, int] = {}
    try:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                part = opened.get_slice(key)
                size = torch.Size(part.get_shape()).numel()
                counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + size
    except (SafetensorError, OSError) as error:
        raise SliderError(f"{file} is not a readable safetensors file: {error}") from error
    most = max(counts, key=lambda name: counts[name], default="F32")
    if most not in _STORED:
        raise SliderError(f"{file} is stored in {most}; say in which precision to run it: --dtype bfloat16")
    return _STORED[most]


def weights(folder: Path, variant: str | None, beside: Iterable[Path] = ()) -> list[Path]:
    """A model's files of safetensors in its folder, those of a variant (such as ``fp16``) or the ordinary ones.

    Args:
        folder: of the model, or of a pipeline's component.
        variant: that is wanted.
        beside: folders of a pipeline's other components: where one has the variant, the rest need not.

    Raises:
        SliderError: there are others, but not these; it says which.
    """
    files = variants(folder)
    if not files or variant in files or (variant is None and any(folder.glob("*.bin"))):
        return files.get(variant, [])
    others = [name for name in files if name]
    if variant is None:
        raise SliderError(f"{folder} holds only the variant {' and '.join(others)}; give variant: {others[0]}")
    if None in files and any(variant in variants(other) for other in beside):
        return files[None]
    known = f"it has {' and '.join(others)}: give variant: {others[0]}" if others else "leave variant out"
    raise SliderError(f"{folder} has no variant {variant}; {known}")
