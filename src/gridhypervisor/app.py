"""Wires everything together: the one module that knows every part. `python -m gridhypervisor.app serve` is the service.

The clock, the environment, random numbers and process ids enter the system here and nowhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gridhypervisor import __version__
from gridhypervisor.agent.bundle import BundleError, BundleInfo
from gridhypervisor.agent.bundle import build as build_bundle
from gridhypervisor.execution.controller import Controller
from gridhypervisor.execution.copies import Copies
from gridhypervisor.execution.decisions import Decisions
from gridhypervisor.execution.garbage import spare_records
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.measuring import measures, watch_lag
from gridhypervisor.execution.operations import Operations, Progress
from gridhypervisor.execution.ports import Driver, Link, StagedInput, Store, Transport
from gridhypervisor.execution.session import Session
from gridhypervisor.execution.sites import Sites
from gridhypervisor.execution.steps import no_steps
from gridhypervisor.execution.users import Users
from gridhypervisor.execution.warming import Warming
from gridhypervisor.images.errors import ImageError, NoSuchImage
from gridhypervisor.images.repository import Image, Repository
from gridhypervisor.model.access import Upload
from gridhypervisor.model.commit import StoreError
from gridhypervisor.model.errors import InputError, LinkError
from gridhypervisor.model.foreign import is_upload, uploads
from gridhypervisor.model.measures import Measures
from gridhypervisor.model.records import Job, JobState, Site, SiteKind
from gridhypervisor.model.views import (
    Check,
    ImageBuildRequest,
    ImageImportRequest,
    ImageView,
    LayerView,
    Operation,
    OperationItem,
    Problem,
    ServiceError,
    ServiceView,
    SiteChange,
    SiteLogin,
    SiteRemoval,
    SiteRequest,
    SiteUsage,
    SiteView,
    WarmRequest,
)
from gridhypervisor.model.wire import ImageManifest, Layer
from gridhypervisor.model.yamlspec import SpecError
from gridhypervisor.planning.warming import impossible
from gridhypervisor.sites import Authority, Bundle, Ways, driver_for, transport_for
from gridhypervisor.staging.uploads import Misplaced, Uploads
from gridhypervisor.store import open_clock, open_store

if TYPE_CHECKING:
    from gridhypervisor.service.listener import Listener
    from gridhypervisor.staging import Stager

P = ParamSpec("P")
T = TypeVar("T")

LOCAL = "local"
"""The site that every installation has: this machine."""

BUILDERS = 4
"""Images and bundles that are built, imported or verified at once."""


class App(Users):
    """The backend of the API, and the life of everything behind it. `sockets`: a folder for those that SSH needs."""

    def __init__(self, data: Path, sockets: Path, store: Store, steps: Callable[[str], None]) -> None:
        self.data, self.sockets = data, sockets
        states = [state for state in JobState if not state.final]
        self.clock = open_clock(data / "clock.json", alive=bool(store.jobs(states=states, limit=1)))
        self.started = time.time()
        self.repository = Repository(data / "images")
        self.copies = Copies(data / "checkpoints", os.urandom)
        controller = Controller(store, {}, Logs(data / "jobs"), self.copies, clock=self.clock, cpu=time.process_time,
                                steps=steps, decisions=Decisions(data / "decisions.jsonl"))  # fmt: skip
        super().__init__(controller, self.resolve_image, os.urandom, owner=getpass.getuser(), project="default")
        self.operations = Operations(describe)
        self.accounts = Sites(controller, self.operations, self, owner=self.owner, project=self.project)
        self.stopping = asyncio.Event()
        self._builders = ThreadPoolExecutor(BUILDERS, thread_name_prefix="build")
        self.bundle = BundleSource(data, self._builders)
        self._stagers: dict[bool, Stager] = {}  # for jobs that may read what the user can, and for others
        self._uploads = Uploads(data / "uploads")

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self, loaded: Callable[[], Any], serving: asyncio.Event) -> None:
        """Until `stop`: the loop and the sessions; what runs at the sites runs on.

        `loaded` is called once requests can be answered; nothing is decided before `serving`, so that whoever started
        the service hears that it did, whatever comes of the first decisions.
        """
        await self.controller.load()
        await self.load_tokens()
        await self.accounts.load(
            Site(LOCAL, self.owner, self.project, SiteKind.FORK, slots=os.cpu_count() or 1, version=1)
        )
        loaded()
        await serving.wait()
        loop = asyncio.create_task(self.controller.run(), name="controller")
        stopping = asyncio.create_task(self.stopping.wait())
        watching = asyncio.create_task(watch_lag(self.controller.counts.lag))
        await asyncio.wait({loop, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (loop, stopping, watching):
            task.cancel()
        await self.operations.close()
        for stager in self._stagers.values():
            stager.close()
        self._builders.shutdown(wait=False, cancel_futures=True)
        results = await asyncio.gather(loop, self.accounts.close(), return_exceptions=True)
        await self.controller.close()
        self.store.close()
        if isinstance(results[0], Exception):
            raise results[0]

    async def stop(self) -> None:
        self.stopping.set()

    async def status(self) -> ServiceView:
        cpu, resident = self._used()
        return ServiceView(
            version=__version__,
            pid=os.getpid(),
            installation=self.store.installation,
            started=self.started,
            data=str(self.data),
            jobs_alive=len(self.controller.cases),
            cpu_seconds=cpu,
            max_rss=resident,
        )

    @staticmethod
    def _used() -> tuple[float, int]:
        """CPU seconds of this process so far, and most bytes of memory."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10

    async def measures(self) -> Measures:
        return measures(self.controller, await self.accounts.list(), self.started, self._used())

    async def all_operations(self) -> list[Operation]:
        return self.operations.list()

    def follow_operation(self, operation: str) -> AsyncIterator[OperationItem]:
        return self.operations.follow(operation)

    async def stop_operation(self, operation: str) -> None:
        await self.operations.stop(operation)

    # -- images -------------------------------------------------------------------------------------------------

    def resolve_image(self, reference: str) -> tuple[str, ImageManifest]:
        with problems_of(f"find image {reference}", 404, "not-found"):
            image = self.repository.show(reference)
        return image.digest, image.manifest

    async def images(self) -> list[ImageView]:
        return [image_view(image) for image in await asyncio.to_thread(self.repository.list)]

    async def image(self, reference: str) -> ImageView:
        with problems_of(f"find image {reference}", 404, "not-found"):
            return image_view(await asyncio.to_thread(self.repository.show, reference))

    async def build_image(self, request: ImageBuildRequest) -> Operation:
        from gridhypervisor.images.build import build
        from gridhypervisor.images.recipe import load

        async def work(progress: Progress) -> ImageView:
            path = Path(request.recipe)
            recipe = await self._building(load, path)
            cache = self.data / "cache" / "images"
            make = partial(build, recipe, path.parent, self.repository, cache, progress=progress)
            digest = await self._building(make)
            if request.tag:
                await asyncio.to_thread(self.repository.tag, request.tag, digest)
            return await self.image(f"{recipe.name}@{digest}")

        return self.operations.start(work)

    async def import_image(self, request: ImageImportRequest) -> Operation:
        from gridhypervisor.images.importing import import_disk

        async def work(progress: Progress) -> ImageView:
            cache = self.data / "cache" / "images"
            disk, tag = Path(request.path), request.tag
            take = partial(import_disk, disk, tag, self.repository, cache, format=request.format, progress=progress)
            digest = await self._building(take)
            return await self.image(f"{tag.partition(':')[0]}@{digest}")

        return self.operations.start(work)

    async def _building(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what takes minutes in a thread that nothing short waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._builders, partial(work, *args, **kwargs))

    async def verify_image(self, reference: str) -> Operation:
        async def work(progress: Progress) -> list[Check]:
            progress(f"verifying {reference}")
            damages = await self._building(self.repository.verify, reference)
            if not damages:
                return [Check(f"the bytes of {reference} are those of its digest", True, "every chunk was read")]
            return [Check(damage.part, False, str(damage), "build or import the image again") for damage in damages]

        return self.operations.start(work)

    async def warm_image(self, request: WarmRequest, owner: str) -> Operation:
        sites = request.sites or tuple(sorted(self.controller.sessions))
        for site in sites:
            await self.site(site)  # raises that there is none
        digest, image = self.image_for(request.like, owner)
        if (why := impossible(request.like, image.layers)) is not None:
            raise ServiceError(Problem(f"warm image {request.like.image}", 422, "invalid", *why))
        warming = Warming(self.controller, owner=owner, project=self.project)

        async def work(progress: Progress) -> list[Check]:
            return await warming.run(request.like, digest, image, sites, request.patience, progress)

        return self.operations.start(work)

    async def delete_image(self, reference: str) -> None:
        in_use = {case.job.image_digest for case in self.controller.cases.values() if not case.job.state.final}
        in_use |= {group.image_digest for group in self.controller.groups.alive()}
        with problems_of(f"delete image {reference}", 409, "conflict"):
            await asyncio.to_thread(self.repository.delete, reference, in_use=in_use)

    def paths(self, layer: Layer) -> tuple[Path, Path]:
        data, chunks = self.repository.layer_path(layer), self.repository.chunks_path(layer)
        if not data.exists() or not chunks.exists():
            raise InputError(
                f"image layer {layer.digest[:12]} ({layer.role}) is not in the repository",
                "build or import the image again",
            )
        return data, chunks

    # -- inputs -------------------------------------------------------------------------------------------------

    async def plan(self, job: Job, progress: Callable[[str], None]) -> Sequence[StagedInput]:
        from gridhypervisor.staging import Stager

        loop = asyncio.get_running_loop()

        def tell(name: str, done: int, total: int | None) -> None:
            share = f" of {total >> 20}" if total else ""
            loop.call_soon_threadsafe(progress, f"fetching {name}: {done >> 20}{share} MiB")

        foreign = not job.folder
        if foreign not in self._stagers:
            cache = self.data / "cache" / ("public-inputs" if foreign else "inputs")
            self._stagers[foreign] = Stager(cache, public=foreign)
        folder = await asyncio.to_thread(self._uploaded, job) if foreign else Path(job.folder)
        staged = await self._stagers[foreign].stage(job.spec.inputs, folder, tell)
        return [StagedInput(each.local, each.described) for each in staged]

    def _uploaded(self, job: Job) -> Path:
        """Where the uploads are that a job names. Raises InputError: it names something else, or it is too late."""
        for field, path in uploads(job.spec):
            if not is_upload(path) or not self._uploads.use(job.owner, path):
                raise InputError(f"{field}: there is no upload {path}", "send the file again, and submit the job again")
        return self._uploads.folder(job.owner)

    async def upload(self, owner: str, sha256: str) -> Upload:
        with self._uploading(sha256):
            return await asyncio.to_thread(self._uploads.look, owner, sha256)

    async def add_upload(self, owner: str, sha256: str, offset: int, size: int, data: bytes) -> Upload:
        with self._uploading(sha256):
            return await asyncio.to_thread(self._uploads.add, owner, sha256, offset, size, data)

    @contextmanager
    def _uploading(self, sha256: str) -> Iterator[None]:
        title = f"upload {sha256}"
        try:
            yield
        except Misplaced as error:
            hint = "GET it to see how much has come, and go on there"
            raise ServiceError(Problem(title, 409, "conflict", f"the piece does not fit: {error}", hint)) from error
        except InputError as error:
            raise ServiceError(Problem(title, 422, "invalid", str(error), error.hint)) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise ServiceError(Problem(title, 507, "unavailable", why, "try again later: nothing is lost")) from error

    # -- sites --------------------------------------------------------------------------------------------------

    async def sites(self) -> list[SiteView]:
        return await self.accounts.list()

    async def site(self, name: str) -> SiteView:
        return await self.accounts.show(name)

    async def add_site(self, request: SiteRequest) -> SiteView:
        return await self.accounts.add(request)

    async def edit_site(self, name: str, change: SiteChange, version: int | None) -> SiteView:
        return await self.accounts.edit(name, change, version)

    async def drain_site(self, name: str, *, undo: bool) -> SiteView:
        return await self.accounts.drain(name, undo=undo)

    async def login_site(self, name: str) -> SiteLogin:
        return await self.accounts.login(name)

    async def remove_site(self, name: str, *, abandon: bool) -> SiteRemoval:
        return await self.accounts.remove(name, abandon=abandon)

    async def check_site(self, name: str, *, patience: int) -> Operation:
        return await self.accounts.check(name, patience)

    async def site_usage(self, name: str) -> SiteUsage:
        return await self.accounts.usage(name)

    def driver(self, site: Site, workdir: str, bundle: str) -> Driver:
        return driver_for(site, workdir, bundle)

    def way(self, site: Site) -> DeferredTransport:
        return DeferredTransport(self.bundle, site, log=self.data / "sites" / f"{site.name}.log", sockets=self.sockets)

    def door(self, site: Site) -> Ways:
        return Ways(site, self.sockets)

    def session(self, site: Site, way: Transport) -> Session:
        return Session(
            site,
            partial(driver_for, site),
            way,
            self.controller.observer,
            installation=self.store.installation,
            layers=self,
            inputs=self,
            logs=self.logs,
            copies=self.copies,
            tickets=Authority(self.data / "authority" / f"{site.name}.pem"),
            clock=self.clock,
            jitter=lambda: random.uniform(0.75, 1.25),
            progress=self.note,
            report=traceback.print_exception,
        )


class BundleSource:
    """The bundle of this installation, built when it is first needed and only once however many sites ask."""

    def __init__(self, data: Path, threads: ThreadPoolExecutor) -> None:
        self._data, self._threads = data, threads
        self._lock = asyncio.Lock()
        self._built: BundleInfo | None = None
        self.doing = ""

    async def get(self) -> BundleInfo:
        async with self._lock:
            if self._built is None:
                folder, cache = self._data / "bundle", self._data / "cache" / "bundle"
                make = partial(build_bundle, folder, cache=cache, progress=self._tell)
                self._built = await asyncio.get_running_loop().run_in_executor(self._threads, make)
            return self._built

    def _tell(self, words: str) -> None:
        self.doing = words
        sys.stderr.write(f"bundle: {words}\n")  # the service's log


class DeferredTransport:
    """A transport that waits for the bundle before it connects."""

    def __init__(self, source: BundleSource, site: Site, *, log: Path, sockets: Path) -> None:
        self._source, self._site, self._log, self._sockets = source, site, log, sockets
        self._inner: Transport | None = None
        self._doing = ""

    @property
    def doing(self) -> str:
        """What keeps the connection waiting, in one line."""
        return self._doing if self._inner is not None else self._source.doing

    def _tell(self, words: str) -> None:
        self._doing = words

    @property
    def bundle(self) -> str:
        assert self._inner is not None, "asked before the first connection"
        return self._inner.bundle

    @asynccontextmanager
    async def connect(self, on_note: Callable[[dict[str, Any], bytes], None]) -> AsyncIterator[Link]:
        if self._inner is None:
            try:
                bundle = await self._source.get()
            except (BundleError, OSError) as error:
                raise LinkError(f"make the bundle: {error}") from error
            self._inner = transport_for(
                self._site, Bundle(bundle.path), log=self._log, sockets=self._sockets, progress=self._tell
            )
        async with AsyncExitStack() as stack:
            yield await stack.enter_async_context(self._inner.connect(on_note))


class problems_of:
    """Turns what the parts raise into a Problem of the operation named."""

    def __init__(self, title: str, status: int, code: str) -> None:
        self._title, self.status, self.code = title, status, code

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImageError):
            own = error if isinstance(error, NoSuchImage) else self
            raise ServiceError(Problem(self._title, own.status, own.code, error.message, error.hint)) from error


def describe(error: Exception) -> Problem:
    """The Problem of whatever an operation raised."""
    if isinstance(error, ServiceError):
        return error.problem
    if isinstance(error, SpecError):
        status, code = (404, "not-found") if error.missing else (422, "invalid")
        return Problem(str(error), status, code, "", "mend the lines named")
    hint = getattr(error, "hint", "")
    if isinstance(error, ImageError):
        return Problem(error.message, error.status, error.code, "", hint)
    if isinstance(error, (StoreError, LinkError, InputError, BundleError)):
        return Problem(str(error), 422, "refused", "", hint)
    return Problem(type(error).__name__, 500, "internal", str(error), "see service.log in the data folder")


def image_view(image: Image) -> ImageView:
    manifest = image.manifest
    return ImageView(
        digest=image.digest,
        tags=image.tags,
        size=image.size,
        description=manifest.description,
        arch=manifest.arch,
        user=manifest.user,
        layers=tuple(LayerView(x.role, x.digest, x.size, x.format, x.mount) for x in manifest.layers),
    )


def deadly_steps(path: Path) -> Callable[[str], None]:
    """For tests: this process dies by SIGKILL at each step that the file lists, which is struck out first."""

    def step(name: str) -> None:
        lines = path.read_text().splitlines()
        if name in lines:
            shorter = path.with_name(f"{path.name}.new")
            shorter.write_text("".join(f"{line}\n" for line in lines if line != name))
            shorter.replace(path)
            os.kill(os.getpid(), signal.SIGKILL)

    return step


async def serve(data: Path, socket: Path, ready_fd: int | None, listener: Listener | None) -> None:
    from gridhypervisor.service.api import Api
    from gridhypervisor.service.server import serve as serve_api

    store = open_store(data / "store.sqlite")
    deadly = os.environ.get("GHV_TEST_DIE_AT")
    app = App(data, socket.with_suffix(".ssh"), store, deadly_steps(Path(deadly)) if deadly else no_steps)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stopping.set)

    def ready() -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)
        if listener is not None:
            sys.stderr.write(f"ghv: serving at {listener.url}\n")
            sys.stderr.flush()
        serving.set()

    loaded, serving = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(app.run(loaded.set, serving))
    await asyncio.wait({running, asyncio.create_task(loaded.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    running.add_done_callback(lambda _: app.stopping.set())
    await serve_api(Api(app), socket, ready, app.stopping, listener)
    await running


def main() -> None:
    """The service's command line; `client.launcher` calls it."""
    parser = argparse.ArgumentParser(prog="python -m gridhypervisor.app")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--cert", default="")
    parser.add_argument("--key", default="")
    arguments = parser.parse_args()
    try:
        listener = None
        if arguments.listen:
            from gridhypervisor.service.listener import listen

            listener = listen(arguments.listen, arguments.cert, arguments.key)
        spare_records()
        asyncio.run(serve(arguments.data, arguments.socket, arguments.ready_fd, listener))
    except (StoreError, ServiceError) as error:
        hint = error.hint if isinstance(error, StoreError) else error.problem.hint
        sys.exit(f"ghv service: {error}" + (f"\n  next: {hint}" if hint and hint not in str(error) else ""))


if __name__ == "__main__":
    main()
