"""Everything that can be wrong with recordings is said in one sentence."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.learning.damage import change_info, first_video, set_value
from tests.recordings import shapes
from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError, ExitCode, TryAgainError, UnavailableError
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache, decode_episode
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.spec import PolicySpec, check_fit

Change = Callable[[dict[str, Any]], None]


def refusal(folder: Path, **how: Any) -> str:
    with pytest.raises(DataError) as error:
        open_recordings(f"local:{folder}", **how)
    assert "\n" not in error.value.message
    assert str(folder) in error.value.message
    assert error.value.reason == "data_error"
    return error.value.message


def test_good_recordings_open(recordings: Recordings) -> None:
    summary = recordings.summary
    assert (summary.episodes, summary.fps) == (6, 30)
    assert (summary.state_width, summary.action_width) == (9, 6)
    assert summary.cameras == {"top": (3, 96, 96)}
    assert summary.robot_type == "so101_follower"
    assert recordings.tasks[0].startswith("touch the ")
    assert recordings.place(0) == "episode 0, frame 0"


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nothing")


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    assert "meta/info.json is missing" in refusal(tmp_path)


def test_a_broken_description(copied_recordings: Path) -> None:
    (copied_recordings / "meta" / "info.json").write_text("{")
    assert "meta/info.json is damaged" in refusal(copied_recordings)


def test_an_old_format(copied_recordings: Path) -> None:
    change_info(copied_recordings, lambda info: info.update(codebase_version="v2.1"))
    said = refusal(copied_recordings)
    assert "v2.1" in said
    assert "convert" in said


def test_no_episodes(copied_recordings: Path) -> None:
    change_info(copied_recordings, lambda info: info.update(total_episodes=0))
    assert "holds no episodes" in refusal(copied_recordings)


@pytest.mark.parametrize("feature", ["action", "observation.state"])
def test_a_missing_feature(copied_recordings: Path, feature: str) -> None:
    change_info(copied_recordings, lambda info: info["features"].pop(feature))
    assert f"has no '{feature}'" in refusal(copied_recordings)


def test_a_missing_data_file(copied_recordings: Path) -> None:
    shutil.rmtree(copied_recordings / "data")
    assert "data/chunk-000/file-000.parquet is missing" in refusal(copied_recordings)


def test_a_damaged_data_file(copied_recordings: Path) -> None:
    next((copied_recordings / "data").rglob("*.parquet")).write_bytes(b"PAR1 no")
    assert "data/chunk-000/file-000.parquet is damaged" in refusal(copied_recordings)


def test_a_missing_video(copied_recordings: Path) -> None:
    video = first_video(copied_recordings)
    video.unlink()
    assert f"{video.relative_to(copied_recordings)} is missing" in refusal(copied_recordings)


def test_missing_metadata(copied_recordings: Path) -> None:
    (copied_recordings / "meta" / "tasks.parquet").unlink()
    assert "meta/tasks.parquet is missing" in refusal(copied_recordings)


def test_a_dataset_of_the_hub_that_was_not_fetched() -> None:
    with pytest.raises(UnavailableError) as error:
        open_recordings("somebody/nowhere")
    assert error.value.reason == "not_fetched"
    assert "zk0bot data fetch somebody/nowhere gets it" in error.value.message


@pytest.mark.parametrize(
    ("cameras", "said"),
    [
        ({"front": "top"}, "[cameras] names 'front'; the recordings have top"),
        ({"top": ""}, "has no camera that is used"),
    ],
)
def test_a_camera_map_that_does_not_fit(
    recordings_folder: Path, cameras: dict[str, str], said: str
) -> None:
    assert said in refusal(recordings_folder, cameras=cameras)


def test_a_camera_is_renamed(recordings_folder: Path) -> None:
    renamed = open_recordings(f"local:{recordings_folder}", cameras={"top": "camera1"})
    assert list(renamed.summary.cameras) == ["camera1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fps": 15}, "the policy's is 15"),
        ({"state_width": 6}, "the state has 9 values, the run's policy takes 6"),
        ({"action_width": 7}, "the action has 6 values, the run's policy takes 7"),
        ({"cameras": {"wrist": (3, 96, 96)}}, "does not know camera 'top' (it knows wrist)"),
    ],
)
def test_recordings_that_do_not_fit_the_policy(
    recordings: Recordings, smolvla_spec: PolicySpec, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as error:
        check_fit(recordings.summary, smolvla_spec.model_copy(update=change), where="here")
    assert said in error.value.message


def test_rates_within_one_percent_are_one(recordings: Recordings, smolvla_spec: PolicySpec) -> None:
    for fps in (29.97, 30.0, 30.25):
        summary = recordings.summary.model_copy(update={"fps": fps})
        check_fit(summary, smolvla_spec, where="here")
    slower = recordings.summary.model_copy(update={"fps": 29.5})
    with pytest.raises(
        DataError, match=r"recorded at 29\.5 frames per second, the policy's is 30;"
    ):
        check_fit(slower, smolvla_spec, where="here")


def test_act_needs_every_camera(recordings: Recordings, act_spec: PolicySpec) -> None:
    wanted = {"top": (3, 96, 96), "wrist": (3, 96, 96)}
    spec = act_spec.model_copy(update={"cameras": wanted})
    with pytest.raises(DataError, match="needs camera 'wrist'"):
        check_fit(recordings.summary, spec, where="here")


@pytest.mark.parametrize("what", ["state", "action"])
def test_a_state_too_wide_for_one_policy_fits_another(
    recordings: Recordings, smolvla_spec: PolicySpec, act_spec: PolicySpec, what: str
) -> None:
    wide = {f"{what}_width": 33}
    summary = recordings.summary.model_copy(update=wide)
    with pytest.raises(DataError) as error:
        check_fit(summary, smolvla_spec.model_copy(update=wide), where="here")
    assert error.value.message == (
        f"here: the {what} has 33 values, policy 'smolvla' takes at most 32; train one that takes"
        " any number (act, diffusion, multi_task_dit)."
    )
    check_fit(summary, act_spec.model_copy(update=wide), where="here")


def test_nan_in_a_frame_is_found(copied_recordings: Path) -> None:
    set_value(copied_recordings, "observation.state", 40, float("nan"))
    recordings = open_recordings(f"local:{copied_recordings}")
    with pytest.raises(DataError, match=r"1 of \d+ frames cannot be used \(episode 1, frame"):
        BadFrames(recordings, allowed=0)
    bad = BadFrames(recordings, allowed=1)
    assert torch.nonzero(bad.bad).flatten().tolist() == [40]
    statistics = recordings.statistics(~bad.bad)
    assert statistics.features["observation.state"].count == len(recordings) - 1


def test_chunks_that_reach_into_a_bad_frame_are_not_sampled(
    copied_recordings: Path, smolvla: LoadedPolicy
) -> None:
    from zk0d.learning.batches import RecordedBatches

    set_value(copied_recordings, "action", 40, float("inf"))
    recordings = open_recordings(f"local:{copied_recordings}")
    bad = BadFrames(recordings, allowed=1)
    usable = set(RecordedBatches(recordings, None, smolvla.config).usable(bad.bad).tolist())
    first = int(recordings.first[40])
    assert not usable & set(range(max(first, 40 - 11), 41))
    assert 41 in usable
    assert len(usable) < len(recordings)


def test_a_corrupt_video_is_counted_and_bounded(copied_recordings: Path) -> None:
    video = first_video(copied_recordings)
    content = bytearray(video.read_bytes())
    # The index stays, so the file opens; the pictures of its later half are noise.
    start = content.find(b"mdat") + 4
    random = np.random.default_rng(0)
    content[start + 6000 :] = random.integers(
        0, 256, len(content) - start - 6000, np.uint8
    ).tobytes()
    video.write_bytes(content)
    recordings = open_recordings(f"local:{copied_recordings}")
    with pytest.raises(DataError) as error:
        PixelCache(recordings, BadFrames(recordings, 0), FrameBudget.of(CacheSettings()))
    assert "breaks off after frame" in error.value.message
    assert video.name in error.value.message
    bad = BadFrames(recordings, allowed=len(recordings))
    PixelCache(recordings, bad, FrameBudget.of(CacheSettings()))
    assert 0 < bad.count <= len(recordings)


def test_a_file_that_is_not_a_video_is_named(copied_recordings: Path) -> None:
    first_video(copied_recordings).write_bytes(b"not a video")
    said = refusal(copied_recordings)
    assert "file-000.mp4 is damaged (Invalid data found when processing input)" in said


def test_no_room_for_frames(recordings: Recordings, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(TryAgainError, match="of decoded frames cannot be written"):
            PixelCache(recordings, BadFrames(recordings, 0), FrameBudget(0, tmp_path, 2**30))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_an_unreadable_video_is_not_called_damaged(
    copied_recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot writes videos for their owner alone. Root may read all, so the refusal is a fake."""

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    recordings = open_recordings(f"local:{copied_recordings}")
    monkeypatch.setattr("av.open", refuse)
    assert "this process may not read it" in refusal(copied_recordings)
    with pytest.raises(DataError, match=r"\.mp4: this process may not read it .*chmod -R a\+rX"):
        decode_episode(recordings, "observation.images.top", 0)


#: Reads a dataset's metadata as every program of zk0d begins to.
READ = """
import sys
from zk0d.daemon.program import guarded
from zk0d.learning.layout import find, read_layout
def read():
    read_layout(find(sys.argv[1]), sys.argv[1])
sys.exit(guarded("zk0d", read))
"""
ZK0BOT = "from zk0d.cli.main import main; main()"
#: Root may read everything; without these two capabilities it may not.
AS_A_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"),
    reason="setpriv (util-linux) is not installed",
)


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(before)


def as_a_user(
    program: str, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(AS_A_USER if os.geteuid() == 0 else ()), sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
        timeout=300,
    )


def may_not_read(path: Path) -> str:
    return (
        f"{path}: this process may not read it (user {os.geteuid()}); give it the right, for"
        " example with chmod -R a+rX on the recordings"
    )


VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


@pytest.mark.slow
@needs_setpriv
@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("..", "."),
        (".", "meta/info.json"),
        ("meta", "meta/info.json"),
        ("meta/info.json", "meta/info.json"),
        ("meta/tasks.parquet", "meta/tasks.parquet"),
        ("meta/episodes", "meta/episodes"),
        ("meta/episodes/chunk-000", "meta/episodes/chunk-000"),
        ("data", "data/chunk-000/file-000.parquet"),
        ("data/chunk-000", "data/chunk-000/file-000.parquet"),
        ("videos", VIDEO),
        ("videos/observation.images.top", VIDEO),
        ("videos/observation.images.top/chunk-000", VIDEO),
    ],
)
def test_a_forbidden_folder_is_not_called_missing(
    copied_recordings: Path, place: str, named: str
) -> None:
    uri = f"local:{copied_recordings}"
    with without_rights((copied_recordings / place).resolve()):
        done = as_a_user(READ, uri)
    assert done.stderr == f"zk0d: {uri}: {may_not_read(copied_recordings / named)}.\n"
    assert done.returncode == ExitCode.UNAVAILABLE


@pytest.mark.slow
@needs_setpriv
@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("hub", "refs"),
        ("refs", "refs"),
        ("refs/v3.0", "refs/v3.0"),
        ("snapshots", "snapshots/abc/meta/info.json"),
        ("snapshots/abc/meta", "snapshots/abc/meta/info.json"),
    ],
)
def test_forbidden_downloads_are_not_called_missing(
    recordings_folder: Path, tmp_path: Path, place: str, named: str
) -> None:
    cached = tmp_path / "hub/datasets--ann--cubes"
    shutil.copytree(recordings_folder, cached / "snapshots/abc")
    (cached / "refs").mkdir()
    (cached / "refs/v3.0").write_text("abc\n")
    home = {"HF_LEROBOT_HOME": str(tmp_path)}
    assert as_a_user(READ, "ann/cubes", env=home).returncode == ExitCode.OK
    with without_rights(cached.parent if place == "hub" else cached / place):
        done = as_a_user(READ, "ann/cubes", env=home)
    assert done.stderr == f"zk0d: ann/cubes: {may_not_read(cached / named)}.\n"
    assert done.returncode == ExitCode.UNAVAILABLE


@pytest.mark.slow
@needs_setpriv
@pytest.mark.parametrize(
    ("place", "words", "named"),
    [
        ("..", "check HERE/dataset", "meta/info.json"),
        ("meta", "check HERE/dataset", "meta/info.json"),
        ("meta/info.json", "check HERE/dataset", "meta/info.json"),
        ("meta/episodes", "check HERE/dataset", "meta/episodes"),
        ("..", "stats HERE/dataset", "."),
    ],
)
def test_verbs_say_which_folder_is_forbidden(
    copied_recordings: Path, place: str, words: str, named: str
) -> None:
    parent = copied_recordings.parent
    typed = words.replace("HERE", parent.name).split()
    with without_rights((copied_recordings / place).resolve()):
        done = as_a_user(ZK0BOT, "data", *typed, cwd=parent.parent)
    said = done.stdout + done.stderr
    assert may_not_read(copied_recordings / named) in said
    assert "Traceback" not in said
    assert ".;" not in said
    assert done.returncode == ExitCode.UNAVAILABLE


DATA = "data/chunk-000/episode_000000.parquet"
PICTURES = "videos/chunk-000/observation.images.top/episode_000000.mp4"


#: What cannot be read, what is named for it, and whether parts may be left out.
FORBIDDEN = [
    ("..", "meta/info.json", False),
    ("meta/tasks.jsonl", "meta/tasks.jsonl", False),
    ("meta/episodes_stats.jsonl", "meta/episodes_stats.jsonl", False),
    ("data", DATA, False),
    ("data/chunk-000", DATA, True),
    ("videos/chunk-000", PICTURES, True),
    (PICTURES, PICTURES, False),
    ("README.md", "README.md", False),
]
CONVERT = """\
import json, sys
from pathlib import Path
from zk0d.daemon.program import guarded
from zk0d.learning.convert import convert
ends = []
for former, output, partial in json.loads(sys.argv[1]):
    work = lambda: convert(Path(former), Path(output), partial=partial) and None
    ends.append(guarded("zk0d", work))
print(json.dumps(ends))
"""


@pytest.mark.slow
@needs_setpriv
def test_convert_says_which_folder_is_forbidden(tmp_path: Path) -> None:
    """In one process, which is a user without rights to a part of each dataset."""
    (tmp_path / "new").mkdir()
    work = []
    with ExitStack() as forbidden:
        for number, (place, _, partial) in enumerate(FORBIDDEN):
            former = tmp_path / f"parent-{number}/former"
            shapes.write(former, shapes.so101("top"), version="v2.1", lengths=(6, 7))
            forbidden.enter_context(without_rights((former / place).resolve()))
            work.append((str(former), str(tmp_path / f"new/{number}"), partial))
        done = as_a_user(CONVERT, json.dumps(work))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [ExitCode.UNAVAILABLE] * len(FORBIDDEN)
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("zk0d: ")]
    for line, (_, named, _), (folder, _, _) in zip(said, FORBIDDEN, work, strict=True):
        assert may_not_read(Path(folder) / named) in line
    assert not list((tmp_path / "new").iterdir())


def test_a_task_that_is_not_listed(copied_recordings: Path) -> None:
    path = copied_recordings / "meta/tasks.parquet"
    tasks = pd.read_parquet(path)
    tasks.iloc[:0].to_parquet(path)
    with pytest.raises(DataError, match=r"counts 3 tasks, meta/tasks\.parquet has 0"):
        open_recordings(f"local:{copied_recordings}")
