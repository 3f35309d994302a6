"""The units: what each must have, whom they run as, and how systemd itself judges them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from zk0d.config.machine import ServerSettings
from zk0d.services.gpu_power import DEFAULT_STATE

FOLDER = Path(__file__).parents[2] / "systemd"
#: What systemd adds to every unit whose name begins with zk0d-, after the unit's own lines.
SHARED = FOLDER / "zk0d-.service.d/10-sandbox.conf"
GATEWAY, RENEW, OWNER = "zk0d-gateway.service", "zk0d-renew.service", "zk0d-owner.service"
POWER = "zk0d-gpu-power.service"
#: What that one has beside, after what is shared.
POWER_CAPABILITY = FOLDER / f"{POWER}.d/20-gpu-power.conf"
#: Those that run a program of ours as a user of their own, with a state.
OTHERS = (GATEWAY, RENEW, OWNER, POWER)
SERVICES = sorted(
    path.name
    for path in FOLDER.glob("*.service")
    if path.name not in OTHERS and "@" not in path.name
)
#: Of one of several contributors: made from the plain ones, so they have the same directives.
TEMPLATES = sorted(path.name for path in FOLDER.iterdir() if "@" in path.name)
ONESHOTS = ("zk0d-fetch.service", "zk0d-policy-updates.service", "zk0d-publish.service")
DAEMONS = [name for name in SERVICES if name not in ONESHOTS]
UNITS = sorted(
    path.name
    for path in FOLDER.iterdir()
    if path.suffix in (".service", ".socket", ".target", ".slice", ".timer")
    and "@" not in path.name
)
SANDBOXED_MOST = ("zk0d-learner.service", "zk0d-evaluator.service")
NETWORKED = ("zk0d-client.service", "zk0d-client-superexec.service", *ONESHOTS)

#: What every service has, without exception.
ALWAYS = {
    "AmbientCapabilities": [""],
    "CapabilityBoundingSet": [""],
    "DevicePolicy": ["closed"],
    "KeyringMode": ["private"],
    "KillMode": ["mixed"],
    "LimitCORE": ["0"],
    "LockPersonality": ["yes"],
    "NoNewPrivileges": ["yes"],
    "PrivateIPC": ["yes"],
    "PrivateMounts": ["yes"],
    "PrivateTmp": ["yes"],
    "PrivateUsers": ["yes"],
    "ProtectClock": ["yes"],
    "ProtectControlGroups": ["yes"],
    "ProtectHostname": ["yes"],
    "ProtectKernelLogs": ["yes"],
    "ProtectKernelModules": ["yes"],
    "ProtectKernelTunables": ["yes"],
    "ProtectProc": ["invisible"],
    "ProtectSystem": ["strict"],
    "RemoveIPC": ["yes"],
    "RestartPreventExitStatus": ["64 78"],
    "RestrictNamespaces": ["yes"],
    "RestrictRealtime": ["yes"],
    "RestrictSUIDSGID": ["yes"],
    "Slice": ["zk0d.slice"],
    "StateDirectoryMode": ["0700"],
    "SystemCallArchitectures": ["native"],
    "SystemCallErrorNumber": ["EPERM"],
    "TimeoutStopSec": ["20"],
}
#: What a service has unless a comment above the directive says why not; empty: no such directive.
UNLESS_SAID: dict[str, list[str]] = {
    "DeviceAllow": [],
    "IPAddressAllow": [],
    "IPAddressDeny": ["any"],
    "MemoryDenyWriteExecute": ["yes"],
    "PrivateDevices": ["yes"],
    "PrivateNetwork": ["yes"],
    "ProcSubset": ["pid"],
    "ProtectHome": ["yes"],
    "RestrictAddressFamilies": ["AF_UNIX"],
    "SupplementaryGroups": [],
    "SystemCallFilter": ["@system-service", "~@privileged @resources"],
    "UMask": ["0077"],
}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def directives(name: str) -> dict[str, list[str]]:
    """A unit's directives, those of every service included; each may be given more than once."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    if name.endswith(".service") and not name.startswith("user/"):
        text += SHARED.read_text(encoding="utf-8")
    if name == POWER:
        text += POWER_CAPABILITY.read_text(encoding="utf-8")
    found: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def commented(name: str) -> set[str]:
    """Directives with a comment right above; the ones of a block share its comment."""
    found, said = set(), ""
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        key = line.partition("=")[0]
        if line.startswith("#"):
            said = "*"
        elif said in ("*", key):
            said = key
            found.add(key)
        else:
            said = ""
    return found


def environment(name: str) -> dict[str, str]:
    words = " ".join(directives(name)["Environment"]).split()
    return dict(word.split("=", 1) for word in words)


def accounts() -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """Users, groups and memberships of sysusers.d."""
    users, groups, members = set(), set(), set()
    text = (FOLDER / "sysusers.d/zk0d.conf").read_text(encoding="utf-8")
    for line in text.splitlines():
        match line.split():
            case ["u", name, *_]:
                users.add(name)
            case ["g", name, *_]:
                groups.add(name)
            case ["m", user, group]:
                members.add((user, group))
    return users, groups | users, members


@pytest.mark.parametrize("name", [*UNITS, *TEMPLATES])
def test_first_line_says_where_changes_belong(name: str) -> None:
    first = (FOLDER / name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f"systemctl edit {name}")


@pytest.mark.parametrize("name", SERVICES)
def test_common_hardening(name: str) -> None:
    has = directives(name)
    others = {
        "zk0d-server-superexec.service": "0750",  # the presence page reads its journals
        "zk0d-client-superexec.service": "0710",  # what fetches releases reads one file
        "zk0d-policy-updates.service": "0755",  # the owner's programs read releases
    }
    wanted = ALWAYS | {"StateDirectoryMode": [others.get(name, "0700")]}
    assert {key: has[key] for key in wanted} == wanted


def test_the_gateway_is_hardened_as_well() -> None:
    has = directives(GATEWAY)
    wanted = {key: value for key, value in ALWAYS.items() if key != "StateDirectoryMode"}
    assert {key: has[key] for key in wanted} == wanted
    assert (has["User"], has["Restart"]) == (["zk0d-gateway"], ["always"])
    assert has["RuntimeDirectoryMode"] == ["0700"]


def test_what_looks_at_the_owners_programs_can_do_nothing_else() -> None:
    has = directives(OWNER)
    other = ("StateDirectoryMode", "ProtectProc")
    wanted = {key: value for key, value in ALWAYS.items() if key not in other}
    assert {key: has[key] for key in wanted} == wanted
    assert has["ProtectProc"] == ["default"]
    assert (has["PrivateNetwork"], has["RestrictAddressFamilies"]) == (["yes"], ["AF_UNIX"])
    assert not has["LoadCredential"]
    assert not has["StateDirectory"]
    assert has["RuntimeDirectory"] == ["zk0d/owner"]
    assert (has["Type"], has["Restart"]) == (["notify"], ["always"])


def test_what_sets_the_gpus_limit_has_one_capability_of_roots_and_no_network() -> None:
    has = directives(POWER)
    other = ("CapabilityBoundingSet", "PrivateUsers")
    wanted = {key: value for key, value in ALWAYS.items() if key not in other}
    assert {key: has[key] for key in wanted} == wanted
    assert POWER_CAPABILITY.name > SHARED.name, "systemd reads the last one last"
    assert has["CapabilityBoundingSet"] == ["", "CAP_SYS_ADMIN"]
    assert (has["User"], has["PrivateUsers"]) == (["root"], ["no"])
    assert {"User", "PrivateUsers"} <= commented(POWER)
    assert (has["PrivateNetwork"], has["RestrictAddressFamilies"]) == (["yes"], ["AF_UNIX"])
    assert not has["LoadCredential"]
    assert not has["ReadWritePaths"]


def test_the_gpus_limit_ends_with_the_unit_however_that_ends() -> None:
    """ExecStop= would not run after a start that failed; ExecStopPost= always does."""
    has = directives(POWER)
    assert (has["Type"], has["RemainAfterExit"]) == (["oneshot"], ["yes"])
    (start,) = has["ExecStart"]
    assert has["ExecReload"] == [start]
    assert has["ExecStopPost"] == [f"{start} --restore"]
    assert not has["ExecStop"]
    assert has["StateDirectory"] == ["zk0d/gpu-power"]
    assert Path("/var/lib", has["StateDirectory"][0]) == DEFAULT_STATE
    # The refusal of a limit stops no training.
    for name in DAEMONS:
        assert POWER not in " ".join(directives(name)["Requires"] + directives(name)["BindsTo"])


def test_a_reload_of_the_gateway_is_a_signal_alone() -> None:
    """A program of it has no credentials, so nginx -t would refuse the certificate's path."""
    assert directives(GATEWAY)["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_renewing_may_write_the_certificates_and_nothing_else() -> None:
    has = directives(RENEW)
    assert has["ReadWritePaths"] == ["/etc/zk0d/tls"]
    assert has["ProtectSystem"] == ["strict"]
    assert (has["PrivateNetwork"], has["CapabilityBoundingSet"]) == (["yes"], [""])
    assert directives("zk0d-renew.timer")["OnCalendar"] == ["daily"]


def test_each_may_write_its_part_of_what_is_on_its_way() -> None:
    """A rename between two of a unit's paths would be one between file systems."""
    own = ServerSettings().transfers
    assert directives(GATEWAY)["ReadWritePaths"] == [str(own.up)]
    roster = ServerSettings().superlink.roster
    assert directives("zk0d-server.service")["ReadWritePaths"] == [str(own.up), f"-{roster}"]
    assert directives("zk0d-server-superexec.service")["ReadWritePaths"] == [str(own.folder)]
    lines = (FOLDER / "tmpfiles.d/zk0d.conf").read_text(encoding="utf-8").splitlines()
    made = {words[1]: words[2:5] for line in lines if (words := line.split())[:1] == ["d"]}
    assert made[str(roster)] == ["0775", "root", "zk0d-link"]
    assert made[str(own.folder)] == ["0755", "root", "root"]
    assert made[str(own.down)] == ["2750", "zk0d-app", "zk0d-gateway"]
    assert made[str(own.up)] == ["2770", "zk0d-gateway", "zk0d-app"]
    assert made[str(own.incoming)] == made[str(own.up)]
    assert made[str(own.taken)] == ["0750", "zk0d-app", "zk0d-app"]


@pytest.mark.parametrize("name", [*SERVICES, GATEWAY, OWNER, POWER])
def test_a_looser_directive_has_a_reason(name: str) -> None:
    has, reasons = directives(name), commented(name)
    looser = {key for key, value in UNLESS_SAID.items() if has[key] != value}
    # Silence would mean systemd's default, which is the loosest.
    assert not {key for key in looser if not has[key]}
    assert looser <= reasons
    assert {"@system-service"} <= set(has["SystemCallFilter"])
    assert "~@privileged" in " ".join(has["SystemCallFilter"])


@pytest.mark.parametrize("name", SERVICES)
def test_only_four_have_a_network(name: str) -> None:
    has = directives(name)
    if name in SANDBOXED_MOST:
        assert has["PrivateNetwork"] == ["yes"]
    elif name not in NETWORKED:
        assert (has["IPAddressDeny"], has["IPAddressAllow"]) == (["any"], ["localhost"])
    online = "network-online.target"
    assert (online in " ".join(has["After"])) == (name in NETWORKED)
    assert has["Wants"] == ([online] if name in NETWORKED else [])


@pytest.mark.parametrize("name", SERVICES)
def test_environment(name: str) -> None:
    has, state = environment(name), directives(name)["StateDirectory"][0]
    assert has["FLWR_TELEMETRY_ENABLED"] == "0"
    assert has["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert has["PYTHONUNBUFFERED"] == "1"
    assert has["FLWR_HOME"] == f"%S/{state}/flower"
    assert has.get("HF_HUB_OFFLINE") == (None if name in ONESHOTS else "1")


@pytest.mark.parametrize("name", DAEMONS)
def test_a_unit_is_supervised(name: str) -> None:
    has = directives(name)
    limits = {"zk0d-client.service": "90"} | dict.fromkeys(SANDBOXED_MOST, "180")
    assert has["Type"] == ["notify"]
    assert has["NotifyAccess"] == ["main"]
    assert has["WatchdogSec"] == [limits.get(name, "60")]
    assert has["Restart"] == ["always"]


@pytest.mark.parametrize("name", SERVICES)
def test_restarts_never_reach_the_start_limit(name: str) -> None:
    """A disk that is full for a day must not leave a service down when it is not any more."""
    has = {key: int(directives(name)[key][0]) for key in ("RestartSec", "StartLimitBurst")}
    interval = int(directives(name)["StartLimitIntervalSec"][0])
    assert has["RestartSec"] * has["StartLimitBurst"] > interval


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith((".service", ".socket"))])
def test_users_and_groups_exist(name: str) -> None:
    users, groups, _ = accounts()
    has = directives(name)
    if name in (RENEW, POWER):
        assert has["User"] == ["root"], "the authority's key, and the driver, are root's"
        return
    assert set(has["User"]) <= users
    wanted = " ".join(has["Group"] + has["SocketGroup"] + has["SupplementaryGroups"])
    assert set(wanted.split()) <= groups
    if name.endswith(".service"):
        assert has["User"] == has["Group"]
        assert has["User"] != ["root"]


def test_memberships() -> None:
    _, _, members = accounts()
    assert members == {
        ("zk0d-link", "zk0d-app"),
        ("zk0d-publish", "zk0d-app"),
        ("zk0d-link", "zk0d-publish"),
        ("zk0d-gateway", "zk0d-publish"),
        ("zk0d-learner", "zk0d-fetch"),
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_missing_secret_is_told_by_the_program(name: str) -> None:
    """Without a fallback systemd fails the start itself, and does not say what to do."""
    has = directives(name)
    loaded = {value.partition(":")[0] for value in has["LoadCredential"]}
    assert {value.partition(":")[0] for value in has["SetCredential"]} == loaded


@pytest.mark.parametrize("name", ["zk0d-learner.socket", "zk0d-evaluator.socket"])
def test_only_the_apps_reach_the_sockets(name: str) -> None:
    has = directives(name)
    assert has["ListenStream"] == [f"/run/zk0d/{name.split('-')[1].replace('.socket', '')}.sock"]
    assert has["SocketMode"] == ["0660"]
    assert has["SocketGroup"] == ["zk0d-app"]


def test_no_two_users_share_a_state_folder() -> None:
    owners: dict[str, str] = {}
    for name in SERVICES:
        has = directives(name)
        for kind in ("StateDirectory", "CacheDirectory"):
            for folder in has[kind]:
                assert owners.setdefault(f"{kind}/{folder}", has["User"][0]) == has["User"][0]


def test_defaults_of_the_settings_lie_where_units_may_write() -> None:
    from zk0d.config.machine import DEFAULT_CLIENT_CONFIG, ClientSettings, ServerSettings

    client, server = ClientSettings(name="a"), ServerSettings()
    assert Path("/etc/zk0d/client.toml") == DEFAULT_CLIENT_CONFIG
    for path, unit in (
        (server.superlink.state, "zk0d-server.service"),
        (server.runs, "zk0d-server-superexec.service"),
        (server.superexec.state, "zk0d-server-superexec.service"),
        (server.publish.state, "zk0d-publish.service"),
        (client.supernode.state, "zk0d-client.service"),
        (client.superexec.state, "zk0d-client-superexec.service"),
        (client.learner.state, "zk0d-learner.service"),
    ):
        state = Path("/var/lib", directives(unit)["StateDirectory"][0])
        assert path.is_relative_to(state), unit
    assert str(client.learner.socket) in directives("zk0d-learner.socket")["ListenStream"]
    assert str(server.evaluator.socket) in directives("zk0d-evaluator.socket")["ListenStream"]


def test_no_service_repeats_the_shared_directives() -> None:
    """A line here would win over a unit's, so neither says what the other does."""
    shared = {line.partition("=")[0] for line in SHARED.read_text().splitlines() if "=" in line} - {
        ""
    }
    for name in (*SERVICES, *OTHERS):
        text = (FOLDER / name).read_text(encoding="utf-8")
        own = {line.partition("=")[0] for line in text.splitlines() if "=" in line}
        assert not {key for key in own & shared if not key.startswith("#")}, name


@needs_systemd
@pytest.mark.parametrize("name", [*SERVICES, GATEWAY, OWNER, POWER])
def test_exposure(name: str) -> None:
    threshold = 10 if name in SANDBOXED_MOST else 15  # of 100
    judged = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={threshold}",
            str(FOLDER / name),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
    measured = re.search(r"Overall exposure level for \S+: (\S+)", judged.stdout)
    assert measured is not None
    page = (FOLDER.parent / "docs/units.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    assert row.split("|")[-2].strip() == measured[1]


USER = "user/zk0d-client.service"
HOME = "user/zk0d-client.service.d/10-home.conf"
NAMED, NAMED_HOME = USER.replace(".service", "@.service"), HOME.replace(".service.", "@.service.")


def test_a_users_unit_has_what_its_systemd_can_hold() -> None:
    """A directive that needs a namespace stands where the installer can leave it out."""
    seccomp = ("LockPersonality", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID")
    has, more = directives(USER), directives(HOME)
    for key in ("NoNewPrivileges", *seccomp):
        assert has[key] == ["yes"], key
    assert has["RestrictAddressFamilies"] == ["AF_UNIX AF_INET AF_INET6"]
    assert has["SystemCallFilter"] == ["@system-service", "~@privileged"]
    namespaces = {key for key in ALWAYS if key.startswith(("Protect", "Private"))}
    assert not (namespaces | {"ReadWritePaths", "CapabilityBoundingSet"}) & has.keys()
    assert more["PrivateUsers"] == ["yes"], "without it a user's systemd passes over the others"
    assert (more["ProtectSystem"], more["ProtectHome"]) == (["strict"], ["read-only"])
    # A user's systemd does not do these: they would only look as if.
    for key in ("DevicePolicy", "IPAddressDeny", "ProtectProc", "ProcSubset", "Slice"):
        assert key not in has.keys() | more.keys(), key


def test_a_users_named_contributor_writes_only_its_own_folder() -> None:
    """The rest of its drop-in is that of the one without a name."""
    plain, named = directives(HOME), directives(NAMED_HOME)
    assert plain.pop("ReadWritePaths") == ["-%E/zk0d"]
    assert named.pop("ReadWritePaths") == ["-%E/zk0d/clients/%i"]
    assert named == plain
    (start,) = directives(NAMED)["ExecStart"]
    assert start.endswith(" --folder %E/zk0d/clients/%i")


@needs_systemd
@pytest.mark.parametrize("files", [(USER, HOME), (NAMED, NAMED_HOME)], ids=["plain", "named"])
def test_exposure_of_a_users_unit(tmp_path: Path, files: tuple[str, str]) -> None:
    text, more = ((FOLDER / name).read_text(encoding="utf-8") for name in files)
    page = (FOLDER.parent / "docs/units.md").read_text(encoding="utf-8")
    for name, whole in (("alone", text), ("with its drop-in", f"{text}\n{more}")):
        unit = tmp_path / f"{name.replace(' ', '-')}.service"
        unit.write_text(whole, encoding="utf-8")
        judged = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        measured = re.search(r"Overall exposure level for \S+: (\S+)", judged.stdout)
        assert measured is not None, judged.stderr
        assert f"| {name} | {measured[1]} |" in page


@needs_systemd
def test_systemd_reads_every_line(tmp_path: Path) -> None:
    for name in (*UNITS, *TEMPLATES):
        text = (FOLDER / name).read_text(encoding="utf-8")
        text = re.sub(r"(?m)^Exec(Start|StopPost)=.*", r"Exec\1=/bin/true", text)
        (tmp_path / name).write_text(
            re.sub(r"(?m)^ExecReload=/opt.*", "ExecReload=/bin/true", text)
        )
    for folder in (SHARED.parent, POWER_CAPABILITY.parent):
        shutil.copytree(folder, tmp_path / folder.name)
    said = subprocess.run(
        [
            *("systemd-analyze", "verify", "--man=no"),
            *(str(tmp_path / name) for name in UNITS),
            *(str(tmp_path / name.replace("@", "@ann")) for name in TEMPLATES),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Lines about units of the system are not about ours.
    about_ours = [line for line in said.stderr.splitlines() if "zk0d" in line]
    assert about_ours == []
    assert said.returncode == 0, said.stderr


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed"
)
def test_systemd_makes_the_users(tmp_path: Path) -> None:
    said = subprocess.run(
        [
            "systemd-sysusers",
            "--dry-run",
            f"--root={tmp_path}",
            "--replace=/usr/lib/sysusers.d/zk0d.conf",
            "-",
        ],
        input=(FOLDER / "sysusers.d/zk0d.conf").read_text(encoding="utf-8"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    assert "not a valid" not in said.stderr


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_differs_from_its_unit_in_what_is_a_contributors_own(name: str) -> None:
    plain, has = directives(name.replace("@", "")), directives(name)
    own = {key for key in plain if plain[key] != has[key]}
    assert plain.keys() == has.keys()
    assert own <= {
        "After",
        "Also",
        "Before",
        "CacheDirectory",
        "Description",
        "Environment",
        "ExecStart",
        "Group",
        "ListenStream",
        "LoadCredential",
        "PartOf",
        "Requires",
        "RuntimeDirectory",
        "SocketGroup",
        "StateDirectory",
        "SupplementaryGroups",
        "User",
        "WantedBy",
    }
    assert all("%i" in " ".join(has[key]) for key in own)


def test_a_named_contributor_shares_no_user_folder_or_file_with_another() -> None:
    """By the units: whatever is zk0d's and is named there has the contributor's name."""
    for name in TEMPLATES:
        has = directives(name)
        for key in ("User", "Group", "SocketGroup"):
            assert all(value.endswith("-%i") for value in has[key]), name
        for key in ("StateDirectory", "CacheDirectory", "RuntimeDirectory", "ListenStream"):
            assert all("zk0d/clients/%i/" in value for value in has[key]), name
        said = " ".join(value for key in has for value in has[key])
        said = said.replace("/opt/zk0d/current/", "")
        assert set(re.findall(r"(?<=[/=])zk0d/\S+?/\S+?/", said)) <= {"zk0d/clients/%i/"}, name


def test_settings_of_a_named_contributor_lie_where_its_units_may_write() -> None:
    from zk0d.config.machine import ClientSettings
    from zk0d.machine.setup import _client_paths

    given = _client_paths(Path("/etc/zk0d/clients/ann"))
    client = ClientSettings.parse({"name": "ann", **given}, where="test")
    for path, unit in (
        (client.supernode.state, "zk0d-client@.service"),
        (client.superexec.state, "zk0d-client-superexec@.service"),
        (client.learner.state, "zk0d-learner@.service"),
    ):
        state = directives(unit)["StateDirectory"][0].replace("%i", "ann")
        assert path.is_relative_to(Path("/var/lib", state)), unit
    (socket,) = directives("zk0d-learner@.socket")["ListenStream"]
    assert str(client.learner.socket) == socket.replace("%i", "ann")
    (owner,) = directives("zk0d-owner@.service")["RuntimeDirectory"]
    assert str(client.owner.state) == f"/run/{owner.replace('%i', 'ann')}"
    loaded = " ".join(directives("zk0d-client@.service")["LoadCredential"]).replace("%i", "ann")
    for path in (client.supernode.key, client.supernode.secret, client.coordinator.ca):
        assert f":{path}" in loaded


@needs_systemd
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.endswith(".service")])
def test_a_template_is_sandboxed_as_its_unit(name: str) -> None:
    """The shared drop-in reaches it by its prefix."""
    judged = {}
    for unit in (name.replace("@", ""), name.replace("@", "@ann")):
        said = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(FOLDER / unit)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        judged[unit] = re.findall(r"Overall exposure level for \S+: (\S+)", said.stdout)
    (plain, made) = judged.values()
    assert plain == made != []
