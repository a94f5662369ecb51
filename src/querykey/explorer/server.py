"""The page's server: its own files and a JSON API, on 127.0.0.1 and for this machine's browser only.

| request | answer |
|---|---|
| ``GET /api/models`` | the models that can be chosen, the first one first |
| ``GET /api/model?id=…`` | about one: layers, interventions, an example |
| ``POST /api/look`` | a head with an intervention, and all heads (`Viewer.look`) |
| ``POST /api/effect`` | what the intervention changes in the output (`Viewer.effect`) |
| ``POST /api/tied`` | what one matrix would cost under the causal mask (`Viewer.tied`) |
| ``GET /docs/…`` | a document of the project, as a page |

Answers are 200, 202 while a model is being opened (``step``, ``done`` and ``total`` say how far it is), or 4xx with
``error``, a sentence. The names of other hosts, requests of other pages and large requests are refused.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from querykey.explorer.documents import documents, rendered
from querykey.explorer.subjects import SCOPES, SHOWN, Offer
from querykey.explorer.tokenizer import MOST_CHARACTERS
from querykey.explorer.views import Focus, Viewer

PAGE = Path(__file__).parent / "page"
MOST_BYTES = 1_000_000  # of a request
PORTS = 50  # that are tried, from the one that was asked for
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handler = Callable[[Request], Awaitable[Response]]


class RequestError(ValueError):
    """A request that cannot be answered; the message says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The JSON API over the models that are offered."""

    def __init__(self, offers: Mapping[str, Offer], first: Mapping[str, str]) -> None:
        self.offers, self.first = offers, dict(first)
        self._viewers: dict[str, Viewer] = {}
        self._opening: set[str] = set()
        self._lock = threading.Lock()

    def models(self) -> dict[str, Any]:
        """All models by name, and what the page begins with."""
        return self.first | {
            "documents": bool(documents()),
            "models": [{"id": name, "title": offer.title} for name, offer in self.offers.items()],
        }

    def viewer(self, name: Any) -> Viewer | None:
        """The views of a model; None while it is being opened, which this begins."""
        if not isinstance(name, str) or name not in self.offers:
            raise RequestError(f"there is no model {str(name)[:80]!r}; there are {', '.join(self.offers)}", 404)
        offer = self.offers[name]
        with self._lock:
            if offer.subject is not None:
                return self._viewers.setdefault(name, Viewer(offer.subject))
            if name not in self._opening:
                if offer.failed:
                    reason, offer.failed = offer.failed, None  # asked again, it is tried again
                    raise RequestError(reason)
                self._opening.add(name)
                threading.Thread(target=self._open, args=(name,), daemon=True).start()
        return None

    def progress(self, name: str) -> dict[str, Any]:
        """How far the opening of a model is."""
        return dict(zip(("step", "done", "total"), self.offers[name].progress, strict=True))

    def _open(self, name: str) -> None:
        try:
            self.offers[name].open()
        except ValueError:
            pass  # which the offer remembers
        finally:
            with self._lock:
                self._opening.discard(name)


def application(offers: Mapping[str, Offer], first: Mapping[str, str]) -> Starlette:
    """The page and its API; `first` may hold ``model`` and ``text`` to begin with."""
    api = Api(offers, first)

    def models(_: Mapping[str, Any]) -> dict[str, Any]:
        return api.models()

    def about(given: Mapping[str, Any]) -> dict[str, Any] | int:
        viewer = api.viewer(given.get("id"))
        return viewer.about() if viewer else 202

    def look(given: Mapping[str, Any]) -> dict[str, Any] | int:
        viewer = api.viewer(given.get("model"))
        return viewer.look(_text(given), _focus(given), given.get("overview") is True) if viewer else 202

    def effect(given: Mapping[str, Any]) -> dict[str, Any] | int:
        viewer = api.viewer(given.get("model"))
        return viewer.effect(_text(given), _focus(given)) if viewer else 202

    def tied(given: Mapping[str, Any]) -> dict[str, Any] | int:
        viewer = api.viewer(given.get("model"))
        return viewer.tied(_text(given), _focus(given)) if viewer else 202

    def answered(work: Callable[[Mapping[str, Any]], dict[str, Any] | int]) -> Handler:
        async def handler(request: Request) -> Response:
            try:
                given = dict(request.query_params) if request.method == "GET" else await _body(request)
                found = await run_in_threadpool(work, given)
                if isinstance(found, int):
                    return _json(api.progress(str(given.get("id", given.get("model")))), found)
                return _json(found)
            except RequestError as error:
                return _json({"error": str(error)}, error.status)
            except ValueError as error:
                return _json({"error": str(error)}, 400)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception:  # a fault of ours, which must not take the page down
                traceback.print_exc(file=sys.stderr)
                return _json({"error": "this text cannot be shown with this intervention"}, 422)

        return handler

    async def document(request: Request) -> Response:
        found = rendered(request.path_params["name"])
        if found is None:
            return Response(f"there is no document of this name; there are {', '.join(documents())}", 404, SAFE)
        return HTMLResponse(found, headers=SAFE)

    async def index(_: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=SAFE)

    routes = [
        Route("/", index),
        Route("/api/models", answered(models)),
        Route("/api/model", answered(about)),
        Route("/api/look", answered(look), methods=["POST"]),
        Route("/api/effect", answered(effect), methods=["POST"]),
        Route("/api/tied", answered(tied), methods=["POST"]),
        Route("/docs/{name}", document),
        Mount("/page", _Files(directory=PAGE)),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts])


def serve(
    offers: Mapping[str, Offer],
    first: Mapping[str, str],
    port: int,
    browse: bool = True,
    tell: Callable[[str], None] = print,
) -> None:
    """Serves the page until it is stopped, on `port` or the next one that is free.

    Raises ValueError if no port is free.
    """
    listener = listen(port)
    taken = listener.getsockname()[1]
    if port and taken != port:
        tell(f"port {port} is in use; taking {taken}")
    address = f"http://127.0.0.1:{taken}/"
    tell(f"{address}  (Ctrl+C ends it)")
    server = uvicorn.Server(uvicorn.Config(application(offers, first), log_level="warning", lifespan="off"))
    if browse:
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    with suppress(KeyboardInterrupt):  # which is how it ends
        server.run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1 at this port, or the next one that is free; 0 takes any."""
    for number in range(port, port + PORTS) if port else (0,):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if sys.platform != "win32":  # where it would mean that two may listen at once
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", number))
            listener.listen()
            return listener
        except (OSError, OverflowError):
            listener.close()
    raise ValueError(f"no port from {port} to {port + PORTS - 1} can be listened on; give another --port")


class _Files(StaticFiles):
    """The page's own files."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(SAFE)
        return response


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request from our own page."""
    sender = request.headers.get("origin")
    if sender is not None and sender != f"http://{request.headers.get('host')}":
        raise RequestError("requests of other pages are not answered", 403)
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError("expected a JSON object, as application/json", 415)
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise RequestError(f"a request of more than {MOST_BYTES:,} bytes; give a shorter text", 413)
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        raise RequestError("expected a JSON object; this is no JSON") from None
    if not isinstance(given, dict):
        raise RequestError(f"expected a JSON object, not a {type(given).__name__}")
    return given


def _text(given: Mapping[str, Any]) -> str:
    text = given.get("text")
    if not isinstance(text, str):
        raise RequestError("text must be a string")
    if len(text) > MOST_CHARACTERS:
        raise RequestError(f"the text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are taken", 413)
    return text.encode(errors="replace").decode()  # half a pair of surrogates is no text


def _focus(given: Mapping[str, Any]) -> Focus:
    layer, head = given.get("layer", 0), given.get("head", 0)
    intervention, scope = given.get("intervention", "trained"), given.get("scope", "head")
    if any(not isinstance(number, int) or isinstance(number, bool) for number in (layer, head)):
        raise RequestError("layer and head must be whole numbers")
    for name, value, known in (("intervention", intervention, (*SHOWN, "converted")), ("scope", scope, SCOPES)):
        if value not in known:
            raise RequestError(f"{name} must be one of {', '.join(known)}, not {str(value)[:80]!r}")
    return Focus(layer, head, intervention, scope, given.get("masked", True) is not False)


def _json(found: Any, status: int = 200) -> Response:
    return JSONResponse(found, status, SAFE)
