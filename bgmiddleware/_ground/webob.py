"""WebOb, imported without its warning: on Python 3.11 and 3.12 it imports ``cgi``; users cannot help it."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'cgi' is deprecated", DeprecationWarning)
    from webob import Request, Response
    from webob.acceptparse import (
        AcceptEncodingValidHeader,
        create_accept_encoding_header,
        create_accept_header,
        create_accept_language_header,
    )
    from webob.cookies import SignedSerializer, make_cookie
    from webob.request import BaseRequest

__all__ = [
    "AcceptEncodingValidHeader",
    "BaseRequest",
    "Request",
    "Response",
    "SignedSerializer",
    "create_accept_encoding_header",
    "create_accept_header",
    "create_accept_language_header",
    "make_cookie",
]
