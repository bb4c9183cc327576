"""A real job: upload a table or a text, watch it being read, download its statistics.

The upload is read before the answer, so the browser may go away; the job reads it again, from a file, in pieces.
"""

import csv
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any, BinaryIO
from urllib.parse import quote

from tqdm import tqdm
from webob import Request, Response

from bgmiddleware import BackgroundMiddleware, marks, progress

from .summary import Unreadable, summarize

SAMPLE_ROWS = 120_000

FORM = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Statistics of a file</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 0 auto; padding: 1rem; }
fieldset { border: 1px solid #8886; border-radius: .5rem; padding: 1rem; margin: 0 0 1rem; display: grid; gap: .75rem; }
legend { font-weight: 600; padding: 0 .5rem; }
select, button, input { font: inherit; max-width: 100%; }
button { padding: .35rem 1rem; justify-self: start; }
</style>
</head>
<body>
<h1>Statistics of a file</h1>
<form method="post" action="statistics" enctype="multipart/form-data">
<fieldset><legend>Your file</legend>
<input type="file" name="file" aria-label="File" required>
<label>It is <select name="kind"><option value="auto">whatever it looks like<option value="table">a table (CSV)
<option value="text">a text</select></label>
<label>The first row is <select name="header"><option value="auto">whatever it looks like<option value="yes">a header
<option value="no">data</select></label>
<label>Result as <select name="format"><option value="json">JSON<option value="csv">CSV</select></label>
<button>Upload and read</button>
</fieldset>
</form>
<form method="post" action="statistics">
<fieldset><legend>No file at hand?</legend>
<button name="sample" value="$rows">Read a generated sample of $rows rows</button>
<a href="sample.csv">Download the sample</a>
</fieldset>
</form>
<p><a href="../">All demos</a></p>
</body>
</html>
""".replace("$rows", str(SAMPLE_ROWS))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    request = Request(environ)
    views = {"/": form, "/sample.csv": sample, "/statistics": statistics}
    view = views.get(request.path_info)
    response = view(request) if view else _sorry(404, "There is no such page.")
    return response(environ, start_response)


def form(request: Request) -> Response:
    return Response(FORM)


def sample(request: Request) -> Response:
    return Response(
        app_iter=sample_pieces(SAMPLE_ROWS),
        content_type="text/csv",
        charset="utf-8",
        content_disposition='attachment; filename="sample.csv"',
    )


def statistics(request: Request) -> Response:
    """Read what was sent; runs as a job, because its path is marked below."""
    try:
        name, file = _sent(request)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        print(f"Reading {name}: {size:,} bytes")
        with tqdm(total=size, unit="B", unit_scale=True, desc=name[:30]) as bar:

            def report(done: int) -> None:
                progress(-(-done // 1000), -(-size // 1000), "kilobytes")  # rounded up
                bar.update(done - bar.n)

            options = {key: str(request.POST.get(key, "auto")) for key in ("kind", "header")}
            found = {"file": name, "bytes": size, **summarize(file, name=name, report=report, **options)}
    except Unreadable as error:
        return _sorry(422, str(error))
    print(_as_text(found))
    if request.POST.get("format") == "csv":
        return _download(name, "csv", "text/csv", _as_csv(found))
    return _download(name, "json", "application/json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _sent(request: Request) -> tuple[str, BinaryIO]:
    """Return the name and the content of the file to read."""
    try:
        fields: Any = request.POST
        rows = min(int(fields.get("sample", 0)), 1_000_000)
    except ValueError as error:
        raise Unreadable(f"The form cannot be read: {error}") from error
    if rows > 0:
        print(f"Generating a sample of {rows:,} rows")
        return "sample.csv", io.BytesIO(b"".join(sample_pieces(rows)))
    upload = fields.get("file")
    if not hasattr(upload, "file"):  # a form without a file, or one where none was chosen
        raise Unreadable("No file was sent. Choose one, or send it with: curl -L -F file=@table.csv")
    return re.split(r"[/\\]", upload.filename)[-1] or "upload", upload.file


def sample_pieces(rows: int) -> Iterator[bytes]:
    """Yield a table of orders, always the same one, a thousand rows at a time."""
    chance = random.Random(2008)
    places = ["Berlin", "Köln", "Zürich", '"Den Haag, NL"', "São Paulo", ""]
    lines = ["order,day,place,quantity,price\r\n"]
    for order in range(1, rows + 1):
        day = date(2008, 1, 1) + timedelta(days=chance.randrange(366))
        price = f"{chance.lognormvariate(3, 1):.2f}"
        lines.append(f"{order},{day},{chance.choice(places)},{chance.randint(1, 20)},{price}\r\n")
        if order % 1000 == 0 or order == rows:
            yield "".join(lines).encode()
            lines.clear()


def _as_text(found: dict[str, Any]) -> str:
    """Return the statistics for the page of the job."""
    lines = [f"Note: {note}" for note in found["notes"]]
    if found["kind"] == "table":
        lines.append(f"{found['rows']:,} rows, {found['ragged_rows']:,} of them of another width\n")
        lines.append(_TABLE.format("column", "type", "count", "empty", "distinct", "min", "max", "mean"))
        lines += [_TABLE.format(*map(_short, _cells(column))) for column in found["columns"]]
    elif found["kind"] == "text":
        lines.append(
            f"{found['lines']:,} lines, {found['words']:,} words, {found['distinct_words']:,} of them different\n"
        )
        lines += [f"{entry['count']:>10,}  {entry['word'][:60]}" for entry in found["most_frequent_words"]]
    return "\n".join(lines)


_TABLE = "{:16} {:6} {:>9} {:>9} {:>9} {:>12} {:>12} {:>12}"


def _cells(column: dict[str, Any]) -> list[Any]:
    return [column[key] for key in ("name", "type", "count", "empty", "distinct", "min", "max", "mean")]


def _short(value: Any) -> str:
    text = "" if value is None else f"{value:,.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 12 else text[:11] + "…"


def _as_csv(found: dict[str, Any]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    if found["kind"] == "table":
        writer.writerow(found["columns"][0] if found["columns"] else ["name"])
        writer.writerows(column.values() for column in found["columns"])
    else:
        lists = {key: value for key, value in found.items() if isinstance(value, list)}
        writer.writerow(["name", "value"])
        writer.writerows((key, value) for key, value in found.items() if key not in lists)
        writer.writerows(("word " + entry["word"], entry["count"]) for entry in lists.get("most_frequent_words", ()))
    return file.getvalue()


def _download(name: str, suffix: str, content_type: str, text: str) -> Response:
    stem = name.rpartition(".")[0] or name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_") or "file"
    response = Response(text, content_type=content_type, charset="utf-8")
    response.headers["Content-Disposition"] = (  # RFC 6266: the second one for those who can read it
        f"attachment; filename=\"{plain}-statistics.{suffix}\"; filename*=UTF-8''{quote(stem)}-statistics.{suffix}"
    )
    return response


def _sorry(code: int, message: str) -> Response:
    print(message)
    return Response(message + "\n", code, content_type="text/plain", charset="utf-8")


application = BackgroundMiddleware(app, when=marks.path("/statistics", methods=["POST"]))
