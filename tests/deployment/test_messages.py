"""Messages come out as they went in, or are refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.types import DataError


def test_a_message_comes_out_as_it_went_in():
    arrays = [np.float32(3), np.zeros((0, 2), np.int32), np.arange(11, dtype=np.uint8)]
    message = decode(encode(Message({"do": "begin", "round": 3, "names": ["a"]}, arrays)))
    assert message.head == {"do": "begin", "round": 3, "names": ["a"]}
    for found, array in zip(message.arrays, arrays, strict=True):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        encode(Message({"do": "join"}, [np.zeros(9)]))[:-1],
        save({}),
        save({}, metadata={"head": "[1]"}),
        save({}, metadata={"head": "null"}),
        save({"second": np.zeros(2)}, metadata={"head": "{}"}),
    ],
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(DataError, match=f"a message of {len(data)} bytes is damaged"):
        decode(data)


def test_a_message_of_another_version_is_refused():
    newer = save({}, metadata={"head": json.dumps({"format": 2, "do": "hello"})})
    with pytest.raises(DataError, match="of format 2, and this side reads format 1: install the"):
        decode(newer)
