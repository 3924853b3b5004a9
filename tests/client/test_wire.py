import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedfusion.client.wire import BLOCK, decode, encode

rows = arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(1, 150)), elements=st.floats(-1e3, 1e3, width=32))


@given(rows)
def test_full_precision_is_exact(vectors):
    assert np.array_equal(decode(encode(vectors, "float32"), "float32", vectors.shape), vectors)


@given(rows)
def test_half_precision_rounds_to_eleven_bits(vectors):
    sent = encode(vectors, "float16")
    assert sent["vectors"].dtype == np.float16
    error = np.abs(decode(sent, "float16", vectors.shape) - vectors)
    assert (error <= np.maximum(np.abs(vectors) * 2**-11, 2**-25)).all()


@given(rows)
def test_a_byte_is_off_by_half_a_step_of_its_block(vectors):
    sent = encode(vectors, "int8")
    assert sent["vectors"].dtype == np.int8 and sent["vectors"].shape == vectors.shape
    received = decode(sent, "int8", vectors.shape)
    for start in range(0, vectors.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        largest = np.abs(vectors[:, block]).max(1, initial=0, keepdims=True)
        assert (np.abs(received - vectors)[:, block] <= largest / 254 * 1.001 + 1e-42).all()


def test_a_byte_costs_a_quarter_and_a_scale_for_each_block():
    vectors = np.random.default_rng(0).normal(size=(2, 640)).astype(np.float32)
    sizes = {wire: sum(a.nbytes for a in encode(vectors, wire).values()) for wire in ("float32", "float16", "int8")}
    assert sizes == {"float32": 5120, "float16": 2560, "int8": 1280 + 2 * 10 * 4}


@pytest.mark.parametrize("wire", ["float32", "float16", "int8"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(wire, odd):
    vectors = np.ones((2, 70), np.float32)
    vectors[1, 66] = odd
    received = decode(encode(vectors, wire), wire, (2, 70))
    assert np.isfinite(received[0]).all() and not np.isfinite(received[1]).all()


def test_what_half_precision_cannot_hold_becomes_infinite():
    assert np.isinf(decode(encode(np.float32([[1e5]]), "float16"), "float16", (1, 1))).all()


@pytest.mark.parametrize(
    "arrays, wire, said",
    [
        ({"vectors": np.zeros((1, 3), np.float32)}, "float32", "sent float32 .1, 3., expected float32 .1, 4."),
        ({"vectors": np.zeros((1, 4), np.float32)}, "float16", "sent float32 .1, 4., expected float16"),
        ({"vectors": np.zeros((1, 4), np.int8), "scales": np.ones((1, 2), "f4")}, "int8", "expected float32 .1, 1."),
        ({"vectors": np.zeros((1, 4), np.int8), "scales": np.ones((1, 1))}, "int8", "sent float64"),
    ],
)  # fmt: skip
def test_another_type_or_shape_is_named(arrays, wire, said):
    with pytest.raises(ValueError, match=said):
        decode(arrays, wire, (1, 4))
