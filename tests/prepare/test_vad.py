"""`vad`: windows equal the whole, nothing is lost, speech is found between silence, noise and tones."""

import subprocess
import sys
from importlib import util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lit_moss.audio import io
from lit_moss.audio.features import resample
from lit_moss.corpora.manifest import read_manifest
from lit_moss.errors import UserError
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.shards import UNREADABLE
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.vad import VadOptions, VadStage, find_segments, speech_probabilities
from lit_moss.prepare.vad_models import FRAME_SAMPLES, Silero, WindowedStream, import_silero

sys.path.insert(0, str(Path(__file__).parent))
from joined import Joined, Spans, join_clips, precision_recall

RATE_HZ = 16_000
FRAME_SEC = FRAME_SAMPLES / RATE_HZ


@pytest.fixture(scope="module")
def silero() -> Silero:
    return Silero()


@pytest.fixture(scope="module")
def wave(speech) -> np.ndarray:
    """Some 20 s of speech at 16 kHz that do not end with a whole frame."""
    return torch.cat(speech)[: 20 * RATE_HZ + 77].numpy()


@pytest.fixture(scope="module")
def spoken(corpus, tmp_path_factory) -> Joined:
    """A recording of synthesised clips."""
    clips = [u.audio for u in read_manifest(corpus / "train.jsonl")]
    return join_clips(clips, tmp_path_factory.mktemp("joined") / "spoken.flac", seed=3)


def stage(**options) -> VadStage:
    made = VadStage(VadOptions(**options), Storage("unused"))
    made.open()
    return made


def spans(items: list[dict]) -> Spans:
    return [(i["offset"], i["offset"] + i["duration"]) for i in items]


def whole(silero: Silero, wave: np.ndarray) -> np.ndarray:
    stream = silero.stream()
    return np.concatenate([stream.push(wave), stream.flush()])


# --- probabilities ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("piece_samples", [1000, 16_000, 100_001])
@pytest.mark.parametrize("window_frames", [1, 7, 100])
def test_windows_equal_the_whole_to_the_bit(silero, wave, window_frames, piece_samples):
    stream = silero.stream(window_frames)
    pieces = [wave[at : at + piece_samples] for at in range(0, len(wave), piece_samples)]
    outputs = np.concatenate([*(stream.push(piece) for piece in pieces), stream.flush()])
    expected = import_silero().load_silero_vad(sequence=True).audio_forward(wave, max_frames=10**6)
    assert np.array_equal(outputs, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("onnx", "tolerance"), [(True, 2e-6), (False, 1e-4)], ids=["ONNX", "TorchScript"])
def test_probabilities_are_those_of_the_library_s_own_loop(silero, wave, onnx, tolerance):
    """TorchScript's kernels round otherwise: up to 6e-5 apart on 8 minutes of speech; ONNX's were equal."""
    model = import_silero().load_silero_vad(onnx=onnx)
    padded = torch.from_numpy(np.pad(wave, (0, -len(wave) % FRAME_SAMPLES)))
    loop = np.array([model(frame, RATE_HZ).item() for frame in padded.split(FRAME_SAMPLES)])
    windowed = whole(silero, wave)
    assert np.abs(windowed - loop).max() < tolerance
    assert ((windowed >= 0.5) == (loop >= 0.5)).all()


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_no_tail_is_lost_at_other_rates(silero, wave, tmp_path, rate_hz):
    path = tmp_path / "a.wav"
    at_rate = resample(torch.from_numpy(wave), RATE_HZ, rate_hz)
    io.write(path, at_rate, rate_hz)
    probabilities, samples = speech_probabilities(silero, path)
    assert samples == len(io.read(path, RATE_HZ))
    assert abs(samples / RATE_HZ - len(at_rate) / rate_hz) < 1 / RATE_HZ
    assert len(probabilities) == -(-samples // FRAME_SAMPLES)
    # Resampling back loses what is above the lower rate's band, so not at 8 kHz.
    if rate_hz > RATE_HZ:
        assert np.abs(probabilities - whole(silero, wave)[: len(probabilities)]).mean() < 0.01


@pytest.mark.slow
def test_speech_that_goes_on_to_the_end_is_a_segment_to_the_end(spoken, tmp_path):
    wave_T = io.read(spoken.path, RATE_HZ)
    start, end = spoken.speech[3]
    path = tmp_path / "cut.wav"
    io.write(path, wave_T[: int((start + 0.8 * (end - start)) * RATE_HZ)], RATE_HZ)
    last = stage().run([{"audio_filepath": str(path)}]).items[-1]
    assert last["offset"] + last["duration"] == pytest.approx(io.info(path).duration_sec, abs=1e-6)


def test_blocks_are_the_samples_of_the_file(wave, tmp_path):
    path = tmp_path / "a.flac"
    io.write(path, torch.from_numpy(np.tile(wave, 5)), 44_100)
    blocks = list(io.read_blocks(path, RATE_HZ, offset_sec=0.5))
    assert len([b for b in blocks if len(b)]) > 1
    assert torch.equal(torch.cat(blocks), io.read(path, RATE_HZ, offset_sec=0.5))


def test_importing_silero_leaves_torch_s_threads(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("silero_vad")]:
        monkeypatch.delitem(sys.modules, name)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        import_silero()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("samples", [1, 511, 512, 100_000, 159_744, 159_745, 400_001])
def test_overlapping_windows_give_each_frame_once(samples):
    """A model without context gives the same in any window; one with context is asked in the middle."""

    def level(samples: np.ndarray) -> np.ndarray:
        return samples.reshape(-1, FRAME_SAMPLES).mean(axis=1)

    wave = np.random.default_rng(0).random(samples, np.float32)
    stream = WindowedStream(level)
    outputs = [*(stream.push(piece) for piece in np.array_split(wave, 9)), stream.flush()]
    assert np.array_equal(np.concatenate(outputs), level(np.pad(wave, (0, -samples % FRAME_SAMPLES))))

    places = WindowedStream(lambda samples: np.arange(len(samples) // FRAME_SAMPLES))
    frames = np.concatenate([places.push(wave), places.flush()])
    inner = frames[places.WINDOW_FRAMES // 4 : -places.WINDOW_FRAMES]
    assert ((inner >= places.WINDOW_FRAMES // 4) & (inner < 3 * places.WINDOW_FRAMES // 4)).all()


# --- segments -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_segments_without_joins_and_margins_are_silero_s(silero, wave):
    own = import_silero().get_speech_timestamps(
        torch.from_numpy(wave), import_silero().load_silero_vad(), speech_pad_ms=0
    )
    options = VadOptions(join_gap_sec=0, pad_sec=0)
    found = find_segments(whole(silero, wave), len(wave), options)
    assert [(s.start, s.end) for s in found] == [(o["start"], o["end"]) for o in own]


@pytest.mark.parametrize("seed", range(20))
def test_segments_are_ordered_short_enough_and_lose_no_speech(seed):
    generator = np.random.default_rng(seed)
    steps = np.cumsum(generator.normal(0, 0.15, 9000))
    probabilities = (0.5 + 0.5 * np.sin(steps)).astype(np.float32)
    samples = len(probabilities) * FRAME_SAMPLES - int(generator.integers(FRAME_SAMPLES))
    options = VadOptions(
        min_speech_sec=0, pad_sec=generator.uniform(0, 0.5), join_gap_sec=generator.uniform(0, 20),
        max_speech_sec=generator.uniform(3, 30), min_segment_sec=0.5,
    )  # fmt: skip
    found = find_segments(probabilities, samples, options)
    assert found[0].start >= 0
    assert found[-1].end <= samples
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert max(s.end - s.start for s in found) <= options.max_speech_sec * RATE_HZ
    covered = np.zeros(samples, bool)
    for s in found:
        covered[s.start : s.end] = True
    is_speech = np.repeat(probabilities >= options.threshold, FRAME_SAMPLES)[:samples]
    assert covered[is_speech].all()
    assert all(0 < s.probability <= 1 for s in found)


def test_speech_without_pauses_is_cut_at_its_longest_silence():
    probabilities = np.full(1250, 0.9, np.float32)  # 40 s
    probabilities[300:303] = 0.1  # too early: before half of the limit
    probabilities[600:602] = 0.1
    probabilities[800] = 0.1
    found = find_segments(probabilities, 1250 * FRAME_SAMPLES, VadOptions(pad_sec=0.016))
    assert [(s.start, s.end) for s in found] == [
        (0, 600 * FRAME_SAMPLES + 256),
        (602 * FRAME_SAMPLES - 256, 1250 * FRAME_SAMPLES),
    ]


def test_speech_without_any_silence_is_cut_where_speech_is_least_likely():
    probabilities = np.full(1250, 0.9, np.float32)
    probabilities[777] = 0.6
    found = find_segments(probabilities, 1250 * FRAME_SAMPLES, VadOptions())
    assert [(s.start, s.end) for s in found] == [
        (0, 777 * FRAME_SAMPLES),
        (777 * FRAME_SAMPLES, 1250 * FRAME_SAMPLES),
    ]


def test_margins_meet_in_the_middle_of_a_gap():
    probabilities = np.full(200, 0.01, np.float32)
    probabilities[50:80] = probabilities[100:150] = 0.9  # 0.64 s between
    found = find_segments(probabilities, 200 * FRAME_SAMPLES, VadOptions(pad_sec=0.4))
    assert found[0].end == found[1].start == 90 * FRAME_SAMPLES
    assert found[0].start == 50 * FRAME_SAMPLES - int(0.4 * RATE_HZ)
    joined = find_segments(probabilities, 200 * FRAME_SAMPLES, VadOptions(pad_sec=0.4, join_gap_sec=0.65))
    assert len(joined) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "webrtc"}, "model is 'webrtc'"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"neg_threshold": 0.6}, "neg_threshold is 0.6"),
        ({"pad_sec": -0.1}, "pad_sec is -0.1"),
        ({"max_speech_sec": 2.0}, "max_speech_sec is 2.0"),
        ({"little_speech_share": 5.0}, "little_speech_share is 5.0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        VadOptions(**options)


def test_pyannote_is_asked_for_by_name():
    if util.find_spec("pyannote"):
        pytest.skip("pyannote.audio is installed")
    with pytest.raises(UserError, match=r"needs pyannote\.audio"):
        stage(model="pyannote")


# --- recordings ---------------------------------------------------------------------------------------------


def test_speech_is_found_between_silence_noise_and_tones(spoken):
    result = stage().run([{"audio_filepath": str(spoken.path)}])
    found = spans(result.items)
    precision, recall = precision_recall(found, spoken.speech, collar_sec=0.3 + FRAME_SEC)
    assert precision >= 0.95
    assert recall >= 0.95
    assert result.counts["recording_sec"] == pytest.approx(spoken.seconds)
    assert result.counts["recordings_without_speech"] == 0
    document = {i["document"] for i in result.items}
    assert len(document) == 1
    assert document.pop().startswith("spoken-")
    assert all(i["speech_prob"] > 0.5 for i in result.items)


@pytest.mark.slow
def test_real_speech_is_found_between_silence_noise_and_tones(shared_data, tmp_path):
    clips = sorted((shared_data / "librispeech").glob("*.flac"))
    joined = join_clips(clips, tmp_path / "ten_minutes.flac")
    assert joined.seconds > 550
    found = spans(stage().run([{"audio_filepath": str(joined.path)}]).items)
    precision, recall = precision_recall(found, joined.speech, collar_sec=0.3 + FRAME_SEC)
    assert precision >= 0.95
    assert recall >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_segments_do_not_depend_on_the_rate(spoken, tmp_path, rate_hz):
    path = tmp_path / "other.flac"
    io.write(path, resample(io.read(spoken.path, RATE_HZ), RATE_HZ, rate_hz), rate_hz)
    first, other = (spans(stage().run([{"audio_filepath": str(p)}]).items) for p in (spoken.path, path))
    precision, recall = precision_recall(other, first)
    assert min(precision, recall) > 0.99


def test_a_part_of_a_recording_gives_offsets_in_the_file(spoken):
    offset, duration = spoken.clips[5][0], spoken.clips[8][1] - spoken.clips[5][0]
    item = {
        "audio_filepath": str(spoken.path), "offset": offset, "duration": duration, "id": "part",
        "text": "of all", "licence": "CC0",
    }  # fmt: skip
    items = stage().run([item]).items
    found = spans(items)
    assert found[0][0] >= offset
    assert found[-1][1] <= offset + duration + 1e-9
    known = [(s, e) for s, e in spoken.speech if offset <= s and e <= offset + duration]
    assert precision_recall(found, known, collar_sec=0.35)[1] > 0.95
    assert all("text" not in i and i["licence"] == "CC0" for i in items)
    assert len({i["id"] for i in items}) == len(items)
    assert items[0]["document"].endswith(f"@{offset:.3f}")
    assert stage().run([item | {"document": "talk"}]).items[0]["document"] == "talk"


def test_files_of_one_name_are_different_documents(spoken, tmp_path):
    wave_T = io.read(spoken.path, RATE_HZ, 0, 20.0)
    documents = set()
    for folder, gain in (("a", 1.0), ("b", 0.9)):
        (tmp_path / folder).mkdir()
        io.write(tmp_path / folder / "talk.wav", gain * wave_T, RATE_HZ)
        items = stage().run([{"audio_filepath": str(tmp_path / folder / "talk.wav")}]).items
        documents |= {i["document"] for i in items}
    assert len(documents) == 2


def test_recordings_without_speech_are_counted_and_rejected(tmp_path):
    path = tmp_path / "noise.wav"
    io.write(path, 0.01 * torch.randn(10 * RATE_HZ, generator=torch.Generator().manual_seed(0)), RATE_HZ)
    result = stage().run([{"audio_filepath": str(path)}])
    assert result.items == []
    assert [r.reason for r in result.rejected] == ["no speech"]
    assert result.counts["recordings_without_speech"] == result.counts["recordings_with_little_speech"] == 1
    assert result.counts["recording_sec"] == 10.0


def test_short_segments_are_rejected_with_their_length(spoken):
    result = stage(min_segment_sec=3.0).run([{"audio_filepath": str(spoken.path)}])
    assert result.items
    assert min(i["duration"] for i in result.items) >= 3.0
    assert result.rejected
    assert all(r.reason == "segment too short" and r.value == r.item["duration"] for r in result.rejected)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param("a.flac", half, id="flac cut in half"),
        pytest.param("a.wav", half, id="wav cut in half"),
        pytest.param("a.flac", flipped, id="flac with a flipped byte"),
        pytest.param("a.wav", lambda _: b"", id="no bytes"),
        pytest.param("a.wav", lambda _: b"text", id="no sound"),
    ],
)
def test_damaged_files_are_unreadable(spoken, tmp_path, name, damage):
    path = tmp_path / name
    io.write(path, io.read(spoken.path, RATE_HZ, 0, 30.0), RATE_HZ)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(io.UnreadableAudio, match=name):
        stage().run([{"audio_filepath": str(path)}])


def test_samples_that_are_not_finite_are_unreadable(tmp_path):
    samples = np.zeros(40 * RATE_HZ, np.float32)
    samples[-5] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE_HZ, subtype="FLOAT")
    with pytest.raises(io.UnreadableAudio, match="not finite"):
        stage().run([{"audio_filepath": str(tmp_path / "nan.wav")}])


def test_a_folder_becomes_a_manifest_and_bad_files_are_counted(spoken, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for i in range(3):
        io.write(folder / f"{i}.flac", io.read(spoken.path, RATE_HZ, 20.0 * i, 20.0), RATE_HZ)
    (folder / "bad.flac").write_bytes(half((folder / "0.flac").read_bytes()))
    out = tmp_path / "out"
    stated = (("source", "talks"), ("licence", "CC0-1.0"))
    step = Step("vad", "vad", VadOptions(), (str(folder),), str(out), str(out), stated=stated)
    result = run_step(step, Machine())
    assert result.counts.rejected[UNREADABLE] == 1
    assert result.counts.counts["recordings"] == 3
    assert result.counts.speech_sec_in == pytest.approx(60.0)
    found = read_manifest(out / "manifest.jsonl")
    assert [u.audio.name for u in found] == sorted(u.audio.name for u in found)
    assert {u.audio.name for u in found} == {"0.flac", "1.flac", "2.flac"}
    assert {(u.extra["source"], u.extra["licence"]) for u in found} == {("talks", "CC0-1.0")}
    assert VadStage.read_source(str(out / "manifest.jsonl")) is None
    with pytest.raises(UserError, match="no file"):
        list(VadStage.read_source(str(tmp_path / "none.wav")) or ())


# --- an hour ------------------------------------------------------------------------------------------------

# Not ru_maxrss: a child begins with the peak of the process that started it.
HOUR = """
import sys
from lit_moss.prepare.vad import speech_probabilities
from lit_moss.prepare.vad_models import Silero

def megabytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name + ":"))

model = Silero()
before = megabytes("VmRSS")
probabilities, samples = speech_probabilities(model, sys.argv[1])
print(len(probabilities), samples, megabytes("VmHWM") - before)
"""


@pytest.mark.nightly
def test_an_hour_needs_little_memory_and_loses_no_frame(spoken, tmp_path):
    rate_hz, path = 48_000, tmp_path / "hour.wav"
    wave = resample(io.read(spoken.path, RATE_HZ), RATE_HZ, rate_hz).numpy()
    left = 3600 * rate_hz + 1234
    with soundfile.SoundFile(path, "w", rate_hz, 1) as file:
        while left:
            file.write(wave[:left])
            left -= min(left, len(wave))
    command = [sys.executable, "-c", HOUR, str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    frames, samples, megabytes = (float(x) for x in output.split())
    assert samples == -(-(3600 * rate_hz + 1234) // 3)
    assert frames == -(-samples // FRAME_SAMPLES)
    assert 1 < megabytes < 500  # 105 MB measured; the hour itself is 230 MB at 16 kHz, 691 MB at 48 kHz
