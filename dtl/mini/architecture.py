"""Writes the configs and processors of the shipped bases, without weights."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dtl import mini
from dtl.mini.make_speech import SAMPLE_RATE, WORDS
from dtl.mini.perturb import IMAGE_SIDE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 4096
MAX_POSITIONS = 512  # tokens
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def write_text(folder: Path) -> None:
    """Write config and tokenizer of a small Llama, for `strategy: scratch`."""
    from transformers import LlamaConfig

    tokenizer = train_tokenizer(folder)
    LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


def write_vision(folder: Path) -> None:
    """Write config and image processor of a ResNet with three stages, for `strategy: scratch`."""
    from transformers import ResNetConfig
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        architectures=["ResNetForImageClassification"],
    ).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    ViTImageProcessorPil(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, image_mean=half, image_std=half
    ).save_pretrained(folder)


def write_speech(folder: Path) -> None:
    """Write config, tokenizer and feature extractor of a wav2vec2 with 24 ms per frame, for
    `strategy: scratch`."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    vocabulary = ("[PAD]", "[UNK]", "|", *sorted(set("".join(WORDS))))
    Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=112,
        intermediate_size=224,
        num_hidden_layers=4,
        num_attention_heads=4,
        conv_dim=(48, 64, 96, 112),
        conv_kernel=(16, 8, 5, 3),
        conv_stride=(8, 4, 3, 2),
        conv_bias=True,
        feat_extract_norm="layer",  # ignores padding, as the stable layer norm does
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        feat_proj_dropout=0.1,
        activation_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.08,
        mask_time_length=3,
        mask_time_min_masks=0,
        mask_feature_prob=0.0,
        ctc_loss_reduction="sum",
        ctc_zero_infinity=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        architectures=["Wav2Vec2ForCTC"],
    ).save_pretrained(folder)
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "vocab.json"
        path.write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
        tokenizer = Wav2Vec2CTCTokenizer(
            str(path),
            bos_token=None,
            eos_token=None,
            pad_token=vocabulary[0],
            unk_token=vocabulary[1],
            word_delimiter_token=vocabulary[2],
        )
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=True
    ).save_pretrained(folder)


def train_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Train byte-level BPE on `mini:prose/train` and write it to `folder`.

    `tokenizer(text)` adds the BOS token; the task adds the EOS token.
    """
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (row["text"] for row in mini.load_rows("prose", "train"))
    pieces.train_from_iterator(texts, trainer=trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, pieces.token_to_id(BOS))],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    _set_tokenizer_class(folder / "tokenizer_config.json")
    return tokenizer


def _set_tokenizer_class(path: Path) -> None:
    """Set the tokenizer class to the one that every transformers release has."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
