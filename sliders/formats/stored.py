"""A model's files of safetensors, and which of its parameters each tensor in them is.

Files may hold a tensor under another name than it has in the loaded model: names were changed since they were written,
a prefix was added or left out.  What it is called there is asked of the model's own library, never guessed.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils.loading_report import LoadStateDictInfo

from sliders.errors import SliderError

_STEMS = ("model", "diffusion_pytorch_model")
_SINGLE = re.compile(r"((?P<variant>(?!.*-of-).+)\.)?safetensors")
_INDEX = re.compile(r"safetensors\.index(\.(?P<variant>.+))?\.json")


def sharded(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        SliderError: it is malformed or names files that are not there.
    """
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [index.parent / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SliderError(f"{index} is no index of a model's files: {error}") from error
    if missing := [file for file in files if not file.is_file()]:
        raise SliderError(f"{index} names {missing[0].name}, which is not there")
    return files


def variants(folder: Path) -> dict[str | None, list[Path]]:
    """The files of safetensors that the libraries read in a model's folder, by variant; the ordinary ones under None.

    Raises:
        SliderError: an index is malformed or names files that are not there.
    """
    found: dict[str | None, list[Path]] = {}
    for pattern in (_SINGLE, _INDEX):  # one file counts before several
        for stem in _STEMS:
            for file in sorted(folder.glob(f"{stem}.*")):
                named = pattern.fullmatch(file.name.removeprefix(f"{stem}."))
                if named is not None and named["variant"] not in found:
                    found[named["variant"]] = [file] if pattern is _SINGLE else sharded(file)
    return found


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its file, its key there, and its shape."""

    file: Path
    key: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, in the precision that it is stored in."""
        with safe_open(self.file, "pt") as opened:
            return opened.get_tensor(self.key)


def places(model: nn.Module | None, files: Iterable[Path], own: Iterable[str] | None = None) -> dict[str, Place]:
    """Where each parameter of a model is stored, by its name there.

    What the library makes from several tensors, or leaves out, is not among them.

    Args:
        model: whose the files are; on the meta device will do.  None leaves the names that the tensors have.
        files: of one variant.
        own: the names of its parameters, where an adapter hides them.

    Raises:
        SliderError: a file is corrupt.
    """
    found = _tensors(files)
    if model is None:
        return found
    called = names(model, list(found), model.state_dict(keep_vars=True) if own is None else own)
    return {name: found[key] for key, name in called.items()}


def all_places(model: nn.Module | None, files: Iterable[Path]) -> dict[str, Place]:
    """`places`, and what has no place in the model under the names that it has in the files.

    Raises:
        SliderError: a file is corrupt.
    """
    found = _tensors(files)
    if model is None:
        return found
    called = names(model, list(found), model.state_dict(keep_vars=True))
    rest = unknown(model, set(found) - set(called))
    return {called.get(key, key): place for key, place in found.items() if key in called or key in rest}


def _tensors(files: Iterable[Path]) -> dict[str, Place]:
    """Where each tensor is, by its key."""
    found: dict[str, Place] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (a safe_open is not iterable)
                    found[key] = Place(file, key, tuple(opened.get_slice(key).get_shape()))
        except (SafetensorError, OSError) as error:
            raise SliderError(f"{file} is not a readable safetensors file: {error}") from error
    return found


def unknown(model: nn.Module, keys: Iterable[str]) -> set[str]:
    """Of tensors that a model has no place for, those that its library does not declare to be of no matter."""
    if isinstance(model, PreTrainedModel):
        found = LoadStateDictInfo(set(), set(keys), set(), [], {}, set())
        model._adjust_missing_and_unexpected_keys(found)
        return found.unexpected_keys
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return {key for key in keys if not any(re.search(pattern, key) for pattern in ignored)}


def names(model: nn.Module, keys: Sequence[str], own: Iterable[str]) -> dict[str, str]:
    """What tensors of a model's files are called in the model, for those that become one parameter as they are.

    Args:
        model: of diffusers or of transformers; in another, tensors are called what they are called in the files.
        keys: of all its files together, since what one is called may depend on which others there are.
        own: the names of its parameters.
    """
    there = dict.fromkeys(own, True)
    named = {key: key for key in keys}
    if isinstance(model, ModelMixin):
        called = dict(named)
        model._fix_state_dict_keys_on_load(called)  # pyright: ignore[reportArgumentType]  (values are left alone)
        named = {key: name for name, key in called.items()}
    elif isinstance(model, PreTrainedModel):
        rules = get_model_conversion_mapping(model)
        makers = [rule for rule in rules if isinstance(rule, WeightConverter)]
        others = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        made: set[str] = set()
        for key in sorted(keys, key=dot_natural_key):  # as `from_pretrained` does
            name, maker = rename_source_key(key, others, makers, model.base_model_prefix, there)
            if name not in there and key in there:
                name, maker = rename_source_key(key, [], [], model.base_model_prefix, there)
            named[key] = name
            made |= set() if maker is None else {key}
        named = {key: name for key, name in named.items() if key not in made}
    return {key: name for key, name in named.items() if name in there}
