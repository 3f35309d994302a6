"""``zk0bot setup``: each question, wrong answers, and where a second call continues."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.test_cli import BIN, typed
from tests.terminal import Terminal
from zk0d.cli import qr
from zk0d.cli.questions import Questions
from zk0d.cli.setup import Conversation
from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.errors import ConfigError, DataError, UsageError
from zk0d.learning.found import lerobot_folders, look_through
from zk0d.machine import node_key, units
from zk0d.machine.enrolment import Invite, Request, invite_of
from zk0d.machine.keys import fingerprint
from zk0d.machine.setup import change_client, set_up_server


class Scripted(Questions):
    """A person whose answers are known; ``None`` presses Enter."""

    def __init__(self, *answers: str | bool | None, yes: bool = False) -> None:
        self.yes = yes
        self._answers = list(answers)
        self.said: list[str] = []

    def say(self, text: str = "") -> None:
        self.said.append(text)

    def ask(self, question: str, default: str = "", shown: str = "") -> str:
        if self.yes:
            return default
        self.said.append(question)
        answer = self._answers.pop(0)
        assert not isinstance(answer, bool), question
        return default if answer is None else answer

    def agrees(self, question: str, *, default: bool) -> bool:
        if self.yes:
            return default
        self.said.append(question)
        answer = self._answers.pop(0)
        assert not isinstance(answer, str), question
        return default if answer is None else answer

    @property
    def text(self) -> str:
        assert not self._answers, f"nobody asked for {self._answers}: {self.said}"
        return "\n".join(self.said)


@pytest.fixture(scope="module")
def invite(tmp_path_factory: pytest.TempPathFactory) -> Invite:
    hub = tmp_path_factory.mktemp("hub")
    set_up_server(hub, ["127.0.0.1"], {"gateway": {"address": "127.0.0.1:9"}})
    return invite_of(ServerSettings.load(hub / "server.toml"))


@pytest.fixture
def node(tmp_path: Path, invite: Invite, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node that has joined, and a machine without recordings."""
    monkeypatch.setattr(units, "has_systemd", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "lerobot"))
    folder = tmp_path / "node"
    Conversation(Scripted(yes=True), folder).join(invite.to_line(), "left")
    return folder


@pytest.fixture
def shelf(tmp_path: Path, recordings_folder: Path) -> Path:
    """LeRobot's folder with a dataset, and an older one of an older format."""
    home = tmp_path / "lerobot"
    shutil.copytree(recordings_folder, home / "ann/arm")
    (home / "ann/old/meta").mkdir(parents=True)
    info = json.loads((recordings_folder / "meta/info.json").read_text())
    info["codebase_version"] = "v2.1"
    path = home / "ann/old/meta/info.json"
    path.write_text(json.dumps(info))
    os.utime(path, (1, 1))
    return home


def settings(folder: Path) -> ClientSettings:
    return ClientSettings.load(folder / "client.toml")


def talk(folder: Path, *answers: str | bool | None) -> tuple[Conversation, Scripted]:
    person = Scripted(*answers)
    return Conversation(person, folder), person


def test_an_invite_is_asked_for_until_it_is_whole(
    tmp_path: Path, invite: Invite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Left_Bench.example")
    line = invite.to_line()
    conversation, person = talk(tmp_path / "node", "nonsense", line[:-9], line, "No Name", None)
    conversation.join(None, "")
    assert "does not begin with 'zk0d-invite-1:'" in person.text
    assert "the invite is damaged" in person.text
    assert f"Coordinator 127.0.0.1:9\n  CA fingerprint {invite.fingerprint}" in person.text
    assert "a name is 1 to 32" in person.text
    assert settings(tmp_path / "node").name == "left-bench"
    assert (tmp_path / "node/node.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "node/tls/ca.crt").read_text() == invite.ca


def test_a_second_call_asks_for_neither_invite_nor_name(node: Path, invite: Invite) -> None:
    key = (node / "node.key").read_bytes()
    conversation, person = talk(node)
    conversation.join(None, "")
    assert "This node is called left and belongs to 127.0.0.1:9" in person.text
    conversation.join(invite.to_line(), "right")
    assert settings(node).name == "right"
    assert (node / "node.key").read_bytes() == key


def test_a_node_does_not_change_its_coordinator_unasked(
    node: Path, invite: Invite, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"belongs to 127\.0\.0\.1:9 and the invite is of hub:9443"
    ):
        talk(node)[0].join(Invite("hub:9443", invite.ca).to_line(), "")
    set_up_server(tmp_path / "renewed", ["127.0.0.1"], {"gateway": {"address": "127.0.0.1:9"}})
    newer = invite_of(ServerSettings.load(tmp_path / "renewed/server.toml"))
    talk(node)[0].join(newer.to_line(), "")
    assert (node / "tls/ca.crt").read_text() == newer.ca != invite.ca


def test_a_sealed_key_is_not_replaced(node: Path, invite: Invite) -> None:
    from zk0d.machine.setup import set_up_client

    (node / "node.key").rename(node / "node.key.cred")
    set_up_client(node, "left", invite.address, invite.ca.encode())
    assert not (node / "node.key").exists()


@pytest.mark.slow
def test_recordings_are_found_where_lerobot_keeps_them(
    node: Path, shelf: Path, recordings_folder: Path, tmp_path: Path
) -> None:
    info = json.loads((recordings_folder / "meta/info.json").read_text())
    minutes = info["total_frames"] / info["fps"] / 60
    conversation, person = talk(node, "/nothing", str(tmp_path), "2", None)
    conversation.choose_recordings(None)
    assert f" 1  ann/arm: {info['total_episodes']} episodes, {minutes:.1f} minutes" in person.text
    assert f" 2  ann/old: format v2.1; zk0bot data convert {shelf}/ann/old" in person.text
    assert person.text.count("is not a LeRobot dataset") == 2
    assert "is of LeRobot's format v2.1, this needs v3.0" in person.text
    assert settings(node).dataset_uri == f"local:{shelf}/ann/arm"
    again, nobody = talk(node)
    again.choose_recordings(None)
    assert nobody.text == f"Recordings: local:{shelf}/ann/arm"


def test_recordings_in_the_home_before_sudo_are_found(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    monkeypatch.setenv("SUDO_UID", "4711")
    home = tmp_path / "ann"
    monkeypatch.setattr("pwd.getpwuid", lambda uid: type("User", (), {"pw_dir": str(home)}))
    usual = home / ".cache/huggingface/lerobot"
    usual.parent.mkdir(parents=True)
    shelf.rename(usual)
    assert usual in lerobot_folders()
    assert [each.name for each in look_through(lerobot_folders())] == ["ann/arm", "ann/old"]


@pytest.mark.slow
def test_scripts_get_the_one_dataset_that_there_is(node: Path, shelf: Path) -> None:
    silent = Conversation(Scripted(yes=True), node)
    shutil.copytree(shelf / "ann/arm", shelf / "ann/second")
    with pytest.raises(UsageError, match=r"several recordings \(ann/.*, ann/.*\); name yours"):
        silent.choose_recordings(None)
    shutil.rmtree(shelf / "ann/second")
    silent.choose_recordings(None)
    assert settings(node).dataset_uri == f"local:{shelf}/ann/arm"


def test_scripts_hear_that_there_is_no_dataset(node: Path) -> None:
    with pytest.raises(UsageError, match=r"there are no recordings in .*name them with --dataset"):
        Conversation(Scripted(yes=True), node).choose_recordings(None)


@pytest.mark.slow
def test_recordings_that_cannot_be_used_are_not_taken(node: Path, copied_recordings: Path) -> None:
    for table in (copied_recordings / "data").rglob("*.parquet"):
        table.write_bytes(b"broken")
    with pytest.raises(DataError, match="the learner cannot open the recordings") as wrong:
        Conversation(Scripted(yes=True), node).choose_recordings(str(copied_recordings))
    assert "\n" not in wrong.value.message
    assert settings(node).dataset_uri is None


def test_what_the_hub_has_is_checked_once_it_is_here(node: Path) -> None:
    conversation, person = talk(node)
    conversation.choose_recordings("ann/elsewhere")
    conversation.map_cameras()
    assert "it is downloaded, and checked when it is here" in person.text
    assert settings(node).dataset_uri == "hf:ann/elsewhere"


def with_cameras(node: Path, shelf: Path, names: Sequence[str]) -> None:
    """Have the node lend a dataset whose metadata has cameras of these names."""
    path = shelf / "ann/arm/meta/info.json"
    info = json.loads(path.read_text())
    pictures = [key for key in info["features"] if "image" in key]
    feature = info["features"][pictures[0]]
    for key in pictures:
        del info["features"][key]
    info["features"] |= {f"observation.images.{name}": feature for name in names}
    path.write_text(json.dumps(info))
    change_client(node / "client.toml", {"dataset-uri": f"local:{shelf}/ann/arm"})


def test_cameras_get_the_policys_names_by_suggestion(node: Path, shelf: Path) -> None:
    with_cameras(node, shelf, ["wrist", "overhead"])
    conversation, person = talk(node, None)
    conversation.map_cameras()
    assert "  overhead would be camera1" in person.text
    assert settings(node).cameras == {"overhead": "camera1", "wrist": "camera2"}
    again, nobody = talk(node)
    again.map_cameras()
    assert nobody.text == ""


def test_a_person_says_otherwise_of_cameras(node: Path, shelf: Path) -> None:
    with_cameras(node, shelf, ["wrist", "overhead"])
    conversation, person = talk(node, False, "camera3", "camera3", "-")
    conversation.map_cameras()
    assert "'camera3' is another camera's already" in person.text
    assert set(settings(node).cameras) == {"overhead", "wrist"}
    assert sorted(settings(node).cameras.values()) == ["", "camera3"]


def test_cameras_of_the_usual_names_are_not_asked_about(node: Path, shelf: Path) -> None:
    with_cameras(node, shelf, ["camera1", "camera2"])
    conversation, person = talk(node)
    conversation.map_cameras()
    assert person.text == ""
    assert "cameras" not in settings(node).model_fields_set


def test_limits_are_asked_once_and_checked(node: Path) -> None:
    conversation, person = talk(node, "at night", "22:00-07:00", True, "1 byte", "1 MB")
    conversation.ask_limits()
    assert "'at night' are not hours" in person.text
    assert "'1 byte' is not a number of bytes" in person.text
    limits = settings(node).limits
    assert (limits.hours, limits.only_when_idle, limits.upload_rate) == (
        "22:00-07:00",
        True,
        1_000_000,
    )
    again, nobody = talk(node)
    again.ask_limits()
    assert nobody.text == ""


def test_enter_leaves_every_limit_as_it_is(node: Path) -> None:
    conversation, person = talk(node, None, None, None)
    conversation.ask_limits()
    assert "When may it train?" in person.text
    limits = settings(node).limits
    assert (limits.hours, limits.only_when_idle, limits.upload_rate) == ("", False, 0)


def test_the_request_is_shown_and_can_be_scanned(node: Path) -> None:
    conversation, person = talk(node)
    conversation.ask_to_join("ann@example.org")
    assert "127.0.0.1:9 does not answer now: connection refused" in person.text
    asked = Request.from_text(person.text)
    assert (asked.name, asked.contact) == ("left", "ann@example.org")
    assert asked.fingerprint == fingerprint(node / "node.pub")
    assert Request.from_text(scanned(qr.qr_code(node_key.request_line(node, "")))) == Request.of(
        "left", node / "node.pub"
    )


def test_a_long_contact_still_fits_an_usual_terminal(node: Path) -> None:
    code = qr.qr_code(node_key.request_line(node, "ann@example.org"))
    assert max(len(line) - len(qr._LIGHT + qr._USUAL) for line in code.splitlines()) <= 80


def scanned(code: str) -> str:
    """What a camera reads from the lines of a terminal."""
    import cv2
    import numpy as np

    halves = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
    lines = [line.removeprefix(qr._LIGHT).removesuffix(qr._USUAL) for line in code.splitlines()]
    rows = [[halves[each][half] for each in line] for line in lines for half in (0, 1)]
    # OpenCV finds not every code at every size; a telephone is moved until it does.
    for size in (4, 6, 8):
        picture = np.kron(np.array(rows, np.uint8) * 255, np.ones((size, size), np.uint8))
        for reader in (cv2.QRCodeDetectorAruco(), cv2.QRCodeDetector()):
            if text := reader.detectAndDecode(picture)[0]:
                return str(text)
    return ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "there is no terminal to ask at; add --yes"),
        (("--yes",), "INVITE is missing"),
        (("--yes", "--timeout", "soon"), "is not a duration"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    said = typed(
        *("zk0bot", "setup", *arguments, "--folder", str(tmp_path / "node")),
        stdin=subprocess.DEVNULL,
    )
    assert (said.returncode, said.stderr.count("\n")) == (64, 1), said.stderr
    assert says in said.stderr
    assert not (tmp_path / "node").exists()


def test_a_damaged_invite_is_one_sentence(tmp_path: Path, invite: Invite) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        Conversation(Scripted(yes=True), tmp_path / "node").join(invite.to_line()[:-5], "")


@pytest.mark.slow
def test_ctrl_c_loses_nothing_that_was_answered(tmp_path: Path, invite: Invite) -> None:
    argv = [str(BIN / "zk0bot"), "setup", "--folder", str(tmp_path / "node")]
    env = {**os.environ, "HF_LEROBOT_HOME": str(tmp_path / "lerobot"), "HOME": str(tmp_path)}
    with Terminal(argv, env, tmp_path) as screen:
        screen.expect("The invite of your coordinator")
        screen.type(invite.to_line())
        screen.expect("What is this node called?")
        assert screen.give_up() == 130
        assert "zk0bot: interrupted; zk0bot setup continues from here." in screen.text
        assert "Traceback" not in screen.text
    with Terminal(argv, env, tmp_path) as screen:
        screen.expect("belongs to 127.0.0.1:9")
        screen.expect("There are no recordings in")
        screen.expect("Which recordings does this node lend?")
        screen.type("")
        screen.expect("name the recordings")
        assert screen.give_up() == 130
