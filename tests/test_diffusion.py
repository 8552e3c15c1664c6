"Diffusion: closed forms, exact posteriors, devices and dtypes; what the lessons 2.1-2.3 show, over more cases."

import pytest
import torch

from matgen_nb.diffusion.categorical import CategoricalDiffusion, sample_categories, posterior
from matgen_nb.diffusion.gaussian import GaussianDiffusion, cosine_alpha_bar
from matgen_nb.diffusion.torus import StepOptions, TorusDiffusion, score_scale, wrap, wrapped_normal_score


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def image_sum(delta, sigma):
    shifted = delta.double()[..., None] + torch.arange(-10, 11)
    return -(torch.softmax(-(shifted**2) / (2 * sigma**2), -1) * shifted).sum(-1) / sigma**2


def times(steps):
    t = torch.linspace(1000, 0, steps + 1).round().long().tolist()
    return list(zip(t, t[1:]))


def test_gaussian_marginal_of_two_jumps():
    a, diffusion = cosine_alpha_bar(1000), GaussianDiffusion()
    x = torch.full((100_000,), 2.0)
    x, _ = diffusion.add_noise(x, 200, generator(1))
    ratio = (a[600] / a[200]).float()
    x = ratio.sqrt() * x + (1 - ratio).sqrt() * torch.randn(x.shape, generator=generator(2))
    assert abs(x.mean() - 2 * a[600].sqrt()) < 0.02 and abs(x.var() - (1 - a[600])) < 0.02


@pytest.mark.parametrize("steps", [1000, 50])
def test_gaussian_reverse_recovers_a_normal(steps):
    diffusion, g, m, w = GaussianDiffusion(), generator(), 0.7, 0.5
    x = diffusion.prior((20_000,), g)
    for t, s in times(steps):
        signal, noise = diffusion.signal(t, x), diffusion.noise(t, x)
        x = diffusion.step(
            x,
            noise * (x - signal * m) / ((signal * w) ** 2 + noise**2),
            t,
            s,
            g,
            eta=1.0 if steps == 1000 else 0.0,
        )
    assert abs(x.mean() - m) < 0.03 and abs(x.std() - w) < 0.03


def test_gaussian_rows_scalars_and_clip():
    diffusion, x = GaussianDiffusion(clip=2.0), torch.randn(4, 6, generator=generator())
    t = torch.tensor([1, 300, 700, 1000])
    rows = diffusion.step(x, x, t, t - 1, generator(3), eta=0.0)
    for i in range(4):
        assert torch.allclose(
            rows[i],
            diffusion.step(x[i : i + 1], x[i : i + 1], int(t[i]), int(t[i]) - 1, eta=0.0)[0],
            atol=1e-5,
        )
    assert diffusion.step(x, x + 1, 1000, 0).abs().max() <= 2


@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.1, 0.29, 0.31, 0.5])
def test_wrapped_score(sigma):
    delta = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    truth = image_sum(delta, sigma)
    assert (wrapped_normal_score(delta, sigma) - truth).abs().max() < 1e-9 * truth.abs().max()
    assert (wrapped_normal_score(delta.float(), sigma) - truth).abs().max() < 1e-4 * truth.abs().max()
    p = torch.exp(-((delta[:-1, None] + torch.arange(-10, 11)) ** 2) / (2 * sigma**2)).sum(-1)
    if sigma > 0.01:
        rms = ((p * truth[:-1] ** 2).sum() / p.sum()).sqrt()
        assert abs(score_scale(torch.tensor(sigma, dtype=torch.float64)) / rms - 1) < 1e-6


@pytest.mark.parametrize("steps", [1000, 50])
def test_torus_reverse_recovers_a_wrapped_normal(steps):
    diffusion, g, m, w = TorusDiffusion(), generator(), 0.95, 0.08
    x = diffusion.prior((4000,), g)
    for t, s in times(steps):
        sigma = (w**2 + diffusion.sigma(t) ** 2).sqrt()
        x = diffusion.step(x, wrapped_normal_score(x - m, sigma) / diffusion.scale(t), t, s, g)
    assert 0 <= x.min() and x.max() < 1
    d = wrap(x - m + 0.5) - 0.5
    assert abs(d.mean()) < 0.01 and abs(d.std() - w) < 0.008


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t,s", [(900, 880), (600, 300), (40, 0)])
def test_a_sharpened_step_goes_farther_never_past_the_estimate(t, s, eta):
    diffusion, x0 = TorusDiffusion(1000), torch.full((5,), 0.5, dtype=torch.float64)
    x = x0 + 0.01 * torch.tensor([-3.0, -1, 0, 1, 3])
    target = -(x - x0) / diffusion.sigma(t, x) ** 2 / diffusion.scale(t, x)  # says: x_0 is at 0.5
    noise = diffusion.step(
        x, 0 * target, t, s, generator(3), StepOptions(eta)
    )  # what a step without a score does
    way = {
        c: (noise - diffusion.step(x, target, t, s, generator(3), StepOptions(eta, c)) + 0.5) % 1 - 0.5
        for c in (1.0, 2.0, 1e6)
    }
    assert torch.allclose(way[1e6], x - x0, atol=1e-9), "at most to the estimate of x_0"
    farther = torch.minimum((2 * way[1.0]).abs(), (x - x0).abs())
    assert torch.allclose(way[2.0].abs(), farther, atol=1e-9) and torch.equal(
        diffusion.step(x, target, t, s, generator(3), StepOptions(eta)),
        diffusion.step(x, target, t, s, generator(3), StepOptions(eta, 1.0)),
    )


def test_torus_at_t_zero():
    x = torch.rand(3, 3, generator=generator())
    x_t, target = TorusDiffusion().add_noise(x, torch.tensor([0, 1, 1000]), generator())
    assert torch.equal(x_t[0], x[0]) and (target[0] == 0).all() and torch.isfinite(target).all()


def test_posterior_against_matrices_and_edges():
    a, g, K = cosine_alpha_bar(1000), generator(), 9
    for _ in range(200):
        prior = torch.rand(K, generator=g, dtype=torch.float64) * (torch.rand(K, generator=g) > 0.4)
        prior[0] += 0.01
        prior /= prior.sum()
        p = torch.rand(K, generator=g, dtype=torch.float64) * (prior > 0)
        p /= p.sum()
        s, t = torch.randperm(1001, generator=g)[:2].sort().values.tolist()
        Q = lambda b: b * torch.eye(K, dtype=p.dtype) + (1 - b) * prior.expand(K, K)
        x = sample_categories(prior, g)
        truth = (p[:, None] * Q(a[s]) * Q(a[t] / a[s])[:, x] / Q(a[t])[:, x, None].clamp(min=1e-300)).sum(0)
        got = posterior(x, p, a[t], a[s], prior)
        assert (got - truth).abs().max() < 1e-6 and (got[prior == 0] == 0).all()
    one = torch.tensor([1.0, 0.0])
    assert torch.equal(posterior(torch.tensor(0), one, a[1000], a[0], one), one)


@pytest.mark.parametrize("steps", [1000, 50])
def test_categorical_stays_allowed_and_recovers(steps):
    diffusion, g, n = CategoricalDiffusion(), generator(), 10_000
    data, prior = torch.tensor([[0.7, 0.3, 0.0]]), torch.tensor([[0.2, 0.8, 0.0]]).expand(n, 3)
    x = diffusion.prior_sample(prior, g)
    for t, s in times(steps):
        b = diffusion.alpha_bar(t)
        logits = (data * (b * torch.eye(3)[x] + (1 - b) * prior.gather(1, x[:, None]))).log()
        logits[:, 2] = 20.0  # the network asks for the forbidden class; the prior forbids it
        x = diffusion.step(x, logits, t, s, prior, g)
        assert x.max() < 2
    assert abs((x == 0).double().mean() - 0.7) < 0.02


@pytest.mark.parametrize("power", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_steep_schedule_stays_a_distribution(power, dtype):
    "abar rounds to 1 long before t = 0: no step may give nan, or leave for a class out of nothing."
    noise, prior = CategoricalDiffusion(1000, power), torch.tensor([0.3, 0.0, 0.7], dtype=dtype)
    x, logits = (
        torch.tensor([0, 2, 2, 0]),
        torch.tensor([[9.0, 0, -9], [-9, 0, 9], [0, 0, 0], [-9, 0, 9]], dtype=dtype),
    )
    for t, s in [(2, 1), (20, 10), (80, 60), (500, 480), (1000, 990), (1000, 0)]:
        a_t, a_s = noise.alpha_bar(t, logits[:, 0]), noise.alpha_bar(s, logits[:, 0])
        q = posterior(x, torch.softmax(logits, -1), a_t, a_s, prior)
        assert torch.isfinite(q).all() and (q >= 0).all() and (q.sum(-1) > 0).all()
        if a_t == 1:
            assert torch.equal(noise.step(x, logits, t, s, prior), x)
        else:
            assert torch.allclose(q.sum(-1), torch.ones(4, dtype=dtype), atol=1e-3)
