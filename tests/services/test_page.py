"""The page for people: what it shows, to whom, and that it loads and runs nothing."""

from __future__ import annotations

import re
import ssl
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from tests.browser import PHONE, drawn
from tests.record.lines import Told
from tests.services.lab import lab, nginx
from zk0d.config.machine import ServerSettings
from zk0d.federation.nodes import Node
from zk0d.pages import HEADERS
from zk0d.pages.chart import MOST_POINTS, thinned
from zk0d.services.page import render
from zk0d.services.presence import Presence, PresencePage

NODES = [Node(1, "a" * 64, "left", True, 5.0), Node(2, "b" * 64, "right", False, 5.0)]


def facts(rounds: int = 3, model: str = "tiny") -> Told:
    made = Told()
    settings = {
        "num-server-rounds": 9,
        "min-fit-clients": 2,
        "policy": "smolvla",
        "model-name": model,
    }
    made.take({"kind": "run.started", "run": "7", "time": 1.0, "settings": settings})
    for key, name in (("a" * 64, "left"), ("b" * 64, "right")):
        made.take({"kind": "node.joined", "node": name, "key": key})
    for number in range(rounds + 1):
        loss = 1.0 / (1 + number)
        if number:
            made.take(
                {
                    "kind": "round.started",
                    "time": 1.0,
                    "nodes": ["left", "right"],
                    "learning_rate": 0.1,
                    "proximal_mu": 0.0,
                }
            )
            made.take({"kind": "node.lost", "node": "right", "reason": "offline"})
        made.take(
            {
                "kind": "round.committed",
                "round": number,
                "time": 1.0,
                "nodes": [{"node": "left", "policy_loss": 0.5, "samples": 1500}],
                "train_loss": 0.5,
                "bytes_up": 1,
                "bytes_down": 1,
                "seconds": {},
                "evaluation": {
                    "loss": loss,
                    "success": 0.5,
                    "datasets": [
                        {"name": name, "loss": loss, "success": 0.5} for name in ("x", "y")
                    ],
                },
            }
        )
    return made


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def test_the_page_shows_run_round_loss_and_participation() -> None:
    words = Tags(render(NODES, facts()).decode()).words
    for shown in (
        "run 7",
        "running",
        "tiny (smolvla)",
        "1 of 2 nodes online",
        "3 of 9",
        "0.25",
        "4,500",
        "from 1 in round 0 to 0.25 in round 3",
    ):
        assert shown in words, shown
    rows = re.findall(
        r"<tr><td>(left|right)</td>.*?</tr>", render(NODES, facts()).decode(), re.DOTALL
    )
    assert rows == ["left", "right"]
    row = re.search(r"<tr><td>right</td>.*?</tr>", render(NODES, facts()).decode(), re.DOTALL)
    assert row is not None
    assert "offline" in row[0]
    assert re.findall(r"<td>([\d,]+)</td>", row[0]) == ["0", "3", "0"], "rounds, missed, frames"


def test_the_chart_is_the_losses() -> None:
    svg = re.search(r"<svg.*?</svg>", render(NODES, facts()).decode(), re.DOTALL)
    assert svg is not None
    drawing = ET.fromstring(svg[0])  # noqa: S314 - our own
    (line,) = drawing.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == 4
    assert points == sorted(points), "from left to right"
    assert [y for _, y in points] == sorted(y for _, y in points), "the loss falls"


def test_no_key_no_address_and_nothing_to_load_or_run() -> None:
    text = render(NODES, facts()).decode()
    assert "a" * 12 not in text, "no key"
    page = Tags(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "form", "object", "input", "a", "image"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href", "action", "style", "srcset"), (tag, name)
            assert "://" not in (value or ""), (tag, value)
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_names_are_text() -> None:
    hostile = '"><script>alert(1)</script>'
    run = facts(model=hostile)
    run.run = hostile
    dataset = {"name": hostile, "loss": 0.5, "success": 0.5}
    run.take(
        {
            "kind": "round.committed",
            "round": 4,
            "evaluation": {"loss": 0.5, "datasets": [dataset]},
        }
    )
    text = render([Node(1, "c" * 64, hostile, True, 5.0)], run).decode()
    page = Tags(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count("<script>alert(1)</script>") == 5, "escaped, in each place"


@pytest.mark.parametrize("rounds", [0, 1])
def test_the_page_is_whole_before_the_first_round(rounds: int) -> None:
    assert "No node may join yet." in render([], None).decode()
    text = render(NODES, facts(rounds)).decode()
    assert ("<svg" in text) is (rounds > 0)
    assert "nan" not in text


def test_a_long_run_is_thinned_and_keeps_its_ends() -> None:
    points = [(i, 1.0) for i in range(12345)]
    thin = thinned(points)
    assert len(thin) <= MOST_POINTS + 1
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert thinned(points[:5]) == points[:5]


def test_the_style_is_the_one_that_the_browser_is_told_to_trust() -> None:
    import base64
    import hashlib

    style = re.search(r"<style>(.*?)</style>", render([], None).decode(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in dict(HEADERS)["Content-Security-Policy"]


@pytest.fixture
def served() -> Iterator[tuple[Presence, str]]:
    presence = Presence()
    page = PresencePage(presence, 0)
    yield presence, f"http://127.0.0.1:{page.port}"
    page.close()


def test_the_page_is_off_by_default(served: tuple[Presence, str]) -> None:
    presence, url = served
    assert not ServerSettings().gateway.status_page
    assert httpx.get(f"{url}/zk0d/v1/").status_code == 404
    presence.page = render(NODES, facts())
    answer = httpx.get(f"{url}/zk0d/v1/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"
    assert httpx.post(f"{url}/zk0d/v1/").status_code == 405
    assert httpx.get(f"{url}/zk0d/v1/nodes").status_code == 404, "there is no list as JSON"


@pytest.mark.parametrize("on", [False, True])
def test_the_gateway_shows_it_where_the_setting_says_so(tmp_path: Path, on: bool) -> None:
    if nginx() is None:
        pytest.skip("nginx is not here and cannot be installed")
    with lab(tmp_path, Path("/nothing")) as made:
        if on:
            text = made.server_toml.read_text()
            made.server_toml.write_text(
                text.replace("[gateway]\n", "[gateway]\nstatus-page = true\n")
            )
        presence = Presence()
        presence.page = render(NODES, facts())
        page = PresencePage(presence, made.presence)
        try:
            made.start_gateway()
            trust = ssl.create_default_context(cafile=str(made.certificates.ca))
            with httpx.Client(base_url=f"https://127.0.0.1:{made.gateway}", verify=trust) as client:
                answer = client.get("/zk0d/v1/")
                assert answer.status_code == (200 if on else 403)
                assert ("zk0d federation" in answer.text) is on
                assert client.post("/zk0d/v1/").status_code == 403
                assert client.get("/zk0d/v1/nodes/" + "a" * 64).status_code == 200
                assert client.get("/zk0d/v1/other").status_code == 403
        finally:
            page.close()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", PHONE)])
def test_a_browser_draws_it_at_either_width(
    served: tuple[Presence, str], tmp_path: Path, name: str, width: int
) -> None:
    """Without a fault in its console, and no wider than the window."""
    presence, url = served
    presence.page = render(NODES, facts())
    # A phone's width is had in a frame alone, which takes the page's text.
    drawn(f"{url}/zk0d/v1/" if name == "desktop" else presence.page.decode(), tmp_path, width)
