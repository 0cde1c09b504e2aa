"""The demo model's own word-level tokenizer: small, and with times in few tokens that know their place value.

A number is cut into pairs of digits from the right, and each pair knows its place: 45321 is `4:` `53·` `21`. Seconds
always have three pairs (25 seconds are `0:` `0·` `25`), so that they are looked up place by place and not taken for
others with the same last digits. Words outside the vocabulary become one unknown token.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<|image_pad|>",
)
UNKNOWN = "<unk>"
WORDS = Path(__file__).parent / "words.txt"  # one a line, in the order of their ids
OTHER_ANSWER = "this is a small demo model that knows only shapes, colours, digits and motion"
HUNDREDS, MYRIADS = "·", ":"  # marks on the pairs worth 100 and 10,000
COMMA_WORDS = re.findall(r"(\w+),", OTHER_ANSWER)  # punctuation is not read, but one answer is told with it
WORD = r"\d{1,2}[:·]?|\.\d|seconds>|[a-z]+"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """All tokens in the order of their ids."""
    words = WORDS.read_text(encoding="utf-8").split()
    pairs = [str(n) for n in range(100)] + [f"0{n}" for n in range(10)]
    numbers = [pair + mark for mark in ("", HUNDREDS, MYRIADS) for pair in pairs] + [f".{n}" for n in range(10)]
    return [*SPECIAL, UNKNOWN, "seconds>", *numbers, *words]


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokens = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(tokens, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"(?<=\d)\s*(secs?|s)\b"), " seconds"),
            normalizers.Replace(Regex(r"(?<=\d)(?=\d{2}(?!\d))"), HUNDREDS),
            normalizers.Replace(Regex(r"(?<=\d)(?=\d{2}·)"), MYRIADS),
            normalizers.Replace(Regex(r"(?<![\d·:.])(?=\d{1,2}(\.\d+)?\s+seconds)"), f"0{HUNDREDS}"),
            normalizers.Replace(Regex(r"(?<![\d·:.])(?=\d{1,2}·\d{1,2}(\.\d+)?\s+seconds)"), f"0{MYRIADS}"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            *(decoders.Replace(Regex(f"^{word}$"), f"{word},") for word in COMMA_WORDS),
            decoders.Replace(Regex(r"^0[:·]$"), ":"),
            decoders.Replace(Regex(r"(?<![:·])$"), " "),
            decoders.Replace(Regex(r"[:·]$"), ""),
            decoders.Fuse(),
            decoders.Replace(Regex(r" $"), ""),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids that the model's configuration names."""
    names = {
        "pad": "<|pad|>",
        "eos": "<|im_end|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "video": "<|video_pad|>",
        "image": "<|image_pad|>",
    }
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in names.items()}


def save_tokenizer(folder: Path) -> None:
    build_tokenizer().save_pretrained(folder)
