"""What comes with the package: configs, the avatar model and its judge, concepts, prompts, and trained sliders.

An installed package has them in its folder `share/`; in a checkout they are at the top, at the same relative places.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from sliders.errors import SliderError

_PACKAGE = Path(__file__).resolve().parent.parent
ROOT = _PACKAGE / "share" if (_PACKAGE / "share").is_dir() else _PACKAGE.parent
"""The folder that `configs` and `data` are in."""

MODELS = {"avatars": "data/avatars/model", "avatars-flow": "data/avatars/flow"}
"""Models of pictures by name."""
CALLS: dict[str, dict[str, int]] = {"avatars-flow": {"max_sequence_length": 0}}
"""What the call of such a model is given where nothing else is said: that one has no third text encoder to pad for."""
JUDGES = {"avatars": "data/avatars/judge.safetensors"}
"""Attribute judges by name."""
DEFAULT_CONFIG = "avatars/smile"

_NAME = re.compile(r"[\w/-]+(\.[\w/-]+)*")


def shipped(place: str) -> Path:
    """A file or folder, by its place in the repository."""
    return ROOT / place


def model_folder(model: str) -> str:
    """Where a model of pictures is: the folder of a name, or what was given.

    A place in the repository is a name, too: slider files say of the avatar model that it is ``data/avatars/model``.
    """
    if model in MODELS.values() and not Path(model).exists():
        return str(shipped(model))
    return str(shipped(MODELS[model])) if model in MODELS else model


def judge_file(judge: Path | str) -> Path:
    """Where an attribute judge is: the file of a name, or what was given."""
    return shipped(JUDGES[str(judge)]) if str(judge) in JUDGES else Path(judge)


def config_names() -> dict[str, Path]:
    """Every config of a run or an editor: ``avatars/smile`` and so on."""
    folder = shipped("configs")
    files = sorted(file for file in folder.glob("*/*.yaml") if file.parent.name != "tables")
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def config_file(name: str) -> Path:
    """The file of a config that is called by its name, or by the name's last part where no other has it.

    Those in ``flow`` repeat the avatars' on another base, and are called by their whole names.

    Raises:
        SliderError: there is none, or more than one.
    """
    known = config_names()
    called = (key for key in known if key.rpartition("/")[2] == name and not key.startswith("flow/"))
    found = [name] if name in known else list(called)
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise SliderError(f"config {name!r} can be {' or '.join(found)}; say which")
    raise SliderError(f"there is no file {name} and no config of that name; those by name are {', '.join(known)}")


def config_place(name: str) -> Path:
    """A folder of configs, or `config_file`."""
    folder = shipped("configs") / name
    return folder if _NAME.fullmatch(name) and folder.is_dir() else config_file(name)


def with_files(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with the file of each config that is given by its name.

    Raises:
        SliderError: there is neither a file nor a config of a name.
    """
    given = list(arguments)
    for k, argument in enumerate(given):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-c"):
            continue
        at = k if equals else k + 1
        value = value if equals else given[at] if at < len(given) else ""
        if _NAME.fullmatch(value) and not Path(value).exists():
            given[at] = f"{flag}={config_file(value)}" if equals else str(config_file(value))
    return given
