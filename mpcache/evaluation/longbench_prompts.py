"""What each data set asks for: the prompt around a record, the answer's length, the metric.

The prompts follow those that LongBench (Bai et al., ACL 2024) publishes part by part (what the text
is, the text, what to answer, the question), in words of our own: figures compare policies on one
model, and come close to published ones without being them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpcache.errors import UsageError
from mpcache.models.tokenizer import Codec


@dataclass(frozen=True)
class Task:
    """A data set's own rules.

    Attributes:
        prompt: with places for ``{context}`` and ``{question}``.
        new_tokens: of an answer, as published.
        chat: whether the prompt is a chat's message where the model has a chat form; what goes on
            with examples or with code is not.
        first_line: whether the first line alone is the answer.
    """

    prompt: str
    new_tokens: int
    metric: str
    chat: bool = True
    first_line: bool = False

    def filled(self, context: str, question: str) -> str:
        """The prompt with both texts in their places, whatever they contain."""
        parts = self.prompt.split("{context}")
        return context.join(part.replace("{question}", question) for part in parts)


_BRIEF = "Give the answer alone, without other words."
_PASSAGES = (
    f"Use the passages to answer the question. {_BRIEF}\n\nPassages:\n{{context}}\n\n"
    f"Use the passages above to answer the question. {_BRIEF}\n\nQuestion: {{question}}\nAnswer:"
)
_MANY_PASSAGES = Task(_PASSAGES, 32, "f1")
_CODE = "Complete the code below.\n{context}{question}"

TASKS = {
    "narrativeqa": Task(
        "Here is a story, a book or a film script, and a question about it. Answer as briefly as"
        " you can, in one phrase if possible, and explain nothing.\n\nStory: {context}\n\nAnswer"
        " the question on the story as briefly as you can, in one phrase if possible, and explain"
        " nothing.\n\nQuestion: {question}\n\nAnswer:",
        128,
        "f1",
    ),
    "qasper": Task(
        "Here is a scientific article and a question about it. Answer as briefly as you can, with"
        ' one phrase or sentence. If the article does not tell, write "unanswerable"; to a question'
        ' of yes or no write "yes", "no" or "unanswerable". Explain nothing.\n\nArticle: {context}'
        "\n\nAnswer the question on the article by the same rules.\n\nQuestion: {question}\n\n"
        "Answer:",
        128,
        "f1",
    ),
    "multifieldqa_en": Task(
        "Read this text and answer a question about it.\n\n{context}\n\nAnswer from the text above."
        f" {_BRIEF}\n\nQuestion: {{question}}\nAnswer:",
        64,
        "f1",
    ),
    "hotpotqa": _MANY_PASSAGES,
    "2wikimqa": _MANY_PASSAGES,
    "musique": _MANY_PASSAGES,
    "gov_report": Task(
        "Here is a report of a government agency. Summarise it on one page.\n\nReport:\n{context}"
        "\n\nSummarise the report on one page.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "qmsum": Task(
        "Here is the transcript of a meeting, and a question or task about it. Answer in one or"
        " more sentences.\n\nTranscript:\n{context}\n\nAnswer from the transcript in one or more"
        " sentences.\n\nQuestion: {question}\nAnswer:",
        512,
        "rouge_l",
    ),
    "multi_news": Task(
        "Here are several news articles. Summarise all of them on one page.\n\nNews:\n{context}\n\n"
        "Summarise all the news on one page.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "trec": Task(
        "Tell the type of the question; here are examples.\n\n{context}\n{question}",
        64,
        "classification",
        chat=False,
        first_line=True,
    ),
    "triviaqa": Task(
        f"Use the passage to answer the question. {_BRIEF} Here are examples.\n\n{{context}}\n\n"
        "{question}",
        32,
        "f1",
        chat=False,
        first_line=True,
    ),
    "samsum": Task(
        "Summarise the dialogue in a few short sentences; here are examples.\n\n{context}\n\n"
        "{question}",
        128,
        "rouge_l",
        chat=False,
        first_line=True,
    ),
    "passage_count": Task(
        "Some of these paragraphs may stand here more than once. Read them all and count how many"
        " different ones there are.\n\n{context}\n\nHow many different paragraphs are there, not"
        " counting any twice? Write the number alone, such as 1, 2 or 3.\n\nAnswer:",
        32,
        "count",
    ),
    "passage_retrieval_en": Task(
        "Here are 30 paragraphs of an encyclopedia, and an abstract of one of them. Tell which.\n\n"
        "{context}\n\nThe abstract:\n\n{question}\n\nWrite the number of its paragraph, such as"
        ' "Paragraph 1" or "Paragraph 2".\n\nAnswer:',
        32,
        "retrieval",
    ),
    "lcc": Task(
        "Complete the code below.\n{context}Next line of code:\n", 64, "edit_similarity", chat=False
    ),
    "repobench-p": Task(_CODE + "Next line of code:\n", 64, "edit_similarity", chat=False),
    "xsum": Task(
        "Here is a news article. Say in one sentence what it is about.\n\nArticle: {context}\n\n"
        "Say in one sentence what the article is about.\n\nSummary:",
        64,
        "rouge_l",
    ),
}


def encoded(codec: Codec, text: str, room: int, chat: bool) -> list[int]:
    """Token ids of a prompt, its middle left out where it has over `room` tokens.

    As published: the first and the last half of what fits are kept, since instructions stand at
    both ends; a chat's form goes around what is left.

    Raises:
        UsageError: not even the chat's form fits.
    """

    def formed(part: str) -> list[int]:
        ids = codec.chat(part) if chat else None
        return codec.encode(part) if ids is None else ids

    ids = formed(text)
    bare = codec.encode(text)[len(codec.empty) :]
    kept = len(bare)
    while len(ids) > room:
        kept -= len(ids) - room
        if kept < 2:
            raise UsageError(f"a prompt needs over {room} tokens without any text; give --context")
        ids = formed(shortened(codec, bare, kept))
    return ids


def shortened(codec: Codec, ids: Sequence[int], kept: int) -> str:
    """The text of the first and the last of `ids`, `kept` together."""
    first = kept // 2
    return codec.decode(ids[:first]) + codec.decode(ids[len(ids) - (kept - first) :])
