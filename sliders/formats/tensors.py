"""Safetensors files that are read and written whole."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sliders.errors import SliderError


def write(state: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a file, which appears whole or not at all."""
    own = {key: t.clone(memory_format=torch.contiguous_format) for key, t in state.items()}  # none may share storage
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        save_file(own, temporary, {**metadata, "format": "pt"})
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


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
