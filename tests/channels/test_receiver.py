import math

import pytest
import torch

from fedfusion.channels.receiver import Receiver, complex_normal
from fedfusion.types import FedfusionError

N = 4


def scene(rng, blocks=50, streams=N, snr_db=10.0, jammed=True):
    """Rayleigh streams in thermal noise, and a jammer of rank two that is as strong as one of them."""
    f = 10 ** (snr_db / 20) * complex_normal((blocks, N, streams), rng)
    g = complex_normal((blocks, N, 2), rng)
    covariance = torch.eye(N, dtype=f.dtype).expand(blocks, -1, -1) + jammed * 10 ** (snr_db / 10) * g @ g.mH
    return f, covariance


def test_mmse_has_the_textbook_error(rng):
    f, r = scene(rng)
    out = Receiver("mmse", shrink=True)(f, r, f, r)
    e = 1 - (f.mH @ torch.linalg.inv(r + f @ f.mH) @ f).diagonal(dim1=1, dim2=2).real
    assert torch.allclose(out.nmse, e, rtol=1e-9)
    assert torch.allclose(out.sinr, 1 / e - 1, rtol=1e-9) and torch.allclose(out.reported, out.sinr, rtol=1e-9)


@pytest.mark.parametrize("filter", ["mmse", "zf", "sic"])
def test_without_shrinking_the_estimate_is_unbiased_with_error_one_over_sinr(filter, rng):
    f, r = scene(rng)
    out = Receiver(filter, shrink=False)(f, r, f, r)
    assert torch.allclose(out.gain, torch.ones_like(out.gain), atol=1e-9)
    assert torch.allclose(out.nmse, 1 / out.sinr, rtol=1e-9)
    assert torch.allclose(out.reported, out.sinr, rtol=1e-6)


@pytest.mark.parametrize("filter", ["mmse", "zf", "sic"])
def test_shrinking_by_the_true_sinr_is_never_worse_than_zero_and_never_worse_than_not(filter, rng):
    f, r = scene(rng, snr_db=-5.0)
    shrunk, raw = (Receiver(filter, shrink=shrink)(f, r, f, r) for shrink in (True, False))
    assert torch.allclose(shrunk.nmse, 1 / (1 + raw.sinr), rtol=1e-9)
    assert (shrunk.nmse < 1).all() and (shrunk.nmse < raw.nmse).all() and (raw.nmse > 1).any()


def test_zero_forcing_removes_every_other_stream_whatever_the_jammer(rng):
    f, r = scene(rng)
    out = Receiver("zf", knowledge="unaware", shrink=False)(f, r, f, torch.eye(N, dtype=f.dtype).expand_as(r))
    assert torch.allclose(out.through, torch.eye(N, dtype=f.dtype).expand_as(out.through), atol=1e-9)
    assert (out.sinr <= Receiver("mmse")(f, r, f, r).sinr * (1 + 1e-9)).all()


def test_rates_of_cancellation_add_up_to_the_sum_capacity(rng):
    f, r = scene(rng)
    out = Receiver("sic")(f, r, f, r)
    capacity = torch.linalg.slogdet(r + f @ f.mH)[1] - torch.linalg.slogdet(r)[1]
    assert torch.allclose((1 + out.sinr).log().sum(1), capacity, rtol=1e-9)
    first, last = out.cancelled[0].sum(-1).argsort()[[0, -1]].tolist()
    assert first == int(f.abs().square().sum((0, 1)).argmax())
    assert torch.allclose(out.sinr[:, first], Receiver("mmse")(f, r, f, r).sinr[:, first], rtol=1e-9)
    alone = (f[:, :, last].conj() * torch.linalg.solve(r, f[:, :, last])).sum(1).real
    assert torch.allclose(out.sinr[:, last], alone, rtol=1e-9)


def test_one_antenna_is_a_scalar_channel(rng):
    f, r = complex_normal((20, 1, 1), rng), 3.0 * torch.ones(20, 1, 1, dtype=torch.complex128)
    for filter in ("mmse", "zf", "sic"):
        assert torch.allclose(Receiver(filter)(f, r, f, r).sinr, f.abs().square()[:, 0] / 3.0)


def test_an_unaware_receiver_believes_in_thermal_noise_and_pays_for_it(rng):
    f, r = scene(rng)
    thermal = torch.eye(N, dtype=f.dtype).expand_as(r)
    assert torch.equal(Receiver(knowledge="unaware").covariance(r, 1.0, rng), thermal)
    assert torch.equal(Receiver(knowledge="genie").covariance(r, 1.0, rng), r)
    unaware, genie = (Receiver(shrink=True)(f, r, f, believed) for believed in (thermal, r))
    assert (unaware.nmse >= genie.nmse * (1 - 1e-9)).all() and (unaware.nmse > 1).any()
    assert (unaware.reported > unaware.sinr).all()


def test_the_inverse_of_the_sample_covariance_is_unbiased_and_more_silence_is_better(rng):
    f, r = scene(rng, blocks=1)
    f, r = f.expand(4000, -1, -1), r.expand(4000, -1, -1)
    inverse = torch.linalg.inv(Receiver(knowledge="sample", num_silent=12).covariance(r, 1.0, rng)).mean(0)
    true = torch.linalg.inv(r[0])
    assert torch.linalg.norm(inverse - true) < 0.05 * torch.linalg.norm(true)
    errors = []
    for silent in (6, 12, 48, 1000):
        receiver = Receiver(knowledge="sample", num_silent=silent, shrink=True)
        errors.append(float(receiver(f, r, f, receiver.covariance(r, 1.0, rng)).nmse.mean()))
    genie = float(Receiver(shrink=True)(f, r, f, r).nmse.mean())
    assert errors == sorted(errors, reverse=True) and genie < errors[-1] < 1.02 * genie


def test_no_number_is_refused():
    with pytest.raises(FedfusionError, match="channel.receiver.erase_above_db=nan"):
        Receiver(erase_above_db=math.nan)
