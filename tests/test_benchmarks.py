"""What the benchmarks compare is what they say; none of them asserts a time."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import avatars, language, speed, speed_language, speed_parts, sweep
from benchmarks.results import Results
from benchmarks.speed_effect import PROCEDURES, Reader, doubled_student, train
from benchmarks.speed_language import AskedAnew
from benchmarks.timing import Evaluations, clock
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.texts.dose import TextDose
from sliders.losses.erasure import LogProbabilityLoss
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.data import ConceptData
from sliders.training.states import Responses, StateSource
from tests import tiny, tiny_lm
from tests.training import runs

NOW = clock(of_process=True)
SMILE = Concept.load(Path("data/avatars/concepts/smile.yaml"))
MOOD = Concept("mood", "you are a person", ["be happy"], ["be sad"], ["a dog", "day"], modality="text")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion."""
    return tiny.save(tiny.stable_diffusion(room=64), tmp_path_factory.mktemp("base") / "sd")


@pytest.fixture
def embedded(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the place of the embedded one."""
    monkeypatch.setattr(speed_parts, "MODEL", str(base))
    return base


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model."""
    return tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path_factory.mktemp("lm") / "lm")


def test_a_published_step_costs_what_the_published_code_s_costs(base: Path) -> None:
    """Rollout of k steps and the student's call, all doubled, and three calls of the teacher: 2 k + 8 evaluations."""
    backbone, how = runs.loaded(base), PROCEDURES["published"]
    data = ConceptData(runs.RICH, preserve_batch_size=1, **how.data)
    costs = set()
    with Adapter(backbone, backbone.select_targets(["xattn"]), 2, 2.0) as adapter:
        count, source, teacher = Evaluations(backbone), how.states(), Teacher(backbone, runs.RICH, adapter)
        for step in range(2):
            batch = data.step_batch(step)
            batch = runs.batch(batch.seeds[:1], step=step)
            before = count.rows
            with doubled_student(backbone):
                answered = source.draw(teacher, adapter, batch)
                with adapter.dial(torch.ones(1)):
                    said = backbone.predict(answered.state, teacher.targets(answered.question))
            depth, rest = divmod(999 - int(answered.state["timestep"]), 20)
            assert rest == 0
            assert 1 <= depth < 50
            assert count.rows - before == 2 * depth + 6 + 2
            costs.add(depth)
            with torch.no_grad(), adapter.dial(torch.ones(1)):
                plain = backbone.predict(answered.state, teacher.targets(answered.question))
            torch.testing.assert_close(said.detach(), plain, rtol=1e-4, atol=1e-5)
            fresh, _ = teacher.answer(answered.state, answered.question)
            torch.testing.assert_close(answered.base, fresh, rtol=1e-4, atol=1e-5)
            assert answered.direction.any()
        count.remove()
    assert len(costs) > 1


def test_a_reader_reads_once_at_a_step(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gradients are accumulated, several batches end at one step."""
    count: Any = SimpleNamespace(on=True, rows=0)
    nobody: Any = None
    watch = Reader(nobody, SMILE, count, 2, 1, NOW)
    monkeypatch.setattr(watch, "read", lambda module: (0.0, 1.0))
    model = runs.module(base)
    for step in (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4):
        trainer: Any = SimpleNamespace(global_step=step)
        watch.on_train_batch_end(trainer, model, None, None, 0)
    assert [point["step"] for point in watch.curve] == [2, 4]


def test_asking_in_every_step_teaches_the_same(words: Path, tmp_path: Path) -> None:
    """So that cached answers reach the same effect in as many steps."""
    factors, costs = [], []
    for wrap in (lambda states: states, AskedAnew):
        backbone = CausalLMBackbone(str(words), support=8, prompt_tokens=40)
        source: StateSource = wrap(Responses(sampled=6, tokens=5))
        loss = LogProbabilityLoss(1.0)
        model = runs.module(Path(), source, 1e-3, ["full"], backbone, loss=loss)
        factors.append(runs.fit(model, tmp_path, 4, concept=MOOD, data={"magnitude": (0.3, 1.0)}))
        assert model.teacher is not None
        costs.append(model.teacher.evaluations)
    assert costs[1] == costs[0] + 4 * 2 * 3
    for name, factor in factors[0].items():
        torch.testing.assert_close(factors[1][name], factor, rtol=1e-3, atol=1e-5)
    assert any(factor.any() for name, factor in factors[0].items() if name.endswith(".B"))


def test_a_figure_is_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "figures.json"
    assert Results(file).get("a", lambda: 1) == 1
    other = Results(file)
    assert Results(file).get("b", lambda: 2) == 2
    assert other.get("a", lambda: pytest.fail("it is measured again")) == 1
    assert other.get("c", lambda: 3) == 3
    assert Results(file).values == {"a": 1, "b": 2, "c": 3}  # of both processes
    assert [path.name for path in file.parent.iterdir()] == ["figures.json"]


BASE = """model:
  states: {{ init_args: {{ {} }} }}
  optimizer: {{ init_args: {{ lr: {} }} }}
"""


def test_the_avatars_table_says_how_its_sliders_were_trained(tmp_path: Path) -> None:
    """By the runs' own configs: a default that has changed since is not what they were trained with."""
    base = tmp_path / "base.yaml"
    base.write_text(BASE.format("refresh: 10, growth: 3, kept: 2", 2.0e-3))
    runs = {name: tmp_path / name for name in ("old", "older", "new")}
    for folder in runs.values():
        folder.mkdir()
    (runs["old"] / "config.yaml").write_text(BASE.format("refresh: 34, growth: 1, kept: null", 1.0e-3))
    (runs["older"] / "config.yaml").write_text(BASE.format("refresh: 34", 1.0e-3))
    (runs["new"] / "config.yaml").write_text(BASE.format("refresh: 10, growth: 3.0, kept: 2", 0.002))
    said = avatars.how_trained(runs, base).replace("\n", " ")
    assert "old, older were trained with a pool made anew every 34 steps, all states of each trajectory kept" in said
    assert "learning rate 0.001, not with the default" in said
    assert "new were trained with a pool made anew after 10 steps and each one kept 3 times as long" in said
    assert "2 states of each trajectory kept, learning rate 0.002, which is the default" in said
    alone = avatars.how_trained({"new": runs["new"]}, base)
    assert alone.startswith("The sliders were trained")
    assert "ADR" not in alone


def test_no_effect_is_compared_where_the_score_moves_the_wrong_way() -> None:
    """The vector would reach that score too, on its other side, and nothing would follow from it."""

    def dose(dials: list[float], response: list[float]) -> TextDose:
        flat = [0.0] * len(dials)
        return TextDose("c", dials, [], "s", response, flat, 1.0, {}, flat, flat, flat, flat, flat, [])

    slider = dose([-2, -1, 0, 1, 2], [-1.0, 2.0, 1.0, 0.5, 1.5])
    line, compared = language.rows(slider, dose([-1, 0, 1], [-2.0, 1.0, 4.0]), 1.0)
    assert line.startswith("| c | s | 1 s | -1.00 2.00 1.00 0.50 1.50 |")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in compared]
    assert [row[1] for row in cells] == ["-2", "-1", "+1", "+2"]
    assert cells[0][4] == "-0.67"
    assert cells[1][4:] == ["— (score above the base's)", "—"]
    assert cells[2][4:] == ["— (score below the base's)", "—"]
    assert cells[3][4] == "+0.17"


@pytest.mark.slow
class TestSections:
    """Each runs to its end and gives rows with the same columns."""

    def check(self, rows: list[dict[str, str | float]], count: int) -> None:
        assert len(rows) == count
        assert len({tuple(row) for row in rows}) == 1

    def test_keys_dials_and_scaling(self, embedded: Path) -> None:
        self.check(speed_parts.text_keys(1, NOW), 2)
        self.check(speed_parts.dials((1, 2), 2, 2, 1, 5, NOW), 2)
        self.check(speed_parts.scaling(SMILE, 1, NOW), 10)

    def test_step(self, embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the compiler's last part, which takes a minute; what it makes is tested with the backbones."""
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        self.check(speed_parts.step_cost(SMILE, 100, 1, NOW), 7)

    def test_language(self, words: Path) -> None:
        self.check(speed_language.language((1, 2), 3, 1, NOW, str(words)), 2)
        self.check(speed_language.language_training(MOOD, 5, 1, NOW, str(words)), 2)

    def test_training_to_effect(self, embedded: Path, tmp_path: Path) -> None:
        judge, curves = AttributeJudge.load(Path("data/avatars/judge.safetensors")), {}
        for name, how in PROCEDURES.items():
            curves[name] = [train(speed_parts.base(), judge, SMILE, how, 0, 1, 2, 2, tmp_path, NOW)]
        self.check(speed.effect_rows(curves), len(PROCEDURES))

    def test_what_is_written(self, embedded: Path, tmp_path: Path) -> None:
        speed.main(["keys"], tmp_path, tmp_path, repeats=1, processor_time=True)
        sweep.main(tmp_path, tmp_path, ["default", "A three times"], steps=2, every=1, pictures=2, processor_time=True)
        assert {file.name for file in tmp_path.glob("s*.*")} == {
            f"{name}.{kind}" for name in ("speed", "sweep") for kind in ("md", "png", "json")
        }
