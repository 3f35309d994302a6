"""``site.yml`` on three bare guests: the first run and one that changes nothing, in seconds.

By ssh, as people use it. The packages' five gigabytes are mounted, not installed: what is timed is
Ansible and the roles. Beside it the floor of Ansible here: a playbook that asks each guest for its
facts, and no more.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.table import show
from tests.fleet.conftest import Playbooks, Releases, run_ansible
from tests.fleet.test_site import INVENTORY, Hosts
from tests.guests.lab import Guest, Lab, Unavailable, ensure_image
from zk0d.demo.recordings import make_recordings
from zk0d.simulators.task import Sector

FACTS = "- hosts: all\n  tasks:\n    - ansible.builtin.ping:\n"


def main() -> None:
    """Print the table."""
    try:
        image = ensure_image()
    except Unavailable as error:
        print(f"site: {error}")
        return
    with tempfile.TemporaryDirectory(prefix="zk0d-") as name, Lab(image) as lab:
        folder = Path(name)
        recordings = folder / "soreach"
        with contextlib.redirect_stdout(None):
            make_recordings(recordings, Sector(0, 2), 6, first_seed=7)
        hosts, releases = Hosts(lab), Releases(folder)
        for guest in hosts.all:
            releases.give(guest, "0.1.0")
        inventory = INVENTORY.format(
            lab=lab.name, release=releases.release("0.1.0"), recordings=recordings
        )
        inventory = _by_ssh(inventory, hosts.all, lab.name, folder)
        playbooks = Playbooks(folder, inventory)
        (folder / "facts.yml").write_text(FACTS)
        command = ["ansible-playbook", "-i", str(folder / "hosts.yml"), str(folder / "facts.yml")]
        floor = _seconds(lambda: run_ansible(command, folder))
        first = _seconds(lambda: playbooks.run("site.yml"))
        again = _seconds(lambda: playbooks.run("site.yml"))
    rows = [
        ("facts alone", f"{floor:.0f} s", "1"),
        ("site.yml, first run", f"{first:.0f} s", f"{first / floor:.0f}"),
        ("site.yml, nothing to change", f"{again:.0f} s", f"{again / floor:.0f}"),
    ]
    show("three guests", ("", "seconds", "of facts alone"), rows)


def _by_ssh(inventory: str, guests: Sequence[Guest], lab: str, folder: Path) -> str:
    """The same inventory for guests that have an ssh server, which lets a key of ours in."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    for guest in guests:
        guest.run("apt-get install -y -qq openssh-server", timeout=300)
        guest.write("/root/.ssh/authorized_keys", key.with_suffix(".pub").read_text(), 0o600)
        guest.wait_until("systemctl is-active ssh")
        inventory = inventory.replace(f"{lab}-{guest.name}", guest.address)
    options = "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no"
    lines = [f"ansible_ssh_private_key_file: {key}", f'ansible_ssh_common_args: "{options}"']
    return inventory.replace(
        "ansible_connection: containers.podman.podman",
        "\n    ".join(["ansible_user: root", *lines]),
    )


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
