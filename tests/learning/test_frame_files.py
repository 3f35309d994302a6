"""Decoded frames stay on disk: the next start decodes only what it has not decoded before."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learning.damage import first_video, make_dataset, record_more
from zk0d.config.machine import CacheSettings
from zk0d.errors import TryAgainError
from zk0d.learning import frames as frames_module
from zk0d.learning.frame_files import HEAD_BYTES, FrameFiles, Frames
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache
from zk0d.learning.pictures import pictures as all_pictures
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.progress import Decoding, Progress
from zk0d.learning.recordings import Recordings, open_recordings

Decoded = list[tuple[str, int]]
TWO_CAMERAS = {"observation.images.top": (32, 32), "observation.images.side": (32, 48)}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Each decoding of an episode: its camera and number."""
    done: Decoded = []
    decode = frames_module.decode_episode

    def counted(recordings: Recordings, key: str, number: int, *more: Any) -> Any:
        done.append((key.rpartition(".")[2], number))
        return decode(recordings, key, number, *more)

    monkeypatch.setattr(frames_module, "decode_episode", counted)
    return done


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "arm", [5, 4, 6], cameras=TWO_CAMERAS)
    return tmp_path / "arm"


def opened(dataset: Path) -> Recordings:
    return open_recordings(f"local:{dataset}")


def pixels(
    recordings: Recordings,
    place: Path,
    memory: int = 2**30,
    disk: int = 2**30,
    bad: BadFrames | None = None,
    **more: Any,
) -> PixelCache:
    budget = FrameBudget(memory, place, disk)
    return PixelCache(recordings, bad or BadFrames(recordings, 0), budget, **more)


def batch(cache: PixelCache, recordings: Recordings) -> dict[str, torch.Tensor]:
    return cache.batch(torch.arange(len(recordings)))


def kept(place: Path) -> list[Path]:
    return sorted((place / "frames").glob("*.frames"))


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("pictures", ["video", "image"])
@pytest.mark.parametrize("memory", [0, 7 * 3 * 32 * (32 + 48), 2**30])
def test_the_second_start_decodes_nothing_and_gives_the_same_bits(
    tmp_path: Path, decoded: Decoded, memory: int, pictures: str
) -> None:
    dataset = tmp_path / "arm"
    make_dataset(dataset, [5, 4, 6], pictures, cameras=TWO_CAMERAS)
    before = snapshot(dataset)
    recordings = opened(dataset)
    told: list[Progress] = []
    expected = batch(pixels(recordings, tmp_path, memory, disk=0), recordings)
    first = batch(pixels(recordings, tmp_path, memory), recordings)
    assert len(decoded) == 2 * 6
    again = opened(dataset)
    second = batch(pixels(again, tmp_path, memory, tell=told.append), again)
    assert len(decoded) == 2 * 6, "none more"
    assert_equal(first, expected)
    assert_equal(second, expected)
    assert snapshot(dataset) == before, "recordings are only read"
    last = told[-1]
    assert isinstance(last, Decoding)
    assert last.kept == last.frames == last.of == 2 * len(recordings)


def in_the_next_session(dataset: Path) -> None:
    record_more(dataset, 7)


def in_the_same_session(dataset: Path) -> None:
    """LeRobot then adds an episode to the video that has the others."""
    size = first_video(dataset).stat().st_size
    shutil.rmtree(dataset)
    make_dataset(dataset, [5, 4, 6, 7], cameras=TWO_CAMERAS)
    assert first_video(dataset).stat().st_size > size


@pytest.mark.parametrize("record", [in_the_next_session, in_the_same_session])
def test_one_new_episode_is_all_that_is_decoded_of_recordings_that_grew(
    dataset: Path, tmp_path: Path, decoded: Decoded, record: Callable[[Path], None]
) -> None:
    pixels(opened(dataset), tmp_path)
    decoded.clear()
    record(dataset)
    grown = opened(dataset)
    cache = pixels(grown, tmp_path)
    assert sorted(decoded) == [("side", 3), ("top", 3)]
    assert_equal(batch(cache, grown), batch(pixels(grown, tmp_path, disk=0), grown))


def test_recordings_that_were_copied_find_what_was_decoded(
    dataset: Path, tmp_path: Path, decoded: Decoded
) -> None:
    pixels(opened(dataset), tmp_path)
    decoded.clear()
    pixels(opened(Path(shutil.copytree(dataset, tmp_path / "copy"))), tmp_path)
    assert not decoded


def test_changed_pictures_are_decoded_whatever_their_file_says(
    dataset: Path, tmp_path: Path, decoded: Decoded
) -> None:
    """A file with the size and times of before, in which one episode is another."""
    recordings = opened(dataset)
    before = batch(pixels(recordings, tmp_path), recordings)
    video = first_video(dataset)
    times = video.stat()
    content = bytearray(video.read_bytes())
    # The first byte of a packet's picture: the file stays readable.
    start = content.find(b"mdat") + 4
    packet = content.index(bytes([0, 0, 0, 1]), start) if b"\0\0\0\1" in content[start:] else start
    content[packet + 40] ^= 0x10
    video.write_bytes(content)
    os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))
    decoded.clear()
    changed = opened(dataset)
    pixels(changed, tmp_path, bad=BadFrames(changed, len(changed)))
    assert decoded, "its content is another"
    assert {number for _, number in decoded} < {0, 1, 2}, "the other episodes are as they were"
    assert before


@pytest.mark.parametrize("policy", ["smolvla", "act"])
def test_prepared_recordings_are_the_same_bits_after_a_restart(
    recordings: Recordings,
    smolvla: LoadedPolicy,
    act: LoadedPolicy,
    policy: str,
    tmp_path: Path,
    decoded: Decoded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = CacheSettings(folder=tmp_path)
    loaded = {"smolvla": smolvla, "act": act}[policy]
    first = PreparedRecordings(recordings, loaded, cache)
    assert len(decoded) == len(recordings.episodes)
    decoded.clear()

    def none(frames: torch.Tensor) -> torch.Tensor:
        assert len(frames) == 1, "one shows what is made of it"
        return torch.zeros((1, *shape[1:]), dtype=dtype)

    rows = torch.arange(len(recordings))
    statistics = first.statistics()
    expected = first.batches(statistics).batch(rows)
    if first.features is not None:
        shape, dtype = (v := first.features.rows("top", rows)).shape, v.dtype
        monkeypatch.setattr(loaded, "embed_images", none)
    second = PreparedRecordings(recordings, loaded, cache)
    assert not decoded
    found = second.batches(statistics).batch(rows)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        same = (
            torch.equal(found[name], values) if torch.is_tensor(values) else found[name] == values
        )
        assert same, name


KEY = """
import sys
from zk0d.learning.policy import load_policy
from zk0d.learning.spec import PolicySpec
print(load_policy(PolicySpec.model_validate_json(sys.argv[1]), device="cpu").vision_key())
"""


def test_another_models_features_are_not_used(
    recordings: Recordings, smolvla: LoadedPolicy, tmp_path: Path, decoded: Decoded
) -> None:
    cache = CacheSettings(folder=tmp_path)
    other = load_policy(spec_for("smolvla", "tiny", 1, recordings.summary, {}), device="cpu")
    rows = torch.arange(0, len(recordings), 9)
    features = []
    for policy in (smolvla, other, smolvla):
        prepared = PreparedRecordings(recordings, policy, cache)
        assert prepared.features is not None
        features.append(prepared.features.rows("top", rows))
    assert len(decoded) == 2 * len(recordings.episodes)
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[1])
    # What trains has no part in what is made of a frame.
    for parameter in smolvla.trainable().values():
        torch.nn.init.normal_(parameter)
    PreparedRecordings(recordings, smolvla, cache)
    assert len(decoded) == 2 * len(recordings.episodes)


@pytest.mark.slow
def test_a_models_key_is_the_same_in_the_next_process(smolvla: LoadedPolicy) -> None:
    said = subprocess.run(
        [sys.executable, "-c", KEY, smolvla.spec.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == smolvla.vision_key()


def test_pictures_that_are_not_shrunk_serve_every_policy(
    recordings: Recordings, act: LoadedPolicy, tmp_path: Path, decoded: Decoded
) -> None:
    PreparedRecordings(recordings, act, CacheSettings(folder=tmp_path))
    decoded.clear()
    pixels(recordings, tmp_path)
    assert not decoded

    def halves(frames: torch.Tensor) -> torch.Tensor:
        return frames[:, :, ::2, ::2]

    pixels(recordings, tmp_path, shrink=halves, made_by="one")
    pixels(recordings, tmp_path, shrink=halves, made_by="one")
    assert len(decoded) == len(recordings.episodes)
    pixels(recordings, tmp_path, shrink=halves, made_by="another")
    assert len(decoded) == 2 * len(recordings.episodes)


def torn(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def torn_head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)


def short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def tiny(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def strange(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def another(path: Path) -> None:
    (other,) = [each for each in kept(path.parent.parent) if each != path][:1]
    shutil.copyfile(other, path)


@pytest.mark.parametrize("harm", [torn, torn_head, short, tiny, empty, strange, another])
def test_a_file_that_is_not_what_was_written_is_made_again(
    dataset: Path,
    tmp_path: Path,
    decoded: Decoded,
    harm: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recordings = opened(dataset)
    expected = batch(pixels(recordings, tmp_path), recordings)
    assert len(kept(tmp_path)) == 6
    harm(kept(tmp_path)[2])
    decoded.clear()
    assert_equal(batch(pixels(recordings, tmp_path, memory=0), recordings), expected)
    assert len(decoded) == 1
    assert caplog.text.count("is not used and made again") == 1
    decoded.clear()
    pixels(recordings, tmp_path)
    assert not decoded


def test_a_decoding_that_was_cut_resumes_at_the_next_episode(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = opened(dataset)
    decode = frames_module.decode_episode

    class Killed(Exception):
        pass

    def cut(recordings: Recordings, key: str, number: int, *more: Any) -> Any:
        if number == 2:
            raise Killed
        return decode(recordings, key, number, *more)

    monkeypatch.setattr(frames_module, "decode_episode", cut)
    with pytest.raises(Killed):
        pixels(recordings, tmp_path)
    done: list[int] = []

    def counted(recordings: Recordings, key: str, number: int, *more: Any) -> Any:
        done.append(number)
        return decode(recordings, key, number, *more)

    monkeypatch.setattr(frames_module, "decode_episode", counted)
    pixels(recordings, tmp_path)
    assert done == [2, 2]


@pytest.mark.parametrize("pictures", ["video", "image"])
def test_missing_pictures_are_kept_with_their_episode(
    tmp_path: Path, decoded: Decoded, monkeypatch: pytest.MonkeyPatch, pictures: str
) -> None:
    make_dataset(tmp_path / "arm", [5, 4], pictures)
    real = all_pictures

    def without(*args: Any) -> Any:
        yield from ((row, each) for row, each in real(*args) if row != 1)

    monkeypatch.setattr("zk0d.learning.frames.pictures", without)
    recordings = opened(tmp_path / "arm")
    counts = []
    for _ in range(2):
        bad = BadFrames(recordings, 2)
        cache = pixels(recordings, tmp_path, bad=bad)
        counts.append((bad.count, bad.bad.tolist(), bad.examples))
        assert int(cache.rows("top", torch.tensor([1])).max()) == 0
    assert len(decoded) == 2
    assert counts[0] == counts[1]
    assert counts[0][0] == 2


def test_files_are_their_owners_alone(dataset: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pixels(opened(dataset), tmp_path)
    finally:
        os.umask(before)
    folder = tmp_path / "frames"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_another_users_folder_is_not_believed(
    dataset: Path,
    tmp_path: Path,
    decoded: Decoded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pixels(opened(dataset), tmp_path)
    decoded.clear()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    pixels(opened(dataset), tmp_path)
    assert len(decoded) == 6
    assert "no frames are kept there (it is another user's)" in caplog.text


# --- room -----------------------------------------------------------------------------------------


def size_of(recordings: Recordings) -> int:
    return sum(
        HEAD_BYTES + len(episode) * 3 * height * width
        for episode in recordings.layout.episodes
        for height, width in TWO_CAMERAS.values()
    )


@pytest.mark.slow
def test_the_limit_holds_for_all_that_is_there(tmp_path: Path, decoded: Decoded) -> None:
    sets = []
    for name, lengths in (("a", [5, 4, 6]), ("b", [6, 5, 5]), ("c", [3, 3, 8])):
        make_dataset(tmp_path / name, lengths, cameras=TWO_CAMERAS)
        sets.append(opened(tmp_path / name))
    # The grey of a frame is its number's, so each episode of another length has a file of its own.
    limit = size_of(sets[0]) + size_of(sets[1])
    for number, recordings in enumerate(sets):
        pixels(recordings, tmp_path, disk=limit)
        os.sync()
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= limit
        for path in kept(tmp_path):  # what was used before is older, however coarse times are
            os.utime(path, (number, path.stat().st_mtime - 100))
    decoded.clear()
    pixels(sets[2], tmp_path, disk=limit)
    assert not decoded, "what was used last stays"
    pixels(sets[0], tmp_path, disk=limit)
    assert decoded, "what was used least recently went"
    assert sum(path.stat().st_size for path in kept(tmp_path)) <= limit


def test_a_lower_limit_holds_at_the_next_start(dataset: Path, tmp_path: Path) -> None:
    recordings = opened(dataset)
    pixels(recordings, tmp_path)
    cache = pixels(recordings, tmp_path, memory=0, disk=size_of(recordings) // 2)
    assert 0 < sum(path.stat().st_size for path in kept(tmp_path)) <= size_of(recordings) // 2
    assert_equal(batch(cache, recordings), batch(pixels(recordings, tmp_path, disk=0), recordings))


def test_nothing_is_kept_where_no_disk_is_allowed(dataset: Path, tmp_path: Path) -> None:
    pixels(opened(dataset), tmp_path, disk=0)
    assert not (tmp_path / "frames").exists()


def test_strange_files_in_the_folder_are_left_alone(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir(mode=0o700)
    own = tmp_path / "frames/notes.txt"
    own.write_text("mine" * 10_000)
    recordings = opened(dataset)
    pixels(recordings, tmp_path, disk=size_of(recordings) // 2)
    assert own.read_text() == "mine" * 10_000


def frames(value: int) -> Frames:
    return Frames(torch.full((4, 3, 32, 32), value, dtype=torch.uint8), torch.zeros(4).bool())


ONE = HEAD_BYTES + 4 * 3 * 32 * 32


def test_what_another_learner_uses_is_not_removed(tmp_path: Path) -> None:
    one, other = (FrameFiles(tmp_path, 2 * ONE) for _ in range(2))
    assert one.room() == 2 * ONE
    one.use(["a"])
    assert one.write("a", frames(1)) is not None
    other.use(["b", "c"])
    assert other.room() == ONE
    assert other.write("b", frames(2)) is not None
    assert other.write("c", frames(3)) is None, "there is no room beside what is used"
    names = [path.stem for path in kept(tmp_path)]
    assert names == ["a", "b"]
    del one
    assert other.room() == 2 * ONE
    assert other.write("c", frames(3)) is not None, "its user has ended"
    assert [path.stem for path in kept(tmp_path)] == ["b", "c"]
    found = other.read("c", (4, 3, 32, 32), torch.uint8)
    assert found is not None
    assert torch.equal(found.values, frames(3).values)


def test_a_draft_that_a_killed_learner_left_counts_and_is_removed(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir(mode=0o700)
    draft = tmp_path / "frames/.x.frames.partial"
    draft.write_bytes(bytes(ONE))
    files = FrameFiles(tmp_path, ONE)
    files.use(["a"])
    assert files.write("a", frames(1)) is not None
    assert not draft.exists()


def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    files = FrameFiles(tmp_path, 2**30)
    assert files.room()
    names = [f"{number:03}" for number in range(100)]
    files.use(names)
    before = len(os.listdir("/proc/self/fd"))
    held = [files.write(name, frames(number)) for number, name in enumerate(names)]
    held += [files.read(name, (4, 3, 32, 32), torch.uint8) for name in names]
    assert None not in held
    assert len(os.listdir("/proc/self/fd")) == before


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_only_the_next_start_where_memory_has_all(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recordings = opened(dataset)
    monkeypatch.setattr("zk0d.learning.frame_files.posix_fallocate", full)
    cache = pixels(recordings, tmp_path)
    assert "the next start decodes again: " in caplog.text
    assert not kept(tmp_path)
    assert not list((tmp_path / "frames").glob(".*")), "no draft is left"
    assert_equal(batch(cache, recordings), batch(pixels(recordings, tmp_path, disk=0), recordings))
    with pytest.raises(TryAgainError, match="of decoded frames cannot be written") as error:
        pixels(recordings, tmp_path, memory=0)
    assert error.value.reason == "disk_full"


# --- progress -------------------------------------------------------------------------------------


def test_progress_is_told_within_an_episode(
    recordings: Recordings, smolvla: LoadedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(frames_module, "EMBED_BATCH", 4)
    told: list[Progress] = []
    PreparedRecordings(
        recordings, smolvla, CacheSettings(folder=tmp_path), episodes=[0], tell=told.append
    )
    length = len(recordings.layout.episodes[0])
    done = [each.frames for each in told if isinstance(each, Decoding)]
    assert done == sorted(done)
    assert done[-1] == length
    half = length // 2
    assert len([each for each in done if 0 < each < half]) > half // 2, "while pictures come"
    assert len([each for each in done if half < each < length]) > length // 10, "and outputs"
