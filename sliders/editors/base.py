"""What every editing method offers: from a model and a configuration to an edit of its weights."""

import datetime
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import ClassVar, Generic, TypeVar, final

from sliders.algebra.edit import Factored
from sliders.backbones.base import AbstractBackbone, of_class
from sliders.formats.metadata import SCHEMA_VERSION

Model = TypeVar("Model", bound=AbstractBackbone)


@dataclass(frozen=True)
class Editor(ABC, Generic[Model]):
    """A method that fits an edit to a model: its fields are its configuration, and making one reads nothing.

    A new method is one file beside this one with one subclass, a frozen dataclass; the file's name is that of the
    method on the command line (`sliders edit NAME`), and the fields' descriptions are its help.
    """

    of: ClassVar[type[AbstractBackbone]]
    """The models that it is made for: the class that stands for ``Model``."""

    @abstractmethod
    def fit(self, backbone: Model, seed: int = 0) -> Factored:
        """The edit, fitted to the weights as they are now; these are left as they are.

        Args:
            backbone: loaded; whatever is attached to it or baked into it is part of what is edited.
            seed: of all that is drawn, such as the texts that statistics are taken from; one seed, one edit.
        """

    @abstractmethod
    def describe(self) -> str:
        """What is edited, in one line."""

    @final
    def check(self, backbone: AbstractBackbone) -> None:
        """Refuse a model of another kind.

        Raises:
            SliderError: it is not one of those that the method is made for.
        """
        of_class(backbone, self.of, f"{type(self).__name__} edits", "choose another with --backbone")

    @final
    def metadata(self, backbone: AbstractBackbone, seed: int, layers: Iterable[str]) -> dict[str, str]:
        """What the file of an edit of these layers says of it: the method, what it was told, and the base."""
        components = {layer.partition(".")[0] for layer in layers}
        return {
            "sliders.schema_version": SCHEMA_VERSION,
            "sliders.method": f"{type(self).__module__}.{type(self).__qualname__}",
            "sliders.configuration": json.dumps(asdict(self), default=str),
            "sliders.seed": str(seed),
            "sliders.base_model": backbone.base_model,
            "sliders.base_class": backbone.class_path,
            **({"sliders.base_settings": json.dumps(backbone.settings)} if backbone.settings else {}),
            "sliders.base_fingerprint": backbone.fingerprint(components),
            "sliders.modality": backbone.modality,
            "modelspec.date": datetime.date.today().isoformat(),
            "modelspec.description": self.describe(),
        }
