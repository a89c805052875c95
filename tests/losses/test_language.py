"""The formula on log-probabilities and on hidden states, against slow oracles in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sliders.errors import SliderError
from sliders.losses.erasure import AbstractLoss, HiddenStateLoss, LogProbabilityLoss, Prediction, progress
from tests.factory import normal

WORDS, SUPPORT, LENGTH = 14, 9, 4
DIALS = torch.tensor([-2.0, -0.5, 1.0, 1.5])
MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])


def everything(seed: int) -> Tensor:
    """Random log-probabilities of all words, float64 ``[rows, LENGTH, WORDS]``."""
    return (2 * normal(len(DIALS), LENGTH, WORDS, seed=seed)).log_softmax(-1)


BASE, POSITIVE, NEGATIVE, STUDENT = (everything(seed) for seed in range(1, 5))
LIKELIEST = BASE.topk(SUPPORT, -1).indices


def among(words: Tensor) -> Tensor:
    """Of the supported words alone, as a backbone predicts them."""
    return words.gather(-1, LIKELIEST).float()


def prediction(
    student: Tensor = STUDENT, base: Tensor = BASE, dial: Tensor = DIALS, weight: Tensor | None = MASK, by: float = 1.0
) -> Prediction:
    """What a language model gives to a loss; ``by`` scales the direction."""
    return Prediction(among(student), among(base), by * among(POSITIVE - NEGATIVE), dial, weight)


def wanted(
    row: int, position: int, amount: float, plausible: float, top_k: int = WORDS
) -> tuple[list[int], list[float]]:
    """The plausible words and the probabilities that they should have, by the definition."""
    base = BASE[row, position].exp().tolist()
    moving = [w for w in LIKELIEST[row, position].tolist() if base[w] >= plausible * max(base)]
    direction = (POSITIVE - NEGATIVE)[row, position].tolist()
    raw = [base[w] * math.exp(amount * direction[w]) for w in moving]
    raw = [r if r >= sorted(raw)[-top_k:][0] else 0.0 for r in raw]
    mass = sum(base[w] for w in moving)
    return moving, [mass * r / sum(raw) for r in raw]


@pytest.mark.parametrize("top_k", [1, 2, WORDS])
@pytest.mark.parametrize("plausible", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("eta", [0.5, 1.5])
def test_loss_is_the_divergence_from_the_definition(eta: float, plausible: float, top_k: int) -> None:
    losses = LogProbabilityLoss(eta, plausible, top_k)(prediction())
    for row, dial in enumerate(DIALS.tolist()):
        total = 0.0
        for position in range(LENGTH):
            moving, share = wanted(row, position, eta * dial, plausible, top_k)
            said = STUDENT[row, position].exp().tolist()
            rest, rest_said = 1 - sum(share), 1 - sum(said[w] for w in moving)
            divergence = sum(p * math.log(p / said[w]) for w, p in zip(moving, share, strict=True) if p)
            total += float(MASK[row, position]) * (divergence + rest * math.log(rest / rest_said))
        assert float(losses[row]) == pytest.approx(total / float(MASK[row].sum()) / dial**2, rel=1e-4, abs=1e-5)


def test_target_moves_plausible_words_within_their_mass_and_no_other() -> None:
    loss = LogProbabilityLoss(1.5, 0.2)
    target, counts = loss.target(prediction()), set()
    for row, dial in enumerate(DIALS.tolist()):
        for position in range(LENGTH):
            moving, share = wanted(row, position, 1.5 * dial, 0.2)
            expected = among(BASE)[row, position].clone()
            for word, p in zip(moving, share, strict=True):
                expected[LIKELIEST[row, position].tolist().index(word)] = math.log(p)
            assert_close(target[row, position], expected, atol=1e-5, rtol=1e-5)
            counts.add(len(moving))
    assert len(counts) > 1
    assert max(counts) < SUPPORT, "the control: some words of the support do not move"
    assert_close(target.exp().sum(-1), among(BASE).exp().sum(-1))


def test_an_implausible_word_stays_however_much_it_is_wanted() -> None:
    base = torch.tensor([[[0.7, 0.2, 0.01]]]).log()
    wish = Prediction(base, base, torch.tensor([[[0.0, 0.0, 9.0]]]), torch.ones(1))
    assert_close(LogProbabilityLoss(1.0, 0.05).target(wish), base)
    assert LogProbabilityLoss(1.0, 0.01).target(wish)[0, 0, 2].exp() > 0.8


def test_what_all_words_gain_alike_is_no_direction() -> None:
    same = Prediction(among(BASE), among(BASE), torch.full_like(among(BASE), 3.0), DIALS)
    assert_close(LogProbabilityLoss(1.5).target(same), among(BASE), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", [LogProbabilityLoss(1.5), HiddenStateLoss(1.5)], ids=lambda x: type(x).__name__)
def test_dial_0_asks_for_the_base(loss: AbstractLoss) -> None:
    assert_close(loss.target(prediction(dial=torch.zeros(4))), among(BASE), atol=1e-6, rtol=1e-6)
    assert (loss.target(prediction()) - among(BASE)).abs().max() > 0.1


@pytest.mark.parametrize("loss", [LogProbabilityLoss(1.5), HiddenStateLoss(1.5)], ids=lambda x: type(x).__name__)
def test_a_row_without_direction_is_held_at_the_base(loss: AbstractLoss) -> None:
    still = Prediction(among(BASE), among(BASE), torch.zeros_like(among(BASE)), DIALS, MASK)
    moved = Prediction(among(STUDENT), among(BASE), torch.zeros_like(among(BASE)), DIALS, MASK)
    assert loss(still).abs().max() < 1e-6
    assert loss(moved).min() > 1e-2


@pytest.mark.parametrize("loss", [LogProbabilityLoss(1.5), HiddenStateLoss(1.5)], ids=lambda x: type(x).__name__)
def test_loss_is_zero_at_the_target_and_nowhere_near_it(loss: AbstractLoss) -> None:
    asked = prediction()
    target = loss.target(asked)
    at = Prediction(target, asked.base, asked.direction, DIALS, MASK)
    assert loss(at).abs().max() < 1e-5
    opposite = loss.target(prediction(dial=-DIALS))
    assert loss(Prediction(opposite, asked.base, asked.direction, DIALS, MASK)).min() > 0.05
    assert loss(Prediction(asked.base, asked.base, asked.direction, DIALS, MASK)).min() > 0.01


def test_the_gradient_is_what_is_said_less_what_is_wanted() -> None:
    """On the student's logits, in closed form: q - t on words that move, q - q rest_t / rest_q on the others."""
    logits = STUDENT.clone().requires_grad_()
    LogProbabilityLoss(1.5, 0.2)(prediction(logits.log_softmax(-1))).sum().backward()
    assert logits.grad is not None
    for row, dial in enumerate(DIALS.tolist()):
        for position in range(LENGTH):
            moving, share = wanted(row, position, 1.5 * dial, 0.2)
            said = STUDENT[row, position].exp()
            rest = (1 - sum(share)) / (1 - float(said[moving].sum()))
            gradient = said * (1 - rest)
            gradient[moving] = said[moving] - torch.tensor(share, dtype=torch.float64)
            gradient *= MASK[row, position] / MASK[row].sum() / dial**2
            assert_close(logits.grad[row, position], gradient, atol=1e-5, rtol=1e-3)


def test_following_the_gradient_ends_at_the_target() -> None:
    logits = BASE.clone().requires_grad_()
    loss, optimizer = LogProbabilityLoss(1.5, 0.2), torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss(prediction(logits.log_softmax(-1))).sum().backward()
        optimizer.step()
    row, position = 0, 1
    moving, share = wanted(row, position, 1.5 * float(DIALS[row]), 0.2)
    said = logits.detach()[row, position].softmax(-1)[moving]
    assert said.tolist() == pytest.approx(share, abs=5e-3)
    assert BASE[row, position].exp()[moving].tolist() != pytest.approx(share, abs=5e-2)


@pytest.mark.parametrize("loss", [LogProbabilityLoss(1.5), HiddenStateLoss(1.5)], ids=lambda x: type(x).__name__)
def test_padding_has_no_influence(loss: AbstractLoss) -> None:
    """Whatever stands there: neither on the loss nor on progress, and it gets no gradient."""

    def changed(keep: Tensor) -> tuple[Prediction, Tensor]:
        at = keep[..., None].bool()
        other = [torch.where(at, among(a), among(b)) for a, b in ((STUDENT, POSITIVE), (BASE, NEGATIVE))]
        student = other[0].requires_grad_()
        direction = torch.where(at, among(POSITIVE - NEGATIVE), among(STUDENT))
        return Prediction(student, other[1], direction, DIALS, MASK), student

    junk, student = changed(MASK)
    assert_close(loss(junk), loss(prediction()))
    assert_close(torch.stack(progress(junk, loss)), torch.stack(progress(prediction(), loss)))
    loss(junk).sum().backward()
    assert student.grad is not None
    assert not student.grad[MASK == 0].any()
    assert student.grad[MASK == 1].any(-1).all()
    seen, _ = changed(torch.zeros_like(MASK))
    assert (loss(seen) - loss(prediction())).abs().min() > 1e-3, "the control: at other positions it does matter"


@pytest.mark.parametrize("loss", [LogProbabilityLoss(1.5), HiddenStateLoss(1.5)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("dial", [-60.0, 60.0, 1e-3])
def test_extremes_are_finite(loss: AbstractLoss, dial: float) -> None:
    student = among(STUDENT).requires_grad_()
    asked = prediction(dial=torch.full((4,), dial))
    said = loss(Prediction(student, asked.base, asked.direction, asked.dial, MASK))
    said.sum().backward()
    assert torch.isfinite(said).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("certain", ["base", "student", "both"])
def test_certainty_is_finite(certain: str) -> None:
    """All of the probability on one word, so that nothing is left for the rest."""
    sure, unsure = ((torch.tensor([[[scale, 0.0, -scale]]])).log_softmax(-1) for scale in (200.0, 1.0))
    student = (unsure if certain == "base" else sure).clone().requires_grad_()
    base = unsure if certain == "student" else sure
    loss = LogProbabilityLoss()(Prediction(student, base, torch.tensor([[[-5.0, 5.0, 0.0]]]), torch.ones(1)))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    lost = float(loss.detach())
    assert lost == pytest.approx(0, abs=1e-5) if certain == "both" else lost > 0.1


def test_a_preserved_row_keeps_all_words() -> None:
    """Of the likeliest few, only rows that are to move are made of."""
    asked = prediction()
    direction = asked.direction.clone()
    direction[1] = 0
    target = LogProbabilityLoss(1.5, 0.05, top_k=1).target(
        Prediction(asked.student, asked.base, direction, DIALS, MASK)
    )
    assert_close(target[1], asked.base[1], atol=1e-6, rtol=1e-6)
    assert (target == -math.inf).flatten(1).any(1).tolist() == [True, False, True, True]


def test_what_the_target_forbids_has_finite_gradients_and_progress() -> None:
    student = among(STUDENT).requires_grad_()
    asked = prediction()
    given = Prediction(student, asked.base, asked.direction, DIALS, MASK)
    loss = LogProbabilityLoss(1.5, top_k=1)
    loss(given).sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert all(torch.isfinite(value) for value in progress(given, loss))


def test_a_ramp_weighs_the_first_positions_less() -> None:
    """Linearly, and then all alike."""
    nothing = torch.ones_like(MASK)
    each = torch.stack(
        [LogProbabilityLoss()(prediction(weight=torch.eye(LENGTH)[p].expand(4, -1))) for p in range(LENGTH)], 1
    )
    for ramp, shares in ((3, [1 / 3, 2 / 3, 1, 1]), (8, [1 / 8, 2 / 8, 3 / 8, 4 / 8]), (1, [1, 1, 1, 1])):
        losses = LogProbabilityLoss(ramp=ramp)(prediction(weight=nothing))
        assert_close(losses, (each * torch.tensor(shares)).mean(1))


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"ramp": 0}], ids=str)
def test_a_count_below_1_is_an_error(wrong: dict[str, int]) -> None:
    with pytest.raises(SliderError, match=rf"loss\.{next(iter(wrong))} is 0"):
        LogProbabilityLoss(**wrong)


def test_low_precision_is_compared_in_float32() -> None:
    student, base, direction = (among(x).bfloat16() for x in (STUDENT, BASE, POSITIVE - NEGATIVE))
    for loss in (LogProbabilityLoss(), HiddenStateLoss()):
        assert loss(Prediction(student, base, direction, DIALS, MASK)).dtype == torch.float32


@pytest.mark.parametrize("plausible", [0.0, 1.0, -0.1, 1.5])
def test_a_share_that_is_none_is_an_error(plausible: float) -> None:
    with pytest.raises(SliderError, match=rf"loss\.plausible is {plausible}"):
        LogProbabilityLoss(plausible=plausible)


def test_the_mean_over_positions_by_hand() -> None:
    error = torch.tensor([[1.0, 3.0, 100.0], [2.0, 4.0, 6.0]])
    weight = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    nothing = torch.zeros(2, 3, 1)
    given = Prediction(nothing, nothing, nothing, torch.ones(2), weight)
    assert given.averaged(error).tolist() == [2.0, 5.0]
    without = Prediction(nothing, nothing, nothing, torch.ones(2))
    assert without.averaged(error).tolist() == pytest.approx([104 / 3, 4.0])
    layers = torch.stack([error, 3 * error], 1)  # a weight for all layers of a position
    over_layers = Prediction(nothing, nothing, nothing, torch.ones(2), weight[:, None])
    assert over_layers.averaged(layers).tolist() == [4.0, 10.0]
    empty = Prediction(nothing, nothing, nothing, torch.ones(2), torch.zeros(2, 3))
    assert empty.averaged(error).tolist() == [0.0, 0.0]


def hidden(seed: int) -> Tensor:
    """States ``[rows, layers, LENGTH, width]`` whose layers are of different sizes."""
    return normal(4, 2, LENGTH, 5, seed=seed) * torch.tensor([1.0, 30.0]).double()[:, None, None]


def test_hidden_loss_is_relative_to_each_position_s_size() -> None:
    student, base, direction = hidden(1), hidden(2), hidden(3)
    losses = HiddenStateLoss(0.7)(Prediction(student, base, direction, DIALS, MASK[:, None]))
    for row, dial in enumerate(DIALS.tolist()):
        total = 0.0
        for layer in range(2):
            for position in range(LENGTH):
                at = (row, layer, position)
                error = (student[at] - base[at] - 0.7 * dial * direction[at]).norm() / base[at].norm()
                total += float(MASK[row, position]) * float(error) ** 2
        assert float(losses[row]) == pytest.approx(total / (2 * float(MASK[row].sum())) / dial**2, rel=1e-5)


def test_hidden_loss_leads_the_student_to_the_target() -> None:
    base, direction = hidden(2), hidden(3)
    student = base.clone().requires_grad_()
    HiddenStateLoss(1.0)(Prediction(student, base, direction, DIALS, MASK[:, None])).sum().backward()
    assert student.grad is not None
    along = (-student.grad * DIALS[:, None, None, None] * direction).sum(-1)
    assert ((along > 0) == MASK[:, None].expand_as(along).bool()).all()


LOSSES: dict[str, AbstractLoss] = {"words": LogProbabilityLoss(1.5, 0.2), "hidden": HiddenStateLoss(1.5)}


@pytest.mark.parametrize("case", LOSSES)
def test_progress_at_the_target_and_at_the_base(case: str) -> None:
    loss, asked = LOSSES[case], prediction()
    for share in (0.0, 1.0, 0.25, -1.0):
        student = asked.base + share * (loss.target(asked) - asked.base)
        effect, stray = progress(Prediction(student, asked.base, asked.direction, DIALS, MASK), loss)
        assert (float(effect), float(stray)) == pytest.approx((share, 0), abs=1e-3)


def test_progress_weighs_words_by_their_probability() -> None:
    """Of two words that may move, got 1 of the asked 1 where p is 0.6, and nothing where p is 0.3."""
    base = torch.tensor([[[0.6, 0.3, 0.001]]]).log()
    direction = torch.tensor([[[1.0, -1.0, 0.0]]])
    loss = LogProbabilityLoss(1.0, 0.05)
    change = (loss.target(Prediction(base, base, direction, torch.ones(1))) - base)[0, 0]
    student = base.clone()
    student[..., 0] += change[0]
    effect, stray = progress(Prediction(student, base, direction, torch.ones(1)), loss)
    asked, got = 0.6 * change[0] ** 2 + 0.3 * change[1] ** 2, 0.6 * change[0] ** 2
    assert float(effect) == pytest.approx(float(got / asked), rel=1e-4)
    left = 0.6 * (change[0] * (1 - effect)) ** 2 + 0.3 * (change[1] * effect) ** 2
    assert float(stray) == pytest.approx(float((left / asked).sqrt()), rel=1e-4)
    student[..., 2] += 5
    again = progress(Prediction(student, base, direction, torch.ones(1)), loss)
    assert_close(torch.stack(again), torch.stack([effect, stray]))  # an implausible word is none of it
    everything_counts = progress(Prediction(student, base, direction, torch.ones(1)), HiddenStateLoss(1.0))
    assert float(everything_counts[1]) > 1


@pytest.mark.parametrize("offset", [0.0, -1000.0])
def test_progress_of_hidden_states_of_any_size(offset: float) -> None:
    """Some have coordinates far below 0, which are no forbidden words."""
    base, direction, loss = hidden(2) + offset, hidden(3), HiddenStateLoss(1.0)
    asked = Prediction(base, base, direction, DIALS, MASK[:, None])
    half = base + 0.5 * (loss.target(asked) - base)
    effect, stray = progress(Prediction(half, base, direction, DIALS, MASK[:, None]), loss)
    assert (float(effect), float(stray)) == pytest.approx((0.5, 0), abs=1e-3)


@pytest.mark.parametrize("case", LOSSES)
def test_progress_ignores_preserved_rows(case: str) -> None:
    some, loss = prediction(), LOSSES[case]
    both = Prediction(
        torch.cat([some.student, some.student + 3]),
        torch.cat([some.base, some.base]),
        torch.cat([some.direction, torch.zeros_like(some.direction)]),
        torch.cat([DIALS, DIALS]),
        torch.cat([MASK, MASK]),
    )
    assert_close(torch.stack(progress(both, loss)), torch.stack(progress(some, loss)))
    alone = Prediction(some.student, some.base, torch.zeros_like(some.direction), DIALS, MASK)
    assert [float(x) for x in progress(alone, loss)] == [0, 0]
