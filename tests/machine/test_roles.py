"""Whatever else names a service agrees with the one table."""

from __future__ import annotations

import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.config.ports import METRICS_PORTS
from zk0d.machine.roles import SERVICES, Role, Service, files, once, scraped, target, units
from zk0d.services.main import command_line

REPOSITORY = Path(__file__).parents[2]
SYSTEMD = REPOSITORY / "systemd"
each_service = pytest.mark.parametrize("each", SERVICES, ids=lambda each: each.name)


def directive(file: str, key: str) -> list[str]:
    return re.findall(rf"(?m)^{key}=(.*)$", (SYSTEMD / file).read_text())


@each_service
def test_a_unit_agrees_with_the_table(each: Service) -> None:
    unit = f"{each.unit}.service"
    assert directive(unit, "User") == [each.user]
    folder = "/usr/sbin" if each.start == "nginx" else "/opt/zk0d/current/bin"
    (start,) = directive(unit, "ExecStart")
    assert start == f"{folder}/{each.start}" or start.startswith(f"{folder}/nginx -")
    brought = [] if each.every else [target(role) for role in each.roles]
    assert directive(unit, "WantedBy") == directive(unit, "PartOf") == brought
    assert (SYSTEMD / f"{each.unit}.timer").exists() == (0 < each.every < float("inf"))


def test_every_unit_has_a_row() -> None:
    units = {each.unit for each in SERVICES}
    mine = {f"{each.unit}@" for each in SERVICES if Role.CLIENT in each.roles and not each.once}
    assert {path.stem for path in SYSTEMD.glob("*.service")} == units | mine
    for kind in ("socket", "timer"):
        assert {path.stem for path in SYSTEMD.glob(f"*.{kind}")} <= units | mine


@pytest.mark.parametrize("each", [s for s in SERVICES if s.verb], ids=lambda each: each.name)
def test_a_verb_of_zk0d_runs_a_module(each: Service) -> None:
    (role, *_) = each.roles
    given = command_line().parse_args(list(each.argv(role, Path("/etc/zk0d/x.toml"))[1:]))
    assert callable(given.run)
    module = each.verb[0].replace("-", "_")
    assert callable(import_module(f"zk0d.services.{module}").run)


def test_no_two_services_share_a_port() -> None:
    assert len(set(METRICS_PORTS.values())) == len(METRICS_PORTS)


def test_the_settings_have_a_port_for_each_service_that_is_scraped() -> None:
    both = ((ServerSettings(), Role.SERVER), (ClientSettings(name="a"), Role.CLIENT))
    for settings, role in both:
        assert settings.metrics_ports == {each.name: each.metrics for each in scraped(role)}
        off = settings.model_copy(
            update={"metrics": settings.metrics.model_copy(update={"enabled": False})}
        )
        assert off.metrics_ports == {}


def test_a_service_knows_its_own_processes() -> None:
    superlink = next(each for each in SERVICES if each.name == "superlink")
    gateway = next(each for each in SERVICES if each.name == "gateway")
    assert superlink.runs_as("/v/bin/python /v/bin/zk0d superlink --config /etc/zk0d/server.toml")
    assert superlink.runs_as("python -m zk0d.flower.superlink --host 127.0.0.1")
    assert not superlink.runs_as("python -m zk0d.flower.superlinks")
    assert not superlink.runs_as("/v/bin/zk0d superexec server")
    assert gateway.runs_as("nginx: master process /usr/sbin/nginx -e stderr")
    assert not gateway.runs_as("/opt/nginxes/server")


def test_what_runs_once_leaves_no_process() -> None:
    for each in SERVICES:
        unit = f"{each.unit}.service"
        assert each.once == (directive(unit, "RemainAfterExit") == ["yes"]), each.name
        assert not each.once or directive(unit, "Type") == ["oneshot"]


@pytest.mark.parametrize("path", files(REPOSITORY), ids=lambda path: path.name)
def test_files_made_from_the_table_are_fresh(path: Path) -> None:
    assert path.read_text() == files(REPOSITORY)[path], "make reference"


def asked_of_zk0d_release(words: str, settings: Path = Path("/etc/zk0d")) -> list[str]:
    """What functions of the program say, as root, with the units of this repository."""
    program = (SYSTEMD / "zk0d-release").read_text()
    program = program.replace("/usr/lib/systemd/system", f"{SYSTEMD}")
    functions = program.replace("=/etc/zk0d\n", f"={settings}\n").rpartition("\nmain ")[0]
    asked = f"{functions}\nis_root() {{ true; }}\n{words}\n"
    said = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    return said.stdout.split()


@pytest.mark.parametrize("role", Role)
def test_zk0d_release_waits_for_the_services_of_a_role(role: Role) -> None:
    assert tuple(asked_of_zk0d_release(f"services_of {role}")) == units(role)
    left = [each.unit for each in once(role)]
    running = [name for name in units(role) if name not in left]
    assert asked_of_zk0d_release(f"running_of {role}") == running


def test_zk0d_release_knows_every_contributor(tmp_path: Path) -> None:
    for name in ("ann", "b-2"):
        (tmp_path / "clients" / name).mkdir(parents=True)
        (tmp_path / "clients" / name / "client.toml").touch()
    (tmp_path / "clients/torn").mkdir()
    roles = ["server", "client", "client@ann", "client@b-2"]
    assert asked_of_zk0d_release("roles", tmp_path) == roles
    assert tuple(asked_of_zk0d_release("services_of client@b-2")) == units("client", "b-2")
    assert asked_of_zk0d_release("unit_of client@b-2") == [target("client", "b-2")]
    assert asked_of_zk0d_release("option_of client@b-2; option_of client") == [
        "--contributor",
        "b-2",
    ]


def test_users_are_made_and_removed() -> None:
    users = {each.user for each in SERVICES} - {"root"}
    made = re.findall(r"(?m)^u (\S+)", (SYSTEMD / "sysusers.d/zk0d.conf").read_text())
    assert set(made) == users
    playbook = yaml.safe_load((REPOSITORY / "ansible/playbooks/uninstall.yml").read_text())
    (removed,) = [t["loop"] for t in playbook[0]["tasks"] if "ansible.builtin.user" in t]
    assert {f"zk0d-{name}" for name in removed} == users


def named() -> list[tuple[str, str]]:
    """Units that shell programs, playbooks and pages name, and where."""
    paths = [REPOSITORY / "get-zk0bot.sh", SYSTEMD / "zk0d-release"]
    for folder, kinds in (
        ("bin", "*"),
        ("ansible", "*.yml"),
        ("ansible", "*.j2"),
        ("docs", "*.md"),
    ):
        paths += sorted((REPOSITORY / folder).rglob(kinds))
    found = {
        (name, str(path.relative_to(REPOSITORY)))
        for path in paths
        for name in re.findall(
            r"\bzk0d-[a-z-]+\.(?:service|socket|target|timer)\b", path.read_text()
        )
    }
    return sorted(found)


@pytest.mark.parametrize(("name", "where"), named())
def test_only_units_that_are_there_are_named(name: str, where: str) -> None:
    assert (SYSTEMD / name).exists()


@each_service
def test_the_page_about_units_has_its_row(each: Service) -> None:
    page = (REPOSITORY / "docs/units.md").read_text()
    if each.name == "renew":
        assert f"`{each.unit}.service` renews the gateway's certificate by its timer" in page
        return
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{each.unit}.service` |")]
    assert f"| `{each.user}` |" in row
    assert ("metrics" in row) == bool(each.metrics)
    assert not each.metrics or f"{each.metrics} metrics" in row


def test_what_a_role_looks_for_in_a_programs_lines_is_what_that_program_prints() -> None:
    release = (SYSTEMD / "zk0d-release").read_text(encoding="utf-8")
    zk0bot = "".join(path.read_text("utf-8") for path in (REPOSITORY / "zk0d/cli").glob("*.py"))
    found = 0
    for path in REPOSITORY.glob("ansible/roles/**/*.yml"):
        # A task's text up to what it looks for: its command is in between.
        for task in re.split(r"(?m)^ *- name: ", path.read_text(encoding="utf-8")):
            for said in re.findall(r"changed_when: \"'([^']+)' not in", task):
                found += 1
                printed = zk0bot if "bin/zk0bot" in task else release
                assert said in printed, f"{path}: nothing prints {said!r}"
    assert found >= 5


@pytest.mark.parametrize("each", [s for s in SERVICES if s.watchdog], ids=lambda each: each.name)
def test_systemd_and_the_foreground_wait_equally_long(each: Service) -> None:
    unit = f"{each.unit}.service"
    assert directive(unit, "WatchdogSec") == [f"{each.watchdog:g}"]
    assert directive(unit, "TimeoutStartSec") == [f"{each.starts_within:g}"]


def test_every_service_of_ours_is_watched() -> None:
    ours = {each.name for each in SERVICES if each.verb and not (each.every or each.once)}
    assert ours == {each.name for each in SERVICES if each.watchdog and each.starts_within}
