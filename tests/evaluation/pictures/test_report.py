"""What an evaluation leaves behind."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from rich.console import Console

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.concept import Concept, Measure, read_prompts
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.report import Evaluation, evaluate_dial, heldout_prompts, write_report
from sliders.evaluation.pictures.sampling import Sampling
from sliders.report.drawing import dial_label, strip, to_uint8
from sliders.runtime.attach import attach
from tests.evaluation.conftest import random_slider
from tests.evaluation.judges import ColorJudge, colors

DIALS = [-1.0, 0.0, 1.0]


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    """One that says how it is measured."""
    file = tmp_path / "prompts.txt"
    file.write_text("# held out\na person\n\n  a dog with a hat  \n")
    return Concept("happy", "a person", ["a happy person"], ["a sad person"], measure=Measure("light", file, "bright"))


def evaluate(
    base: DiffusionBackbone, concept: Concept, judge: AttributeJudge | None, pictures: int = 3, **extra: Any
) -> Evaluation:
    """A random slider, measured."""
    slider = random_slider(base, "xattn")
    with attach(base, [slider]) as dials:
        return evaluate_dial(
            base,
            lambda positions: dials.turned({slider.name: positions}),
            concept,
            judge,
            eta=2.0,
            dials=DIALS,
            pictures=pictures,
            how=Sampling(steps=2, guidance=2.0),
            **extra,
        )


def strict(file: Path) -> Any:
    """Read JSON as other programs do: without NaN."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(file.read_text(), parse_constant=refuse)


def test_prompts_are_the_lines_of_a_file(tmp_path: Path, concept: Concept) -> None:
    assert heldout_prompts(concept) == ["a person", "a dog with a hat"]
    assert heldout_prompts(Concept("happy", "a person", ["a"], ["b"])) == ["a person"]
    with pytest.raises(SliderError, match="nowhere"):
        read_prompts(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(SliderError, match="empty"):
        read_prompts(tmp_path / "empty.txt")


def test_a_report_is_pictures_a_plot_and_numbers(base: DiffusionBackbone, concept: Concept, tmp_path: Path) -> None:
    evaluation = evaluate(base, concept, ColorJudge(), with_oracle=True)
    write_report(evaluation, tmp_path / "new" / "report")
    names = {file.name for file in (tmp_path / "new" / "report").iterdir()}
    assert names == {"strip.png", "dose_response.png", "metrics.json"}
    for name in ("strip.png", "dose_response.png"):
        with Image.open(tmp_path / "new" / "report" / name) as image:
            image.load()
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    metrics = strict(tmp_path / "new" / "report" / "metrics.json")
    assert metrics["dials"] == DIALS
    assert metrics["eta"] == 2.0
    assert [scene["prompt"] for scene in metrics["scenes"]] == ["a person", "a dog with a hat", "a person"]
    assert Concept.from_dict(metrics["concept"]) == concept
    assert evaluation.dose is not None
    assert metrics["slider"]["response"] == evaluation.dose.response
    assert metrics["oracle"]["response"][1] == pytest.approx(metrics["slider"]["response"][1], abs=1e-4)
    assert metrics["straightness"]["oddness"] >= 0


def test_numbers_are_of_the_pictures(base: DiffusionBackbone, concept: Concept) -> None:
    evaluation = evaluate(base, concept, ColorJudge())
    assert evaluation.pictures.shape == (3, 3, 3, 16, 16)
    red = ((evaluation.pictures[:, :, 0] + 1) / 2).mean((1, 2, 3))
    assert evaluation.dose is not None
    assert evaluation.dose.response == pytest.approx(red.tolist(), abs=1e-5)
    assert len({scene.seed for scene in evaluation.wanted}) == 3
    assert evaluation.oracle is None


def test_without_a_judge_there_are_pictures_and_no_plot(
    base: DiffusionBackbone, concept: Concept, tmp_path: Path
) -> None:
    evaluation = evaluate(base, concept, None)
    write_report(evaluation, tmp_path / "report")
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"strip.png", "metrics.json"}
    assert strict(tmp_path / "report" / "metrics.json")["slider"] is None
    assert evaluation.summary() == {}


def test_one_picture_and_a_slider_that_does_nothing_are_still_numbers(
    base: DiffusionBackbone, concept: Concept, tmp_path: Path
) -> None:
    """No NaN, though there is no deviation and no change."""
    with attach(base, [random_slider(base, "xattn")]) as dials:
        evaluation = evaluate_dial(
            base,
            lambda positions: dials.turned({"random": 0 * positions}),
            concept,
            ColorJudge(),
            eta=2.0,
            dials=DIALS,
            pictures=1,
            how=Sampling(steps=2),
        )
    write_report(evaluation, tmp_path)
    assert strict(tmp_path / "metrics.json")["slider"]["spearman"] == 0.0


def test_a_second_report_replaces_the_first(base: DiffusionBackbone, concept: Concept, tmp_path: Path) -> None:
    for pictures in (2, 1):
        write_report(evaluate(base, concept, None, pictures), tmp_path / "report")
    assert len(strict(tmp_path / "report" / "metrics.json")["scenes"]) == 1
    assert len(list((tmp_path / "report").iterdir())) == 2


def test_the_table_and_the_summary_say_the_numbers(base: DiffusionBackbone, concept: Concept) -> None:
    evaluation = evaluate(base, concept, ColorJudge())
    assert evaluation.dose is not None
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluation.table())
    text = console.export_text()
    for response in evaluation.dose.response:
        assert f"{response:.2f}" in text
    for dial in ("-1", "0", "+1"):
        assert dial in text
    effect = json.loads(evaluation.summary()["sliders.effect"])
    assert effect["measure"] == "light=bright"
    assert effect["mean"] == {
        label: round(r, 3) for label, r in zip(["-1", "0", "+1"], evaluation.dose.response, strict=True)
    }


def test_a_strip_s_columns_are_dials_and_its_rows_scenes() -> None:
    """Each picture is found in its place, by its color."""
    pixels = [
        [(0.9, 0.1, 0.1), (0.1, 0.9, 0.1)],
        [(0.1, 0.1, 0.9), (0.9, 0.9, 0.1)],
        [(0.1, 0.9, 0.9), (0.9, 0.1, 0.9)],
    ]
    pictures = torch.stack([colors(*column, side=16) for column in pixels])
    image = strip(pictures, [-1, 0, 1], ["first", "second"], "a strip").convert("RGB")
    places: dict[tuple[int, int], tuple[float, float]] = {}
    for c, column in enumerate(pixels):
        for r, pixel in enumerate(column):
            wanted = tuple(round(255 * p) for p in pixel)
            at = [
                (x, y) for x in range(image.width) for y in range(image.height) if near(image.getpixel((x, y)), wanted)
            ]
            assert len(at) >= 16 * 16
            places[c, r] = (sum(x for x, _ in at) / len(at), sum(y for _, y in at) / len(at))
    assert all(places[0, r][0] < places[1, r][0] < places[2, r][0] for r in range(2))
    assert all(places[c, 0][1] < places[c, 1][1] for c in range(3))


def near(one: Any, other: tuple[int, ...]) -> bool:
    """Whether two colors are the same up to rounding."""
    return all(abs(a - b) <= 2 for a, b in zip(one, other, strict=True))


def test_small_things_of_the_plots() -> None:
    assert [dial_label(d) for d in (-2, -0.5, 0, 1, 1.25)] == ["-2", "-0.5", "0", "+1", "+1.25"]
    grays = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0]).view(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert to_uint8(grays)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
