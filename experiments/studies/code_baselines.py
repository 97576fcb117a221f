"""Perplexity of held-out codes under count models: a unigram and an interpolated bigram of codes.

    python -m experiments.studies.code_baselines TRAIN_DOCUMENTS… --heldout DOCUMENTS

A language model whose speech perplexity is not below that of the unigram has learnt nothing about speech.
Both models count over the training documents (add-one smoothing; the bigram is interpolated with the unigram,
which has the weight of 20 observations); eosp counts as a code, as in the language model.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from lit_moss.data.documents import read_documents
from lit_moss.errors import UserError

BACKOFF = 20.0


def stretches(folder: Path) -> tuple[list[np.ndarray], int]:
    """Codes and eosp of every document, in order, and the number of different ids."""
    documents = read_documents(folder)
    row_format = documents.format
    all_codes = []
    for i in range(len(documents)):
        rows = np.asarray(documents.rows(i), dtype=np.int64)
        is_code = (rows >= row_format.text_vocab_size) & (rows <= row_format.eosp_row)
        all_codes.append(rows[is_code] - row_format.text_vocab_size)
    return all_codes, row_format.eosp_token_id + 1


def perplexities(train: list[np.ndarray], heldout: list[np.ndarray], ids: int) -> tuple[float, float]:
    """Perplexities of the unigram and the bigram on the held-out codes."""
    single, pairs = np.ones(ids), np.zeros((ids, ids), dtype=np.float32)
    for codes in train:
        np.add.at(single, codes, 1)
        np.add.at(pairs, (codes[:-1], codes[1:]), 1)
    p_single = single / single.sum()
    unigram = np.concatenate([p_single[codes] for codes in heldout])
    bigram = []
    for codes in heldout:
        before, here = codes[:-1], codes[1:]
        seen = pairs[before, here] + BACKOFF * p_single[here]
        bigram.append(seen / (pairs[before].sum(1) + BACKOFF))
    return float(np.exp(-np.log(unigram).mean())), float(np.exp(-np.log(np.concatenate(bigram)).mean()))


def main() -> int:
    """Prints one line; returns 2 if a folder does not contain documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, nargs="+")
    parser.add_argument("--heldout", type=Path, required=True)
    args = parser.parse_args()
    try:
        train = [codes for folder in args.train for codes in stretches(folder)[0]]
        heldout, ids = stretches(args.heldout)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unigram, bigram = perplexities(train, heldout, ids)
    sizes = f"{sum(map(len, train))} codes to count, {sum(map(len, heldout))} held out"
    print(f"{sizes}: unigram {unigram:.1f}, bigram {bigram:.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
