"""What `docs/derivations/explain.md` states: which element an update was, without being told."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from sliders.algebra.change import Change, between, of_factors
from sliders.algebra.closed_forms import erase_output, onto, redirect, steer_input, steer_output
from sliders.algebra.edit import Translation
from sliders.algebra.element import Element
from sliders.algebra.explain import Inputs, Verdict, diagnose, matches, powers
from sliders.algebra.kinds import fits
from sliders.algebra.lowrank import LowRank
from sliders.algebra.nearest import nearest
from sliders.algebra.slider import Slider
from tests.algebra.cases import METHODS, factored, in_gauge, oblique, rome_element
from tests.factory import lowrank, normal

TALL, WIDE, SQUARE = (40, 24), (24, 40), (32, 32)
IN = 24


def layer(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """A weight of uneven spectrum and a bias, as trained ones have."""
    weight = normal(shape[0], shape[1], seed=100 + seed) @ torch.diag(torch.linspace(0.2, 2, shape[1]).double())
    return weight / shape[1] ** 0.5, normal(shape[0], seed=200 + seed)


def told(elements: Sequence[Element], dtype: torch.dtype = torch.float64) -> list[Change]:
    """The layers before and after, as two checkpoints have them; nothing else is passed on."""
    made = []
    for k, element in enumerate(elements):
        weight, bias = (tensor.to(dtype) for tensor in layer(element.shape, k))
        edited, shifted = element.apply(weight, bias)
        made.append(between(f"block.{k}.fc", weight, edited, bias, shifted))
    return made


def drawn(method: str, shape: tuple[int, ...], seed: int = 3) -> Element:
    return METHODS[method].draw(shape, seed)[0]


def one_kind(verdict: Verdict) -> str:
    assert len(verdict.parts) == 1, verdict.parts
    return verdict.kind


@pytest.mark.parametrize(
    ("method", "shape", "kind"),
    [
        ("steering", WIDE, "bias shift"),
        ("steering", TALL, "bias shift"),
        ("input steering", TALL, "input shift"),
        ("ablation", WIDE, "left orthogonal projection"),
        ("ablation", TALL, "left orthogonal projection"),
        ("ablation", SQUARE, "left orthogonal projection"),
        ("leace", WIDE, "left projection about a mean"),
        ("input leace", TALL, "right projection"),
        ("uce", TALL, "right factor"),
        ("translation", WIDE, "translation"),
        ("translation", TALL, "translation"),
        ("rome", WIDE, "translation"),  # from weights alone
        ("memit", TALL, "translation"),
    ],
)
def test_one_layer(method: str, shape: tuple[int, ...], kind: str) -> None:
    changes = told([drawn(method, shape)])
    verdict = diagnose(changes)
    assert one_kind(verdict) == kind
    rank = 1 if method in ("steering", "input steering", "ablation", "rome") else 2
    assert verdict.parts[0].rank == rank
    if verdict.parts[0].fit:
        assert verdict.parts[0].fit.residual < 1e-6
        assert not verdict.parts[0].also


@pytest.mark.parametrize(("method", "shape"), [("leace", TALL), ("input leace", WIDE), ("uce", WIDE), ("uce", SQUARE)])
def test_what_one_weight_does_not_tell_is_not_told(method: str, shape: tuple[int, ...]) -> None:
    """Statement 2: a weight with fewer rows than columns has every update of its columns' space as a right factor."""
    assert one_kind(diagnose(told([drawn(method, shape)]))) == "translation"


@pytest.mark.parametrize("method", ["leace", "input leace"])
def test_the_side_of_a_projection_of_a_square_weight_is_not_told(method: str) -> None:
    """Statement 3: ``(I - P) W = W (I - W^-1 P W)``."""
    part = diagnose(told([drawn(method, SQUARE)])).parts[0]
    assert {part.kind, *part.also} == {"right projection", "left projection about a mean"}


def shared(make: Callable[[int], Element], shapes: Sequence[tuple[int, int]]) -> list[Element]:
    return [make(k) for k in range(len(shapes))]


def uce_factor(n: int, seed: int = 0) -> LowRank:
    kept = normal(n, 6, seed=seed + 3)
    c = 0.3 * torch.eye(n).double() + kept @ kept.T
    return redirect(normal(n, 2, seed=seed + 1), normal(n, 2, seed=seed + 2), c, (n, n)).right


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_layers_that_share_a_factor_tell_what_one_does_not(dtype: torch.dtype) -> None:
    """Statement 4: all layers that read the same are one tall layer."""
    shapes = [(12, IN), (20, IN), (16, IN)]
    right = uce_factor(IN)
    elements = [Element.of(shape, right=right) for shape in shapes]
    verdict = diagnose(told(elements, dtype))
    assert one_kind(verdict) == "right factor"
    assert len(verdict.parts[0].modules) == 3
    assert verdict.parts[0].rank == 2
    apart = [Element.of(shape, right=uce_factor(IN, 10 * k)) for k, shape in enumerate(shapes)]
    assert one_kind(diagnose(told(apart, dtype))) == "translation"  # control: each has its own


def test_one_direction_ablated_from_all_layers_that_write_it_is_one_part() -> None:
    v, shapes = normal(IN, 1, seed=5), [(IN, 30), (IN, IN), *[(IN, 12)] * 20]
    verdict = diagnose(told([erase_output(onto(v), None, shape) for shape in shapes]))
    assert one_kind(verdict) == "left orthogonal projection"
    assert len(verdict.parts[0].modules) == len(shapes)
    assert verdict.parts[0].fit is not None
    assert verdict.parts[0].fit.numbers == IN - 1
    assert not verdict.parts[0].also  # an oblique projection holds too, with more numbers


def test_a_vector_added_to_what_layers_read_is_one_shift() -> None:
    """``b -> b + W v`` in three narrow layers, of which none tells it alone."""
    v, shapes = normal(IN, seed=5), [(12, IN), (10, IN), (16, IN)]
    verdict = diagnose(told([steer_input(v, shape) for shape in shapes]))
    assert one_kind(verdict) == "input shift"
    other = diagnose(told([steer_output(normal(shape[0], seed=k), shape) for k, shape in enumerate(shapes)]))
    assert one_kind(other) == "bias shift"  # control


def test_a_mixture_is_taken_apart() -> None:
    elements = [
        drawn("leace", WIDE),
        *(Element.of((30, IN), right=uce_factor(IN)) for _ in range(2)),
        drawn("steering", (10, 7)),
        drawn("translation", (26, 28)),
    ]
    verdict = diagnose(told(elements))
    found = {part.kind: len(part.modules) for part in verdict.parts}
    assert found == {"left projection about a mean": 1, "right factor": 2, "bias shift": 1, "translation": 1}
    assert sum(part.share for part in verdict.parts) == pytest.approx(1)


def like(weight: Tensor, rank: int, seed: int) -> LowRank:
    """An update that writes and reads more along the weight's own directions than along others, as trained ones do."""
    out, inputs = weight.shape
    up = weight @ normal(inputs, rank, seed=seed) + 0.3 * normal(out, rank, seed=seed + 2)
    down = normal(rank, out, seed=seed + 1) @ weight + 0.3 * normal(rank, inputs, seed=seed + 3)
    return LowRank(up, down, (out, inputs))


def many(update: Callable[[Tensor, int], Tensor], dtype: torch.dtype = torch.float64) -> list[Change]:
    weights = [layer((48, 40), k)[0].to(dtype) for k in range(12)]
    return [between(f"fc{k}", w, (w.double() + update(w.double(), k)).to(dtype)) for k, w in enumerate(weights)]


def test_random_updates_are_called_random_and_trained_ones_not() -> None:
    size = 0.05
    trained = diagnose(many(lambda w, k: size * like(w, 2, k).dense() / like(w, 2, k).norm()))
    assert one_kind(trained) == "translation"
    assert trained.alignment is not None
    assert not trained.alignment.by_chance
    factors = diagnose(many(lambda w, k: size * lowrank((48, 40), 2, k).dense() / lowrank((48, 40), 2, k).norm()))
    assert one_kind(factors) == "random"
    assert factors.parts[0].rank == 2
    dense = diagnose(many(lambda w, k: size * normal(48, 40, seed=k) / (48 * 40) ** 0.5))
    assert one_kind(dense) == "random"
    assert dense.parts[0].rank == 0
    stored = diagnose([between("fc", w := layer((48, 40), 1)[0], w.bfloat16())])
    assert one_kind(stored) == "rounding"


def test_the_same_verdict_in_every_gauge_and_without_the_dense_weights() -> None:
    weights = [layer((30, IN), k)[0] for k in range(2)]
    moved = [Element.of((30, IN), right=uce_factor(IN)).displacement(w, None) for w in weights]
    verdicts = [
        diagnose([of_factors(f"fc{k}", part, w) for k, (part, w) in enumerate(zip(parts, weights, strict=True))])
        for parts in (moved, [in_gauge(part, 3) for part in moved], [part + in_gauge(part, 4) * 0.0 for part in moved])
    ]
    assert {verdict.kind for verdict in verdicts} == {"right factor"}
    for other in verdicts[1:]:
        for one, two in zip(verdicts[0].tried, other.tried, strict=True):
            assert (one.kind, one.modules, one.numbers) == (two.kind, two.modules, two.numbers)
            assert one.residual == pytest.approx(two.residual, rel=1e-5, abs=1e-9)


def test_without_a_base_no_kind_is_claimed() -> None:
    verdict = diagnose([of_factors("fc", lowrank((30, 20), 3, 1))])
    assert one_kind(verdict) == "translation"
    assert verdict.parts[0].rank == 3
    assert "not known" in verdict.parts[0].evidence
    assert not verdict.tried


def rome_change(c: Tensor, seed: int, shape: tuple[int, int] = (30, 60)) -> tuple[Change, Tensor]:
    """A ROME edit at a key that the layer reads, and the key."""
    key = torch.linalg.cholesky(c) @ normal(len(c), seed=seed)
    element = rome_element(key, torch.linalg.solve(c, key), normal(shape[0], seed=seed + 1), shape)
    return told([element])[0], key


@pytest.mark.parametrize("seed", range(3))
def test_keys_tell_a_write_from_other_updates_of_its_rank(seed: int) -> None:
    """Statement 5: closed forms read ``C^-1 k``, gradients sums of inputs, random factors neither."""
    root = torch.diag(torch.logspace(-2, 1, 60).double())
    c, weight = root @ root, layer((30, 60), 0)[0]
    written, key = rome_change(c, seed)
    others = normal(40, 60, seed=seed + 50) @ root
    read = Inputs(c, (*(f"word {k}" for k in range(40)), "France"), torch.cat([others, key[None]]))
    gradient = LowRank(normal(30, 2, seed=seed), normal(2, 60, seed=seed + 5) @ root, (30, 60))
    one_step = LowRank(normal(30, 1, seed=seed), key[None], (30, 60))  # of gradient descent, at that very key
    chance = lowrank((30, 60), 2, seed)
    for update, kind in ((None, "write"), (gradient, "translation"), (one_step, "translation"), (chance, "random")):
        change = written if update is None else of_factors("block.0.fc", update, weight)
        found, turned = (matches(one, read) for one in (change, of_factors("x", in_gauge(change.update, 3), weight)))
        torch.testing.assert_close(found, turned, atol=1e-6, rtol=1e-6)
        assert (float(found[-1]) > 59.9) is (kind == "write")  # of 60 inputs
        assert float(found[:-1].max()) < 25
        if kind != "random":  # so few directions are not called random by the weights
            assert one_kind(diagnose([change], lambda modules: dict.fromkeys(modules, read))) == kind
    verdict = diagnose([written], lambda modules: dict.fromkeys(modules, read))
    assert "the keys of France:" in verdict.parts[0].evidence
    assert one_kind(diagnose([written])) == "translation"  # control: without what it reads it cannot be known
    blind = Inputs(c, read.words[:-1], others)
    assert one_kind(diagnose([written], lambda modules: dict.fromkeys(modules, blind))) != "write"


@pytest.mark.parametrize(("power", "seed"), itertools.product((0, 1), range(3)))
def test_the_covariance_tells_an_optimiser_s_directions_from_random_ones(power: int, seed: int) -> None:
    root = torch.diag(torch.logspace(-2, 1, 60).double())
    update = LowRank(normal(30, 2, seed=seed), normal(2, 60, seed=seed + 5) @ root.matrix_power(power), (30, 60))
    change = of_factors("fc", update, layer((30, 60), 0)[0])
    likely = powers(change, root @ root)
    assert abs(max(likely, key=lambda p: likely[p]) - power) <= 0.25
    turned = of_factors("fc", in_gauge(change.update, 3))
    assert likely == pytest.approx(powers(turned, root @ root), abs=1e-4)


def test_nearest_by_subspace_and_as_a_mixture() -> None:
    parts = {name: Translation({"a": lowrank((20, 12), 2, k), "b": lowrank((8, 20), 1, 50 + k)}) for k, name in
             enumerate(("x", "y", "z"))}  # fmt: skip
    library = [Slider(name, update) for name, update in parts.items()]
    mixture = parts["x"] * -0.5 + parts["z"] * 2.0
    found = nearest(mixture, library)
    shares = {one.name: one.coefficient for one in found.neighbours}
    assert found.neighbours[0].name == "z"
    assert shares == pytest.approx({"x": -0.5, "y": 0.0, "z": 2.0}, abs=1e-9)
    assert found.residual < 1e-6
    outside = nearest(mixture + Translation({"c": lowrank((9, 9), 1, 77)}), library)
    assert outside.residual > 0.1  # control: what no known slider changes is left
    turned = nearest(Translation({m: in_gauge(u, 3) for m, u in mixture.items()}), library)
    for one, two in zip(found.neighbours, turned.neighbours, strict=True):
        assert one.cosine == pytest.approx(two.cosine)
        assert one.columns == pytest.approx(two.columns)
        assert one.coefficient == pytest.approx(two.coefficient, abs=1e-9)
    apart = nearest(parts["x"] * 3.0, library).neighbours[0]
    assert apart.cosine == pytest.approx(1)
    assert apart.columns == pytest.approx(1)


def test_an_orthogonal_eraser_is_not_taken_for_an_oblique_one() -> None:
    """The fewest numbers win where both fit."""
    found = fits(told([erase_output(factored(oblique(24, 2, 1)), None, WIDE)]))
    kinds = {fit.kind: fit for fit in found}
    assert kinds["left projection"].gain > 0
    assert kinds["left orthogonal projection"].gain == 0
    both = {fit.kind: fit for fit in fits(told([drawn("ablation", WIDE)]))}
    assert both["left orthogonal projection"].gain > both["left projection"].gain > 0
