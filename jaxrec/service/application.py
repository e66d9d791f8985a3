"""The addresses of a service, and the status of everything that can go wrong."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import jax
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from jaxrec.service import forms
from jaxrec.service.batches import Batches, Busy
from jaxrec.service.counts import Counts
from jaxrec.service.opened import Place
from jaxrec.service.settings import Settings
from jaxrec.serving.names import UnknownIds
from jaxrec.types import DataError, SettingError
from jaxrec.version import __version__

PATHS = (
    "/recommend",
    "/similar",
    "/score",
    "/explain",
    "/health",
    "/metrics",
    "/docs",
    "/openapi.json",
)
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": forms.Refusal, "description": about}
    for status, about in {
        400: "the body is not JSON",
        404: "ids that the run does not know; the first few are named",
        408: "the client was slow",
        413: "the body is too large",
        415: "the header Content-Type does not say JSON",
        422: "a field is wrong, or the method cannot do it",
        503: "no run is open yet, or too many requests wait: come again after Retry-After seconds",
        504: "the answer took too long",
    }.items()
}
VERSIONS = {"jaxrec": __version__, "jax": jax.__version__, "python": platform.python_version()}


def application(
    place: Place, batches: Batches, settings: Settings, counts: Counts, gave_up: Callable[[], None]
) -> FastAPI:
    """The ASGI application; `gave_up` is called if the first run cannot be served."""

    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.run())
        place.start(gave_up)
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        batches.close()
        place.stop()

    app = FastAPI(
        title="jaxrec", version=__version__, lifespan=alive, redoc_url=None,
        description="Lists, similar items, scores and reasons from one run.",
    )  # fmt: skip
    _add_answers(app, batches, settings)

    @app.get("/health", responses={503: {"model": forms.Health}}, response_model=forms.Health)
    async def health() -> Response:
        """Whether requests are answered, and from which run."""
        now = place.current
        told: dict[str, Any] = dict.fromkeys(forms.Health.model_fields)
        told |= {"ready": now is not None, "opened": 0, "refused": place.refused}
        told |= {"versions": VERSIONS}
        if now:
            told |= {"run": now.name, "opened": now.number}
            told |= {"since": datetime.fromtimestamp(now.since, UTC).isoformat(timespec="seconds")}
            told |= {"users": len(now.model.users.raw), "items": len(now.model.items.raw)}
        return _json(told, 200 if now else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """What was counted, for Prometheus."""
        return Response(counts.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_answers(app: FastAPI, batches: Batches, settings: Settings) -> None:
    """The four addresses that ask the model, and what becomes of errors."""

    async def answered(kind: str, form: Any) -> Response:
        form.bounded(settings.max_users, settings.max_k, settings.max_items)
        return _json(await batches.ask(kind, form))

    @app.post("/recommend", response_model=forms.Lists, responses=REFUSED)
    async def recommend(form: forms.Recommend) -> Response:
        """The best items of users, or of new users by what they chose."""
        return await answered("recommend", form)

    @app.post("/similar", response_model=forms.SimilarItems, responses=REFUSED)
    async def similar(form: forms.Similar) -> Response:
        """The items most like others."""
        return await answered("similar", form)

    @app.post("/score", response_model=forms.Scores, responses=REFUSED)
    async def score(form: forms.Score) -> Response:
        """The scores of pairs of a user and an item."""
        return await answered("score", form)

    @app.post("/explain", response_model=forms.Reasons, responses=REFUSED)
    async def explain(form: forms.Explain) -> Response:
        """The items of a user that carry most of the score of an item."""
        return await answered("explain", form)

    for kind, status in STATUS.items():
        app.add_exception_handler(kind, _handler(status))
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)


STATUS: dict[type[Exception], int] = {
    UnknownIds: 404,
    DataError: 422,
    SettingError: 422,
    Busy: 503,
    TimeoutError: 504,
    Exception: 500,
}


def _handler(status: int) -> Callable[[Request, Exception], Any]:
    """What answers with an error's own words; those of an unforeseen one are for the log."""

    async def handle(request: Request, error: Exception) -> Response:
        del request
        if status == 500 and not isinstance(error, FloatingPointError):
            return _json({"error": "the service failed; its log says how"}, 500)
        why = "the answer took too long" if status == 504 else str(error)
        return _json({"error": why}, status, {"Retry-After": "1"} if status == 503 else None)

    return handle


async def _malformed(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request, in a line."""
    assert isinstance(error, RequestValidationError)
    if "json" not in request.headers.get("content-type", "").lower():
        return _json({"error": "send JSON, with the header Content-Type: application/json"}, 415)
    errors = error.errors()
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    if first["type"] == "json_invalid":
        return _json({"error": f"the body is not JSON: {first['ctx']['error']}"}, 400)
    given = "" if first["type"] == "missing" else f", not {repr(first.get('input'))[:80]}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return _json({"error": f"{where[:80]}: {first['msg']}{given}{more}"}, 422)


async def _http(request: Request, error: Exception) -> Response:
    """Addresses and verbs that do not exist, and bodies that are no text."""
    assert isinstance(error, HTTPException)
    why = f"{request.method} {request.url.path}: {error.detail}"
    return _json({"error": why}, error.status_code, dict(error.headers or {}))


def _json(told: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer; half a surrogate pair, which no encoding has, becomes a question mark."""
    text = json.dumps(told, ensure_ascii=False, allow_nan=False, default=_plain)
    content = text.encode("utf-8", "replace")
    return Response(content, status, headers, "application/json")


def _plain(value: Any) -> Any:
    """A scalar of NumPy as Python's own; any other id as its text."""
    return value.item() if hasattr(value, "item") else str(value)
