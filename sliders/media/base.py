"""What a medium offers: all that a command does otherwise for one kind of output than for another."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from sliders.algebra.slider import NamedDial
from sliders.backbones.base import AbstractBackbone
from sliders.concept import Concept
from sliders.evaluation.base_states import BaseStates
from sliders.evaluation.settings import settled
from sliders.evaluation.watching import Plan, Watch
from sliders.resources.paths import Source

Model = TypeVar("Model", bound=AbstractBackbone)
How = TypeVar("How")


class Medium(ABC, Generic[Model, How]):
    """Pictures, or text: how one previews, generates and evaluates.

    ``Model`` is the kind of backbone that makes it, ``How`` the settings with which it is sampled.  Backbones that are
    given to a method are loaded, and dials are read and are of this backbone.

    A new medium is one file beside this one, called as its backbones' `AbstractBackbone.modality`, with an instance
    `MEDIUM`.
    """

    flags: ClassVar[tuple[str, ...]]
    """Flags of the commands that are for this medium alone; the first says how it is sampled."""

    amounts: ClassVar[Sequence[float]]
    """Dial times eta, above 0, at which a preview samples unless told otherwise."""

    how: ClassVar[type[Any]]
    """The class that stands for ``How``."""

    probing: ClassVar[Plan[Any]]
    """What a training's probe looks at unless told otherwise, from the dial's one end to the other."""

    reporting: ClassVar[Plan[Any]]
    """What a training's report looks at unless told otherwise."""

    @abstractmethod
    def place(self, out: Path | None) -> Path | None:
        """The file that `generate` writes, if it writes one; known before a model is read.

        Raises:
            SliderError: the medium is not written there.
        """

    @abstractmethod
    def preview(
        self,
        backbone: Model,
        concept: Concept,
        amounts: Sequence[float],
        count: int,
        how: How | None,
        out: Path,
        judge: Source | Path | None = None,
    ) -> None:
        """Show what the formula itself makes at sampling time, before any training.

        Args:
            backbone: the model.
            concept: in the words for this medium.
            amounts: dial times eta, ascending, 0 among them and each on both sides.
            count: held-out scenes or prompts at each amount.
            how: it is sampled.
            out: folder to write into.
            judge: of pictures: file or name of the attribute judge.
        """

    @abstractmethod
    def generate(
        self,
        backbone: Model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        dials: Sequence[NamedDial],
        positions: Mapping[str, float],
        how: How | None,
        out: Path | None,
    ) -> None:
        """Show what the model makes of every prompt and seed, and beside it what it makes with the dials turned.

        Args:
            backbone: the model.
            prompts: at least one.
            seeds: at least one.
            dials: to turn; none shows the base alone.
            positions: of each dial by its name.
            how: it is sampled.
            out: what `place` gave.
        """

    @abstractmethod
    def evaluate(
        self,
        backbone: Model,
        dial: NamedDial,
        concept: Concept | None,
        positions: Sequence[float],
        count: int,
        how: How | None,
        out: Path,
        judge: Source | Path | None = None,
        oracle: bool = False,
        eta: float | None = None,
    ) -> None:
        """Measure a dial on held-out prompts, and write and print what was found.

        Args:
            backbone: the model.
            dial: what is measured.
            concept: what it is measured by; the dial's own unless given.
            positions: of the dial, 0 among them.
            count: held-out scenes or prompts at each position.
            how: it is sampled.
            out: folder to write into.
            judge: of pictures: file or name of the attribute judge.
            oracle: of pictures: measure the training-free oracle on the same scenes.
            eta: of pictures: the oracle's; the dial's own unless given.
        """

    @abstractmethod
    def states(
        self,
        backbone: Model,
        prompts: Sequence[str],
        count: int,
        target: str = "",
        how: How | None = None,
        seed: int | None = None,
    ) -> BaseStates:
        """Where the base's predictions are compared with others: states of what it makes of some prompts.

        Args:
            backbone: the model, with nothing attached.
            prompts: held-out ones.
            count: scenes, each with a prompt and a seed of its own.
            target: of a language model, the instruction that the prompts are answered under.
            how: the base makes them.
            seed: of the first scene, the others count on; the usual one unless given.

        Raises:
            SliderError: there are too few prompts.
        """

    @abstractmethod
    def watch(self, concept: Concept, plan: Plan[How], judge: Source | Path | None = None) -> Watch[Model, How]:
        """What looks at a slider while it is trained and when it is done.

        Args:
            concept: in the words for this medium.
            plan: what is looked at.
            judge: of pictures: file or name of the attribute judge.

        Raises:
            SliderError: the concept cannot be measured like this.
        """

    def plan(self, usual: Plan[How], how: Mapping[str, object] | None = None, **given: object) -> Plan[How]:
        """One of the usual plans with what is given in place of what it has.

        Args:
            usual: `probing` or `reporting`.
            how: settings as a config has them; the usual ones if None.
            given: further fields of the plan; None leaves one as it is.
        """
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(usual, **changes, how=usual.how if how is None else settled(how, self.how))


def medium_of(backbone: AbstractBackbone) -> Medium[Any, Any]:
    """The medium of a backbone: the file that is called as its modality."""
    return importlib.import_module(f"sliders.media.{backbone.modality}").MEDIUM
