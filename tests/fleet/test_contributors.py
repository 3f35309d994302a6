"""Several contributors of one host in Ansible: what each is, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.fleet.conftest import ANSIBLE, Playbooks, run_ansible
from tests.fleet.test_roles import written_by_the_role
from zk0d.config.datasets import DatasetSettings
from zk0d.config.machine import ClientSettings
from zk0d.machine import contributors, instances, setup
from zk0d.machine.certificates import make_certificates
from zk0d.machine.units import SYSTEM_FOLDER

ROLE = ANSIBLE / "roles/zk0d_client"
SPECS = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
OPTIONS = SPECS["main"]["options"]
KEYS = OPTIONS["zk0d_client_contributors"]["options"]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "contributors_filter", ANSIBLE / "plugins/filter/contributors.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILTER = _load()
USUAL: dict[str, Any] = {
    "node": "bench",
    "coordinator": "hub:9443",
    "dataset": "local:/srv/usual",
    "datasets": [],
    "device": "auto",
    "devices": [],
    "hours": "",
    "priority": [],
    "only_when_idle": False,
    "on_battery": False,
    "gpu_max_celsius": 0,
    "gpu_power_watts": 0,
    "settings": {},
    "key": "",
    "hf_token": "",
    "metrics_from": [],
}


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "dataset": f"local:/srv/{name}", **more}


def refused(*entries: Any, **usual: Any) -> list[str]:
    pattern = rf"(?:{contributors.NAME.pattern})\Z"
    said: list[str] = FILTER.contributors_refused(list(entries), {**USUAL, **usual}, pattern)
    return said


def made(*entries: Any, **usual: Any) -> dict[str, Any]:
    of: dict[str, Any] = FILTER.contributors(list(entries), {**USUAL, **usual})
    return of


def test_the_filter_knows_what_the_role_tells_it() -> None:
    usual = yaml.safe_load((ROLE / "vars/main/contributors.yml").read_text())["zk0d_client_usual"]
    assert set(re.findall(r"'(\w+)':", usual)) == set(USUAL)


def test_a_host_without_a_list_has_one_contributor_without_a_name() -> None:
    one = made()
    assert list(one) == [""]
    assert (one[""]["folder"], one[""]["at"], one[""]["options"]) == ("/etc/zk0d", "", [])
    assert one[""]["node"] == "bench"
    assert one[""]["settings"] == {
        "name": "bench",
        "dataset-uri": "local:/srv/usual",
        "coordinator": {"address": "hub:9443"},
    }
    assert refused() == []


def test_an_entry_comes_before_the_hosts_variables() -> None:
    limits = {"limits": {"max-steps": 500, "power-share": 0.5}}
    ann = entry("ann", device="cuda:0", hours="22:00-07:00", settings={"limits": {"max-steps": 9}})
    bob = entry("bob", devices=["cuda:1", "cuda:2"], on_battery=False, port=9503)
    of = made(ann, bob, settings=limits, device="cuda:3", hours="01:00-02:00", on_battery=True)
    assert of["ann"]["settings"]["learner"] == {"device": "cuda:0"}
    assert of["ann"]["settings"]["limits"] == {
        "hours": "22:00-07:00",
        "on-battery": True,
        "max-steps": 9,
        "power-share": 0.5,
    }
    assert of["bob"]["settings"]["learner"] == {"devices": ["cuda:1", "cuda:2"]}
    assert of["bob"]["settings"]["limits"] == {"hours": "01:00-02:00", **limits["limits"]}
    assert of["bob"]["settings"]["supernode"] == {"port": 9503, "metrics-port": 9504}
    assert of["bob"]["settings"]["superexec"] == {"metrics-port": 9505}
    assert of["ann"]["folder"] == str(contributors.home(SYSTEM_FOLDER, "ann"))
    assert of["ann"]["options"] == [f"{contributors.OPTION}=ann"]


def test_several_recordings_are_in_place_of_one() -> None:
    several = [{"uri": "local:/srv/cube", "last": 50}, {"uri": "me/cup", "weight": 2.0}]
    of = made({"name": "ann", "datasets": several}, entry("bob"), {"name": "eve"})
    assert of["ann"]["settings"]["dataset"] == several
    assert ClientSettings.parse(of["ann"]["settings"], where="ann").dataset_uri is None
    assert of["bob"]["settings"]["dataset-uri"] == "local:/srv/bob"
    assert FILTER.contributor_lent(of) == [
        {"contributor": "ann", "uri": "local:/srv/cube"},
        {"contributor": "ann", "uri": "me/cup"},
        {"contributor": "bob", "uri": "local:/srv/bob"},
        {"contributor": "eve", "uri": "local:/srv/usual"},
    ]
    host = made(datasets=several)[""]
    assert (host["settings"]["dataset"], "dataset-uri" in host["settings"]) == (several, False)
    # One that an entry names alone is not beside the host's.
    one = made(entry("ann"), datasets=several)["ann"]["settings"]
    assert (one["dataset-uri"], "dataset" in one) == ("local:/srv/ann", False)


def test_a_table_of_recordings_is_that_of_the_settings() -> None:
    fields = {field.alias or name for name, field in DatasetSettings.model_fields.items()}
    for options in (OPTIONS["zk0d_client_datasets"]["options"], KEYS["datasets"]["options"]):
        assert set(options) == fields


def test_a_node_is_called_as_zk0bot_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0d.cli import client

    for host in ("bench", "a-host-with-a-name-of-32-letters"):
        monkeypatch.setattr("zk0d.cli.client.host_name", lambda host=host: host)
        usual = client.usual_name(contributors.home(SYSTEM_FOLDER, "ann"))
        assert FILTER.contributor_nodes([entry("ann")], host) == [usual]
    assert FILTER.contributor_nodes([entry("ann", node="her")], "bench") == ["her"]
    assert FILTER.contributor_nodes([], "bench") == ["bench"]


@pytest.mark.parametrize(
    ("entries", "usual", "says"),
    [
        ([entry("ann"), entry("ann")], {}, "two entries have the name ann"),
        ([entry("Ann")], {}, "Ann is not a name; write 1 to 16 of a-z"),
        ([entry("ann\n")], {}, "is not a name"),
        ([{"dataset": "x/y"}], {}, "each entry is a dictionary with a name"),
        (["ann"], {}, "each entry is a dictionary with a name"),
        ([entry("ann", hour="1")], {}, "ann has hour; an entry may have dataset, "),
        ([entry("ann", node="x"), entry("bob", node="x")], {}, "two entries have the node x"),
        (
            [entry("ann", port=9500), entry("bob", port=9502)],
            {},
            "ann and bob have the port 9502",
        ),
        (
            [entry("ann", port=9500, settings={"supernode": {"port": 9501}})],
            {},
            "ann has the port 9501 twice",
        ),
        ([entry("ann", port=9500), entry("bob")], {}, "some entries have a port and some"),
        (
            [entry("ann", device="cuda:1"), entry("bob", devices=["cuda:0", "cuda:1"])],
            {},
            "ann and bob have the GPU cuda:1",
        ),
        ([entry("ann", devices=["cuda:0", "cuda:0"])], {}, "ann has the GPU cuda:0 twice"),
        (
            [entry("ann", device="cuda"), entry("bob", device="cuda:0")],
            {},
            "ann and bob have the GPU cuda:0",
        ),
        ([entry("ann"), entry("bob")], {"device": "cuda:0"}, "ann and bob have the GPU cuda:0"),
        (
            [entry("ann", device="cuda:0", devices=["cuda:1"])],
            {},
            "ann has device and devices; leave one of them out",
        ),
        (
            [entry("ann", datasets=[{"uri": "a/b"}])],
            {},
            "ann has dataset and datasets; leave one of them out",
        ),
        ([entry("ann", key="k"), entry("bob", key="k")], {}, "two entries have one key"),
        ([entry("ann")], {"key": "k"}, "zk0d_client_key is one node's"),
        ([entry("ann")], {"gpu_power_watts": 250}, "ann has gpu-power-watts, which zk0d sets"),
        ([entry("ann", gpu_power_watts=250)], {}, "ann has gpu_power_watts; an entry may have"),
    ],
)
def test_contributors_that_cannot_be_are_refused(
    entries: list[Any], usual: dict[str, Any], says: str
) -> None:
    assert says in refused(*entries, **usual)[0]


def test_contributors_that_can_be_are_not_refused() -> None:
    assert refused(entry("ann", device="cuda:0", key="a"), entry("bob", device="cuda:1")) == []
    assert refused(entry("ann", port=9500), entry("bob", port=9503)) == []
    assert refused(entry("ann", device="cpu"), entry("bob", device="cpu")) == []


def test_the_keys_of_an_entry_are_those_of_the_spec() -> None:
    every = dict.fromkeys(KEYS) | {"name": "ann"}
    assert refused(every) == []
    assert "strange" in refused({**every, "strange": 1})[0]
    said = refused({**every, "strange": 1})[0].partition("may have ")[2]
    assert set(said.split(", ")) == set(KEYS)


def test_places_and_ports_are_those_that_zk0bot_chooses() -> None:
    ports = instances.port_settings(Path("/nowhere"))
    chosen = setup.merged(setup._paths_of_named("ann"), ports)
    assert {table: set(keys) for table, keys in FILTER.PLACES.items()} == {
        table: set(keys) for table, keys in chosen.items()
    }
    assert {(table, key) for table, keys in ports.items() for key in keys} == set(FILTER.PORTS)
    first = ports["supernode"]["port"]
    settings = made(entry("ann", port=first))["ann"]["settings"]
    assert {table: settings[table] for table in ports} == ports


@pytest.mark.slow
def test_each_has_its_settings_in_a_file_of_its_own(tmp_path: Path) -> None:
    """What zk0bot client init chose stays; the rest is the inventory's, also the second time."""
    home = tmp_path / "etc/clients/ann"
    setup.set_up_client(home, "x", "old:1", b"")
    there = (home / "client.toml").read_text()
    chosen = ClientSettings.load(home / "client.toml")
    given: dict[str, Any] = {
        "name": "bench",
        "coordinator": "hub:9443",
        "dataset": "local:/srv/usual",
        "contributors": [
            entry("ann", device="cuda:0", settings={"limits": {"max-steps": 5}}),
            entry("bob", device="cuda:1"),
        ],
    }
    first = written_by_the_role(tmp_path, given, "ann", there)
    text = (tmp_path / "client.toml").read_text()
    assert (first.name, first.dataset_uri) == ("bench-ann", "local:/srv/ann")
    assert (first.learner.device, first.limits.max_steps) == ("cuda:0", 5)
    assert first.coordinator.address == "hub:9443"
    for table, keys in FILTER.PLACES.items():
        for key in keys:
            name = key.replace("-", "_")
            assert getattr(getattr(first, table), name) == getattr(getattr(chosen, table), name)
    assert written_by_the_role(tmp_path, given, "ann", text) == first
    assert (tmp_path / "client.toml").read_text() == text
    given["contributors"][0]["port"] = 9530
    moved = written_by_the_role(tmp_path, given, "ann", text)
    assert (moved.supernode.port, moved.superexec.metrics_port) == (9530, 9532)


INVENTORY = """\
all:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    cuda_torch_release: /nowhere
  children:
    coordinator: {hosts: {hub: {}}}
    contributors: {hosts: {bench: {}, other: {zk0d_client_name: bench-ann}}}
"""


def before_a_change(folder: Path, listed: list[Any]) -> str:
    """What the playbook says of a list, before it changes a host."""
    inventory = yaml.safe_load(INVENTORY)
    hosts = inventory["all"]["children"]["contributors"]["hosts"]
    hosts["bench"]["zk0d_client_contributors"] = listed
    if any(each.get("node") for each in listed):
        del hosts["other"]
    done = Playbooks(folder, yaml.safe_dump(inventory)).run("site.yml", check=False)
    assert done.returncode != 0
    assert "PLAY [Drivers and software]" not in done.stdout
    return " ".join(f"{done.stdout} {done.stderr}".split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ([entry("ann")], "Two contributors have one name (bench-ann, bench-ann)"),
        (
            [entry("ann", node="a", hour="22:00-07:00")],
            "zk0d_client_contributors.hour. Supported parameters include",
        ),
        ([{"node": "a"}], "missing required arguments: name found in zk0d_client_contributors"),
    ],
    ids=["a node's name twice", "an unknown key", "no name"],
)
def test_the_preflight_refuses(tmp_path: Path, listed: list[Any], says: str) -> None:
    assert says in before_a_change(tmp_path, listed)


def looked_at(folder: Path, listed: list[Any], part: str = "look", **variables: Any) -> str:
    """What the role says of a list before it touches the host."""
    role = {"name": "zk0d_client", "tasks_from": part}
    given = {"coordinator": "hub:9443", "contributors": listed, **variables}
    task = {
        "ansible.builtin.include_role": role,
        "vars": {f"zk0d_client_{name}": value for name, value in given.items()},
    }
    play = {"hosts": "contributors", "gather_facts": False, "tasks": [task]}
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    books = Playbooks(folder, INVENTORY)
    done = books.run(str(folder / "play.yml"), "--limit", "bench", check=False)
    return " ".join(done.stdout.split())


@pytest.mark.slow
def test_the_role_refuses_in_one_sentence(tmp_path: Path) -> None:
    twice = [entry("ann", device="cuda:1"), entry("bob", device="cuda:1")]
    assert (
        "zk0d_client_contributors of bench: ann and bob have the GPU cuda:1. Nothing was changed."
        in looked_at(tmp_path, twice)
    )
    said = looked_at(tmp_path, [entry("ann"), entry("bob", dataset="~/arm")])
    assert "zk0d_client_contributors: bob.dataset: ~/arm of bench is not a dataset's" in said
    said = looked_at(tmp_path, [{"name": "ann", "datasets": [{"uri": "/srv/a"}, {"uri": "./b"}]}])
    assert "zk0d_client_contributors: ann.dataset: ./b of bench is not a dataset's" in said
    said = looked_at(tmp_path, [entry("ann", node="Her")])
    assert "zk0d_client_contributors: ann.node: Her of bench is not a name" in said
    assert "failed=0" in looked_at(tmp_path, [entry("ann"), entry("bob")])


@pytest.mark.slow
def test_recordings_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "cube/meta").mkdir(parents=True)
    (tmp_path / "cube/meta/info.json").touch()
    cube, cup = {"uri": f"local:{tmp_path}/cube"}, {"uri": f"local:{tmp_path}/cup"}
    ann, bob = entry("ann", dataset="me/cup"), {"name": "bob", "datasets": [cube, cup]}
    said = looked_at(tmp_path, [ann, bob], "preflight")
    assert f"zk0d_client_contributors: bob.dataset: {cup['uri']} on bench is no LeRobot" in said
    bob["datasets"] = [cube]
    assert "failed=0" in looked_at(tmp_path, [ann, bob], "preflight")


@pytest.mark.slow
def test_no_key_of_the_list_is_shown(tmp_path: Path) -> None:
    canary = "canary-of-the-vault"
    listed = [entry("ann", key=canary, hf_token=canary, dataset="~/arm")]
    assert canary not in looked_at(tmp_path, listed)


@pytest.mark.slow
@pytest.mark.parametrize("purge", [False, True])
def test_one_that_left_the_list_goes(tmp_path: Path, purge: bool) -> None:
    """By the role's own tasks in a folder instead of the system's; zk0bot only notes its words."""
    said = tmp_path / "said"
    bot = tmp_path / "zk0bot"
    bot.write_text(f'#!/bin/sh\necho "$@" >>{said}\n')
    bot.chmod(0o755)
    tasks = tmp_path / "tasks"
    for path in (ROLE / "tasks/left.yml", ROLE / "tasks/each/left.yml"):
        text = path.read_text().replace("/etc/", f"{tmp_path}/etc/")
        text = text.replace("/opt/zk0d/current/bin/zk0bot", str(bot))
        copy = tasks / path.relative_to(ROLE / "tasks")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text.replace("notify: Read the contributor's units", "notify: []"))
    mark = yaml.safe_load((ROLE / "vars/main/contributors.yml").read_text())["zk0d_client_mark"]
    etc = tmp_path / "etc/zk0d"
    for name in ("ann", "bob", "own"):
        home = etc / "clients" / name
        home.mkdir(parents=True)
        (home / "client.toml").write_text(f"{mark if name != 'own' else '# mine'}\nname = 'x'\n")
        (home / "node.key").write_text("k")
        unit = tmp_path / f"etc/systemd/system/zk0d-client@{name}.service.d"
        unit.mkdir(parents=True)
        (unit / "60-metrics.conf").write_text("# Written by zk0bot's Ansible role.\n")
        (unit / "override.conf").write_text("[Service]\n")
    (etc / "client.toml").write_text(f"{mark}\nname = 'x'\n")
    play = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": {"zk0d_client_mark": mark, "zk0d_client_purge": purge},
            "tasks": [
                {
                    "ansible.builtin.include_tasks": str(tasks / "left.yml"),
                    "vars": {"zk0d_client_all": {"bob": {}}},
                }
            ],
        }
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    command = ["ansible-playbook", "-c", "local", str(tmp_path / "play.yml")]
    run_ansible(command, ANSIBLE)
    lines = sorted(said.read_text().splitlines())
    ann = etc / "clients/ann"
    if purge:
        assert lines == ["client remove --contributor=ann --yes", "client stop"]
        return
    assert lines == ["client stop", "client stop --contributor=ann"]
    assert sorted(path.name for path in ann.iterdir()) == ["client.toml.removed", "node.key"]
    assert (etc / "client.toml.removed").exists()
    kept = sorted(
        f"{path.parent.name}/{path.name}" for path in tmp_path.glob("etc/systemd/system/*/*")
    )
    assert kept == [
        "zk0d-client@ann.service.d/override.conf",
        "zk0d-client@bob.service.d/60-metrics.conf",
        "zk0d-client@bob.service.d/override.conf",
        "zk0d-client@own.service.d/60-metrics.conf",
        "zk0d-client@own.service.d/override.conf",
    ]
    assert contributors.names(etc) == ["bob", "own"]
    said.unlink()
    run_ansible(command, ANSIBLE)
    assert not said.exists(), "a second run finds nothing to do"


class Host:
    """The role with a folder instead of the system's, and zk0bot as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.etc = folder, folder / "etc/zk0d"
        self.etc.mkdir(parents=True)
        (folder / "opt/bin").mkdir(parents=True)
        own = f"{Path(sys.executable).parent}/zk0bot"
        # Only init knows no folder but the system's; what systemd would do is left out.
        self._program(
            "bin/zk0bot",
            f'case "$1 $2" in "client init") exec {own} "$@" --folder={self.etc} ;;\n'
            f'  "client stop" | "client remove") echo "$@" >>{folder}/said ;;\n'
            f'  *) exec {own} "$@" ;;\nesac\n',
        )
        self._program("bin/zk0d-release", "echo nothing to do >&2\n")
        role = folder / "roles/zk0d_client"
        shutil.copytree(ROLE, role)
        for path in role.glob("tasks/**/*.yml"):
            text = path.read_text().replace("/opt/zk0d/current", f"{folder}/opt")
            text = text.replace("'/opt/zk0d/' ~ zk0d_client_version ~ '/bin", f"'{folder}/opt/bin")
            path.write_text(re.sub("/etc/(zk0d|systemd)", rf"{folder}/etc/\1", text))
        # In the way of the role's own, which knows the system's folder.
        filter_ = ANSIBLE / "plugins/filter/contributors.py"
        text = filter_.read_text().replace('"/etc/zk0d"', f'"{self.etc}"')
        (folder / "filters").mkdir()
        (folder / "filters/contributors.py").write_text(text)
        shutil.copy(ANSIBLE / "plugins/filter/to_toml.py", folder / "filters")
        authority = make_certificates(folder / "tls", ["hub"]).ca.read_text()
        self._variables = {
            "zk0d_client_version": "1",
            "zk0d_client_coordinator": "hub:9443",
            "zk0d_client_ca": authority,
        }

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "opt" / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def apply(self, **variables: Any) -> tuple[int, list[dict[str, str]]]:
        """How many tasks changed something, and the nodes that the coordinator is told."""
        inventory = yaml.safe_load(INVENTORY)
        contributors_ = inventory["all"]["children"]["contributors"]
        given = {f"zk0d_client_{name}": value for name, value in variables.items()}
        contributors_["hosts"] = {"bench": {**self._variables, **given}}
        site = yaml.safe_load((ANSIBLE / "playbooks/site.yml").read_text())
        (hub,) = [play["roles"][0] for play in site if play["name"] == "The coordinator"]
        told = {
            "ansible.builtin.copy": {
                "dest": str(self.folder / "told"),
                "content": "{{ nodes | to_json }}",
            },
            "vars": {"nodes": hub["vars"]["zk0d_server_contributors"]},
            "changed_when": False,
        }
        tasks = [
            {"ansible.builtin.include_role": {"name": "zk0d_client", "tasks_from": part}}
            for part in ("key", "configure")
        ]
        play = {"hosts": "contributors", "gather_facts": False, "tasks": [*tasks, told]}
        (self.folder / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
        command = ["ansible-playbook", "-i", str(self.folder / "hosts.yml")]
        env = {
            "ANSIBLE_ROLES_PATH": str(self.folder / "roles"),
            "ANSIBLE_FILTER_PLUGINS": str(self.folder / "filters"),
        }
        done = run_ansible([*command, str(self.folder / "play.yml")], ANSIBLE, env=env)
        (changed,) = re.findall(r"^bench .*changed=(\d+)", done.stdout, re.M)
        return int(changed), json.loads((self.folder / "told").read_text())

    def settings(self, name: str) -> ClientSettings:
        return ClientSettings.load(contributors.home(self.etc, name) / "client.toml")


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    # A short name: the path of a socket has a limit.
    return Host(tmp_path_factory.mktemp("host"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_gets_two_contributors_loses_one_and_gets_it_back(host: Host) -> None:
    ann, bob = entry("ann", device="cuda:0"), entry("bob", node="arm", device="cuda:1")
    changed, nodes = host.apply(name="bench", contributors=[ann, bob])
    assert changed
    public = {
        name: (host.etc / f"clients/{name}/node.pub").read_text().strip() for name in ("ann", "bob")
    }
    assert nodes == [
        {"name": "bench-ann", "key": public["ann"]},
        {"name": "arm", "key": public["bob"]},
    ]
    of = {name: host.settings(name) for name in ("ann", "bob")}
    assert [of[name].learner.device for name in of] == ["cuda:0", "cuda:1"]
    ports = {
        port for each in of.values() for port in (each.supernode.port, *each.metrics_ports.values())
    }
    assert len(ports) == 6
    for name in of:
        instances.check_ports(contributors.home(host.etc, name))
    assert not (host.etc / "client.toml").exists(), "none has no name"
    assert host.apply(name="bench", contributors=[ann, bob]) == (0, nodes)

    changed, alone = host.apply(name="bench", contributors=[bob])
    assert alone == nodes[1:]
    assert (host.folder / "said").read_text() == "client stop --contributor=ann\n"
    assert contributors.names(host.etc) == ["bob"]
    assert host.settings("bob") == of["bob"]

    assert host.apply(name="bench", contributors=[ann, bob])[1] == nodes, "with the key that it had"
    assert host.settings("ann") == of["ann"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_without_a_list_is_as_it_was(host: Host) -> None:
    _, nodes = host.apply(name="bench", dataset="local:/srv/a")
    assert nodes == [{"name": "bench", "key": (host.etc / "node.pub").read_text().strip()}]
    assert not (host.etc / "clients").exists()
    assert host.settings("").dataset_uri == "local:/srv/a"
    assert host.apply(name="bench", dataset="local:/srv/a") == (0, nodes)
    # The one without a name ends where others have names.
    _, nodes = host.apply(name="bench", contributors=[entry("ann")])
    assert [node["name"] for node in nodes] == ["bench-ann"]
    assert (host.folder / "said").read_text() == "client stop\n"
    assert (host.etc / "client.toml.removed").exists()
    assert (host.etc / "node.key").exists()
