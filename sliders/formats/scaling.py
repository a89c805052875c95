"""By what PEFT multiplies a module's ``B A``, as the configuration of a stranger's file says it.

PEFT runs the keys of ``alpha_pattern`` as regular expressions on the modules' names.  Both are the file's, and there
are pairs of them that take longer than anyone lives, so that no key is run here.  Keys that are names, as programs
write them, are looked up instead, with PEFT's meaning; others are refused.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sliders.errors import SliderError

_PEFT_ALPHA = 8
"""What PEFT takes where its configuration is there and says no alpha."""
_NAME = re.compile(r"(\^|\.\*)?((?:[^.^$*+?{}\[\]\\|()]|\.|\\[^0-9A-Za-z])*)\$?")
"""How a name begins, and the name: dots may be escaped, as other characters that are neither letters nor digits."""
_CHARACTER = re.compile(r"\\?(.)", re.DOTALL)
_MOST_FORMS = 1000
"""Of keys in one file; those of models have tens."""


class Patterns:
    """What keys say of modules: the first that matches a name, as ``(.*\\.)?(KEY)$`` does, counts.

    Keys are names or ends of names.  One that begins with ``^`` is a whole name, one that begins with ``.*`` may end
    within a part of a name; a dot that is not escaped stands for any character.

    Args:
        said: the value of each key.
        where: the file, and where in it, for errors.

    Raises:
        SliderError: a key is another expression.
    """

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self._forms: dict[tuple[str, int, tuple[int, ...]], dict[str, tuple[int, Any]]] = {}
        for place, (key, value) in enumerate(said.items()):
            read = _NAME.fullmatch(key)
            if read is None:
                raise SliderError(
                    f"{where} has the key {_shortened(key)!r}, a regular expression, and those of strangers are not "
                    "run here; write the modules' names out, one key each"
                )
            characters = [match[0] for match in _CHARACTER.finditer(read[2])]
            name = "".join(character[-1] for character in characters)
            free = tuple(k for k, character in enumerate(characters) if character == ".")
            self._forms.setdefault((read[1] or "", len(name), free), {}).setdefault(name, (place, value))
        if len(self._forms) > _MOST_FORMS:
            raise SliderError(rf"{where} has keys of too many forms; write the dots in modules' names as '\.'")

    def find(self, name: str) -> list[Any]:
        """The value for a module's name, or nothing."""
        found: list[tuple[int, Any]] = []
        for (begins, length, free), keys in self._forms.items():
            start = len(name) - length
            if start < 0 or (start > 0 and (begins == "^" or (not begins and name[start - 1] != "."))):
                continue
            end = list(name[start:])
            for k in free:
                end[k] = "."
            if (value := keys.get("".join(end))) is not None:
                found.append(value)
        return [min(found, key=lambda one: one[0])[1]] if found else []


def _shortened(key: str) -> str:
    return key if len(key) <= 80 else f"{key[:79]}…"


class Scaling:
    """``alpha / rank``, or ``alpha / sqrt(rank)`` with ``use_rslora``.

    Alpha is the module's own where there is one; otherwise that of the first pattern which matches the end of the
    module's name, and otherwise the configuration's.  Without a configuration it is the rank.

    Args:
        config: PEFT's, of one component; empty where there is none.
        where: what stands before its keys in errors: the file, and where in it.

    Raises:
        SliderError: a pattern is an expression.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self._patterns = Patterns(config.get("alpha_pattern") or {}, f"{where}alpha_pattern")

    def __call__(self, module: str, rank: int, alpha: Tensor | None = None) -> float:
        """The factor of a module.

        Raises:
            ValueError: what the file says is no finite number; also a TypeError, OverflowError or RuntimeError.
        """
        common = self._config.get("lora_alpha", _PEFT_ALPHA) if self._config else rank
        value = float([*self._patterns.find(module), common][0] if alpha is None else alpha)
        if not math.isfinite(value):
            raise ValueError(f"alpha is {value}")
        by_root = self._config.get("use_rslora", False)
        if by_root not in (True, False, None):
            raise ValueError(f"use_rslora is {str(by_root)[:40]!r}")
        return value / (math.sqrt(rank) if by_root else rank)
