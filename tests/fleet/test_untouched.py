"""Bad input of all kinds: the playbook names variable, host and cure, and no host was changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fleet.conftest import Playbooks, Releases
from tests.guests.lab import Guest, Lab

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

#: What a login, Ansible's own modules and the clock write.
NOT_COMPARED = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/var/lib/systemd"),
    *("/root/.ansible", "/home/ann/.ansible"),
)

type Inventory = dict[str, Any]


@dataclass(frozen=True)
class Hosts:
    lab: Lab
    hub: Guest
    left: Guest

    def trees(self) -> dict[str, set[str]]:
        return {guest.name: tree(guest) for guest in (self.hub, self.left)}


def tree(guest: Guest) -> set[str]:
    """Every path with kind, mode, owner, size, and when its content and its inode changed."""
    pruned = " -o ".join(f"-path {path}" for path in NOT_COMPARED)
    form = "%p %y %m %u %g %s %T@ %C@ %l\\n"
    listed = guest.run(f"find / -xdev \\( {pruned} \\) -prune -o -printf '{form}'", timeout=120)
    return set(listed.stdout.splitlines())


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Hosts:
    hub, left = (lab.guest(name, environment=False) for name in ("hub", "left"))
    left.run(["useradd", "--create-home", "ann"])
    return Hosts(lab, hub, left)


@pytest.fixture(scope="module")
def inventory(hosts: Hosts, releases: Releases) -> Inventory:
    """One that would do."""
    return {
        "all": {
            "vars": {
                "ansible_connection": "containers.podman.podman",
                "ansible_python_interpreter": "/usr/bin/python3",
                "cuda_torch_release": str(releases.release("0.1.0")),
                "preflight_timeout": 4,
            },
            "children": {
                "coordinator": {"hosts": {"hub": {"ansible_host": hosts.hub.container}}},
                "contributors": {
                    "vars": {
                        "zk0d_client_coordinator": "hub:9443",
                        "zk0d_client_dataset": "local:/srv/recordings",
                    },
                    "hosts": {"left": {"ansible_host": hosts.left.container}},
                },
            },
        }
    }


# What is wrong, in the inventory or on a host, and how a host is put right again.


def every(inventory: Inventory) -> dict[str, Any]:
    return dict_of(inventory["all"]["vars"])


def group(inventory: Inventory, name: str) -> dict[str, Any]:
    return dict_of(inventory["all"]["children"][name])


def host(inventory: Inventory, name: str) -> dict[str, Any]:
    where = "coordinator" if name == "hub" else "contributors"
    return dict_of(group(inventory, where)["hosts"][name])


def dict_of(value: object) -> dict[str, Any]:
    assert isinstance(value, dict)
    return value


def two_of_one_name(inventory: Inventory) -> None:
    here = host(inventory, "left")
    group(inventory, "contributors")["hosts"]["right"] = {**here, "zk0d_client_name": "left"}


def two_coordinators(inventory: Inventory) -> None:
    group(inventory, "coordinator")["hosts"]["hub2"] = {"ansible_host": "192.0.2.1"}


def unreachable(inventory: Inventory) -> None:
    hosts = group(inventory, "contributors")["hosts"]
    # In the middle: one that is there stands before it, and one behind it.
    hosts["lost"] = {"ansible_host": f"{host(inventory, 'left')['ansible_host']}-that-is-not-there"}
    hosts["right"] = {"ansible_host": host(inventory, "hub")["ansible_host"]}


WRONG: dict[str, tuple[Callable[[Inventory], object], tuple[str, ...]]] = {
    "a misspelt variable": (
        lambda i: host(i, "left").update(zk0d_client_datset="x"),
        ("left: zk0d_client_datset is not a variable", "README of the role"),
    ),
    "half a prefix misspelt": (
        lambda i: host(i, "left").update(zk0d_clinet_dataset="x"),
        ("left: zk0d_clinet_dataset is not a variable", "README of the role"),
    ),
    "no release": (
        lambda i: every(i).pop("cuda_torch_release"),
        ("cuda_torch_release: nothing on the controller", "make release", "hub was not changed"),
    ),
    "no coordinator's address": (
        lambda i: group(i, "contributors")["vars"].pop("zk0d_client_coordinator"),
        ("zk0d_client_coordinator: nothing of left is not HOST:PORT",),
    ),
    "no recordings named": (
        lambda i: group(i, "contributors")["vars"].pop("zk0d_client_dataset"),
        ("zk0d_client_dataset: nothing of left is not a dataset's address",),
    ),
    "recordings in a home": (
        lambda i: host(i, "left").update(zk0d_client_dataset="~/arm"),
        ("zk0d_client_dataset: ~/arm of left is not", "write the whole path of a folder"),
    ),
    "recordings somewhere": (
        lambda i: host(i, "left").update(zk0d_client_dataset="local:arm"),
        ("zk0d_client_dataset: local:arm of left is not", "write the whole path of a folder"),
    ),
    "a secret that the vault has not": (
        lambda i: host(i, "left").update(zk0d_client_hf_token="{{ vault_hf_token }}"),
        ("left:", "'vault_hf_token' is undefined", "README of the role zk0d_client"),
    ),
    "a value that is none": (
        lambda i: host(i, "left").update(cuda_torch_backend="rocm"),
        ("left: value of cuda_torch_backend must be one of: auto, pypi,", "got: rocm"),
    ),
    "a value of another type": (
        lambda i: host(i, "left").update(zk0d_client_wait_online="perhaps"),
        ("left: argument 'zk0d_client_wait_online'", "unable to convert to bool"),
    ),
    "two coordinators": (
        two_coordinators,
        ("group coordinator has 2 hosts (hub, hub2) and must have one",),
    ),
    "two of one name": (
        two_of_one_name,
        ("have one name (left, left): set zk0d_client_name",),
    ),
    "a node without a key": (
        lambda i: host(i, "hub").update(zk0d_server_roster=[{"name": "guest-arm", "key": ""}]),
        ("zk0d_server_roster: the entry guest-arm has no public key", "/etc/zk0d/node.pub"),
    ),
    "half a certificate": (
        lambda i: host(i, "hub").update(zk0d_server_certificate="/srv/own.crt"),
        ("zk0d_server_certificate and zk0d_server_key belong together", "hub was not changed"),
    ),
    "recordings that the controller has not": (
        lambda i: every(i).update(lerobot_datasets=[{"name": "a", "folder": "/nowhere"}]),
        ("/nowhere/meta/info.json: is not on the controller", "Correct lerobot_models or"),
    ),
    "one of three cannot be reached": (
        unreachable,
        ("lost: cannot be reached at", "--limit 'all:!lost'"),
    ),
    "no sudo": (
        lambda i: host(i, "left").update(ansible_user="ann"),
        ("left: ann cannot become root there", "--ask-become-pass"),
    ),
}


@pytest.fixture
def refused(
    hosts: Hosts, inventory: Inventory, tmp_path: Path
) -> Callable[[Callable[[Inventory], object]], str]:
    """Runs site.yml with what is wrong, and returns what it said; no host may have changed."""

    def run(spoil: Callable[[Inventory], object]) -> str:
        wrong = copy.deepcopy(inventory)
        spoil(wrong)
        before = hosts.trees()
        done = Playbooks(tmp_path, yaml.safe_dump(wrong)).run("site.yml", check=False)
        said = " ".join(f"{done.stdout} {done.stderr}".split())
        assert done.returncode != 0, said[-2000:]
        assert "not changed" in said or "was changed" in said
        after = hosts.trees()
        for name, files in before.items():
            assert sorted(after[name] ^ files) == [], name
        return said

    return run


@pytest.mark.parametrize("wrong", WRONG)
def test_a_fault_of_the_inventory_is_named(
    wrong: str, refused: Callable[[Callable[[Inventory], object]], str]
) -> None:
    spoil, words = WRONG[wrong]
    said = refused(spoil)
    for part in words:
        assert part in said


def test_a_distribution_that_is_not_supported(
    hosts: Hosts, refused: Callable[[Callable[[Inventory], object]], str]
) -> None:
    left, files = hosts.left, ("/usr/lib/os-release", "/etc/debian_version")
    kept = {path: left.read(path) for path in files}
    left.write(files[0], kept[files[0]].replace('"12"', '"11"').replace("bookworm", "bullseye"))
    left.write(files[1], "11.11\n")
    try:
        said = refused(lambda i: None)
    finally:
        for path, text in kept.items():
            left.write(path, text)
    assert "left: Debian 11.11 is not supported; use Debian 12 or 13, or Ubuntu" in said


def test_no_space(hosts: Hosts, refused: Callable[[Callable[[Inventory], object]], str]) -> None:
    hosts.left.limit_disk("/opt", "16M")
    try:
        said = refused(lambda i: None)
    finally:
        hosts.left.run("umount /opt")
    assert "left: /opt has 16 MiB free and 7000 are needed. Make space, or give" in said
    assert "left was not changed" in said
