"""Three browser engines with one interface: Chromium by playwright, Firefox by Marionette, WebKit by WebDriver.

Firefox speaks Marionette by itself (https://firefox-source-docs.mozilla.org/testing/marionette), so no geckodriver is
needed; Debian's WebKitWebDriver drives its MiniBrowser on the screen of xvfb.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, Protocol

from tests.conftest import missing
from tests.kit.apps import WAIT
from tests.kit.browsing import chromium
from tests.kit.ports import free_port

ENGINES = ("chromium", "firefox", "webkit")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver §11: the key of a reference to an element
_KEYS = {"Escape": "\ue00c", "Enter": "\ue007"}


class Engine(Protocol):
    """What a test does with a browser. *script* is the body of a function."""

    def go(self, url: str) -> None: ...
    def back(self) -> None: ...
    def run(self, script: str) -> Any: ...
    def click(self, selector: str) -> None: ...
    def press(self, key: str) -> None: ...


def until(engine: Engine, script: str) -> Any:
    """Wait until the value of a script is true; while a page makes way for another there is none."""
    deadline, value = time.monotonic() + WAIT, None
    while not value:
        assert time.monotonic() < deadline, f"never: {script}"
        time.sleep(0.02)
        with contextlib.suppress(Exception):
            value = engine.run(script)
    return value


@contextlib.contextmanager
def opened(name: str) -> Iterator[Engine]:
    """Yield a browser with a profile of its own; without it skip, or fail where it was promised."""
    with contextlib.ExitStack() as stack:
        if name == "chromium":
            yield _Chromium(stack)
        else:
            yield _Firefox(stack) if name == "firefox" else _WebKit(stack)


class _Chromium:
    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._page = stack.enter_context(chromium()).new_context(locale="en-US").new_page()

    def go(self, url: str) -> None:
        self._page.goto(url)

    def back(self) -> None:
        self._page.go_back()

    def run(self, script: str) -> Any:
        return self._page.evaluate(f"(() => {{ {script} }})()")

    def click(self, selector: str) -> None:
        self._page.click(selector)

    def press(self, key: str) -> None:
        self._page.keyboard.press(key)


class _Driven:
    """What both protocols have in common: the commands of W3C WebDriver."""

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        raise NotImplementedError

    def go(self, url: str) -> None:
        self.command("Navigate", {"url": url})

    def back(self) -> None:
        self.command("Back", {})

    def run(self, script: str) -> Any:
        return self.command("ExecuteScript", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        element = self.command("FindElement", {"using": "css selector", "value": selector})[_ELEMENT]
        self.command("ElementClick", {"id": element})

    def press(self, key: str) -> None:
        value = _KEYS.get(key, key)
        pressed = [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self.command("PerformActions", {"actions": [{"type": "key", "id": "keys", "actions": pressed}]})


class _Firefox(_Driven):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        program = _found("firefox-esr", "firefox")
        home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        preferences = {"marionette.port": 0, "intl.accept_languages": "en-US", "app.update.disabledForTesting": True}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in preferences.items()]
        Path(home, "user.js").write_text("\n".join(lines))
        environ = {**os.environ, "HOME": home, "MOZ_HEADLESS": "1"}
        _running(stack, [program, "--marionette", "--remote-allow-system-access", "--profile", home], environ)
        port = int(_appears(Path(home, "MarionetteActivePort")))
        self._connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=WAIT))
        self._stream = stack.enter_context(self._connection.makefile("rb"))
        self._number = 0
        self._read()  # what it is
        self.command("NewSession", {})

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        message = json.dumps([0, self._number, f"WebDriver:{name}", parameters])
        self._connection.sendall(f"{len(message)}:{message}".encode("ascii"))
        _, _, error, result = self._read()
        assert error is None, error
        return result["value"] if isinstance(result, dict) and set(result) == {"value"} else result

    def _read(self) -> Any:
        length = b"".join(iter(lambda: self._stream.read(1), b":"))
        return json.loads(self._stream.read(int(length)))


class _WebKit(_Driven):
    # By the name of a command: its method and its path.
    _PATHS = {  # noqa: RUF012  # nobody changes it
        "Navigate": "url",
        "Back": "back",
        "ExecuteScript": "execute/sync",
        "FindElement": "element",
        "ElementClick": "element/{id}/click",
        "PerformActions": "actions",
    }

    def __init__(self, stack: contextlib.ExitStack) -> None:
        program, screen = _found("WebKitWebDriver"), _found("xvfb-run")
        browsers = glob("/usr/lib/*/webkit2gtk-4*/MiniBrowser")
        if not browsers:
            missing("MiniBrowser")
        home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        self._port = free_port()
        environ = {**os.environ, "HOME": home, "XDG_RUNTIME_DIR": home, "LANGUAGE": "en_US", "LC_ALL": "C.UTF-8"}
        # As root it would want a sandbox that it cannot have.
        environ |= {"WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1", "LIBGL_ALWAYS_SOFTWARE": "1"}
        _running(stack, [screen, "--auto-servernum", program, f"--port={self._port}"], environ)
        options = {"binary": browsers[0], "args": ["--automation"]}
        wanted = {"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": options}}}
        deadline = time.monotonic() + WAIT
        while True:
            try:
                self._session = self._ask("POST", "/session", wanted)["sessionId"]
            except ConnectionError:
                assert time.monotonic() < deadline, "WebKitWebDriver does not answer"
                time.sleep(0.05)
            else:
                break
        stack.callback(self._ask, "DELETE", f"/session/{self._session}", None)

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        path = self._PATHS[name].format_map(parameters)
        return self._ask("POST", f"/session/{self._session}/{path}", parameters)

    def _ask(self, method: str, path: str, document: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.request(method, path, None if document is None else json.dumps(document))
            response = connection.getresponse()
            value = json.loads(response.read())["value"]
        assert response.status == 200, value
        return value


def _found(*names: str) -> str:
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        missing(names[0])
    assert program is not None
    return program


def _running(stack: contextlib.ExitStack, command: list[str], environ: dict[str, str]) -> None:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environ, stdout=quiet, stderr=quiet, start_new_session=True)
    stack.callback(process.wait, WAIT)
    stack.callback(os.killpg, process.pid, 15)


def _appears(path: Path) -> str:
    deadline = time.monotonic() + WAIT
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.05)
    return path.read_text()
