"""The engine on a tiny model: nothing mixed, nothing lost, nobody held up."""

import asyncio
import gc
import threading
import time

import pytest
import torch
from talker import model_folder, wave

from lit_moss.audio.features import resample
from lit_moss.codec.flow_network import Prompt
from lit_moss.errors import UserError
from lit_moss.llm.cache import KVCache
from lit_moss.llm.sampling import GREEDY, Sampling
from lit_moss.serve.conversation import Conversation
from lit_moss.serve.engine import Engine
from lit_moss.serve.metrics import render
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, CodesDelta, ReplyDone, ReplyOptions, TextDelta
from lit_moss.serve.settings import Limits, SessionLimit
from lit_moss.serve.sound_worker import SoundWorker
from lit_moss.serve.speaking import TextStream

LONG = Sampling(1.0, 0, 1.0, 1.0)  # replies of random rows, which rarely end


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    opened = SpeechModel.open(str(model_folder(tmp_path_factory.mktemp("m") / "m")), device="cpu")
    f = opened.lm.format
    with torch.no_grad():  # replies as long as they may be: their ends are hardly ever the most likely rows
        for branch in opened.lm.branches:
            ends = [*opened.lm.stop_ids, f.sosp_token_id] if "text" in branch.predicts else [f.eosp_token_id]
            branch.head.weight[ends] *= 0.01
    return opened


@pytest.fixture
def engine(model):
    engine = Engine(model)
    yield engine
    engine.close()


def ask(session, question, /, **options):
    session.conversation.add(session.conversation.text_message("user", question))
    return session.start_reply(ReplyOptions(**{"max_new_tokens": 30, "seed": 3} | options))


class Heard:
    """All of a reply."""

    def __init__(self, events):
        events = list(events)
        self.done = events[-1]
        assert [isinstance(e, ReplyDone) for e in events] == [False] * (len(events) - 1) + [True]
        self.text = "".join(e.text for e in events if isinstance(e, TextDelta))
        self.codes = [c for e in events if isinstance(e, CodesDelta) for c in e.codes]
        waves = [e.samples_T for e in events if isinstance(e, AudioDelta)]
        self.wave = torch.cat(waves) if waves else torch.zeros(0)
        self.pieces = len(waves)


@pytest.mark.slow
def test_a_reply_is_that_of_generate_and_of_the_codec(engine, model):
    for reply in ("speech", "text"):
        session = engine.open_session("Be brief.")
        heard = Heard(ask(session, "How are you?", reply=reply, text=GREEDY, speech=GREEDY))
        done = heard.done
        assert (done.reason, done.error) == ("length", "")
        assert done.prompt == session.conversation.prompt(reply)
        assert done.rows == model.lm.generate(done.prompt, max_new_tokens=30, greedy=True)
        assert heard.codes == model.lm.format.codes(done.rows)
        assert heard.text == session.conversation.text_of(done.rows)
        assert len(heard.wave) == 1920 * len(heard.codes)
        # In groups: a chunk with its look-ahead, then chunks. Griffin-Lim's phases depend on them.
        player = model.codec.stream(model.voices["default"])
        groups = [heard.codes[:8], *(heard.codes[n : n + 5] for n in range(8, len(heard.codes), 5))]
        whole = torch.cat([*(player.push(group) for group in groups), player.flush()])
        torch.testing.assert_close(heard.wave, whole, rtol=0, atol=1e-4)
        usage = done.usage
        assert usage.prompt_rows == usage.cached_rows + usage.prefilled_rows == len(done.prompt)
        assert usage.cached_rows == 0  # another system prompt
        assert usage.text_rows + usage.speech_rows <= 30
        assert bool(usage.first_sound_sec) == (reply == "speech")
        session.close()


@pytest.mark.nightly
def test_eight_sessions_at_once_say_what_each_says_alone(model):
    engine = Engine(model, Limits(max_kept_bytes=1))

    def answers(at_once):
        sessions, heard = [], {}
        for n in range(8):
            session = engine.open_session()
            reply = ask(
                session, f"Question {'na' * n} {n}?", reply="text" if n % 4 == 3 else "speech", seed=n
            )
            if at_once:
                thread = threading.Thread(target=lambda n=n, r=reply: heard.update({n: Heard(r)}))
                thread.start()
                sessions.append((session, thread))
            else:
                heard[n] = Heard(reply)
                session.close()
        for session, thread in sessions:
            thread.join()
            session.close()
        return [heard[n] for n in range(8)]

    try:
        alone, together = answers(False), answers(True)
    finally:
        engine.close()
    for one, other in zip(alone, together, strict=True):
        assert one.done.rows == other.done.rows
        assert one.text == other.text
        torch.testing.assert_close(one.wave, other.wave, rtol=0, atol=1e-6)
    assert len({tuple(one.done.rows) for one in alone}) == 8


@pytest.mark.slow
def test_the_second_question_prefills_its_new_rows_alone(engine):
    session = engine.open_session()
    first = Heard(ask(session, "One?")).done
    assert first.usage.prefilled_rows == len(first.prompt)
    session.conversation.add(session.conversation.reply_message(first.rows, first.prompt))
    second = Heard(ask(session, "And two?")).done
    # The last row of a reply that reached its length was not fed.
    assert second.usage.cached_rows == len(first.prompt) + len(first.rows) - 1
    assert second.usage.prefilled_rows == len(second.prompt) - second.usage.cached_rows
    assert second.prompt[: second.usage.cached_rows] == [*first.prompt, *first.rows][:-1]


def second_of_two(engine, scope, other_scope, instructions=""):
    """A question, and the next one of the same conversation in a session of its own."""
    session = engine.open_session(instructions, scope)
    first = Heard(ask(session, "One?")).done
    history = session.conversation
    history.add(history.reply_message(first.rows, first.prompt))
    session.close()
    other = engine.open_session(instructions, other_scope)
    other.conversation.messages = list(history.messages)
    second = Heard(ask(other, "And two?")).done
    other.close()
    assert second.rows == engine.model.lm.generate(
        second.prompt, max_new_tokens=30, generator=torch.Generator().manual_seed(3)
    )
    return first, second


@pytest.mark.slow
def test_a_new_session_with_the_whole_history_finds_its_cache(engine):
    first, second = second_of_two(engine, "client", "client")
    assert second.usage.cached_rows == len(first.prompt) + len(first.rows) - 1


@pytest.mark.nightly
@pytest.mark.parametrize("scopes", [("one", "other"), (None, None), ("one", None), (None, "one")])
def test_sessions_of_others_find_the_system_turn_alone(engine, scopes):
    _, second = second_of_two(engine, *scopes)
    system = second.prompt.index(engine.model.lm.format.im_end_id) + 1
    assert second.usage.cached_rows == system
    # Not even a part of instructions that were others' alone: they could be guessed word by word.
    session = engine.open_session("Speak of the sea.", "third")
    done = Heard(ask(session, "One?")).done
    assert done.usage.cached_rows == 0
    session.close()
    session = engine.open_session("Speak of the sea. And more.", "fourth")
    assert Heard(ask(session, "One?")).done.usage.cached_rows == 0


@pytest.mark.slow
def test_closed_sessions_without_successors_leave_their_system_turn_alone(engine):
    for _ in range(3):
        session = engine.open_session()
        done = Heard(ask(session, "One?")).done
        session.close()
    assert done.usage.cached_rows == done.prompt.index(engine.model.lm.format.im_end_id) + 1
    engine.close()
    assert len(engine.rows.pool) == 1
    (context,) = engine.rows.pool._contexts
    assert len(context.rows) == done.usage.cached_rows


@pytest.mark.slow
def test_cancel_ends_a_reply_within_a_row(engine):
    session = engine.open_session()
    reply = ask(session, "Tell me all.", max_new_tokens=2000, speech=LONG, text=LONG)
    rows, events = 0, []
    for event in reply:
        events.append(event)
        rows += isinstance(event, CodesDelta)
        if rows == 12 and not reply.cancelled:
            made = len(engine.rows.running[0].rows)
            reply.cancel()
    assert events[-1].reason == "cancelled"
    assert len(events[-1].rows) <= made + 2  # the row in the making, and the one since `made` was read
    assert not engine.rows.running
    reply.cancel()  # once more: nothing happens
    assert Heard(ask(session, "Again?")).done.reason == "length"


def test_events_arrive_in_an_event_loop_too(engine):
    async def listen():
        session = engine.open_session()
        reply, events = ask(session, "Go on.", max_new_tokens=1000, speech=LONG, text=LONG), []
        async for event in reply:
            events.append(event)
            if isinstance(event, AudioDelta):
                reply.cancel()
        return events

    events = asyncio.run(listen())
    assert isinstance(events[-1], ReplyDone)
    assert events[-1].reason == "cancelled"
    assert sum(isinstance(e, AudioDelta) for e in events) >= 1


@pytest.mark.nightly
def test_a_client_that_does_not_read_holds_up_itself_alone(model):
    engine = Engine(model, Limits(max_unsent_sec=1.0))
    try:
        stalled = ask(engine.open_session(), "Speak long.", max_new_tokens=90, speech=LONG, text=LONG)
        until = time.monotonic() + 20
        while not any(engine.rows.is_paused(one) for one in engine.rows.running):
            assert time.monotonic() < until
            time.sleep(0.01)
        # 1 s is 12.5 codes, and decoder and vocoder hold back some: the reply pauses for good a little later.
        Heard(ask(engine.open_session(), "0?"))
        made = len(engine.rows.running[0].rows)
        assert made < 35
        for n in range(1, 4):
            assert len(Heard(ask(engine.open_session(), f"{n}?")).done.rows) == 30
        assert len(engine.rows.running[0].rows) == made
        heard = Heard(stalled)  # it reads, and the reply goes on to its end
        assert heard.done.reason in ("length", "stop")
        assert len(heard.wave) == 1920 * len(heard.codes)
        assert len(heard.done.rows) > made
    finally:
        engine.close()


@pytest.mark.slow
def test_sound_that_is_not_finite_fails_its_reply_alone(engine, model):
    model.voices["broken"] = Prompt(
        torch.zeros(5, dtype=torch.long), torch.full((80, 20), torch.nan), model.codec.no_prompt().speaker_S
    )
    try:
        other = ask(engine.open_session(), "Fine?")
        session = engine.open_session()
        heard = Heard(ask(session, "Broken?", voice="broken"))
        assert heard.done.reason == "failed"
        assert "not finite" in heard.done.error
        assert Heard(other).done.reason == "length"
        assert Heard(ask(session, "Better?")).done.reason == "length"
    finally:
        del model.voices["broken"]


@pytest.mark.slow
def test_lack_of_memory_fails_a_reply_and_not_the_engine(engine, monkeypatch):
    def fails(self, *args, **kwargs):
        raise torch.OutOfMemoryError("out of memory\nand a long report")

    session = engine.open_session()
    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "update", fails)
        done = Heard(ask(session, "One?")).done
        assert (done.reason, done.error) == ("failed", "out of memory")
    assert Heard(ask(session, "Two?")).done.reason == "length"


@pytest.mark.slow
def test_speech_is_encoded_while_it_comes_with_the_codes_of_the_whole(engine, model):
    session = engine.open_session()
    session.expected = ReplyOptions()
    sound = wave(3.3)
    turn = session.listen()
    for piece in sound.split(480):
        turn.push(piece)
    codes = turn.finish().result(20)
    assert codes == model.speech_tokenizer.encode(resample(sound, 24_000, 16_000), 16_000).tolist()
    assert turn.seconds == pytest.approx(3.3)
    # What was known early was computed early.
    until = time.monotonic() + 20
    while session.ahead is not None and time.monotonic() < until:
        time.sleep(0.01)
    session.conversation.add(session.conversation.speech_message("user", codes))
    done = Heard(session.start_reply(ReplyOptions(max_new_tokens=12, speech=GREEDY, text=GREEDY))).done
    before_turn = len(done.prompt) - len(session.conversation.renderer.head("assistant")) - 1 - 2 - 42 - 2
    assert done.usage.cached_rows >= before_turn + 35
    assert done.rows == model.lm.generate(done.prompt, max_new_tokens=12, greedy=True)


@pytest.mark.slow
def test_recordings_and_short_turns_and_cleared_ones(engine, model):
    session = engine.open_session()
    for seconds, rate_hz in ((0.05, 24_000), (1.0, 16_000), (5.0, 44_100), (31.0, 16_000)):
        sound = wave(seconds, rate_hz=rate_hz)
        turn = session.listen(rate_hz)
        turn.push(torch.ones(rate_hz) * 0.1)
        turn.clear()
        turn.push(sound)
        expected = model.speech_tokenizer.encode(sound, rate_hz).tolist()
        assert turn.finish().result(60) == expected
        assert engine.encode(sound, rate_hz).result(60) == expected
    assert session.listen().finish().result(20) == []
    with pytest.raises(UserError, match="not finite"):
        session.listen().push(torch.tensor([torch.nan]))
    with pytest.raises(UserError, match="more than 120 s"):
        session.listen().push(torch.zeros(121 * 24_000))


def test_a_model_without_speech_tokenizer_says_so_at_the_end_of_the_turn(model):
    deaf = SpeechModel("deaf", model.lm, model.text_tokenizer, None, None)
    engine = Engine(deaf)
    try:
        engine.warm_up()
        turn = engine.open_session().listen()
        turn.push(wave(0.5))
        for future in (turn.finish(), engine.encode(wave(0.5), 24_000)):
            with pytest.raises(UserError, match="deaf cannot listen"):
                future.result(10)
        with pytest.raises(UserError, match="cannot speak"):
            engine.sessions[0].start_reply(ReplyOptions())
    finally:
        engine.close()


@pytest.mark.nightly
def test_open_and_close_leave_nothing(model):
    engine = Engine(model, Limits(max_kept_bytes=100_000))
    try:
        threads = threading.active_count()

        def cycle(n):
            session = engine.open_session()
            turn = session.listen()
            turn.push(wave(0.2))
            reply = ask(session, f"{n}?", max_new_tokens=9)
            if n % 3 == 0:
                next(iter(reply))
            elif n % 3 == 1:
                Heard(reply)
            session.close()
            session.close()

        for n in range(6):
            cycle(n)
        counts = []
        for start in (0, 20):
            for n in range(start, start + 20):
                cycle(n)
            until = time.monotonic() + 20
            while (engine.rows.running or engine.sounds.waiting) and time.monotonic() < until:
                time.sleep(0.01)
            Heard(ask(engine.open_session(), "Last?"))
            engine.sessions[0].close()
            time.sleep(0.1)
            gc.collect()
            # Not isinstance, which asks a weak proxy of whoever else is in the process for its dead object.
            counts.append(sum(issubclass(type(o), torch.Tensor | KVCache) for o in gc.get_objects()))
        assert engine.sessions == []
        assert threading.active_count() == threads
        assert engine.rows.pool.bytes <= 100_000
        assert counts[1] <= counts[0] + 20
    finally:
        engine.close()


@pytest.mark.slow
def test_full_and_closing_engines_refuse(model):
    engine = Engine(model, Limits(max_sessions=2))
    sessions = [engine.open_session() for _ in range(2)]
    with pytest.raises(SessionLimit, match="all 2 sessions"):
        engine.open_session()
    sessions[0].close()
    busy = engine.open_session()
    reply = ask(busy, "Still there?", max_new_tokens=25)
    with pytest.raises(UserError, match="being made already"):
        busy.start_reply(ReplyOptions())
    assert engine.drain(30.0)
    assert Heard(reply).done.reason == "length"
    with pytest.raises(SessionLimit, match="closing"):
        engine.open_session()
    with pytest.raises(SessionLimit, match="closing"):
        sessions[1].start_reply(ReplyOptions())
    with pytest.raises(SessionLimit, match="closing"):
        sessions[1].listen().finish()
    engine.close()
    cut = Engine(model)
    reply = ask(cut.open_session(), "Long?", max_new_tokens=2000, speech=LONG, text=LONG)
    futures = [cut.encode(wave(10.0), 16_000) for _ in range(20)]
    assert not cut.drain(0.05)
    assert Heard(reply).done.reason == "cancelled"
    assert isinstance(futures[-1].exception(10), SessionLimit)


def test_owners_take_turns_in_the_sound_worker():
    worker, order, gate = SoundWorker(torch.device("cpu")), [], threading.Event()
    worker.submit("first", gate.wait)
    for n in range(4):
        worker.submit("a", lambda n=n: order.append(f"a{n}"))
    worker.submit("b", lambda: order.append("b0"))
    worker.submit("b", lambda: 1 / 0)  # reported, and nothing else
    worker.submit("c", lambda: order.append("c0"))
    gate.set()
    done = threading.Event()
    worker.submit("a", done.set)
    assert done.wait(10)
    assert order == ["a0", "b0", "c0", "a1", "a2", "a3"]
    worker.close()


def test_text_comes_in_whole_characters(model):
    text = "Größe, 語 and 🙂 — naïve.  Two  spaces\nand a line"
    ids = model.renderer.ids(text)
    stream = TextStream(model.text_tokenizer)
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.flush()]) == model.text_tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    cut = TextStream(model.text_tokenizer)
    pieces = [cut.push(i) for i in ids[:3]]
    assert "".join([*pieces, cut.flush()]) == model.text_tokenizer.decode(ids[:3])


def test_special_tokens_are_no_text(model):
    conversation = Conversation(model.renderer)
    ids = conversation.renderer.ids("Good morning")
    special = [model.lm.format.sosp_token_id, *conversation.renderer.head("user")[:1]]
    rows = [special[1], *ids[:4], special[0], model.lm.format.eosp_row, *ids[4:], special[1]]
    assert conversation.text_of(rows) == "Good morning"
    stream = TextStream(model.text_tokenizer)
    pieces = [stream.push(row) for row in rows if row < model.lm.format.text_vocab_size]
    assert "".join([*pieces, stream.flush()]) == "Good morning"


@pytest.mark.slow
def test_metrics_count_what_happened(model):
    from prometheus_client.parser import text_string_to_metric_families

    engine = Engine(model, Limits(max_sessions=1))
    try:
        engine.warm_up()
        session = engine.open_session()
        with pytest.raises(SessionLimit):
            engine.open_session()
        first = Heard(ask(session, "One?")).done
        Heard(ask(session, "Two?", reply="text"))
        content, kind = render(engine)
    finally:
        engine.close()
    assert kind.startswith("text/plain")
    found = {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(content.decode())
        for s in family.samples
    }
    assert found["lit_moss_sessions",] == 1
    assert found["lit_moss_sessions_opened_total",] == 1
    assert found["lit_moss_sessions_refused_total",] == 1
    assert found["lit_moss_replies_total", "length"] == 2
    assert found["lit_moss_rows_total", "speech"] + found["lit_moss_rows_total", "text"] == 60
    assert found["lit_moss_first_sound_seconds_count",] == 1
    assert found["lit_moss_first_sound_seconds_sum",] == pytest.approx(first.usage.first_sound_sec)
    assert found["lit_moss_first_sound_seconds_bucket", "+Inf"] == 1
    assert found["lit_moss_prefilled_rows_total",] + found["lit_moss_cached_rows_total",] > len(first.prompt)
