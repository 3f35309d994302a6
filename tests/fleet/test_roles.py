"""Each role's Molecule scenario, and what ansible-lint says of the collection."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fleet.conftest import ANSIBLE, Releases, run_ansible
from tests.fleet.readmes import readme
from tests.guests.environment import REPOSITORY
from tests.guests.guest import INIT, INIT_INSIDE
from tests.guests.podman import podman
from tests.setup.releases import make_release
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ClientSettings
from zk0d.machine.certificates import make_certificates
from zk0d.machine.keys import make_node_key

MOLECULE = ANSIBLE / "extensions"
SCENARIOS = sorted(path.parent.name for path in MOLECULE.glob("molecule/*/molecule.yml"))
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir())


@pytest.fixture(scope="module")
def materials(
    releases: Releases, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the scenarios find on the controller."""
    folder = tmp_path_factory.mktemp("materials")
    for version in ("0.1.0", "0.1.1"):
        (folder / f"zk0d-{version}").symlink_to(releases.release(version))
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"type": "a stand-in"}\n')
    for name in ("node", "stranger"):
        make_node_key(folder / name)
    make_certificates(folder / "tls", ["own.example.org"])
    for suffix in ("crt", "key"):
        shutil.copy(folder / f"tls/server.{suffix}", folder / f"own.{suffix}")
    _make_air_gap(folder / "air-gap")
    return folder


def _make_air_gap(folder: Path) -> None:
    """A release with a wheelhouse that holds uv, as ``make release WHEELHOUSE=1`` fills it."""
    make_release(folder, "0.3.0", constraints=_pin_of_uv())
    (folder / "uv").unlink()
    shutil.copy(REPOSITORY / "systemd/zk0d-release", folder)
    wheels = folder / "wheelhouse"
    pins = folder / "pins.txt"
    pins.write_text(_pin_of_uv())
    tools = folder / "tools"  # an environment that uv made has no pip
    subprocess.run([sys.executable, "-m", "venv", tools], check=True, timeout=120)
    command = [str(tools / "bin/pip"), "download", "-q", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "-d", str(wheels), "-r", str(pins)], check=True, timeout=300)


def _pin_of_uv() -> str:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines(keepends=True)
    start = next(at for at, line in enumerate(lines) if line.startswith("uv=="))
    end = next(at for at in range(start + 1, len(lines)) if lines[at][0] not in " ")
    return "".join(line for line in lines[start:end] if "#" not in line)


@pytest.mark.guest
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(
    scenario: str, image: str, releases: Releases, materials: Path, recordings_folder: Path
) -> None:
    releases.installed("0.1.1")
    env = {
        "MOLECULE_IMAGE": image,
        "MOLECULE_INIT": INIT_INSIDE,
        "MOLECULE_EPHEMERAL_DIRECTORY": str(materials / f"molecule-{scenario}"),
        "ZK0D_INIT": str(INIT),
        "ZK0D_PYTHON": sys.base_prefix,
        "ZK0D_PACKAGES": sysconfig.get_path("purelib"),
        "ZK0D_INSTALLED": str(releases.installed("0.1.0").parent),
        "ZK0D_RELEASES": str(materials),
        "ZK0D_RECORDINGS": str(recordings_folder),
    }
    config = MOLECULE / "molecule/config.yml"
    command = ["molecule", "--base-config", str(config), "test", "--scenario-name", scenario]
    try:
        run_ansible(command, MOLECULE, env=env, timeout=1100)
    finally:
        text = (MOLECULE / f"molecule/{scenario}/molecule.yml").read_text()
        for platform in yaml.safe_load(text)["platforms"]:
            podman("rm", "--force", "--ignore", "--time=2", platform["name"], check=False)


@pytest.mark.slow
@pytest.mark.long
def test_ansible_lint_finds_nothing() -> None:
    done = run_ansible(
        ["ansible-lint", "--offline", "--profile", "production", "--nocolor"], ANSIBLE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_collection_can_be_built(tmp_path: Path) -> None:
    run_ansible(["ansible-galaxy", "collection", "build", "--output-path", str(tmp_path)], ANSIBLE)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as collection:
        names = set(collection.getnames())
    assert {"MANIFEST.json", "meta/runtime.yml", "CHANGELOG.md", "playbooks/site.yml"} <= names
    assert {f"roles/{role}/meta/argument_specs.yml" for role in ROLES} <= names
    assert not [name for name in names if name.startswith("inventory/")], "these are examples"


@pytest.mark.parametrize("role", ROLES)
def test_the_specs_are_the_defaults(role: str) -> None:
    folder = ANSIBLE / "roles" / role
    defaults = yaml.safe_load((folder / "defaults/main.yml").read_text())
    specs = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert list(options) == list(defaults) or set(options) == set(defaults)
    for name, option in options.items():
        assert option.get("default") == defaults[name], name
        assert option["description"]


#: Variables of zk0d_client that are keys of [limits].
LENT = ("hours", "priority", "only_when_idle", "on_battery", "gpu_max_celsius", "gpu_power_watts")


def test_limits_that_have_variables_are_those_of_the_settings() -> None:
    defaults = yaml.safe_load((ANSIBLE / "roles/zk0d_client/defaults/main.yml").read_text())
    limits = LimitsSettings().model_dump(by_alias=False)
    assert {name: defaults[f"zk0d_client_{name}"] for name in LENT} == {
        name: limits[name] for name in LENT
    }


def written_by_the_role(
    folder: Path, given: dict[str, Any], contributor: str = "", there: str = ""
) -> ClientSettings:
    """A contributor's settings by the role's own task, with its defaults and what a host sets.

    ``there`` is the file that ``zk0bot client init`` made.
    """
    role = ANSIBLE / "roles/zk0d_client"
    tasks = yaml.safe_load((role / "tasks/each/configure.yml").read_text())
    (task,) = [each for each in tasks if each["name"] == "Write the settings"]
    file = folder / "client.toml"
    del task["notify"], task["ansible.builtin.copy"]["validate"]
    task["ansible.builtin.copy"]["dest"] = str(file)
    variables = {f"zk0d_client_{name}": value for name, value in given.items()} | {
        "zk0d_client_contributor": contributor,
        "zk0d_client_there": {"content": base64.b64encode(there.encode()).decode()},
    }
    (folder / "given.yml").write_text(yaml.safe_dump(variables))
    files = [role / "defaults/main.yml", *sorted(role.glob("vars/main/*")), folder / "given.yml"]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(file) for file in files],
        "tasks": [task],
    }
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    run_ansible(["ansible-playbook", "-c", "local", str(folder / "play.yml")], ANSIBLE)
    return ClientSettings.load(file)


@pytest.mark.slow
def test_limits_reach_the_settings_file(tmp_path: Path) -> None:
    def written(**variables: Any) -> ClientSettings:
        given = {"name": "a", "dataset": "local:/srv/a", **variables}
        return written_by_the_role(tmp_path, given)

    assert "limits" not in written().model_fields_set, "an older version knows fewer"
    lent = {
        "hours": "22:00-07:00",
        "priority": ["steam"],
        "only_when_idle": True,
        "on_battery": True,
        "gpu_max_celsius": 80,
        "gpu_power_watts": 300,
    }
    assert set(lent) == set(LENT)
    made = written(**lent, device="cuda:1", settings={"limits": {"gpu-power-watts": 250}})
    assert made.learner.device == "cuda:1"
    assert {name: getattr(made.limits, name) for name in LENT} == {**lent, "gpu_power_watts": 250}
    shared = ["cuda:0", "cuda:1"]
    assert written(devices=shared).learner.all_devices == tuple(shared)


@pytest.mark.slow
@pytest.mark.parametrize("playbook", ["site", "upgrade", "drain", "uninstall"])
@pytest.mark.parametrize("inventory", ["lab", "fleet"])
def test_the_examples_are_understood(playbook: str, inventory: str) -> None:
    command = ["ansible-playbook", "-i", f"inventory/{inventory}", f"{playbook}.yml"]
    run_ansible([*command, "--syntax-check"], ANSIBLE)


def ask_inventory(name: str, *command: str) -> str:
    return run_ansible([command[0], "-i", f"inventory/{name}", *command[1:]], ANSIBLE).stdout


@pytest.mark.slow
def test_the_example_of_a_lab_has_five_hosts() -> None:
    listed = json.loads(ask_inventory("lab", "ansible-inventory", "--list"))
    assert listed["coordinator"]["hosts"] == ["hub"]
    hosts = listed["contributors"]["hosts"]
    assert hosts == ["left-bench", "right-bench", "gpu-server", "shared-bench"]
    left = listed["_meta"]["hostvars"]["left-bench"]
    assert left["zk0d_client_dataset"] == "local:/srv/recordings/left"
    assert left["zk0d_client_settings"] == {"limits": {"max-steps": 500}}
    shared = listed["_meta"]["hostvars"]["shared-bench"]["zk0d_client_contributors"]
    assert [(each["name"], each["device"]) for each in shared] == [
        ("ann", "cuda:0"),
        ("bob", "cuda:1"),
    ]
    said = ask_inventory(
        "lab", "ansible", "left-bench", "-m", "debug", "-a", "var=zk0d_client_coordinator"
    )
    assert "192.0.2.10:9443" in said


@pytest.mark.slow
def test_the_example_of_a_fleet_has_fifty_nodes_in_groups() -> None:
    listed = json.loads(ask_inventory("fleet", "ansible-inventory", "--list"))
    groups = listed["contributors"]["children"]
    nodes = [host for group in groups for host in listed[group]["hosts"]]
    assert (len(groups), len(nodes), len(set(nodes))) == (3, 50, 50)
    assert len(listed["coordinator"]["hosts"]) == 1
    of = listed["_meta"]["hostvars"]
    assert of[nodes[0]]["nvidia_driver_branch"] == "580", "of its own group"
    assert all(of[node]["zk0d_client_coordinator"] == "hub.example.org:9443" for node in nodes)
    said = ask_inventory(
        "fleet", "ansible", "monitoring", "-m", "debug", "-a", "var=monitoring_targets"
    )
    watched = re.findall(r"name: (\S+)", said)
    assert sorted(watched) == sorted(["hub", *nodes])


def test_variables_of_groups_are_explained() -> None:
    for path in sorted((ANSIBLE / "inventory").rglob("group_vars/*.yml")):
        lines = path.read_text().splitlines()
        assert lines[0] == "---"
        assert lines[1].startswith("# "), path


def test_only_variables_of_roles_are_in_the_examples() -> None:
    known = {
        name
        for role in ROLES
        for name in yaml.safe_load((ANSIBLE / f"roles/{role}/defaults/main.yml").read_text())
    }
    for path in (ANSIBLE / "inventory").rglob("group_vars/*.yml"):
        for name in yaml.safe_load(path.read_text()):
            assert name in known or name.startswith("ansible_"), f"{path}: {name}"


@pytest.mark.parametrize("role", ROLES)
def test_readmes_are_fresh(role: str) -> None:
    folder = ANSIBLE / "roles" / role
    assert (folder / "README.md").read_text() == readme(folder)
