"""The scoring service as an ASGI app: `/score`, MLflow's `/invocations`, probes, metrics and the page.

serving.service.launch runs it; serving.service.pipeline scores the images.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.answers import encode
from serving.payload import Payload
from serving.scorer import Scorer
from serving.service import bodies
from serving.service.admission import Admission
from serving.service.doorkeeper import SCORED, Doorkeeper
from serving.service.keys import Keys
from serving.service.openapi import describe
from serving.service.options import Options
from serving.service.page import page_route
from serving.service.pipeline import Pipeline, joined
from serving.service.responses import (
    JSON,
    error_response,
    on_http_error,
    on_internal_error,
    on_request_error,
)
from serving.service.telemetry import AccessLog, Metrics
from trainer.errors import RequestError, TrainerError

_CLOSING_S = 5.0
_PATIENCE_S = 0.5
_CLIENT_GONE = "trainer.client_gone"


class Service:
    """What the app's routes share, in `app.state.service`.

    Attributes:
        draining: the service was told to stop; it is no longer ready, but still answers requests.
        closed: none of its threads is working, or none was started.
    """

    def __init__(self, scorer: Scorer, options: Options) -> None:
        self.scorer = scorer
        self.options = options
        self.admission = Admission(options.max_queue, options.max_queue_mb * 1_000_000)
        self.metrics = Metrics(self.admission)
        self.draining = False
        self.closed = True
        self._pipeline: Pipeline | None = None

    @property
    def pipeline(self) -> Pipeline:
        """Created on first use, in the event loop's thread."""
        if self._pipeline is None:
            self.closed = False
            self._pipeline = Pipeline(self.scorer, self.options, self.metrics.saw_batch)
        return self._pipeline

    @property
    def ready(self) -> bool:
        return not self.draining and self.pipeline.batcher.alive

    def close(self) -> None:
        """End the threads, without waiting for one that is busy with a long explanation."""
        if self._pipeline is not None:
            self.closed = self._pipeline.close(_CLOSING_S)

    async def answer(
        self,
        request: Request,
        parse: Callable[[bytes], Payload],
        wrap: Callable[[bytes], bytes] = lambda answers: answers,
    ) -> Response:
        """Read, score and answer a request."""
        with self.admission.enter() as ticket:
            body = await bodies.read_body(request, ticket, self.options.read_timeout_s)
            try:
                async with (
                    asyncio.timeout(self.options.timeout_s) as timeout,
                    _expiring_with_client(request, timeout),
                ):
                    scored = await self.pipeline.score(lambda: parse(body), ticket)
            except TimeoutError:
                if request.scope.get(_CLIENT_GONE):
                    raise HTTPException(499, "the client closed the connection") from None
                raise HTTPException(
                    504,
                    f"no answer within {self.options.timeout_s:g} s; send fewer images in one request, or "
                    "start the service with a larger --timeout-s",
                ) from None
        self.admission.done(len(scored.answers))
        request.scope[SCORED] = {"rows": len(scored.answers), "batch": scored.batch}
        return Response(wrap(joined(scored.answers)), media_type=JSON)


@asynccontextmanager
async def _expiring_with_client(request: Request, timeout: asyncio.Timeout) -> AsyncIterator[None]:
    """Let the timeout expire at once if the client disconnects.

    It only starts to watch after a moment, by which most requests have been answered.
    """
    watch: asyncio.Task[None] | None = None

    async def wait_for_disconnect() -> None:
        # The body has been read, so the next message can only be the disconnect.
        await request.receive()
        request.scope[_CLIENT_GONE] = True
        timeout.reschedule(asyncio.get_running_loop().time())

    def start() -> None:
        nonlocal watch
        watch = asyncio.create_task(wait_for_disconnect())

    timer = asyncio.get_running_loop().call_later(_PATIENCE_S, start)
    try:
        yield
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()


def create_app(
    scorer: Scorer,
    options: Options | None = None,
    *,
    keys: Keys | None = None,
    access_log: AccessLog | None = None,
) -> Starlette:
    """Create the scoring service for one model.

    Args:
        keys: bearer keys that requests must have; None answers everybody.
        access_log: gets a line per request.
    """
    service = Service(scorer, options or Options())
    task = scorer.spec.task
    description = encode(describe(scorer.spec, needs_key=keys is not None))

    async def score(request: Request) -> Response:
        media_type = bodies.score_media_type(request)
        return await service.answer(request, lambda body: bodies.parse_score_body(body, media_type, task))

    async def invocations(request: Request) -> Response:
        media_type = bodies.invocation_media_type(request)
        return await service.answer(
            request,
            lambda body: bodies.parse_invocation_body(body, media_type, task),
            lambda answers: b'{"predictions": ' + answers + b"}",
        )

    async def swagger(_: Request) -> Response:
        return Response(description, media_type=JSON)

    async def metrics(_: Request) -> Response:
        content, media_type = service.metrics.text()
        return Response(content, headers={"content-type": media_type})

    async def live(_: Request) -> Response:
        return Response(encode({"status": "alive"}), media_type=JSON)

    async def ready(_: Request) -> Response:
        if not service.ready:
            return error_response(503, "the service is stopping, or its threads have ended")
        return Response(encode({"status": "ready"}), media_type=JSON)

    async def ping(_: Request) -> Response:
        return Response("\n", media_type=JSON)

    async def version(_: Request) -> Response:
        return Response(metadata.version("mlflow"), media_type=JSON)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = Starlette(
        routes=[
            Route("/score", score, methods=["POST"]),
            Route("/invocations", invocations, methods=["POST"]),
            Route("/swagger.json", swagger),
            Route("/metrics", metrics),
            Route("/livez", live),
            Route("/readyz", ready),
            Route("/ping", ping),
            Route("/health", ping),
            Route("/version", version),
            page_route(scorer.spec, key_required=keys is not None),
        ],
        middleware=[Middleware(Doorkeeper, metrics=service.metrics, keys=keys, access_log=access_log)],
        exception_handlers={
            RequestError: on_request_error,
            HTTPException: on_http_error,
            TrainerError: on_internal_error,
            Exception: on_internal_error,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app
