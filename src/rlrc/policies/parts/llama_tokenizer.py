"""A tokenizer of our own with Llama-2's ids where OpenVLA relies on them, for checkpoints that lack the real one.

As Llama-2's: <unk> 0, <s> 1, </s> 2, the bytes at 3..258, single characters from the lone space "▁" (29871) on, <PAD>
32000; BOS in front, a "▁" before each word, bytes for what has no piece. The pieces between are learnt from robot
instructions, so that a prompt is about as long as with the real one. Text never gives the ids of the action bins.
"""

import json
import string

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
"""OpenVLA's."""
SPACE = "▁"
VOCABULARY = 32000
SPECIAL = ["<unk>", "<s>", "</s>"]
CHARACTERS = {char: 29871 + offset for offset, char in enumerate(f"{SPACE}etainorsldhcumpgf.by,wvk")} | {
    ":": 29901,
    "?": 29973,
}
"""Llama-2's ids of the characters that prompts are made of."""

INSTRUCTIONS = """
put carrot on plate
put the spoon on the towel
put eggplant in yellow basket
stack the green block on the yellow block
place the red cube on the blue plate
pick up the black bowl between the plate and the ramekin and place it on the plate
pick up the alphabet soup and place it in the basket
pick up the orange juice and the tomato sauce and put both in the basket
open the middle drawer of the cabinet
open the top drawer and put the bowl inside
close the bottom drawer of the cabinet
turn on the stove and put the moka pot on it
put the wine bottle on top of the cabinet
push the plate to the front of the stove
put the cream cheese box and the butter in the basket
put the white mug on the left plate and the chocolate pudding to the right of the plate
put the yellow and white mug in the microwave and close it
pick up the book and place it in the back compartment of the caddy
pick coke can
move the apple near the sponge
knock the can over
place the pepper next to the mushroom
move the banana to the left side of the table
wipe the table with the cloth
fold the towel from right to left
lift the battery and put it in the drawer
slide the small bread behind the corn
take the knife out of the sink and put it in the drying rack
put the strawberry in the gray bowl
put the toy elephant under the lamp
flip the pot upright and set it on the burner
sweep the beans into the dustpan
pour water from the cup into the pan
press the button on the coffee machine
insert the key into the lock and rotate it
hang the hook on the hanger
"""


def llama_like_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; `len` is 32001, and the same at every call."""
    characters, merges = _learn()
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [char for char in characters if char not in CHARACTERS] + [left + right for left, right in merges]
    vocabulary = {piece: number for number, piece in enumerate(pieces)} | CHARACTERS
    # No merge makes the rest, so that no text does, not even their own names.
    free = sorted(set(range(VOCABULARY)) - set(vocabulary.values()))
    vocabulary |= {f"<unused_{number}>": number for number in free}

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in [*SPECIAL, "<PAD>"]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<PAD>",
        padding_side="right",
        model_max_length=2048,
    )


def _learn() -> tuple[list[str], list[tuple[str, str]]]:
    """All single characters, and the merges of byte-pair encoding in their order."""
    prompts = [PROMPT.format(instruction=instruction) for instruction in INSTRUCTIONS.strip().splitlines()]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    # Pieces end where words do, and the newline stays a byte, as in Llama-2's vocabulary.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Split(SPACE, "merged_with_next"),
            pre_tokenizers.Punctuation(),
        ]
    )
    characters = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    trainer = trainers.BpeTrainer(show_progress=False, initial_alphabet=characters)
    learner.train_from_iterator(prompts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return characters, [(left, right) for left, right in merges]
