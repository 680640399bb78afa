"""OpenAI's API for one packed model: the endpoints of llama-cpp-python's server, in an app of ours.

The model of a request is ``NAME``, or ``NAME:ADAPTER`` with one of its adapters, for that request
only. Everything that is wrong with a request is said before its answer begins, as OpenAI says it.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, APIRouter
from llama_cpp import ChatCompletion, Completion
from llama_cpp.server import app as server
from llama_cpp.server.settings import ServerSettings
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest

from edgepack.core.untrusted import quote, shorten, whole_number
from edgepack.errors import EdgepackError
from edgepack.runtimes.served_llama import ServedLlama

CODES = {401: "invalid_api_key", 404: "model_not_found"}
"""Status → OpenAI's code of the error."""


class Models:
    """The names of a model; what the server calls before every answer. `scales` are those of its
    adapters when they are on."""

    def __init__(self, llama: ServedLlama, name: str, scales: Mapping[str, float]) -> None:
        self.llama, self.name, self._scales = llama, name, scales
        llama.model_path = name  # what answers name where requests do not

    def __iter__(self) -> Iterator[str]:
        """The names that are listed: the model without adapters, then with each of them."""
        yield self.name
        yield from (f"{self.name}:{adapter}" for adapter in self._scales)

    def __call__(self, name: str | None = None) -> ServedLlama:
        """The model as a request names it."""
        self.llama.switch(self.find(name))
        return self.llama

    def find(self, name: str | None) -> dict[str, float]:
        """The adapters of a name, with their scales; ``NAME:A+B`` has both."""
        if name is None or name == self.name:
            return {}
        adapters = name.removeprefix(f"{self.name}:").split("+")
        if name.startswith(f"{self.name}:") and self._scales.keys() >= set(adapters):
            return {adapter: self._scales[adapter] for adapter in adapters}
        known = shorten(", ".join(self), 300)
        raise HTTPException(404, f"there is no model {quote(name)}; there are: {known}")


def make_app(models: Models, api_key: str | None = None) -> FastAPI:
    """The app. There is one in a process, since the server's endpoints have one set of models."""
    # a later request waits; model_construct, since else the environment's PORT and HOST are read
    server.set_server_settings(ServerSettings.model_construct(interrupt_requests=False))
    server._llama_proxy = models

    def is_allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if api_key is not None and not hmac.compare_digest(given, f"Bearer {api_key}".encode()):
            raise HTTPException(401, "the API key is missing or wrong")

    def check_chat(body: CreateChatCompletionRequest) -> None:
        models.find(body.model)
        if body.tools or body.functions:
            raise EdgepackError("tools are not offered here")
        _check(models.llama, models.llama.prompt(body.messages), body)

    def check_text(body: CreateCompletionRequest) -> None:
        models.find(body.model)
        if isinstance(body.prompt, list) and len(body.prompt) != 1:
            raise EdgepackError("a request has one prompt here")
        if body.suffix:
            raise EdgepackError("a suffix is not offered here")
        _check(models.llama, "".join(body.prompt), body)

    router = APIRouter(prefix="/v1", route_class=_Route, dependencies=[Depends(is_allowed)])
    router.get("/models")(server.get_models)
    for path, answer, check, form in (
        ("/chat/completions", server.create_chat_completion, check_chat, ChatCompletion),
        ("/completions", server.create_completion, check_text, Completion),
    ):
        router.post(path, dependencies=[Depends(check)], response_model=form)(answer)
    app = FastAPI(title="edgepack", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    return app


def _check(
    llama: ServedLlama, prompt: str, body: CreateChatCompletionRequest | CreateCompletionRequest
) -> None:
    """Refuse what cannot be answered, or would end the process."""
    length = len(llama.tokenize(prompt.encode(), special=True))
    if not length:
        raise EdgepackError("the prompt is empty")
    if length >= llama.context:
        raise EdgepackError(
            f"the prompt has {length} tokens, and the model sees {llama.context} at once",
            hint="serve it with a larger --context",
        )
    if body.n not in (None, 1):
        raise EdgepackError("a request has one answer here, n is 1")
    if body.grammar:
        llama.check_grammar(body.grammar)
    by_number = body.logit_bias if body.logit_bias_type != "tokens" else None
    ids = map(whole_number, by_number or ())
    if not all(index is not None and index < llama.n_vocab() for index in ids):
        raise EdgepackError("logit_bias names tokens that the model does not have")


class _Route(APIRoute):  # type: ignore[misc]  # mypy does not look into fastapi
    """An endpoint whose errors look like OpenAI's."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                return _error(error.status_code, str(error.detail))
            except RequestValidationError as error:
                first = error.errors()[0]
                return _error(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")
            except EdgepackError as error:
                return _error(400, error.message + (f": {error.hint}" if error.hint else ""))
            except ValueError as error:  # llama-cpp-python's word for a bad grammar and the like
                return _error(400, str(error))

        return answer


def _error(status: int, message: str) -> Response:
    what: dict[str, Any] = {"message": message, "type": "invalid_request_error"}
    return JSONResponse({"error": {**what, "param": None, "code": CODES.get(status)}}, status)
