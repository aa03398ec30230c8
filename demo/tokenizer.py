"""A byte-level BPE tokenizer with a chat template, trained on generated English-like text.

Nothing is downloaded, and the text does not depend on the Python version or the platform, so
the tokenizer is the same everywhere.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 8192
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
BOS_ID, EOS_ID = 0, 1

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_SENTENCES = 6000
_PREFIXES = "a an be co de dis en ex in inter mis non out over pre pro re sub trans un under up"
_ROOTS = """
act age air alarm apply arch arm art ask band bank bar base bath beam bear bell bend bind bird
blind block blow board boat body bolt bond book born bound bow box branch brand bread break bridge
bright bring broad brook brush build burn call camp care carry cart case cast catch cause cede
change chart chase check claim class clear climb cloak close cloud coal coast code cold come cord
corn count course cover craft cross crowd cry cure current curve cut cycle dance dark deal deep
divide door double doubt draft draw dream dress drift drive drop dry dust ear earth ease east edge
enter equal even face fact fair fall farm fast father fear feed feel fence field figure file fill
find fine fire firm fish fit fix flame flat flow fly fold follow food foot force form forest found
frame free fresh front fruit full garden gate gather ghost gift glass gold grace grade grain grand
grant graph grass great green ground group grow guard guess guide habit hand hang harbour hard
harvest head hear heart heat heavy hill hold hollow home hook hope horse host hour house hunt ice
island join journey judge jump keen keep kind king knock know labour lack ladder lake lamp land
language large last late laugh law lay lead leaf learn leave lend letter level lie lift light like
limit line link list listen live load loan lock long look loose loud love lower luck machine make
mark market match matter meadow mean measure meet mend merchant metal middle mile milk mill mind
mine minute mirror mist model month moon morning mother motion mount mouth move music name narrow
nation nature near neck needle nest night noble noise north note number oak oath ocean offer office
oil open orange order organ owner page paint pair palace paper park part pass past path pattern
pay peace pen people perfect person picture piece pine pipe place plain plan plant plate play
please plough pocket point pole port post pound power praise press price print private profit
promise proof pull pure push question quick quiet rail rain raise range rank rate reach read
reason record red rest return rich ride right ring rise river road roar rock roll roof room root
rope rough round row rule run safe sail salt sand save scale scene school score sea season seat
second seed sell send sense serve settle shade shake shape share sharp sheep shelf shell shine
ship shoe shop shore short shout show side sign silver simple sing sister sit size skill skin sky
sleep slide slow small smile smoke smooth snow soft soil solid son song sort sound south space
speak speed spell spend spin spirit spoon spread spring square stable stage stair stand star start
state station steam steel stem step stick still stir stone stop store storm story stream street
stretch strong study style sugar summer sun supply support surface surround sweet swim table tail
take talk tall taste teach tell temper tender test thank thick thin think thread throw thunder
tide till time tin tone tongue tool top touch tower town trace track trade train travel tree trial
trouble true trust try turn type unit use valley value vessel view village visit voice vote wait
wake walk wall war warm wash waste watch water wave way weak wear weather weave week weigh west
wheel white whole wide wild win wind window wing winter wire wise wish wonder wood word work
world worth wrap write yard year yellow yesterday yield young
"""
_SUFFIXES = (
    "s ed ing er ers est ly ness ment able ful less ation ity ive ous ish ward wise hood ship dom "
    "al ism ist en"
)
_LITTLE_WORDS = (
    "the of and to in is it that was for on are as with his they at be this from have or by one "
    "had not but what all were when we there can said which she do how their if will each about"
)


def write_tokenizer(path: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `path`."""
    (path / "tokenizer.json").write_text(_trained())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "pad_token": SPECIAL_TOKENS[EOS_ID],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


@functools.cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(
            f"the tokenizer came out with {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}: "
            "the training text is too short"
        )
    return str(tokenizer.to_str(pretty=False))


def _sentences() -> Iterator[str]:
    # Random.random() alone is promised to give the same stream in every Python version.
    draw = random.Random(1).random

    def pick(words: list[str]) -> str:
        return words[int(draw() * len(words))]

    prefixes, roots = _PREFIXES.split(), _ROOTS.split()
    suffixes, little_words = _SUFFIXES.split(), _LITTLE_WORDS.split()
    for _ in range(_SENTENCES):
        words = []
        for _ in range(6 + int(draw() * 14)):
            if draw() < 0.4:
                words.append(pick(little_words))
                continue
            word = pick(roots)
            if draw() < 0.25:
                word = pick(prefixes) + word
            if draw() < 0.5:
                word += pick(suffixes)
            words.append(word)
        if draw() < 0.2:
            words.append(str(int(draw() * 2000)))
        yield " ".join(words).capitalize() + (". " if draw() < 0.8 else "?\n")
