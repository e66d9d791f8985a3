"""Distillation against its formulas, entry by entry, and its gradients against plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.llmd4rec import distill
from jaxrec.ops import losses

RNG = np.random.default_rng(0)
NUMBER, ITEMS, WIDTH, WIDER = 13, 21, 5, 7
HIDDEN = RNG.normal(size=(NUMBER, WIDTH)).astype(np.float32)
TABLE = RNG.normal(size=(ITEMS, WIDTH)).astype(np.float32)
TEACHER = RNG.normal(size=(NUMBER, WIDER)).astype(np.float32)
TEACHER_TABLE = RNG.normal(size=(ITEMS, WIDER)).astype(np.float32)
TARGET = RNG.integers(ITEMS, size=NUMBER)
TARGET[:3] = 4  # several places with one target
WHERE = RNG.random(NUMBER) < 0.6
ODD = np.where(WHERE, TARGET, ITEMS + 5)  # targets of padding: any value
WEIGHT = RNG.uniform(0, 2, NUMBER).astype(np.float32)


def quick(function):
    return jax.jit(function)


def distilled(hidden, table, teacher, teacher_table, weight, heat, where=None, chunk=None):
    """The mean of KD alone over the places that count."""
    where = np.ones(len(hidden), bool) if where is None else where
    learnt = distill.learn(
        hidden, table, teacher, teacher_table, np.zeros(len(hidden), int),
        where=where, weight=weight, cross=0.0, temperature=heat, chunk=chunk,
    )  # fmt: skip
    return learnt.loss / np.sum(where)


def softmax(scores):
    share = np.exp(scores - scores.max(-1, keepdims=True))
    return share / share.sum(-1, keepdims=True)


def weight_of(student, teacher):
    """The formula of the method sheet, case by case."""
    if student > teacher:
        return np.clip(1 + (student - teacher) / max(teacher, 1), 0, 2)
    return np.clip(1 - (teacher - student) / max(student, 1), 0, 2)


def divergence(heat, hidden=HIDDEN, table=TABLE):
    """T^2 KL(teacher || student) of each place, in doubles."""
    goal = softmax(TEACHER.astype(float) @ TEACHER_TABLE.T.astype(float) / heat)
    soft = softmax(hidden.astype(float) @ table.T.astype(float) / heat)
    return heat**2 * np.sum(goal * np.log(goal / soft), axis=1)


def plain(hidden, table, weight, *, cross, share, heat):
    """The same loss with all scores at once, for its gradients."""
    scores, theirs = hidden @ table.T, TEACHER @ TEACHER_TABLE.T
    gain = jnp.take_along_axis(jax.nn.log_softmax(scores), TARGET[:, None], 1)[:, 0]
    goal, soft = jax.nn.log_softmax(theirs / heat), jax.nn.log_softmax(scores / heat)
    apart = heat**2 * weight * jnp.sum(jnp.exp(goal) * (goal - soft), axis=1)
    return jnp.sum(share * apart - cross * gain, where=WHERE)


def test_ranks_count_what_is_strictly_above():
    scores = np.array([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    for target, expected in ((0, [4, 1]), (1, [1, 1]), (2, [3, 1]), (3, [1, 1])):
        assert distill.ranks(scores, jnp.full(2, target)).tolist() == expected
    drawn = RNG.normal(size=(3, 4, 50)).astype(np.float32)
    target = RNG.integers(50, size=(3, 4))
    order = np.argsort(np.argsort(-drawn, axis=-1), axis=-1)
    expected = 1 + np.take_along_axis(order, target[..., None], -1)[..., 0]
    np.testing.assert_array_equal(distill.ranks(drawn, target), expected)


def test_weights_are_the_papers_and_add_up_to_two():
    student, teacher = (a.ravel() for a in np.meshgrid([1, 2, 3, 5, 8, 500], [1, 2, 4, 5, 999]))
    found = distill.weights(student, teacher)
    expected = [weight_of(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found + distill.weights(teacher, student), 2, rtol=1e-6)
    assert distill.weights(7, 7) == 1
    assert distill.weights(2, 1) == 2 and distill.weights(1, 2) == 0


@pytest.mark.parametrize(("heat", "chunk"), [(1.0, None), (2.0, 4), (3.5, 13)])
def test_the_distillation_loss_is_its_formula(heat, chunk):
    arrays = HIDDEN, TABLE, TEACHER, TEACHER_TABLE, WEIGHT
    loss = lambda where: quick(lambda: distilled(*arrays, heat, where, chunk))()
    found = loss(None)
    assert found == pytest.approx(np.mean(WEIGHT * divergence(heat)), rel=1e-5)
    found = loss(WHERE)
    assert found == pytest.approx(np.mean((WEIGHT * divergence(heat))[WHERE]), rel=1e-5)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("cross", "share", "scale"), [(1.0, 0.7, 1.0), (0.0, 2.0, 20.0)])
def test_learning_has_the_parts_and_gradients_of_the_plain_losses(given, cross, share, scale):
    def ours(h, e):
        learnt = distill.learn(
            scale * h, e, TEACHER, TEACHER_TABLE, ODD, where=WHERE,
            weight=WEIGHT if given else None, cross=cross, share=share, temperature=2.0, chunk=4,
        )  # fmt: skip
        return 3 * learnt.loss, learnt

    (value, learnt), gradients = quick(jax.value_and_grad(ours, (0, 1), has_aux=True))(
        HIDDEN, TABLE
    )
    scores, theirs = scale * HIDDEN @ TABLE.T, TEACHER @ TEACHER_TABLE.T
    student, teacher = (np.asarray(distill.ranks(each, TARGET)) for each in (scores, theirs))
    weight = WEIGHT if given else np.array(list(map(weight_of, student, teacher)), np.float32)
    np.testing.assert_array_equal(learnt.student, np.where(WHERE, student, 0))
    np.testing.assert_array_equal(learnt.teacher, np.where(WHERE, teacher, 0))
    np.testing.assert_allclose(learnt.weight, np.where(WHERE, weight, 0), rtol=1e-6)
    expected = np.sum(WHERE * weight * divergence(2.0, scale * HIDDEN))
    assert learnt.distilled == pytest.approx(expected, rel=1e-5)
    crossed = losses.next_item(scale * HIDDEN, TABLE, TARGET, where=WHERE)
    assert learnt.cross == pytest.approx(float(crossed), rel=1e-5)
    assert value == pytest.approx(3 * float(cross * crossed + share * expected), rel=1e-5)
    loss = lambda h, e: 3 * plain(scale * h, e, weight, cross=cross, share=share, heat=2.0)
    wanted = quick(jax.grad(loss, (0, 1)))(HIDDEN, TABLE)
    for found, gradient in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-4 * scale)
    assert not gradients[0][~WHERE].any()
    np.testing.assert_allclose(quick(ours)(HIDDEN, TABLE)[0], value, rtol=1e-5)  # without gradients


def test_equal_scores_teach_nothing():
    loss = lambda h, e: distilled(h, e, HIDDEN, TABLE, WEIGHT, 2.0, chunk=4)
    value, gradients = quick(jax.value_and_grad(loss, (0, 1)))(HIDDEN, TABLE)
    assert abs(value) < 1e-6  # of sums that are rounded in another order
    assert max(np.abs(gradient).max() for gradient in gradients) < 1e-6


def test_the_teacher_gets_no_gradient():
    loss = lambda t, e, w: distilled(HIDDEN, TABLE, t, e, w, 2.0)
    for gradient in quick(jax.grad(loss, (0, 1, 2)))(TEACHER, TEACHER_TABLE, WEIGHT):
        assert not gradient.any()


def test_learning_never_holds_all_scores():
    loss = lambda h, e: (
        distill.learn(h, e, TEACHER, TEACHER_TABLE, TARGET, where=WHERE, chunk=4).loss
    )
    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(HIDDEN, TABLE))
    assert f"[4,{ITEMS}]" in program
    assert f"[{NUMBER},{ITEMS}]" not in program and f"[16,{ITEMS}]" not in program


def test_catalogues_and_places_must_be_the_same():
    for arrays in (
        (HIDDEN, TABLE[1:], TEACHER, TEACHER_TABLE, TARGET),
        (HIDDEN, TABLE, TEACHER[1:], TEACHER_TABLE, TARGET),
        (HIDDEN, TABLE, TEACHER, TEACHER_TABLE, TARGET[:, None]),
    ):
        with pytest.raises(AssertionError):
            distill.learn(*arrays, where=WHERE)


def test_padding_alone_teaches_nothing():
    nowhere = np.zeros(NUMBER, bool)
    loss = lambda h, e: distill.learn(h, e, TEACHER, TEACHER_TABLE, ODD, where=nowhere).loss
    value, gradients = quick(jax.value_and_grad(loss, (0, 1)))(HIDDEN, TABLE)
    assert value == 0
    assert not gradients[0].any() and not gradients[1].any()
