"""Safetensors files that are read and written whole."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sliders.batch import widened
from sliders.errors import SliderError, one_line
from sliders.files import replacing

_PICKLED = (
    "a pickled file (.pt, .bin), as torch.save and the first concept sliders write, which can run code when it is read "
    "and is not read here; convert it to safetensors in diffusers' layout"
)
_KINDS: Mapping[bytes, str] = {
    b"PK\x03\x04": _PICKLED,
    b"\x80\x02": _PICKLED,
    b"\x80\x04": _PICKLED,
    b"GGUF": "a GGUF file, which llama.cpp loads and is not read here; give the slider's own folder",
    b"version https:/": "a pointer of Git LFS instead of the file itself; fetch it with `git lfs pull`",
    b"<": "a web page instead of the file itself; download it again",
}
"""What people give by mistake, by how it begins."""


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
        raise not_safetensors(file, error) from error


def check_finite(state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse factors with which no output is a number.

    Raises:
        SliderError: one holds an infinite number or none.
    """
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(widened(tensor).isfinite().all()):
            raise SliderError(f"{file}: {key!r} holds numbers that are infinite or no numbers; the file is damaged")


def not_safetensors(file: Path, error: Exception) -> SliderError:
    """What a file is that was taken for one of safetensors, from how it begins; nothing else of it is read."""
    try:
        with file.open("rb") as opened:
            begins = opened.read(16)
    except OSError:
        begins = b""
    kind = next((kind for mark, kind in _KINDS.items() if begins.startswith(mark)), None)
    if kind is None or begins[8:9] in (b"", b"{"):  # a header of safetensors, behind a length of any bytes
        return SliderError(f"{file} is not a readable safetensors file: {one_line(error)}")
    return SliderError(f"{file} is {kind}")


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata alone; nothing where the file is none that can be read."""
    try:
        with safe_open(file, "pt") as f:
            return dict(f.metadata() or {})
    except (SafetensorError, OSError):
        return {}
