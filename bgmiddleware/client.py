"""A client for scripts, on ``urllib.request``: start a job, follow its output, wait for it, get its response.

It needs nothing but the standard library and a site with the middleware, and may be copied elsewhere.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, Self
from urllib.parse import urljoin

__all__ = ["JobClient", "NoJob", "Response"]

_ENDS = ("finished", "failed", "cancelled", "lost")
_WAIT = 20.0
"""Seconds that the server may hold a request; many proxies cut those of 30."""

_LONGEST_PAUSE = 5.0
_AWAY = (502, 503, 504)


class Response(NamedTuple):
    """A response, whole. Names of headers are in lower case; of those that came several times it is the last."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Return the value of a JSON body. Raises ``ValueError``."""
        return json.loads(self.body)


class NoJob(Exception):
    """No job was started: the app answered the request itself, with *response*."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"no job was started: the answer is {response.status}")
        self.response = response


class JobClient:
    """A job at *url*, which has its token: what :meth:`start` returns, or what a redirect led to.

    *headers* are sent with each request, such as ``Authorization`` or ``Cookie``; redirects are not followed, so they
    go to no other site. *patience*: seconds for which a server that is away or cuts connections is tried again; then
    the last error is raised, an ``OSError`` or ``http.client.HTTPException``. The output goes on where it was cut.
    A refusal, such as 404 or 410, is ``urllib.error.HTTPError`` at once.

    Making one requests nothing. Of several threads each makes its own.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, patience: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url = {url!r}: expected http://… or https://…")
        self.url: str = url
        self.headers: dict[str, str] = dict(headers or {})
        self.patience = patience

    @classmethod
    def start(
        cls,
        url: str,
        data: bytes | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float = 60.0,
    ) -> Self:
        """Send a request that starts a job (POST if there is *data*, else GET), once; return the job.

        Of *headers*, those about a body are for this request only. Raises ``NoJob`` where the app answered itself,
        whatever it answered, and ``OSError`` where there is no answer. A request with an ``Idempotency-Key`` can be
        started again: it is the same job.
        """
        job = cls(url, headers=headers, patience=patience)
        response = job._send(url, data, method or ("GET" if data is None else "POST"), {"Prefer": "respond-async"})
        if "job-state" not in response.headers or "location" not in response.headers:
            raise NoJob(response)
        job.url = urljoin(url, response.headers["location"])
        about_body = ("content-type", "content-length", "idempotency-key")
        job.headers = {name: value for name, value in job.headers.items() if name.lower() not in about_body}
        return job

    def follow(self, offset: int = 0) -> Iterator[str]:
        """Yield the output from *offset*, in bytes, as it comes, until the job has ended. If the site tries what failed
        again, that of the next try follows."""
        while True:
            piece = self._get(f"&_view=log&_offset={offset}&_wait={_WAIT}")
            offset = int(piece.headers["job-next-offset"])
            if piece.body:
                yield piece.text
            elif piece.headers["job-state"] in _ENDS:
                if not self._is_led_on():
                    return
                offset = 0
            else:
                self._pause(piece)

    def state(self) -> dict[str, Any]:
        """Return the state as it is now: ``state``, ``reason``, ``progress`` and so on, as the protocol says."""
        while True:
            document: dict[str, Any] = self._get("&_view=status").json()
            if not self._goes_to_next(document):
                return document

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until the job has ended, with all its tries; return the state of the last. From then on this is that
        job. Raises ``TimeoutError`` after *timeout* seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _WAIT if until is None else until - time.monotonic()
            answer = self._get(f"&_view=status&_offset={2**53}&_wait={max(0.0, min(_WAIT, left)):.3f}")
            document: dict[str, Any] = answer.json()
            if self._goes_to_next(document):
                continue
            if document["state"] in _ENDS and not _goes_on(document):
                return document
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"the job {document['title']} did not end within {timeout} seconds")
            self._pause(answer, until)

    def result(self, timeout: float | None = None) -> Response:
        """Wait as :meth:`wait` does; return the response: the app's own, or 500, 410 or 502 of a job that failed, was
        cancelled or lost."""
        own = self.wait(timeout)["status_code"]
        return self._get("&_view=result", expects=own)

    def cancel(self) -> dict[str, Any]:
        """Ask the job to stop; return its state. A job that runs stops at its next print or ``check()``."""
        answer = self._tried(self.url, "DELETE", {"Accept": "application/json"}, None)
        document: dict[str, Any] = answer.json()
        return document

    def rerun(self) -> Self:
        """Run the request of the job again, once, when it has ended; return the new job."""
        response = self._changed("_action=rerun")
        return type(self)(urljoin(self.url, response.headers["location"]), headers=self.headers, patience=self.patience)

    def share(self, scope: str = "both", seconds: int = 7 * 86400) -> str:
        """Return the URL of a new link that shows ``output``, ``result`` or ``both`` of the job to anyone."""
        response = self._changed(f"_action=share&_scope={scope}&_for={seconds}")
        return urljoin(self.url, response.headers["location"])

    def unshare(self, share: str = "all") -> None:
        """Take back the link of this id, or all."""
        self._changed(f"_action=unshare&_share={share}")

    def _changed(self, form: str) -> Response:
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        response = self._send(self.url, form.encode(), "POST", headers)
        if response.status >= 400:
            _refused(self.url, response)
        return response

    def _get(self, view: str, *, expects: int | None = None) -> Response:
        return self._tried(f"{self.url}&_follow=no{view}", "GET", {}, expects)

    def _goes_to_next(self, document: Mapping[str, Any]) -> bool:
        """Become the next try of a job whose state this is, if that has begun; return whether it has."""
        if not _goes_on(document) or document["rerun_as"] is None:
            return False
        self.url = urljoin(self.url, document["rerun_as"])
        return True

    def _is_led_on(self) -> bool:
        """Wait until the next try of a job that has ended begins, and become that; false where there is none."""
        while True:
            answer = self._get("&_view=status")
            document = answer.json()
            if not _goes_on(document):
                return False
            if self._goes_to_next(document):
                return True
            self._pause(answer)

    def _tried(self, url: str, method: str, headers: Mapping[str, str], expects: int | None) -> Response:
        """Send it until it is answered. *expects*: a status that is no refusal; so is none of an ended job's result."""
        until = time.monotonic() + self.patience
        pause = 0.1
        while True:
            try:
                response = self._send(url, None, method, headers)
            except (OSError, http.client.HTTPException):  # cut, or nobody there
                if time.monotonic() + pause > until:
                    raise
                time.sleep(pause)
            else:
                is_away = response.status in _AWAY and response.status != expects and "retry-after" in response.headers
                if not is_away or time.monotonic() + pause > until:
                    is_answer = response.status < 400 or (
                        "_view=result" in url and response.headers.get("job-state") in _ENDS
                    )
                    return response if is_answer else _refused(url, response)
                self._pause(response, until)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _send(self, url: str, data: bytes | None, method: str, headers: Mapping[str, str]) -> Response:
        request = urllib.request.Request(url, data, {**self.headers, **headers}, method=method)  # noqa: S310
        try:
            answer: Any = _OPENER.open(request, timeout=2 * _WAIT)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            # A body that breaks off raises IncompleteRead.
            named = {name.lower(): value for name, value in answer.headers.items()}
            if answer.version > 10 and not named.keys() & {"content-length", "transfer-encoding"}:
                raise http.client.RemoteDisconnected("the answer broke off in its headers")
            return Response(answer.status, named, answer.read())

    @staticmethod
    def _pause(response: Response, until: float | None = None) -> None:
        """Wait as long as the server asks, and no longer than *until*."""
        seconds = float(response.headers.get("job-poll") or response.headers.get("retry-after") or 0.1)
        left = seconds if until is None else until - time.monotonic()
        time.sleep(max(0.0, min(seconds, left)))


def _goes_on(document: Mapping[str, Any]) -> bool:
    """Whether another try follows a job that has failed, by its state."""
    retry = document.get("retry")
    return document["state"] in _ENDS and retry is not None and not retry["is_over"]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Follow none: it is an answer like another."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _refused(url: str, response: Response) -> NoReturn:
    headers = http.client.HTTPMessage()
    for name, value in response.headers.items():
        headers[name] = value
    error = urllib.error.HTTPError(url.partition("?")[0], response.status, response.text[:200], headers, None)
    error.close()  # of nothing, but since Python 3.14 it warns where nobody does
    raise error
