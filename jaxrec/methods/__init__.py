"""The methods, by name. A new method is one file and one line here."""

from types import ModuleType

from jaxrec.methods import (
    agentcf,
    agentcf_text,
    fedavg,
    fedcia,
    llmd4rec,
    local_only,
    popularity,
    rqfedrec,
    sequential,
)

METHODS: dict[str, ModuleType] = {
    "fedcia": fedcia,
    "rqfedrec": rqfedrec,
    "agentcf": agentcf,
    "agentcf_text": agentcf_text,
    "fedavg": fedavg,
    "local_only": local_only,
    "sequential": sequential,
    "llmd4rec": llmd4rec,
    "popularity": popularity,
}
