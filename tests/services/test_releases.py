"""The policy comes home: who may fetch releases, what is refused, and what a cut line leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import FileResponse

from tests.services.lab import nginx
from tests.services.shop import Shop, opened
from zk0d.config.limits import LimitsSettings
from zk0d.daemon.line import LineBook
from zk0d.errors import ConfigError, TryAgainError, UnavailableError, Zk0dError
from zk0d.federation.line import Line
from zk0d.machine import release_key
from zk0d.machine.keys import make_node_key
from zk0d.machine.node_word import HEADER, NodeWords, NotANode, write_word
from zk0d.machine.setup import set_release_key
from zk0d.release.checkpoint import accept
from zk0d.release.manifest import FILE, Offer, Release, SignedOffer, SignedRelease
from zk0d.release.offer import Offered
from zk0d.services import releases
from zk0d.services.pull import Source, pull

needs_nginx = pytest.mark.skipif(not nginx(), reason="needs nginx (package nginx-light)")
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("releases")]

WAYS = ["without", *(pytest.param(way, marks=needs_nginx) for way in ("nginx", "through-nginx"))]


@dataclass
class Counted(Line):
    """A line that says how much came, and may be cut once at so many bytes."""

    cut_at: int = 0
    came: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__init__(LimitsSettings())

    def received(self, count: int) -> float:
        self.came += count
        if self.cut_at and self.came >= self.cut_at:
            raise KeyboardInterrupt  # as a person who ends the command
        return 0.0


@pytest.fixture(scope="module", params=WAYS)
def door(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    with_nginx, carries = request.param != "without", request.param == "nginx"
    with opened(tmp_path_factory.mktemp("shop"), with_nginx=with_nginx, carries=carries) as made:
        yield made


@pytest.fixture
def shop(door: Shop) -> Iterator[Shop]:
    """The same, with nothing offered and nothing here."""
    yield door
    door.clear()


def said_by(refused: Callable[[], Any]) -> Zk0dError:
    with pytest.raises(Zk0dError) as caught:
        refused()
    assert "\n" not in caught.value.message
    return caught.value


# --- what comes -----------------------------------------------------------------------------------


def test_the_latest_release_comes_as_lerobot_loads_it(shop: Shop) -> None:
    source = shop.put("7", 1.5, 1.0, files={"statistics/so101/policy_preprocessor.json": b"{}"})
    folder = shop.pull()
    assert folder == shop.client.policies_folder / "7/checkpoint_round_1"
    here = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    there = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    assert here == there | {Path(FILE)}
    for name in there:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert shop.pulled.find("latest") == shop.pulled.find("best") == folder
    assert shop.pulled.find("7") == shop.pulled.find("7/1") == folder
    assert not list(shop.pulled.incoming.iterdir())


def test_a_range_comes_and_nginx_sends_what_it_may_read(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.put("7", 1.5, 1.0)
    (release,) = offered_releases(shop)
    file = next(each for each in release.files if each.path == "model.safetensors")
    ours: list[Path] = []

    class Seen(FileResponse):
        def __init__(self, path: Path, **how: Any) -> None:
            ours.append(path)
            super().__init__(path, **how)

    monkeypatch.setattr(releases, "FileResponse", Seen)
    answer = shop.get(f"/releases/7/1/{file.sha256}")
    assert (answer.status_code, len(answer.content)) == (200, file.size)
    ranged = shop.get(f"/releases/7/1/{file.sha256}", range="bytes=10-19")
    assert (ranged.status_code, ranged.content) == (206, answer.content[10:20])
    assert ranged.headers["content-range"] == f"bytes 10-19/{file.size}"
    assert len(ours) == (0 if shop.carried else 2)


def offered_releases(shop: Shop) -> list[Release]:
    with shop.source() as source:
        return source.ask().releases()


def test_a_pull_that_is_cut_resumes(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    line = Counted(cut_at=400_000)
    with pytest.raises(KeyboardInterrupt):
        shop.pull(line=line)
    (part,) = shop.pulled.incoming.glob("*.part")
    torn = part.stat().st_size
    assert 0 < torn < 900_000
    assert not shop.pulled.all(), "half a release has no name"
    again = Counted()
    folder = shop.pull(line=again)
    size = sum(
        path.stat().st_size for path in folder.rglob("*") if path.name != FILE and path.is_file()
    )
    assert again.came < size, "what came is not asked for again"
    assert (folder / "model.safetensors").read_bytes() == b"7/1" * 300_000


def test_a_connection_that_breaks_is_taken_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put("7", 1.5, 1.0)
    asked: list[str] = []
    with shop.source() as source:
        real = source._http.stream

        @contextlib.contextmanager
        def breaks_once(method: str, url: str, headers: dict[str, str]) -> Iterator[Any]:
            with real(method, url, headers=headers) as answer:
                asked.append(headers.get("range", ""))
                whole = answer.iter_raw
                if int(answer.headers.get("content-length", 0)) > 800_000 and len(asked) < 20:
                    monkeypatch.setattr(answer, "iter_raw", lambda: broken(whole()))
                yield answer

        def broken(parts: Iterator[bytes]) -> Iterator[bytes]:
            yield next(parts)
            raise httpx.ReadError("the line broke")

        monkeypatch.setattr(source._http, "stream", breaks_once)
        folder = pull(shop.client, source, "latest").folder
    assert (folder / "model.safetensors").read_bytes() == b"7/1" * 300_000
    assert any(each.endswith("-899999") and each != "bytes=0-899999" for each in asked)


def test_a_large_file_of_several_releases_is_one_on_the_disk(shop: Shop) -> None:
    frozen = {"zk0d/clip-0123456789ab/model.safetensors": os.urandom(2**20 + 1)}
    shop.put("7", 1.5, 1.0, files=frozen)
    shop.put("8", 1.5, 0.9, files=frozen, began="2026-01-02T00:00:00Z")
    first = shop.pull("7")
    line = Counted()
    second = shop.pull("8", line)
    (name,) = frozen
    assert (first / name).stat().st_ino == (second / name).stat().st_ino
    assert line.came < 2**20, "it does not come twice"
    small = "policy_preprocessor.json"
    assert (first / small).stat().st_ino != (second / small).stat().st_ino, "owners change those"
    assert (second / name).stat().st_mode & 0o222 == 0


def test_a_release_that_was_accepted_by_hand_is_offered_as_the_latest(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    worse = shop.put("7", 1.5, 1.0, 1.6)
    assert not shop.pull("7/2").samefile(shop.pull("latest"))
    assert not shop.pulled.all()[-1].release.is_released
    accept(worse, "the arm likes it", shop.door._offered._releases)
    shop.offered.hash_new()
    folder = shop.pull("latest")
    assert folder.name == "checkpoint_round_2"
    assert shop.pulled.all()[-1].release.accepted == "the arm likes it"
    assert shop.pulled.find("best").name == "checkpoint_round_1", "which the gate let pass"


def test_what_was_hashed_outlives_a_restart(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put("7", 1.5, 1.0)
    again = Offered(shop.door._offered._releases, shop.server.superlink.state)
    monkeypatch.setattr(Offered, "_hash", lambda *_: pytest.fail("hashed twice"))
    again.hash_new()
    before, after = shop.offered.of("7/1"), again.of("7/1")
    assert before is not None
    assert after is not None
    assert after.signed == before.signed


def test_the_lines_rate_holds_and_bytes_are_counted(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    rests: list[float] = []
    book = LineBook(shop.client.policies_folder)
    limits = LimitsSettings(download_rate=100_000)
    now = [0.0]

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        now[0] += seconds

    line = Line(limits, book, clock=lambda: now[0], sleep=sleep)
    shop.pull(line=line)
    assert book.today().down > 900_000
    assert sum(rests) > 900_000 / 100_000 - 2.0


# --- what is refused ------------------------------------------------------------------------------


def test_a_node_that_is_not_in_the_roster(shop: Shop, tmp_path: Path) -> None:
    shop.put("7", 1.5, 1.0)
    stranger = tmp_path / "stranger.key"
    make_node_key(stranger)
    (release,) = offered_releases(shop)
    file = f"/releases/7/1/{release.files[0].sha256}"
    for page in ("/releases", file):
        assert shop.get(page, stranger).status_code == 403
        assert httpx.get(shop.url + page, verify=shop.trust).status_code == 401
    with shop.source(key=stranger) as source:
        error = said_by(source.ask)
    assert "is not in the coordinator's roster" in error.message
    assert shop.get(file).status_code == 200


def test_a_node_that_was_removed(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    public = shop.server.superlink.roster / "arm.pub"
    kept = public.read_bytes()
    public.unlink()
    try:
        assert "roster" in said_by(shop.pull).message
    finally:
        public.write_bytes(kept)


def test_a_request_counts_once_for_one_page_and_a_while(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    path = httpx.URL(f"{shop.url}/releases").path
    word, _ = write_word(shop.key, path)

    def ask(value: str) -> tuple[int, str]:
        answer = httpx.get(f"{shop.url}/releases", headers={HEADER: value}, verify=shop.trust)
        return answer.status_code, answer.text

    assert ask(word)[0] == 200
    assert ask(word) == (401, "the coordinator has seen this request before.\n")
    elsewhere, _ = write_word(shop.key, f"{path}/7/1/{'0' * 64}")
    assert ask(elsewhere)[0] == 401, "a request of another page"
    roster = {word.partition(".")[0]: shop.server.superlink.roster / "arm.pub"}
    for ahead, says in ((400.0, "400 s old"), (-400.0, "400 s early")):
        fresh, _ = write_word(shop.key, path)
        moment = int(fresh.split(".")[1])
        words = NodeWords(lambda: roster, clock=lambda at=moment + ahead: at)  # type: ignore[misc]
        with pytest.raises(NotANode, match=says):
            words.check(fresh, path)


def test_other_paths_and_methods(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    secret = shop.server.releases_folder / "7/checkpoint_round_1/secret.key"
    secret.write_text("x")
    shop.offered.hash_new()
    (release,) = offered_releases(shop)
    assert "secret.key" not in {file.path for file in release.files}
    refused = (403, 404, 405)
    for page in (
        f"/releases/7/1/{'0' * 64}",
        f"/releases/7/9/{release.files[0].sha256}",
        "/releases/7/1/secret.key",
        "/releases/7/1/..%2f..%2fsecret.key",
        "/release-files/7/checkpoint_round_1/README.md",
    ):
        assert shop.get(page).status_code in refused, page
    for method in ("POST", "PUT", "DELETE"):
        assert (
            httpx.request(method, f"{shop.url}/releases", verify=shop.trust).status_code in refused
        )


def test_a_coordinator_that_does_not_share(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put("7", 1.5, 1.0)
    monkeypatch.setattr(shop.door, "_shared", False)
    assert "does not share its releases" in said_by(shop.pull).message


def test_no_release_yet_and_one_that_is_unknown(shop: Shop) -> None:
    error = said_by(shop.pull)
    assert isinstance(error, UnavailableError)
    assert "the coordinator has no release yet" in error.message
    shop.put("7", 1.5, 1.0)
    assert "offers no release '9'" in said_by(lambda: shop.pull("9")).message
    assert "offers no release '7/5'" in said_by(lambda: shop.pull("7/5")).message
    assert "no release is in" in said_by(lambda: shop.pulled.find("latest")).message
    assert "zk0bot policy pull 9" in said_by(lambda: shop.pulled.find("9")).message


def test_a_coordinator_that_is_away(shop: Shop) -> None:
    away = shop.client.model_copy(
        update={
            "coordinator": shop.client.coordinator.model_copy(
                update={"presence": "http://127.0.0.1:9/zk0d/v1"}
            )
        }
    )
    source = Source(away, shop.key)
    error = said_by(source.ask)
    source.close()
    assert isinstance(error, TryAgainError)
    assert "--here" in error.message


def test_a_file_with_another_content_than_was_signed(shop: Shop) -> None:
    """The disk of the coordinator lies; the length and the times are the same."""
    folder = shop.put("7", 1.5, 1.0)
    weights = folder / "model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"x")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    error = said_by(shop.pull)
    assert error.reason == "wrong_hash"
    assert "model.safetensors is not the file that the coordinator signed" in error.message
    assert not list(shop.pulled.incoming.glob("*.part")), "what came wrong is not resumed"
    assert not shop.pulled.all()


def test_a_file_that_changed_since_is_not_sent(shop: Shop) -> None:
    folder = shop.put("7", 1.5, 1.0)
    (release,) = offered_releases(shop)
    file = next(each for each in release.files if each.path == "README.md")
    (folder / "README.md").write_text("another card")
    assert shop.get(f"/releases/7/1/{file.sha256}").status_code == 404


class Lying:
    """A coordinator's answers, made by whoever holds its certificate, with a key of its own."""

    def __init__(self, shop: Shop, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.key = folder / "lying.key"
        make_node_key(self.key)
        (self.release,) = offered_releases(shop)
        self.own = release_key.own_key(shop.server.superlink.state)
        self._patch = monkeypatch

    def says(self, signed: SignedRelease, key: Path | None = None, nonce: str = "") -> None:
        """From now on this one release is offered."""

        def told(_: Offered, asked: str) -> SignedOffer:
            offer = Offer(nonce=nonce or asked, latest="7/1", releases=(signed,))
            return SignedOffer.of(offer, key or self.own)

        self._patch.setattr(Offered, "told", told)

    def changed(self, **facts: Any) -> SignedRelease:
        """The manifest with other facts, signed by the coordinator's own key."""
        text = json.dumps({**json.loads(self.release.model_dump_json()), **facts})
        return SignedRelease(text=text, signature=release_key.sign(self.own, "release", text))


@pytest.fixture
def lying(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lying:
    shop.put("7", 1.5, 1.0)
    return Lying(shop, monkeypatch, tmp_path)


def test_a_manifest_of_another_key(shop: Shop, lying: Lying) -> None:
    own = release_key.public_half(lying.own)
    set_release_key(shop.client.coordinator.ca.parents[1], own)
    forged = SignedRelease.of(lying.release, lying.key)
    lying.says(forged)
    error = said_by(shop.pull)
    assert error.reason == "wrong_signature"
    assert "release 7/1: its manifest is not signed by the coordinator's key" in error.message
    lying.says(forged, lying.key)
    error = said_by(shop.pull)
    assert error.reason == "wrong_signature"
    assert "zk0bot client join with a new invite" in error.message
    assert not shop.pulled.all()


def test_an_answer_to_another_request(shop: Shop, lying: Lying) -> None:
    """An old list, though signed, hides what came since."""
    lying.says(SignedRelease.of(lying.release, lying.own), nonce="0" * 32)
    assert said_by(shop.pull).reason == "wrong_signature"


def test_the_first_key_is_kept_and_an_invites_comes_first(shop: Shop, lying: Lying) -> None:
    shop.pull()
    pinned = shop.client.policies_folder / release_key.PINNED
    own = release_key.public_half(lying.own)
    assert pinned.read_text().strip() == own
    lying.says(SignedRelease.of(lying.release, lying.key), lying.key)
    assert said_by(shop.pull).reason == "wrong_signature"
    set_release_key(shop.client.coordinator.ca.parents[1], release_key.public_half(lying.key))
    assert shop.pull().is_dir(), "a new invite brought the new key"


@pytest.mark.parametrize(
    "path",
    [
        "../../../etc/cron.d/x",
        "/etc/passwd",
        "zk0d/../config.json",
        "zk0d/x/../../model.safetensors",
        "modeling_act.py",
        "pytorch_model.bin",
        "model.pt",
        "zk0d/vlm-1/weights.pkl",
        ".bashrc",
        "release.json",
        "statistics/../policy_preprocessor.json",
        "config.json\n",
    ],
)
def test_a_manifest_with_a_name_outside_lerobots_layout(
    shop: Shop, lying: Lying, path: str
) -> None:
    files = [{"path": path, "size": 1, "sha256": "0" * 64}]
    lying.says(lying.changed(files=files))
    error = said_by(shop.pull)
    assert error.reason == "bad_manifest"
    assert "is not a file of LeRobot's layout" in error.message


def test_a_manifest_whose_run_is_a_path(shop: Shop, lying: Lying) -> None:
    lying.says(lying.changed(run="../../x"))
    assert said_by(shop.pull).reason == "no_release"
    assert not list(shop.client.policies_folder.parent.glob("x"))


def test_a_manifest_that_names_a_file_twice(shop: Shop, lying: Lying) -> None:
    file = json.loads(lying.release.files[0].model_dump_json())
    lying.says(lying.changed(files=[file, file]))
    assert "names a file twice" in said_by(shop.pull).message


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"lerobot": "0.5.1"}, "written with LeRobot 0.5.1, and this machine has"),
        ({"lerobot": ""}, "written with LeRobot (not said)"),
        ({"policy": "pi9"}, "a policy of type 'pi9', which this zk0d does not know"),
        ({"policy": "smolvla"}, "its config.json is of act, and its manifest says smolvla"),
    ],
)
def test_another_lerobot_or_policy(
    shop: Shop, lying: Lying, facts: dict[str, Any], says: str
) -> None:
    lying.says(lying.changed(**facts))
    assert says in said_by(shop.pull).message
    assert not shop.pulled.all()


def test_a_policy_whose_package_is_missing(
    shop: Shop, lying: Lying, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0d.services import pull as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    lying.says(lying.changed(policy="diffusion"))
    assert "needs the package diffusers" in said_by(shop.pull).message


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b'{"type": "act", "auto_map": {"x": "y.Z"}}'}, "'auto_map' names code"),
        (
            {"policy_preprocessor.json": b'{"steps": [{"class": "os.system"}]}'},
            "'class' names code",
        ),
        ({"config.json": b"nothing"}, "nothing that can be read"),
    ],
)
def test_a_release_that_names_code(shop: Shop, files: dict[str, bytes], says: str) -> None:
    shop.put("7", 1.5, 1.0, files=files)
    assert says in said_by(shop.pull).message
    assert not shop.pulled.all()


def test_a_disk_without_room(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    shop.put("7", 1.5, 1.0)
    error = said_by(shop.pull)
    assert error.reason == "disk_full"
    assert "needs" in error.message


def test_two_pulls_at_once(shop: Shop) -> None:
    from zk0d.services.pull import _alone

    shop.put("7", 1.5, 1.0)
    with _alone(shop.client.policies_folder):
        assert "another pull is under way" in said_by(shop.pull).message


def test_a_release_that_was_changed_here_is_seen(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    folder = shop.pull()
    (found,) = shop.pulled.all()
    key = shop.pulled.known_key(shop.client)
    assert found.check(key) == ("whole", "")
    card = folder / "README.md"
    card.chmod(0o644)
    card.write_text("another card")
    assert found.check(key) == ("changed", "README.md")
    with pytest.raises(ConfigError):
        found.signed.check(release_key.public_half(make_other(folder)))


def make_other(folder: Path) -> Path:
    key = folder.parent / "other.key"
    make_node_key(key)
    return key
