"""All demos under one roof: what there is, and which URL prefix leads to it."""

import html
import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from wsgiref.util import application_uri, shift_path_info

from bgmiddleware import BackgroundMiddleware

__all__ = ["DEMOS", "Demo", "Mounts"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Demo:
    """One app: it is mounted at *prefix*; *needs* are the libraries without which it cannot be."""

    prefix: str
    title: str
    line: str
    source: str
    start: str
    curl: str
    needs: tuple[str, ...] = ()

    def load(self) -> BackgroundMiddleware | None:
        """Return the app; None if a library that it needs is not installed."""
        try:
            if self.source.endswith(".ini"):
                from paste.deploy import loadapp

                ini_app: BackgroundMiddleware = loadapp(f"config:{self.source}", relative_to=str(HERE))
                return ini_app
            app: BackgroundMiddleware = importlib.import_module(f"demo.{self.source.removesuffix('.py')}").application
            return app
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.partition(".")[0] in self.needs:
                return None
            raise


DEMOS = (
    Demo(
        "show",
        "What a job can look like",
        "In colours, failed, cancelled; one that asks, runs again, is compared and shared; and a list of all of them.",
        "show_app.py",
        "",
        "curl -L -b '' ${url}build",
    ),
    Demo(
        "longrunning",
        "A function that is left behind",
        "The example of 2008: a page prints, calls a slow <code>@background</code> function, and you watch both.",
        "longrunning.py",
        "",
        "curl -L $url",
    ),
    Demo(
        "upload",
        "Statistics of a file",
        "Upload a CSV or a text of some megabytes, watch it being read, download its statistics.",
        "upload_app.py",
        "",
        "curl -L -F sample=120000 ${url}statistics",
        ("tqdm",),
    ),
    Demo(
        "wsgi",
        "Plain WSGI",
        "A glob of paths says what is slow; the app knows nothing of it.",
        "wsgi_app.py",
        "reports/2026",
        "curl -L ${url}reports/2026",
    ),
    Demo(
        "flask",
        "Flask",
        "<code>@backgrounder</code> on a view, behind a check of who asks (sign in as demo, demo).",
        "flask_app.py",
        "report",
        "curl -L -u demo:demo '${url}report?rows=10'",
        ("flask",),
    ),
    Demo(
        "bottle",
        "Bottle",
        "Bottle's own <code>auth_basic</code>, and a form that the job sees again (sign in as demo, demo).",
        "bottle_app.py",
        "",
        "curl -L -u demo:demo -d to=Ada,Grace ${url}letters",
        ("bottle",),
    ),
    Demo(
        "django",
        "Django",
        "<code>@login_required</code> and the CSRF check run first, then the view runs as a job.",
        "django_app.py",
        "",
        "curl -sc jar ${url} -o /dev/null\n"
        "csrf=\"X-CSRFToken: $$(awk '/csrftoken/ {print $$7}' jar)\"\n"
        'curl -s -b jar -c jar -H "$$csrf" -d name=demo ${url}login\n'
        'curl -L -b jar -H "$$csrf" -d rows=10 ${url}report',
        ("django",),
    ),
    Demo(
        "pyramid",
        "Pyramid",
        "A <code>permission</code> on the view, checked before it leaves for the background (demo, demo).",
        "pyramid_app.py",
        "report",
        "curl -L -u demo:demo '${url}report?rows=10'",
        ("pyramid",),
    ),
    Demo(
        "webpy",
        "web.py",
        "The example of 2008 as it was written then, with only its import line changed, and a list of all jobs.",
        "webpy_app.py",
        "",
        "curl -L ${url}\ncurl ${url}jobs",
        ("web",),
    ),
    Demo(
        "ini",
        "An ini file",
        "PasteDeploy: <code>use = egg:bgmiddleware</code>, and no line of code is changed.",
        "background.ini",
        "slow",
        "curl -L ${url}slow",
        ("paste",),
    ),
)


class Mounts:
    """The demos, each behind its own middleware and under its own prefix, and the page that lists them."""

    def __init__(self, demos: Iterable[Demo] = DEMOS) -> None:
        self._apps = {demo: demo.load() for demo in demos}
        self._mounted = {demo.prefix: app for demo, app in self._apps.items() if app is not None}
        self._begin_elsewhere = {demo.prefix for demo in self._apps if demo.start}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        prefix, slash, rest = environ.get("PATH_INFO", "").lstrip("/").partition("/")
        if prefix in self._begin_elsewhere and slash and not rest:
            return _answer(start_response, "302 Found", "", ("Location", "../"))  # there is nothing but what it starts
        if prefix in self._mounted and slash:
            shift_path_info(environ)
            return self._mounted[prefix](environ, start_response)
        if prefix in self._mounted:
            return _answer(start_response, "308 Permanent Redirect", "", ("Location", f"{prefix}/"))
        if prefix == "source" and any(rest == demo.source for demo in self._apps):
            return _answer(start_response, "200 OK", (HERE / rest).read_text("utf-8"))
        if prefix:
            html_type = ("Content-Type", "text/html; charset=utf-8")
            return _answer(
                start_response, "404 Not Found", UNKNOWN.substitute(up="../" * f"{slash}{rest}".count("/")), html_type
            )
        page = PAGE.substitute(demos="".join(self._cards(environ)))
        return _answer(start_response, "200 OK", page, ("Content-Type", "text/html; charset=utf-8"))

    def _cards(self, environ: dict[str, Any]) -> Iterator[str]:
        for demo, app in self._apps.items():
            if app is None:
                start, curl = NEEDS, ""
            else:
                curl = Template(demo.curl).substitute(url=f"{application_uri(environ).rstrip('/')}/{demo.prefix}/")
                start = f'<a class="start" href="{demo.prefix}/{demo.start}" aria-label="Start: {demo.title}">Start</a>'
                curl = f'<pre tabindex="0" aria-label="With curl">{html.escape(curl)}</pre>'
            yield CARD.substitute(title=demo.title, line=demo.line, source=demo.source, start=start, curl=curl)

    def shutdown(self, drain: float | None = None) -> None:
        """Let the jobs of all demos end, *drain* seconds for all of them together (None: ten)."""
        until = time.monotonic() + (10.0 if drain is None else drain)
        for app in self._mounted.values():
            app.shutdown(drain=max(0.0, until - time.monotonic()))

    def close(self, drain: float | None = None) -> None:
        """The same, and let go of all that they keep."""
        self.shutdown(drain)
        for app in self._mounted.values():
            app.close(drain=0.0)


def _answer(start_response: Callable[..., Any], status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    body = text.encode()
    if not any(name == "Content-Type" for name, _ in headers):
        headers += (("Content-Type", "text/plain; charset=utf-8"),)
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]


NEEDS = "<p><strong>needs <code>pip install bgmiddleware[demo]</code></strong></p>"

UNKNOWN = Template("""<!DOCTYPE html>
<html lang="en">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>No such page</title>
<h1>No such page</h1>
<p><a href="${up}./">All demos</a></p>
""")

CARD = Template("""<article>
<div>
<h2>$title</h2>
<p>$line</p>
<p><a href="source/$source"><code>$source</code></a></p>
$start
</div>
$curl
</article>
""")

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>bgmiddleware: demos</title>
<style>
:root { color-scheme: light dark; --line: #8884; --card: #f6f7f9; --accent: #0b57d0; --on-accent: #fff; }
@media (prefers-color-scheme: dark) { :root { --card: #1e1f22; --accent: #a8c7fa; --on-accent: #062e6f; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem 1rem; max-width: 64rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.125rem; margin: 0; }
p { margin: 0; }
a { color: var(--accent); }
code, pre { font: .875em/1.4 ui-monospace, monospace; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 1rem;
  margin: 1rem 0 0; display: grid; gap: .75rem 1.5rem; align-items: start;
  grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); }
@media (max-width: 44rem) { article { grid-template-columns: minmax(0, 1fr); } }
.start { display: inline-block; margin-top: .5rem; padding: .25rem 1.1rem; border-radius: 2rem; text-decoration: none;
  background: var(--accent); color: var(--on-accent); }
pre { margin: 0; padding: .6rem .75rem; border: 1px solid var(--line); border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; }
</style>
</head>
<body>
<h1>Slow pages, in the background</h1>
<p>Each of these apps is wrapped by one line: <code>app = BackgroundMiddleware(app)</code>. Start one and watch it,
reload, close the tab, come back: it runs on. The commands are for a terminal; a click selects one.</p>
<main>
$demos</main>
</body>
</html>
""")
