"""What federated methods state in `Traffic`, against the arrays that cross in a traced round.

What goes up is what a client's local work returns, encoded as the method says. What goes down are
the server's arrays that local work reads. Left out on both sides are single numbers that ride along
with any message: a client's weight, its metrics and the number of the round.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text import texts, tfidf
from jaxrec.federated import codecs, cooccurrence, engine
from jaxrec.federated.cohort import CohortConfig
from jaxrec.federated.uploads import Factored, Touched, multiply
from jaxrec.methods import METHODS, fedals, fedavg, fedcia, fedmf, local_only, popularity, rqfedrec
from jaxrec.methods.fedcia import linear, newton, similarity
from jaxrec.methods.fedcia import method as fedcia_method
from jaxrec.methods.rqfedrec import method as rqfedrec_method
from jaxrec.methods.rqfedrec import server as rqfedrec_server
from jaxrec.ops.linalg import polar
from jaxrec.types import Traffic

USERS, ITEMS, CLIENTS, WIDTH, RANK = 36, 30, 6, 4, 5
KEY = jax.random.key(0)
CODED = {
    "width": WIDTH, "levels": 2, "codes": 5, "participation": 1.0, "sketch_participation": 1.0,
    "privacy": "plain",
}  # fmt: skip
QUICK = {"channels": "random", "start": "cold", "next_rows": 0}  # compiles in a third of the time
HOSTED = {"agentcf_text"}  # needs a host to be made


@cache
def problem():
    dataset = split(synthetic(users=USERS, items=ITEMS, clients=CLIENTS, length=12), seed=0)
    data, sizes = pack(dataset, multiple=4)
    assert any((clients.weight == 0).any() for clients in data.clients)
    return data._replace(text=jnp.asarray(tfidf(texts(dataset.items)), jnp.float32)), sizes


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def encoded(table, codec) -> int:
    """Bytes of a table as a codec sends it."""
    if codec == "float32":
        return nbytes(table)
    return nbytes(jax.eval_shape(partial(codecs.encode, codec=codec), table))


class Crossing(NamedTuple):
    upload: Any  # shapes of what a client sends
    read: dict[str, Any]  # shapes of the server's arrays that it reads, by name


def reads(work, shared, *rest) -> dict[str, Any]:
    """The arrays of `shared` that a client's work needs."""
    jaxpr = jax.make_jaxpr(work)(shared, *rest).jaxpr
    used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    used |= set(map(id, jaxpr.outvars))
    leaves = jax.tree_util.tree_leaves_with_path(shared)
    return {
        jax.tree_util.keystr(path): leaf
        for (path, leaf), variable in zip(leaves, jaxpr.invars, strict=False)
        if id(variable) in used
    }


def crossings(monkeypatch, module, made) -> list[Crossing]:
    """What crosses for one client of every bucket in a round, which is only traced."""
    noted = []

    def noting(local, aggregate, shared, private, buckets, key, **settings):
        for work, own, clients in zip(local, private, buckets, strict=True):
            own, client = jax.tree.map(lambda leaf: leaf[0], (own, clients))
            upload, *_ = jax.eval_shape(work, shared, own, client, key)
            if isinstance(upload, Factored | Touched):
                upload = jax.eval_shape(settings.get("product", multiply), upload)
            noted.append(Crossing(upload, reads(work, shared, own, client, key)))
        return engine.federated_round(local, aggregate, shared, private, buckets, key, **settings)

    monkeypatch.setattr(module, "federated_round", noting)
    data, _ = problem()
    jax.eval_shape(made.step, jax.eval_shape(made.init, KEY, data), data, KEY)
    assert len(noted) >= len(data.clients)
    return noted


@pytest.fixture
def secure_sums(monkeypatch):
    """Notes every secure sum as it runs: the shape of a client's array, and how many sent one."""
    noted = []

    def noting(uploads, items):
        shape = (items, *uploads[0].rows.shape[2:])
        sent = sum(
            jnp.sum(jnp.any(rows != 0, axis=tuple(range(1, rows.ndim)))) for _, rows in uploads
        )
        jax.debug.callback(lambda number: noted.append((shape, int(number))), sent)
        return cooccurrence.plain_sum(uploads, items)

    monkeypatch.setattr(cooccurrence.item_counts, "__defaults__", (noting,))
    monkeypatch.setattr(cooccurrence.recent_counts, "__defaults__", (noting,))
    monkeypatch.setitem(cooccurrence.item_vectors.__kwdefaults__, "secure_sum", noting)
    return noted


def run(function, *args):
    found = jax.block_until_ready(jax.jit(function)(*args))
    jax.effects_barrier()
    return found


def test_whoever_has_a_cohort_is_held_to_account_here():
    cohorts = {name for name, m in METHODS.items() if issubclass(m.Config, CohortConfig)}
    assert cohorts == {"fedals", "fedavg", "fedcia", "rqfedrec"}
    others = set(METHODS) - cohorts - HOSTED - {"popularity"}
    for name in others:
        assert METHODS[name].make(METHODS[name].Config(), problem()[1]).traffic == Traffic()


def test_local_only_sends_nothing(monkeypatch):
    made = local_only.make(local_only.Config(width=WIDTH), problem()[1])
    for crossing in crossings(monkeypatch, local_only, made):
        assert nbytes(crossing) == 0
    assert made.traffic == Traffic()


def test_popularity_is_one_secure_sum(secure_sums):
    data, sizes = problem()
    made = popularity.make(popularity.Config(privacy="plain"), sizes)
    state, _ = run(made.step, made.init(KEY, data), data, KEY)
    assert secure_sums == [((ITEMS,), CLIENTS)]
    assert made.traffic == Traffic(up=4 * ITEMS, down=nbytes(made.prepare(state, data)))


@pytest.mark.parametrize("settings", [{}, {"layers": 1}, {"attackers": 0.5}, {"block": 2}], ids=str)
def test_fedavg_sends_the_item_table_and_its_change(monkeypatch, settings):
    made = fedavg.make(
        fedavg.Config(width=WIDTH, upload="change", privacy="plain", **settings), problem()[1]
    )
    for upload, read in crossings(monkeypatch, fedavg, made):
        assert set(read) == {".item"}
        assert made.traffic == Traffic(up=nbytes(upload), down=nbytes(read))


@pytest.mark.parametrize("settings", [{}, {"attackers": 0.5}], ids=str)
def test_fedmf_sends_a_gradient_of_the_item_table_and_once_the_counts(
    monkeypatch, secure_sums, settings
):
    data, sizes = problem()
    made = fedavg.make(
        fedavg.Config(width=WIDTH, upload="gradient", privacy="plain", **settings), sizes
    )
    run(made.init, KEY, data)
    assert secure_sums == [((ITEMS,), CLIENTS)]
    for upload, read in crossings(monkeypatch, fedmf, made):
        assert set(read) == {".item", ".shares"}  # shares stay as they are
        assert made.traffic == Traffic(
            up=nbytes(upload),
            down=nbytes(read[".item"]),
            setup_up=4 * ITEMS,
            setup_down=nbytes(read[".shares"]),
        )


def test_federated_als_sends_equations_and_once_the_counts(monkeypatch, secure_sums):
    data, sizes = problem()
    made = fedals.make(fedals.Config(width=WIDTH, privacy="plain", recency=0.0), sizes)
    run(made.init, KEY, data)
    assert secure_sums == [((ITEMS,), CLIENTS)]
    for upload, read in crossings(monkeypatch, fedals, made):
        assert made.traffic == Traffic(
            up=nbytes(upload), down=nbytes(read), setup_up=4 * ITEMS, setup_down=4 * ITEMS
        )


PAIRS = {".similarity.vectors", ".similarity.values"}


@pytest.mark.parametrize(
    "settings",
    [{"upload": "factor"}, {"align": "gradient"}, {"model": "mf:6,lightgcn:2"}],
    ids=str,
)
def test_fedcia_sends_factors_or_sketches_and_eigenpairs(monkeypatch, settings):
    config = fedcia.Config(**{"width": WIDTH, "rank": RANK, "privacy": "plain"} | settings)
    made = fedcia.make(config, problem()[1])
    found = crossings(monkeypatch, fedcia_method, made)
    for _, read in found:
        assert set(read) == PAIRS | {".rounds"}
        assert made.traffic.down == nbytes([read[name] for name in PAIRS])
    assert made.traffic == Traffic(
        up=np.mean([nbytes(upload) for upload, _ in found]), down=made.traffic.down
    )


def test_newton_clients_send_what_similarities_should_change_by(monkeypatch):
    made = fedcia.make(fedcia.Config(width=WIDTH, privacy="plain"), problem()[1])
    for upload, read in crossings(monkeypatch, newton, made):
        assert set(read) == {".vectors", ".values"}
        assert made.traffic == Traffic(up=nbytes(upload), down=nbytes(list(read.values())))


@pytest.mark.parametrize("module", ["fedavg", "local_only"])
def test_what_flax_modules_share_is_counted(monkeypatch, module):
    made = METHODS[module].make(
        METHODS[module].Config(width=WIDTH, model="mlp", **SHARING[module]), problem()[1]
    )
    for upload, _ in crossings(monkeypatch, METHODS[module], made):
        assert made.traffic == Traffic(up=nbytes(upload), down=nbytes(upload))


SHARING = {"fedavg": {"upload": "change", "privacy": "plain"}, "local_only": {}}


@pytest.mark.parametrize("rank", [2, RANK])
def test_clients_that_rebuild_their_tables_get_the_rotation_of_the_common_one(monkeypatch, rank):
    """Given the eigenpairs, the table V_D values_D^(1/2) Q is the rotation Q."""
    config = fedcia.Config(width=WIDTH, rank=rank, tables="rebuilt", privacy="plain")
    made = fedcia.make(config, problem()[1])
    for upload, read in crossings(monkeypatch, fedcia_method, made):
        assert set(read) == PAIRS | {".table"}
        pairs = similarity.Similarity(read[".similarity.vectors"], read[".similarity.values"])
        rotation = jax.eval_shape(
            lambda table, pairs: polar(pairs.vectors[:, :WIDTH].T @ table), read[".table"], pairs
        )
        assert made.traffic == Traffic(up=nbytes(upload), down=nbytes(pairs) + nbytes(rotation))


def triangle(matrix) -> int:
    """Bytes of a matrix, of a symmetric one without what is below its diagonal."""
    symmetric = np.allclose(matrix, np.swapaxes(matrix, -1, -2), atol=1e-6)
    return 4 * (ITEMS * (ITEMS + 1) // 2 if symmetric else ITEMS**2)


@pytest.mark.parametrize("model", ["gfcf", "ease"])
def test_a_lossless_model_is_a_secure_sum_of_symmetric_matrices(secure_sums, model):
    data, sizes = problem()
    made = fedcia.make(fedcia.Config(model=model, singular_vectors=3, privacy="plain"), sizes)
    state, _ = run(made.step, made.init(KEY, data), data, KEY)
    degrees = secure_sums == [((ITEMS,), CLIENTS)]
    assert degrees == (model == "gfcf") and len(secure_sums) == degrees
    one = data._replace(clients=tuple(jax.tree.map(lambda x: x[:1], c) for c in data.clients[:1]))
    gram = linear._gram(one, jnp.ones(ITEMS), normalise_users=model == "gfcf")
    assert made.traffic == Traffic(
        up=triangle(gram),
        down=triangle(state.left) + nbytes(state.right),
        setup_up=4 * ITEMS * degrees,
        setup_down=4 * ITEMS * degrees,
    )


def test_the_published_form_sends_whole_similarities(secure_sums):
    data, sizes = problem()
    config = fedcia.Config(model="gfcf", form="paper", singular_vectors=3, privacy="plain")
    made = fedcia.make(config, sizes)
    state, _ = run(made.step, made.init(KEY, data), data, KEY)
    client = jax.tree.map(lambda leaf: leaf[0], data.clients[0])
    _, normalised, left, right = linear._client_factors(client, config, ITEMS)
    own = normalised.T @ normalised + left @ right
    assert not secure_sums
    assert made.traffic == Traffic(up=triangle(own), down=triangle(state.left))


def test_a_sketch_of_ease_is_some_columns_once_the_counts_are_known(secure_sums):
    data, sizes = problem()
    made = fedcia.make(fedcia.Config(model="ease", sketch=8, privacy="plain"), sizes)
    state, _ = run(made.step, made.init(KEY, data), data, KEY)
    assert secure_sums == [((ITEMS,), CLIENTS)]
    columns, diagonal = 4 * ITEMS * 8, 4 * ITEMS
    assert nbytes(state.left) == columns
    assert made.traffic == Traffic(
        up=columns, down=columns + diagonal, setup_up=4 * ITEMS, setup_down=4 * ITEMS
    )


def test_a_sketch_is_a_product_in_every_pass(monkeypatch, secure_sums):
    """Clients know the first basis by its seed; the last one they get is the eigenpairs."""
    data, sizes = problem()
    passes, rank, noted = 3, 8, []
    secure = linear._secure_sums

    def noting(*args, **settings):
        operator = secure(*args, **settings)

        def apply(right):
            product, form = operator.apply(right)
            shapes = nbytes(right), nbytes(product)
            jax.debug.callback(lambda: noted.append(shapes))
            return product, form

        return operator._replace(apply=apply)

    monkeypatch.setattr(linear, "_secure_sums", noting)
    config = fedcia.Config(
        model="gfcf", sketch=rank, passes=passes, singular_vectors=3, privacy="plain"
    )
    made = fedcia.make(config, sizes)
    run(made.step, made.init(KEY, data), data, KEY)
    down, up = np.array(noted).T
    assert len(noted) == passes
    pairs = 4 * (ITEMS * rank + rank)
    degrees = 4 * ITEMS * len(secure_sums)
    assert len(secure_sums) == 1
    assert (
        made.traffic
        == Traffic(
            up=up.sum() + 4,  # and the client's part of the trace
            down=down[1:].sum() + pairs,
            setup_up=degrees,
            setup_down=degrees,
        )
    )


def code_bytes(codes, number) -> float:
    """Bytes of a table of codes, each as few bits as `number` of them need."""
    return codes.size * (number - 1).bit_length() / 8


def summed_bytes(shape, bits) -> float:
    """Bytes of a client's masked array in a secure sum of all users' rows."""
    return np.prod(shape) * (32 if bits == 32 else (2 * 127 * USERS).bit_length()) / 8


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"uplink": "float32", "downlink": "float32", "sketch_bits": 32, "recency": 2.0},
        pytest.param({"uplink": "float32", "attackers": 0.5}, marks=pytest.mark.slow),
        pytest.param({"uplink": "float32", "clip": 0.1}, marks=pytest.mark.slow),
        {"uplink": "sign", "channels": "collaborative"},
        {"codebook_steps": 2, "channels": "semantic", "start": "cold"},
        {"uplink": "int4", "negatives": 9, "channels": "random", "start": "cold"},
    ],
    ids=str,
)
def test_rqfedrec_sends_codebooks_and_their_change(monkeypatch, secure_sums, settings):
    data, sizes = problem()
    config = rqfedrec.Config(**CODED | settings)
    made = rqfedrec.make(config, sizes)
    made = made._replace(init=jax.jit(made.init))  # traced once
    found = crossings(monkeypatch, rqfedrec_method, made)
    users = run(lambda *given: made.init(*given).user, KEY, data)
    state = jax.eval_shape(made.init, KEY, data)
    sent = jax.eval_shape(partial(rqfedrec_server.broadcast, config), state.shared)
    for upload, read in found:
        assert set(read) <= {".codes.table", ".text", ".popularity"}  # known since the set-up
        assert made.traffic.up == encoded(upload, config.uplink)
    first = encoded(sent.codebooks, config.downlink)
    assert made.traffic.down == first + encoded(sent.context, config.downlink) == 2 * first
    assert made.traffic.codes_down == code_bytes(state.shared.codes.table, config.codes)

    counts, passes = ([s for s in secure_sums if len(s[0]) == axes] for axes in (1, 2))
    assert counts == [((ITEMS,), CLIENTS)] * (1 + (config.recency > 0))
    assert len(passes) == (config.passes if config.needs_vectors else 0)
    up = down = len(counts) * nbytes(state.shared.popularity)
    down += encoded(state.shared.text, "int4") if config.text_numbers else 0
    for shape, present in passes:
        assert present == CLIENTS
        up += summed_bytes(shape, config.sketch_bits)
        basis = jax.ShapeDtypeStruct(shape, jnp.float32)
        down += encoded(basis, "int8" if config.sketch_bits == 8 else "float32")
    users = np.concatenate([user.reshape(-1, user.shape[-1]) for user in users])
    if (users[:, :-1] != 0).any():  # they are fitted to the first codebooks
        down += first
    assert (made.traffic.setup_up, made.traffic.setup_down) == (up, down)
    assert made.traffic.refresh_up == made.traffic.refresh_down == 0


def test_a_refresh_is_one_more_secure_sum_and_a_table_of_codes(secure_sums):
    data, sizes = problem()
    config = rqfedrec.Config(**CODED, **QUICK | {"channels": "collaborative"}, refresh=2)
    made = rqfedrec.make(config, sizes)
    state = run(made.init, KEY, data)
    step = jax.jit(made.step)
    for number in range(2):
        secure_sums.clear()
        state, metrics = jax.block_until_ready(step(state, data, jax.random.fold_in(KEY, number)))
        jax.effects_barrier()
        assert len(secure_sums) == number
        assert made.attendance(metrics).refreshed == CLIENTS * number
    ((shape, present),) = secure_sums
    assert present == CLIENTS
    basis = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert made.traffic.refresh_up == summed_bytes(shape, 8)
    assert made.traffic.refresh_down == encoded(basis, "int8")


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (fedavg, {"width": WIDTH, "upload": "change"}),
        (fedavg, {"width": WIDTH, "upload": "gradient"}),
        (fedcia, {"width": WIDTH, "rank": RANK, "training": "steps"}),
        (rqfedrec, CODED | QUICK),
    ],
    ids=["fedavg", "fedmf", "fedcia", "rqfedrec"],
)
def test_attendance_counts_the_clients_whose_users_moved(module, settings):
    data, sizes = problem()
    made = module.make(
        module.Config(**settings | {"participation": 0.7, "dropped": 0.3, "privacy": "plain"}),
        sizes,
    )
    users = lambda state: state.user if hasattr(state, "user") else [t.user for t in state.tables]
    state = run(made.init, KEY, data)
    step, found = jax.jit(made.step), []
    for number in range(4):
        new, metrics = step(state, data, jax.random.fold_in(KEY, number))
        pairs = zip(users(new), users(state), strict=True)
        moved = sum(int((after != before).any((1, 2)).sum()) for after, before in pairs)
        assert made.attendance(metrics).participants == moved
        found.append(moved)
        state = new
    assert min(found) > 0 and max(found) < CLIENTS and len(set(found)) > 1
