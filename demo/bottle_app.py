"""Bottle: its own ``auth_basic`` above ``@backgrounder``, and a form whose body the job sees again."""

import time

from bottle import Bottle, auth_basic, request

from bgmiddleware import BackgroundMiddleware, backgrounder, progress

from . import PAUSE

app = Bottle()


def is_known(user: str, password: str) -> bool:
    return (user, password) == ("demo", "demo")


@app.get("/")
def form() -> str:
    return """<!DOCTYPE html><meta name="viewport" content="width=device-width"><title>Letters</title>
    <h1>Write letters</h1>
    <form method="post" action="letters"><label>To <input name="to" value="Ada, Grace, Zoë"></label>
    <button>Write</button></form>
    """


@app.post("/letters")
@auth_basic(is_known)
@backgrounder
def letters() -> dict[str, list[str]]:
    people = [name.strip() for name in request.forms.getunicode("to", "").split(",") if name.strip()]
    for done, name in enumerate(people):
        progress(done, len(people), f"to {name}")
        time.sleep(PAUSE)
        print(f"Dear {name}, …")
    return {"written": people}


application = BackgroundMiddleware(app)
