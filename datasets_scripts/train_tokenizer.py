"""Trains the tokenizer of the tiny model: byte-level BPE with Qwen's pre-tokenisation and special tokens.

    python -m datasets_scripts.train_tokenizer --output configs/tokenizer-tiny

The text it learns from is made here: questions, situations, answers and actions about rooms, and common English words.
Like Qwen's it splits digits one by one and has no unknown token: every text is encoded and comes back. The same files
come out every time.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from processing.action_vggt_qwen3 import format_action
from processing.chat_vggt_qwen3 import ACTION_INSTRUCTION, ANSWER_INSTRUCTION, CHAT_TEMPLATE

VOCABULARY_SIZE = 1536
MAX_LENGTH = 8192
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

THINGS = """
air conditioner|armchair|backpack|bag|balcony|ball|basket|bathtub|bed|bench|bicycle|bin|blanket|blinds|board|book|
bookcase|bookshelf|bottle|bowl|box|bucket|cabinet|candle|carpet|ceiling|chair|chest of drawers|clock|closet|clothes|
coat rack|coffee maker|coffee table|column|computer|copier|couch|counter|crib|cup|curtain|cushion|desk|dining table|
dishwasher|door|doorframe|drawer|dresser|dryer|end table|fan|faucet|file cabinet|fireplace|floor|floor lamp|fridge|
globe|guitar|hand dryer|heater|ironing board|jacket|kettle|keyboard|kitchen cabinet|kitchen island|ladder|lamp|laptop|
light|light switch|machine|mat|mattress|microwave|mirror|monitor|mouse|nightstand|object|office chair|ottoman|oven|
painting|paper towel dispenser|person|piano|picture|pillow|pipe|plant|poster|pot|printer|projector|rack|radiator|
recycling bin|refrigerator|rug|screen|shelf|shoes|shower|shower curtain|sink|sofa|soap dispenser|speaker|stairs|
stack of books|stand|stool|storage bin|stove|suitcase|table|table lamp|telephone|television|tissue box|toilet|
toilet paper|towel|toy|trash can|tray|tv|tv stand|vase|wall|wardrobe|washing machine|water cooler|whiteboard|window|
windowsill|wine rack
"""
COLOURS = (
    "beige|black|blue|bright|brown|cream|cyan|dark|dark brown|dark gray|golden|gray|green|grey|light|light blue|"
    "light brown|magenta|maroon|navy|orange|pink|purple|red|silver|tan|teal|turquoise|violet|white|yellow"
)
ADJECTIVES = (
    "big|large|small|little|tall|short|taller|shorter|wide|wider|narrow|low|lower|high|higher|long|longer|square|round|"
    "rectangular|wooden|wood|metal|plastic|glass|leather|fabric|open|closed|empty|full|clean|messy|nearest|closest|"
    "farthest|furthest|first|second|third|last|same|different|left|right|middle|plain|striped|bigger|smaller|biggest|"
    "smallest|tallest|shortest|largest|narrowest|widest|lowest|highest|closer|nearer|farther|further"
)
RELATIONS = (
    "to the left of|to the right of|in front of|behind|next to|near|close to|above|below|under|underneath|on top of|on|"
    "in|inside|against|beside|between|across from|opposite|facing|along|over|by|around|at|far from|in the corner of|"
    "in the middle of|on the left side of|on the right side of|at the end of|attached to|hanging on|leaning against"
)
DIRECTIONS = (
    "left|right|front|back|forward|backward|forwards|backwards|in front|behind|ahead|around|straight|front left|"
    "front right|back left|back right|north|south|east|west|clockwise|counterclockwise|up|down|sideways|"
    "one o'clock|two o'clock|three o'clock|six o'clock|nine o'clock|ten o'clock|twelve o'clock"
)
NUMBERS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty|0|1|2|3|4|5|6|7|8|9|10|11|12|15|20|25|30|45|60|90|120|180|270|360"
)
SHORT_ANSWERS = "yes|no|none|nothing|both|neither|odd|even|more|less|fewer|equal|true|false|unknown|cannot tell"
VERBS = (
    "standing|sitting|facing|looking|walking|lying|leaning|working|sleeping|watching|reading|washing|cooking|entering|"
    "leaving|opening|closing|turning|placing|throwing|picking|cleaning|moving|holding|reaching|placed|located|mounted|"
    "hanging|seen|attached|pushed|covered|painted|turned"
)
COMMON_WORDS = """
a about above after again air all almost along also always am an and animal another answer any anything apart are area
arm around as ask at away back be because become been before begin being best better between big bit body both bottom
bring build building but buy by call called came can cannot car care carry case centre center change child children city
clear close cold colour color come complete corner could country course cut day deep describe did different direction do
does done door down draw each early earth easy eat edge either else end enough even ever every everything example eye
face fact family far feel feet few find fire first follow food foot for form found four free from front full game gave
get girl give go going good got great ground group grow had half hand happen hard has have he head hear heavy help her
here high him his hold home hour house how however i idea if image images important in inside into is it item its just
keep kind know land large last later learn leave length less let letter level life light like line list little live long
look lot low made make man many map mark may me mean measure meter meters metre metres middle might mind minute miss
money more morning most mother mountain move much must my name near need never new next night no north not note nothing
notice now number of off often old on once one only open or order other our out over own page paper part pass pattern
people perhaps photo photograph photographs piece place plan plane plant play point position possible power present
problem put question quick quite rather reach read ready real really remember rest river road rock room rooms round rule
run said same saw say school sea seat second see seem sentence set shall shape she short should show side simple since
size sleep slow small snow so some something song soon sound space stand star start state stay step still stop story
street strong study such sun sure surface table take talk tell ten than that the their them then there these they thing
things think this those though thought three through time times to today together told too took top toward town tree
true try turn two type under until up upon us use used usually very view views voice wait walk want war was watch water
way we week well went were what when where whether which while white who whole why wide will wind wish with without word
words work world would write year years yellow yes yet you young your
"""
QUESTIONS = (
    "What color is the {a} {r} the {b}?",
    "What is {r} the {a}?",
    "What is on my {d}?",
    "What kind of {a} is {r} the {b}?",
    "What shape is the {a}?",
    "What is the {j} thing {r} the {a}?",
    "What material is the {a} made of?",
    "What is the color of the {a}?",
    "What type of furniture is {r} the {c} {a}?",
    "Where is the {c} {a}?",
    "Where is the {a} located in the room?",
    "How many {a}s are there in the room?",
    "How many {a}s are {r} the {b}?",
    "How many {c} {a}s can be seen?",
    "How far is the {a} from the {b} in meters?",
    "How wide is the {a}?",
    "Is there a {a} {r} the {b}?",
    "Is the {a} {j} than the {b}?",
    "Is the {a} {r} the {b} {c}?",
    "Are there more {a}s than {b}s?",
    "Can I see the {a} if I turn {d}?",
    "Can I reach the {a} without passing the {b}?",
    "Which is {j}, the {a} or the {b}?",
    "Which direction should I go to reach the {a}?",
    "Which way should I turn to face the {a}?",
    "Which of the {a}s is {r} the {b}?",
    "Does the {a} have the same color as the {b}?",
    "Do I need to turn {d} to see the {a}?",
    "If I turn {d}, will the {a} be on my {d}?",
    "On which side of me is the {a}?",
    "In what part of the room is the {c} {a}?",
    "What can I see through the {a} behind me?",
)
SITUATIONS = (
    "I am {v} at the {a} facing the {b}.",
    "I am {v} by the {a} with the {b} on my {d}.",
    "I am {v} {r} the {a} and there is a {c} {b} behind me.",
    "I am {v} on the {a}, facing the {b}, and the {j} {a} is on my {d}.",
    "I am facing the {a} and the {b} is to my {d}.",
    "I just entered the room through the door and the {a} is in front of me.",
)
INSTRUCTIONS = (
    "Place an anchor on the {a}.",
    "Place an anchor on the {c} {a} {r} the {b}.",
    "Place an anchor on the {j} {a}.",
    "Place anchors on all {a}s.",
    "Mark the {a} {r} the {b}.",
    "Mark every {a} in the room.",
    "Put an anchor at the {a} nearest to the {b}.",
    "Locate the {a} and give its box, its centre, size and normal.",
    "Find the wall behind the {a}.",
)


def training_text(seed: int = 0, num_sentences: int = 30_000) -> Iterator[str]:
    """Every line the tokenizer is trained on, the same for the same seed."""
    rng = random.Random(seed)
    sources = {"a": THINGS, "b": THINGS, "c": COLOURS, "d": DIRECTIONS, "j": ADJECTIVES, "r": RELATIONS, "v": VERBS}
    lists = {key: _words(text) for key, text in sources.items()}
    templates = (*QUESTIONS, *SITUATIONS, *INSTRUCTIONS)
    for _ in range(num_sentences):
        template = rng.choice(templates)
        yield template.format(**{key: rng.choice(words) for key, words in lists.items()})
    phrases = [*lists["a"], *lists["c"], *lists["j"], *lists["r"], *lists["d"], *lists["v"]]
    for phrase in (*phrases, *_words(NUMBERS), *_words(SHORT_ANSWERS)):
        yield from (phrase, f"the {phrase}", f"a {phrase}s", phrase.capitalize())
    for word in COMMON_WORDS.split():
        yield from (*[f"a {word}"] * 60, word.capitalize())
    for _ in range(num_sentences // 15):
        yield format_action(_random_action(rng, lists["a"]))
    yield from itertools.repeat(ANSWER_INSTRUCTION, 50)
    yield from itertools.repeat(ACTION_INSTRUCTION, 50)
    yield from itertools.repeat("system\nuser\nassistant\n", 50)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer; its files are written by `save_pretrained`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split("|")]


def _random_action(rng: random.Random, labels: list[str]) -> dict[str, object]:
    def anchor() -> dict[str, object]:
        center = [rng.uniform(-4, 4), rng.uniform(0, 7), rng.uniform(-1.5, 1.0)]
        extent = [rng.uniform(0.2, 3), rng.choice([0.0, rng.uniform(0.2, 1)]), rng.uniform(0.2, 2.5)]
        x = rng.choice([0.0, 1.0, rng.uniform(-1, 1)])
        y = rng.choice([-1, 1]) * (1 - x * x) ** 0.5
        return {"label": rng.choice(labels), "center": center, "extent": extent, "normal": [x, y, 0.0]}

    if rng.random() < 0.7:
        return {"action": "place_anchor", **anchor()}
    return {"action": "place_anchors", "anchors": [anchor() for _ in range(rng.randint(1, 4))]}


def main() -> None:
    """Trains and writes the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("configs/tokenizer-tiny"))
    output = parser.parse_args().output
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(output)
    print(f"{len(tokenizer)} tokens -> {output}")


if __name__ == "__main__":
    main()
