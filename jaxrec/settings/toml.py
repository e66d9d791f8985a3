"""Flat TOML files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from jaxrec.types import SettingError


def read_table(path: Path) -> dict[str, Any]:
    """The content of a TOML file; SettingError where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not TOML ({error})") from error
