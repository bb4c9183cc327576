"""The pictures of the documents show what the pages look like today, and each is shown."""

import json
import re
from typing import Any

import pytest

from tests.kit.documents import PAGES
from tests.kit.pictures import DIRECTORY, LARGEST, LOOKS, PICTURES, looks


@pytest.mark.everything
def test_the_pages_still_look_as_the_pictures_show_them(browser: Any) -> None:
    noted = json.loads(LOOKS.read_text("utf-8"))
    for name, look in looks(browser).items():
        assert look == noted[name], f"{name}: run python -m tests.kit.pictures, and look at what it made"


def test_all_pictures_are_small_and_shown_in_a_document() -> None:
    assert {path.name for path in DIRECTORY.glob("*.png")} == {picture.path.name for picture in PICTURES}
    shown = {
        name for page in PAGES.values() for name in re.findall(r"image:: \.\./pictures/(\S+)", page.read_text("utf-8"))
    }
    assert shown == {picture.path.name for picture in PICTURES}
    for picture in PICTURES:
        assert picture.path.stat().st_size < LARGEST, picture.name
