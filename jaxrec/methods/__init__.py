"""The methods, by name. A new method is one file, or one package, and one line here.

Each is a module with `Config`, `State`, `Metrics`, `TRAITS` and `make(config, sizes) -> Method`. It
is read when it is first used: those on Flax take as long to import as all the others.
"""

import sys
from importlib.util import LazyLoader, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from jaxrec.settings.fields import unknown


def _when_used(path: str) -> ModuleType:
    # Found by its place: to look for a module by name would read the package that holds it.
    place = Path(__file__).parent.joinpath(*path.split("."))
    package = place.is_dir()
    spec = spec_from_file_location(
        f"{__name__}.{path}",
        place / "__init__.py" if package else place.with_suffix(".py"),
        submodule_search_locations=[str(place)] if package else None,
    )
    assert spec and spec.loader, path
    spec.loader = LazyLoader(spec.loader)
    module = module_from_spec(spec)
    parent, _, name = spec.name.rpartition(".")
    sys.modules[spec.name] = module
    setattr(sys.modules[parent], name, module)
    spec.loader.exec_module(module)
    return module


METHODS: dict[str, ModuleType] = {
    name: _when_used(path)
    for name, path in {
        "fedcia": "fedcia",
        "rqfedrec": "rqfedrec",
        "agentcf": "agentcf",
        "agentcf_text": "agentcf.text_engine",
        "fedavg": "fedavg",
        "local_only": "local_only",
        "sequential": "sequential",
        "llmd4rec": "llmd4rec",
        "popularity": "popularity",
        "itemknn": "itemknn",
        "ease": "ease",
        "als": "als",
        "fedals": "fedals",
        "bpr": "bpr",
        "lightgcn": "lightgcn",
    }.items()
}


def method_module(name: str) -> ModuleType:
    """The module of method `name`; SettingError with the nearest name for an unknown one."""
    if name not in METHODS:
        raise unknown(f"no method {name!r} among {', '.join(METHODS)}", name, METHODS)
    return METHODS[name]
