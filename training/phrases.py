"""How people ask: patterns that are composed anew for every question.

`[a|b|]` stands for one of its parts, also inside of another; `{name}` and its like are filled in
afterwards. Articles, tense, order and politeness vary by pattern; words that mean the same are
drawn from lists, and the tokenizer reads many of them as one. `HELD_OUT` is what no pattern
composes: the test of whether people are understood.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

OPEN = "[||||Please |Please, |Can you |Could you |Tell me, |Hmm, |So, |And ]"
TELL = (
    "[||Tell me |Please tell me |Can you tell me |Could you tell me |Do you know |Say |I want "
    "to know ]"
)
SEE = "[see|spot|notice]"
SHOWN = "[shown|visible|on screen|displayed|seen|there]"
APPEAR = "[appear|show up|come up|come into view]"
APPEARS = "[appears|shows up|comes up|is shown|appeared|was shown]"
THING = "[thing|object|shape|item]"
THINGS = "[shapes|things|objects|items]"
VIDEO = "[video|clip|film|recording|footage]"
AT = "[at|around] {second} seconds"
WAY = "[which way|in which direction|in what direction|where|what direction]"
COMES = "[comes|came|is shown|was shown|appears|appeared]"
SHOWS = "[comes|came|is shown|was shown]"
END = "[?|?|?||.]"

PATTERNS: dict[str, tuple[str, ...]] = {
    "colour": (
        f"{TELL}[what|which] [colour|color] [is|was] [the|that] {{shape}}{END}",
        f"{TELL}[what|which] [colour|color] [does|did] the {{shape}} have{END}",
        f"[What is|What's|What was|{TELL}] the [colour|color] of [the|that] {{shape}}{END}",
        f"The {{shape}}, [what|which] [colour|color] [is|was] it{END}",
        f"[which|what] [colour|color] [has|had] the {{shape}}{END}",
        f"[In what|In which|What] [colour|color] is the {{shape}} {SHOWN}{END}",
        f"The [colour|color] of the {{shape}}{END}",
        f"What [colour|color] {{shape}} [is|was] [there|shown]{END}",
        f"How is the {{shape}} coloured{END}",
    ),
    "shape": (
        f"{TELL}[what|which] [shape|{THING}] [is|was] {{colour}}{END}",
        f"{TELL}[what|which] shape [is|was|has|had] the {{colour}} [thing|object|one|item]{END}",
        f"[What is|What's|What was|{TELL}] the {{colour}} {THING}{END}",
        f"[What is|What's|What was|{TELL}] the shape of the {{colour}} [thing|object|item]{END}",
        f"The {{colour}} [thing|object|one|item], [what|which] shape [is|was] it{END}",
        f"What shape does the {{colour}} [thing|object|one] have{END}",
        f"What is {{colour}}{END}",
        f"What kind of shape is the {{colour}} [thing|object|one]{END}",
    ),
    "when": (
        f"{TELL}when [does|did] the {{name}} [first |]{APPEAR}{END}",
        f"{TELL}when [is|was] the {{name}} [first |]{SHOWN}{END}",
        f"At [what|which] [time|second] [does|did] the {{name}} {APPEAR}{END}",
        f"From which second on [does|did] the {{name}} {APPEAR}{END}",
        (
            f"[At what time|At which second|At what second] [is|was] the {{name}} [first "
            f"|]{SHOWN}{END}"
        ),
        f"[When|At what time] [did|do|can] [you|I|we] [first |]{SEE} the {{name}}{END}",
        f"[Show me|Find|Tell me] when the {{name}} {APPEARS}{END}",
        f"[Show me|Find] the [moment|time] [when|at which] the {{name}} {APPEARS}{END}",
        f"[Show me|Find] the [moment|time] of the {{name}}{END}",
        f"The {{name}}, when [is|was] it [shown|there|seen]{END}",
        f"When is there a {{name}}{END}",
        f"Where in the {VIDEO} is the {{name}}{END}",
        f"[What|Which] [time|second] [is|was] the {{name}} [shown|there]{END}",
    ),
    "what_at": (
        f"{TELL}what [is|was] {SHOWN} {AT}{END}",
        f"What [can|could|do|did] [you|I|we] {SEE} {AT}{END}",
        f"At {{second}} seconds, what [is|was] {SHOWN}{END}",
        f"At {{second}} seconds, what [can|do|did] [you|I|we] {SEE}{END}",
        f"[Which|What] {THING} [is|was] {SHOWN} {AT}{END}",
        f"[What's|Whats] {SHOWN} {AT}{END}",
        f"[Show me what|What] {APPEARS} {AT}{END}",
        f"[What|Which] {THINGS} [are|were] {SHOWN} {AT}{END}",
        f"At {{second}} seconds: what is there{END}",
    ),
    "count_at": (
        f"{TELL}how many {THINGS} [are|were] {SHOWN} {AT}{END}",
        f"At {{second}} seconds, how many {THINGS} [are|were] {SHOWN}{END}",
        f"{OPEN}[count|Count] the {THINGS} {AT}{END}",
        f"[What is|What's|What was] the number of {THINGS} {AT}{END}",
        f"How many {THINGS} [can|do|did] [you|I|we] {SEE} {AT}{END}",
    ),
    "count_with": (
        (
            f"{TELL}how many {THINGS} [are|were] [there|shown|visible] when the {{name}} "
            f"{APPEARS}{END}"
        ),
        (
            f"How many {THINGS} [are|were] {SHOWN} [together |along |]with the {{name}}, "
            f"[itself|that one] included{END}"
        ),
        f"{OPEN}[count|Count] the {THINGS} in the moment of the {{name}}{END}",
        f"How many {THINGS} [can|do|did] [you|I|we] {SEE} when the {{name}} {APPEARS}{END}",
        f"When the {{name}} {APPEARS}, how many {THINGS} [are|were] [there|shown|visible]{END}",
        f"What is the number of {THINGS} when the {{name}} {APPEARS}{END}",
    ),
    "direction": (
        f"{TELL}{WAY} [does|did] the {{name}} [move|go|travel|head]{END}",
        f"{TELL}{WAY} [is|was] the {{name}} [moving|going|heading]{END}",
        f"How [does|did] the {{name}} move{END}",
        f"[What is|What's|What was] the direction of the {{name}}{END}",
        f"[Does|Did|Is] the {{name}} [move|moving|stand still|still]{END}",
        f"Where [does|did] the {{name}} [move|go] to{END}",
        f"The {{name}}, which way does it [move|go]{END}",
    ),
    "after": (
        f"{TELL}what [comes|came] [right |just |directly |]after the {{name}}{END}",
        f"{TELL}what [is|was] {SHOWN} [right |just |directly |]after the {{name}}{END}",
        f"What [follows|followed] the {{name}}{END}",
        f"What {APPEARS} [next |right |]after the {{name}}{END}",
        f"After the {{name}}, what [comes|came|is shown|was shown|appears]{END}",
        f"[Which|What] {THING} [comes after|came after|follows|is next after] the {{name}}{END}",
        f"What is next after the {{name}}{END}",
    ),
    "before": (
        f"{TELL}what [comes|came] [right |just |directly |]before the {{name}}{END}",
        f"{TELL}what [is|was] {SHOWN} [right |just |directly |]before the {{name}}{END}",
        f"What [precedes|preceded] the {{name}}{END}",
        f"What {APPEARS} [right |just |]before the {{name}}{END}",
        f"Before the {{name}}, what [comes|came|is shown|was shown|was there]{END}",
        f"[Which|What] {THING} [comes|came] before the {{name}}{END}",
    ),
    "first_of": (
        f"{TELL}[which|what] {COMES} [first|earlier], the {{name}} or the {{other}}{END}",
        f"[Which|What] of the {{name}} and the {{other}} {SHOWS} [first|earlier]{END}",
        f"[Does|Did] the {{name}} or the {{other}} [come|appear] [first|earlier]{END}",
        f"The {{name}} or the {{other}}, [which|what] {SHOWS} [first|earlier]{END}",
        f"[Which|What] [is|was] [earlier|first], the {{name}} or the {{other}}{END}",
    ),
    "last_of": (
        f"{TELL}[which|what] {COMES} [last|later], the {{name}} or the {{other}}{END}",
        f"[Which|What] of the {{name}} and the {{other}} {SHOWS} [last|later]{END}",
        f"[Does|Did] the {{name}} or the {{other}} [come|appear] [last|later]{END}",
        f"The {{name}} or the {{other}}, [which|what] {SHOWS} [last|later]{END}",
        f"[Which|What] [is|was] [later|last], the {{name}} or the {{other}}{END}",
    ),
    "first": (
        f"{TELL}what [is|was] the first {THING} [shown|there|in the {VIDEO}|]{END}",
        f"{TELL}what [is|was] {SHOWN} first{END}",
        f"What [comes|came|appears|appeared] first{END}",
        f"What {APPEARS} at the [beginning|start] [of the {VIDEO}|]{END}",
        f"[Which|What] {THING} {SHOWS} first{END}",
        f"How does the {VIDEO} [begin|start]{END}",
    ),
    "last": (
        f"{TELL}what [is|was] the last {THING} [shown|there|in the {VIDEO}|]{END}",
        f"{TELL}what [is|was] {SHOWN} last{END}",
        f"What [comes|came|appears|appeared] last{END}",
        f"What {APPEARS} at the end [of the {VIDEO}|]{END}",
        f"[Which|What] {THING} {SHOWS} last{END}",
        f"How does the {VIDEO} end{END}",
    ),
    "now": (
        f"{TELL}[what is|what's] {SHOWN} [now|right now|at the moment|currently]{END}",
        f"What [can|do] [you|I|we] {SEE} [now|right now|at the moment|currently]{END}",
        f"[Now|Right now], what is {SHOWN}{END}",
        f"What is [currently|now] {SHOWN}{END}",
        f"[Which|What] {THING} is {SHOWN} [now|right now|currently]{END}",
        f"What [is happening|is going on|happens] [now|right now|currently]{END}",
    ),
    "digit": (
        f"{TELL}[which|what] [digit|number] [is|was] {SHOWN}{END}",
        f"[Which|What] [digit|number] [can|do|did] [you|I|we] {SEE}{END}",
        f"[Which|What] [digit|number] [is|was] it{END}",
        f"[Tell me|What is|What's|What was] the [digit|number]{END}",
        f"[Is|Was] there a [digit|number], and which{END}",
        f"[Which|What] [digit|number] {APPEARS}{END}",
    ),
    "digit_at": (
        f"{TELL}[which|what] [digit|number] [is|was] {SHOWN} {AT}{END}",
        f"At {{second}} seconds, [which|what] [digit|number] [is|was] {SHOWN}{END}",
        f"[Tell me|What is|What's|What was] the [digit|number] {AT}{END}",
    ),
    "presence": (
        f"[Is|Was] there [a|any] {{name}}[ in the {VIDEO}| anywhere|]{END}",
        f"[Does|Did] a {{name}} [ever |]{APPEAR}[ in the {VIDEO}|]{END}",
        f"[Is|Was] a {{name}} {SHOWN}[ in the {VIDEO}|]{END}",
        f"[Can|Could|Do|Did] [you|I|we] [ever |]{SEE} a {{name}}[ in the {VIDEO}|]{END}",
        f"Have you [ever |]seen a {{name}}{END}",
        f"[Tell me if|Say whether|Do you know if] there [is|was] a {{name}}{END}",
        f"[Does|Did] the {VIDEO} [show|contain|have] a {{name}}{END}",
        f"Any {{name}}{END}",
        f"Is it true that a {{name}} {APPEARS}{END}",
    ),
    "describe": (
        f"{OPEN}[describe|Describe] the moment at {{second}} seconds{END}",
        f"{TELL}what [happens|happened|is happening|is going on] {AT}{END}",
        f"{OPEN}[describe|Describe] what [you see|happens|is shown|can be seen] {AT}{END}",
        f"[Describe|Explain] the [scene|picture|moment] {AT}{END}",
        f"At {{second}} seconds, what [happens|is happening|is going on]{END}",
    ),
    "caption": (
        f"{OPEN}[describe|summarize|summarise|caption|explain|sum up] [the|this] {VIDEO}{END}",
        (
            f"{TELL}what [happens|happened|is happening|is going on] [in|during] [the|this] "
            f"{VIDEO}{END}"
        ),
        (
            f"{OPEN}[give|write] [me |us |]a [caption|summary|description] [[of|for] [the|this] "
            f"{VIDEO}|]{END}"
        ),
        f"What is [the|this] {VIDEO} about{END}",
        f"{OPEN}[describe|summarize|summarise|caption] it{END}",
        f"What [is|was] {SHOWN} in [the|this] {VIDEO}{END}",
        f"What [do|did|can] [you|we|I] see in [the|this] {VIDEO}{END}",
        f"{OPEN}[tell|Tell] me [what happens|the story|everything|what happened]{END}",
        f"[Describe|Summarize|Summarise] [everything|all]{END}",
        f"[What happens|What happened|What is going on]{END}",
        f"What does [the|this] {VIDEO} show{END}",
        f"List [everything|all {THINGS}] in order{END}",
    ),
}
NOUN = (
    "[man|woman|person|boy|girl|child|dog|cat|bird|horse|car|train|bus|house|tree|river|mountain|phone|book|table|chair|"
    "teacher|doctor|player|team|actor|driver|chef|baby|crowd|rabbit|monster|toy|bottle|mouse|hand|face|door|window|street|"
    "kitchen|city|ship|plane|robot|dragon|computer|text|sign|logo|word|name|price|music|song|weather|sky|sea|food|cake]"
)
DOING = (
    "[wearing|eating|holding|saying|doing|driving|cooking|reading|singing|running|sleeping|thinking|watching|building|"
    "feeling|playing|drinking|writing|painting|looking at|talking about|fighting|laughing "
    "at|made of|called]"
)
VERB = (
    "[leave|arrive|win|fall|speak|cry|dance|stop|break|open the door|buy the house|lose the "
    "game|answer|jump|wake up]"
)
HOW = "[happy|old|tall|expensive|dangerous|angry|alive|hungry|famous|cold|real|broken|heavy|fast|french|wooden|asleep]"  # noqa: E501
PLACE = (
    "[Paris|Germany|the kitchen|the garden|school|the office|the forest|London|the "
    "station|space|the world]"
)
OTHER: tuple[str, ...] = (
    f"[What|Who|Which {NOUN}|Why] [is|was] the {NOUN} {DOING}{END}",
    f"[Who|What] [is|was|are] the {NOUN}[ in the {NOUN}| in {PLACE}| with the {NOUN}|]{END}",
    f"[Why|When|Where|How] [does|did] the {NOUN} {VERB}{END}",
    f"[Is|Was|Are] the {NOUN} {HOW}{END}",
    f"How {HOW} [is|was] the {NOUN}{END}",
    f"Is there a {NOUN}[ in the {VIDEO}| here|]{END}",
    f"[Can|Do|Did] you see [a|the|any] {NOUN}{END}",
    f"How many {NOUN}s [are there|can you see|are shown]{END}",
    f"What [colour|color|shape|kind|brand] is the {NOUN}{END}",
    f"[When|Where] [is|does|did] the {NOUN} [shown|appear|come|move]{END}",
    f"Which way does the {NOUN} [go|move|run|look]{END}",
    f"What comes [after|before] the {NOUN}{END}",
    f"Which came first, the {NOUN} or the {NOUN}{END}",
    f"Where [is|was] [this|the {NOUN}] [filmed|recorded|made|from]{END}",
    f"What [language|music|year|country|game|sport|day|city|time] is [it|this]{END}",
    f"What does the {NOUN} [say|want|mean|do|look like|think]{END}",
    f"What is the {NOUN} of [the {NOUN}|{PLACE}]{END}",
    f"Why is there a {NOUN}{END}",
    f"[Tell me|Write|Give me] a [joke|poem|story about a {NOUN}|recipe|song]{END}",
    f"[Translate|Spell|Repeat|Delete|Improve] [this|it|that] [into German|again|please|]{END}",
    f"What is the [capital|president|population|history|language] of {PLACE}{END}",
    (
        f"[How are you|Who are you|What are you|Hello|Hi there|Good morning|Thank you|Are you "
        f"human|Help]{END}"
    ),
    f"What can you do{END}",
    f"[Do|Did] you [like|love|hate|know|understand] [it|me|the {NOUN}|this]{END}",
    f"Can you [help|hear|teach|hug] me[ with my homework|]{END}",
    (
        f"[What|How much] is [two plus two|the price|the meaning of life|ten times four|the "
        f"{NOUN} worth]{END}"
    ),
    f"[Who|What] [won|wins|made|wrote|killed|directed|paid for|owns] [the {NOUN}|this|it]{END}",
    f"Describe the {NOUN}{END}",
    f"Describe [how|why] the {NOUN} [feels|{VERB}]{END}",
    f"What happens to the {NOUN}{END}",
    f"What happens when the {NOUN} {VERB}s{END}",
    f"Is [he|she|it|anyone|someone|anybody] {HOW}{END}",
    f"Are [they|people] {DOING} [the {NOUN}|]{END}",
    f"Which {NOUN} is {HOW}{END}",
    f"Does [he|she|anyone|the {NOUN}] {VERB}{END}",
)

# Never composed by a pattern: tests/test_demo_questions.py checks it.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "colour": (
        "I'd like to know what colour that {shape} was",
        "could you please tell me the {shape}'s colour",
        "What hue is the {shape}?",
        "the {shape} has which color",
    ),
    "shape": (
        "Could you say what the {colour} object looks like as a shape?",
        "the thing in {colour} was what shape",
        "Which of the shapes is the {colour} one?",
        "what's {colour} in there",
    ),
    "when": (
        "I need to know when the {name} turned up",
        "at which point in time was there a {name}",
        "what second does the {name} pop up at",
        "Do you remember when the {name} was displayed?",
    ),
    "what_at": (
        "What could be observed at {second} seconds?",
        "around {second} seconds, which object was visible",
        "please say what was in view at {second} seconds",
        "and what about {second} seconds",
    ),
    "count_at": (
        "Could you count how many items were there at {second} seconds?",
        "what was the total of shapes at {second} seconds",
        "the number of objects at {second} seconds, please",
    ),
    "count_with": (
        "With the {name} on screen, how many objects are there?",
        "the moment the {name} shows up, how many shapes can be seen",
        "how many items did you notice while the {name} was visible",
    ),
    "direction": (
        "Could you tell me which direction the {name} travelled in?",
        "was the {name} going left or right or up or down or nowhere",
        "the {name} is heading where",
        "To which side does the {name} drift?",
    ),
    "after": (
        "Right after the {name}, which thing could be seen?",
        "the {name} is followed by what",
        "once the {name} was gone, what came next",
    ),
    "before": (
        "Right before the {name}, which thing could be seen?",
        "the {name} is preceded by what",
        "which object did you notice just before the {name}",
    ),
    "first_of": (
        "Was the {name} shown earlier or the {other}?",
        "who came first: the {name} or the {other}",
        "between the {name} and the {other}, which one was earlier",
    ),
    "last_of": (
        "Was the {name} shown later or the {other}?",
        "who came last: the {name} or the {other}",
        "between the {name} and the {other}, which one was later",
    ),
    "first": (
        "what did the clip open with",
        "the very first object, what was it",
        "Which item was displayed first of all?",
    ),
    "last": (
        "what did the clip close with",
        "the very last object, what was it",
        "Which item was displayed last of all?",
    ),
    "now": (
        "at this moment, what do you see",
        "what's on the screen presently",
        "and what is it showing now",
    ),
    "digit": (
        "which numeral was displayed",
        "could you read the number to me",
        "I saw a digit, which one was it?",
    ),
    "digit_at": (
        "which numeral was visible at {second} seconds",
        "at {second} seconds a number is shown, which one",
    ),
    "presence": (
        "Has there been a {name}?",
        "I'm looking for a {name}, is there one?",
        "did a {name} turn up at any time",
        "Would you say there was a {name} somewhere?",
    ),
    "describe": (
        "Could you describe the scene around {second} seconds?",
        "what's taking place at {second} seconds",
        "explain to me what is going on at {second} seconds",
    ),
    "caption": (
        "What takes place in the footage?",
        "could you sum the clip up for me",
        "Please write down what happens in the movie",
        "I want a short summary of what is shown",
    ),
    "other": (
        "Whose birthday is being celebrated?",
        "What's the weather going to be tomorrow?",
        "Why is the old lady so sad at the end?",
        "Could you recommend a good restaurant?",
        "How much money did they pay for the boat?",
        "Is the soldier afraid of the giant?",
        "What kind of engine does the motorbike have?",
        "Please order a pizza",
    ),
}

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def compose(rng: np.random.Generator, pattern: str) -> str:
    """One of the phrases that a pattern stands for; {fields} stay."""
    parts = _parsed(pattern)
    return _tidy("".join(_drawn(rng, parts)))


Part = str | tuple[tuple["Part", ...], ...]  # text, or alternatives of parts


@lru_cache(maxsize=4096)
def _parsed(pattern: str) -> tuple[Part, ...]:
    sequence, place = _sequence(pattern, 0)
    if place != len(pattern):
        raise ValueError(f"{pattern!r} closes what it never opened")
    return sequence


def _sequence(pattern: str, place: int) -> tuple[tuple[Part, ...], int]:
    """Parts from a place up to the end, or up to what ends an alternative."""
    parts: list[Part] = []
    while place < len(pattern) and pattern[place] not in "|]":
        if pattern[place] == "[":
            options = []
            while pattern[place] != "]":
                option, place = _sequence(pattern, place + 1)
                options.append(option)
            parts.append(tuple(options))
            place += 1
        else:
            end = place
            while end < len(pattern) and pattern[end] not in "[|]":
                end += 1
            parts.append(pattern[place:end])
            place = end
    return tuple(parts), place


def _drawn(rng: np.random.Generator, parts: tuple[Part, ...]) -> list[str]:
    drawn: list[str] = []
    for part in parts:
        if isinstance(part, str):
            drawn.append(part)
        else:
            drawn += _drawn(rng, part[int(rng.integers(len(part)))])
    return drawn


def _tidy(text: str) -> str:
    """Single spaces, none before punctuation, a capital or none."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([?.,])", r"\1", text)


def as_regex(pattern: str) -> re.Pattern[str]:
    """What a pattern may compose, spaces and case aside, for telling whether it may have composed a
    text.
    """

    def of(parts: tuple[Part, ...]) -> str:
        made = ""
        for part in parts:
            made += (
                re.escape(_plain(part))
                if isinstance(part, str)
                else "(?:" + "|".join(of(p) for p in part) + ")"
            )
        return made

    return re.compile(of(_parsed(pattern)))


def _plain(text: str) -> str:
    return re.sub(r"[\s?.,]", "", text).lower()


def may_compose(pattern: str, text: str) -> bool:
    return as_regex(pattern).fullmatch(_plain(text)) is not None
