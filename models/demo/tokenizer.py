"""The demo model's own word-level tokenizer: small, and with times in few tokens that know their
place value.

A number is cut into pairs of digits from the right, and each pair knows its place: 45321 is `4:`
`53·` `21`. Seconds always have three pairs (25 seconds are `0:` `0·` `25`), so that they are looked
up place by place and not taken for others with the same last digits. Words that mean the same here
are read as one ("violet" as "purple", "displayed" as "shown"), polite openings are not read at all,
and words outside the vocabulary become one unknown token.
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
DAYS_MYRIADS = 20  # pairs of seconds worth 10,000: up to two days
# punctuation is not read, but one answer is told with it
COMMA_WORDS = re.findall(r"(\w+),", OTHER_ANSWER)
WORD = r"\d{1,2}[:·]?|\.\d|seconds>|[a-z]+"
# What is read as what, in this order. Nothing on the right stands on the left of a later line, and
# no answer of the model contains a word of the left.
READ_AS: tuple[tuple[str, str], ...] = (
    (r"['\u2019](s|re)\b", " is"),
    (r"\b(please|kindly|hey|actually|hmm|so|well)\b", " "),
    (r"\bwhats\b", "what is"),
    (r"\b((could|can|would|will) you )?(tell me|say|let me know)( if| whether)?\b", " "),
    (
        r"\b(do you (know|remember)|i (want|would like|need) to know|i['\u2019]d like to know|i wonder)\b",  # noqa: E501
        " ",
    ),
    (r"\b(number|amount|count) of\b", "how many"),
    (r"\b(at this|at the|right this) (very )?moment\b(?! (at|of))", "now"),
    (r"\b(right now|just now|currently|at present|presently|these days)\b", "now"),
    (r"\b(grey|gray)[- ]?ish[- ]white|(grey|gray|off)[- ]?white|whitish\b", "white"),
    (r"\b(violet|lilac|mauve|lavender|purplish)\b", "purple"),
    (r"\b(turquoise|aqua|light blue|cyan blue|sky blue)\b", "cyan"),
    (r"\b(crimson|scarlet|reddish)\b", "red"),
    (r"\b(golden|yellowish)\b", "yellow"),
    (r"\b(bluish|navy blue|dark blue)\b", "blue"),
    (r"\b(greenish|dark green|light green|lime green)\b", "green"),
    (r"\b(color|hue|colou?red)\b", "colour"),
    (r"\bcolors\b", "colours"),
    (r"\b(disc|disk|dot|ball|circles)\b", "circle"),
    (r"\b(donut|doughnut|hoop|rings)\b", "ring"),
    (r"\b(box|squares)\b", "square"),
    (r"\b(plus sign|plus|crosses)\b", "cross"),
    (r"\b(rhombus|lozenge|diamonds)\b", "diamond"),
    (r"\btriangles\b", "triangle"),
    (r"\bstars\b", "star"),
    (r"\bhearts\b", "heart"),
    (r"\b(number|numeral|figure)\b", "digit"),
    (r"\b(object|item|element|one)\b", "thing"),
    (r"\b(objects|items|elements|ones)\b", "things"),
    (r"\b(on|in) (the )?(screen|view|frame|picture|image)\b", "shown"),
    (r"\b(displayed|visible|presented|seen|depicted|present|to be shown)\b", "shown"),
    (r"\b(show|pop|turn|come)(s|ed)? up\b", "appear"),
    (r"\b(popped|came) up\b", "appear"),
    (
        r"\b(appears|appeared|appearing|emerge|emerges|emerged|come into shown|comes into shown)\b",
        "appear",
    ),
    (r"\b(spot|notice|observe|saw|spotted|noticed)\b", "see"),
    (
        r"\b(goes on|going on|went on|happening|happened|happen|takes place|took place|occurs|occurred)\b",  # noqa: E501
        "happens",
    ),
    (
        r"\b(summari[sz]e|sum up|recap|caption|explain|narrate|summary|description|overview)\b",
        "describe",
    ),
    (r"\b(clip|movie|film|recording|footage|stream)\b", "video"),
    (
        r"\b(moves|moved|goes|go|went|travels?|travell?ed|heads?|headed|heading|drifts?|drifted)\b",
        "move",
    ),
    (r"\b(prior to|preceding|precedes|preceded|ahead of)\b", "before"),
    (r"\b(following|follows|followed|succeeds|succeeded)\b", "after"),
    (r"\b(alongside|together with|along with)\b", "with"),
    (r"\b(earliest|initial|initially)\b", "first"),
    (r"\b(latest|final|finally)\b", "last"),
    (r"\b(earlier|sooner)\b", "first"),
    (r"\blater\b", "last"),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in "
    "message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif "
    "%}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """All tokens in the order of their ids."""
    words = WORDS.read_text(encoding="utf-8").split()
    pairs = [str(n) for n in range(100)] + [f"0{n}" for n in range(10)]
    numbers = [pair + mark for mark in ("", HUNDREDS) for pair in pairs]
    numbers += [f"{n}{MYRIADS}" for n in range(DAYS_MYRIADS)] + [f".{n}" for n in range(10)]
    return [*SPECIAL, UNKNOWN, "seconds>", *numbers, *words]


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokens = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(tokens, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            *(normalizers.Replace(Regex(found), read) for found, read in READ_AS),
            normalizers.Replace(Regex(r"(?<=\d)\s*(secs?|s)\b"), " seconds"),
            normalizers.Replace(Regex(r"(?<=\d)(?=\d{2}(?!\d))"), HUNDREDS),
            normalizers.Replace(Regex(r"(?<=\d)(?=\d{2}·)"), MYRIADS),
            normalizers.Replace(
                Regex(r"(?<![\d·:.])(?=\d{1,2}(\.\d+)?\s+seconds)"), f"0{HUNDREDS}"
            ),
            normalizers.Replace(
                Regex(r"(?<![\d·:.])(?=\d{1,2}·\d{1,2}(\.\d+)?\s+seconds)"), f"0{MYRIADS}"
            ),
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
            decoders.Replace(" then", ". Then"),  # the sentences of a story
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
