"""Test the GAN example: its penalty, its distance, and that training brings samples nearer."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples import gan
from ftrain import random

pytest.importorskip("sklearn")


def test_gradient_penalty_of_a_linear_critic_follows_from_the_norm_of_its_weight() -> None:
    """The gradient of a linear function is its weight, at every point."""
    model = nn.Linear(64, 1)
    real = random.uniform(random.key(1), (6, 64))
    bound = gan.GENERATE
    params, buffers = bound.init(random.key(2))
    extras: Any = {"players": {"generator": {"params": params, "buffers": buffers}}}
    with torch.no_grad():
        loss, metrics = gan.critic_loss(model, real, random.key(3), extras)
        expected = 10 * (model.weight.norm() - 1) ** 2 - metrics["distance"]
    torch.testing.assert_close(loss, expected)


def test_frechet_distance_of_gaussians_follows_from_their_means_and_deviations() -> None:
    """Independent pixels: the sum of squared differences of means and of deviations."""
    normal = random.normal(random.key(0), (20_000, 64), torch.float64)
    found = gan.frechet(normal, 3 * normal.roll(1, 1) + 0.5)
    # The covariances are sample covariances: 20,000 rows, so within 1 %.
    assert found == pytest.approx(64 * (0.5**2 + 2**2), rel=0.01)
    assert gan.frechet(normal, normal) == pytest.approx(0, abs=1e-6)


def test_short_gan_training_brings_samples_nearer_to_the_digits(
    tmp_path: pathlib.Path, capsys: Any
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "gan.png"
    found = gan.main(["--steps", "16", "--no-compile", "--picture", str(path)])
    samples: Tensor = found.samples
    assert samples.shape == (1000, 64)
    assert 0 <= samples.min() < samples.max() <= 1
    params, _ = gan.GENERATE.init(random.key(0))
    untrained, _ = gan.GENERATE(params, {}, random.key(0), gan.noise(random.key(1), 1000))
    before, after = (gan.frechet(images, found.held_out) for images in (untrained, samples))
    assert after < 0.7 * before  # measured 5.6 and 11.1
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out
