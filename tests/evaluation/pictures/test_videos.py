"""Videos are pictures with frames: strips show some of them, a file beside moves, and the judge reads all."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sliders.cli import main as cli
from sliders.concept import Measure
from sliders.evaluation.pictures.dose import dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.report.drawing import filmstrips, save_grid
from tests import tiny
from tests.commands import run
from tests.factory import normal
from tests.families import family

PIPELINE = "sliders.backbones.rehearsed.backbone.PipelineBackbone"


def videos(*shape: int) -> torch.Tensor:
    return normal(*shape, 5, 3, 8, 8, seed=0, dtype=torch.float32).clamp(-1, 1)


def test_a_filmstrip_begins_with_the_first_frame_and_ends_with_the_last() -> None:
    made = videos(2, 3)
    shown = filmstrips(made, 3)
    assert shown.shape == (2, 3, 3, 8, 24)
    assert torch.equal(shown[..., :8], made[:, :, 0])
    assert torch.equal(shown[..., 16:], made[:, :, -1])


@pytest.mark.parametrize("name", ["grid.png", "grid.webp"])
def test_a_grid_of_videos_moves_beside_its_picture(name: str, tmp_path: Path) -> None:
    still, moving = save_grid(videos(2, 3), ["a", "b"], ["x", "y", "z"], "title", tmp_path / name)
    assert still == tmp_path / name
    with Image.open(moving) as opened:
        assert getattr(opened, "n_frames", 1) == 5
    with Image.open(still) as opened:
        assert getattr(opened, "n_frames", 1) == 1
    assert save_grid(videos(2, 3)[:, :, 0], ["a", "b"], ["", "", ""], "", tmp_path / "b.png") == [tmp_path / "b.png"]


def test_the_judge_reads_all_frames() -> None:
    torch.manual_seed(0)
    judge, made = AttributeJudge({"mood": ["sad", "happy"], "hat": ["no", "yes"]}, width=8), videos(3)
    of_frames = judge.probabilities(made.flatten(0, 1))["mood"].unflatten(0, (3, 5))
    torch.testing.assert_close(judge.probabilities(made)["mood"], of_frames.mean(1))
    dose = dose_response(judge, Measure("mood", ["a person"], "happy"), videos(3, 2), [-1.0, 0.0, 1.0])
    assert len(dose.response) == len(dose.pixel_change_elsewhere) == 3
    assert dose.pixel_change[1] == 0 < dose.pixel_change[0]


def test_generate_of_a_video_model_says_where_both_are(tmp_path: Path) -> None:
    model = tiny.save(family("wan"), tmp_path / "wan")
    whose = ["--backbone", PIPELINE, "--backbone.model", model, "--backbone.height", 16, "--backbone.width", 16]
    whose += ["--backbone.call", "{num_frames: 2}", "--backbone.words", 24]
    ended = run(cli.main, "generate", "a person", *whose, "--sampling.steps", 1, "--out", tmp_path / "out.png")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out.png").is_file()
    with Image.open(tmp_path / "out.webp") as opened:
        assert getattr(opened, "n_frames", 1) == 3
    assert "out.webp" in ended.out.replace("\n", "")
