"""How text is cut into words before byte-pair merges: every ``tokenizer.ggml.pre`` and its regular expressions.

The patterns are those that llama.cpp applies for each name, in Oniguruma's syntax. They are applied one after
the other: what a pattern matches is a piece of its own, and the next pattern works on all pieces. Where
llama.cpp has a splitter in code instead of a pattern (Han letters of kimi-k2, digits in threes), the pattern
here does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runner.tokenizer.errors import TokenizerError


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """What one ``tokenizer.ggml.pre`` means."""

    patterns: tuple[str, ...]
    byte_level: bool = True  # words become bytes, each written as one printable letter (GPT-2)
    escape_spaces: bool = False  # a space is written "▁"
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    add_bos: bool = False  # the default where the file does not say
    always_bos: bool = False  # BOS is added whatever the file says


def pre_tokenizer(name: str | None) -> PreTokenizer:
    """The meaning of ``tokenizer.ggml.pre``; None and "" mean "default", as for llama.cpp.

    Raises TokenizerError for a name that is not known: a wrong guess would give wrong tokens silently.
    """
    try:
        return PRE_TOKENIZERS[name or "default"]
    except KeyError:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {name!r}, which is none of the {len(PRE_TOKENIZERS)} known pre-tokenizers: "
            + ", ".join(sorted(PRE_TOKENIZERS))
        ) from None


# ---- parts of patterns -------------------------------------------------------------------------

_CONTRACTION: Final = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PATHS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased_words(upper: str, lower: str, suffix: str) -> str:
    """Words that change from upper to lower case at most once: "HTMLParser" is one, "camelCase" is two."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"


def _not_han(letters: str) -> str:
    return rf"[{letters}&&[^\p{{Han}}]]"


_NOT_LOWER_ASCII: Final = r"((?=[\p{L}])([^a-z]))"
_NOT_UPPER_ASCII: Final = r"((?=[\p{L}])([^A-Z]))"
_MARKED_NOT_LOWER_ASCII: Final = r"((?=[\p{L}\p{M}])([^a-z]))"
_MARKED_NOT_UPPER_ASCII: Final = r"((?=[\p{L}\p{M}])([^A-Z]))"

# Digits in threes, counted from the right. The look-ahead runs only where a run of digits begins: looking ahead
# from every group, as the models' own patterns do, takes time that grows with the square of the run.
_DIGITS_FROM_RIGHT: Final = r"(?<!\p{N})\p{N}{1,2}(?=(?>(?:\p{N}{3})*)(?!\p{N}))|\p{N}{3}"
# The same for a pattern that only marks the places before groups: what is no group stays with what precedes it.
_DECIMALS_HEAD: Final = r"\d{1,2}(?=(?>(?:\d{3})*)(?!\d))"
_DECIMALS_FROM_RIGHT: Final = rf"\A(?:\D+|{_DECIMALS_HEAD})+|\d{{3}}(?:\D+(?:{_DECIMALS_HEAD})?)*"

_PUNCTUATED: Final = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_CJK_KANA: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_WIDE: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_KANA_SOUTHEAST: Final = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_HANGUL_BOPOMOFO_CJK: Final = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+"
    f"|{_CJK_KANA}"
)
# Letters that have case, as deepseek-llm lists them.
_CASED_LETTERS: Final = (
    "A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

# ---- patterns ----------------------------------------------------------------------------------

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3: Final = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2: Final = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_BLOOM: Final = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES: Final = r"[^\n]+|[\n]+"
_DEEPSEEK_WORDS: Final = rf"{_PUNCTUATED}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"


def _o200k(upper: str, lower: str) -> str:
    words = _cased_words(upper, lower, f"{_CONTRACTION}?")
    return rf"{words}|\p{{N}}{{1,3}}|{_PATHS}|{_SPACES}"


def _jais2_spaces() -> str:
    runs = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    return rf"\s*[\r\n]+|{runs}|\s{{1,2}}(?!\S)|\s{{1}}"


_HAN: Final = (
    r"[\p{Han}]+|"
    + _cased_words(_not_han(_UPPER), _not_han(_LOWER), "(?i:'s|'t|'re|'ve|'m|'ll|'d)?")
    + rf"|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
)

# ---- the table ---------------------------------------------------------------------------------

_ROWS: Final[tuple[tuple[str, PreTokenizer], ...]] = (
    ("default", PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    (
        "gpt-2 mpt olmo jais phi-2 jina-es jina-de jina-v1-en jina-v2-code jina-v2-de jina-v2-es roberta-bpe "
        "modern-bert gigachat a.x-4.0 mellum exaone4 trillion granite-docling",
        PreTokenizer((_GPT2,)),
    ),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), ignore_merges=True)),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((_LLAMA3,))),
    ("jais-2", PreTokenizer((rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_jais2_spaces()}",))),
    (
        "minicpm5",
        PreTokenizer((r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_SPACES}"), ignore_merges=True),
    ),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan grok-2 solar-open",
        PreTokenizer((_QWEN2,)),
    ),
    (
        "qwen35",
        PreTokenizer(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
            )
        ),
    ),
    ("laguna", PreTokenizer((_LINES, _QWEN2))),
    ("ufakzeka", PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}",))),
    (
        "seed-coder",
        PreTokenizer((rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
    ),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            (
                rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_SYMBOLS}"
                r"|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "exaone-moe",
        PreTokenizer(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "tekken",
        PreTokenizer(
            (rf"{_cased_words(_NOT_LOWER_ASCII, _NOT_UPPER_ASCII, '')}|\p{{N}}|{_PATHS}|{_SPACES}",),
            ignore_merges=True,
            add_bos=True,
        ),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_o200k(_NOT_LOWER_ASCII, _NOT_UPPER_ASCII),))),
    (
        "granite-embed-multi-97m",
        PreTokenizer((_o200k(_MARKED_NOT_LOWER_ASCII, _MARKED_NOT_UPPER_ASCII),), ignore_merges=True),
    ),
    ("tiny_aya cohere2moe", PreTokenizer((_DIGITS_FROM_RIGHT, _o200k(_UPPER, _LOWER)))),
    (
        "youtu",
        PreTokenizer(
            (
                _HANGUL_BOPOMOFO_CJK,
                rf"{_cased_words(_UPPER, _LOWER, f'{_CONTRACTION}?')}|\p{{N}}|{_PATHS}|{_SPACES}",
            ),
            ignore_merges=True,
        ),
    ),
    ("kimi-k2", PreTokenizer((_HAN,))),
    ("superbpe", PreTokenizer((r"\p{N}+", _DECIMALS_FROM_RIGHT))),
    (
        "afmoe",
        PreTokenizer((_DIGITS_FROM_RIGHT, _CJK_KANA_SOUTHEAST, rf"{_DEEPSEEK_WORDS}[\r\n]*|{_SPACES}")),
    ),
    (
        "deepseek-v3 hunyuan-dense hy_v4 joyai-llm",
        PreTokenizer((r"\p{N}{1,3}", _CJK_KANA, rf"{_DEEPSEEK_WORDS}[\r\n]*|{_SPACES}")),
    ),
    (
        "spark2_5",
        PreTokenizer((r"\p{N}{1,3}", _CJK_KANA, rf"{_DEEPSEEK_WORDS}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    ),
    ("deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, r"\p{N}"))),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED_LETTERS}]+",
                # From U+3001: llama.cpp hides the ideographic space U+3000, which the model lists too, from patterns.
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
                r"\s+$",
                _CJK_WIDE,
                r"\p{N}+",
            )
        ),
    ),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    ("bloom poro-chat gpt3-finnish", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
    # Merges run over whole lines of plain letters.
    (
        "gemma4 granite-embed-multi-311m",
        PreTokenizer((_LINES,), byte_level=False, escape_spaces=True, always_bos=True),
    ),
    ("sarvam-moe", PreTokenizer((_LINES,), byte_level=False, escape_spaces=True)),
    ("whitespace", PreTokenizer((r"\S+",), byte_level=False)),
)

PRE_TOKENIZERS: Final[Mapping[str, PreTokenizer]] = {name: entry for names, entry in _ROWS for name in names.split()}
