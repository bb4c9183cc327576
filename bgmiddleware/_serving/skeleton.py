"""What the pages beside that of a job have around their content."""

from string import Template

from . import assets
from .markup import Markup, filled_in
from .policies import plain_policy

__all__ = ["around"]

_PAGE = Template("""<!DOCTYPE html>
<html lang="$language">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body class="job $looks">
<main>
$content</main>
$script</body>
</html>
""")
_SCRIPT = Template('<script type="module">$script</script>\n')


def around(
    content: Markup, title: str, *, sheet: str, looks: str, language: str = "en", script: str = ""
) -> tuple[str, str]:
    """Return a whole page, and its policy. *sheet*: the name of the style that it has besides that of all pages;
    *looks*: the classes of its body; *script*: what it runs, if anything."""
    style = assets.style() + assets.stripped_style(assets.static(sheet))
    values = {
        "language": language,
        "title": title,
        "style": Markup(style),
        "looks": looks,
        "content": content,
        "script": filled_in(_SCRIPT, {"script": Markup(script)}) if script else Markup(),
    }
    return filled_in(_PAGE, values), plain_policy(style, script)
