"""Pages beside that of a job: the list of all, the links to one, two runs beside each other. All in one response."""

from string import Template

from . import assets
from .markup import Markup, filled_in
from .policies import plain_policy
from .problems import Answer, Headers, whole

__all__ = ["plain_page"]

_PAGE = Template("""<!DOCTYPE html>
<html lang="$language">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body class="job job-list$looks">
<main>
$content</main>
$script</body>
</html>
""")
_SCRIPT = Template('<script type="module">$script</script>\n')


def plain_page(
    title: str, content: Markup, headers: Headers, *, language: str = "en", looks: str = "", script: str = ""
) -> Answer:
    """Return a page with the style of the list, and with *script* if there is one. *looks*: a class of its own."""
    style = assets.style() + assets.stripped_style(assets.static("dashboard.css"))
    values = {
        "language": language,
        "title": title,
        "style": Markup(style),
        "looks": looks and f" {looks}",
        "content": content,
        "script": filled_in(_SCRIPT, {"script": Markup(script)}) if script else Markup(),
    }
    policy = ("Content-Security-Policy", plain_policy(style, script))
    return whole("text/html; charset=utf-8", filled_in(_PAGE, values), (policy, *headers))
