"""Flower as the transport of a federation: its Fleet API over HTTPS, between machines.

    coordinator -> superlink (the server's machine) == network == supernode -> node (a client's)

Both ends are Flower's: nodes register, authenticate by a key, send signs of life, pull requests
and push replies as SuperNodes do. What they carry is bytes of `deployment.messages`. No program
travels: a client runs the jaxrec that is installed on it and nothing that a server sends.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # which Flower reads when it is imported
