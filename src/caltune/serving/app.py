"""The web application: `POST /v1/answers`, `/healthz`, `/metrics`, and the OpenAPI document at `/openapi.json`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from caltune import __version__
from caltune.errors import InputError
from caltune.serving.answering import ASKED, Answer, Answerer, Asked
from caltune.serving.batching import Batcher, Busy
from caltune.serving.limits import Guard
from caltune.serving.meters import Meters
from caltune.serving.schema import AnswersRequest, AnswersResponse, Health, Limits, Problem

LONGEST = 300  # characters of an error: some of them show what was received
BATCH = 16  # questions at most that are answered together
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in (
        (400, "The body cannot be read."),
        (408, "The body did not arrive in time."),
        (413, "The body is too large."),
        (422, "The body breaks a rule, or a text is too long."),
        (500, "The service failed."),
        (503, "As many requests wait as may, or the service is stopping."),
        (504, "There was no answer in time."),
    )
}


def create_app(answerer: Answerer, limits: Limits | None = None) -> FastAPI:
    """The application around one model. It starts the model's thread, and ends it when the application shuts down.

    No page of it loads anything from elsewhere, and no other origin is allowed to read its answers.
    """
    limits = limits or Limits()
    batcher: Batcher[Asked, Answer] = Batcher(answerer, waiting=limits.waiting, batch=BATCH)
    meters = Meters(answerer, batcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="caltune",
        summary="Calibrated probabilities of a language model's answers.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to wherever the Host header says
    )
    app.add_middleware(Guard, body=limits.body, seconds=limits.seconds, observe=meters.observe)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)

    @app.post("/v1/answers", responses=PROBLEMS, summary="How probable each option of a question is")
    async def answers(request: AnswersRequest) -> AnswersResponse:
        try:
            future = batcher.submit(request.asked(limits))
            answer = await asyncio.wait_for(asyncio.wrap_future(future), limits.seconds)
        except InputError as error:
            raise HTTPException(422, str(error).removeprefix(f"question {ASKED}: ")) from error
        except Busy as error:
            raise HTTPException(503, "too many requests are waiting, try again soon", {"Retry-After": "1"}) from error
        except TimeoutError as error:
            raise HTTPException(504, f"there was no answer within {limits.seconds:g} seconds") from error
        meters.answered(answer)
        return AnswersResponse.of(request, answer, answerer)

    @app.get("/healthz", responses={503: PROBLEMS[503]}, summary="Whether the service answers, and with what")
    async def healthz() -> Health:
        if not batcher.alive:
            raise HTTPException(503, "the service is stopping")
        return Health(
            status="ok",
            model=answerer.name,
            model_version=answerer.version,
            calibration_version=answerer.calibration_version,
        )

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        summary="Counts and times, for Prometheus",
    )
    async def metrics() -> Response:
        return Response(meters.text(), media_type=meters.media_type)

    return app


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first rule that the body breaks; what was received stays out of the answer."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        return JSONResponse({"error": "the body must be JSON"}, 400)
    if not place:
        return JSONResponse({"error": "the body must be a JSON object, sent as application/json"}, 422)
    return JSONResponse({"error": f"{place}: {first['msg']}"[:LONGEST]}, 422)


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)[:LONGEST]}, error.status_code, error.headers)


def _failed(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"error": "the service failed, its log says why"}, 500)
