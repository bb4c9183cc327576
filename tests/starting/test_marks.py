"""Which requests each mark marks, and which it does not."""

import fnmatch
import functools
import re

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, marks


def at(path: str, method: str = "GET") -> dict[str, str]:
    """The environ of a request for *path*, spelled as PEP 3333 does."""
    return {"REQUEST_METHOD": method, "PATH_INFO": path.encode().decode("latin-1")}


YES, NO = marks.always, marks.none_of(marks.always)


@pytest.mark.parametrize(
    ("glob", "marked", "unmarked"),
    [
        ("/report", ["/report"], ["/report/", "/report/1", "/reports", "/Report", "", "/", "/a/report", "report"]),
        ("/report/*", ["/report/", "/report/1", "/report/a/b"], ["/report", "/REPORT/1", "/a/report/1", ""]),
        ("/report*", ["/report", "/reports", "/report/1"], ["/repor", "/a/report"]),
        ("*", ["", "/", "/anything/at/all"], []),
        ("/*", ["/", "/anything"], [""]),
        ("*/export", ["/export", "/a/export", "/a/b/export"], ["/export/", "/a/exports", "export"]),
        ("/a/*/export", ["/a/1/export", "/a/b/c/export"], ["/a/export", "/a/1/export/", "/b/1/export"]),
        ("/a/?", ["/a/b", "/a/é", "/a/日"], ["/a/", "/a/bc", "/a/éé"]),
        ("/a/?*", ["/a/b", "/a/bc"], ["/a/"]),
        ("/a/[xyé]", ["/a/x", "/a/y", "/a/é"], ["/a/z", "/a/xy", "/a/[xy]", "/a/è"]),
        ("/a/[!x]", ["/a/y", "/a/é"], ["/a/x", "/a/yz"]),
        ("/café", ["/café"], ["/caf", "/cafe", "/café/"]),
        ("/café/*", ["/café/", "/café/日"], ["/café", "/cafe/1"]),
        ("/日*x", ["/日x", "/日本x"], ["/日", "/日本"]),
        ("/a.b", ["/a.b"], ["/axb"]),
        ("/a\n*", ["/a\n", "/a\nb"], ["/a", "/ab"]),
        ("/a?b", ["/a\nb", "/a/b"], ["/ab"]),
    ],
)
def test_a_glob_matches_the_whole_path(glob, marked, unmarked):
    mark = marks.path(glob)
    # Alone a glob may be a plain prefix; beside a pattern it is part of a regular expression; both must say the same.
    beside = marks.path("/never-[a]sked-for", glob)
    for path in marked:
        assert mark(at(path)), path
        assert beside(at(path)), path
    for path in unmarked:
        assert not mark(at(path)), path
        assert not beside(at(path)), path


@pytest.mark.parametrize(
    "glob", ["/a*.csv", "*/slow", "*", "*[a-c]", "*é", "*\ufffd", "/é*x", "/a[]x", "*a]b", "*[x", "/x?"]
)
def test_a_glob_beside_others_matches_what_its_pattern_matches(glob):
    paths = [
        "",
        "/",
        "/a",
        "/a.csv",
        "/a/1.csv",
        "/a.csv/",
        "/slow",
        "/x/slow",
        "/c",
        "/d",
        "/é",
        "/éx",
        "/èx",
        "/a]",
        "/",
    ]
    paths += ["/a[]x", "/a]b", "/[x", "/x", "/xy", "/xé", "/xyz", "/other"]
    raw = [path.encode().decode("latin-1") for path in paths] + ["/\xff", "/a\xff.csv", "/\xffa", "/\xe2\xc3\xa9"]
    matches = re.compile(fnmatch.translate(glob)).match
    for beside in (["/never/*"], ["/never"], ["*/never"], ["/never/*", "/never/*.csv", "*/never/at/all"]):
        mark = marks.path(glob, *beside)
        for path in raw:
            says = matches(path.encode("latin-1").decode("utf-8", "replace")) is not None
            assert mark({"REQUEST_METHOD": "GET", "PATH_INFO": path}) is says, path


def test_any_of_several_globs_is_enough():
    for globs in (("/a/*", "/b/*"), ("/a/*", "/b/?"), ("/a/x", "/b/x")):
        mark = marks.path(*globs)
        assert mark(at("/a/x"))
        assert mark(at("/b/x"))
        assert not mark(at("/c/x"))


@pytest.mark.parametrize("glob", ["/a/*", "/a/?"])
def test_a_path_that_is_no_utf8_or_missing_is_no_error(glob):
    assert marks.path(glob)({"REQUEST_METHOD": "GET", "PATH_INFO": "/a/\xff"})
    assert not marks.path(glob)({"REQUEST_METHOD": "GET", "PATH_INFO": "/\xff"})
    assert not marks.path(glob)({"REQUEST_METHOD": "GET"})


def test_a_path_can_be_marked_for_some_methods_only():
    mark = marks.path("/a", methods=["post", "PUT"])
    assert mark(at("/a", "POST"))
    assert mark(at("/a", "PUT"))
    assert not mark(at("/a", "GET"))
    assert not mark(at("/b", "POST"))
    assert not marks.path("/a", methods=[])(at("/a"))


def test_methods_in_one_str_are_refused():
    with pytest.raises(ConfigurationError, match=r"^methods = 'post': .*\['POST'\]"):
        marks.path("/a", methods="post")


@pytest.mark.parametrize("glob", ["report", "", "?x", "[a]", "http://example.org/"])
def test_a_glob_that_can_match_no_path_is_refused(glob):
    with pytest.raises(ConfigurationError, match=r"^path = "):
        marks.path("/fine", glob)


def test_a_path_without_globs_is_refused():
    with pytest.raises(ConfigurationError):
        marks.path()
    with pytest.raises(ConfigurationError):
        marks.path(methods=["POST"])


@pytest.mark.parametrize(
    "prefer",
    [
        "respond-async",
        "Respond-Async",
        " respond-async ",
        "respond-async, wait=10",
        "wait=10,respond-async",
        "wait=10 ,\trespond-async ; foo=bar",
        "respond-async;x=1;y",
        'respond-async=""',
        "respond-async=1",
        'foo="a, b", respond-async',
        r'foo="a \" b", respond-async',
        ", respond-async,",
    ],
)
def test_a_preference_to_respond_async_is_heeded(prefer):
    assert marks.prefers_async({"HTTP_PREFER": prefer})


@pytest.mark.parametrize(
    "prefer",
    [
        "",
        "wait=10",
        "respond-async-not",
        "not-respond-async",
        "respond async",
        "x=respond-async",
        "foo; respond-async",
        'foo="respond-async"',
        'foo="a, respond-async, b"',
        r'foo="a \", respond-async, b"',
        "respond-asynchronously",
    ],
)
def test_what_is_no_preference_to_respond_async_is_none(prefer):
    assert not marks.prefers_async({"HTTP_PREFER": prefer})


def test_a_request_without_preferences_is_not_marked():
    assert not marks.prefers_async({})


def test_a_header_marks_by_being_there():
    mark = marks.header("X-Slow")
    assert mark({"HTTP_X_SLOW": "1"})
    assert mark({"HTTP_X_SLOW": ""})
    assert not mark({"HTTP_X_SLOWER": "1"})
    assert not mark({"X_SLOW": "1"})
    assert not mark({})


def test_a_header_marks_by_its_exact_value():
    mark = marks.header("x-slow", "yes")
    assert mark({"HTTP_X_SLOW": "yes"})
    for value in ("Yes", "yes ", "yes, no", "", "no"):
        assert not mark({"HTTP_X_SLOW": value})
    assert not mark({})


def test_the_two_headers_that_cgi_names_otherwise_are_found():
    mark = marks.header("Content-Type", "text/csv")
    assert mark({"CONTENT_TYPE": "text/csv"})
    assert not mark({"HTTP_CONTENT_TYPE": "text/csv"})
    for name, key in (("content-type", "CONTENT_TYPE"), ("Content-Length", "CONTENT_LENGTH")):
        mark = marks.header(name)
        assert mark({key: "0"})
        assert not mark({key: ""})  # how servers may say that there is none
        assert not mark({})


@pytest.mark.parametrize(
    ("query", "marked"),
    [
        ("slow", True),
        ("slow=", True),
        ("slow=1", True),
        ("a=1&slow", True),
        ("a=1&slow=2&b=3", True),
        ("", False),
        ("slower=1", False),
        ("a=slow", False),
        ("aslow=1", False),
        ("a=1;slow=1", False),
        ("SLOW=1", False),
    ],
)
def test_a_query_parameter_marks_with_any_value_or_none(query, marked):
    assert marks.query("slow")({"QUERY_STRING": query}) is marked


def test_a_query_that_is_missing_has_no_parameter():
    assert not marks.query("slow")({})


def test_the_name_of_a_query_parameter_is_no_pattern():
    assert marks.query("a.b")({"QUERY_STRING": "a.b=1"})
    assert not marks.query("a.b")({"QUERY_STRING": "axb=1"})


@pytest.mark.parametrize("name", ["", "a=b", "a&b", "a b", "a%20b", "a+b", "a#", "é", "a\n"])
def test_the_name_of_a_query_parameter_that_would_need_escaping_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"^query = "):
        marks.query(name)


def test_always_marks_every_request_but_for_an_icon_that_no_page_names():
    assert marks.always({}) is marks.always({"PATH_INFO": "/icon.ico"}) is True
    assert marks.always({"PATH_INFO": "/favicon.ico"}) is False


@pytest.mark.parametrize(
    ("given", "any_of", "all_of", "none_of"),
    [
        ((), False, True, True),
        ((YES,), True, True, False),
        ((NO,), False, False, True),
        ((YES, YES), True, True, False),
        ((YES, NO), True, False, False),
        ((NO, YES), True, False, False),
        ((NO, NO), False, False, True),
        ((NO, NO, YES), True, False, False),
        ((YES, YES, YES), True, True, False),
        ((NO, NO, NO), False, False, True),
    ],
)
def test_marks_are_combined(given, any_of, all_of, none_of):
    assert marks.any_of(*given)({}) is any_of
    assert marks.all_of(*given)({}) is all_of
    assert marks.none_of(*given)({}) is none_of


def unasked(environ):
    pytest.fail("this mark need not be asked")


def test_the_first_mark_that_decides_ends_the_search():
    assert marks.any_of(YES, unasked)({})
    assert marks.any_of(NO, YES, unasked)({})
    assert not marks.all_of(NO, unasked)({})
    assert not marks.none_of(YES, unasked)({})
    assert marks.any_of(marks.prefers_async, unasked)({"HTTP_PREFER": "respond-async"})


@pytest.mark.parametrize(("prefer", "marked"), [("respond-async", True), ("wait=5", False), (None, False)])
def test_a_preference_and_another_mark_are_combined_in_either_order(prefer, marked):
    environ = {} if prefer is None else {"HTTP_PREFER": prefer}
    for other in (YES, NO):
        for given in ((marks.prefers_async, other), (other, marks.prefers_async)):
            assert marks.any_of(*given)(environ) is (marked or other is YES)


@pytest.mark.parametrize("globs", [["/a"], ["/a", "/b"], ["/a*"], ["/a*", "/b*"], ["/a", "*/b"], ["/a*", "/b*c"]])
def test_a_request_for_another_path_is_asked_nothing_but_its_path(globs):
    class Environ(dict):
        def get(self, name, default=None):
            assert name == "PATH_INFO", name
            return super().get(name, default)

    assert not marks.path(*globs)(Environ(PATH_INFO="/other"))


COMBINED = {
    "none": marks.never,
    "every": marks.always,
    "a preference": marks.prefers_async,
    "a header": marks.header("X-Slow"),
    "a header's value": marks.header("X-Slow", "yes"),
    "a header of CGI": marks.header("Content-Type"),
    "a query": marks.query("slow"),
    "a path": marks.path("/a"),
    "a path that is no ASCII": marks.path("/é*/é"),
    "exactly a path": marks.exactly("/é"),
    "a prefix": marks.path("/a/*"),
    "an end": marks.path("*/slow"),
    "what lies between": marks.path("*/a/*"),
    "a set of characters": marks.path("/[ab]/slow", "/c[!d]*"),
    "two globs": marks.path("/a", "/b/*"),
    "three globs": marks.path("/a/*", "/b/*.csv", "*/slow"),
    "many globs": marks.path("/a", "/b", "/c", "/d", "/e"),
    "a preference or a path": marks.any_of(marks.prefers_async, marks.path("/a/*")),
    "a path or a header": marks.any_of(marks.path("/b/*", "*/slow"), marks.header("X-Slow")),
    "two headers": marks.any_of(marks.prefers_async, marks.header("X-Slow")),
    "a path or a site's own": marks.any_of(marks.path("/a"), lambda environ: environ.get("PATH_INFO") == "/b"),
    "a path and a header": marks.all_of(marks.always, marks.path("/a/*"), marks.header("X-Slow")),
    "no path": marks.none_of(marks.path("/a", "/b/*")),
    "a site's own": lambda environ: environ.get("HTTP_X_SLOW") == "yes",
    "a wrapped one": functools.wraps(marks.prefers_async)(lambda environ: environ.get("PATH_INFO") == "/a"),
}
REQUESTS = [
    {**at(path), **more}
    for path in ("", "/", "/a", "/a/", "/a/b", "/b", "/b/x.csv", "/b/slow", "/slow", "/c1", "/d", "/é", "/éa/é", "/z")
    for more in ({}, {"HTTP_PREFER": "respond-async"}, {"HTTP_X_SLOW": "yes"}, {"CONTENT_TYPE": "a/b"})
]


@pytest.mark.parametrize("name", COMBINED)
def test_the_middleware_starts_what_the_mark_is_true_for(name):
    # It asks a mark only about requests that the mark may be true for.
    def app(environ, start_response):
        start_response("204 No Content", [])
        return []

    statuses = []
    with BackgroundMiddleware(app, when=COMBINED[name]) as middleware:
        for request in [*REQUESTS, {"REQUEST_METHOD": "GET"}, {**at("/z"), "QUERY_STRING": "slow"}]:
            middleware(dict(request), lambda status, headers: statuses.append(status[:3]))
            assert (statuses.pop() != "204") is bool(COMBINED[name](request)), request


BROWSERS = {
    "an address that was typed in": ("navigate", "document", True),
    "a link with the attribute download": ("navigate", "empty", True),
    "an image": ("no-cors", "image", False),
    "a style": ("no-cors", "style", False),
    "a script of a module": ("cors", "script", False),
    "a font": ("cors", "font", False),
    "a video": ("no-cors", "video", False),
    "a frame": ("navigate", "iframe", False),
    "an old frame": ("navigate", "frame", False),
    "an embedded object": ("navigate", "object", False),
    "fetch()": ("cors", "empty", False),
    "fetch() of the same origin": ("same-origin", "empty", False),
    "a beacon": ("no-cors", "empty", False),
    "a web socket": ("websocket", "websocket", False),
    "a program": (None, None, True),
    "who says only for what": (None, "image", False),
    "who says only what page": (None, "document", True),
    "who says only how": ("no-cors", None, False),
    "who says only that it goes there": ("navigate", None, True),
}


@pytest.mark.parametrize("name", BROWSERS)
@pytest.mark.parametrize("globs", [("/reports/*",), ("/a/*", "/reports/*"), ("/reports/[1-9]",), ("*",)])
def test_a_path_marks_what_somebody_goes_to_and_no_part_of_a_page(name, globs):
    mode, destination, is_marked = BROWSERS[name]
    environ = at("/reports/1")
    if mode is not None:
        environ["HTTP_SEC_FETCH_MODE"] = mode
    if destination is not None:
        environ["HTTP_SEC_FETCH_DEST"] = destination
    assert marks.navigation(environ) is is_marked
    assert marks.path(*globs)(environ) is is_marked
    assert marks.path(*globs, methods=["GET"])(environ) is is_marked
    assert marks.path(*globs, parts=True)(environ) is True
    assert not marks.path(*globs, methods=["POST"], parts=True)(environ)


def test_a_path_marks_no_method_that_only_special_clients_send_unless_it_is_named():
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        assert marks.path("/dav/*")(at("/dav/1", method))
    for method in ("PROPFIND", "LOCK", "MKCOL", "REPORT", "HEAD", "OPTIONS", "TRACE"):
        assert not marks.path("/dav/*")(at("/dav/1", method))
        assert marks.path("/dav/*", methods=[method])(at("/dav/1", method))


def test_never_marks_nothing():
    assert not marks.never(at("/"))
    assert not marks.never({**at("/"), "HTTP_PREFER": "respond-async"})


def test_all_of_one_two_or_three_marks_what_each_of_them_marks():
    for marked in ([YES], [YES, YES], [YES, YES, YES]):
        assert marks.all_of(*marked)(at("/"))
    for unmarked in ([NO], [YES, NO], [NO, YES], [YES, YES, NO]):
        assert not marks.all_of(*unmarked)(at("/"))
