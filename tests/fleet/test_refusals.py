"""What the playbooks refuse before they touch a host."""

from __future__ import annotations

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
