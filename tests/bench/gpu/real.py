"""SmolVLA at its real size, with random weights, and recordings as an SO-101 makes them.

The sizes are those that SmolVLM2-500M-Video-Instruct and smolvla_base document. The weights are
random because no hub can be reached: that changes no time, and nothing is said of what they learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from transformers import (
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from zk0d.learning.policies.tiny_vlm import tokenizer as made_tokenizer

CAMERAS = ("camera1", "camera2")
JOINTS = 6
HEIGHT, WIDTH = 480, 640
FPS = 30


def save_policy(folder: Path, cameras: tuple[str, ...] = CAMERAS, state: int = JOINTS) -> Path:
    """A folder that LeRobot and zk0d load as a pretrained SmolVLA: 450M, 99.9M of it trainable."""
    vlm = folder / "vlm"
    _save_vlm(vlm)
    config = SmolVLAConfig(
        vlm_model_name=str(vlm),
        load_vlm_weights=False,
        device="cpu",
        push_to_hub=False,
        num_expert_layers=0,
        prefix_length=0,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (state,)),
            **{
                f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, 256, 256))
                for camera in cameras
            },
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
    )
    policy = SmolVLAPolicy(config)
    # As in the published file: a loader then knows that the file holds everything.
    config.load_vlm_weights = True
    policy.save_pretrained(folder / "policy")
    return folder / "policy"


def _save_vlm(folder: Path) -> None:
    tokenizer = made_tokenizer()
    SmolVLMConfig(
        architectures=["SmolVLMForConditionalGeneration"],
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=2,
        scale_factor=4,
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama",
            "head_dim": 64,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "max_position_embeddings": 8192,
            "pad_token_id": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000,
            "vocab_size": 49280,
        },
        vision_config={
            "model_type": "smolvlm_vision",
            "hidden_size": 768,
            "image_size": 512,
            "num_attention_heads": 12,
            "patch_size": 16,
        },
    ).save_pretrained(folder)
    size = {"longest_edge": 512}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=size, max_image_size=size),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size=size,
            max_image_size=size,
            fps=1,
            num_frames=8,
            video_sampling={"fps": 1, "max_frames": 8, "video_size": size},
        ),
        image_seq_len=64,
    ).save_pretrained(folder)


def record(folder: Path, episodes: int, frames: int, seed: int = 0) -> Path:
    """Recordings of two cameras of 480 by 640 in H.264: moving gradients and a moving arm."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    features = {
        name: {"dtype": "float32", "shape": (JOINTS,), "names": [f"joint_{i}" for i in range(6)]}
        for name in ("observation.state", "action")
    } | {
        f"observation.images.{camera}": {
            "dtype": "video",
            "shape": (HEIGHT, WIDTH, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in CAMERAS
    }
    dataset = LeRobotDataset.create(
        "local/bench",
        fps=FPS,
        root=folder,
        robot_type="so101_follower",
        use_videos=True,
        features=features,
        video_backend="pyav",
        streaming_encoding=True,
        encoder_queue_maxsize=0,
        rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=23),
    )
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    for _ in range(episodes):
        phase = rng.uniform(0, 6, JOINTS)
        for frame in range(frames):
            joints = (60 * np.sin(phase + frame / 20)).astype(np.float32)
            shade = (x * (1 + phase[0]) + y + 4 * frame) % 256
            image = np.stack([shade, (shade + y) % 256, np.full_like(shade, 64)], -1)
            dataset.add_frame(
                {
                    "observation.state": joints,
                    "action": joints,
                    **{f"observation.images.{c}": image.astype(np.uint8) for c in CAMERAS},
                    "task": "pick up the cube and place it in the box",
                }
            )
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return folder
