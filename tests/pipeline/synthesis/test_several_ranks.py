"""Two ranks that share a batch make what one rank makes of all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from several_ranks import RANKS, joined_outcomes, outcomes
from synthesis_runs import CPU, SHAPE, small, synthesizer
from torch import Tensor

from fdda_deploy.errors import ConfigError
from fdda_deploy.pipeline.distributed import Ranks
from fdda_deploy.pipeline.network import StatisticsNetwork
from fdda_deploy.pipeline.synthesis.center_file import load_class_centers
from fdda_deploy.pipeline.synthesis.center_writer import CenterWriter
from fdda_deploy.pipeline.synthesis.centers import ClassCenters
from fdda_deploy.pipeline.synthesis.global_batch import GlobalBatchNorm, pooled
from fdda_deploy.pipeline.synthesis.recipes import Recipe
from fdda_deploy.pipeline.synthesis.statistics import batch_statistics
from fdda_deploy.pipeline.synthesis.synthesize import synthesize

pytestmark = RANKS


def shared(
    network: StatisticsNetwork,
    recipe: Recipe,
    centers: ClassCenters | None,
    ranks: Ranks,
    checkpoint: Path | None = None,
    *,
    progress: Any = None,
    num_images: int = 10,
) -> tuple[Any, dict[str, list[float]]]:
    """Images as an array, for tensors do not outlive the process that made them, and history."""
    made = synthesize(
        network,
        recipe,
        image_shape=SHAPE,
        num_classes=3,
        centers=centers,
        num_images=num_images,
        device=CPU,
        seed=0,
        checkpoint=checkpoint,
        checkpoint_every_seconds=0.0,
        autocast=False,  # its rounding would hide what sharing changes
        progress=None if ranks.follows else progress,
        ranks=ranks,
    )
    return made.images.numpy(), made.history


@pytest.mark.parametrize("shares", [(4, 4), (3, 4)], ids=["even", "uneven"])
def test_pooled_statistics_and_their_gradient_are_those_of_the_whole(
    shares: tuple[int, int],
) -> None:
    x = 5 + torch.randn(sum(shares), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([1.0, 2.0, 3.0])

    def loss(mean: Tensor, variance: Tensor) -> Tensor:
        return ((mean - target).square() + (variance * target).square()).sum()

    def of_the_whole() -> Any:
        whole = x.clone().requires_grad_()
        loss(*batch_statistics(whole)).backward()  # type: ignore[no-untyped-call]
        assert whole.grad is not None
        return whole.grad.numpy()

    def work(ranks: Ranks) -> tuple[Any, Any]:
        part = x[ranks.share(len(x))].clone().requires_grad_()
        found = pooled(*batch_statistics(part), len(x), ranks)
        loss(*found).backward()  # type: ignore[no-untyped-call]
        assert part.grad is not None
        return torch.stack(found).detach().numpy(), part.grad.numpy()

    (wanted,) = outcomes(of_the_whole, 1)  # whoever trains can fork no more, so a child does
    (first, grad0), (second, grad1) = joined_outcomes(work)
    assert (first == second).all(), "all ranks have the same bits"
    assert torch.allclose(torch.from_numpy(first), torch.stack(batch_statistics(x)), rtol=1e-5)
    grad = torch.cat([torch.from_numpy(grad0), torch.from_numpy(grad1)])
    assert torch.allclose(grad, torch.from_numpy(wanted), rtol=1e-4, atol=1e-6)


def test_normalization_of_shares_is_that_of_the_whole_batch_backwards_too() -> None:
    x = 2 + torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pull = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def of_the_whole() -> tuple[Any, ...]:
        plain, whole = GlobalBatchNorm(3), x.clone().requires_grad_()
        y = plain(whole)
        (y * pull).sum().backward()
        assert whole.grad is not None
        return tuple(
            t.detach().numpy() for t in (y, whole.grad, plain.running_mean, plain.running_var)
        )

    def work(ranks: Ranks) -> tuple[Any, ...]:
        norm, share = GlobalBatchNorm(3, ranks), ranks.share(7)
        norm.size, part = 7, x[share].clone().requires_grad_()
        y = norm(part)
        (y * pull[share]).sum().backward()
        assert part.grad is not None
        return tuple(
            t.detach().numpy() for t in (y, part.grad, norm.running_mean, norm.running_var)
        )

    (wanted,) = outcomes(of_the_whole, 1)
    found = joined_outcomes(work)
    for k in (0, 1):  # outputs, gradients
        assert np.allclose(np.concatenate([part[k] for part in found]), wanted[k], atol=1e-5)
    for rank in found:
        for k in (2, 3):  # running mean and variance
            assert np.allclose(rank[k], wanted[k], atol=1e-6)


CASES = {
    "fdda": ("fdda", {}),
    "fdda, uneven shares": ("fdda", {"random_batch": 7}),
    "every option": (
        "fdda",
        {"flip": True, "shift_px": 1, "low_pass_px": 0.5, "joint_statistics": True}
        | {"margin_weight": 0.1, "tv_weight": 0.1, "slack_quantile": 0.5},
    ),
    "each image by itself": ("gdfq", {"per_image": True}),
}


@pytest.mark.parametrize(("name", "overrides"), CASES.values(), ids=CASES.keys())
def test_two_ranks_have_the_losses_and_gradients_of_one(
    tiny: StatisticsNetwork, centers: ClassCenters, name: str, overrides: dict[str, Any]
) -> None:
    recipe = small(name, 8, **overrides)

    def work(ranks: Ranks) -> tuple[dict[str, float], list[Any]]:
        source = synthesizer(tiny, recipe, centers, ranks=ranks)
        losses = source.step().losses
        grads = [p.grad.numpy() for p in source.source.parameters() if p.grad is not None]
        return {term: float(value) for term, value in losses.items()}, grads

    ((wanted, wanted_grads),) = joined_outcomes(work, 1)
    for losses, grads in joined_outcomes(work):
        assert losses == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        for got, grad in zip(grads, wanted_grads, strict=True):
            assert abs(got - grad).max() <= 2e-5 * abs(grad).max()


def test_two_ranks_train_a_generator_as_one_does(
    tiny: StatisticsNetwork, centers: ClassCenters
) -> None:
    recipe = small("fdda", 8)
    ((alone, curves),) = joined_outcomes(lambda ranks: shared(tiny, recipe, centers, ranks), 1)
    for images, history in joined_outcomes(lambda ranks: shared(tiny, recipe, centers, ranks)):
        for term, values in curves.items():  # Adam's first steps magnify the last bits
            assert history[term] == pytest.approx(values, rel=2e-2, abs=1e-4), term
        assert abs(images - alone).mean() < 2e-2, "of a standard deviation of about 1"


@pytest.mark.parametrize(
    "overrides",
    [{}, {"joint_statistics": True}],
    ids=["each batch by one rank", "batches that follow each other"],
)
def test_dealt_batches_of_learned_images_are_those_of_one_rank(
    tiny: StatisticsNetwork, overrides: dict[str, Any], tmp_path: Path
) -> None:
    recipe = small("zeroq", 6, **overrides)
    ((alone, curves),) = joined_outcomes(lambda ranks: shared(tiny, recipe, None, ranks), 1)
    path = tmp_path / "images.ckpt"
    for images, history in joined_outcomes(lambda ranks: shared(tiny, recipe, None, ranks, path)):
        assert (images == alone).all()
        assert history == curves


@pytest.mark.parametrize(("name", "num_images"), [("gdfq", 10), ("zeroq", 16)])
def test_killed_ranks_continue_to_the_same_images(
    tiny: StatisticsNetwork, tmp_path: Path, name: str, num_images: int
) -> None:
    recipe, path = small(name, 12), tmp_path / "run.ckpt"
    steps: list[int] = []

    def kill(done: int, _total: int, _text: str) -> None:
        if done >= (8 if name == "gdfq" else 30):
            raise KeyboardInterrupt

    def work(ranks: Ranks, checkpoint: Path, progress: Any = None) -> tuple[Any, Any]:
        found = shared(
            tiny, recipe, None, ranks, checkpoint, progress=progress, num_images=num_images
        )
        return found, list(steps)

    whole = joined_outcomes(lambda ranks: work(ranks, tmp_path / "other.ckpt"))[0][0]
    killed = joined_outcomes(lambda ranks: work(ranks, path, kill))
    assert isinstance(killed[0], KeyboardInterrupt)
    assert list(tmp_path.glob("run.ckpt*")), "something was kept"
    again = joined_outcomes(lambda ranks: work(ranks, path, lambda d, _t, _s: steps.append(d)))
    assert again[0][1][0] > 1, "it did not start over"
    for (images, history), _ in again:
        assert (images == whole[0]).all()
        assert history == whole[1]


def test_classes_measured_by_two_ranks_have_the_centers_of_one(
    tiny: StatisticsNetwork, real_batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    images, labels = real_batch

    def work(ranks: Ranks) -> list[Any]:
        own = labels.argsort(stable=True)
        own = own[labels[own] % ranks.size == ranks.rank]
        path = tmp_path / f"{ranks.size}" / f"rank{ranks.rank}"  # the others' are not used
        with CenterWriter(tiny, 3, path, device=CPU, ranks=ranks) as writer:
            writer.add(images[own], labels[own])
            writer.finish()
        found = load_class_centers(tmp_path / f"{ranks.size}" / "rank0")
        parts = (*found.means, *found.variances, found.counts, found.correct)
        return [part.numpy() for part in parts]

    (wanted,) = joined_outcomes(work, 1)
    for rank in joined_outcomes(work):
        for got, want in zip(rank, wanted, strict=True):
            assert got == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_more_ranks_than_images_in_a_batch_are_refused(tiny: StatisticsNetwork) -> None:
    recipe = dataclasses.replace(small("gdfq", 2), random_batch=2)
    with pytest.raises(ConfigError, match=r"3 processes cannot share a batch of 2.*at most 2"):
        synthesize(
            tiny,
            recipe,
            image_shape=SHAPE,
            num_classes=3,
            centers=None,
            num_images=4,
            device=CPU,
            seed=0,
            ranks=_UnconnectedRanks(0, 3),
        )


class _UnconnectedRanks(Ranks):
    def meet(self) -> None:
        """Nobody is there to wait for."""
