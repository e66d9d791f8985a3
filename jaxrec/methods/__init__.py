"""The methods, by name. A new method is one file and one line here.

A module is read when it is first used: those on Flax take as long to import as all the others.
"""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType


def _when_used(name: str) -> ModuleType:
    spec = find_spec(f"{__name__}.{name}")
    spec.loader = LazyLoader(spec.loader)
    module = module_from_spec(spec)
    sys.modules[spec.name] = globals()[name] = module
    spec.loader.exec_module(module)
    return module


METHODS: dict[str, ModuleType] = {
    name: _when_used(name)
    for name in (
        "fedcia",
        "rqfedrec",
        "agentcf",
        "agentcf_text",
        "fedavg",
        "local_only",
        "sequential",
        "llmd4rec",
        "popularity",
    )
}
