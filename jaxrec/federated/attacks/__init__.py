"""Attacks on privacy: what can be read off an upload, a sum and a served model.

    uploads     one client's message, in clear -> how likely each item is in its history
    sums        a sum over clients, or the difference of two -> histories
    models      a served model -> the sum that it was made of
    membership  a sum or a served model -> whether a user, or an interaction, was in training
    measure     AUC, precision at n, and both of a guess by popularity alone

Attackers compute on a host, in float64: the exact ones tell 1e-7 from 0. So these are NumPy
functions; arrays in, arrays out, and nothing here is read by training.
"""

from jaxrec.federated.attacks import measure, membership, models, sums, uploads

__all__ = ["measure", "membership", "models", "sums", "uploads"]
