"""What a server, or a client, reads of private data under each threat model.

    python -m benchmarks attacks [--quick]

Three tables: items of one client from its upload and from the sum over clients; whole histories
from sums over some one-user clients, with the support that is asked for; membership from a sum,
from the served EASE and from the scores that are served. Attackers are those of
`jaxrec.federated.attacks`. `--quick` leaves movielens-1m out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from benchmarks import seen
from benchmarks.common import Bench
from jaxrec.data.sources import load
from jaxrec.federated import user_sums
from jaxrec.federated.attacks import measure, membership, models, sums, uploads
from jaxrec.methods import METHODS
from jaxrec.methods.fedcia import linear
from jaxrec.methods.fedcia.config import LinearConfig
from jaxrec.methods.fedcia.gram import Gram, build, directions
from jaxrec.training.prepared import Prepared, prepare
from jaxrec.training.settings import read_settings
from jaxrec.types import TEST, TRAIN, Reads, Sizes

EPSILON, DELTA, ROUNDS, RIDGE = 8.0, 1e-6, 40, 500.0
SUPPORTS, COHORTS, SPLITS = (1, 2, 5, 10, 20), (5, 10, 50, 200, 943), 3


def federation(name: str, partition: str = "auto") -> Prepared:
    """A data set as a federation, with texts for the methods that read them."""
    words = {"data": name, "partition": partition, "baselines": ()}
    return prepare(
        read_settings("rqfedrec", None, words)[0], None, Reads(text=True), progress=False
    )


def histories(name: str, split: int | None = TRAIN) -> np.ndarray:
    """What each user has, int8 [U, I], in a split or in all of them."""
    dataset = load(name, progress=False)
    rows = dataset.interactions
    if split is not None:
        rows = rows[rows["split"] == split]
    held = np.zeros((dataset.num_users, dataset.num_items), np.int8)
    held[rows["user"], rows["item"]] = 1
    return held


def noise_multiplier(epsilon: float, delta: float) -> float:
    """The noise of one Gaussian release (Balle and Wang, ICML 2018), in sensitivities."""

    def excess(sigma: float) -> float:
        half, shift = 1 / (2 * sigma), epsilon * sigma
        return norm.cdf(half - shift) - np.exp(epsilon) * norm.cdf(-half - shift) - delta

    return float(brentq(excess, 1e-2, 1e3))


# Items of a client, from its upload and from a sum.


class Attack(NamedTuple):
    """What one client's upload, or the mean of all, is read with."""

    name: str
    seen: Callable[[Prepared], seen.Seen]
    read: Callable[[np.ndarray, Any], np.ndarray]  # upload, what is public -> scores [I]
    one_user: bool | None = None  # federations that it is meant for; None: any


def upload_attacks() -> Iterator[Attack]:
    """Every kind of upload with its best attack."""
    take = lambda function, rounds, **settings: (
        lambda found: function(found.data, found.sizes, rounds, **settings)
    )
    length = lambda upload, public: uploads.rows(upload)
    first = lambda upload, public: uploads.gradient(upload)
    one = {"tables": "rebuilt", "upload": "sketch", "block": 64}
    yield Attack(
        "fedcia factor, row norms", take(seen.of_fedcia, 3, upload="factor"), length, False
    )
    sketch = take(seen.of_fedcia, 3, upload="sketch")
    yield Attack("fedcia sketch, Nystrom diagonal", sketch, uploads.sketch, False)
    sketch = take(seen.of_fedcia, 3, **one)
    yield Attack("fedcia sketch, Nystrom diagonal", sketch, uploads.sketch, True)
    yield Attack("fedavg change, round 6, row norms", take(seen.of_fedavg, 5), length, False)
    yield Attack("fedmf gradient, singular vector", take(seen.of_fedmf, 5), first, True)
    for size in (128, 256):
        for codec in ("int8", "sign"):
            rounds = take(seen.of_rqfedrec, 3, codes=size, uplink=codec)
            name = f"rqfedrec {codec}, K = {size}, least-norm gradient"
            yield Attack(name, rounds, least_norm(size))
        name = f"rqfedrec sign, K = {size}, sum over levels"
        rounds = take(seen.of_rqfedrec, 3, codes=size, uplink="sign")
        yield Attack(name, rounds, lambda upload, codes: uploads.code_sums(upload, codes), True)


def least_norm(size: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The attack on codebook gradients, the inverse of the public codes made once."""
    kept = {}

    def read(upload: np.ndarray, codes: np.ndarray) -> np.ndarray:
        if "inverse" not in kept:
            kept["inverse"] = uploads.code_inverse(codes, size)
        return uploads.codebooks(upload, kept["inverse"])

    return read


def print_uploads(name: str, partition: str) -> None:
    """One line for each upload: plain, the mean that a secure sum shows, the same with noise."""
    found = federation(name, partition)
    one_user = found.sizes.clients == found.sizes.users
    counts = histories(name).sum(0)
    print(f"\n{name}, {'one user' if one_user else 'several users'} a client: AUC / precision@n")
    print("| what is read | popularity | plain | secure_sum | central_dp, eps 8 |")
    print("|---|---|---|---|---|")
    for attack in upload_attacks():
        if attack.one_user not in (None, one_user):
            continue
        got = attack.seen(found)
        plain = np.stack([attack.read(upload, got.public) for upload in got.uploads])
        # The budget of a run over its rounds: each has 1 / sqrt(rounds) of it.
        deviation = noise_multiplier(EPSILON, DELTA) * np.sqrt(ROUNDS) * got.norm
        deviation /= found.sizes.clients
        noise = deviation * np.random.default_rng(0).normal(size=got.mean.shape)
        seen_by = [plain] + [
            np.broadcast_to(attack.read(mean, got.public), plain.shape)
            for mean in (got.mean, got.mean + noise)
        ]
        guesses = [measure.guess(scores, got.held, counts) for scores in seen_by]
        first = guesses[0]
        cells = [f"{first.popularity_auc:.3f} / {first.popularity_precision:.3f}"]
        cells += [f"{each.auc:.3f} / {each.precision:.3f}" for each in guesses]
        print("| " + " | ".join([attack.name, *cells]) + " |", flush=True)


# Whole histories, from sums over one-user clients.


def print_sums(name: str, held: np.ndarray, cohorts: tuple[int, ...], deep: bool) -> None:
    """How many histories each attack reads off the sum over some clients."""
    print(f"\n{name}: whole supported histories read off a sum; membership by G's range")
    print("| clients | min_support | items kept | rank | count 1 | peeled | few | pairs | right |")
    print("|---|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for clients in cohorts:
        own = held[rng.permutation(len(held))[:clients]].astype(np.float32)
        whole = own.T @ own
        for least in SUPPORTS:
            gram = sums.supported(np.rint(whole).astype(np.int64), least)
            known = np.diagonal(gram) > 0
            found = [len(sums.count_one(gram)), len(peeled := sums.peel(gram)[0])]
            read, rank = [peeled], ""
            if deep:
                live = gram[np.ix_(known, known)].astype(float)
                rank = np.linalg.matrix_rank(live, hermitian=True)
                read += [sums.few(gram, least + 2)[0], sums.pairs(gram)[0]]
            found += [len(each) for each in read[1:]] if deep else ["", ""]
            true = {row.tobytes() for row in (own * known).astype(np.int8)}
            right = max(sum(row.tobytes() in true for row in each) for each in read)
            cells = [clients, least, known.sum(), rank, *found, right]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


# Membership.


def ease(gram: np.ndarray) -> np.ndarray:
    """EASE's weights [I, I] as they are served."""
    config = LinearConfig(model="ease", ridge=RIDGE)
    build = jax.jit(lambda gram: linear._ease(gram, gram[0], config, jax.random.key(0)))
    return np.asarray(build(jnp.asarray(gram, jnp.float32)))


def print_membership(
    name: str, held: np.ndarray, text: jax.Array, splits: int, supports: tuple[int, ...]
) -> None:
    """AUC of users in training against as many others, from a sum and from what is served."""
    print(f"\n{name}: membership of users, AUC over {splits} splits (mean, spread)")
    print("| threat model | from the sum | from B inverted | error of B | fit of B | counts |")
    print("|---|---|---|---|---|---|")
    rows = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(held))
        half = len(held) // 2
        members, others = held[order[:half]], held[order[half:]]
        for least in supports:
            label = f"secure_sum, min_support {least}"
            gram = sums.supported((members.T.astype(np.float32) @ members).astype(np.int64), least)
            rows.setdefault(label, []).append(_exact(gram, members, others))
        label = f"central_dp, eps {EPSILON:g}, x x^T / n"
        rows.setdefault(label, []).append(_noisy(members, others, split))
        label = f"central_dp, eps {EPSILON:g}, model gram"
        rows.setdefault(label, []).append(_in_directions(members, others, text, split))
    for label, values in rows.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=len(values) > 1)
        cells = [f"{a:.3f} ± {b:.3f}" for a, b in zip(mean, spread, strict=True)]
        print("| " + " | ".join([label, *cells]) + " |", flush=True)


def _auc(score: Callable[[np.ndarray], np.ndarray], members, others) -> float:
    return measure.auc(score(members), score(others))


def _exact(gram: np.ndarray, members: np.ndarray, others: np.ndarray) -> list[float]:
    """AUCs where G and EASE of it are served; histories are cut to the items of the sum."""
    known = np.diagonal(gram) > 0
    members, others = members * known, others * known
    weights = ease(gram)
    inverted = np.rint(models.ease_gram(weights, RIDGE))
    return [
        _auc(lambda rows: membership.in_range(gram, rows), members, others),
        _auc(lambda rows: membership.in_range(inverted, rows), members, others),
        *_by_scores(weights, np.diagonal(gram), members, others),
    ]


def _noisy(members: np.ndarray, others: np.ndarray, seed: int) -> list[float]:
    """AUCs where sum x x^T / n with a budget's noise is seen, and a spectral filter is served."""
    own = _unit_rows(members)
    sigma = noise_multiplier(EPSILON, DELTA)
    gram = own.T @ own + sigma * _symmetric(np.random.default_rng(seed), held := own.shape[1])
    values, vectors = np.linalg.eigh(gram)
    kept = values > np.sqrt(2) * sigma * np.sqrt(held)
    filtered = vectors[:, kept] * (values[kept] / (values[kept] + 1)) @ vectors[:, kept].T
    from_sum = _auc(
        lambda rows: membership.leverage(gram, _unit_rows(rows), sigma), members, others
    )
    inside = _auc(lambda rows: membership.inside(gram, _unit_rows(rows)), members, others)
    return [from_sum, inside, *_by_scores(filtered, np.diagonal(gram), members, others)]


def _in_directions(members: np.ndarray, others: np.ndarray, text: jax.Array, seed: int):
    """AUCs where the two sums of the model `gram` are seen, and its weights are served."""
    users, items = members.shape
    multiplier = noise_multiplier(EPSILON, DELTA)
    config = LinearConfig(
        model="gram", privacy="central_dp", epsilon=EPSILON, noise_multiplier=multiplier
    )
    number = directions(config, sizes := Sizes(users, items, users))
    sigma = Gram(config, sizes, number).noises  # of c and of M
    rng = np.random.default_rng(seed)
    c = _unit_rows(members).sum(0) + sigma[0] * rng.normal(size=items)
    c = jnp.asarray(np.maximum(c, user_sums.FLOOR), jnp.float32)
    basis = user_sums.basis_of(config.basis, number, c, text)
    told = lambda rows: np.asarray(user_sums.directed(jnp.asarray(rows, jnp.float32), basis))
    own = told(members)
    M = own.T @ own + sigma[1] * _symmetric(rng, own.shape[1])
    model, _ = build(c, basis, jnp.asarray(M, jnp.float32), sigma[1])
    served = np.asarray(model.left) @ np.asarray(model.right).T
    from_sum = _auc(lambda rows: membership.leverage(M, told(rows), sigma[1]), members, others)
    inside = _auc(lambda rows: membership.inside(M, told(rows)), members, others)
    return [from_sum, inside, *_by_scores(served, np.asarray(c), members, others)]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows x of 0 and 1 as x / sqrt(n)."""
    return rows / np.sqrt(np.maximum(rows.sum(1, keepdims=True), 1))


def _symmetric(rng: np.random.Generator, size: int) -> np.ndarray:
    """Symmetric noise: 1/2 off the diagonal, 1 on it, as variance."""
    noise = rng.normal(size=(size, size))
    return (noise + noise.T) / 2


def _by_scores(weights: np.ndarray, counts: np.ndarray, members, others) -> list[float]:
    attacks = membership.reconstruction, membership.fit
    by_weights = [
        _auc(lambda rows, attack=attack: attack(rows @ weights, rows), members, others)
        for attack in attacks
    ]
    popular = _auc(lambda rows: rows @ counts / np.maximum(rows.sum(1), 1), members, others)
    return [*by_weights, popular]


# Interactions: what was trained on, against what the same user likes.


def print_interactions(name: str, rounds: int) -> None:
    """AUC of a train item against a held-out item of the same user, by the scores served."""
    found = federation(name)
    train, test = histories(name), histories(name, TEST)
    print(f"\n{name}: a train item against a held-out one of the same user, by served score, AUC")
    print("| method | plain | secure_sum |\n|---|---|---|")
    for label, method, settings in SERVED:
        cells = []
        for privacy in ("plain", "secure_sum"):
            if privacy != "plain" and settings.get("upload") == "factor":
                settings = settings | {"upload": "sketch"}
            config = METHODS[method].Config(privacy=privacy, **settings)
            made = METHODS[method].make(config, found.sizes)
            state = seen.trained(made, found.data, 1 if made.one_shot else rounds)
            served = jax.jit(made.prepare)(state, found.data)
            scores = np.asarray(jax.jit(made.score)(served, jnp.arange(found.sizes.users)))
            cells.append(f"{measure.interactions(scores, train > 0, test > 0):.3f}")
        print("| " + " | ".join([label, *cells]) + " |", flush=True)


SERVED = (
    ("popularity", "popularity", {}),
    ("EASE", "fedcia", {"model": "ease"}),
    ("GF-CF", "fedcia", {"model": "gfcf"}),
    ("FedCIA mf", "fedcia", {"upload": "factor", "width": 64}),
    ("FedAvg", "fedavg", {}),
    ("RQFedRec", "rqfedrec", {}),
)


def main(bench: Bench, quick: bool) -> None:
    """All tables; the bench's own are times, and here is none."""
    small = "fedcia-ml100k"
    for partition in ("auto", "user"):
        print_uploads(small, partition)
    held = histories(small)
    print_sums(small, held, COHORTS, deep=True)
    text = federation(small).data.text
    print_membership(small, held, text, SPLITS, SUPPORTS)
    print_interactions(small, 10)
    if not quick:
        held = histories("movielens-1m", None)
        print_sums("movielens-1m", held, (5, 50, 1000, len(held)), deep=False)
        text = federation("movielens-1m").data.text
        print_membership("movielens-1m", held, text, 1, (1, 5))
