"""All-pairs quantities from factors against their definitions on dense updates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.pairs import Pairs, pairwise, pairwise_layers
from sliders.algebra.slider import Slider
from sliders.errors import SliderError
from tests.algebra.cases import covariance, in_gauge
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**16)
SHAPES = {"fc": (6, 5), "twin": (6, 5), "conv": (4, 3, 2, 2)}
QUANTITIES = ("cosine", "columns", "rows", "writing", "reading", "interference")


def sliders(seed: int) -> list[Slider]:
    """Of several ranks; the third lacks a module."""
    made = [
        Slider(
            str(k), Translation({m: lowrank(s, k + 1, seed + 10 * k + i) for i, (m, s) in enumerate(SHAPES.items())})
        )
        for k in range(3)
    ]
    made[2] = Slider("2", Translation({m: u for m, u in made[2].update.items() if m != "twin"}))
    return made


def angles(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared cosine between two column spaces, by dense SVDs."""
    bases = []
    for matrix in (x, y):
        u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
        bases.append(u[:, s > 1e-9 * s[0]])
    return (bases[0].T @ bases[1]).square().sum() / min(basis.shape[1] for basis in bases)


def by_definition(a: Slider, b: Slider, metrics: dict[str, Tensor]) -> dict[str, float]:
    """The file's table, literally."""
    sums = dict.fromkeys(QUANTITIES, 0.0)
    norms = [0.0, 0.0]
    for module in SHAPES:
        x, y = (s.update[module].dense().flatten(1) if module in s.update else None for s in (a, b))
        s = metrics.get(module, torch.eye(torch.Size(SHAPES[module][1:]).numel(), dtype=torch.float64))
        for i, d in enumerate((x, y)):
            norms[i] += 0.0 if d is None else float((d @ s @ d.T).trace())
        if x is None or y is None:
            continue
        root = torch.linalg.cholesky(s)
        size = ((x @ root).norm() * (y @ root).norm()).item()

        def alike(p: Tensor, q: Tensor) -> float:
            return float((p @ q.T).norm() / ((p @ p.T).norm() * (q @ q.T).norm()).sqrt())

        writing, reading = alike((x @ root).T, (y @ root).T), alike(x @ root, y @ root)
        sums["cosine"] += float((x @ s @ y.T).trace())
        sums["columns"] += size * float(angles(x, y))
        sums["rows"] += size * float(angles(x.T, y.T))
        sums["writing"] += size * writing
        sums["reading"] += size * reading
        sums["interference"] += size * (writing * reading) ** 0.5
    return {name: value / (norms[0] * norms[1]) ** 0.5 for name, value in sums.items()}


def check(pairs: Pairs, made: list[Slider], metrics: dict[str, Tensor]) -> None:
    for i, a in enumerate(made):
        for j, b in enumerate(made):
            for name, value in by_definition(a, b, metrics).items():
                assert float(getattr(pairs, name)[i, j]) == pytest.approx(value, abs=1e-7), name


@laws
@given(seeds)
def test_pairs_are_what_the_definitions_say(seed: int) -> None:
    made = sliders(seed)
    pairs = pairwise(made)
    assert pairs.names == ("0", "1", "2")
    check(pairs, made, {})
    assert_close(pairs.norms, torch.tensor([s.update.norm() for s in made], dtype=torch.float64))


@laws
@given(seeds)
def test_pairs_in_the_metric_of_covariances(seed: int) -> None:
    made = sliders(seed)
    diagonal = torch.linspace(0.1, 2, 12, dtype=torch.float64)
    full = covariance(5, seed)
    check(pairwise(made, {"fc": full, "conv": diagonal}), made, {"fc": full, "conv": diagonal.diag()})
    plain, weighted = pairwise(made), pairwise(made, {"fc": full, "conv": diagonal})
    assert (plain.reading - weighted.reading).abs().max() > 1e-4  # control: the metric counts
    assert_close(plain.rows.sign(), weighted.rows.sign())


@laws
@given(seeds)
def test_pairs_do_not_depend_on_the_gauge(seed: int) -> None:
    made = sliders(seed)
    turned = [
        Slider(s.name, Translation({m: in_gauge(u, seed + i) for i, (m, u) in enumerate(s.update.items())}))
        for s in made
    ]
    for name in QUANTITIES:
        assert_close(getattr(pairwise(turned), name), getattr(pairwise(made), name), atol=1e-7, rtol=1e-7)


def test_the_scale_of_a_slider_does_not_count() -> None:
    a, b, c = sliders(1)
    for name in QUANTITIES:
        value = getattr(pairwise([Slider("0", a.update * 10.0), b, c]), name)
        assert_close(value, getattr(pairwise([a, b, c]), name))
    assert_close(pairwise([-a, b]).cosine[0, 1], -pairwise([a, b]).cosine[0, 1])


def test_what_is_1_and_what_is_0() -> None:
    """A slider against itself, and against one that reads or writes elsewhere."""
    q = torch.linalg.qr(normal(6, 6, seed=1)).Q

    def made(writes: Tensor, reads: Tensor) -> Slider:
        return Slider("x", Translation({"fc": LowRank(writes, reads.T, (6, 6))}))

    base = made(q[:, :2], q[:, 2:4])
    for other, writing, reading in (
        (made(q[:, :2], q[:, 2:4]), 1, 1),
        (made(q[:, :2], q[:, 4:]), 1, 0),
        (made(q[:, 4:], q[:, 2:4]), 0, 1),
        (made(q[:, 1:3], q[:, 3:5]), 0.5**0.5, 0.5**0.5),
    ):
        pairs = pairwise([base, other])
        got = [float(getattr(pairs, name)[0, 1]) for name in ("writing", "reading", "columns", "rows")]
        assert got == pytest.approx([writing, reading, writing**2, reading**2], abs=1e-7)
        assert float(pairs.interference[0, 1]) == pytest.approx((writing * reading) ** 0.5, abs=1e-6)


def test_sliders_without_a_common_module_or_without_an_update() -> None:
    a = Slider("a", Translation({"fc": lowrank((6, 5), 2)}))
    b = Slider("b", Translation({"conv": lowrank((4, 3, 2, 2), 2)}))
    none = Slider("none", Translation({"fc": lowrank((6, 5), 2) * 0.0}))
    pairs = pairwise([a, b, none])
    for name in QUANTITIES:
        matrix = getattr(pairs, name)
        assert float((matrix - torch.diag(matrix.diagonal())).abs().max()) == 0
        assert float(matrix[0, 0]) == pytest.approx(1)
        assert float(matrix[2, 2]) == 0
    assert float(pairwise([none]).norms) == 0


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sliders(3)
    whole = pairwise(made)
    monkeypatch.setattr("sliders.algebra.pairs._AT_ONCE", 1)
    for name in QUANTITIES:
        assert_close(getattr(pairwise(made), name), getattr(whole, name))


def test_layers_may_come_one_at_a_time() -> None:
    made = sliders(4)
    layers = ((m, [s.update.get(m) for s in made]) for m in [*SHAPES, "nobody"])
    assert_close(pairwise_layers(["0", "1", "2"], layers).interference, pairwise(made).interference)


def test_float32_sliders_are_near() -> None:
    made = sliders(5)
    low = [Slider(s.name, Translation({m: u.to(torch.float32) for m, u in s.update.items()})) for s in made]
    for name in QUANTITIES:
        assert_close(getattr(pairwise(low), name), getattr(pairwise(made), name), atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused_by_name() -> None:
    a = sliders(1)[0]
    with pytest.raises(SliderError, match=r"'fc'.*\(6, 5\).*\(5, 6\)"):
        pairwise([a, Slider("b", Translation({"fc": lowrank((5, 6), 2)}))])
    with pytest.raises(SliderError, match=r"covariance of 'fc' is \(4,\).*5 inputs"):
        pairwise([a], {"fc": torch.ones(4)})
