"""Text as the tokens of a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from querykey.extras import needs

PIECE = 1 << 16  # characters; what the library keeps of a text while encoding is many times its size


class Tokenizer(NamedTuple):
    """Text to tokens in [0, vocabulary).

    Bits per byte compare across tokenizers that lose nothing, such as byte-level ones: what a tokenizer drops or
    takes for unknown, a model need not predict.
    """

    vocabulary: int
    encode: Callable[[str], list[int]]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """A file of the `tokenizers` library. Its padding, truncation and special tokens are not used."""
        with needs("text"):
            import tokenizers

        try:
            tokenizer = tokenizers.Tokenizer.from_file(os.path.expanduser(path))
        except Exception as error:  # the library raises no narrower class
            raise ValueError(
                f"the tokenizer {os.fspath(path)} cannot be read ({error}); give 'bytes' or a file of the "
                "tokenizers library, such as tokenizer.json"
            ) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()

        def encode(text: str) -> list[int]:
            pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
            encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
            return [token for encoding in encodings for token in encoding.ids]

        return cls(max(tokenizer.get_vocab().values()) + 1, encode)
