"""Pygments lexers for what is typed at the prompt, in all three forms, and for HMP's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.lexers import Lexer as PromptLexer
from pygments.lexer import Lexer, RegexLexer, bygroups, default, include, words
from pygments.token import (
    Comment,
    Error,
    Keyword,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Text,
    Token,
    _TokenType,
)

_groups: Any = bygroups  # Pygments' stubs leave it without types

LONGEST = 64 * 1024
"""Longer input (pasted, not typed) stays plain."""

_NUMBER = r"-?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?[bBkKmMgGtTpPeE]?)"
_STRING = r'"(?:[^"\\\n]|\\.)*"?|\'(?:[^\'\\\n]|\\.)*\'?'


class InputLexer(RegexLexer):
    """QMP as JSON, qmp-shell lines and HMP lines; which it is shows at the beginning of each line."""

    name = "blockmon input"
    aliases = ("blockmon",)
    tokens = {  # noqa: RUF012  (Pygments wants it so)
        "root": [
            (r"\s+", Text),
            (r"#[^\n]*", Comment.Single),
            (r"\{", Punctuation, "object"),
            (r"(qmp|hmp)([ \t]+)(?=\S)", _groups(Keyword.Type, Text)),
            (r"[^\s{]\S*", Keyword, "line"),
        ],
        # Behind the command's name, up to the end of the line.
        "line": [
            (r"\\\n", Operator),
            (r"\n", Text, "#pop"),
            (r"(?<=[ \t])(\|)([^\n]*)", _groups(Operator, Text)),
            (r"[ \t\r]+", Text),
            (r"\$_(?![^\s.\[])\S*", Keyword.Type),
            (r"([\w.-]+)(=)", _groups(Name.Attribute, Operator), "value"),
            (r"-[A-Za-z]\b", Name.Attribute),
            (_STRING, String),
            (rf"{_NUMBER}(?=\s|$)", Number),
            (r"[^\s\"']+", Name),
        ],
        "value": [
            (r"(json:)?(\{)", _groups(Keyword.Type, Punctuation), ("#pop", "object")),
            (r"\[", Punctuation, ("#pop", "list")),
            (_STRING, String, "#pop"),
            (words(("on", "off", "true", "false", "null", "yes", "no"), suffix=r"(?=\s|$)"), Keyword.Constant, "#pop"),
            (rf"{_NUMBER}(?=\s|$)", Number, "#pop"),
            (r"\$_(?![^\s.\[])\S*", Keyword.Type, "#pop"),
            (r"[^\s]+", String, "#pop"),
            default("#pop"),
        ],
        "json": [
            (r"\s+", Text),
            (rf"({_STRING})(\s*)(:)", _groups(Name.Tag, Text, Punctuation)),
            (_STRING, String),
            (r"(?:true|false|null)\b", Keyword.Constant),
            (_NUMBER, Number),
            (r"\{", Punctuation, "object"),
            (r"\[", Punctuation, "list"),
            (r"[,:]", Punctuation),
        ],
        "object": [include("json"), (r"\}", Punctuation, "#pop"), (r".", Error)],
        "list": [include("json"), (r"\]", Punctuation, "#pop"), (r".", Error)],
    }


class HMPAnswerLexer(RegexLexer):
    """The text that HMP commands answer with: names in front of colons, sizes, file names."""

    name = "HMP answer"
    aliases = ("hmp-answer",)
    tokens = {  # noqa: RUF012
        "root": [
            (r"\n", Text),
            (r"^(?:Error:|unknown command:)[^\n]*", Error),
            (r"^([ \t]*)([^\s:=()][^\n:=()]{0,38}?)(:)(?=\s|$)", _groups(Text, Name.Tag, Punctuation)),
            (r"([\w-]+)(=)", _groups(Name.Attribute, Operator)),
            (_STRING, String),
            (rf"(?<![\w.-]){_NUMBER}(?![\w-])", Number),
            (r"(?<!\S)/\S+", String),
            (r"[()\[\],;:]", Punctuation),
            (r"[\w.-]+", Text),
            (r"[^\n]", Text),
        ]
    }


def style_of(token: _TokenType) -> str:
    """prompt_toolkit's style class for a Pygments token; plain text has none."""
    if token is Token or token is Text:
        return ""
    return "class:pygments." + ".".join(part.lower() for part in token)


def lexed(text: str, lexer: Lexer) -> Iterator[tuple[str, str]]:
    """The style and text of each token of *text*."""
    for _, token, value in lexer.get_tokens_unprocessed(text):
        yield style_of(token), value


class PromptInputLexer(PromptLexer):
    """`InputLexer` for prompt_toolkit. A first word that no server command has is not marked as one."""

    def __init__(self, commands: Callable[[], Collection[str]] = tuple) -> None:
        self._lexer = InputLexer()
        self._commands = commands

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """Highlight the whole text at once, which is short."""
        if len(document.text) > LONGEST:
            plain = document.lines
            return lambda number: [("", plain[number])] if number < len(plain) else []
        known = self._commands()
        lines: list[StyleAndTextTuples] = [[]]
        for style, value in lexed(document.text, self._lexer):
            if style == "class:pygments.keyword" and known and value not in known and value[0] != "\\":
                style = "class:pygments.name"
            first, *others = value.split("\n")
            lines[-1].append((style, first))
            lines += [[(style, other)] for other in others]
        return lambda number: lines[number] if number < len(lines) else []
