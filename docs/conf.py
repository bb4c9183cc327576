"""The site: ``python -m sphinx -W -n docs build/site`` makes it of the same pages that a code host shows.

The pages are plain reStructuredText, so links are to files, and the list of pages in ``index.rst`` is the table of
contents. What Sphinx wants instead is made here, once a page has been read.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from bgmiddleware import __version__

ROOT = Path(__file__).parent.parent

project = "bgmiddleware"
author = copyright = "the bgmiddleware maintainers"  # noqa: A001  # Sphinx calls it so
version = release = __version__
extensions = ["sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"bgmiddleware {version}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["print.css"]
html_copy_source = False
highlight_language = "none"  # a literal block is what it says; code names its language
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what a class overrides is said where it was said first
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
toc_object_entries = False
suppress_warnings = ["misc.highlighting_failure"]  # JSON with a comment, and options of servers

OF_THE_CLONE = {"readme": "README.rst", "reference/changes": "CHANGES.rst", "contributing": "CONTRIBUTING.rst"}
"""Pages that link to a file outside of ``docs`` on a code host, and are that file on the site."""


class LinksToPages(SphinxTransform):
    """Make links to files, and names of files, lead to the pages made of them."""

    default_priority = 5  # before Sphinx looks for what it knows

    def apply(self, **options: Any) -> None:
        for node in list(self.document.findall(nodes.reference)):
            target = node.get("refuri", "")
            if target.endswith(".rst") and ":" not in target:
                here = PurePosixPath(self.env.docname).parent
                node.replace_self(self._to(os.path.normpath(here / target), node.astext()))
            elif ":" not in target and (Path(self.document["source"]).parent / target).is_file():
                file = addnodes.download_reference("", "", reftarget=target, refdoc=self.env.docname)
                file += nodes.literal("", node.astext(), classes=["xref", "download"])
                node.replace_self(file)
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext()
            if text.startswith("docs/") and text.endswith(".rst"):
                literal.replace_self(self._to(text.removeprefix("docs/"), text))

    def _to(self, path: str, text: str) -> addnodes.pending_xref:
        outside = {os.path.normpath(Path("..", name)): page for page, name in OF_THE_CLONE.items()}
        page = "/" + outside.get(path, path.removesuffix(".rst"))
        link = addnodes.pending_xref(
            "", refdomain="std", reftype="doc", reftarget=page, refexplicit=True, refwarn=True, refdoc=self.env.docname
        )
        link += nodes.inline(text, text, classes=["xref", "std", "std-doc"])
        return link


class ContentsOfLists(SphinxTransform):
    """Make the lists of ``index.rst`` a table of contents as well, so that no page is named twice."""

    default_priority = 4

    def apply(self, **options: Any) -> None:
        if self.env.docname != "index":
            return
        for section in self.document.findall(nodes.section):
            if isinstance(section.parent, nodes.section) or section.parent is self.document:
                self._contents_of(section)

    def _contents_of(self, section: nodes.section) -> None:
        lists = [node for node in section.children if isinstance(node, nodes.bullet_list)]
        pages = [
            reference["refuri"].removesuffix(".rst")
            for found in lists
            for item in found.children
            for reference in item.findall(nodes.reference)
        ]
        pages = [{"../README": "readme", "../CONTRIBUTING": "contributing"}.get(page, page) for page in pages]
        if pages:
            title = section.next_node(nodes.title).astext()
            contents = addnodes.toctree(
                "",
                parent="index",
                entries=[(None, page) for page in pages],
                includefiles=pages,
                caption=title,
                rawcaption=title,
                maxdepth=1,
                glob=False,
                hidden=True,
                includehidden=False,
                numbered=0,
                titlesonly=True,
            )
            section += nodes.compound("", contents, classes=["toctree-wrapper"])


def read_from_the_clone(app: Sphinx, page: str, source: list[str]) -> None:
    if page in OF_THE_CLONE:
        source[0] = (ROOT / OF_THE_CLONE[page]).read_text("utf-8")


def public_name(app: Sphinx, env: Any, node: addnodes.pending_xref, shown: nodes.Element) -> nodes.Element | None:
    """Let a type of a signature lead to the class under its public name, and leave types of others as they are."""
    if node.get("reftype") not in ("class", "data", "obj", "exc"):
        return None
    name = node["reftarget"].rpartition(".")[2]
    python = env.get_domain("py")
    for module in ("bgmiddleware", *sorted(python.modules)):
        if f"{module}.{name}" in python.objects and node["reftarget"].startswith(("bgmiddleware", name)):
            return python.resolve_xref(
                env, node["refdoc"], app.builder, "obj", f"{module}.{name}", node, shown
            )  # the page with this name
    return shown


def setup(app: Sphinx) -> None:
    app.add_transform(ContentsOfLists)
    app.add_transform(LinksToPages)
    app.connect("source-read", read_from_the_clone)
    app.connect("missing-reference", public_name)
