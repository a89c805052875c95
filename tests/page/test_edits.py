"""Edits beside sliders: on dials, in strips, in the algebra, and as files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from sliders import formats
from sliders.algebra.distance import distance
from sliders.algebra.edit import Affine, Translation
from sliders.algebra.element import Element
from sliders.algebra.slider import Interpolated
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import Measure
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.formats import diffusers
from sliders.page import studies
from sliders.page.edits import added, gap_of_orders, moved_biases, translation
from sliders.page.library import Library
from sliders.page.requests import Axis, Canvas
from sliders.page.safety import OutputFolder
from sliders.page.session import Session
from sliders.page.turns import Superseded
from sliders.runtime.baking import baked
from sliders.runtime.layers import layer_weights, weight_shape
from tests.factory import lowrank
from tests.page.conftest import HAPPY, MOOD, UNHAPPY, UNHAT, answers, apart, described, edited, plain, steered
from tests.page.test_files import FOREIGN, cut

SPOKEN = Canvas("a happy person", 3, 4, 6.0)


@pytest.fixture
def session(painter: UNetBackbone, speaker: CausalLMBackbone, tmp_path: Path) -> Session:
    """With a slider and two edits of pictures, and one of each of language."""
    images = [
        described(HAPPY, painter, "xattn"),
        edited(UNHAPPY, painter, "unhappy"),
        edited(UNHAT, painter, "unhat"),
    ]
    texts = [described(MOOD, speaker, "attention"), steered(speaker)]
    return Session(
        painter, speaker, Library(images), Library(texts, "text"), OutputFolder(tmp_path / "outputs"), None, 2**20
    )


def is_moved(picture: Tensor, wanted: Tensor, base: Tensor) -> bool:
    """Whether a picture is the wanted one, to a tenth at most of what that is apart from the base."""
    return apart(picture, wanted) < apart(wanted, base) / 10


def from_both_sides(model: nn.Module) -> Interpolated:
    """An edit of a layer that has a bias, with a factor on either side and a shift."""
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    out, width = shape = weight_shape(model, name)
    left, right, shift = (lowrank(s, 2, k, torch.float32) for k, s in enumerate(((out, out), (width, width), shape)))
    return Interpolated("both", Affine({name: Element.of(shape, left=left, right=right, shift=shift)}))


# Dials


def test_an_edit_is_a_dial_from_the_model_to_the_edited_one(session: Session, painter: UNetBackbone) -> None:
    entry = session.images["unhappy"]
    assert isinstance(entry.dial, Interpolated)
    assert (entry.span, entry.ends, entry.modality) == ((0.0, 1.0), ("the model", "the edit"), "image")
    assert "happy" in entry.measured  # what it says of itself
    drawn = session.draw("a", SPOKEN, {"unhappy": 1.0})
    with baked(painter, entry.dial.edit):
        assert is_moved(drawn.turned, plain(painter, SPOKEN), drawn.base)
    assert torch.equal(session.draw("a", SPOKEN, {"unhappy": 0.0}).turned, drawn.base)
    assert torch.equal(plain(painter, SPOKEN), drawn.base)


def test_metadata_may_give_an_edit_another_range(painter: UNetBackbone) -> None:
    made = edited(UNHAPPY, painter, "unhappy")
    said = {**made.metadata, "sliders.dial_range": "[-1, 2]"}
    (entry,) = Library([Interpolated(made.name, made.edit, said)]).entries(["unhappy"])
    assert entry.span == (-1.0, 2.0)


def test_an_edit_of_language_is_a_dial_too(session: Session, speaker: CausalLMBackbone) -> None:
    entry = session.texts["steer"]
    assert entry.modality == "text"
    base, turned = answers(session, "a", {"steer": 1.0})
    assert turned != base
    assert answers(session, "a", {"steer": 0.0}) == (base, base)


def test_a_strip_goes_over_the_edit_s_own_range(session: Session) -> None:
    assert session.images["happy"].strip(1.5) == (-1.5, 1.5)
    low, high = session.images["unhappy"].strip(1.5)
    assert (low, high) == (0.0, 1.0)
    strip = session.grid("a", SPOKEN, {"happy": 0.5}, Axis("unhappy", low, high, 3))
    for picture, position in zip(strip[:, 0], (0.0, 0.5, 1.0), strict=True):
        assert apart(picture, session.draw("a", SPOKEN, {"happy": 0.5, "unhappy": position}).turned) < 1e-4


def test_an_edit_is_no_side_of_a_hinge(session: Session) -> None:
    with pytest.raises(SliderError, match="made of two sliders, and unhappy is an edit"):
        session.make_hinge("happy", "unhappy")


# What it adds to the model's weights


def test_what_an_edit_adds_is_what_it_makes_of_the_weights_less_them(session: Session, painter: UNetBackbone) -> None:
    for dial, biases in ((session.images["unhappy"].dial, False), (from_both_sides(painter), True)):
        assert isinstance(dial, Interpolated)
        shifts = added(painter, dial, 0.5)
        assert shifts.modules == dial.edit.modules
        assert bool(moved_biases(shifts)) is biases
        for name, update in translation(shifts).items():
            weight, bias = layer_weights(painter, name)
            wanted, moved = dial.edit.apply_layer(name, weight.double(), None if bias is None else bias.double())
            assert_close(update.dense().double(), (wanted - weight) / 2, atol=1e-5, rtol=1e-4)
            if biases:
                assert bias is not None
                assert moved is not None
                shift = shifts[name].shift
                assert_close((shift.B @ shift.A[:, -1]).double(), (moved - bias) / 2, atol=1e-5, rtol=1e-4)


def test_it_matters_which_edit_is_first_and_not_which_slider(session: Session, painter: UNetBackbone) -> None:
    slider, one, two = (session.images[key].dial.at(1.0) for key in ("happy", "unhappy", "unhat"))
    assert isinstance(one, Affine)
    assert isinstance(two, Affine)
    assert isinstance(slider, Translation)
    between, sizes = 0.0, torch.zeros(2, dtype=torch.float64)
    for name in one:  # dense, in float64
        weight = layer_weights(painter, name)[0].double()
        eye = torch.eye(weight.shape[1], dtype=torch.float64)
        r1, r2 = (eye + edit[name].right.to(torch.float64).dense() for edit in (one, two))
        between += float((weight @ (r1 @ r2 - r2 @ r1)).norm()) ** 2
        sizes += torch.stack([(weight @ r - weight).square().sum() for r in (r1, r2)])
    found = gap_of_orders(painter, one, two)
    assert found == pytest.approx((between / float(sizes.min())) ** 0.5, rel=1e-3)
    assert found > 1e-2
    assert gap_of_orders(painter, slider, slider * 0.5) == 0.0  # exactly
    assert gap_of_orders(painter, one, one) == 0.0  # control: an edit and itself
    assert gap_of_orders(painter, one, slider) > 1e-3


# The algebra


def test_relations_are_those_of_the_updates_that_edits_make(session: Session) -> None:
    said = session.relations(["happy", "unhappy", "unhat"])
    assert "Edits multiply weights" in said
    assert said.count("<img") == 3
    session.images.add(described(HAPPY, session.backbone, "selfattn", "other"))
    assert "Edits multiply weights" not in session.relations(["happy", "other"])
    assert session.relations(["mood", "steer"]).count("<img") == 3


def test_edits_are_measured_as_sliders_are(session: Session, tmp_path: Path) -> None:
    said = session.measure("a", SPOKEN, ["unhappy", "happy"], 1)
    for title in ("How straight is each dial?", "Measured interference", "Order gap in time"):
        assert f"<h2>{title}</h2>" in said
    torch.manual_seed(0)
    AttributeJudge({"mood": ["sad", "happy"], "hat": ["no", "yes"]}, width=8).save(tmp_path / "judge.safetensors")
    session.judge = tmp_path / "judge.safetensors"
    said = session.dose("a", SPOKEN, ["unhappy"], 1)
    assert "Dose and response: unhappy" in said
    assert "unhappy does not say what it is about" in said
    assert not re.search(r"<td>-", said.partition("<table>")[2])  # its range begins at 0


class Seen:
    """A judge of pictures whose first pixel says how probable a hat is."""

    values: ClassVar = {"mood": ["sad", "happy"], "hat": ["no", "yes"]}

    def probabilities(self, pictures: Tensor) -> dict[str, Tensor]:
        hat = pictures[:, 0, 0, 0]
        return {"mood": torch.tensor([[0.4, 0.6]]).expand(len(hat), 2), "hat": torch.stack([1 - hat, hat], 1)}


def test_what_an_edit_changes_most_is_what_is_shown() -> None:
    pictures = torch.tensor([0.1, 0.2, 0.7]).view(3, 1, 1, 1, 1).expand(3, 2, 3, 4, 4)
    judge: AttributeJudge = Seen()  # pyright: ignore[reportAssignmentType]
    assert studies._most_moved(judge, pictures, 0) in [Measure("hat", None, value) for value in ("no", "yes")]


def test_the_close_look_ends_at_the_edit(session: Session, painter: UNetBackbone) -> None:
    session.images.add(from_both_sides(painter))
    for key, position in (("unhappy", 1.0), ("both", 0.5)):
        found = session.compare("a", SPOKEN, key, position)
        assert (found.dials[0], found.dials[-1]) == (0.0, 1.0)
        assert apart(found.frames[0], found.base) < 1e-5
        assert is_moved(found.turned, session.draw("a", SPOKEN, {key: position}).turned, found.base)
        assert found.parts


@pytest.mark.usefixtures("few_prompts")
class TestExplaining:
    def test_the_kind_of_an_edit_is_found_in_the_weights(self, session: Session) -> None:
        said = session.explain("a", "unhappy")
        assert "<h2>What unhappy changes</h2>" in said
        assert re.search(r"<h2>What it is</h2><p>Right (orthogonal )?(factor|projection): ", said)
        for title in ("How many directions", "Where it is", "Nearest known sliders", "Words it responds to"):
            assert f"<h2>{title}</h2>" in said

    def test_the_nearest_slider_is_the_one_that_it_is_a_copy_of(self, session: Session, tmp_path: Path) -> None:
        file = tmp_path / "theirs.safetensors"
        diffusers.save(described(HAPPY, session.backbone, "xattn", "theirs"), file)
        said = session.explain("a", session.upload(file).key)
        assert "The nearest is &#x27;happy&#x27;, with cosine +1.000" in said
        assert not re.search(r"<h2>What it is</h2><p>Right", said)  # control: no edit

    def test_the_model_is_held_and_is_as_it_was(self, session: Session, painter: UNetBackbone) -> None:
        before, held = plain(painter), []
        session.explain("a", "unhappy", lambda done, total, what: held.append(session.painting.lock.locked()))
        assert len(held) > 2
        assert all(held)
        assert not session.painting.lock.locked()
        assert torch.equal(plain(painter), before)

    def test_a_newer_request_ends_it(self, session: Session) -> None:
        def newer(done: int, total: int, what: str) -> None:
            session.painting._newest["a"] += 1000

        with pytest.raises(Superseded):
            session.explain("a", "unhappy", newer)
        assert not session.painting.lock.locked()
        assert not session._plotting.locked()

    def test_of_language(self, session: Session) -> None:
        said = session.explain("a", "steer")
        assert "<h2>What it is</h2><p>Bias shift: " in said
        assert "<h2>Tokens it promotes</h2>" in said

    def test_a_hinge_is_explained_by_its_sides(self, session: Session) -> None:
        session.images.add(described(HAPPY, session.backbone, "selfattn", "other"))
        with pytest.raises(SliderError, match="explain its sides"):
            session.explain("a", session.make_hinge("happy", "other").key)

    def test_where_there_is_nothing_to_ask_with_that_is_said(self, session: Session, few_prompts: Path) -> None:
        (few_prompts / "some.txt").unlink()
        said = session.explain("a", "unhappy")
        assert "The model was not run: " in said
        assert "there are no prompts in" in said
        assert "<h2>What it is</h2>" in said
        assert "Words it responds to" not in said


# Files


def test_a_composition_with_an_edit_is_a_slider_that_plain_diffusers_loads(
    session: Session, painter: UNetBackbone
) -> None:
    positions = {"happy": 0.7, "unhappy": 0.5}
    file = session.composition(positions)
    pipeline = StableDiffusionPipeline.from_pretrained(painter.base_model, safety_checker=None)
    pipeline.load_lora_weights(str(file))
    again = UNetBackbone(painter.base_model)
    again.use(pipeline)
    wanted = session.draw("a", SPOKEN, positions)
    slider_alone = session.draw("a", SPOKEN, {"happy": 0.7}).turned
    assert is_moved(plain(again, SPOKEN), wanted.turned, slider_alone)
    said = json.loads(formats.load(file).metadata["sliders.composed"])
    assert {part["name"]: part["dial"] for part in said["parts"]} == positions


def test_biases_are_in_no_composition(session: Session) -> None:
    with pytest.raises(SliderError, match=r"steer changes biases as well .*a LoRA file has none.*download the edit"):
        session.composition({"steer": 1.0, "mood": 0.5})
    assert session.composition({"steer": 0.0, "mood": 0.5}).suffix == ".zip"


@pytest.mark.parametrize("key", ["unhappy", "steer"])
def test_an_edit_comes_back_as_it_went(session: Session, key: str) -> None:
    library = session.texts if key == "steer" else session.images
    own = library[key].dial
    file = session.download(key)
    assert session.outputs.holds(file)
    there = formats.load_dial(file)
    assert isinstance(own, Interpolated)
    assert isinstance(there, Interpolated)
    assert distance(own.edit, there.edit) < 1e-6
    assert formats.modality_of(file) == ("text" if key == "steer" else "image")
    entry = session.upload(file)
    assert re.fullmatch(rf"{key}-[0-9a-f]{{6}}", entry.key)
    assert (entry.modality == "text", entry.span) == (key == "steer", (0.0, 1.0))
    if entry.modality == "text":
        assert answers(session, "a", {entry.key: 1.0}) == answers(session, "a", {key: 1.0})
    else:
        one, two = (session.draw("a", SPOKEN, {k: 1.0}).turned for k in (key, entry.key))
        assert apart(one, two) < 1e-6


Damage = Callable[[dict[str, str], dict[str, Tensor]], tuple[dict[str, str], dict[str, Tensor]]]


def shapes_as(said: str) -> Damage:
    return lambda metadata, state: ({**metadata, "sliders.shapes": said}, state)


def without_a_half(metadata: dict[str, str], state: dict[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    first = next(key for key in state if key.endswith(".B"))
    return metadata, {key: value for key, value in state.items() if key != first}


def of_other_layers(metadata: dict[str, str], state: dict[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    shapes = {f"unet.their.{name}": shape for name, shape in json.loads(metadata["sliders.shapes"]).items()}
    renamed = {f"unet.their.{key}": value for key, value in state.items()}
    return {**metadata, "sliders.shapes": json.dumps(shapes)}, renamed


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda m, s: ({k: v for k, v in m.items() if k != "sliders.shapes"}, s), "does not say the shapes of the"),
        (shapes_as("[1"), "sliders.shapes is malformed"),
        (shapes_as('{"unet.a": []}'), "sliders.shapes is malformed: that of 'unet.a' is none of a weight"),
        (shapes_as('{"unet.a": [-1, 2]}'), "is none of a weight"),
        (shapes_as('{"unet.a": [1e999, 2]}'), "sliders.shapes is malformed"),
        (shapes_as("[" * 3000), "sliders.shapes is malformed"),
        (shapes_as('{"unet.a": [2, 2]}'), "which is no factor of an edit"),
        (without_a_half, "do not fit each other"),
        (lambda m, s: (m, {k: v * float("nan") for k, v in s.items()}), "infinite or no numbers"),
        (lambda m, s: ({**m, "sliders.edit": "9"}, s), "no edit of version 1"),
        (lambda m, s: ({**m, **FOREIGN}, s), r"made for another model \(their/model <b>\)"),
        (of_other_layers, "does not fit this page's model.*which this model does not have"),
    ],
)
def test_a_damaged_edit_is_refused_in_words(session: Session, damage: Damage, why: str) -> None:
    file = session.download("unhappy")
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
    said, state = damage(metadata, load_file(file))
    save_file(state, file.with_name("damaged.safetensors"), said)
    with pytest.raises(SliderError, match=why) as refused:
        session.upload(file.with_name("damaged.safetensors"))
    assert str(file.parent) not in str(refused.value)
    assert not session.painting.lock.locked()


def test_an_edit_that_is_cut_off_is_said_to_be(session: Session) -> None:
    with pytest.raises(SliderError, match=r"cut\.safetensors cannot be read: it is cut off"):
        session.upload(cut(session.download("unhappy")))
