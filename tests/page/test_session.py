"""What the page does, without the page: laws of dials, users beside each other, files of strangers."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.page.requests import Axis, Canvas, Speech
from sliders.page.session import Session
from sliders.page.turns import Superseded, Turns
from sliders.runtime.attach import attach
from tests.page.conftest import CANVAS, SEEN, answers, apart, plain

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


def test_what_is_not_read_of_a_prompt_is_said(session: Session) -> None:
    assert session.unread("a person") == ""
    said = session.unread("a person with a hat and a dog and a cat and a house")
    assert "8 more than the 32" in said
    assert said.endswith(".")


def test_schedulers_that_ask_twice_a_step(
    session: Session, painter: UNetBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start step still counts steps, of which the report tells."""
    heun = HeunDiscreteScheduler.from_config(painter.scheduler.config)
    monkeypatch.setattr(painter, "scheduler", heun)
    told: list[tuple[int, int]] = []
    canvas = Canvas("a person", 5, 4, 2.0)
    base = plain(painter, canvas)
    drawn = session.draw("a", canvas, {"happy": 1.0}, lambda done, total, _: told.append((done, total)))
    assert torch.equal(drawn.base, base)
    assert told == 2 * [(step, 4) for step in (0, 0, 1, 1, 2, 2, 3)]
    late = session.draw("a", replace(canvas, start=3), {"happy": 1.0})
    assert 0 < apart(late.turned, base) < apart(drawn.turned, base)


def test_pictures_of_another_size(session: Session, painter: UNetBackbone) -> None:
    canvas = replace(CANVAS, height=24, width=32)
    drawn = session.draw("a", canvas, {"happy": 1.0})
    assert drawn.base.shape == drawn.turned.shape == (3, 24, 32)
    assert session.draw("a", CANVAS, {}).base.shape == (3, 16, 16), "the base of another size is another picture"
    assert session.grid("a", canvas, {}, Axis("happy", -1, 1, 3)).shape[-2:] == (24, 32)
    assert session.compare("a", canvas, "happy", 1.0).change().shape == (24, 32)
    with pytest.raises(SliderError, match="width is 33"):
        session.draw("a", replace(canvas, width=33), {"happy": 1.0})
    with pytest.raises(SliderError, match="the height"):
        replace(canvas, height=100_000)


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
