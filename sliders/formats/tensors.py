"""Safetensors files that are read and written whole."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sliders.errors import SliderError
from sliders.files import replacing


def write(state: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a file, which appears whole or not at all."""
    own = {key: t.clone(memory_format=torch.contiguous_format) for key, t in state.items()}  # none may share storage
    with replacing(file) as new:
        save_file(own, new, {**metadata, "format": "pt"})


def read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file.

    Raises:
        SliderError: it is missing or corrupt.
    """
    if not file.is_file():
        raise SliderError(f"no slider file at {file}")
    try:
        with safe_open(file, "pt") as f:
            return dict(f.metadata() or {}), {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SliderError(f"{file} is not a readable safetensors file: {error}") from error


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata alone; nothing where the file is none that can be read."""
    try:
        with safe_open(file, "pt") as f:
            return dict(f.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def widened(factor: Tensor) -> Tensor:
    """The factor in float32 at least: files may hold half precision, in which products would lose more than storing."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))
