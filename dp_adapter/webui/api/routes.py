"""Routes under ``/dp_adapter/v1``, beside the WebUI's own API and as open or closed as it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from secrets import compare_digest
from threading import Lock
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from dp_adapter import __version__
from dp_adapter.settings import VERSION, json_schema
from dp_adapter.webui.api import answers
from dp_adapter.webui.api import bodies as forms
from dp_adapter.webui.api.refusals import MissingError, RefusalRoute, spell_names

if TYPE_CHECKING:
    from dp_adapter.hosts.attach.sites import Base
    from dp_adapter.session import Session
    from dp_adapter.session.model_list import ModelListing

PREFIX = "/dp_adapter/v1"


@dataclass(frozen=True)
class AnswerSources:
    """What the routes answer from.

    Attributes:
        session: made at first use.
        base: family of the loaded checkpoint.
        lock: the host's, held while networks run, so that a request waits for the pictures before it.
        webui: name of the host.
    """

    session: Callable[[], Session]
    base: Callable[[], Base | None]
    lock: AbstractContextManager[Any]
    webui: str


def add_routes(app: FastAPI) -> None:
    """Adds the routes to the WebUI, for its ``on_app_started``: only where its own API is, and behind its password."""
    from modules import call_queue
    from modules import shared as host

    from dp_adapter.webui.host import compat, shared_session

    if not (host.cmd_opts.api or host.cmd_opts.nowebui):
        return
    served = AnswerSources(
        session=shared_session.session,
        base=shared_session.base,
        lock=call_queue.queue_lock,
        webui=compat.webui(),
    )
    add_to(app, served, _require_password(host.cmd_opts.api_auth))


def add_to(app: FastAPI, served: AnswerSources, dependencies: Sequence[Any] = ()) -> None:
    """Adds the routes to an application.

    Args:
        dependencies: of every route, such as a password.
    """
    routes = Routes(served)
    router = APIRouter(prefix=PREFIX, tags=["DP-Adapter"], dependencies=list(dependencies), route_class=RefusalRoute)
    for path, method, endpoint, answer in routes.table():
        router.add_api_route(
            path,
            _answer_in_json(endpoint),
            methods=[method],
            response_model=answer,
            response_model_exclude_none=True,
            responses={422: {"model": forms.Refusal, "description": "What is wrong, in words."}},
        )
    app.include_router(router)


def _answer_in_json(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with an answer that can be encoded, whatever names of files it holds."""

    @wraps(endpoint)
    def answer(*args: Any, **kwargs: Any) -> Any:
        return spell_names(endpoint(*args, **kwargs))

    return answer


def _require_password(pairs: str | None) -> list[Any]:
    """The dependency that asks for one of ``user:password,user:password``, as ``--api-auth`` gives them."""
    if not pairs:
        return []
    known = dict(pair.split(":") for pair in pairs.split(","))

    def check(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - how FastAPI declares it
        expected = known.get(given.username)
        if expected is None or not compare_digest(given.password.encode(), expected.encode()):
            raise HTTPException(401, "Incorrect user name or password", {"WWW-Authenticate": "Basic"})

    return [Depends(check)]


class Routes:
    """The routes' functions; their docstrings are the descriptions in the host's /docs."""

    def __init__(self, served: AnswerSources) -> None:
        self._served = served
        self._models: ModelListing | None = None
        self._listing = Lock()

    def table(self) -> list[tuple[str, str, Callable[..., Any], Any]]:
        """Path, method, function and form of the answer of every route."""
        return [
            ("/version", "GET", self.version, forms.Version),
            ("/schema", "GET", self.schema, None),
            ("/models", "GET", self.models, forms.ModelList),
            ("/modes", "GET", self.modes, forms.ModeList),
            ("/identities", "GET", self.identities, forms.IdentityList),
            ("/identities", "POST", self.save_identity, forms.IdentityAnswer),
            ("/identities/{name}", "GET", self.identity, forms.IdentityAnswer),
            ("/identities/{name}", "PATCH", self.rename_identity, forms.IdentityAnswer),
            ("/identities/{name}", "DELETE", self.delete_identity, forms.Deleted),
            ("/faces", "POST", self.faces, forms.FacesAnswer),
            ("/regions", "POST", self.regions, forms.RegionsAnswer),
            ("/embed", "POST", self.embed, forms.Vectors),
        ]

    def version(self) -> dict[str, Any]:
        """Versions of the extension and of the form of its settings, the WebUI, and the family of its checkpoint."""
        served = self._served
        return {"version": __version__, "settings": VERSION, "webui": served.webui, "base": served.base()}

    def schema(self) -> Response:
        """JSON schema of the settings, as `alwayson_scripts` and the routes below take them."""
        return JSONResponse(json_schema())  # its nulls are defaults, which must not be left out

    def models(self) -> dict[str, Any]:
        """The adapter files in the model folders, those that fit the loaded checkpoint first."""
        from dp_adapter.session.model_list import ModelListing

        with self._listing:
            self._models = self._models or ModelListing(self._served.session().library)
            return answers.list_models(self._models, self._served.base())

    def modes(self) -> dict[str, Any]:
        """The edit modes, your own included, and what each does."""
        return answers.list_modes(self._served.session().modes)

    def identities(self) -> dict[str, Any]:
        """The saved identities by name."""
        return answers.list_identities(self._served.session())

    def identity(self, name: str) -> dict[str, Any]:
        """One saved identity with its thumbnail."""
        return answers.describe_identity(self._served.session(), self._known(name))

    def save_identity(self, body: forms.SaveIdentity) -> dict[str, Any]:
        """Saves person 1 of the photos in `settings` (`"identity": 0`) under a name, without the photos themselves."""
        with self._served.lock:
            return answers.save_identity(self._served.session(), body.name, body.settings, body.replace)

    def rename_identity(self, name: str, body: forms.Rename) -> dict[str, Any]:
        """Gives a saved identity another name."""
        session = self._served.session()
        session.identities.rename(self._known(name), body.name)
        return answers.describe_identity(session, body.name)

    def delete_identity(self, name: str) -> dict[str, Any]:
        """Deletes a saved identity for good."""
        self._served.session().identities.delete(self._known(name))
        return {"deleted": name}

    def faces(self, body: forms.FacesRequest) -> dict[str, Any]:
        """The faces in a photo from left to right, how good each is as a reference, and which one would be taken."""
        with self._served.lock:
            return answers.find_faces(self._served.session(), body.image, body.face, body.thumbnails)

    def regions(self, body: forms.RegionsRequest) -> dict[str, Any]:
        """Where each person of `settings` would act in a picture of this size; masks and parts only on request."""
        with self._served.lock:
            base = self._served.base() or "sd15"  # regions do not depend on it
            return answers.find_regions(self._served.session(), base, body)

    def embed(self, body: forms.Request) -> dict[str, Any]:
        """Face vectors of every photo in `settings` by the shipped encoder, and the mean direction of each person."""
        with self._served.lock:
            return answers.embed_faces(self._served.session(), body.settings)

    def _known(self, name: str) -> str:
        """Raises MissingError where no identity has this name."""
        from dp_adapter.errors import IdentityError

        try:
            self._served.session().identities.state(name)
        except IdentityError as error:
            raise MissingError(error.problem, error.hint) from error
        return name
