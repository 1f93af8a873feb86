"""The tokenizer of a checkpoint, read so that a damaged file is one line and no code of it is ever run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlrc.errors import UserError, shorten
from rlrc.reading import MAX_JSON_BYTES, lies_there, read_object, read_text

TOKENIZER_FILE = "tokenizer.json"
JSON_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SAMPLE = "In: What action should the robot take to put carrot on plate?\nOut:"


def load_tokenizer(folder: Path, vocabulary: int, needs_bos: bool = True) -> PreTrainedTokenizerBase | None:
    """The tokenizer of `folder`, or None where it has none.

    Args:
        vocabulary: ids that the policy has embeddings for.
        needs_bos: whether prompts have to begin with a BOS token.

    Raises:
        UserError: a file is damaged, or the tokenizer puts no BOS in front, or it gives ids beyond the vocabulary.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        return None
    for name in JSON_FILES:
        if lies_there(folder / name):
            read_object(folder / name)
    if lies_there(folder / "chat_template.jinja"):
        read_text(folder / "chat_template.jinja", MAX_JSON_BYTES)
    try:
        with _silent_panics():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            largest = max(tokenizer.get_vocab().values(), default=0)
            bos, ids = tokenizer.bos_token_id, token_ids(tokenizer, SAMPLE)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers is written in Rust, whose panics are no Exception
        # The readers say what is wrong with a file; what else goes wrong tells of their own code.
        told = f" ({shorten(str(error))})" if type(error) is Exception or isinstance(error, ValueError) else ""
        raise UserError(
            f"{path}: this tokenizer cannot be read{told}; download {TOKENIZER_FILE} and tokenizer_config.json again"
        ) from error
    if largest >= vocabulary:
        raise UserError(f"{path}: it gives ids up to {largest}, and the policy's vocabulary has {vocabulary}")
    if needs_bos and (bos is None or not ids or ids[0] != bos):
        raise UserError(f"{path}: it does not begin a prompt with a BOS token, as the policy's prompts begin")
    tokenizer.init_kwargs.pop("auto_map", None)  # it names files that are not written
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The ids of a prompt, BOS first.

    Raises:
        UserError: the text is none that can be written in UTF-8.
    """
    try:
        return list(tokenizer(prompt)["input_ids"])
    except (TypeError, UnicodeError) as error:
        raise UserError(f"the prompt {shorten(ascii(prompt))} is no text that a tokenizer takes") from error


@contextmanager
def _silent_panics() -> Iterator[None]:
    """Keep what Rust prints about a panic off the console; the error that follows says it."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
