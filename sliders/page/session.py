"""Everything that the page does, without the page: dials in, pictures and words out.

Nothing of a user is kept here but the sliders that were uploaded or made, which have keys of their own; where dials
stand comes with every request.  A model is used by one request at a time, which attaches its own sliders and lets go of
them, so that two users cannot see each other's dials, and with all dials at 0 nothing is attached at all.

It is a little longer than 300 lines so that all that a user can do stands in one place; how it is done does not.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from sliders.algebra.slider import Hinge, Interpolated, NamedDial, Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import BETWEEN
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import scenes
from sliders.formats.metadata import concept_of
from sliders.media.base import medium_of
from sliders.page import downloads, pictures, studies, uploads
from sliders.page.comparison import Comparison, compare
from sliders.page.library import Library, ShownDial
from sliders.page.painting import Positions, Progress, paint, quiet
from sliders.page.requests import FARTHEST, MOST_CHOSEN, Axis, Canvas, Drawn, Speech
from sliders.page.safety import MEGABYTE, OutputFolder, check_upload, clean_text, whole, within
from sliders.page.turns import Superseded, Turn, Turns
from sliders.runtime.attach import attach

_BASES_KEPT = 64


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One of the page's models with its dials.

    Args:
        library: its dials.
        turns: the requests to it.
        components: its parts that dials are on.
        model: gives it, read.
    """

    library: Library
    turns: Turns
    components: frozenset[str]
    model: Callable[[], AbstractBackbone]


@dataclass(eq=False, repr=False)
class Session:
    """The models, the sliders, and what can be done with them.

    Args:
        backbone: the model of pictures, loaded.
        language: the language model, which is loaded when it is first asked.
        images, texts: sliders and edits that every user begins with.
        outputs: where files for users are written.
        judge: file or name of the attribute judge, for dose and response; None for none.
        most_bytes: of an uploaded file.
    """

    backbone: DiffusionBackbone
    language: CausalLMBackbone
    images: Library
    texts: Library
    outputs: OutputFolder
    judge: Path | str | None = None
    most_bytes: int = 32 * MEGABYTE
    painting: Turns = field(default_factory=Turns)
    speaking: Turns = field(default_factory=Turns)

    def __post_init__(self) -> None:
        self._bases: OrderedDict[Canvas, Tensor] = OrderedDict()
        self._loading, self._plotting = threading.Lock(), threading.Lock()
        self._pictures = ServedModel(self.images, self.painting, _components(self.backbone), lambda: self.backbone)
        self._words = ServedModel(self.texts, self.speaking, _components(self.language), self.load_language)

    # Pictures

    def draw(self, user: str, canvas: Canvas, positions: Positions, report: Progress = quiet) -> Drawn:
        """The base and the result, of one seed.

        Raises:
            Superseded: the user has asked for another picture meanwhile.
        """
        began = time.perf_counter()
        turned, dials = self._dials(self.images, positions)
        with self.painting.take(user) as turn:
            base = self._base(turn, canvas, report)
            if not turned or canvas.start == canvas.steps:
                return Drawn(base, base, time.perf_counter() - began)
            with turn.alone():
                result = paint(self.backbone, dials, [canvas.row(turned)], canvas.sampling(), _checked(turn, report))[0]
        return Drawn(base, result, time.perf_counter() - began)

    def unread(self, prompt: str) -> str:
        """What the model does not read of a prompt, as a sentence to follow others; nothing if it reads all."""
        return "".join(f" The prompt {why}." for why in self.backbone.unread([prompt]).values())

    def _base(self, turn: Turn, canvas: Canvas, report: Progress) -> Tensor:
        """The base's own picture, which is painted once."""
        key = replace(canvas, start=0)
        with turn.alone():
            if key not in self._bases:
                self._bases[key] = paint(
                    self.backbone, [], [canvas.row({})], canvas.sampling(), _checked(turn, report)
                )[0]
            self._bases.move_to_end(key)
            while len(self._bases) > _BASES_KEPT:
                self._bases.popitem(last=False)
            return self._bases[key]

    def grid(
        self, user: str, canvas: Canvas, positions: Positions, across: Axis, down: Axis | None = None,
        report: Progress = quiet,
    ) -> Tensor:  # fmt: skip
        """Pictures ``[across, down, 3, h, w]``; the other dials stay where they are."""
        if down is not None and down.key == across.key:
            raise SliderError("both axes are the same dial; choose two")
        rows = [
            {**positions, across.key: x, **({down.key: y} if down else {})}
            for x in across.positions
            for y in (down.positions if down else [0.0])
        ]
        _, dials = self._dials(self.images, {**positions, **{axis.key: 1.0 for axis in (across, down) if axis}})
        with self.painting.take(user) as turn, turn.alone():
            painted = paint(
                self.backbone, dials, [canvas.row(row) for row in rows], canvas.sampling(), _checked(turn, report)
            )
        return painted.unflatten(0, (int(across.count), -1))

    def compare(self, user: str, canvas: Canvas, key: str, position: float, report: Progress = quiet) -> Comparison:
        """One slider or edit looked at closely; see `sliders.page.comparison`."""
        within(position, f"the dial of {clean_text(key)}", -FARTHEST, FARTHEST)
        if not position:
            raise SliderError("at 0 the slider does nothing; choose a position away from 0")
        with self.painting.take(user) as turn, turn.alone():
            return compare(
                self.backbone, self.images[key], canvas.scene, position, canvas.sampling(), _checked(turn, report)
            )

    # Words

    def write(self, user: str, speech: Speech, positions: Positions) -> Iterator[tuple[str, str]]:
        """The base's answer and that with the sliders, as they grow; both have one seed.

        The model is let go of after each token, so that several users' answers grow side by side.  A newer request of
        the user, or `stop`, ends it.
        """
        model = self.load_language()
        turned, dials = self._dials(self.texts, positions)
        asked = model.encode([speech.instruction + BETWEEN + speech.message]) if speech.chat else model.encode_plain(
            [BETWEEN.join(part for part in (speech.instruction, speech.message) if part)]
        )  # fmt: skip
        both = {name: torch.cat([value, value]) for name, value in asked.items()}
        tokens = model.stream(both, [int(speech.seed)] * 2, int(speech.tokens), speech.temperature)
        rows = {key: torch.tensor([0.0, position]) for key, position in turned.items()}
        said: list[Tensor] = []
        with self.speaking.take(user) as turn:
            while True:
                try:
                    with turn.alone(), attach(model, dials) as attached:
                        attached.set(rows)
                        token = next(tokens, None)
                except Superseded:
                    return
                if token is None:
                    return
                said.append(token)
                base, result = (self._decode(torch.stack(said)[:, row]) for row in range(2))
                yield base, result if turned else base

    def _decode(self, tokens: Tensor) -> str:
        """Text so far, without half of a character."""
        return self.language.tokenizer.decode(tokens.tolist(), skip_special_tokens=True).rstrip("\ufffd")

    def load_language(self) -> CausalLMBackbone:
        """The language model, read or fetched when it is first asked for.

        Raises:
            SliderError: it is not there and cannot be fetched; the message says what to do.
        """
        with self._loading:
            if self.language.lm is None:
                self.language.load()
                for entry in self.texts.entries(self.texts.opening):
                    for side in entry.sides:
                        uploads.check(side, self.language)
        return self.language

    @property
    def instruction(self) -> str:
        """What stood before the message when the first slider of language was trained."""
        known = [side for e in self.texts.entries(self.texts.opening) for side in e.sides]
        said = [concept_of(side).worded("text").target for side in known if "sliders.concept" in side.metadata]
        return (said or [""])[0]

    def stop(self, user: str) -> None:
        """End what the user has asked of either model."""
        self.painting.stop(user)
        self.speaking.stop(user)

    # Sliders

    def _served(self, key: str) -> ServedModel:
        """Where an entry of this key is, or would be asked for."""
        return next(
            (served for served in (self._words, self._pictures) if served.library.entries([key])), self._pictures
        )

    def _served_for(self, dial: NamedDial) -> ServedModel:
        """Where a dial on these layers belongs."""
        on = {module.partition(".")[0] for piece in dial.pieces() for module in piece.edit.modules}
        return self._words if on & self._words.components else self._pictures

    def make_hinge(self, left: str, right: str) -> ShownDial:
        """A dial that is one slider below 0 and another above."""
        library = self._served(left).library
        if left == right:
            raise SliderError(f"both sides are {left}; choose another one for one of them")
        one, two = (self._side(library[key]) for key in (left, right))
        return library.add(Hinge(f"{left}|{right}", one, two))

    def _side(self, entry: ShownDial) -> Slider:
        """What can be a side of a hinge."""
        if isinstance(entry.dial, Slider):
            return entry.dial
        what = "a hinge already" if isinstance(entry.dial, Hinge) else "an edit, which a hinge's file does not hold"
        raise SliderError(f"a hinge is made of two sliders, and {entry.key} is {what}")

    def upload(self, file: Path) -> ShownDial:
        """Take in the file of a slider or an edit.

        Raises:
            SliderError: it is none, or not for a model of this page; in words for the one who uploaded it.
        """
        check_upload(file, self.most_bytes)
        dial = uploads.read(file)
        served = self._served_for(dial)
        model = served.model()
        with served.turns.lock:
            uploads.check(dial, model)
        return served.library.add(dial, file.read_bytes())

    def download(self, key: str) -> Path:
        """A slider's or an edit's file; of a hinge and of a language model's slider a zip of its folder."""
        served = self._served(key)
        return self._file(served.library[key].dial, key, served)

    def composition(self, positions: Positions) -> Path:
        """All dials as they stand, as one slider's file whose weight 1 is what is seen with start step 0.

        Raises:
            SliderError: all stand at 0, they are of two models, or an edit among them changes biases.
        """
        models = set(map(self._served, positions)) or {self._pictures}
        if len(models) > 1:
            raise SliderError("sliders of pictures and of language do not compose; they change different models")
        served = models.pop()
        turned, dials = self._dials(served.library, positions)
        if not turned:
            raise SliderError("all dials stand at 0, so that there is nothing to download; turn one")
        model = served.model()
        with served.turns.lock:  # where nothing is baked into the weights
            made = downloads.composed(model, dials, turned)
        return self._file(made, made.name, served)

    def _file(self, dial: NamedDial, name: str, served: ServedModel) -> Path:
        return downloads.write(dial, self.outputs.place(name), self.load_language() if served is self._words else None)

    # Algebra

    def relations(self, keys: Sequence[str]) -> str:
        """What sliders share, from their factors alone, and edits, from what they do to the weights, as HTML."""
        entries = self._chosen(keys)
        served = self._served(entries[0].key)
        if not any(isinstance(entry.dial, Interpolated) for entry in entries):
            with self._plotting:
                return pictures.cards(studies.from_factors(self.backbone, entries))
        model = served.model()
        with served.turns.lock, self._plotting:  # where nothing is baked into the weights
            return pictures.cards(studies.from_factors(model, entries))

    def measure(self, user: str, canvas: Canvas, keys: Sequence[str], count: int, report: Progress = quiet) -> str:
        """What sliders do together and alone, measured at states of ``count`` scenes of the canvas, as HTML."""
        entries, count = self._chosen(keys), whole(count, "the number of scenes", 1, 8)
        served = self._served(entries[0].key)
        model, painted = served.model(), served is self._pictures
        with served.turns.take(user) as turn, turn.alone(), self._plotting:
            told, how = _checked(turn, report), canvas.sampling() if painted else None
            states = medium_of(model).states(model, [canvas.prompt] * count, count, "", how, canvas.seed)
            sections = studies.measured(states, entries, told)
            if len(entries) > 1 and painted:
                wanted = scenes([canvas.prompt], count, canvas.seed)
                sections.append(studies.order_in_time(self.backbone, entries, wanted, canvas.sampling(), told))
            return pictures.cards(sections)

    def dose(self, user: str, canvas: Canvas, keys: Sequence[str], count: int, report: Progress = quiet) -> str:
        """What the judge says of each dial's range on ``count`` scenes, held-out ones where it says which, as HTML."""
        entries, count = self._chosen(keys), whole(count, "the number of scenes", 1, 16)
        if self.judge is None:
            raise SliderError("this page has no judge, and without one nobody reads the pictures")
        judge, spare = AttributeJudge.load(self.judge), scenes([canvas.prompt], count, canvas.seed)
        with self.painting.take(user) as turn, turn.alone(), self._plotting:
            told = _checked(turn, report)
            made = [studies.dose(self.backbone, entry, judge, spare, canvas.sampling(), told) for entry in entries]
            return pictures.cards(made)

    def explain(self, user: str, key: str, report: Progress = quiet) -> str:
        """What an update is, where it lies, what it is most like, and what it reads and writes, as HTML.

        Raises:
            Superseded: the user has asked for something else meanwhile.
        """
        served = self._served(key)
        entry, model = served.library[key], served.model()
        known = [other for other in served.library.entries(served.library.opening) if other.key != key]
        with served.turns.take(user) as turn, turn.alone(), self._plotting:  # it is baked in for a while
            return pictures.cards(studies.explain(model, entry, known, _checked(turn, report)))

    def _chosen(self, keys: Sequence[str]) -> list[ShownDial]:
        """Entries of one model.

        Raises:
            SliderError: there are none, too many, or they are of two models.
        """
        if not 1 <= len(keys) <= MOST_CHOSEN:
            raise SliderError(f"{len(keys)} sliders are chosen; choose 1 to {MOST_CHOSEN}")
        entries = [self._served(key).library[key] for key in dict.fromkeys(keys)]
        if len({entry.modality for entry in entries}) > 1:
            raise SliderError("sliders of pictures and of language change different models; choose those of one")
        return entries

    def _dials(self, library: Library, positions: Positions) -> tuple[dict[str, float], list[NamedDial]]:
        """The dials that are turned, and where to."""
        turned = {key: within(p, f"the dial of {clean_text(key)}", -FARTHEST, FARTHEST) for key, p in positions.items()}
        turned = {key: position for key, position in turned.items() if position}
        if len(turned) > MOST_CHOSEN:
            raise SliderError(f"{len(turned)} dials are turned; at most {MOST_CHOSEN} can be at once")
        return turned, [library[key].dial for key in turned]


def _components(model: AbstractBackbone) -> frozenset[str]:
    return frozenset((*model.conditioning_modules, *model.predicting_modules))


def _checked(turn: Turn, report: Progress) -> Progress:
    """A report that also ends what a newer request has superseded."""

    def told(done: int, total: int, what: str) -> None:
        turn.check()
        report(done, total, what)

    return told
