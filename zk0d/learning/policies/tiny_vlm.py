"""A vision-language model of toy size, for policies that are built on one.

Configuration and tokenizer alone: nothing is downloaded, and weights follow from the seed.
"""

from __future__ import annotations

import functools
import tempfile
from multiprocessing.util import Finalize

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

IMAGE_SIZE = 96
PATCH = 24
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


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: it can read any instruction, and knows a robot's common words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        _PHRASES,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_SPECIAL.values()],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|im_start|>",
        eos_token=_SPECIAL["end_of_utterance_token"],
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        padding_side="left",
        model_max_length=8192,
        extra_special_tokens=_SPECIAL,
    )


@functools.cache
def folder(width: int) -> tempfile.TemporaryDirectory[str]:
    """A folder with configuration, processor and tokenizer of the toy model, for this process."""
    made = tempfile.TemporaryDirectory(prefix="zk0d-tiny-vlm-")
    # A worker process ends without the interpreter's own clean-up; this one it does.
    Finalize(None, made.cleanup, exitpriority=0)
    words = tokenizer()
    SmolVLMConfig(
        architectures=["SmolVLMForConditionalGeneration"],
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
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
            "vocab_size": len(words),
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "pad_token_id": words.pad_token_id,
        },
    ).save_pretrained(made.name)
    size = {"longest_edge": IMAGE_SIZE}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=size, max_image_size=size),
        tokenizer=words,
        video_processor=SmolVLMVideoProcessor(
            size=size,
            max_image_size=size,
            fps=1,
            num_frames=8,
            video_sampling={"fps": 1, "max_frames": 8, "video_size": size},
        ),
        image_seq_len=(IMAGE_SIZE // PATCH) ** 2,
    ).save_pretrained(made.name)
    return made
