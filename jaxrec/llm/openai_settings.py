"""How to reach a server: settings that cannot work are refused, and the key is shown to nobody."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from urllib.parse import urlsplit

from jaxrec.types import SettingError


def check_address(base_url: str) -> None:
    """Refuse an address that is none, or that would write a secret into the run folder."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(
            f"base_url = {base_url!r}: must be the address of a server, such as "
            "http://localhost:8000/v1"
        )
    if parts.username or parts.password or parts.query:
        raise SettingError(
            f"base_url: that of {parts.hostname} holds a user, a password or a query, which would "
            "end up in the run folder; put the key into an environment variable (api_key_env)"
        )


def check_settings(
    model: str, base_url: str, concurrency: int, timeout: float, retries: int
) -> None:
    """Refuse other settings that cannot work, and a machine without the package."""
    if not model:
        raise SettingError(f"model = '': name the model to ask {base_url} for")
    if concurrency < 1:
        raise SettingError(f"concurrency = {concurrency}: must be at least 1")
    if retries < 0:
        raise SettingError(f"retries = {retries}: must be at least 0")
    if not timeout > 0:
        raise SettingError(f"timeout = {timeout}: must be above 0")
    if not find_spec("openai"):
        raise SettingError(
            "llm = 'server': needs the package openai, which is not installed: "
            "pip install 'jaxrec[agents]'"
        )


def read_key(api_key_env: str) -> str:
    """The key in an environment variable, "" where there is none; no error shows a key."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
        # The value is not shown: it may be the key itself.
        raise SettingError(
            "api_key_env: must be the name of an environment variable in capitals, such as "
            "OPENAI_API_KEY, not the key"
        )
    key = os.environ.get(api_key_env, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise SettingError(
            f"api_key_env: the key in the environment variable {api_key_env} holds a space, a line "
            "break or another character that no key has; set it anew"
        )
    return key


def hide_key(key: str, text: str) -> str:
    """The text without the key, as it is or as Python and JSON escape it."""
    for form in filter(None, (repr(key)[1:-1], json.dumps(key)[1:-1], key)):
        text = text.replace(form, "[key]")
    return text
