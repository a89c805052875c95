"""Which model a base is: a hash of each component's weights, whatever precision they are stored in or loaded with.

A component is hashed when somebody asks for it, from its files where it has been read from files; what was found is
kept in the user's cache, so that a model is hashed once.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sliders.errors import SliderError
from sliders.files import write_text
from sliders.formats.stored import variants
from sliders.resources.fetch import cache_folder

_FIRST, _BLOCK = 1024, 1 << 16


def _narrowed(tensor: Tensor) -> Tensor:
    """The same numbers in half precision, if it can hold them."""
    flat = tensor.flatten()
    blocks = (flat[:_FIRST], *flat.split(_BLOCK))  # most others are told by their first numbers
    for dtype in (torch.float16, torch.bfloat16):
        if tensor.dtype == dtype:
            return tensor
        if all(torch.equal(block.to(dtype).to(tensor.dtype), block) for block in blocks):
            return tensor.to(dtype)
    return tensor


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Of what a component consists of: shapes and numbers, in any order and under any names.

    Libraries name and order tensors in memory otherwise than in files, and keep in memory twice what is tied.  Numbers
    are taken in the narrowest precision that holds all of a tensor exactly, so that a model that was stored in half
    precision and read in float32 is still the same.
    """
    digests: set[bytes] = set()
    for tensor in tensors:
        if not tensor.is_floating_point():
            continue  # positions and counters
        own = _narrowed(tensor.detach().cpu())
        digest = hashlib.sha256(f"{own.dtype} {tuple(own.shape)}".encode())
        digest.update(own.contiguous().view(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
        digests.add(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:32]


def hash_named(tensors: Mapping[str, Callable[[], Tensor]]) -> str:
    """Names and numbers in float32, as earlier versions hashed all of a model at once; each is read in its turn."""
    digest = hashlib.sha256()
    for name, read in sorted(tensors.items(), key=lambda one: one[0]):
        digest.update(name.encode())
        digest.update(read().detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _stored(files: Sequence[Path]) -> Iterator[Tensor]:
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                yield opened.get_tensor(key)


State = tuple[tuple[str, int, int], ...]
"""Where files are, how large they are and when they were written."""


def state_of(files: Sequence[Path]) -> State | None:
    """By which files are known to be what they were; None where one is not there."""
    try:
        return tuple((str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    except OSError:
        return None


def hash_files(files: Sequence[Path]) -> str:
    """`hash_tensors` of what files in safetensors hold, which is computed once for as long as they do not change."""
    if (known := _known(files)) is not None:
        return known
    found = hash_tensors(_stored(files))
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        write_text(_kept(files), found)
    return found


def _kept(files: Sequence[Path]) -> Path:
    """Where the hash of files is kept that are as they are now."""
    key = hashlib.sha256(json.dumps(state_of(files)).encode()).hexdigest()[:32]
    return cache_folder() / "fingerprints" / key


def _known(files: Sequence[Path]) -> str | None:
    """The hash of files, if it was computed before."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if len(known := _kept(files).read_text(encoding="utf-8")) == 32:
            return known
    return None


def is_known(folder: Path, components: Mapping[str, str]) -> bool:
    """Whether this machine's user has used a model before which has these hashes; no weights are read.

    Args:
        folder: of the model.
        components: the hash of each; ``lm`` is a language model, which lies in the folder itself.
    """

    def has(name: str, value: str) -> bool:
        return any(_known(files) == value for files in variants(folder if name == "lm" else folder / name).values())

    try:
        return bool(components) and all(name.isidentifier() and has(name, value) for name, value in components.items())
    except (SliderError, OSError, ValueError):
        return False
