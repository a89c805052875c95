"""What the page does, without the page: laws of dials, users beside each other, files of strangers."""

import itertools
import json
import pickle
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from demo.library import Library
from demo.requests import Axis, Canvas, Speech
from demo.session import Session
from demo.turns import Superseded, Turns
from sliders import formats
from sliders.attach import attach
from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.evaluation.sampling import Sampling, Scene, sample
from sliders.formats import diffusers, peft
from tests.demo.conftest import HAPPY, described

CANVAS = Canvas("a person", 3, 4, 2.0)
SEEN = 1e-3
"""A change of a picture that no rounding makes."""


def plain(painter: UNetBackbone, canvas: Canvas = CANVAS) -> Tensor:
    """The base's picture, made without the demo."""
    return sample(painter, [Scene(canvas.prompt, canvas.seed)], Sampling(canvas.steps, canvas.guidance))[0]


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def answers(session: Session, user: str, positions: dict[str, float], tokens: int = 12) -> tuple[str, str]:
    """The finished texts."""
    *_, last = session.write(user, Speech("how was your day", tokens=tokens, temperature=0.0), positions)
    return last


# Dials


def test_all_dials_at_0_is_the_base_bit_for_bit_also_after_others_have_turned(
    session: Session, painter: UNetBackbone
) -> None:
    wanted = plain(painter)
    moved = session.draw("a", CANVAS, {"happy": 1.5, "words": -1.0})
    assert apart(moved.turned, wanted) > SEEN
    assert torch.equal(moved.base, wanted)
    still = session.draw("a", CANVAS, {"happy": 0.0, "other": 0.0, "words": 0.0})
    assert torch.equal(still.turned, wanted)
    assert torch.equal(plain(painter), wanted)


@pytest.mark.parametrize("key", ["happy", "words"])
def test_a_dial_is_what_attaching_the_slider_gives(session: Session, painter: UNetBackbone, key: str) -> None:
    dial = session.images[key].dial
    with attach(painter, [dial], {key: 0.7}):
        wanted = plain(painter)
    assert apart(session.draw("a", CANVAS, {key: 0.7}).turned, wanted) < 1e-5


def test_the_start_step_is_between_the_slider_and_the_base(session: Session, painter: UNetBackbone) -> None:
    base, whole = plain(painter), session.draw("a", CANVAS, {"happy": 1.0}).turned
    sizes = [
        apart(session.draw("a", Canvas("a person", 3, 4, 2.0, start), {"happy": 1.0}).turned, base)
        for start in (0, 1, 3, 4)
    ]
    assert sizes[0] == apart(whole, base)
    assert sizes[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(sizes))


def test_a_grid_holds_the_pictures_that_single_requests_give(session: Session) -> None:
    grid = session.grid("a", CANVAS, {"words": 0.5}, Axis("happy", -1, 1, 3), Axis("other", 0, 1, 2))
    assert grid.shape[:2] == (3, 2)
    for i, x in enumerate((-1.0, 0.0, 1.0)):
        for j, y in enumerate((0.0, 1.0)):
            single = session.draw("a", CANVAS, {"words": 0.5, "happy": x, "other": y}).turned
            assert apart(grid[i, j], single) < 1e-4


def test_a_hinge_is_its_left_side_below_0_and_its_right_side_above(session: Session) -> None:
    made = session.make_hinge("happy", "other")
    assert made.ends == (session.images["happy"].ends[0], session.images["other"].ends[1])
    for side, position in (("happy", -1.0), ("other", 1.0)):
        hinged = session.draw("a", CANVAS, {made.key: position}).turned
        assert apart(hinged, session.draw("a", CANVAS, {side: position}).turned) < 1e-5
    for left, right, why in (
        ("happy", "happy", "both sides"),
        (made.key, "happy", "already"),
        ("mood", "happy", "no slider"),
    ):
        with pytest.raises(SliderError, match=why):
            session.make_hinge(left, right)


def test_an_entry_says_its_ends_and_its_range(session: Session) -> None:
    entry = session.images["happy"]
    assert entry.ends == ("sad, dog", "happy")
    assert entry.span == (-2.0, 2.0)
    assert session.texts["mood"].ends == ("sad", "happy")


# Users beside each other


def test_two_users_at_the_same_time_see_their_own_dials_alone(session: Session, painter: UNetBackbone) -> None:
    dials: dict[str, dict[str, float]] = {"a": {"happy": 1.0}, "b": {"other": -1.5}, "c": {}}
    wanted = {user: session.draw(user, CANVAS, positions).turned for user, positions in dials.items()}
    assert apart(wanted["a"], wanted["b"]) > SEEN
    seen: dict[str, list[Tensor]] = {user: [] for user in dials}

    def use(user: str) -> None:
        for _ in range(4):
            seen[user].append(session.draw(user, CANVAS, dials[user]).turned)

    threads = [threading.Thread(target=use, args=(user,)) for user in dials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for user, pictures in seen.items():
        assert len(pictures) == 4
        assert all(torch.equal(picture, wanted[user]) for picture in pictures)


def test_answers_that_grow_side_by_side_are_those_that_grow_alone(session: Session) -> None:
    speech = Speech("how was your day", tokens=12, temperature=0.0)
    alone = {user: answers(session, user, {"mood": dial}) for user, dial in (("a", 3.0), ("b", -3.0))}
    assert alone["a"][0] == alone["b"][0]
    assert len({alone["a"][1], alone["b"][1], alone["a"][0]}) > 1
    streams = {"a": session.write("a", speech, {"mood": 3.0}), "b": session.write("b", speech, {"mood": -3.0})}
    last: dict[str, tuple[str, str]] = {}
    while streams:
        for user in list(streams):
            if (text := next(streams[user], None)) is None:
                del streams[user]
            else:
                last[user] = text
    assert last == alone


def test_a_newer_request_ends_the_older_one_of_the_same_user_alone(session: Session) -> None:
    begun, stopped = threading.Event(), []

    def slowly(done: int, total: int, what: str) -> None:
        begun.set()
        newer.wait(5) if done else None

    newer = threading.Event()

    def old(user: str) -> None:
        try:
            session.draw(user, Canvas("a dog", 1, 30), {"happy": 1.0}, slowly)
        except Superseded:
            stopped.append(user)

    thread = threading.Thread(target=old, args=("a",))
    thread.start()
    begun.wait(5)
    session.painting._newest["a"] += 1000  # what `take` of a newer request does first
    newer.set()
    thread.join(10)
    assert stopped == ["a"]
    assert not session.painting.lock.locked()
    session.draw("b", CANVAS, {"happy": 1.0})


def test_a_turn_ends_with_the_next_of_its_user_and_frees_the_model() -> None:
    turns = Turns()
    with turns.take("a") as first:
        with turns.take("b") as other, other.alone():
            other.check()
        first.check()
        with turns.take("a") as second:
            with pytest.raises(Superseded), first.alone():
                pass
            with second.alone():
                pass
    assert not turns.lock.locked()


def test_stopping_ends_an_answer(session: Session) -> None:
    stream = session.write("a", Speech("how was your day", tokens=40, temperature=0.0), {"mood": 1.0})
    next(stream)
    session.stop("a")
    assert list(stream) == []
    assert not session.speaking.lock.locked()


# Words


def test_the_base_answers_as_it_does_without_the_demo(session: Session, speaker: CausalLMBackbone) -> None:
    asked = speaker.encode(["\n\nhow was your day"])
    wanted = speaker.text(speaker.respond(asked, [0], 12, 0.0))[0]
    base, turned = answers(session, "a", {"mood": 3.0})
    assert base.strip() == wanted
    with attach(speaker, [session.texts["mood"].dial], {"mood": 3.0}):
        assert turned.strip() == speaker.text(speaker.respond(asked, [0], 12, 0.0))[0]
    assert turned != base
    assert answers(session, "a", {"mood": 0.0}) == (base, base)


def test_without_the_template_the_message_is_continued(session: Session, speaker: CausalLMBackbone) -> None:
    *_, (plain_text, _) = session.write("a", Speech("a person is", chat=False, tokens=8, temperature=0.0), {})
    state = speaker.respond(speaker.encode_plain(["a person is"]), [0], 8, 0.0)
    assert plain_text.strip() == speaker.text(state)[0]


# Files of strangers


@pytest.fixture
def theirs(session: Session, painter: UNetBackbone, tmp_path: Path) -> Path:
    """A good file."""
    file = tmp_path / "up" / "their slider.safetensors"
    diffusers.save(described(HAPPY, painter, "xattn", "theirs"), file)
    return file


def changed(file: Path, metadata: dict[str, str] | None = None, scale: float = 1.0, rename: str = "") -> Path:
    """A copy with something else in it."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        said = {**(opened.metadata() or {}), **(metadata or {})}
    state = {rename + key if rename else key: value * scale for key, value in load_file(file).items()}
    save_file(state, file.with_name("changed.safetensors"), said)
    return file.with_name("changed.safetensors")


def test_an_uploaded_slider_is_a_dial_like_any_other(session: Session, theirs: Path) -> None:
    entry = session.upload(theirs)
    assert re.fullmatch(r"theirs-[0-9a-f]{6}", entry.key)
    assert entry.ends == ("sad, dog", "happy")
    own = session.draw("a", CANVAS, {"happy": 1.0}).turned
    assert apart(session.draw("a", CANVAS, {entry.key: 1.0}).turned, own) < 1e-6
    assert session.images.opening == ["happy", "other", "words"]  # other users do not see it
    assert session.upload(theirs).key == entry.key


def pickled(file: Path) -> Path:
    made = file.with_name("model.pt")
    made.write_bytes(pickle.dumps({"a": 1}))
    return made


def disguised(file: Path) -> Path:
    made = file.with_name("model.safetensors")
    made.write_bytes(pickle.dumps({"a": list(range(100))}))
    return made


def cut(file: Path) -> Path:
    made = file.with_name("cut.safetensors")
    made.write_bytes(file.read_bytes()[:-100])
    return made


def large(file: Path) -> Path:
    made = file.with_name("large.safetensors")
    made.write_bytes(bytes(2**21))
    return made


def adapter(file: Path) -> Path:
    made = file.with_name("adapter_model.safetensors")
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 16)}, made)
    return made


FOREIGN = {"sliders.base_fingerprint": "0" * 32, "sliders.base_model": "their/model\n<b>"}


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (pickled, r"model\.pt is no \.safetensors file.*can run programs"),
        (disguised, r"model\.safetensors cannot be read"),
        (cut, r"cut\.safetensors cannot be read: it is cut off"),
        (large, r"2 MB; at most 1 MB"),
        (adapter, "strength stands in a second file"),
        (lambda file: changed(file, FOREIGN), r"made for another model \(their/model <b>\)"),
        (lambda file: changed(file, rename="unet."), "does not fit this page's model.*which this model does not have"),
        (lambda file: changed(file, scale=float("nan")), "infinite or no numbers"),
        (lambda file: changed(file, {"lora_adapter_metadata": "{"}), "lora_adapter_metadata is not JSON"),
    ],
)
def test_what_is_no_slider_of_this_model_is_refused_in_words(
    session: Session, theirs: Path, break_it: Callable[[Path], Path], why: str
) -> None:
    file = break_it(theirs)
    with pytest.raises(SliderError, match=why) as refused:
        session.upload(file)
    assert str(theirs.parent) not in str(refused.value)  # nothing of this machine's paths
    assert not session.painting.lock.locked()


def test_a_concept_in_an_uploaded_file_opens_no_other_file(
    session: Session, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password\n")
    said = {**HAPPY.to_dict(), "contexts": str(secret), "preserve": str(secret)}
    said["measure"] = {"attribute": "a", "value": "b", "prompts": str(secret)}
    opened: list[Path] = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: opened.append(path) or read_text(path, *a, **k))
    entry = session.upload(changed(theirs, {"sliders.concept": json.dumps(said), "sliders.name": "../../x<script>"}))
    assert re.fullmatch(r"x-script-[0-9a-f]{6}", entry.key)
    assert secret not in opened
    assert "secret" not in json.dumps(dict(entry.sides[0].metadata))


def test_a_language_slider_comes_back_as_it_went(session: Session, speaker: CausalLMBackbone, tmp_path: Path) -> None:
    packed = session.download("mood")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "peft")
    entry = session.upload(tmp_path / "peft" / peft.WEIGHTS)
    assert entry.text
    assert answers(session, "a", {entry.key: 3.0}) == answers(session, "a", {"mood": 3.0})
    lm = AutoModelForCausalLM.from_pretrained(speaker.base_model)
    adapted = PeftModel.from_pretrained(lm, str(tmp_path / "peft"))
    ids = speaker.tokenizer("how was your day", return_tensors="pt").input_ids
    with attach(speaker, [session.texts["mood"].dial], {"mood": 1.0}), torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, speaker.lm(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_composition_is_one_file_that_plain_diffusers_loads(session: Session, painter: UNetBackbone) -> None:
    positions = {"happy": 1.2, "other": -0.7, "words": 0.4}
    hinge = session.make_hinge("happy", "other")
    positions[hinge.key] = -0.5
    file = session.composition(positions)
    assert file.suffix == ".safetensors"
    assert session.shelf.holds(file)
    pipeline = StableDiffusionPipeline.from_pretrained(painter.base_model, safety_checker=None)
    pipeline.load_lora_weights(str(file))
    again = UNetBackbone(painter.base_model)
    again.use(pipeline)
    wanted = session.draw("a", CANVAS, positions)
    assert apart(plain(again), wanted.turned) < 1e-4
    assert apart(wanted.turned, wanted.base) > SEEN
    said = json.loads(formats.load(file).metadata["sliders.composed"])
    assert {part["name"]: part["dial"] for part in said["parts"]} == positions
    with pytest.raises(SliderError, match="nothing to download"):
        session.composition({"happy": 0.0})
    with pytest.raises(SliderError, match="do not compose"):
        session.composition({"happy": 1.0, "mood": 1.0})


def test_a_hinge_is_downloaded_as_a_folder_of_two(session: Session, tmp_path: Path) -> None:
    made = session.make_hinge("happy", "other")
    with zipfile.ZipFile(session.download(made.key)) as archive:
        archive.extractall(tmp_path / "hinge")
    loaded = formats.load_dial(tmp_path / "hinge")
    assert loaded.name == made.key


def test_old_files_make_room_and_names_cannot_leave_the_shelf(session: Session) -> None:
    session.shelf._kept = 3
    files = [session.download("happy") for _ in range(5)]
    assert [file.is_file() for file in files] == [False, False, True, True, True]
    assert session.shelf.holds(session.shelf.place("../../../etc/x y"))


def test_uploads_are_limited_in_number(session: Session, painter: UNetBackbone) -> None:
    library = Library([described(HAPPY, painter, "xattn")], kept=2)
    keys = [library.add(described(HAPPY, painter, "xattn", f"s{k}"), bytes([k])).key for k in range(3)]
    assert [entry.key for entry in library.entries(keys)] == keys[1:]
    with pytest.raises(SliderError, match="no slider"):
        library[keys[0]]


# Limits


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda s: Canvas("x" * 301), "at most 300"),
        (lambda s: Canvas("x", steps=51), "from 1 to 50"),
        (lambda s: Canvas("x", seed=-1), "the seed"),
        (lambda s: Canvas("x", seed=1.5), "whole number"),  # pyright: ignore[reportArgumentType]
        (lambda s: Canvas("x", guidance=float("nan")), "guidance"),
        (lambda s: Canvas("x", steps=4, start=5), "start step"),
        (lambda s: Axis("happy", count=99), "number of positions"),
        (lambda s: Speech(" "), "empty"),
        (lambda s: Speech("x", tokens=9999), "tokens"),
        (lambda s: s.draw("a", CANVAS, {"happy": 99.0}), "dial of happy"),
        (lambda s: s.draw("a", CANVAS, {"happy": float("inf")}), "dial of happy"),
        (lambda s: s.draw("a", CANVAS, {"nobody": 1.0}), "no slider 'nobody'"),
        (lambda s: s.grid("a", CANVAS, {}, Axis("happy"), Axis("happy")), "same dial"),
        (lambda s: s.compare("a", CANVAS, "happy", 0.0), "away from 0"),
        (lambda s: s.relations(["happy", "mood"]), "different models"),
        (lambda s: s.relations(["happy"]), "two sliders or more"),
        (lambda s: s.measure("a", CANVAS, [], 2), "choose 1 to"),
        (lambda s: s.dose("a", CANVAS, ["happy"], 2), "no judge"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_in_words(
    session: Session, ask: Callable[[Session], object], why: str
) -> None:
    with pytest.raises(SliderError, match=why):
        ask(session)
    assert not session.painting.lock.locked()
    assert not session._plotting.locked()
