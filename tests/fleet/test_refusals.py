"""What the playbooks refuse before they touch a host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fleet.conftest import Playbooks

pytestmark = pytest.mark.slow

INVENTORY = """\
all:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
    cuda_torch_release: /nowhere
    {variable}: {value}
  children:
    coordinator:
      hosts: {coordinators}
    contributors:
      hosts: {contributors}
"""
UNREACHABLE = "{ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1, ansible_user: x}"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variable": "zk0d_client_datset"}, "zk0d_client_datset is not a variable of these roles"),
        ({"coordinators": "{hub: {}, hub2: {}}"}, "has 2 hosts (hub, hub2) and must have one"),
        ({"coordinators": "{}"}, "has 0 hosts (none) and must have one"),
        (
            {"contributors": "{left: {}, right: {zk0d_client_name: left}}"},
            "Two contributors have one name (left, left)",
        ),
        ({"contributors": f"{{left: {UNREACHABLE}}}"}, "left: cannot be reached at 127.0.0.1"),
    ],
    ids=["a misspelt variable", "two coordinators", "none", "one name twice", "unreachable"],
)
def test_before_a_host_is_touched(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    inventory = {
        "variable": "zk0d_client_wait_online",
        "value": "false",
        "coordinators": "{hub: {}}",
        "contributors": "{left: {}}",
        **changes,
    }
    books = Playbooks(tmp_path, INVENTORY.format(**inventory))
    done = books.run("site.yml", "-e", "preflight_timeout=2", check=False)
    assert done.returncode != 0
    said = " ".join(f"{done.stdout} {done.stderr}".split())
    assert says in said
    assert "PLAY [Drivers and software]" not in said


@pytest.mark.parametrize("dataset", ["~/arm", "local:~/arm", "local:arm", "./arm", "arm", ""])
def test_a_folder_that_a_service_does_not_know_is_refused(tmp_path: Path, dataset: str) -> None:
    said = " ".join(looked_at(tmp_path, dataset).split())
    assert f"zk0d_client_dataset: {dataset or 'nothing'} of left is not a dataset's address" in said
    assert "write the whole path of a folder on that host" in said


@pytest.mark.parametrize("dataset", ["/srv/my arm", "local:/srv/arm", "ann/cubes", "hf:ann/cubes"])
def test_a_datasets_address_is_taken(tmp_path: Path, dataset: str) -> None:
    assert "failed=0" in looked_at(tmp_path, dataset)


def looked_at(folder: Path, dataset: str) -> str:
    """What the role of a contributor says of a dataset before it touches the host."""
    play = folder / "play.yml"
    play.write_text(
        "- hosts: contributors\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.include_role: {name: zk0d_client, tasks_from: look}\n"
        f"      vars:\n        zk0d_client_dataset: {json.dumps(dataset)}\n"
        "        zk0d_client_coordinator: hub:9443\n"
    )
    values = {"variable": "x", "value": "x", "coordinators": "{}", "contributors": "{left: {}}"}
    books = Playbooks(folder, INVENTORY.format(**values))
    return books.run(str(play), check=False).stdout


def test_a_node_without_a_key_is_named(tmp_path: Path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: coordinator\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.include_role: {name: zk0d_server, tasks_from: preflight}\n"
        "      vars:\n        zk0d_server_version: 0.1.0\n        zk0d_server_certificate: ''\n"
        "        zk0d_server_key: ''\n"
        "        zk0d_server_roster: [{name: left-bench, key: ''}]\n"
    )
    values = {"variable": "x", "value": "x", "coordinators": "{hub: {}}", "contributors": "{}"}
    done = Playbooks(tmp_path, INVENTORY.format(**values)).run(str(play), check=False)
    assert done.returncode != 0
    assert "the entry left-bench has no public key" in " ".join(done.stdout.split())
