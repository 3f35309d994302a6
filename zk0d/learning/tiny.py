"""Small policies for a CPU: the real classes of LeRobot over a vision-language model of toy size.

Built from configuration alone, so nothing is downloaded. Their weights follow from the seed.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

CHUNK = 12  # actions predicted at once
EXECUTE = 6  # actions executed before the next plan
IMAGE_SIZE = 96
PATCH = 24
#: How wide each of them is: entries of a token's vector.
WIDTHS = {"tiny": 64, "tiny-wide": 128}
LAYERS = 2

_SPECIAL = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "video_token": "<video>",
}
_PHRASES = (
    "touch the red block",
    "touch the blue block",
    "touch the green block",
    "pick up the cube and place it in the box",
    "put the pen into the cup",
    "open the drawer",
    "push the button on the left",
    "stack the bricks to the right",
)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: it can read any instruction, and knows a robot's common words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _PHRASES,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_SPECIAL.values()],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=_SPECIAL["end_of_utterance_token"],
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        padding_side="left",
        model_max_length=8192,
        extra_special_tokens=_SPECIAL,
    )


@functools.cache
def _vlm_folder(width: int) -> tempfile.TemporaryDirectory[str]:
    """A folder with configuration, processor and tokenizer of the toy model, for this process."""
    folder = tempfile.TemporaryDirectory(prefix="zk0d-tiny-vlm-")
    # A worker process ends without the interpreter's own clean-up; this one it does.
    Finalize(None, folder.cleanup, exitpriority=0)
    tokenizer = _tokenizer()
    SmolVLMConfig(
        architectures=["SmolVLMForConditionalGeneration"],
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=1,
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": width // 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "pad_token_id": tokenizer.pad_token_id,
        },
    ).save_pretrained(folder.name)
    size = {"longest_edge": IMAGE_SIZE}
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
        image_seq_len=(IMAGE_SIZE // PATCH) ** 2,
    ).save_pretrained(folder.name)
    return folder


def tokenizer_sha256() -> str:
    """Names the toys' tokenizer; two machines must agree on it as on the weights."""
    path = Path(_vlm_folder(WIDTHS["tiny"]).name) / "tokenizer.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def smolvla_config(name: str) -> SmolVLAConfig:
    """SmolVLA with LeRobot's default freezing: vision and language frozen, the expert trains."""
    return SmolVLAConfig(
        vlm_model_name=_vlm_folder(WIDTHS[name]).name,
        load_vlm_weights=False,
        device="cpu",
        push_to_hub=False,
        resize_imgs_with_padding=(IMAGE_SIZE, IMAGE_SIZE),
        chunk_size=CHUNK,
        n_action_steps=EXECUTE,
        num_vlm_layers=LAYERS,
        tokenizer_max_length=24,
        num_steps=5,
    )


def act_config(name: str) -> ACTConfig:
    """ACT over a ResNet18 without pretrained weights."""
    return ACTConfig(
        device="cpu",
        push_to_hub=False,
        pretrained_backbone_weights=None,
        chunk_size=CHUNK,
        n_action_steps=EXECUTE,
        dim_model=WIDTHS[name],
        n_heads=4,
        dim_feedforward=2 * WIDTHS[name],
        n_encoder_layers=2,
        n_decoder_layers=1,
        n_vae_encoder_layers=2,
        latent_dim=8,
    )
