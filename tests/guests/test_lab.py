"""The guests are machines: what the other tests here stand on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests.lab import CommandError, Guest, install_units

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

PORT = 8080
SILENT = """\
[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh -c 'systemd-notify --ready --status="says no more" && exec sleep infinity'
WatchdogSec=1
Restart=on-failure
RestartSec=100ms
[Install]
WantedBy=multi-user.target
"""
SITE = f"server {{ listen {PORT}; location / {{ return 200 hello; }} }}\n"


def test_a_silent_service_is_restarted_and_a_reboot_brings_it_back(
    guests: Callable[..., Guest],
) -> None:
    guest = guests("one")
    assert guest.run("systemctl is-system-running").stdout == "running\n", guest.journal()

    guest.write("/etc/systemd/system/silent.service", SILENT)
    guest.systemctl("daemon-reload")
    guest.systemctl("enable", "--now", "silent.service")
    assert guest.unit_state("silent")["StatusText"] == "says no more"
    guest.wait_until(lambda: int(guest.unit_state("silent")["NRestarts"]) > 0, 20)
    assert "Watchdog timeout" in guest.journal("silent")

    before = guest.boot_id()
    guest.restart()
    assert guest.boot_id() != before
    guest.wait_until("systemctl is-active silent.service", 20)
    assert "Watchdog timeout" in guest.journal("silent", boot="-1")

    guest.kill()
    assert not guest.is_running()
    guest.start()
    assert guest.address in guest.run("ip -4 address show eth0").stdout


def test_a_guest_can_be_cut_off(guests: Callable[..., Guest]) -> None:
    server, client = guests("server"), guests("client")
    server.write("/etc/nginx/conf.d/hello.conf", SITE)
    server.systemctl("start", "nginx")
    fetch = f"curl -fsS --max-time 2 http://server:{PORT}/"
    assert client.wait_until(fetch, 10) == "hello"

    client.cut()
    client.cut()
    assert client.run(fetch, check=False).returncode
    client.heal()
    assert client.wait_until(fetch, 10) == "hello"

    server.cut()
    with pytest.raises(CommandError, match="client: "):
        client.run(fetch)
    server.heal()
    assert client.wait_until(fetch, 10) == "hello"


def test_a_disk_can_be_full(guests: Callable[..., Guest]) -> None:
    guest = guests("one")
    guest.write("/var/lib/thing/kept", "text", 0o600, "nobody:nogroup")
    guest.run("chown nobody /var/lib/thing && chmod 750 /var/lib/thing")
    with pytest.raises(CommandError):
        guest.fill_disk("/var/lib/thing")

    guest.limit_disk("/var/lib/thing", "1M")
    write = "head -c 100000 /dev/zero >/var/lib/thing/more"
    guest.fill_disk("/var/lib/thing")
    assert "No space left" in guest.run(write, check=False, user="nobody").stderr
    guest.free_disk("/var/lib/thing")
    guest.run(write, user="nobody")
    assert guest.read("/var/lib/thing/kept") == "text"
    assert guest.run("stat -c '%U %a' /var/lib/thing").stdout == "nobody 750\n"


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_the_projects_programs_run(guests: Callable[..., Guest], user: str) -> None:
    guest = guests("one")
    programs = "/opt/zk0d/current/bin"
    for command in ("zk0d --help", "zk0bot version", "flower-superlink --help"):
        assert guest.run(f"{programs}/{command}", user=user, timeout=120).stdout
    guest.run([f"{programs}/python", "-c", "import torch, lerobot"], user=user, timeout=300)
    found = guest.run([f"{programs}/python", "-c", "import zk0d; print(zk0d.__file__)"], user=user)
    assert found.stdout == "/opt/zk0d/source/zk0d/__init__.py\n"
    # as a service sees it
    guest.run(
        f"systemd-run --quiet --wait --pipe -p DynamicUser=yes -p ProtectHome=yes"
        f" -p ProtectSystem=strict {programs}/zk0d --help"
    )


def test_units_are_installed(guests: Callable[..., Guest], tmp_path: Path) -> None:
    texts = {
        "zk0d-server.target": "[Unit]\nWants=zk0d-thing.service\n"
        "[Install]\nWantedBy=multi-user.target\n",
        "zk0d-thing.service": "[Service]\nUser=zk0d-thing\nExecStart=/bin/sleep infinity\n",
        "zk0d-thing.service.d/more.conf": "[Service]\nEnvironment=MORE=yes\n",
        "sysusers.d/zk0d.conf": "u zk0d-thing - 'A thing' /var/lib/zk0d\n",
        "tmpfiles.d/zk0d.conf": "d /var/lib/zk0d 0750 zk0d-thing zk0d-thing\n",
        "README.md": "no unit\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    guest = guests("one", environment=False)
    units = install_units(guest, ["server", "client"], tmp_path)
    assert units == ["zk0d-server.target", "zk0d-thing.service"]
    guest.restart()
    state = guest.unit_state("zk0d-thing.service")
    assert (state["ActiveState"], state["Environment"]) == ("active", "MORE=yes")
    assert guest.run("stat -c '%U %a' /var/lib/zk0d").stdout == "zk0d-thing 750\n"
