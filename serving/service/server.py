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
from serving.service.pipeline import Pipeline
from serving.service.responses import (
    JSON,
    error_response,
    on_http_error,
    on_internal_error,
    on_request_error,
)
from serving.service.telemetry import AccessLog, Metrics
from trainer.errors import RequestError, TrainerError
from trainer.tasks import Task

_CLOSING_S = 5.0
_PATIENCE_S = 0.5
_CLIENT_GONE = "trainer.client_gone"


class Service:
    """What the app's routes share, in `app.state.service`.

    Attributes:
        draining: the service was told to stop; it is no longer ready, but still answers requests.
        closed: none of its threads is working.
    """

    def __init__(self, scorer: Scorer, options: Options) -> None:
        self.scorer = scorer
        self.options = options
        self.admission = Admission(options.max_queue, options.max_queue_mb * 1_000_000)
        self.metrics = Metrics(self.admission)
        self.pipeline = Pipeline(scorer, options, self.metrics.saw_batch)
        self.draining = False
        self.closed = False

    @property
    def ready(self) -> bool:
        return not self.draining and self.pipeline.batcher.alive

    async def answer(
        self,
        request: Request,
        media_types: tuple[str, ...],
        parse: Callable[[bytes, str, Task], Payload],
        wrap: bytes = b"%b",
    ) -> Response:
        """Read, score and answer a request.

        Args:
            media_types: the content types that it may have.
            parse: parses a body of one of these types.
            wrap: format of the answer's body around the list of answers.
        """
        media_type = bodies.media_type_of(request, media_types)
        task = self.scorer.spec.task
        with self.admission.enter() as ticket:
            body = await bodies.read_body(request, ticket, self.options.read_timeout_s)
            try:
                async with (
                    asyncio.timeout(self.options.timeout_s) as timeout,
                    _expiring_with_client(request, timeout),
                ):
                    scored = await self.pipeline.score(lambda: parse(body, media_type, task), ticket)
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
        return Response(wrap % (b"[" + b", ".join(scored.answers) + b"]"), media_type=JSON)


@asynccontextmanager
async def _expiring_with_client(request: Request, timeout: asyncio.Timeout) -> AsyncIterator[None]:
    """Let the timeout expire at once if the client disconnects."""

    async def wait_for_disconnect() -> None:
        await asyncio.sleep(_PATIENCE_S)  # by then, most requests have been answered
        # The body has been read, so the next message can only be the disconnect.
        await request.receive()
        request.scope[_CLIENT_GONE] = True
        timeout.reschedule(asyncio.get_running_loop().time())

    watch = asyncio.create_task(wait_for_disconnect())
    try:
        yield
    finally:
        watch.cancel()


def _fixed(path: str, content: bytes) -> Route:
    """A route that always gives the same answer."""
    return Route(path, Response(content, media_type=JSON), methods=["GET"])


def create_app(
    scorer: Scorer,
    options: Options | None = None,
    *,
    keys: Keys | None = None,
    access_log: AccessLog | None = None,
) -> Starlette:
    """Create the scoring service for one model.

    Args:
        keys: bearer keys that requests must have; None requires no key.
        access_log: gets a line per request.
    """
    service = Service(scorer, options or Options())

    async def score(request: Request) -> Response:
        return await service.answer(request, bodies.SCORE_TYPES, bodies.parse_score_body)

    async def invocations(request: Request) -> Response:
        return await service.answer(
            request, bodies.INVOCATION_TYPES, bodies.parse_invocation_body, b'{"predictions": %b}'
        )

    async def metrics(_: Request) -> Response:
        content, media_type = service.metrics.text()
        return Response(content, headers={"content-type": media_type})

    async def ready(_: Request) -> Response:
        if not service.ready:
            return error_response(503, "the service is stopping, or its threads have ended")
        return Response(encode({"status": "ready"}), media_type=JSON)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        # Do not wait for a thread that is busy with a long explanation.
        service.closed = await asyncio.to_thread(service.pipeline.close, _CLOSING_S)

    app = Starlette(
        routes=[
            Route("/score", score, methods=["POST"]),
            Route("/invocations", invocations, methods=["POST"]),
            _fixed("/swagger.json", encode(describe(scorer.spec, needs_key=keys is not None))),
            Route("/metrics", metrics),
            _fixed("/livez", encode({"status": "alive"})),
            Route("/readyz", ready),
            _fixed("/ping", b"\n"),
            _fixed("/health", b"\n"),
            _fixed("/version", metadata.version("mlflow").encode("ascii")),
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
