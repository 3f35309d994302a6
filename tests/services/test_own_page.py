"""A contributor's page about its own machine: what it shows, to whom, and what it changes."""

from __future__ import annotations

import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.browser import PHONE, drawn
from tests.cli.test_cli import BIN
from tests.processes import started
from tests.services.own_lab import DAY, own_folder, tell
from tests.services.test_page import Tags
from zk0d.machine import units
from zk0d.machine.hold import read_hold
from zk0d.services.own_door import IDLE_SECONDS, MOST_BYTES, OwnDoor
from zk0d.services.own_page import OwnPage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(units, "has_systemd", lambda: False)
    return own_folder(tmp_path / "node")


@pytest.fixture
def door(folder: Path) -> Iterator[OwnDoor]:
    made = OwnDoor(OwnPage(folder))
    yield made
    made.close()


@pytest.fixture
def browser(door: OwnDoor) -> Iterator[httpx.Client]:
    """One that has followed the link."""
    with httpx.Client(base_url=door.url, follow_redirects=True) as client:
        assert client.get(door.url).status_code == 200
        yield client


def home(door: OwnDoor) -> str:
    return f"http://127.0.0.1:{door.port}{door._home}"


def csrf(text: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found is not None
    return found[1]


def shown(folder: Path) -> str:
    words = Tags(OwnPage(folder).render("/-/", "-").decode()).words
    return " ".join(words.partition(".loss {")[2].partition("}")[2].split())


def test_the_page_shows_what_the_machines_files_say(folder: Path) -> None:
    text = shown(folder)
    now = time.time()
    today, yesterday = (
        time.strftime("%Y-%m-%d", time.localtime(each)) for each in (now, now - DAY)
    )
    for words in (
        "kitchen-arm",
        "online; round 12/30 is done.",
        "Round 12 of 30",
        "Down today 2.7 GB",
        "Up today 1.8 GB Both ways a day, at most 20 GB",
        "Rounds today 9",
        "GPU time today 90 min",
        "GPU energy today 225 Wh",
        "Held-out loss, round 0 2",
        "from 2 in round 0 to 0.4087 in round 11; dashed: the first of them.",
        f"{today} 2.7 GB 1.8 GB 9 90 min 225 Wh",
        f"{yesterday} 900 MB 600 MB 3 30 min 75 Wh",
        'hours "mon-fri 22:00-07:00, sat, sun" Local time',
        'priority ["steam", "blender"] Programs',
        "bytes-per-day 20 GB Bytes of weights",
        "max-steps 10000 (default)",
        f"edit [limits] in {folder}/client.toml, then end zk0bot client start",
        "learner running: training step 12/40",
    ):
        assert words in text, (words, text)


def test_the_chart_is_the_nodes_own_losses(folder: Path) -> None:
    svg = re.search(r"<svg.*?</svg>", OwnPage(folder).render("/-/", "-").decode(), re.DOTALL)
    assert svg is not None
    (drawing,) = ET.fromstring(svg[0]).iter("polyline")  # noqa: S314 - our own
    points = [tuple(map(float, point.split(","))) for point in drawing.attrib["points"].split()]
    assert len(points) == 12
    assert [y for _, y in points] == sorted(y for _, y in points), "the loss falls"
    # Round 11 of 30 is where the line ends.
    assert points[-1][0] == pytest.approx(76 + (640 - 96) * 11 / 30, abs=0.1)


def test_it_says_why_the_node_does_not_train(folder: Path) -> None:
    tell(
        folder,
        online=False,
        held="rest",
        status="resting until 22:00 (limits.hours); it comes back by itself",
    )
    assert "resting until 22:00 (limits.hours); it comes back by itself." in shown(folder)
    toml = folder / "client.toml"
    toml.write_text(toml.read_text().replace("20 GB", "4.5 GB"))
    assert "Its line rests until midnight (4.5 GB of the day's 4.5 GB are spent" in shown(folder)


def test_without_rounds_and_services_the_page_is_whole(folder: Path) -> None:
    for path in folder.glob("*/*.json"):
        path.unlink()
    text = shown(folder)
    assert "its services do not run, or you are not root" in text
    assert "The chart begins after two rounds." in text
    assert "Nothing yet." in text
    assert "nan" not in text


def test_hostile_words_are_text(folder: Path) -> None:
    hostile = '"><script>alert(1)</script>'
    tell(folder, status=hostile, todo=hostile)
    page = Tags(OwnPage(folder).render("/-/", "-", hostile).decode())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count("<script>alert(1)</script>") == 4, "escaped, in each place"


def test_nothing_is_loaded_and_forms_go_home(folder: Path) -> None:
    page = Tags(OwnPage(folder).render("/-/", "-").decode())
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "a"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href", "style", "srcset"), (tag, name)
            assert "://" not in (value or ""), (tag, value)
    assert [a["action"] for tag, a in page.tags if tag == "form"] == ["/-/pause"]


def test_the_link_counts_once(door: OwnDoor) -> None:
    with httpx.Client() as client:
        assert client.get(home(door)).status_code == 403, "without a cookie"
        assert client.get(door.url + "x").status_code == 403
        assert client.get(door.url.partition("?")[0]).status_code == 403
        assert client.head(door.url).status_code == 403, "a look at the link does not use it up"
        answer = client.get(door.url)
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert answer.headers["location"] == door._home
        for attribute in ("HttpOnly", "SameSite=strict", f"Path={door._home}"):
            assert attribute in cookie
        token = urlsplit(door.url).query.partition("=")[2]
        assert token not in cookie + answer.headers["location"]
        page = client.get(home(door))
        assert page.status_code == 200
        assert token not in page.text
    with httpx.Client() as client:
        assert client.get(door.url).status_code == 403, "a second time"
        assert client.get(home(door), headers={"cookie": "zk0d=x"}).status_code == 403


def test_a_browser_is_told_to_load_and_keep_nothing(door: OwnDoor, browser: httpx.Client) -> None:
    headers = browser.get(home(door)).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "form-action 'self'; frame-ancestors 'none'" in policy
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "header",
    [
        {"host": "evil.example"},
        {"host": "evil.example:{port}"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "https://127.0.0.1:{port}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_other_hosts_and_pages_are_refused(
    door: OwnDoor, browser: httpx.Client, folder: Path, header: dict[str, str]
) -> None:
    """With the cookie, the path and the form's token: a browser could be made to send all three."""
    headers = {name: value.format(port=door.port) for name, value in header.items()}
    token = csrf(browser.get(home(door)).text)
    assert browser.get(home(door), headers=headers).status_code == 403
    form = {"csrf": token, "for": "2h"}
    answer = browser.post(f"{home(door)}pause", data=form, headers=headers)
    assert answer.status_code == 403
    assert read_hold(folder / "supernode") is None


def test_the_link_is_not_used_up_by_another_host(door: OwnDoor) -> None:
    with httpx.Client() as client:
        assert client.get(door.url, headers={"host": "evil.example"}).status_code == 403
        assert client.get(door.url).status_code == 303


def test_pause_and_resume_are_the_commands_own(
    door: OwnDoor, browser: httpx.Client, folder: Path
) -> None:
    own = {"origin": f"http://127.0.0.1:{door.port}", "sec-fetch-site": "same-origin"}
    page = browser.get(home(door)).text
    answer = browser.post(f"{home(door)}pause", data={"csrf": csrf(page), "for": "2h"}, headers=own)
    assert answer.status_code == 200, "shown again"
    held = read_hold(folder / "supernode")
    assert held is not None
    assert (held.kind, held.until is not None) == ("pause", True)
    assert 7100 < (held.until or 0) - time.time() <= 7200
    assert held.sentence() in answer.text
    assert f'action="{door._home}resume"' in answer.text
    assert f'action="{door._home}pause"' not in answer.text
    answer = browser.post(f"{home(door)}resume", data={"csrf": csrf(page)}, headers=own)
    assert read_hold(folder / "supernode") is None
    assert f'action="{door._home}pause"' in answer.text


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({}, 403),
        ({"for": "2h"}, 403),
        ({"csrf": "x", "for": "2h"}, 403),
        ({"csrf": "{csrf}", "for": "9w"}, 400),
        ({"csrf": "{csrf}"}, 400),
        ({"csrf": "{csrf}", "for": "2h", "more": "x" * MOST_BYTES}, 403),
    ],
)
def test_a_form_without_its_token_or_with_other_words_changes_nothing(
    door: OwnDoor, browser: httpx.Client, folder: Path, form: dict[str, str], status: int
) -> None:
    token = csrf(browser.get(home(door)).text)
    filled = {name: value.replace("{csrf}", token) for name, value in form.items()}
    assert browser.post(f"{home(door)}pause", data=filled).status_code == status
    assert browser.get(f"{home(door)}pause").status_code == 403
    with httpx.Client() as other:
        whole = {"csrf": token, "for": "2h"}
        assert other.post(f"{home(door)}pause", data=whole).status_code == 403, "no cookie"
    assert read_hold(folder / "supernode") is None


def test_what_cannot_be_written_is_told_in_a_sentence(
    door: OwnDoor, browser: httpx.Client, folder: Path
) -> None:
    token = csrf(browser.get(home(door)).text)
    for path in (folder / "supernode").iterdir():
        path.unlink()
    (folder / "supernode").rmdir()
    answer = browser.post(f"{home(door)}pause", data={"csrf": token, "for": "2h"})
    assert answer.status_code == 503
    assert "hold.json: cannot be written (No such file or directory)" in answer.text
    (folder / "client.toml").write_text("name = ")
    broken = browser.get(home(door))
    assert broken.status_code == 503
    assert "client.toml: not valid TOML" in broken.text


def test_only_requests_that_count_keep_it_open(folder: Path) -> None:
    now = [0.0]
    made = OwnDoor(OwnPage(folder), clock=lambda: now[0])
    try:
        with httpx.Client(follow_redirects=True) as client:
            client.get(made.url)
            now[0] = IDLE_SECONDS - 1
            assert not made.is_idle
            assert client.get(home(made)).status_code == 200
            now[0] += IDLE_SECONDS - 1
            assert not made.is_idle
            assert httpx.get(home(made)).status_code == 403
            now[0] += 1
            assert made.is_idle
            made.wait()
    finally:
        made.close()


def test_it_listens_on_loopback_alone(door: OwnDoor) -> None:
    here = [c for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"]
    assert {c.laddr.ip for c in here if c.laddr.port == door.port} == {"127.0.0.1"}


@pytest.mark.slow
def test_the_command_prints_the_link_and_ends_with_ctrl_c(folder: Path) -> None:
    command = [str(BIN / "zk0bot"), "client", "open", "--folder", str(folder)]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, **how) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", url)
        with httpx.Client(follow_redirects=True) as client:
            assert "kitchen-arm" in client.get(url).text
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert said.splitlines()[-1] == "ended"
        assert process.returncode == 0


@pytest.mark.slow
def test_a_browser_follows_the_link_and_draws_the_page(
    door: OwnDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its cookie, under its policy, and without a complaint in its console."""
    shown: list[str] = []
    render = OwnPage.render

    def counted(self: OwnPage, home: str, csrf: str, trouble: str = "") -> bytes:
        shown.append(home)
        return render(self, home, csrf, trouble)

    monkeypatch.setattr(OwnPage, "render", counted)
    drawn(door.url, tmp_path, 1280, 2400)
    assert shown == [door._home], "once, and not a refusal"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, PHONE])
def test_the_page_is_as_wide_as_the_window(tmp_path: Path, folder: Path, width: int) -> None:
    page = OwnPage(folder).render("/-/", "-").decode()
    drawn(page, tmp_path, width, 2400)
