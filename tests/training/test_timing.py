"""Seconds of compiling are told from those of running."""

import time

import jax
import jax.numpy as jnp

from jaxrec.training.timing import _union, timed


def test_what_is_compiled_already_takes_no_compiling():
    function = jax.jit(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: jnp.sin(y) @ y, x))
    x = jnp.ones((4, 4))
    first, took = timed(function, x)
    again, later = timed(function, x)
    assert took.compiling > 0
    assert later.compiling == 0 and later.running > 0
    assert (first == again).all()


def test_waiting_is_running_and_both_make_the_whole():
    began = time.perf_counter()
    _, took = timed(lambda: time.sleep(0.05))
    whole = time.perf_counter() - began
    assert took.compiling == 0
    assert 0.05 <= took.running <= whole


def test_a_trace_within_another_counts_once():
    assert _union([(0, 1), (0.2, 0.5), (0.5, 3), (7, 8)]) == 4
    assert _union([]) == 0
