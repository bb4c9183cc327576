"""One request that bears a token, and what is needed to answer it."""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from .._ground.prefer import preferences
from .._jobs import KEY_LENGTH, Job, key_of
from ..errors import ConfigurationError, JobExpired, JobNotFound, RegistryError
from ..executors.base import Executor
from ..owners import CookieOwner, Owner, guest
from ..registries.base import END, Registry
from .charts import Charts
from .connections import disconnection_of, is_stopping, longest, stream_live, takes_off_hands, threads_of
from .deliveries import Delivery
from .estimates import Estimates
from .pace import FASTEST
from .parts import PageMaker
from .problem_page import reference
from .problems import UNSTORED, Answer, Headers, problem, retry_after
from .queue import Workers
from .recent import Recent
from .shared_links import IN_PLACE_OF_TOKEN, MARK, OWN, Share, opened
from .viewers import Viewers

__all__ = ["LOOK_EVERY", "STAYING", "BadParameter", "Forbidden", "Hold", "Site", "Visit", "about", "job_headers"]

_MAX_WAIT = 30.0
_LONGEST_QUERY = 1000
PATIENCE = 30.0
"""How long, in seconds, a client is held that can use nothing but the app's response."""

# Registered ones: something that may be large; what to watch a resource by; what its status is (RFC 8631).
# Between the two: the right to it.
_RELATIONS = (("result", "result", "enclosure"), ("log", "output", "monitor"), ("status", "list", "status"))
LOOK_EVERY = 1.0
"""How often, in seconds, a held connection is looked at: has its client gone?"""

_TRY_EVERY = 0.2  # the same for whether the next try has begun: a registry wakes nobody for that

STAYING = {"_follow": "no"}
"""The parameters of a client that looks at one try of a request, and is not to be led on to the newest."""

_KEY_AT_END = re.compile(rf"/([0-9a-f]{{{KEY_LENGTH}}})\Z")


class BadParameter(Exception):
    """A parameter of ours is not what it should be; the message says what it should."""


class Forbidden(Exception):
    """An operator may not do what he asks for; the message names the right for it."""


_IS_TOKEN = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOKEN = f"(?:[0-9a-f-]{{36}}|{IN_PLACE_OF_TOKEN})"


@cache  # a few sites have as many names
def _ours(token_name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(token_name)}={_TOKEN}|_(?:view|wait|offset|every|with|ignore|follow)=.*", re.DOTALL)


@cache
def _token_in_url(token_name: str) -> re.Pattern[str]:
    return re.compile(rf"[?&]{re.escape(token_name)}={_TOKEN}(?![^&#])")


def _key_named_by(token: str) -> str:
    """Return the key of the job that a token, or the link of an owner, is to."""
    return token.removeprefix(OWN) if token.startswith(OWN) else key_of(token)


@dataclass(frozen=True, slots=True)
class Site:
    """What all requests of one middleware have in common."""

    registry: Registry
    executor: Executor
    viewers: Viewers
    token_name: str
    owner: Owner | None
    page: PageMaker
    rerun: "Callable[[Visit, Job], Answer]"
    """Runs the request of an ended job again, and answers the client that asks for it."""
    own_page: bool = False
    """Whether the site has looks of its own."""
    external_assets: bool = False
    """Whether the page's script and style are at URLs of their own."""
    details: bool = True
    """Whether those who may see a job are told tracebacks, and the host and the process that ran it."""
    estimates: Estimates = field(default_factory=Estimates)
    workers: Workers = field(default_factory=Workers)
    charts: Charts = field(default_factory=Charts)
    deliveries: Callable[[], Sequence[Delivery]] = tuple
    """Returns how the messages of webhooks go."""
    lists: Recent[Any] = field(default_factory=Recent)
    """What those see who leave the list of all jobs open."""
    retries: bool = False
    """Whether requests that failed are tried again."""
    dashboard: str = ""
    """The path of the list of all jobs; below it, the jobs are at their keys."""

    def key_in(self, environ: Mapping[str, Any]) -> str:
        """Return the key of the job that a path below the list names; empty for the list itself."""
        path = str(environ.get("PATH_INFO", ""))
        found = _KEY_AT_END.search(path)
        return found[1] if found is not None and path != self.dashboard else ""

    def path_to(self, key: str) -> str:
        """Return a reference from the list to a job."""
        return key if self.dashboard.endswith("/") else f"{quote(self.dashboard.rpartition('/')[2])}/{key}"

    @property
    def path_to_list(self) -> str:
        """A reference from a job below the list to that."""
        return "./" if self.dashboard.endswith("/") else f"../{quote(self.dashboard.rpartition('/')[2])}"

    def without_ours(self, query: str) -> str:
        """Return a query string without our parameters: what the app's URL had before there was a job."""
        is_ours = _ours(self.token_name).fullmatch
        return "&".join(part for part in query.split("&") if part and not is_ours(part))

    def place(self, query: str, token: str, **parameters: str) -> str:
        """Return a relative reference to a job: nothing but a query. Right behind every proxy, whatever it does to host
        and path.

        The app's own *query* is in it, unless :meth:`cut_off` says that it is too long. Each parameter can be followed
        by another one.
        """
        if not token:  # an operator's: the path says which job it is
            return f"?&{urlencode(parameters)}" if parameters else "?"
        # Where a program sent a "#", it would end the query for all others.
        query = "" if self.cut_off(query) else query.replace("#", "%23")
        ours = f"{self.token_name}={token}"  # of which nothing needs escaping
        if parameters:
            ours = f"{ours}&{urlencode(parameters)}"
        return f"?{query}&{ours}" if query else f"?{ours}"

    def cut_off(self, query: str) -> str:
        """Return a query that is too long to be sent to a client and back again; else an empty text.

        Proxies and servers have bounds for a head and for the first line of a request, and a job whose URL cannot be
        asked for is lost.
        """
        return query if len(query) > _LONGEST_QUERY else ""

    def without_tokens(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Return a recorded environ with no job's token in a URL: where the user comes from, what a proxy adds.

        Who reads a registry, or a backup of it, must not be able to read other jobs through the web.
        """
        sign = f"{self.token_name}="
        cleaned = {}
        for name, value in environ.items():
            if sign in value and _token_in_url(self.token_name).search(value):
                place, _, query = value.partition("?")
                query = self.without_ours(query)
                cleaned[name] = place + ("?" + query if query else "")
        return {**environ, **cleaned} if cleaned else environ

    def visit(self, environ: Mapping[str, Any], token: str) -> "Visit":
        """Return what a request about *token* needs, with the owner that it proves."""
        query = environ.get("QUERY_STRING")
        parameters = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
        if token.startswith(MARK):
            return self._shared_visit(environ, token, parameters)
        return Visit(self, environ, token, _key_named_by(token), self._owners(environ), parameters)

    def _shared_visit(self, environ: Mapping[str, Any], token: str, parameters: Mapping[str, str]) -> "Visit":
        """Return what a request by a shared link needs: its rights. Whose job it is does not matter, and its token is
        not known here. A link that we did not sign is one to no job."""
        try:
            share = opened(self.registry, token)
        except (RegistryError, ConfigurationError):  # it is away: looking for the job says so
            share = None
        key, rights = (key_of(token), frozenset[str]()) if share is None else (share.key, share.rights)
        return Visit(self, environ, token, key, (), parameters, rights, share)

    def operator_visit(self, environ: Mapping[str, Any], key: str, rights: Collection[str]) -> "Visit":
        """Return what the request of an operator with these *rights* about the job of a *key* needs."""
        parameters = dict(parse_qsl(environ.get("QUERY_STRING") or "", keep_blank_values=True))
        return Visit(self, environ, "", key, (), parameters, frozenset(rights))

    def started_visit(self, environ: Mapping[str, Any], token: str, job: Job) -> "Visit":
        """Return the visit of a client whose request just started the *job*, which so is his. Its query is the app's,
        whatever that calls its parameters."""
        return Visit(self, environ, token, job.key, () if job.owner is None else (job.owner,), {})

    def _owners(self, environ: Mapping[str, Any]) -> list[str]:
        """Return whose jobs the client may see that has their tokens."""
        if isinstance(self.owner, CookieOwner):
            proofs = self.owner.proofs(environ)
            return [proof.owner for proof in proofs] + [guest(proof.job) for proof in proofs if proof.job]
        owner = None if self.owner is None else self.owner(environ)
        return [] if owner is None else [owner]


@dataclass(frozen=True, slots=True)
class Hold:
    """The right to hold a connection: while its client is there, the server lets it, and no longer than *ends_at*."""

    viewers: Viewers
    slot: object
    gone: Callable[[], bool]
    """Whether the client has gone, as far as the server lets us know."""
    ends_at: float
    """By the monotonic clock."""
    revoked: Callable[[], bool] = lambda: False
    """Whether the client may not see the job any more: its shared link is over, or was taken back."""

    def must_end(self) -> bool:
        """Whether the connection is not to be held any longer."""
        return self.viewers.ended or is_stopping() or time.monotonic() >= self.ends_at

    def give_back(self) -> None:
        """Give the slot back. Idempotent."""
        self.viewers.give_back(self.slot)

    __del__ = give_back  # not everybody closes what is dropped


class Visit(NamedTuple):
    """A request about the job of *token*, sent by one who proves to be the *owners* (none: nobody in particular).

    *parameters* are those of the query, of each name the last. *rights*: of an operator, who has no token and sees the
    jobs of all, or of who has a shared link; None: of a job's owner. *share*: what that link says.
    """

    site: Site
    environ: Mapping[str, Any]
    token: str
    key: str
    owners: Collection[str]
    parameters: Mapping[str, str]
    rights: frozenset[str] | None = None
    share: Share | None = None

    @property
    def registry(self) -> Registry:
        """Where the job is."""
        return self.site.registry

    def job(self) -> Job:
        """Return the job, if this client may know of it. The one place where that is decided.

        Raises ``JobNotFound`` (also where it is somebody else's) or ``JobExpired``.
        """
        job = self.registry.get(self.key)
        # A key is no secret, as a token is: who has no more than that must be the owner.
        is_owners = job.owner is not None or self.token.startswith(OWN)
        if self.rights is None and is_owners and job.owner not in self.owners:
            raise JobNotFound(self.key)
        if self.share is not None and not self.share.is_of(job, self.registry.clock()):
            raise JobNotFound(self.key)
        if self.rights is None and job.awaits_try and not self.site.retries:  # any more: nobody shall wait for it
            return job.changed(tries=None)
        return job

    def of(self, token: str) -> "Visit":
        """Return the same request, as one about another job."""
        return self._replace(token=token, key=_key_named_by(token))

    def other_job(self, token: str) -> Job | None:
        """Return another job, if this client may know of it; None: it may not, or there is none."""
        if not _IS_TOKEN.fullmatch(token):
            return None
        with contextlib.suppress(JobNotFound, JobExpired):
            return self.site.visit(self.environ, token).job()
        return None

    @property
    def is_operators(self) -> bool:
        """Whether this is no holder of the job's token."""
        return self.rights is not None

    @property
    def follows(self) -> bool:
        """Whether the client is led on to the newest try of the request. Who has no token looks at one job."""
        return self.rights is None and STAYING.items().isdisjoint(self.parameters.items())

    def has_ended(self, job: Job) -> bool:
        """Whether what this client sees of the job is the end: no other try follows to which it is led."""
        return job.state.ended and not (self.follows and job.awaits_try)

    def may(self, right: str) -> bool:
        """Whether the client has a right. An owner has all to his job, but to have it forgotten."""
        return right != "discard" if self.rights is None else right in self.rights

    def need(self, right: str) -> None:
        """Raise ``Forbidden`` where the client has not that right."""
        if not self.may(right):
            raise Forbidden(right)

    def take_slot(self, spare: int = 0) -> "Hold | None":
        """Take the right to hold this connection, which must be given back.

        None: no more than *spare* slots are free, or this would hold the server's only thread.
        """
        return self._held(spare=spare) if self.environ.get("wsgi.multithread") else None

    def take_slot_for_bytes(self, size: int) -> "Hold | None":
        """Take the right to send so many bytes to a client that may read them slowly, and hold a thread meanwhile.

        None: no slot is free. There is always one for this, else nobody got them. A server with one thread sends what
        it has to, and so does one that takes *size* bytes off our hands: then nothing is held.
        """
        is_held = size > takes_off_hands(self.environ) and self.environ.get("wsgi.multithread")
        if is_held and self.environ["REQUEST_METHOD"] != "HEAD":
            return self._held(least=1)
        return Hold(self.site.viewers, None, lambda: False, float("inf"))

    def take_slot_for_work(self) -> "Hold | None":
        """Take the right to have this process work for seconds, whatever the method is and though its client may leave
        meanwhile. None: no slot is free. There is always one for this, and a server with one thread needs none."""
        slot: object | None = None
        if self.environ.get("wsgi.multithread"):
            slot = self.site.viewers.take_slot(lambda: False, threads=threads_of(self.environ), least=1)
            if slot is None:
                return None
        return Hold(self.site.viewers, slot, lambda: False, float("inf"))

    def _held(self, least: int = 0, spare: int = 0) -> "Hold | None":
        gone = disconnection_of(self.environ)
        viewers = self.site.viewers
        slot = viewers.take_slot(gone, threads=threads_of(self.environ), least=least, spare=spare)
        if slot is None:
            return None
        stream_live(self.environ)
        return Hold(viewers, slot, gone, time.monotonic() + longest(self.environ), self._revoked())

    def _revoked(self) -> Callable[[], bool]:
        """Return what tells whether a shared link leads here no longer, and looks for that once a second at most."""
        if self.share is None:
            return lambda: False
        looked_at = time.monotonic()

        def is_revoked() -> bool:
            nonlocal looked_at
            if time.monotonic() - looked_at < LOOK_EVERY:
                return False
            looked_at = time.monotonic()
            try:
                self.job()
            except (JobNotFound, JobExpired):
                return True
            return False

        return is_revoked

    def hold(self, job: Job, offset: int, seconds: float) -> Job:
        """Return the job when it has more output than *offset* or has ended, after at most *seconds*.

        At once as it is, where no slot is free; and when the client has gone.
        """
        if job.state.ended:
            return job

        def look(left: float) -> Job:
            return self.registry.wait(self.key, offset, left)

        return self._wait_for(job, seconds, look, lambda job: job.state.ended or job.output_end > offset)

    def hold_for_try(self, job: Job, seconds: float) -> Job:
        """Return the job when no next try is awaited any more, such as when that has begun, in the same way."""
        if self.has_ended(job) or not job.state.ended:
            return job

        def look(left: float) -> Job:
            time.sleep(min(left, _TRY_EVERY))
            return self.job()

        return self._wait_for(job, seconds, look, self.has_ended)

    def _wait_for(self, job: Job, seconds: float, look: Callable[[float], Job], is_over: Callable[[Job], bool]) -> Job:
        if seconds <= 0 or self.environ["REQUEST_METHOD"] == "HEAD":
            return job
        held = self.take_slot()
        if held is None:
            return job
        try:
            deadline = min(held.ends_at, time.monotonic() + seconds)
            while (left := deadline - time.monotonic()) > 0 and not held.must_end():
                if held.gone() or held.revoked():
                    break
                job = look(min(left, LOOK_EVERY))
                if is_over(job):
                    break
            return job if self.share is None else self.job()  # its link may be over by now
        finally:
            held.give_back()

    def wait_as_preferred(self, job: Job) -> tuple[Job, str]:
        """Return the job when it has ended, at the latest after the time that ``Prefer: wait=N`` grants (RFC 7240
        §4.3), and that preference if it was applied: where there is nothing to hold the connection with, it is not."""
        wait = self.preferred_wait
        if wait is None:
            return job, ""
        begun = time.monotonic()
        job = self.hold(job, END, wait)
        applied = self.has_ended(job) or time.monotonic() - begun >= wait
        return job, f"wait={wait:g}" if applied else ""

    def pace(self) -> Headers:
        """Return when a client that polls should ask again: exactly for ours, in whole seconds for others."""
        return _ask_again(self._pace())

    def no_worker_for(self, job: Job) -> float | None:
        """Return for how many seconds a pending job has waited without any worker; None: that is nothing to tell."""
        return self.site.workers.unseen_for(self.registry, self.site.executor, job)

    def polled(self, answer: Answer) -> Answer:
        """Return the answer to a client that will ask again, with when it should."""
        return _told(answer, self._pace())

    def _pace(self) -> float:
        # Who says what is not true slows down those who look at the same job from the same place.
        place = (self.key, self.environ.get("REMOTE_ADDR"), self.environ.get("HTTP_X_FORWARDED_FOR"))
        return self.site.viewers.pace(self.seconds("_every"), place)

    def refused(self, detail: str) -> Answer:
        """Return the answer to a client for which no slot is free, with when it should begin to poll."""
        return _told(problem(self.environ, 503, "no-slot", detail), self.site.viewers.turn())

    def number(self, name: str) -> int | None:
        """Return a parameter as a whole number; None if it is not there. Raises ``BadParameter``."""
        text = self.parameters.get(name)
        if text is None:
            return None
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            raise BadParameter(f"{name} must be a whole number")
        return int(text)

    def seconds(self, name: str) -> float | None:
        """Return a parameter as seconds from 0 up; None if it is not there. Raises ``BadParameter``."""
        text = self.parameters.get(name)
        if text is None:
            return None
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not seconds >= 0:
            raise BadParameter(f"{name} must be a number of seconds")
        return seconds

    @property
    def wait(self) -> float:
        """How many seconds the client would wait for news: 0 to 30. Raises ``BadParameter``."""
        return min(self.seconds("_wait") or 0.0, _MAX_WAIT)

    @property
    def preferred_wait(self) -> float | None:
        """How many seconds the client would wait, by ``Prefer: wait=N`` (RFC 7240 §4.3): at most 30; None: unsaid."""
        value = preferences(self.environ.get("HTTP_PREFER", "")).get("wait", "")
        return min(float(value), _MAX_WAIT) if value.isascii() and value.isdigit() else None

    @property
    def again(self) -> str | None:
        """A relative reference to the request that was marked: to follow it starts a job like this one. None for an
        operator, who is elsewhere."""
        if self.is_operators:
            return None
        return reference(self.environ, self.site.without_ours(self.environ.get("QUERY_STRING") or ""))

    def again_of(self, job: Job) -> str | None:
        """The same for a job that is still known; None where its request was no GET, which a link can repeat."""
        if self.is_operators or job.asked.get("method") != "GET":
            return None
        query = self.site.without_ours(self.environ.get("QUERY_STRING") or "")
        return reference(self.environ, query or job.asked.get("query", ""))

    def link(self, **parameters: str) -> str:
        """Return a relative reference to this job: to a view of it, say, by ``_view="result"``."""
        # The app's own query stays: a form of the replayed document is sent to the URL that it was seen at.
        query = self.site.without_ours(self.environ.get("QUERY_STRING") or "")
        if self.rights is None and not self.follows:
            parameters = {**STAYING, **parameters}
        return self.site.place(query, self.token, **parameters)

    def linked(self, answer: Answer) -> Answer:
        """Return an answer about the job with where its response, its output and its state are (RFC 8288)."""
        # Whose job it is has all these rights: so does who just started it.
        links = _LINKS if self.rights is None else _links(self.may)
        here = self.site.place("", self.token, **({} if self.rights is not None or self.follows else STAYING))
        return Answer(answer.status, (*answer.headers, ("Link", links.format(here))), answer.body)


def _links(may: Callable[[str], bool]) -> str:
    return ", ".join(f'<{{0}}&_view={view}>; rel="{relation}"' for view, right, relation in _RELATIONS if may(right))


_LINKS = _links(lambda right: True)


def _ask_again(seconds: float) -> Headers:
    return ("Job-Poll", f"{seconds:.3g}"), retry_after(seconds)


def _told(answer: Answer, seconds: float) -> Answer:
    told = Answer(answer.status, answer.headers + _ask_again(seconds), answer.body)
    return told.unkept() if seconds > FASTEST else told


def job_headers(job: Job) -> Headers:
    """Return what every answer says of its job, for scripts."""
    state = ("Job-State", job.state.value)
    progress = job.current_progress
    if progress is None or progress.percent is None:
        return (state,)
    return state, ("Job-Progress", f"{progress.percent:.1f}")


def about(job: Job, vary: str = "Accept") -> Headers:
    """Return the headers that all answers about a job have, but for the result."""
    return (*UNSTORED, ("Vary", vary), *job_headers(job))
