"""The page's address tells what is looked at: Back goes up again, a link or a reload shows the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import id_of, quiet_page
from tests.page.canned import ADDRESS, NOW, instant, open_canned, row

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROWS = {
    "town": [row("440704001"), row("440704002")],
    "village": [row("440704001001")],
    "grid": [row("440704001001001")],
    "department": [row("public_security")],
}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser, viewport={"width": 1600, "height": 950}) as page:
        table: dict[str, Any] = {"as_of": instant(NOW), "again_in_seconds": 60}
        open_canned(page, {f"/v1/live/tables/{by}": table | {"rows": rows} for by, rows in ROWS.items()})
        yield page


def expect_area(page: Page, *keys: str) -> None:
    """The rows of the table, but for the city's."""
    for key in keys:
        expect(page.locator(f"tr[data-key='{key}']")).to_be_visible()
    expect(page.locator("tbody tr:not(.total)")).to_have_count(len(keys))


def go_into(page: Page, key: str) -> None:
    page.locator(f"tr[data-key='{key}'] th button").click()


def test_back_goes_up_and_forward_down_again(page: Page) -> None:
    assert page.url == ADDRESS
    go_into(page, "440704")
    expect_area(page, "440704001", "440704002")
    assert page.url == f"{ADDRESS}#/440704"
    go_into(page, "440704001")
    go_into(page, "440704001001")
    expect_area(page, "440704001001001")
    assert page.url == f"{ADDRESS}#/440704001001"
    page.go_back()
    expect_area(page, "440704001001")
    title = id_of(page, "areas").get_by_role("heading", level=2)
    expect(title).to_be_focused()  # the row that was focused is gone
    page.go_back()
    page.go_back()
    expect_area(page, "440704")
    assert page.url == ADDRESS
    page.go_forward()
    expect_area(page, "440704001", "440704002")
    # the way up is a step of its own
    id_of(page, "areas").get_by_role("navigation").get_by_role("button").first.click()
    assert page.url == ADDRESS
    page.go_back()
    expect_area(page, "440704001", "440704002")


def test_what_was_chosen_outlives_loading_anew_and_is_no_step_back(page: Page) -> None:
    steps = page.evaluate("history.length")
    id_of(page, "metric").select_option("open")
    id_of(page, "by-matter").click()
    id_of(page, "resolution_seconds").click()
    assert page.evaluate("history.length") == steps
    page.locator(".cell[data-code='440704001']").click()
    expect_area(page, "440704001001")
    address = f"{ADDRESS}#/440704001?metric=open&dimension=matter&span=resolution_seconds"
    assert page.url == address
    page.reload()
    expect_area(page, "440704001001")
    expect(id_of(page, "metric")).to_have_value("open")
    for name in ("by-matter", "resolution_seconds"):
        expect(id_of(page, name)).to_have_attribute("aria-pressed", "true")
    assert page.url == address
    # what is chosen as at first is left out again
    id_of(page, "by-department").click()
    id_of(page, "response_seconds").click()
    id_of(page, "metric").select_option("closure_rate")
    assert page.url == f"{ADDRESS}#/440704001"


@pytest.mark.parametrize(
    "wrong",
    [
        "#/4407<img src=x>",
        "#/44070400",
        "#/440704001001001001",
        "#/?metric=constructor",
        "#/?span=%00&dimension[]=x",
    ],
)
def test_an_address_that_names_nothing_shows_the_city(page: Page, wrong: str) -> None:
    go_into(page, "440704")
    page.goto(ADDRESS + wrong)
    expect_area(page, "440704")
    expect(id_of(page, "metric")).to_have_value("closure_rate")
    expect(page.locator("tr[data-key='440704'] td").first).to_have_text(re.compile(r"^\d+$"))


def test_the_link_to_the_table_stays_where_one_is(page: Page) -> None:
    go_into(page, "440704")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.url == f"{ADDRESS}#table"
    expect_area(page, "440704001", "440704002")
    go_into(page, "440704001")
    assert page.url == f"{ADDRESS}#/440704001"
