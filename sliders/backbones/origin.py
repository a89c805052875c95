"""Where a model in memory comes from: the files that it was read from, and by what it is known to be the same."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from sliders.backbones.fingerprint import hash_files, hash_named, hash_tensors, state_of
from sliders.formats.stored import places
from sliders.runtime.baking import base_tensors


class Origin:
    """Where a model comes from.

    Args:
        folder: that it was read from; without, the weights in memory are what counts.
        files: those in safetensors that each component was read from.
    """

    def __init__(self, folder: Path | None = None, files: Mapping[str, Sequence[Path]] | None = None) -> None:
        self.folder = folder
        self._files = {name: (there, state_of(there)) for name, there in (files or {}).items() if there}
        self._hashes: dict[str, str] = {}

    def unchanged(self, component: str) -> Sequence[Path]:
        """The files that a component was read from, if they are still what they were."""
        files, state = self._files.get(component, ((), None))
        return files if state is not None and state_of(files) == state else ()

    def fingerprint(self, parts: Mapping[str, nn.Module], components: Iterable[str]) -> str:
        """Hashes of the weights of components, as ``unet=...,vae=...``, computed when they are first asked for.

        Args:
            parts: all components by name.
            components: names of those that are meant.
        """
        for name in (wanted := sorted(set(components))):
            if name not in self._hashes:
                files, own = self.unchanged(name), (tensor for _, tensor in base_tensors(parts[name]))
                self._hashes[name] = hash_files(files) if files else hash_tensors(own)
        return ",".join(f"{name}={self._hashes[name]}" for name in wanted)

    def old_fingerprint(self, parts: Mapping[str, nn.Module]) -> str:
        """A hash of the weights of all components at once, as float32 holds them, which earlier versions wrote.

        They are the stored ones where there are files, whatever precision they were read in.
        """
        alone = len(parts) == 1  # a language model's were named without their component
        tensors: dict[str, Callable[[], Tensor]] = {}
        for component, part in parts.items():
            own = dict(base_tensors(part))
            stored = places(part, self.unchanged(component), own)
            shared = {tensor.data_ptr(): stored[key] for key, tensor in own.items() if key in stored}  # by tied ones
            for key, tensor in own.items():
                place = stored.get(key) or shared.get(tensor.data_ptr())
                tensors[key if alone else f"{component}.{key}"] = place.read if place else partial(_given, tensor)
        return hash_named(tensors)


def _given(tensor: Tensor) -> Tensor:
    return tensor
