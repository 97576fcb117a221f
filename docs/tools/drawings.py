"""Draws docs/pictures/*.svg.

    python docs/tools/drawings.py

Learning rates, packs and what is frozen come from the code itself, so a drawing cannot differ from
the program. The same input gives the same bytes; tests/test_reference.py compares them with the files in the
repository.
"""

import html
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from lit_moss.data.packing import pack
from lit_moss.schedule import layerwise_lr

PICTURES = Path(__file__).parents[1] / "pictures"
TEXT, SPEECH, SHARED, FROZEN, LINE, INK = "#cfe0f5", "#fbdcb4", "#e4dff0", "#eceff1", "#607d8b", "#263238"
WHITE = "#ffffff"


class Drawing:
    """An SVG on a white ground, so that it can be read in a dark page too; lengths in pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, text: str = "", fill: str = WHITE, size: int = 13,
            dashed: bool = False) -> None:  # fmt: skip
        """A rectangle with lines of text in its middle."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4" fill="{fill}" '
            f'stroke="{LINE}"{dash}/>'
        )
        lines = text.split("\n") if text else []
        for i, line in enumerate(lines):
            at = y + h / 2 + (i - (len(lines) - 1) / 2) * (size + 3) + size * 0.35
            self.text(x + w / 2, at, line, size)

    def text(self, x: float, y: float, text: str, size: int = 13, anchor: str = "middle", color: str = INK,
             bold: bool = False) -> None:  # fmt: skip
        """One line of text; y is its base line."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}>'
            f"{html.escape(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line through the points with a head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5" '
            f'marker-end="url(#head)"{dash}/>'
        )

    def area(self, points: list[tuple[float, float]], fill: str) -> None:
        """A filled polygon."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{path}" fill="{fill}" stroke="{LINE}" stroke-width="0.8"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A thin line."""
        self.parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{LINE}"/>')

    def svg(self) -> str:
        """The file's content."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="Helvetica, Arial, sans-serif" '
            'role="img">\n'
            f"<title>{html.escape(self.title)}</title>\n"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="6" fill="{WHITE}"/>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def rows() -> Drawing:
    """A document as rows, the official grid, and the head that each row trains."""
    drawing = Drawing(860, 232, "A document as rows, and the head that each row trains")
    words = ["In", "being", "sosp", "V+25", "V+847", "V+339", "V+eosp", "modern", ".", "end"]
    speech = [word.startswith("V+") for word in words]
    left, width = 150, 70
    labels = ("row", "text channel", "audio channel", "is trained to", "by the")
    for y, label in zip((43, 83, 111, 153, 189), labels, strict=True):
        drawing.text(left - 12, y + 12, label, anchor="end", bold=label == "row")
    for i, word in enumerate(words):
        x = left + i * width
        drawing.box(x, 36, width - 4, 28, word, SPEECH if speech[i] else TEXT)
        drawing.box(x, 78, width - 4, 24, "mpad" if speech[i] else word, size=11)
        drawing.box(x, 104, width - 4, 24, word.removeprefix("V+") if speech[i] else "apad", size=11)
        if i + 1 == len(words):
            drawing.text(x + 33, 165, "–")
            continue
        follows = speech[i + 1]
        drawing.text(x + 33, 165, f"→ {words[i + 1]}", 12)
        drawing.box(x, 182, width - 4, 28, "speech head" if follows else "text head",
                    SPEECH if follows else TEXT, 10)  # fmt: skip
    drawing.text(
        left,
        22,
        "One document: text, 0.24 s of speech, text (a real chunk of 3 to 6 s has 38 to 75 codes)",
        12,
        "start",
    )
    return drawing


def speech_tokenizer() -> Drawing:
    """Waveform to codes, and the heads of its training."""
    drawing = Drawing(900, 238, "The speech tokenizer and its training")
    steps = [
        ("waveform", "16 kHz", WHITE),
        ("causal log-mel", "100 frames/s", SPEECH),
        ("Whisper encoder,\ncausal", "50 frames/s", SPEECH),
        ("mean of 4", "12.5 frames/s", SPEECH),
        ("nearest of K\ncodebook rows", "12.5 codes/s", SPEECH),
        ("codes", "80 ms each", WHITE),
    ]
    for i, (name, rate, fill) in enumerate(steps):
        x = 14 + i * 148
        drawing.box(x, 40, 122, 56, name, fill)
        drawing.text(x + 61, 30, rate, 11)
        if i + 1 < len(steps):
            drawing.arrow((x + 122, 68), (x + 147, 68))
    drawing.text(14, 148, "training only (speech recognition alone, no reconstruction):", 12, "start")
    drawing.box(310, 166, 122, 46, "linear", FROZEN, dashed=True)
    drawing.arrow((371, 96), (371, 165), dashed=True)
    drawing.arrow((310, 189), (262, 189), dashed=True)
    drawing.text(254, 186, "characters, CTC", 12, "end")
    drawing.text(254, 202, "(50 frames/s)", 11, "end")
    drawing.box(606, 166, 122, 46, "CTC head,\ncausal, x4", FROZEN, dashed=True)
    drawing.arrow((667, 96), (667, 165), dashed=True)
    drawing.arrow((728, 189), (776, 189), dashed=True)
    drawing.text(784, 186, "characters, CTC", 12, "start")
    drawing.text(784, 202, "(50 frames/s)", 11, "start")
    return drawing


def split_lm() -> Drawing:
    """Rows through the shared trunk and both tails."""
    drawing = Drawing(900, 250, "The split language model")
    drawing.text(16, 132, "rows", bold=True, anchor="start")
    drawing.arrow((52, 122), (92, 72))
    drawing.arrow((52, 132), (92, 182))
    drawing.box(94, 46, 130, 46, "embed_tokens\nV text ids", TEXT)
    drawing.box(94, 160, 130, 46, "audio_embed\ncodes, eosp", SPEECH)
    drawing.arrow((224, 69), (276, 112))
    drawing.arrow((224, 183), (276, 140))
    drawing.box(278, 88, 150, 76, "shared_block\nN − m layers\nof the backbone", SHARED)
    for y, at, names, fill in (
        (46, 69, ("text_block\nm layers", "text_norm", "text_lm_head"), TEXT),
        (160, 183, ("audio_block\nm layers", "audio_norm", "audio_lm_head"), SPEECH),
    ):
        drawing.arrow((428, 126), (476, at))
        for i, name in enumerate(names):
            x = 478 + i * 116
            drawing.box(x, y, 100, 46, name, fill, 12)
            drawing.arrow((x + 100, at), (x + 115, at))
    drawing.text(830, 66, "next", 12, "start")
    drawing.text(830, 80, "text id", 12, "start")
    drawing.text(830, 180, "next", 12, "start")
    drawing.text(830, 194, "code", 12, "start")
    drawing.text(478, 30, "copies of the backbone's last m layers and its norm, both:", 12, "start")
    drawing.text(
        94,
        236,
        "N layers of the backbone, m = num_modality_layers. Every tail runs at every row; a head computes "
        "logits at its own targets alone.",
        12,
        "start",
    )
    return drawing


def flow_decoder() -> Drawing:
    """Codes to a mel spectrogram and sound."""
    drawing = Drawing(900, 244, "The flow-matching decoder and the vocoder")
    steps = [
        ("codes", "12.5/s", WHITE, 80),
        ("embedding", "", SPEECH, 96),
        ("encoder,\nx4", "50 frames/s", SPEECH, 96),
        ("velocity network,\nEuler steps", "", SPEECH, 140),
        ("mel\n80 bands,\n50 frames/s", "", WHITE, 80),
        ("vocoder: HiFT or\nGriffin-Lim", "", SHARED, 140),
        ("waveform", "24 kHz", WHITE, 90),
    ]
    x = 14
    for i, (name, rate, fill, width) in enumerate(steps):
        drawing.box(x, 92, width, 56, name, fill)
        drawing.text(x + width / 2, 82, rate, 11)
        if i + 1 < len(steps):
            drawing.arrow((x + width, 120), (x + width + 24, 120))
        x += width + 25
    drawing.text(362, 111, "mu", 12)
    middle = 14 + 80 + 25 + 96 + 25 + 96 + 25 + 70
    drawing.box(middle - 150, 18, 120, 30, "noise z", FROZEN)
    drawing.box(middle - 20, 18, 130, 30, "speaker vector", FROZEN)
    drawing.box(middle + 120, 18, 170, 30, "voice prompt: codes, mel", FROZEN)
    drawing.arrow((middle - 90, 48), (middle - 20, 91))
    drawing.arrow((middle + 30, 48), (middle + 8, 91))
    drawing.arrow((middle + 180, 48), (middle + 40, 91))
    drawing.arrow((288, 148), (288, 188), dashed=True)
    drawing.text(288, 204, "prior loss: |mu − mel|²", 12)
    drawing.text(288, 220, "(model.prior_weight)", 11)
    drawing.arrow((middle, 148), (middle + 60, 188), dashed=True)
    drawing.text(middle + 66, 204, "flow-matching loss: |v − u|²", 12, "start")
    return drawing


def stages() -> Drawing:
    """What each recipe trains; read off the policies of the callback."""
    from callbacks.staged_freezing import POLICIES
    from lit_moss.llm.parts import PARTS

    recipes = {
        "stage1": "stage1", "stage2_full": "full", "stage2_shared": "shared", "stage2_layerwise": "layerwise",
        "nf": "full", "nf_nosplit": "full", "sft": "full",
    }  # fmt: skip
    drawing = Drawing(890, 62 + 30 * len(PARTS) + 36, "What trains in which recipe")
    for column, recipe in enumerate(recipes):
        drawing.text(150 + column * 104 + 50, 30, recipe, 12, bold=True)
    for row, part in enumerate(PARTS):
        y = 42 + row * 30
        drawing.text(140, y + 18, part, 12, "end")
        for column, (recipe, policy) in enumerate(recipes.items()):
            x = 150 + column * 104
            absent = recipe == "nf_nosplit" and (part.startswith("audio") or part == "text_tail")
            trains = any(fnmatchcase(part, pattern) for pattern in POLICIES[policy])
            gradual = policy == "layerwise" and part == "trunk"
            fill = WHITE if absent else FROZEN if not trains else SPEECH if part.startswith("audio") else TEXT
            fill = SHARED if trains and part == "trunk" else fill
            label = (
                "none" if absent else "frozen" if not trains else "layer by layer" if gradual else "trains"
            )
            drawing.box(x, y, 100, 26, label, fill, 11, dashed=absent)
    note = "nf_nosplit has one vocabulary for words and codes, and all layers in the trunk."
    drawing.text(150, 42 + 30 * len(PARTS) + 26, note, 12, "start")
    return drawing


def unfreezing() -> Drawing:
    """Rate of every trunk layer over the run, by `layerwise_lr`."""
    N, k, w, T = 6, 12, 5, 100
    drawing = Drawing(880, 56 + 46 * N + 50, "Layer-wise unfreezing: learning rate of each layer")
    left, width, high = 110, 740, 36
    drawing.text(
        left,
        24,
        f"Learning rate of each of N = {N} trunk layers, k = {k}, w = {w}, T = {T} steps, r = 0.1 "
        "(eta_max = full height)",
        12,
        "start",
    )
    for lane in range(N):
        layer = N - 1 - lane
        base = 46 + 46 * lane + high
        drawing.text(left - 12, base - 12, f"layer {layer}", 12, "end")
        begin = (N - 1 - layer) * k
        if begin:
            drawing.box(left, base - high, width * begin / T, high, "frozen" if begin > 8 else "", FROZEN, 11)
        rates = [layerwise_lr(step, layer, N, k, w, T, 1.0) for step in range(begin, T + 1)]
        points = [(left + width * (begin + i) / T, base - high * rate) for i, rate in enumerate(rates)]
        drawing.area([(points[0][0], base), *points, (points[-1][0], base)], SHARED)
        drawing.line(left, base, left + width, base)
    bottom = 46 + 46 * N
    for step in range(0, T + 1, 20):
        drawing.text(left + width * step / T, bottom + 14, str(step), 11)
    drawing.text(left + width / 2, bottom + 34, "optimizer step", 12)
    return drawing


def packs() -> Drawing:
    """Documents, their pieces, and the packs that `lit_moss.data.packing.pack` makes of them."""
    lengths, context, cell = [7, 3, 2], 5, 30
    names, colors = "ABC", (TEXT, SPEECH, SHARED)
    packed = pack(np.array(lengths), context)
    drawing = Drawing(880, 222, "Documents and packs")

    def document(x: float, y: float, which: int, start: int, stop: int) -> None:
        for i in range(start, stop):
            drawing.box(x + (i - start) * cell, y, cell - 2, 28, f"{names[which]}{i + 1}", colors[which], 11)

    drawing.text(130, 50, "documents", anchor="end", bold=True)
    x = 146.0
    for which, length in enumerate(lengths):
        document(x, 32, which, 0, length)
        x += (length + 1) * cell
    drawing.text(130, 120, f"packs of {context} rows", anchor="end", bold=True)
    x = 146.0
    for i in range(len(packed)):
        y = 102
        drawing.box(x - 4, y - 4, context * cell + 6, 36, "", WHITE, dashed=True)
        at = x
        for which, start, stop in packed.pieces(i):
            document(at, y, which, start, stop)
            at += (stop - start) * cell
        x += (context + 1) * cell
    drawing.text(
        146,
        168,
        "A is longer than the context: its second piece begins with A5, the last row of the first one. "
        "A5 is seen there",
        12,
        "start",
    )
    drawing.text(
        146,
        184,
        "but not predicted, so every row of A but the first is a target once. Nothing is seen across the "
        "border of two pieces.",
        12,
        "start",
    )
    drawing.text(
        146,
        208,
        f"Fill rate here: {packed.fill_rate:.2f}. Empty places are filler: never seen, never a target.",
        12,
        "start",
    )
    return drawing


def order() -> Drawing:
    """Batch numbers, ranks and a resume."""
    drawing = Drawing(880, 230, "The order of data is a function")
    colors = (TEXT, SPEECH, SHARED)
    left, cell = 170, 46
    drawing.text(left - 14, 52, "batch n = f(seed, n)", anchor="end", bold=True)
    for n in range(15):
        drawing.box(left + n * cell, 34, cell - 4, 28, str(n), WHITE)
    for y, label, ranks in (
        (90, "1 rank", [1] * 15),
        (136, "2 ranks", [2] * 15),
        (182, "2 ranks, then 3", [2] * 6 + [3] * 9),
    ):
        drawing.text(left - 14, y + 18, label, anchor="end")
        for n in range(15):
            rank = n % 2 if ranks[n] == 2 else (n - 6) % 3 if ranks[n] == 3 else 0
            drawing.box(left + n * cell, y, cell - 4, 28, f"rank {rank}", colors[rank], 10)
    x = left + 6 * cell - 2
    drawing.line(x, 172, x, 220)
    drawing.text(x + 4, 225, "resume: next_batch = 6", 11, "start")
    return drawing


DRAWINGS = {
    "rows": rows, "speech_tokenizer": speech_tokenizer, "split_lm": split_lm, "flow_decoder": flow_decoder,
    "stages": stages, "unfreezing": unfreezing, "packs": packs, "order": order,
}  # fmt: skip


def main() -> None:
    """Writes all of them."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (PICTURES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
