"""The models we convert: how to tell them by their parameters, and what their files are called."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.checkpoint import WEIGHTS_NAME
from common.errors import InputError
from common.model_record import RECORD, SCHEDULER
from common.text import TOKENIZER_FILES

from .tensors import shown


@dataclass(frozen=True)
class Kind:
    """One kind of model. Its parameters include every prefix of one of `marks`."""

    name: str
    stem: str  # of the files in a model directory
    marks: tuple[tuple[str, ...], ...] = ()
    needs_config: bool = True
    companions: tuple[str, ...] = ()  # files that belong into the directory too

    def stem_in(self, format_name: str) -> str:
        """The name that the model's library looks for; transformers has another one for PyTorch's format."""
        return "pytorch_model" if (self.name, format_name) == ("text", "pt") else self.stem


DIFFUSERS_STEM = WEIGHTS_NAME.removesuffix(".safetensors")
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "transformer",
            DIFFUSERS_STEM,
            (("transformer_blocks.0.attn1.", "adaln_single.", "pos_embed."),),
            companions=(RECORD, SCHEDULER.as_posix()),  # how it was trained
        ),
        Kind("vae", DIFFUSERS_STEM, (("encoder.conv_out.", "decoder.conv_in.", "decoder.conv_out."),)),
        Kind(
            "text",
            "model",
            (
                ("encoder.block.0.layer.0.SelfAttention.",),
                ("embeddings.word_embeddings.", "encoder.layer.0."),
            ),
            companions=(*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json"),
        ),
        Kind("i3d", DIFFUSERS_STEM, (("conv_1a.", "mixed_5c.branch_3b.", "logits."),)),
        Kind("lpips", DIFFUSERS_STEM, (("net.slice5.28.", "lin4.model.1.", "scaling_layer."),)),
        Kind("any", DIFFUSERS_STEM, needs_config=False),
    )
}


def detect(names: Iterable[str], wanted: str, where: str) -> Kind:
    """The kind of model that has these parameters.

    Raises:
        InputError: none we know, or another than `wanted` ("auto" for whatever it is, "any" for no check).
    """
    if wanted == "any":
        return KINDS["any"]
    names = list(names)
    for kind in KINDS.values():
        if any(all(any(n.startswith(p) for n in names) for p in prefixes) for prefixes in kind.marks):
            if wanted not in ("auto", kind.name):
                raise InputError(
                    f"{where}: has the parameters of kind {kind.name}, wanted {wanted}; correct --kind"
                )
            return kind
    known = "transformer, vae, text, i3d or lpips" if wanted == "auto" else wanted
    raise InputError(
        f"{where}: parameters like {shown(', '.join(names[:3]))} are of no kind we know, wanted {known}; "
        "use --kind any to convert it unchecked"
    )
