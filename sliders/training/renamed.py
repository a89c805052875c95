"""Classes and their arguments that are called otherwise than in earlier versions, whose runs wrote the old names down.

What is in the table is read for one release, with a warning; after that it goes.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import get_loader, set_loader
from yaml import YAMLError

from sliders.errors import SliderWarning

MODE = "sliders"
"""The parser mode in which configs are read with their old names."""


@dataclass(frozen=True)
class Renamed:
    """What a class is called now.

    Args:
        path: of the class.
        arguments: their names, by what they were called.
        defaults: what it was where nothing else was said; without them a config would take them from `base.yaml`.
    """

    path: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_CALLBACKS = "sliders.training.callbacks"
_OF_PICTURES = {"pictures": "scenes", "sampling": "how"}
_OF_TEXTS = {"prompts": "scenes", "speaking": "how"}
_TEXT_PROBE = {"judge": None, "every": 20, "scenes": 12, "how": None}
_TEXT_REPORT = {"judge": None, "dials": [-2, -1, 0, 1, 2], "scenes": 64, "how": None}
RENAMED: Mapping[str, Renamed] = {
    "sliders.backbones.causal_lm.CausalLMBackbone": Renamed("sliders.backbones.language.model.CausalLMBackbone"),
    f"{_CALLBACKS}.Probe": Renamed(f"{_CALLBACKS}.Probe", _OF_PICTURES),
    f"{_CALLBACKS}.FinalReport": Renamed(f"{_CALLBACKS}.FinalReport", _OF_PICTURES),
    "sliders.training.responses.Responses": Renamed("sliders.training.states.Responses"),
    "sliders.training.text_callbacks.TextProbe": Renamed(f"{_CALLBACKS}.Probe", _OF_TEXTS, _TEXT_PROBE),
    "sliders.training.text_callbacks.TextReport": Renamed(f"{_CALLBACKS}.FinalReport", _OF_TEXTS, _TEXT_REPORT),
    "sliders.training.text_callbacks.ErasureReport": Renamed("sliders.training.erasure.ErasureReport"),
}
"""By the path that earlier versions wrote."""


def renamed(plain: Any) -> Any:
    """Plain data of a config or a checkpoint with the names of today, wherever in it a class is named."""
    if isinstance(plain, Mapping):
        inner = {key: renamed(value) for key, value in plain.items()}
        path = plain.get("class_path")
        now = RENAMED.get(path) if isinstance(path, str) else None
        return inner if now is None else _of_today(str(path), now, inner)
    if isinstance(plain, list):
        return [renamed(value) for value in plain]
    if isinstance(plain, str) and plain in RENAMED:
        return _of_today(plain, RENAMED[plain], {"class_path": plain})["class_path"]
    return plain


def _of_today(path: str, now: Renamed, plain: dict[str, Any]) -> dict[str, Any]:
    """A class that is named, with its arguments, as it is named today."""
    given = plain.get("init_args") or {}
    if path != now.path:
        _warn(path, now.path)
    for old in now.arguments:
        if old in given and path == now.path:
            _warn(f"{path}'s {old}", now.arguments[old])
    called = {now.arguments.get(name, name): value for name, value in given.items()}
    missing = {name: value for name, value in now.defaults.items() if name not in called}
    return {**plain, "class_path": now.path, **({"init_args": called | missing} if called or missing else {})}


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is called {new} now; the old name is read for this release alone", SliderWarning, stacklevel=2
    )


def _load(text: str) -> Any:
    return renamed(get_loader("yaml")(text))


set_loader(MODE, _load, (YAMLError,))
