"""Byte-level BPE tokenizers for the embedded model, trained on its own captions."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sa3lora.runs import write_bytes_atomic, write_json_atomic
from sa3lora.tiny.pieces import pretraining_caption
from sa3lora.tiny.words import stock_sentences, stock_words

VOCAB_SIZE = 1024
# Ids 0 to 3; no post-processor adds them.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
_NUM_CAPTIONS = 8000


def train_tokenizer(
    *, vocab_size: int = VOCAB_SIZE, num_captions: int = _NUM_CAPTIONS
) -> Tokenizer:
    """Train on captions of pretraining seeds and a stock of music words; always the same result."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    captions = [pretraining_caption(seed) for seed in range(num_captions)]
    capitals = [word.capitalize() for word in stock_words()]
    tokenizer.train_from_iterator([*captions, *stock_sentences(), *capitals], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that `AutoTokenizer` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    pad, eos, bos, unk = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": eos,
        "bos_token": bos,
        "unk_token": unk,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json_atomic(folder / "tokenizer_config.json", config)
