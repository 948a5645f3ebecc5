from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthesis_runs import run, small, synthesizer

from fdda_deploy.errors import CalibrationError
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.centers import ClassCenters


class _KilledError(Exception):
    pass


def test_killed_run_continues_to_the_same_images(
    tiny: StatisticsNetwork, centers: ClassCenters, tmp_path: Path
) -> None:
    recipe, checkpoint = small("fdda", 24), tmp_path / "sub" / "generator.pt"
    whole = run(tiny, recipe, centers)
    seen: list[int] = []

    def kill_at_13(done: int, _total: int, _text: str) -> None:
        seen.append(done)
        if done == 13:
            raise _KilledError

    with pytest.raises(_KilledError):
        run(tiny, recipe, centers, checkpoint, progress=kill_at_13)
    resumed = run(tiny, recipe, centers, checkpoint, progress=lambda d, _t, _s: seen.append(d))
    assert seen[:13] == list(range(1, 14))
    assert 1 < seen[13] <= 14, "it did not start over"
    assert torch.equal(whole.images, resumed.images)
    assert whole.history == resumed.history
    assert [entry.name for entry in checkpoint.parent.iterdir()] == [checkpoint.name]


@pytest.mark.parametrize("damage", ["cut short", "noise", "another seed", "another shape of file"])
def test_checkpoint_that_does_not_fit_is_ignored(
    tiny: StatisticsNetwork, tmp_path: Path, damage: str
) -> None:
    recipe, checkpoint = small("gdfq", 4), tmp_path / "generator.pt"
    fresh = run(tiny, recipe, None)
    run(tiny, recipe, None, checkpoint, seed=1 if damage == "another seed" else 0)
    content = checkpoint.read_bytes()
    if damage == "cut short":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "noise":
        checkpoint.write_bytes(b"\x80\x02nonsense")
    elif damage == "another shape of file":
        torch.save({"identity": 3}, checkpoint)
    steps: list[int] = []
    again = run(tiny, recipe, None, checkpoint, progress=lambda d, _t, _s: steps.append(d))
    assert steps[0] == 1
    assert torch.equal(fresh.images, again.images)


def test_finished_checkpoint_is_not_trained_again(tiny: StatisticsNetwork, tmp_path: Path) -> None:
    recipe, checkpoint = small("gdfq", 5), tmp_path / "generator.pt"
    first = run(tiny, recipe, None, checkpoint)
    texts: list[str] = []
    again = run(tiny, recipe, None, checkpoint, progress=lambda _d, _t, s: texts.append(s))
    assert texts == ["drawing images"]
    assert torch.equal(first.images, again.images)


def test_state_of_another_generator_is_refused(tiny: StatisticsNetwork) -> None:
    state = synthesizer(tiny, small("gdfq", 5, latent_dim=7), None).state()
    with pytest.raises(CalibrationError, match=r"checkpoint does not fit.*Delete it"):
        synthesizer(tiny, small("gdfq", 5), None).restore(state)
