"""``python -m`` this module: the process that runs jobs for a ``ProcessExecutor``.

It talks to its parent over a socket, in lines of JSON. The first says which app to load and how; each of the others is
a job's key, which is answered when the job has ended. It ends when its parent closes the socket, or is no more.
"""

import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from ._worker import Site, load_site, run_stored

_LAST_SECONDS = 5.0


def main() -> None:
    """Run jobs until the parent has no more."""
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        parent.set_inheritable(False)  # else the children of jobs would keep it open
        lines = parent.makefile("r", encoding="utf-8")
        settings = json.loads(lines.readline() or "null")
        if settings is None:
            return
        sys.path[:] = settings["path"]
        site, trouble = _loaded(settings["app"])
        for line in lines:
            answer = {"unloaded": trouble} if site is None else _run(site, json.loads(line)["key"])
            parent.sendall(json.dumps(answer).encode() + b"\n")
    # Threads that the app began may never end.
    last = threading.Timer(_LAST_SECONDS, os._exit, (0,))
    last.daemon = True
    last.start()


def _loaded(app: str) -> tuple[Site | None, str]:
    """Return the site, or the traceback of what is wrong with it."""
    try:
        return load_site(app), ""
    except BaseException:  # a module may exit when it is imported, too
        return None, traceback.format_exc()


def _run(site: Site, key: str) -> Mapping[str, Any]:
    try:
        return {"must_wait": run_stored(site, key)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
