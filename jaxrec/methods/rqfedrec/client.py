"""What a client of RQFedRec does: it fits its users to the codebooks, then sends their gradient.

The upload [P, K, D] of the codebooks' gradient is followed by that of the context codebooks, where
there are any: [2 P, K, D].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.federated import catalogue, codecs, local
from jaxrec.federated.catalogue import Catalogue, View
from jaxrec.federated.uploads import Factored
from jaxrec.methods.rqfedrec import context
from jaxrec.methods.rqfedrec.config import Config
from jaxrec.methods.rqfedrec.state import Broadcast, Shared
from jaxrec.ops import fold_in
from jaxrec.types import Clients

Private = tuple[jax.Array, jax.Array]  # users [U, D + T + 1], what was rounded off of uploads


def prior(config: Config) -> jax.Array:
    """The user vector [D + T + 1] that knows nothing: it ranks by popularity."""
    return jnp.zeros(config.width + config.text_numbers + 1).at[-1].set(1.0)


def view(config: Config, items: Catalogue, clients: Clients) -> View:
    """One client's choices among all items."""
    return catalogue.whole(items, clients, local.row_weights(clients, config.recency))


def sampled_view(
    config: Config, shared: Shared, sent: Broadcast, clients: Clients, key: jax.Array
) -> View:
    """One client's choices among its own rows and random rivals."""
    return catalogue.sampled(
        sent.codebooks,
        shared.codes.table,
        shared.text,
        shared.popularity,
        clients,
        local.row_weights(clients, config.recency),
        config.negatives,
        key,
    )


def fit(
    config: Config, start: jax.Array, seen: View, sent: Broadcast, clients: Clients
) -> tuple[jax.Array, View]:
    """The client's users [U, D + T + 1], and the view of the rows that it believes."""
    user = follow(config, start, seen, sent)
    if config.drop_loss:
        seen = without_doubtful(config, user, seen, clients)
        user = follow(config, user, seen, sent)
    return user, seen


def follow(
    config: Config, start: jax.Array, seen: View, sent: Broadcast, times: int = 1
) -> jax.Array:
    """The users [U, D + T + 1] after `times` times `user_steps` Newton steps."""
    return fold_in.fold_in(
        start,
        seen.items.features,
        seen.chosen,
        seen.offset,
        prior(config),
        sent.curvature,
        l2=config.l2,
        damping=config.damping,
        steps=times * config.user_steps,
    )


def context_gradient(config: Config, seen: View, sent: Broadcast, clients: Clients) -> jax.Array:
    """The gradient [P, K, D] in the context codebooks of the loss of the newest rows."""
    older = context.before(clients, context.targets(config, clients)[clients.user] - 1)
    earlier = catalogue.choose(seen, older, local.row_weights(older, config.recency))
    unfitted = jnp.broadcast_to(prior(config), (*clients.users.shape, len(prior(config))))
    user = follow(config, unfitted, earlier, sent, times=2)
    return context.gradient(config, sent.context, user, seen, clients)


def without_doubtful(config: Config, user: jax.Array, seen: View, clients: Clients) -> View:
    """The view without the rows of the highest loss: random ones are hard to explain."""
    scores = user @ seen.items.features.T + seen.offset  # [U, J]
    losses = jax.nn.logsumexp(scores, axis=1)[clients.user] - scores[clients.user, seen.slot]
    place = jnp.argsort(jnp.argsort(jnp.where(clients.mask, -losses, jnp.inf)))  # 0: the highest
    doubtful = place < jnp.floor(config.drop_loss * clients.weight + 1e-4)  # .29 * 100 is 28.99999
    weights = jnp.where(doubtful, 0, local.row_weights(clients, config.recency))
    return catalogue.choose(seen, clients, weights)


def train(
    config: Config,
    sent: Broadcast,
    items: Catalogue | None,
    shared: Shared,
    private: Private,
    clients: Clients,
    key: jax.Array,
) -> tuple[Factored | jax.Array, Private, jax.Array]:
    """One client's round; uploads the gradient in all codebooks as the server reads it.

    Args:
      items: the whole catalogue; None where rivals are sampled.
    """
    user, error = private
    if items is None:
        seen = sampled_view(config, shared, sent, clients, key)
    else:
        seen = view(config, items, clients)
    user, seen = fit(config, user, seen, sent, clients)
    scores = user @ seen.items.features.T + seen.offset
    number = jnp.maximum(clients.weight, 1)
    loss = fold_in.loss(scores, seen.chosen).sum() / number
    residual = fold_in.residual(scores, seen.chosen) / number
    if config.factored:
        return Factored(residual, user[:, : config.width]), (user, error), loss
    if config.codebook_steps == 1:
        change = codebook_gradient(config, residual, user[:, : config.width], seen.items)
    else:
        change = descend(config, user, sent.codebooks, seen, number)
    if config.next_rows:
        of_context = context_gradient(config, seen, sent, clients) / number
        change = jnp.concatenate([change, of_context])
    if config.privacy != "plain":  # its integers are everybody's
        return change, (user, error), loss
    upload = codecs.round_trip(change + error if config.keeps_error else change, config.uplink)
    error = change + error - upload if config.keeps_error else error
    return upload, (user, error), loss


def descend(
    config: Config, user: jax.Array, codebooks: jax.Array, seen: View, number: jax.Array
) -> jax.Array:
    """The mean gradient [P, K, D] of several steps on the client's own codebooks."""
    coded, rest = user[:, : config.width], user[:, config.width :]
    fixed = rest @ seen.items.features[:, config.width :].T + seen.offset  # of texts, popularity

    def step(own, _):
        table = jnp.einsum("ud,pkd->upk", coded, own)
        scores = catalogue.look_up(table, seen.items) + fixed
        residual = fold_in.residual(scores, seen.chosen) / number
        gradient = codebook_gradient(config, residual, coded, seen.items)
        return own - config.codebook_learning_rate * gradient, None

    last, _ = jax.lax.scan(step, codebooks, length=config.codebook_steps)
    return (codebooks - last) / (config.codebook_learning_rate * config.codebook_steps)


def codebook_gradient(
    config: Config, residual: jax.Array, user: jax.Array, items: Catalogue
) -> jax.Array:
    """The loss's gradient in the codebooks [P, K, D], from that in the scores [U, J]."""
    return jnp.einsum("upk,ud->pkd", catalogue.by_code(residual, items, config.codes), user)
