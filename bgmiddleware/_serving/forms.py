"""What a page of ours sends by a form."""

import io
from collections.abc import Mapping
from typing import Any

from .._ground.webob import Request

__all__ = ["form_of"]

_MAX_FORM = 64 * 1024
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def form_of(environ: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the fields of a form, each with all of its texts; any other body is read and dropped, since some servers
    need that."""
    try:
        request = Request(dict(environ))
        length = request.content_length or 0  # nothing said: none of our forms, and reading it might never end
        if length > _MAX_FORM:
            return {}
        body = environ["wsgi.input"].read(length)
        form = Request({**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))})
        if form.content_type not in _FORMS:
            return {}
        fields: dict[str, list[str]] = {}
        for name, value in form.POST.items():
            if isinstance(value, str):
                fields.setdefault(name, []).append(value)
    except Exception:  # WebOb raises what it likes for odd types, charsets and parts: DeprecationWarning, LookupError
        return {}
    return fields
