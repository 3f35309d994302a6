"""Cameras by other names, pictures that no policy takes, and what is said to whom."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from typer.testing import CliRunner

from tests.learning.damage import make_dataset
from zk0d.cli.main import app
from zk0d.config.cameras import MappedAt, camera_feature, camera_name, suggest_cameras
from zk0d.errors import DataError, UsageError
from zk0d.learning.cameras import map_cameras, share_out
from zk0d.learning.layout import Info
from zk0d.learning.recordings import open_recordings
from zk0d.learning.spec import PolicySpec, check_alike, check_fit

LENGTHS = (16, 17, 18)


def info(**features: dict[str, Any]) -> Info:
    return Info.model_validate(
        {
            "codebase_version": "v3.0",
            "fps": 30,
            "total_episodes": 1,
            "total_frames": 1,
            "total_tasks": 1,
            "features": {
                name.replace("__", "."): {"dtype": "video", "shape": [48, 64, 3], **more}
                for name, more in features.items()
            },
        }
    )


def mapped(of: Info, mapping: dict[str, str] | None = None) -> tuple[dict[str, str], list[str]]:
    return map_cameras(of, "here", mapping or {}, MappedAt.COMMAND)


@pytest.mark.parametrize(
    ("name", "feature", "said"),
    [
        ("overview_depth", {"shape": [48, 64, 1], "info": {"is_depth_map": True}}, "depth camera"),
        ("back", {"video_info": {"video.is_depth_map": True}}, "depth camera"),
        ("depth", {}, "depth camera"),
        ("d435", {"shape": [48, 64, 1], "info": {"video.pix_fmt": "gray16le"}}, "depth camera"),
        ("d405", {"shape": [1, 48, 64], "info": {"video.pix_fmt": "gray12le"}}, "depth camera"),
        ("front_mask", {}, "mask"),
        ("segmentation", {"shape": [48, 64, 1]}, "mask"),
        ("ir", {"shape": [48, 64, 1]}, "no three colour channels"),
    ],
)
def test_what_no_policy_takes_is_left_out_with_a_notice(
    name: str, feature: dict[str, Any], said: str
) -> None:
    of = info(observation__images__front={}, **{f"observation__images__{name}": feature})
    cameras, notices = mapped(of)
    assert cameras == {"observation.images.front": "front"}
    (notice,) = notices
    assert f"camera '{name}'" in notice
    assert said in notice
    assert mapped(of, {name: ""}) == (cameras, []), "its owner knows"
    if 3 in (feature.get("shape") or [3]):
        assert len(mapped(of, {name: "front2"})[0]) == 2, "its owner wants it"
    else:
        with pytest.raises(DataError, match=f"leave it out: --camera {name}="):
            mapped(of, {name: "front2"})


def test_recordings_with_only_depth_have_no_camera() -> None:
    with pytest.raises(DataError, match=r"no camera that is used .*'depth' is a depth camera"):
        mapped(info(observation__images__depth={}))


@pytest.mark.parametrize(
    ("key", "name", "feature"),
    [
        ("observation.images.front", "front", "observation.images.front"),
        ("observation.images.cam.high", "cam.high", "observation.images.cam.high"),
        ("observation.image", "observation.image", "observation.image"),
        ("observation.wrist_image", "observation.wrist_image", "observation.wrist_image"),
        ("image", "image", "observation.images.image"),
    ],
)
def test_a_camera_is_known_to_lerobot_by_its_feature(key: str, name: str, feature: str) -> None:
    assert camera_name(key) == name
    assert camera_feature(name) == feature
    assert mapped(info(**{key.replace(".", "__"): {}})) == ({key: name}, [])


def test_a_person_need_not_write_the_features_beginning() -> None:
    of = info(observation__image={}, observation__wrist_image={})
    cameras, _ = mapped(of, {"image": "camera1", "wrist_image": ""})
    assert cameras == {"observation.image": "camera1"}


@pytest.mark.parametrize(
    ("own", "wanted", "found"),
    [
        (["overhead"], ["top", "wrist"], {"overhead": "top"}),
        (["up", "hand"], ["wrist", "top"], {"up": "top", "hand": "wrist"}),
        (["gripper_cam", "cam0"], ["front", "wrist"], {"gripper_cam": "wrist", "cam0": "front"}),
        (["left_wrist", "laptop"], ["wrist", "front"], {"left_wrist": "wrist", "laptop": "front"}),
        (["handeye"], ["wrist", "front"], {"handeye": "wrist"}),
        (["frnt"], ["front", "top"], {"frnt": "front"}),
        (
            ["wrist", "top"],
            ["camera1", "camera2", "camera3"],
            {"top": "camera1", "wrist": "camera2"},
        ),
        (["phone"], ["side"], {"phone": "side"}),
        (["phone", "laptop"], ["side"], {}),
        (["front"], [], {}),
    ],
)
def test_suggestions_by_likeness(own: list[str], wanted: list[str], found: dict[str, str]) -> None:
    assert suggest_cameras(own, wanted) == found


@pytest.mark.parametrize(
    ("at", "map_it", "leave_out"),
    [
        (MappedAt.COMMAND, "--camera top=overhead", "--camera top="),
        (MappedAt.SETTINGS, 'top = "overhead" under [cameras] in client.toml', 'top = ""'),
        (MappedAt.EVALUATION, 'cameras = { top = "overhead" } in its [[evaluation]]', 'top = ""'),
    ],
)
def test_an_error_names_what_one_writes_where_one_is(
    recordings_folder: Path, smolvla_spec: PolicySpec, at: MappedAt, map_it: str, leave_out: str
) -> None:
    recordings = open_recordings(f"local:{recordings_folder}", mapped_at=at)
    spec = smolvla_spec.model_copy(update={"cameras": {"overhead": (3, 96, 96)}})
    with pytest.raises(DataError) as error:
        check_fit(recordings.summary, spec, "here", recordings.camera_map)
    assert map_it in error.value.message
    assert leave_out in error.value.message
    with pytest.raises(DataError) as error:
        open_recordings(f"local:{recordings_folder}", cameras={"up": "x"}, mapped_at=at)
    assert f"{at.value} names 'up' (did you mean 'top'?)" in error.value.message


def test_names_are_quoted_as_shell_and_toml_need_it() -> None:
    names = {"USB Camera 1": "camera1"}
    assert MappedAt.COMMAND.spell(names) == "--camera 'USB Camera 1=camera1'"
    assert MappedAt.SETTINGS.spell(names).startswith('"USB Camera 1" = "camera1"')


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(names=st.dictionaries(NAMES, NAMES, min_size=1, max_size=3))
@example(names={'the "big" one': 'C:\\cam"1"', "it's": "a.b"})
@settings(derandomize=True, deadline=None)
def test_any_name_is_read_as_it_was_written(names: dict[str, str]) -> None:
    line = MappedAt.EVALUATION.spell(names).removesuffix(" in its [[evaluation]] table")
    assert tomllib.loads(line) == {"cameras": names}
    assert "\n" not in line
    for own, to in names.items():
        line = MappedAt.SETTINGS.spell({own: to}).removesuffix(" under [cameras] in client.toml")
        assert tomllib.loads(f"[cameras]\n{line}") == {"cameras": {own: to}}
        word = shlex.split(MappedAt.COMMAND.spell({own: to}))[1]
        assert word.rpartition("=")[::2] == (own, to) or "=" in to


def test_resolutions_may_differ(recordings_folder: Path) -> None:
    summary = open_recordings(f"local:{recordings_folder}").summary
    check_alike(summary, summary.model_copy(update={"cameras": {"top": (3, 480, 640)}}), where="x")


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras of unlike resolutions, one of them under LeRobot's simulators' name."""
    folder = tmp_path_factory.mktemp("cameras") / "two"
    cameras = {"observation.image": (32, 48), "observation.images.hand": (40, 40)}
    make_dataset(folder, LENGTHS, cameras=cameras)
    return folder


def test_a_commands_mapping_goes_to_the_datasets_that_have_the_camera(
    recordings_folder: Path, two_cameras: Path, tmp_path: Path
) -> None:
    uris = [f"local:{folder}" for folder in (recordings_folder, two_cameras)]
    mapping = {"top": "camera1", "image": "camera1", "hand": ""}
    assert share_out(mapping, uris) == [{"top": "camera1"}, {"image": "camera1", "hand": ""}]
    with pytest.raises(
        UsageError, match=r"no dataset has a camera 'overhead' \(did you mean 'top'"
    ):
        share_out({"overhead": "x"}, uris)
    assert share_out({"x": "y"}, [f"local:{tmp_path}"]) == [{}], "whoever opens it says why"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--camera", "front"], "not of the form OWN=POLICYS"),
        (["--camera", "=x"], "not of the form OWN=POLICYS"),
        (["--camera", "a=x", "--camera", "a=y"], "'a' is named twice"),
        (["--camera", "overhead=x"], "no dataset has a camera 'overhead'"),
    ],
)
@pytest.mark.parametrize("verb", [["data", "check"], ["train"], ["simulate"], ["compare"]])
def test_a_camera_option_that_cannot_be_meant(
    recordings_folder: Path, verb: list[str], words: list[str], said: str, tmp_path: Path
) -> None:
    more = [] if verb[0] == "data" else ["--folder", str(tmp_path / "f")]
    done = CliRunner().invoke(app, [*verb, str(recordings_folder), *words, *more])
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)


def test_data_check_maps_cameras(recordings_folder: Path, two_cameras: Path) -> None:
    words = [
        "data",
        "check",
        "--json",
        str(two_cameras),
        "--camera",
        "image=top",
        "--camera",
        "hand=",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.output)["datasets"]
    assert list(found["cameras"]) == ["top"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["smolvla", "act"])
def test_a_checkpoint_has_the_datasets_camera_names(
    two_cameras: Path, tmp_path: Path, policy: str
) -> None:
    """Trained under the policy's names, loaded by plain LeRobot under those of the robot."""
    settings = (
        f"policy={policy} model-name=tiny num-server-rounds=1 local-steps=2 batch-size=2"
        " eval-frames=4"
    )
    folder = tmp_path / "t"
    words = ["train", str(two_cameras), "--camera", "image=camera1", "--camera", "hand=camera2"]
    done = CliRunner().invoke(
        app,
        [*words, "--hold-out", "0.3", "-c", settings, "--device", "cpu", "--folder", str(folder)],
    )
    assert done.exit_code == 0, (done.output, done.exception)
    journal = (folder / "runs" / "1" / "journal.jsonl").read_text()
    assert '"camera1":[3,32,48]' in journal.replace(" ", "")
    config = PreTrainedConfig.from_pretrained(folder / "checkpoint")
    assert list(config.image_features) == ["observation.image", "observation.images.hand"]
    made = get_policy_class(policy).from_pretrained(folder / "checkpoint", config=config)
    batch = {
        "observation.state": torch.zeros(1, 3),
        "observation.image": torch.zeros(1, 3, 32, 48),
        "observation.images.hand": torch.zeros(1, 3, 40, 40),
        "observation.language.tokens": torch.zeros(1, 4, dtype=torch.long),
        "observation.language.attention_mask": torch.ones(1, 4, dtype=torch.bool),
    }
    assert made.predict_action_chunk(batch).shape[-1] == 2
    text = (folder / "checkpoint" / "policy_preprocessor.json").read_text()
    assert "camera1" not in text
