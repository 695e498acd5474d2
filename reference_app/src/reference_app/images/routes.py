"""The photo routes: uploads, features, tasks, live events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from litestar import Controller, Router, WebSocket, get, post, websocket
from litestar.di import NamedDependency, Provide
from litestar.enums import RequestEncodingType
from litestar.params import Body, Parameter, SkipValidation
from litestar.response import File, Response, Stream
from msgspec import UNSET, UnsetType

from daydo_auth import Principal
from daydo_auth.litestar import anyone, permitted, ticketed, until_refused
from daydo_db.paging import CURSOR_CHARS_MAX
from daydo_kernel import Envelope, NotFound, Page, PayloadTooLarge, get_context, isoformat, new_id, ok
from daydo_kernel.litestar import ApiRequest, read_form, refusals
from daydo_pipeline import Owner, Run, RunError, RunEvent
from daydo_pipeline.errors import KeyConflict, Overloaded, RunFinished, RunUnknown
from daydo_quota import InsufficientQuota
from daydo_traffic import FeatureOff, Switches
from reference_app.traffic import FEATURE, LIVE, REDUCED_UPLOAD_SHARE, TASKS, UPLOADS

from .catalogue import Catalogue
from .config import ImagesConfig
from .dto import FeatureOut, TaskError, TaskEvent, TaskIn, TaskOut, TaskStep, UploadIn, UploadOut
from .errors import BrokenImage, EmptyImage, ImageTooLarge, ResultNotReady, UnsupportedImage, WorkersBusy
from .live import over_websocket, server_sent
from .service import Images

# A multipart body is a little longer than its file.
MULTIPART_OVERHEAD = 64 * 1024
MAY_WATCH = "image:read"

Service = NamedDependency[SkipValidation[Images]]
Configuration = NamedDependency[SkipValidation[ImagesConfig]]
Features = NamedDependency[SkipValidation[Catalogue]]
FeatureSwitches = NamedDependency[SkipValidation[Switches]]
PageCursor = Annotated[
    str | None, Parameter(max_length=CURSOR_CHARS_MAX, description="the `next_cursor` of the page before")
]
EventCursor = Annotated[str | None, Parameter(max_length=64, description="resume after this event")]


class UploadsController(Controller):
    path = "/uploads"
    tags = ("images",)
    guards = (permitted("image:create"),)

    @post(
        "/",
        opt=UPLOADS,
        summary="Upload a photo",
        before_request=read_form,
        responses=refusals(PayloadTooLarge, EmptyImage, ImageTooLarge, UnsupportedImage, BrokenImage, WorkersBusy),
    )
    async def upload(
        self,
        data: Annotated[UploadIn, Body(media_type=RequestEncodingType.MULTI_PART)],
        request: ApiRequest,
        images: Service,
        config: Configuration,
        switches: FeatureSwitches,
    ) -> Envelope[UploadOut]:
        """Keep a JPEG, PNG or WebP picture of at most 40 megapixels."""
        reduced = switches.require("uploads") == "reduced"
        bytes_max = config.upload_bytes_max // (REDUCED_UPLOAD_SHARE if reduced else 1)
        photo = await data.file.read(bytes_max + 1)
        if len(photo) > bytes_max:
            raise PayloadTooLarge()
        upload = await images.keep(_owner(request.user), photo)
        return ok(
            UploadOut(
                upload_id=upload.id,
                media_type=upload.media_type,
                width=upload.width,
                height=upload.height,
                size_bytes=upload.size_bytes,
            )
        )


class FeaturesController(Controller):
    path = "/features"
    tags = ("images",)
    guards = (anyone,)

    @get("/", summary="List the features")
    async def features(self, catalogue: Features) -> Envelope[Page[FeatureOut]]:
        """What can be done with a photo, and for how many credits."""
        found = [
            FeatureOut(
                name=feature.name,
                title=feature.title(_locale()),
                price=feature.price,
                inputs=list(feature.inputs),
                params=list(feature.params),
            )
            for feature in await catalogue.features()
        ]
        return ok(Page(items=found))


class TasksController(Controller):
    path = "/tasks"
    tags = ("tasks",)
    guards = (permitted("image:read"),)

    @post(
        "/",
        opt=TASKS,
        guards=[permitted("image:create")],
        summary="Start a task",
        responses=refusals(InsufficientQuota, KeyConflict, Overloaded, FeatureOff),
    )
    async def start(
        self,
        data: TaskIn,
        request: ApiRequest,
        images: Service,
        switches: FeatureSwitches,
        idempotency_key: Annotated[
            str | None,
            Parameter(header="Idempotency-Key", pattern=r"^[!-~]{1,64}$", description="repeats return the same task"),
        ] = None,
    ) -> Response[Envelope[TaskOut]]:
        """Hold the feature's price and start. Without an Idempotency-Key every call is a task of its own."""
        if data.feature in images.features:
            switches.require(FEATURE + data.feature)
        key = idempotency_key or new_id("once")
        run = await images.start(_owner(request.user), data.feature, data.inputs, data.params, key)
        headers = {} if run.created else {"Idempotent-Replayed": "true"}
        return Response(ok(_task(run)), headers=headers)

    @get("/", summary="List my tasks")
    async def tasks(
        self,
        request: ApiRequest,
        images: Service,
        cursor: PageCursor = None,
        limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
    ) -> Envelope[Page[TaskOut]]:
        """Newest first."""
        page = await images.tasks(_owner(request.user), cursor, limit)
        return ok(Page(items=[_task(run) for run in page.items], next_cursor=page.next_cursor))

    @get("/{task_id:str}", summary="Look at a task", responses=refusals(RunUnknown))
    async def task(self, task_id: str, request: ApiRequest, images: Service) -> Envelope[TaskOut]:
        return ok(_task(await images.task(_owner(request.user), task_id)))

    @post(
        "/{task_id:str}/cancel",
        guards=[permitted("image:create")],
        summary="Cancel a task",
        status_code=200,
        responses=refusals(RunUnknown, RunFinished),
    )
    async def cancel(self, task_id: str, request: ApiRequest, images: Service) -> Envelope[TaskOut]:
        """Stop a task that is not finished; its credits come back."""
        return ok(_task(await images.cancel(_owner(request.user), task_id)))

    @get(
        "/{task_id:str}/result",
        summary="Download the result",
        media_type="image/png",
        responses=refusals(NotFound, RunUnknown, ResultNotReady),
    )
    async def result(self, task_id: str, request: ApiRequest, images: Service) -> File:
        """The picture as PNG, without metadata."""
        path = await images.result(_owner(request.user), task_id)
        return File(path, filename=f"{task_id}.png", media_type="image/png")


class LiveController(Controller):
    path = "/tasks/events"
    tags = ("tasks",)
    guards = (ticketed,)
    opt = LIVE

    @get("/", summary="Live task events", media_type="text/event-stream")
    async def stream(
        self,
        request: ApiRequest,
        images: Service,
        config: Configuration,
        cursor: EventCursor = None,
        last_event_id: Annotated[str | None, Parameter(header="Last-Event-ID", max_length=64)] = None,
    ) -> Stream:
        """Server-Sent Events. To resume, take a new ticket and pass the last event's id as ``cursor``.

        The stream ends when you log out, and when you may read tasks no more.
        """
        events = _shown(images.events(_owner(request.user), last_event_id or cursor))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        body = server_sent(events, config.stream_comment_s, partial(until_refused, request, MAY_WATCH))
        return Stream(body, media_type="text/event-stream", headers=headers)

    @websocket("/")
    async def socket(
        self,
        socket: WebSocket[Any, Any, Any],
        images: Service,
        config: Configuration,
        cursor: EventCursor = None,
    ) -> None:
        events = _shown(images.events(_owner(socket.user), cursor))
        await over_websocket(socket, events, config.stream_comment_s, partial(until_refused, socket, MAY_WATCH))


def images_router(images: Images, catalogue: Catalogue, config: ImagesConfig, switches: Switches) -> Router:
    """The routes below ``/uploads``, ``/features`` and ``/tasks``."""
    return Router(
        path="/",
        route_handlers=[UploadsController, FeaturesController, LiveController, TasksController],
        request_max_body_size=config.upload_bytes_max + MULTIPART_OVERHEAD,
        dependencies={
            "images": Provide(lambda: images, sync_to_thread=False),
            "catalogue": Provide(lambda: catalogue, sync_to_thread=False),
            "config": Provide(lambda: config, sync_to_thread=False),
            "switches": Provide(lambda: switches, sync_to_thread=False),
        },
    )


def _owner(principal: Principal) -> Owner:
    return Owner(principal.tenant, principal.subject)


async def _shown(events: AsyncGenerator[RunEvent, None]) -> AsyncGenerator[TaskEvent, None]:
    async with aclosing(events):
        async for event in events:
            yield _event(event)


def _event(event: RunEvent) -> TaskEvent:
    return TaskEvent(
        cursor=event.cursor,
        type=event.name,
        task_id=event.run_id,
        feature=event.flow,
        status=event.state,
        progress=event.progress,
        at=isoformat(event.at_us),
        step=event.step or UNSET,
        error=_error(event.error),
    )


def _task(run: Run) -> TaskOut:
    return TaskOut(
        id=run.id,
        feature=run.flow,
        status=run.state,
        progress=run.progress,
        steps=[TaskStep(name=step.name, status=step.state) for step in run.steps],
        created_at=isoformat(run.created_at_us),
        finished_at=isoformat(run.finished_at_us) if run.finished_at_us is not None else UNSET,
        error=_error(run.error),
    )


def _error(error: RunError | None) -> TaskError | UnsetType:
    if error is None:
        return UNSET
    return TaskError(code=error.code, error=error.name, message=error.text(_locale()))


def _locale() -> str:
    context = get_context()
    return context.locale if context is not None else ""
