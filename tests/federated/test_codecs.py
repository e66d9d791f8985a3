"""Messages of few bits: what the receiver reads, how long they are, how far off they may be."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrec.federated import codecs

CODECS = ["int8", "int4", "sign"]
MOST = {"int8": 127, "int4": 7}
every_codec = pytest.mark.parametrize("codec", CODECS)

round_trip = jax.jit(codecs.round_trip, static_argnums=1)
encode = jax.jit(codecs.encode, static_argnums=1)
decode = jax.jit(codecs.decode, static_argnums=(1, 2))


def table(*shape, seed=0):
    """Rows of very different sizes."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-6, 6, (*shape[:-1], 1))
    return (sizes * rng.normal(size=shape)).astype(np.float32)


def slow_round_trip(values, codec):
    """One row at a time; scales as bfloat16."""
    read = np.zeros_like(values)
    for place in np.ndindex(values.shape[:-1]):
        row = values[place]
        if codec == "sign":
            scale = np.abs(row).mean().astype(ml_dtypes.bfloat16).astype(np.float32)
            read[place] = scale * np.where(row > 0, 1, -1)
        elif row.any():
            most = MOST[codec]
            scale = (np.abs(row).max() / np.float32(most)).astype(ml_dtypes.bfloat16)
            scale = scale.astype(np.float32)
            read[place] = scale * np.clip(np.round(row / scale), -most, most)
    return read


@every_codec
@pytest.mark.parametrize("shape", [(9,), (6, 1), (5, 8), (4, 31), (2, 3, 13), (40, 32)], ids=str)
def test_the_receiver_reads_the_round_trip(codec, shape):
    values = table(*shape)
    values[(0,) * (len(shape) - 1)] = 0
    message = encode(values, codec)
    read = decode(message, codec, shape[-1])
    assert message.payload.dtype == jnp.uint8 and message.scale.dtype == jnp.bfloat16
    assert read.shape == shape and read.dtype == jnp.float32
    np.testing.assert_array_equal(read, round_trip(values, codec))
    np.testing.assert_array_equal(read, codecs.decode(message, codec, shape[-1]))
    np.testing.assert_allclose(read, slow_round_trip(values, codec), rtol=1e-6)
    np.testing.assert_array_equal(read[(0,) * (len(shape) - 1)], 0)


def test_bits_lie_in_the_payload_as_documented():
    row = np.float32([7, -7, 3])
    assert encode(row, "int4").payload.tolist() == [0x79, 0x30]  # two's complement, high half first
    assert encode(127 * row / 7, "int8").payload.tolist() == [127, 129, 54]
    assert encode(row, "sign").payload.tolist() == [0b10100000]


def test_float32_travels_as_it_is():
    values = table(4, 7)
    np.testing.assert_array_equal(round_trip(values, "float32"), values)
    assert codecs.message_bytes("float32", 4, 7) == values.nbytes


@every_codec
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 31, 32])
def test_bytes_are_those_of_what_travels(codec, width):
    message = encode(table(5, width), codec)
    assert message.payload.nbytes + message.scale.nbytes == codecs.message_bytes(codec, 5, width)


@pytest.mark.parametrize(
    ("codec", "number"), [("float32", 49_152), ("int8", 13_056), ("int4", 6_912), ("sign", 2_304)]
)
def test_bytes_of_dual_codebooks(codec, number):
    assert codecs.message_bytes(codec, 2 * 3 * 64, 32) == number
    if codec != "float32":
        message = encode(table(2 * 3, 64, 32), codec)
        assert message.payload.nbytes + message.scale.nbytes == number


@every_codec
def test_a_batch_is_its_tables_one_by_one(codec):
    batch = table(3, 4, 13)
    expected = np.stack([round_trip(one, codec) for one in batch])
    np.testing.assert_array_equal(round_trip(batch, codec), expected)
    found = jax.jit(jax.vmap(lambda one: codecs.round_trip(one, codec)))(batch)
    np.testing.assert_array_equal(found, expected)
    messages = jax.jit(jax.vmap(lambda one: codecs.encode(one, codec)))(batch)
    loop = [encode(one, codec) for one in batch]
    chex.assert_trees_all_equal(messages, jax.tree.map(lambda *m: np.stack(m), *loop))


def test_sign_takes_the_scale_nearest_to_the_row():
    values = table(200, 16)
    read = np.asarray(round_trip(values, "sign"))
    least = np.sum((values - read) ** 2, axis=1)
    for factor in (0.95, 1.05):
        assert (least < np.sum((values - factor * read) ** 2, axis=1)).all()


def sums_sent(values, rounds, feedback):
    """The sum that is read when the same table is sent in every round."""

    def send(carry, _):
        error, total = carry
        read = codecs.round_trip(values + error, "sign")
        return (feedback * (values + error - read), total + read), None

    start = jnp.zeros_like(values), jnp.zeros_like(values)
    return jax.jit(lambda: jax.lax.scan(send, start, length=rounds)[0][1])()


def test_error_feedback_sends_in_the_long_run_what_sign_rounds_off():
    values = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
    size = np.linalg.norm(values)
    gaps = {
        rounds: np.linalg.norm(np.asarray(sums_sent(values, rounds, 1.0)) / rounds - values) / size
        for rounds in (10, 100, 1000)
    }
    assert gaps[100] < 0.2 * gaps[10] and gaps[1000] < 0.2 * gaps[100]
    assert gaps[1000] < 0.01
    alone = np.asarray(sums_sent(values, 1000, 0.0)) / 1000
    assert np.linalg.norm(alone - values) > 0.3 * size


LEAST, GREATEST = 2.0**-40, 2.0**40
number = st.one_of(
    st.just(0.0), st.floats(LEAST, GREATEST, width=32), st.floats(-GREATEST, -LEAST, width=32)
)
tables = st.sampled_from([1, 5, 8, 13]).flatmap(
    lambda width: hnp.arrays(np.float32, (3, width), elements=number)
)
in_short = settings(max_examples=40, deadline=None)


@every_codec
@in_short
@given(values=tables, power=st.integers(-20, 20))
def test_properties_of_every_codec(codec, values, power):
    read = round_trip(values, codec)
    np.testing.assert_array_equal(decode(encode(values, codec), codec, values.shape[1]), read)
    np.testing.assert_array_equal(round_trip(read, codec), read)
    scaled = np.float32(2.0) ** power
    np.testing.assert_array_equal(round_trip(scaled * values, codec), scaled * np.asarray(read))
    if codec != "sign":  # a zero has to be given either sign
        np.testing.assert_array_equal(round_trip(-values, codec), -read)


@pytest.mark.parametrize("codec", list(MOST))
@in_short
@given(values=tables)
def test_integers_are_off_by_half_a_step_at_most(codec, values):
    message = encode(values, codec)
    step = np.asarray(message.scale, np.float64)[:, None]
    read = np.asarray(round_trip(values, codec), np.float64)
    assert (np.abs(values - read) <= 0.5001 * step).all()
    most = np.abs(values).max(axis=1, keepdims=True).astype(np.float64)
    np.testing.assert_allclose(step, most / MOST[codec], rtol=2.0**-8)


@in_short
@given(values=tables)
def test_sign_shrinks_what_is_left_by_as_much_as_one_bit_can(values):
    """|v - s sign(v)|^2 = |v|^2 - |v|_1^2 / D for the best s; bfloat16 keeps 8 bits of it."""
    values64 = values.astype(np.float64)
    left = np.sum((values64 - np.asarray(round_trip(values, "sign"), np.float64)) ** 2, axis=1)
    gain = np.abs(values64).sum(axis=1) ** 2 / values.shape[1]
    whole = np.sum(values64**2, axis=1)
    assert (left <= whole - gain + (2.0**-14) * gain + 1e-6 * whole).all()
