"""web.py, where the decorators come from: the example of 2008 with only its import line changed.

Its ``background`` module had a viewer of all jobs; here it is the dashboard, at /jobs.
"""

import time
from datetime import datetime

import web

from bgmiddleware import BackgroundMiddleware, background, backgrounder

from . import PAUSE

urls = ("/", "index")


class index:  # noqa: N801
    @backgrounder
    def GET(self) -> None:  # noqa: N802
        print(f"Started at {datetime.now():%H:%M:%S}")
        print("hit f5 to refresh!")
        longrunning()


@background
def longrunning() -> None:
    for number in range(1, 11):
        time.sleep(PAUSE)
        print(f"{number}: {datetime.now():%H:%M:%S}")


application = BackgroundMiddleware(
    web.application(urls, globals(), autoreload=False).wsgifunc(),
    dashboard="/jobs",
    authorize=lambda environ: True,  # for a demo: everybody may see all jobs
)
