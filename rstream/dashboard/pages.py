"""What there is to look at. Nothing here changes anything, nor shows anything of an event."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from rstream.dashboard import entries, letters, view
from rstream.dashboard.charts import Window, charts, sparks
from rstream.dashboard.site import Site
from rstream.dashboard.view import workers_of
from rstream.errors import StoreError


class Pages:
    """A method a page."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def overview(self, request: Request) -> Response:
        fleet = await self.site.watch.fleet()
        lines = await sparks(self.site.watch, fleet)
        return self.site.page(
            request, "overview.html", live=True, fleet=fleet, found=view.overview(fleet), sparks=lines
        )

    async def stream(self, request: Request) -> Response:
        fleet, stream = await self.site.stream(request)
        window = Window.of(request.query_params, fleet.now)
        plots = await charts(self.site.watch, stream, None, window)
        rows = [view.row_of(fleet, stream, each) for each in stream.groups]
        return self.site.page(
            request, "stream.html", live=True, fleet=fleet, stream=stream, rows=rows, plots=plots, window=window
        )

    async def group(self, request: Request) -> Response:
        return await entries.group_page(self.site, request, reveal=False)

    async def entry(self, request: Request) -> Response:
        return await entries.page(self.site, request, reveal=False)

    async def workers(self, request: Request) -> Response:
        fleet = await self.site.watch.fleet()
        rows = workers_of(fleet, await self.site.watch.workers())
        return self.site.page(request, "workers.html", live=True, fleet=fleet, workers=rows)

    async def dead(self, request: Request) -> Response:
        """Letters that match the filters; what they hold is not shown."""
        return await letters.listed(self.site, request, request.query_params, reveal=False)

    async def letter(self, request: Request) -> Response:
        return await letters.one(self.site, request, reveal=False)

    async def replay(self, request: Request) -> Response:
        """The form for a replay, of the window that was picked."""
        fleet, stream = await self.site.stream(request)
        return self.site.page(request, "replay.html", fleet=fleet, stream=stream, asked=request.query_params)

    async def replays(self, request: Request) -> Response:
        runs = sorted(self.site.replays.runs.values(), key=lambda run: -run.number)
        return self.site.page(request, "replays.html", live=True, runs=runs)

    async def find(self, request: Request) -> Response:
        """Where an id leads: the stream's entry."""
        fleet = await self.site.watch.fleet()
        name, id = request.query_params.get("stream", ""), request.query_params.get("id", "").strip()
        if name not in fleet.streams or not id:
            return RedirectResponse("/", 303)
        return RedirectResponse(f"/s/{name}/e/{id}", 303)

    # -- for machines -------------------------------------------------------------------------------------------

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Whether Redis answers."""
        try:
            await self.site.watch.fleet()
        except StoreError:
            return PlainTextResponse("Redis does not answer\n", 503)
        return PlainTextResponse("ok\n")
